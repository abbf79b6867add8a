"""Reconciling WasmWorkloads, with an API server and runners of dictionaries."""

from __future__ import annotations

import pytest

from tests.support.told import end
from tests.support.workload_scene import CONFIG, ENV, KEY, OWNER, PATH, RUNNING, Scene, container
from wherry_operator.reconcile.instances import RETRY_SECONDS
from wherry_operator.reconcile.workload import BEGUN_WITHIN_SECONDS
from wherry_operator.runners.delivery import LOSS_SECONDS
from wherry_runner.protocol import Phase, Waiting


def test_a_workload_is_sent_to_a_runner_and_shown_as_it_says() -> None:
    scene = Scene()
    assert scene.reconcile() == BEGUN_WITHIN_SECONDS
    assert "status" not in scene.kube.objects[PATH], "it begins: the first word can be that it runs"
    assert scene.reconcile(after=BEGUN_WITHIN_SECONDS) is None
    ((workload_id, put),) = scene.one.puts
    assert workload_id.startswith("u-1-")
    assert put.workload.owner == OWNER
    assert (scene.status["phase"], scene.status["ready"]) == ("Pending", "0/1")
    scene.says(RUNNING)
    assert (scene.status["phase"], scene.status["instances"][0]["node"]) == ("Running", "node-one")
    assert scene.events == [("Started", "Started on runner one")]


def test_a_start_that_is_over_soon_is_one_write() -> None:
    scene = Scene()
    scene.reconcile()
    scene.says(RUNNING)
    assert len(scene.kube.patches) == 1
    assert scene.status["phase"] == "Running"


def test_a_start_that_goes_wrong_is_told_at_once() -> None:
    scene = Scene()
    scene.reconcile()
    scene.says(container(Waiting(reason="ErrImagePull", message="no such module")))
    assert scene.status["phase"] == "ErrImagePull"


def test_what_is_as_it_should_be_costs_no_call() -> None:
    scene = Scene().run()
    scene.kube.calls.clear()
    scene.reconcile()
    assert (scene.kube.calls, scene.puts, scene.events) == ([], 1, [])


@pytest.mark.parametrize("code", [0, 3])
@pytest.mark.parametrize("trouble", ["runner restarted", "runner silent", "runner gone", "ConfigMap gone", "all of it"])
def test_what_has_ended_stays_ended_whatever_happens_after(code: int, trouble: str) -> None:
    """Under Never nothing runs twice, and the status keeps telling how it ended (design §3.8)."""
    scene = Scene(env=ENV).finish(code)
    ended = scene.status
    assert ended["phase"] == ("Succeeded" if code == 0 else "Failed")
    match trouble:
        case "runner restarted":
            scene.one.restart()
        case "runner silent":
            scene.one.restart()
            scene.one.go_silent()
        case "runner gone":
            del scene.registry.runners["one"]
        case "ConfigMap gone":
            scene.kube.remove(CONFIG)
        case _:
            scene.kube.remove(CONFIG)
            del scene.registry.runners["one"]
    for _ in range(3):
        scene.succeed()
        scene.reconcile()
    assert scene.two.puts == []
    for _, put in scene.one.puts[1:]:
        (past,) = put.history
        assert past.terminated is not None, "a runner that lost its journal is told that it has ended"
        assert past.terminated.exit_code == code
    if trouble not in ("runner restarted",):
        assert scene.status == ended


@pytest.mark.parametrize("trouble", ["silent", "silent and no ConfigMap", "no ConfigMap"])
def test_what_runs_on_a_silent_runner_is_not_started_elsewhere_by_an_operator_that_never_heard_it(trouble: str) -> None:
    scene = Scene(env=ENV).run()
    if "silent" in trouble:
        scene.one.restart()  # what this operator knows of it: nothing
        scene.one.go_silent()
    if "ConfigMap" in trouble:
        scene.kube.remove(CONFIG)
    for _ in range(4):
        scene.succeed()
        again = scene.reconcile()
        assert again is not None
        assert again <= LOSS_SECONDS
    if "ConfigMap" in trouble:
        scene.kube.put(CONFIG, {"metadata": {"name": "c", "namespace": "boats", "uid": "c"}, "data": {"a": "1"}})
        scene.succeed()
        scene.reconcile()
    assert scene.two.puts == []
    assert scene.status["instances"][0]["containerID"] == "wherry://one/a"


