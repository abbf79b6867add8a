"""A WasmWorkload's Service, with an API server and runners of dictionaries: where it leads, and when an instance may stop."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.fake_runners import FakeRunner
from tests.support.told import START
from tests.support.workload_scene import CONFIG, KEY, PATH, Scene, container
from wherry_operator.kube import Forbidden, Unavailable
from wherry_operator.placement import NodeFacts, Taint
from wherry_operator.reconcile.expulsions import REPLACED_WITHIN_SECONDS
from wherry_runner.protocol import Phase, Running, Waiting, WorkloadPut, WorkloadStatus

SERVICE = "/api/v1/namespaces/boats/services/hello"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/boats/endpointslices"

UNPUBLISH_SECONDS = 2.0


class Serving:
    """A WasmWorkload with `http`; each of its instances serves on a port of its own."""

    def __init__(self, **spec: Any) -> None:
        self.scene = Scene(restartPolicy="Always", http={}, terminationGracePeriodSeconds=9, **spec)
        self.ports: dict[str, int] = {}

    def serve(self, *, of: str = "") -> Serving:
        """Every instance (or those of a revision) takes connections."""
        for runner in self.scene.runners:
            for workload_id in list(runner.state.statuses):
                if of in workload_id:
                    port = self.ports.setdefault(workload_id, 20_000 + len(self.ports))
                    runner.says(workload_id, container(Running(started_at=START), run=workload_id[-8:], port=port))
        self.scene.reconcile()
        return self

    @property
    def endpoints(self) -> dict[int, str]:
        found = {}
        for path, body in self.scene.kube.objects.items():
            if path.startswith(SLICES):
                (port,) = body["ports"]
                for each in body["endpoints"]:
                    found[port["port"]] = "leaving" if each["conditions"]["terminating"] else "ready"
        return found

    @property
    def said(self) -> tuple[str, str]:
        found = next(each for each in self.scene.status["conditions"] if each["type"] == "ServiceReady")
        return found["status"], found["reason"]

    @property
    def deletes(self) -> list[int | None]:
        """The grace periods with which instances were stopped; None: their own."""
        return [grace for runner in self.scene.runners for _, grace in runner.deletes]


def test_it_leads_to_those_that_are_ready() -> None:
    serving = Serving(replicas=2)
    serving.scene.reconcile()
    assert SERVICE in serving.scene.kube.objects, "clients may look it up at once"
    assert serving.endpoints == {}
    serving.serve()
    assert serving.endpoints == {20_000: "ready", 20_001: "ready"}
    assert serving.said == ("True", "Published")
    assert serving.scene.status["url"] == "http://hello.boats.svc"
    serving.scene.kube.calls.clear()
    serving.scene.reconcile()
    assert serving.scene.kube.calls == [], "what is right is not written"
    waiting = container(Waiting(reason="CrashLoopBackOff"))
    (runner, workload_id) = next((each, name) for each in serving.scene.runners for name in each.state.statuses)
    runner.says(workload_id, waiting)
    serving.scene.reconcile()
    assert len(serving.endpoints) == 1


class BegunAtOnce(FakeRunner):
    """Its answer to a PUT says that the server takes connections."""

    async def put(self, workload_id: str, put: WorkloadPut) -> WorkloadStatus:
        await super().put(workload_id, put)
        self.says(workload_id, container(Running(started_at=START), run=workload_id[-8:], port=20_000))
        return self.state.statuses[workload_id]


def test_it_leads_to_one_whose_start_was_over_when_its_put_was_answered() -> None:
    """No watch tells of it a second time."""
    serving = Serving()
    for runner in serving.scene.runners:
        runner.__class__ = BegunAtOnce
    serving.scene.reconcile()
    assert serving.endpoints == {20_000: "ready"}
    assert serving.said == ("True", "Published")


def test_one_that_is_to_stop_is_marked_and_stopped_a_moment_later() -> None:
    serving = Serving(replicas=2)
    serving.scene.reconcile()
    serving.serve()
    serving.scene.edit(replicas=1)
    again = serving.scene.reconcile()
    assert sorted(serving.endpoints.values()) == ["leaving", "ready"]
    assert again is not None and again <= UNPUBLISH_SECONDS
    serving.scene.reconcile(after=UNPUBLISH_SECONDS / 2)
    assert serving.deletes == [], "it serves on"
    serving.scene.reconcile(after=UNPUBLISH_SECONDS / 2)
    assert serving.deletes == [9], "it drains, and has its grace period for that"
    serving.scene.reconcile()
    assert list(serving.endpoints.values()) == ["ready"]


def test_an_update_leads_to_the_new_one_before_the_old_one_leaves() -> None:
    serving = Serving()
    serving.scene.reconcile()
    serving.serve()
    (old,) = serving.ports
    serving.scene.edit(args=["another"])
    serving.scene.reconcile()
    assert serving.endpoints == {20_000: "ready"}
    (new,) = set(serving.scene.ids) - {old}
    serving.serve(of=new)
    assert serving.endpoints == {20_000: "leaving", 20_001: "ready"}
    posts = [each for each in serving.scene.kube.calls if each[1].startswith(SLICES)]
    assert posts[-2][0] == "POST", "who watches must not see that one goes before it sees the other"
    serving.scene.reconcile(after=UNPUBLISH_SECONDS)
    serving.scene.reconcile()
    assert serving.endpoints == {20_001: "ready"}
    assert serving.scene.ids == [new]


def test_one_that_does_not_serve_is_stopped_at_once() -> None:
    serving = Serving(replicas=2)
    serving.scene.reconcile()
    serving.scene.all_say(Waiting(reason="CrashLoopBackOff"))
    serving.scene.edit(replicas=0)
    serving.scene.reconcile()
    assert serving.deletes == [0, 0]


def test_what_a_silent_runner_had_stays_until_it_is_lost() -> None:
    serving = Serving(replicas=2)
    serving.scene.reconcile()
    serving.serve()
    serving.scene.one.go_silent(serving.scene.time.seconds)
    serving.scene.reconcile()
    assert len(serving.endpoints) == 2
    serving.scene.succeed()
    serving.scene.reconcile()
    assert len(serving.endpoints) == 2, "also for an operator that was born meanwhile"
    serving.scene.reconcile(after=61)
    assert len(serving.endpoints) == 1


def test_while_nothing_can_be_written_nothing_that_serves_is_stopped() -> None:
    serving = Serving(replicas=2)
    serving.scene.reconcile()
    serving.serve()
    paths = [path for path in serving.scene.kube.objects if path.startswith(SLICES)]
    serving.scene.edit(replicas=1)
    for path in paths:
        serving.scene.kube.errors[path] = [Unavailable(0, "", "the API server does not answer")]
    with pytest.raises(Unavailable):
        serving.scene.reconcile()
    assert serving.deletes == []


def test_where_it_is_refused_instances_are_replaced_all_the_same() -> None:
    serving = Serving()
    serving.scene.kube.errors["/api/v1/namespaces/boats/services"] = [
        Forbidden(403, "Forbidden", "exceeded quota: none") for _ in range(9)
    ]
    serving.scene.reconcile()
    serving.serve()
    assert serving.said == ("False", "ServiceRefused")
    assert ("ServiceRefused", "exceeded quota: none") in serving.scene.events
    serving.scene.edit(replicas=0)
    serving.scene.reconcile()
    serving.scene.reconcile(after=UNPUBLISH_SECONDS)
    assert serving.deletes == [9]


def test_a_service_that_is_somebody_elses_is_left_as_it_is() -> None:
    serving = Serving()
    theirs = {"metadata": {"name": "hello", "namespace": "boats", "uid": "theirs"}, "spec": {"ports": [{"port": 1}]}}
    serving.scene.kube.put(SERVICE, theirs)
    asyncio.run(serving.scene.services.load())
    serving.scene.reconcile()
    serving.serve()
    assert serving.said == ("False", "ServiceNotOurs")
    assert serving.endpoints == {}
    assert serving.scene.kube.objects[SERVICE]["metadata"]["uid"] == "theirs"


def test_without_http_its_service_goes_and_nothing_is_said_of_it() -> None:
    serving = Serving()
    serving.scene.reconcile()
    serving.serve()
    serving.scene.change(lambda body: body["spec"].pop("http"))
    serving.scene.reconcile()
    assert SERVICE not in serving.scene.kube.objects
    assert "url" not in serving.scene.status
    assert "ServiceReady" not in serving.scene.conditions


def test_one_that_drains_is_asked_once_more_and_gone_when_it_has_ended() -> None:
    serving = Serving()
    serving.scene.reconcile()
    serving.serve()
    (workload_id,) = serving.scene.ids
    (runner,) = (each for each in serving.scene.runners if workload_id in each.state.statuses)
    stopping = container(Running(started_at=START), run=workload_id[-8:])
    runner.on_delete = lambda name: runner.says(name, stopping, phase=Phase.STOPPING)
    serving.scene.edit(replicas=0)
    serving.scene.reconcile()
    serving.scene.reconcile(after=UNPUBLISH_SECONDS)
    assert serving.deletes == [9]
    serving.scene.reconcile()
    assert serving.endpoints == {}, "its port is closed"
    assert set(serving.deletes) == {9}, "and it has its time all the same"
    assert serving.scene.status["replicas"] == 1
    runner.says(workload_id, stopping, phase=Phase.ENDED)
    serving.scene.reconcile()
    assert serving.scene.ids == []


def test_what_a_deleted_object_had_drains_and_what_is_held_is_led_away_from_before() -> None:
    held, gone = Serving(), Serving()
    for serving in (held, gone):
        serving.scene.reconcile()
        serving.serve()
    held.scene.change(lambda body: body["metadata"].update(deletionTimestamp="2026-01-02T03:04:05Z"))
    again = held.scene.reconcile()
    assert list(held.endpoints.values()) == ["leaving"]
    assert (held.deletes, again) == ([], UNPUBLISH_SECONDS)
    held.scene.reconcile(after=UNPUBLISH_SECONDS)
    assert (held.deletes, held.endpoints) == ([None], {20_000: "leaving"})
    assert held.scene.reconcile() is None
    assert held.endpoints == {}

    gone.scene.reconciler.gone(KEY, "u-1")
    gone.scene.store.seen(gone.scene.kube.objects[PATH], deleted=True)
    gone.scene.reconcile()
    assert gone.deletes == [None]


# --- a runner that is about to end ------------------------------------------------------------------------------------


def _one_on_each() -> tuple[Serving, str]:
    """Two instances that serve, one on each runner, and the id of that on the first, which is about to end."""
    serving = Serving(replicas=2)
    serving.scene.reconcile()
    serving.serve()
    (old,) = serving.scene.one.state.statuses
    serving.scene.one.leave()
    serving.scene.reconcile()
    return serving, old


def test_what_a_runner_has_that_is_about_to_end_is_replaced_before_it_is_stopped() -> None:
    serving, old = _one_on_each()
    assert serving.endpoints[serving.ports[old]] == "leaving"
    (new,) = set(serving.scene.ids) - serving.ports.keys()
    assert new == f"{old}.1"
    assert new in serving.scene.two.state.statuses
    serving.scene.reconcile(after=UNPUBLISH_SECONDS)
    assert serving.deletes == [], "it serves until the other does"
    serving.serve(of=new)
    assert sorted(serving.endpoints.values()) == ["leaving", "ready", "ready"]
    assert serving.deletes == [9], "it was marked for long enough"
    serving.scene.reconcile()
    assert set(serving.scene.ids) == {new, *serving.ports.keys() - {old}}
    assert serving.scene.status["ready"] == "2/2"
    assert "FailedPlacement" not in dict(serving.scene.events)


def test_without_another_runner_what_serves_is_marked_and_left_alone() -> None:
    serving = Serving(replicas=2)
    serving.scene.two.go_silent(-100)
    serving.scene.reconcile()
    serving.serve()
    before = serving.scene.ids
    serving.scene.one.leave()
    for _ in range(3):
        serving.scene.reconcile(after=UNPUBLISH_SECONDS)
    assert list(serving.endpoints.values()) == ["leaving", "leaving"]
    assert (serving.scene.ids, serving.deletes) == (before, [])
    serving.scene.one.go_silent(serving.scene.time.seconds)
    serving.scene.reconcile()
    assert serving.endpoints == {}, "it has ended, and said before that it would"
    serving.scene.one.come_back()
    serving.scene.reconcile()
    assert list(serving.endpoints.values()) == ["ready", "ready"]


def test_one_that_ended_with_its_runner_before_the_other_served_is_forgotten_when_that_is_back() -> None:
    serving, old = _one_on_each()
    serving.scene.one.go_silent(serving.scene.time.seconds)
    serving.scene.one.restart()
    serving.scene.reconcile()
    (new,) = set(serving.scene.two.state.statuses) - serving.ports.keys()
    serving.serve(of=new)
    serving.scene.one.come_back()
    serving.scene.settle(Running(started_at=START))
    assert old not in serving.scene.ids
    assert len(serving.scene.ids) == 2


def test_commands_and_those_that_are_to_be_recreated_are_not_replaced_before_their_runner_ends() -> None:
    recreated = Serving(replicas=2, strategy={"type": "Recreate"})
    recreated.scene.reconcile()
    recreated.serve()
    command = Scene(restartPolicy="Always", replicas=2)
    command.reconcile()
    command.all_say(Running(started_at=START))
    for scene in (recreated.scene, command):
        before = scene.ids
        scene.one.leave()
        scene.reconcile()
        scene.reconcile(after=UNPUBLISH_SECONDS)
        assert scene.ids == before
    assert recreated.deletes == []


def test_what_has_changed_does_not_reach_a_runner_that_is_about_to_end() -> None:
    env = [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "a"}}}]
    serving = Serving(replicas=2, env=env)
    serving.scene.reconcile()
    serving.serve()
    serving.scene.two.go_silent(serving.scene.time.seconds)
    serving.scene.one.leave()
    serving.scene.kube.objects[CONFIG]["data"]["a"] = "2"
    before = len(serving.scene.one.puts)
    serving.scene.succeed()
    serving.scene.reconcile()
    assert len(serving.scene.one.puts) == before


# --- a taint that expels ----------------------------------------------------------------------------------------------


def _tainted(**spec: Any) -> tuple[Serving, str]:
    """Two instances that serve, one on each runner, and the id of that on the first, whose node gets a taint."""
    serving = Serving(replicas=2, **spec)
    serving.scene.reconcile()
    serving.serve()
    (old,) = serving.scene.one.state.statuses
    serving.scene.nodes.nodes["node-one"] = NodeFacts(taints=(Taint("maintenance", "now", "NoExecute"),))
    serving.scene.reconcile()
    return serving, old


def test_what_a_taint_expels_serves_until_what_takes_its_place_does() -> None:
    serving, old = _tainted()
    assert serving.endpoints[serving.ports[old]] == "leaving"
    (new,) = set(serving.scene.ids) - serving.ports.keys()
    assert (new, list(serving.scene.one.state.statuses)) == (f"{old}.1", [old])
    serving.scene.reconcile(after=UNPUBLISH_SECONDS)
    assert serving.deletes == []
    assert "TaintManagerEviction" in dict(serving.scene.events)
    serving.serve(of=new)
    assert serving.deletes == [9]
    serving.scene.reconcile()
    assert set(serving.scene.ids) == {new, *serving.ports.keys() - {old}}
    assert serving.scene.status["ready"] == "2/2"


def test_what_a_taint_expels_waits_no_longer_than_it_may() -> None:
    serving, old = _tainted()
    (new,) = set(serving.scene.ids) - serving.ports.keys()
    again = serving.scene.reconcile(after=REPLACED_WITHIN_SECONDS - 1)
    assert serving.deletes == []
    assert again is not None
    assert again <= 1
    serving.scene.reconcile(after=1)
    assert serving.deletes == [9]
    serving.scene.reconcile()
    assert set(serving.scene.ids) == {new, *serving.ports.keys() - {old}}


@pytest.mark.parametrize("elsewhere", ["tainted too", "silent"])
def test_what_a_taint_expels_waits_for_nothing_where_nobody_could_take_its_place(elsewhere: str) -> None:
    serving = Serving()
    serving.scene.reconcile()
    serving.serve()
    taints = NodeFacts(taints=(Taint("maintenance", "now", "NoExecute"),))
    serving.scene.nodes.nodes["node-one"] = taints
    if elsewhere == "silent":
        serving.scene.two.go_silent(-100)
    else:
        serving.scene.nodes.nodes["node-two"] = taints
    serving.scene.reconcile()
    assert (serving.deletes, list(serving.endpoints.values())) == ([], ["leaving"])
    serving.scene.reconcile(after=UNPUBLISH_SECONDS)
    assert serving.deletes == [9]
    assert serving.scene.ids == []


def test_what_is_to_run_once_only_begins_elsewhere_when_it_has_ended() -> None:
    serving, old = _tainted(strategy={"type": "Recreate"})
    assert set(serving.scene.ids) == serving.ports.keys()
    serving.scene.reconcile(after=UNPUBLISH_SECONDS)
    assert serving.deletes == [9]
    serving.scene.reconcile()
    assert old in serving.scene.two.state.statuses


def test_one_that_a_taint_lets_stay_after_all_serves_until_what_was_begun_does() -> None:
    serving, old = _tainted()
    (new,) = set(serving.scene.ids) - serving.ports.keys()
    serving.scene.nodes.nodes.clear()
    for _ in range(3):
        serving.scene.reconcile(after=REPLACED_WITHIN_SECONDS)
    assert (serving.deletes, serving.endpoints[serving.ports[old]]) == ([], "ready")
    serving.serve(of=new)
    serving.scene.reconcile(after=UNPUBLISH_SECONDS)
    serving.scene.reconcile()
    assert (serving.deletes[0], set(serving.scene.ids)) == (9, {new, *serving.ports.keys() - {old}})
