"""WasmWorkloads whose runners are lost, come back, or have to be left."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tests.support.fake_runners import FakeRunner
from tests.support.told import START, end
from tests.support.workload_scene import RUNNING, Scene, container
from wherry_operator.placement import NodeFacts, Taint
from wherry_operator.runners.delivery import LOSS_SECONDS
from wherry_runner.protocol import Phase, Running, Terminated

LEAVE = Taint("maintenance", "", "NoExecute")


def service(replicas: int = 2, **spec: Any) -> Scene:
    return Scene(restartPolicy="Always", replicas=replicas, **spec).settle()


def lose(scene: Scene, runner: FakeRunner) -> float | None:
    """It is silent for longer than the grace."""
    runner.go_silent(since=scene.time.seconds)
    return scene.reconcile(after=LOSS_SECONDS)


def runs(scene: Scene) -> dict[str, int]:
    return {runner.name: len(runner.state.statuses) for runner in scene.runners}


def test_silence_within_the_grace_moves_nothing_and_ends_exactly_then() -> None:
    scene = service()
    puts = scene.puts
    scene.one.go_silent(since=scene.time.seconds)
    again = scene.reconcile()
    assert again == LOSS_SECONDS - 1
    assert (scene.puts, scene.status["ready"]) == (puts, "1/2")
    scene.one.come_back()
    scene.settle()
    assert (scene.puts, scene.status["ready"], runs(scene)) == (puts, "2/2", {"one": 1, "two": 1})
    assert scene.status["restarts"] == 0


def test_what_a_lost_runner_had_is_started_elsewhere_once() -> None:
    scene = service()
    ids = set(scene.ids)
    lose(scene, scene.one)
    assert len(scene.two.state.statuses) == 2
    assert set(scene.two.state.statuses) == ids, "each is the same instance as before"
    puts = scene.puts
    for workload_id in ids:
        scene.two.says(workload_id, RUNNING)
    scene.reconcile()
    scene.reconcile()
    assert (scene.puts, scene.status["ready"]) == (puts, "2/2")
    assert {item["runner"] for item in scene.status["instances"]} == {"two"}


def test_the_next_runner_is_told_the_past_so_that_restarts_are_counted_and_never_is_kept() -> None:
    scene = Scene().run()
    lose(scene, scene.one)
    ((_, put),) = scene.two.puts
    (past,) = put.history
    assert (past.container_id, past.terminated) == ("a", None), (
        "it was seen running: under Never it fails as RunnerLost"
    )


@pytest.mark.parametrize(("policy", "heard"), [("Never", False), ("OnFailure", False), ("OnFailure", True)])
def test_two_faults_at_once_run_it_twice_as_the_documentation_says(policy: str, heard: bool) -> None:
    """The operator died before it wrote what had happened, and before the next one hears it the runner falls silent."""
    scene = Scene(restartPolicy=policy)
    scene.reconcile()
    if heard:
        scene.says(RUNNING)
    scene.one.state.statuses.clear()  # it has ended there, and nobody has heard of it
    scene.succeed()
    lose(scene, scene.one)
    ((_, put),) = scene.two.puts
    assert all(past.terminated is None for past in put.history), "nobody knows of its end"


def test_runners_that_forget_what_has_ended_change_nothing() -> None:
    scene = Scene(completions=3, replicas=3)
    scene.reconcile()
    for after, workload_id in enumerate(sorted(scene.ids)):
        runner = next(runner for runner in scene.runners if workload_id in runner.state.statuses)
        last = end(run=str(after)).model_copy(update={"finished_at": START + timedelta(milliseconds=after)})
        runner.says(workload_id, container(last), phase=Phase.ENDED)
    scene.reconcile()
    before = scene.status
    assert len(before["instances"]) == 3
    for runner in scene.runners:
        runner.restart()
    scene.succeed()
    scene.reconcile()
    assert scene.status == before
    assert scene.kube.patches == []


def test_what_had_ended_is_not_started_elsewhere() -> None:
    scene = Scene().finish()
    lose(scene, scene.one)
    assert scene.two.puts == []
    assert scene.status["phase"] == "Succeeded"


@pytest.mark.parametrize("successor", [False, True])
def test_a_runner_that_comes_back_too_late_loses_its_copies(successor: bool) -> None:
    scene = service()
    lose(scene, scene.one)
    for workload_id in scene.two.state.statuses:
        scene.two.says(workload_id, RUNNING)
    scene.reconcile()
    if successor:
        scene.succeed()
    scene.one.come_back()
    scene.deliveries.concerned("one")
    scene.settle()
    assert runs(scene) == {"one": 0, "two": 2}
    assert scene.status["ready"] == "2/2"


def test_what_was_scaled_away_meanwhile_is_ended_when_its_runner_comes_back() -> None:
    scene = service()
    scene.one.go_silent(since=scene.time.seconds)
    scene.edit(replicas=0)
    scene.reconcile(after=LOSS_SECONDS)
    scene.reconcile()
    assert [reason for reason, _ in scene.events].count("SuccessfulDelete") <= 2, "it is told once"
    assert scene.status["replicas"] == 0
    scene.one.come_back()
    scene.deliveries.concerned("one")
    scene.settle()
    assert scene.ids == []


def test_a_cordoned_node_keeps_what_runs_and_gets_nothing_new() -> None:
    scene = service()
    scene.nodes.nodes["node-one"] = NodeFacts(unschedulable=True)
    scene.edit(replicas=6)
    scene.settle()
    assert runs(scene) == {"one": 1, "two": 5}


def test_a_runner_that_was_restarted_gets_its_own_back_also_on_a_cordoned_node() -> None:
    scene = service()
    scene.nodes.nodes["node-one"] = NodeFacts(unschedulable=True)
    scene.one.restart()
    scene.settle()
    assert runs(scene) == {"one": 1, "two": 1}


def test_a_taint_that_expels_moves_what_does_not_tolerate_it() -> None:
    scene = service(4)
    scene.nodes.nodes["node-one"] = NodeFacts(taints=(LEAVE,))
    scene.settle()
    assert runs(scene) == {"one": 0, "two": 4}
    assert ("TaintManagerEviction", "runner one has to be left: its node has the taint {maintenance: }") in scene.events
    scene.nodes.nodes.clear()
    scene.settle()
    assert runs(scene) == {"one": 0, "two": 4}, "nothing moves back"


def test_where_nothing_else_fits_what_was_expelled_waits_and_does_not_begin_there_again() -> None:
    scene = service(1)
    for name in ("one", "two"):
        scene.nodes.nodes[f"node-{name}"] = NodeFacts(taints=(LEAVE,))
    for _ in range(4):
        scene.reconcile()
    assert scene.ids == []
    assert ("FailedPlacement", "0/2 runners fit: 2 have an untolerated taint {maintenance: }") in scene.events
    scene.nodes.nodes.clear()
    scene.settle()
    assert scene.status["ready"] == "1/1"


def test_what_tolerates_a_taint_stays() -> None:
    scene = service(2, tolerations=[{"key": "maintenance", "operator": "Exists"}])
    puts = scene.puts
    scene.nodes.nodes["node-one"] = NodeFacts(taints=(LEAVE,))
    scene.reconcile()
    assert (scene.puts, runs(scene)) == (puts, {"one": 1, "two": 1})


def test_what_has_ended_is_not_expelled() -> None:
    scene = Scene().finish()
    scene.nodes.nodes["node-one"] = NodeFacts(taints=(LEAVE,))
    scene.reconcile()
    assert scene.two.puts == []
    assert scene.one.deletes == []


def test_an_instance_that_is_slow_to_end_is_waited_for_before_it_begins_elsewhere() -> None:
    scene = service(1)
    (workload_id,) = scene.ids
    scene.one.on_delete = lambda _: None
    scene.nodes.nodes["node-one"] = NodeFacts(taints=(LEAVE,))
    scene.reconcile()
    assert scene.two.puts == []
    killed = Terminated(exit_code=137, reason="Error", container_id="a", started_at=START, finished_at=START)
    scene.one.says(workload_id, container(killed), phase=Phase.ENDED)
    scene.reconcile()
    assert list(scene.two.state.statuses) == [workload_id]
    scene.two.says(workload_id, container(Running(started_at=START), run="b"))
    scene.settle()
    assert (scene.status["ready"], runs(scene)) == ("1/1", {"one": 0, "two": 1})


def test_on_a_node_that_is_out_of_service_nothing_waits_for_the_grace() -> None:
    scene = service(1)
    scene.one.go_silent(since=scene.time.seconds)
    scene.reconcile()
    assert scene.two.puts == []
    scene.nodes.nodes["node-one"] = NodeFacts(taints=(Taint("node.kubernetes.io/out-of-service", "", "NoExecute"),))
    scene.reconcile()
    assert len(scene.two.puts) == 1