def test_another_spec_is_another_life_that_begins_when_the_old_one_has_ended() -> None:
    scene = Scene().finish()
    (old,) = scene.ids
    scene.one.on_delete = lambda _: None  # its delete takes a while
    scene.one.says(old, RUNNING)
    scene.edit(args=["new"])
    assert scene.reconcile() == RETRY_SECONDS
    assert (scene.puts, scene.ids) == (1, [old])
    scene.one.says(old, container(end(137)), phase=Phase.ENDED)
    scene.reconcile()
    (new,) = scene.ids
    assert new != old
    assert scene.puts == 2
    assert scene.status["restarts"] == 0
    assert scene.status["observedGeneration"] == 2


def test_another_content_is_sent_to_the_same_life() -> None:
    scene = Scene(env=ENV).run()
    scene.kube.put(CONFIG, {"metadata": {"name": "c", "namespace": "boats", "uid": "c"}, "data": {"a": "2"}})
    scene.succeed()
    scene.reconcile()
    (first, put), (second, other) = scene.one.puts
    assert first == second
    assert [item.workload.containers[0].env[0].value.get_secret_value() for item in (put, other)] == ["1", "2"]


def test_what_is_missing_is_told_and_hinders_no_running_one() -> None:
    scene = Scene(env=ENV)
    scene.kube.remove(CONFIG)
    assert scene.reconcile() == RETRY_SECONDS
    assert (scene.status["phase"], scene.puts) == ("CreateContainerConfigError", 0)
    assert scene.events == [("Failed", 'Error: configmap "c" not found')]
    scene = Scene(env=ENV).run()
    scene.kube.remove(CONFIG)
    scene.succeed()
    assert scene.reconcile() == RETRY_SECONDS
    assert scene.status["phase"] == "Running"


def test_without_a_runner_it_waits_and_says_why() -> None:
    scene = Scene()
    for runner in scene.runners:
        runner.go_silent()
    assert scene.reconcile() == RETRY_SECONDS
    assert scene.status["phase"] == "Pending"
    assert scene.events == [("FailedPlacement", "0/2 runners fit: 2 are not ready")]


def test_a_crash_loop_is_told_of() -> None:
    scene = Scene(restartPolicy="Always").run()
    scene.says(container(Waiting(reason="CrashLoopBackOff", message="back-off 10s"), last_terminated=end(1)))
    assert scene.events[-1] == ("CrashLoopBackOff", "back-off 10s")
    assert scene.status["phase"] == "CrashLoopBackOff"


def test_what_is_gone_is_dropped_and_its_successor_of_the_same_name_is_not() -> None:
    scene = Scene().run()
    (old,) = scene.ids
    scene.store.seen(scene.kube.remove(PATH), deleted=True)
    scene.reconciler.gone(KEY, "u-1")
    scene.see(
        {
            "metadata": {"name": "hello", "namespace": "boats", "uid": "u-2", "generation": 1},
            "spec": {"className": "wherry", "module": {"image": "i"}},
        }
    )
    scene.reconcile()
    assert scene.one.deletes == [(old, 0)]
    (new,) = scene.ids
    assert new.startswith("u-2-")


def test_one_that_is_being_deleted_runs_no_more_and_says_so() -> None:
    scene = Scene().run()
    scene.change(lambda body: body["metadata"].update(deletionTimestamp="2026-01-02T03:04:05Z", finalizers=["x/y"]))
    scene.reconcile()
    assert (scene.ids, scene.status["phase"]) == ([], "Terminating")
