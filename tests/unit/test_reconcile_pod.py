"""Reconciling Pods, with an API server and runners of dictionaries: what is sent, what is written, and in which order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, cast

import pytest

from tests.support.fake_kube import FakeKube
from tests.support.fake_runners import AT, FakeRegistry, FakeRunner, deliveries
from tests.support.told import START, Recorder, end
from wherry_operator.kube import Kube
from wherry_operator.objects import ObjectStore
from wherry_operator.queue import Key
from wherry_operator.reconcile.moved import MovedPods
from wherry_operator.reconcile.pod import RETRY_SECONDS, PodReconciler
from wherry_operator.reconcile.services import Services
from wherry_operator.references import References
from wherry_operator.runners.client import Refused, RunnerUnavailable
from wherry_runner import protocol
from wherry_runner.protocol import FilesVolume, OpenPort, Phase, Refusal, RefusalReason, Running, Waiting

Json = dict[str, Any]

KEY = Key("Pod", "boats", "hello")
PATH = "/api/v1/namespaces/boats/pods/hello"


def container(state: Any, *, run: str = "a", **more: Any) -> protocol.ContainerStatus:
    return protocol.ContainerStatus(
        name="main", state=state, container_id=run, ready=isinstance(state, Running), **more
    )


RUNNING = container(Running(started_at=START))


class Scene:
    """One Pod, one virtual node, and runners one and two."""

    def __init__(self, **spec: Any) -> None:
        self.kube = FakeKube()
        self.runners = [FakeRunner("one"), FakeRunner("two")]
        self.one, self.two = self.runners
        self.registry = FakeRegistry(*self.runners)
        self.to_be_looked_at: list[Key] = []
        self.store = ObjectStore(
            "Pod", accepts=lambda _: True, on_change=lambda key, _uid: self.to_be_looked_at.append(key)
        )
        self.spec = {
            "restartPolicy": "Always",
            "nodeName": "wherry",
            "containers": [{"name": "main", "image": "i", "imagePullPolicy": "Always"}],
            **spec,
        }
        self.events: list[tuple[str, str]] = []
        self.succeed()
        self.see(
            {
                "metadata": {"name": "hello", "namespace": "boats", "uid": "u-1", "generation": 1},
                "spec": self.spec,
                "status": {"phase": "Pending", "conditions": []},
            }
        )

    def succeed(self) -> None:
        """A new operator takes over: it knows what the API server and the runners say, no more."""
        kube = cast("Kube", self.kube)
        self.deliveries = deliveries(self.registry)
        self.reconciler = PodReconciler(
            kube_as_node=kube,
            store=self.store,
            references=References(kube, who="the node", retry_forbidden=False, ttl_seconds=60),
            deliveries=self.deliveries,
            events=Recorder(kube, self.events),
            node_address="10.0.0.7",
            node_labels={"kubernetes.io/arch": "wasm32-wasi"},
            moved=MovedPods(
                services=Services(kube, node_name="wherry", on_change=lambda _: None),
                pods=self.store,
                deliveries=self.deliveries,
                complete=lambda: True,
                on_change=lambda _: None,
            ),
        )

    def see(self, body: Json) -> None:
        self.store.seen(self.kube.put(PATH, body))

    def change(self, change: Callable[[Json], object]) -> None:
        """Somebody else changes the Pod."""
        body = self.kube.objects[PATH]
        change(body)
        self.see(body)

    def delete(self, grace: int = 30) -> None:
        self.change(
            lambda body: body["metadata"].update(
                deletionTimestamp="2026-01-02T03:04:05Z", deletionGracePeriodSeconds=grace, generation=2
            )
        )

    def reconcile(self) -> float | None:
        self.kube.patches.clear()
        return asyncio.run(self._reconcile())

    async def _reconcile(self) -> float | None:
        return await self.reconciler.reconcile(KEY)

    def run(self) -> Scene:
        """Bring it to run on runner one."""
        self.reconcile()
        self.one.says("u-1", RUNNING)
        self.reconcile()
        self.events.clear()
        return self

    @property
    def status(self) -> Json:
        status: Json = self.kube.objects[PATH]["status"]
        return status

    @property
    def written(self) -> list[str]:
        """The phases that were written, in their order."""
        return [body["status"]["phase"] for _, body in self.kube.patches]

    @property
    def waiting(self) -> Json:
        waiting: Json = self.status["containerStatuses"][0]["state"]["waiting"]
        return waiting


@pytest.mark.parametrize("start", ["2026-01-02T03:04:05Z", "2999-01-02T03:04:05Z"], ids=["a while ago", "ahead"])
def test_that_a_runner_has_begun_is_said_after_a_while_and_not_at_once(start: str) -> None:
    """A start is mostly over before: then it is one write less. One that lies ahead is from before a clock was set back."""
    scene = Scene()
    scene.reconcile()
    assert len(scene.kube.patches) == 1
    begun = {each["type"]: each["status"] for each in scene.status["conditions"]}["PodReadyToStartContainers"]
    assert begun == "False"
    scene.change(lambda body: body["status"].update(startTime=start))
    assert scene.reconcile() is None
    begun = {each["type"]: each["status"] for each in scene.status["conditions"]}["PodReadyToStartContainers"]
    assert (begun, len(scene.kube.patches)) == ("True", 1)


def test_a_write_asks_for_another_look_only_if_somebody_else_wrote_too() -> None:
    scene = Scene(readinessGates=[{"conditionType": "example.com/gate"}]).run()
    scene.to_be_looked_at.clear()
    scene.one.says("u-1", container(Running(started_at=START), run="b"))
    scene.reconcile()
    assert (scene.to_be_looked_at, len(scene.kube.patches)) == ([], 1)
    # Written between what we saw and our own write: the watch has not told of it.
    scene.kube.objects[PATH]["status"]["conditions"].append({"type": "example.com/gate", "status": "True"})
    scene.one.says("u-1", container(Running(started_at=START), run="c"))
    scene.reconcile()
    assert scene.to_be_looked_at == [KEY]
    scene.reconcile()
    ready = {each["type"]: each["status"] for each in scene.status["conditions"]}
    assert ready["Ready"] == ready["example.com/gate"] == "True"


def test_a_pod_that_had_ended_needs_no_write_when_it_is_deleted() -> None:
    """The API server itself removes it at once; a finalizer may keep it."""
    scene = Scene().run()
    scene.one.says("u-1", container(end(0)), phase=Phase.ENDED)
    scene.reconcile()
    assert scene.written[-1] in ("Succeeded", "Failed")
    scene.delete(grace=0)
    scene.kube.calls.clear()
    assert scene.reconcile() is None
    assert scene.kube.calls == []
    assert scene.one.state.statuses == {}, "nothing is left on the runner"


def test_a_pod_is_taken_sent_to_a_runner_and_shown_as_it_says() -> None:
    scene = Scene()
    assert scene.reconcile() == 2.0
    assert scene.waiting == {"reason": "ContainerCreating"}
    ((workload_id, put),) = scene.one.puts
    assert (workload_id, put.workload.owner.name, put.history) == ("u-1", "hello", ())
    scene.one.says("u-1", RUNNING)
    scene.reconcile()
    assert (scene.status["phase"], scene.status["hostIP"]) == (
        "Running",
        scene.one.state.info and scene.one.state.info.address,
    )
    assert scene.events == [("Created", "Container created"), ("Started", "Container started")]


def test_what_is_as_it_should_be_costs_no_call() -> None:
    scene = Scene().run()
    scene.kube.calls.clear()
    scene.one.orders.clear()
    assert scene.reconcile() is None
    assert (scene.kube.calls, scene.one.orders, scene.events) == ([], [], [])


def test_a_run_that_is_over_already_is_shown_from_its_beginning() -> None:
    scene = Scene(restartPolicy="Never")
    scene.reconcile()
    scene.one.says("u-1", container(end(0)), phase=Phase.ENDED)
    scene.reconcile()
    assert scene.written == ["Running", "Succeeded"]
    scene.reconcile()
    assert scene.written == []


def test_another_content_is_sent_and_the_same_is_not() -> None:
    config = "/api/v1/namespaces/boats/configmaps/c"
    scene = Scene(volumes=[{"name": "v", "configMap": {"name": "c"}}])
    scene.kube.put(config, {"metadata": {"name": "c", "namespace": "boats", "uid": "c"}, "data": {"a": "1"}})
    scene.run()
    assert scene.reconcile() is None, "it is told when the ConfigMap changes"
    scene.kube.put(config, {"metadata": {"name": "c", "namespace": "boats", "uid": "c"}, "data": {"a": "2"}})
    scene.succeed()  # with an empty cache
    scene.reconcile()
    scene.reconcile()
    first, second = (put for _, put in scene.one.puts)
    assert first.template_hash == second.template_hash
    folders = [put.workload.volumes[0] for put in (first, second)]
    assert [folder.files[0].data for folder in folders if isinstance(folder, FilesVolume)] == [b"1", b"2"]


@pytest.mark.parametrize("running", [False, True])
def test_what_is_missing_hinders_a_start_and_no_running_container(running: bool) -> None:
    env = [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "a"}}}]
    config = "/api/v1/namespaces/boats/configmaps/c"
    scene = Scene(containers=[{"name": "main", "image": "i", "env": env}])
    if running:
        scene.kube.put(config, {"metadata": {"uid": "c"}, "data": {"a": "1"}})
        scene.run()
        del scene.kube.objects[config]
        scene.succeed()
    assert scene.reconcile() == RETRY_SECONDS
    if running:
        assert scene.status["phase"] == "Running"
        assert "running" in scene.status["containerStatuses"][0]["state"]
        assert scene.events == []
    else:
        assert scene.waiting == {"reason": "CreateContainerConfigError", "message": 'configmap "c" not found'}
        assert scene.events == [("Failed", 'Error: configmap "c" not found')]
        assert scene.one.puts == []


def test_a_missing_volume_fails_the_mount() -> None:
    scene = Scene(volumes=[{"name": "v", "secret": {"secretName": "s"}}])
    assert scene.reconcile() == RETRY_SECONDS
    assert scene.waiting["reason"] == "ContainerCreating"
    assert scene.events == [("FailedMount", 'MountVolume.SetUp failed for volume "v" : secret "s" not found')]


def test_without_a_runner_a_pod_waits_and_says_why() -> None:
    scene = Scene()
    for runner in scene.runners:
        runner.go_silent()
    assert scene.reconcile() == RETRY_SECONDS
    assert scene.waiting["message"] == "0/2 runners fit: 2 are not ready"
    assert scene.events == [("FailedPlacement", "0/2 runners fit: 2 are not ready")]
    scene.two.state.connected = scene.two.state.synced = True
    scene.reconcile()
    assert scene.waiting == {"reason": "ContainerCreating"}
    assert len(scene.two.puts) == 1


def test_a_full_runner_is_left_for_another() -> None:
    scene = Scene()
    scene.one.errors = [Refused(Refusal(reason=RefusalReason.TOO_LARGE, message="full"))]
    assert scene.reconcile() == RETRY_SECONDS
    assert scene.waiting == {"reason": "ContainerCreating", "message": "runner one: full"}
    owner = protocol.Owner(kind="Pod", namespace="boats", name="other", uid="u-2")
    other = protocol.WorkloadStatus(
        id="other",
        owner=owner,
        phase=Phase.ACTIVE,
        epoch=1,
        sequence=1,
        template_hash="",
        accepted_at=AT,
        containers=(),
    )
    scene.one.state.statuses.update({str(n): other for n in range(10)})
    scene.reconcile()
    assert len(scene.two.puts) == 1


def test_a_silent_runner_keeps_its_pods_also_under_a_new_operator() -> None:
    scene = Scene().run()
    scene.one.go_silent()
    for _ in range(2):
        assert scene.reconcile() == RETRY_SECONDS
        ready = next(item for item in scene.status["conditions"] if item["type"] == "Ready")
        assert (ready["status"], ready["reason"]) == ("False", "RunnerUnreachable")
        scene.one.restart()
        scene.succeed()
    assert scene.two.puts == []


@pytest.mark.parametrize(
    ("state", "code"), [(RUNNING, None), (container(Waiting(reason="CrashLoopBackOff"), last_terminated=end(1)), 1)]
)
def test_a_restarted_runner_is_told_what_the_status_knows(state: protocol.ContainerStatus, code: int | None) -> None:
    scene = Scene()
    scene.reconcile()
    scene.one.says("u-1", state)
    scene.reconcile()
    scene.one.restart()
    scene.succeed()
    scene.reconcile()
    (past,) = scene.one.puts[-1][1].history
    assert (past.container, past.container_id) == ("main", "a")
    assert (past.terminated.exit_code if past.terminated else None) == code
    assert scene.two.puts == []


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_has_ended_is_left_alone(phase: str) -> None:
    scene = Scene()
    scene.change(lambda body: body["status"].update(phase=phase))
    assert scene.reconcile() is None
    assert (scene.one.orders, scene.kube.calls) == ([], [])


def test_a_deletion_stops_the_guest_shows_its_end_and_is_confirmed_in_this_order() -> None:
    scene = Scene().run()
    scene.one.on_delete = lambda uid: scene.one.says(uid, RUNNING, phase=Phase.STOPPING)
    scene.delete(grace=7)
    assert scene.reconcile() is None
    assert (scene.one.deletes, scene.written) == ([("u-1", 7)], ["Running"])
    assert scene.events == [("Killing", "Stopping container main")]
    scene.one.says("u-1", container(end(137)), phase=Phase.ENDED)
    scene.kube.calls.clear()
    scene.reconcile()
    assert scene.written == ["Failed"]
    assert [verb for verb, _ in scene.kube.calls] == ["PATCH", "DELETE"]
    assert PATH not in scene.kube.objects
    assert scene.one.state.statuses == {}


def test_a_runner_is_told_once_to_stop_and_again_only_with_another_grace_period() -> None:
    scene = Scene().run()
    scene.one.on_delete = lambda uid: scene.one.says(uid, RUNNING, phase=Phase.STOPPING)
    scene.delete(grace=7)
    scene.reconcile()
    scene.one.says("u-1", container(end(137)), phase=Phase.STOPPING)
    scene.reconcile()
    assert (scene.one.deletes, scene.written) == ([("u-1", 7)], []), "how it ended is written with the phase"
    scene.delete(grace=1)
    scene.reconcile()
    assert scene.one.deletes == [("u-1", 7), ("u-1", 1)]


def test_the_end_is_shown_also_where_it_comes_before_the_answer_to_the_delete() -> None:
    scene = Scene().run()
    scene.one.on_delete = lambda uid: scene.one.says(uid, container(end(3)), phase=Phase.ENDED)
    scene.delete()
    scene.reconcile()
    assert scene.written == ["Failed"]
    assert PATH not in scene.kube.objects
    assert scene.one.state.statuses == {}, "nothing is left on the runner"


def test_a_deletion_is_confirmed_where_the_runner_has_nothing_of_it() -> None:
    scene = Scene().run()
    scene.one.restart()
    scene.delete()
    scene.reconcile()
    assert PATH not in scene.kube.objects


def test_a_deletion_is_confirmed_once_also_where_the_watch_is_slow_to_tell() -> None:
    scene = Scene().run()
    scene.one.restart()
    scene.delete()
    scene.kube.calls.clear()
    scene.reconcile()
    assert scene.store.get("boats", "hello") is not None, "nobody has told yet"
    scene.reconcile()
    assert [verb for verb, _ in scene.kube.calls].count("DELETE") == 1
    scene.reconciler.gone(KEY, "u-1")
    assert not scene.reconciler._confirmed


def test_a_deletion_is_confirmed_also_where_the_word_of_its_end_comes_before_the_answer() -> None:
    scene = Scene()
    scene.reconcile()
    scene.one.says("u-1", container(Waiting(reason="ErrImagePull"), run=""))
    scene.reconcile()
    scene.succeed()
    scene.delete()
    scene.reconcile()
    assert PATH not in scene.kube.objects


def test_a_silent_runner_confirms_no_deletion() -> None:
    scene = Scene().run()
    scene.one.go_silent()
    scene.delete()
    for _ in range(2):
        assert scene.reconcile() == RETRY_SECONDS
        assert PATH in scene.kube.objects
        scene.succeed()
    scene.one.state.connected = scene.one.state.synced = True
    scene.reconcile()
    scene.reconcile()
    assert PATH not in scene.kube.objects


def test_a_delete_without_an_answer_is_asked_again() -> None:
    scene = Scene().run()
    scene.delete()
    scene.one.errors = [RunnerUnavailable("no answer")]
    assert scene.reconcile() == RETRY_SECONDS
    assert PATH in scene.kube.objects


def test_a_pod_that_never_got_to_a_runner_is_deleted_at_once() -> None:
    scene = Scene()
    scene.delete()
    scene.reconcile()
    assert PATH not in scene.kube.objects


def test_a_pod_that_is_gone_is_dropped_and_its_successor_of_the_same_name_is_not() -> None:
    scene = Scene().run()
    gone = scene.kube.remove(PATH)
    scene.store.seen(gone, deleted=True)
    scene.reconciler.gone(KEY, "u-1")
    scene.see(
        {
            "metadata": {"name": "hello", "namespace": "boats", "uid": "u-2", "generation": 1},
            "spec": scene.spec,
            "status": {"phase": "Pending", "conditions": []},
        }
    )
    scene.reconcile()
    assert scene.one.deletes == [("u-1", 0)]
    assert [name for runner in scene.runners for name, _ in runner.puts] == ["u-1", "u-2"]


def test_a_write_onto_an_object_that_took_the_name_fails() -> None:
    scene = Scene().run()
    scene.one.says("u-1", container(end(1)))
    scene.kube.objects[PATH]["metadata"]["uid"] = "u-2"
    with contextlib.suppress(Exception):
        scene.reconcile()
    assert scene.kube.objects[PATH]["status"]["containerStatuses"][0]["state"].keys() == {"running"}


def test_a_pod_on_a_runner_that_is_about_to_end_stays_there_as_it_is() -> None:
    scene = Scene().run()
    puts = len(scene.one.puts)
    scene.one.leave()
    scene.change(lambda body: body["spec"]["containers"][0].update(image="another"))
    scene.reconcile()
    assert len(scene.one.puts) == puts, "what has changed comes with its next run"
    scene.one.state.leaving = False
    scene.one.errors = [Refused(Refusal(reason=RefusalReason.STOPPING, message="the runner is stopping"))]
    scene.reconcile()
    assert scene.status["containerStatuses"][0]["containerID"].startswith("wherry://one/")
    assert "running" in scene.status["containerStatuses"][0]["state"], "it runs on until its runner has ended"
    assert scene.two.puts == []


@pytest.mark.parametrize(
    ("reached", "ready"),
    [({"port": 8080}, False), ({"ports": (OpenPort(named=53, port=53, protocol="UDP"),)}, False), ({}, True)],
    ids=["a server", "a command that may listen", "a command"],
)
def test_who_is_reached_by_clients_on_a_runner_that_is_about_to_end_is_not_ready(
    reached: dict[str, Any], ready: bool
) -> None:
    scene = Scene().run()
    scene.one.says("u-1", container(Running(started_at=START), **reached))
    scene.one.leave()
    scene.reconcile()
    condition = next(each for each in scene.status["conditions"] if each["type"] == "Ready")
    assert (condition["status"] == "True", condition.get("reason")) == (ready, None if ready else "RunnerLeaving")


def test_a_pod_that_a_stopping_runner_does_not_take_goes_to_another() -> None:
    scene = Scene()
    scene.one.errors = [Refused(Refusal(reason=RefusalReason.STOPPING, message="the runner is stopping"))]
    scene.reconcile()
    scene.one.leave()
    scene.reconcile()
    assert ([name for name, _ in scene.one.puts], [name for name, _ in scene.two.puts]) == ([], ["u-1"])
