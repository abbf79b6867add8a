"""Where workloads are and where they go, and whose word counts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fake_runners import AT, FakeNodes, FakeRegistry, FakeRunner, FakeTerm, deliveries
from tests.support.operator_fakes import FakeTime
from wherry_operator.leader import LeadershipLost
from wherry_operator.placement import Demand, Needs, NodeFacts, NoRunner, Taint
from wherry_operator.queue import Key
from wherry_operator.resolve.revision import Resolved
from wherry_operator.runners.client import Refused, RunnerUnavailable
from wherry_operator.runners.delivery import LOSS_SECONDS, Deliveries, Deposed, Place
from wherry_operator.runners.ledger import Ledger
from wherry_runner import protocol
from wherry_runner.protocol import Phase, Refusal, RefusalReason, Running

_Result = TypeVar("_Result")

OWNER = protocol.Owner(kind="Pod", namespace="boats", name="a", uid="u-1")
RESOLVED = Resolved(
    workload=protocol.Workload(
        owner=OWNER, containers=(protocol.Container(name="main", module=protocol.ImageModule(reference="i")),)
    ),
    template_hash="t",
    content_revision="c",
)


def refused(reason: RefusalReason, epoch: int | None = None) -> Refused:
    return Refused(Refusal(reason=reason, message="m", epoch=epoch))


def run(call: Awaitable[_Result]) -> _Result:
    async def scenario() -> _Result:
        return await call

    return asyncio.run(scenario())


def put(to: Deliveries, workload_id: str = "w", runner: str = "one") -> protocol.WorkloadStatus:
    return run(to.put(workload_id, runner, RESOLVED, ()))


def choose(to: Deliveries, workload_id: str, **needs: Any) -> str:
    return to.choose(workload_id, OWNER, Needs(**needs)).runner


def test_changes_carry_the_term_and_a_growing_number() -> None:
    runner = FakeRunner("one")
    to = deliveries(FakeRegistry(runner), FakeTerm(7))
    put(to)
    put(to, "x")
    run(to.delete("w", "one", grace_seconds=0))
    assert runner.orders == [(7, 1), (7, 2), (7, 3)]


def test_a_workload_is_where_a_runner_says_it_is_else_where_it_was_sent_else_where_its_object_says() -> None:
    one, two = FakeRunner("one"), FakeRunner("two")
    to = deliveries(FakeRegistry(one, two))
    assert to.locate("w") is None
    assert to.locate("w", last_runner="gone") is None
    place = to.locate("w", last_runner="two")
    assert place is not None
    assert (place.runner, place.reachable, place.status) == ("two", True, None)
    put(to)
    one.restart()
    place = to.locate("w", last_runner="two")
    assert place is not None
    assert place.runner == "one"
    put(to, runner="two")
    put(to, runner="one")
    place = to.locate("w", last_runner="two")
    assert place is not None
    assert place.runner == "two", "twice: the one that its object names"
    two.go_silent()
    place = to.locate("w", last_runner="two")
    assert place is not None
    assert not place.reachable


def test_what_is_on_its_way_counts_as_load() -> None:
    to = deliveries(FakeRegistry(FakeRunner("one", max_workloads=2), FakeRunner("two", max_workloads=2)))
    assert [choose(to, name) for name in "abcd"] == ["one", "two", "one", "two"]
    with pytest.raises(NoRunner, match="2 are full"):
        choose(to, "e")
    to.forget("u-1", "b")
    assert choose(to, "e") == "two"


def test_a_full_runner_is_not_asked_for_ever() -> None:
    one, two = FakeRunner("one"), FakeRunner("two")
    to = deliveries(FakeRegistry(one, two))
    assert choose(to, "w") == "one"
    one.errors = [refused(RefusalReason.TOO_LARGE)]
    with pytest.raises(Refused):
        put(to)
    assert to.locate("w") is None
    assert to.instances("u-1") == set()


def test_a_put_without_an_answer_may_have_arrived_and_stays_where_it_was_sent() -> None:
    one, two = FakeRunner("one"), FakeRunner("two")
    to = deliveries(FakeRegistry(one, two))
    one.errors = [RunnerUnavailable("no answer")]
    with pytest.raises(RunnerUnavailable):
        put(to)
    one.go_silent()
    place = to.locate("w")
    assert place is not None
    assert (place.runner, place.reachable) == ("one", False)


def test_a_runner_that_heard_of_a_newer_leader_deposes_us() -> None:
    runner = FakeRunner("one")
    to = deliveries(FakeRegistry(runner), FakeTerm(lost=LeadershipLost("another")))
    runner.errors = [refused(RefusalReason.STALE_EPOCH, 9)]
    with pytest.raises(Deposed):
        put(to)


def test_whoever_leads_all_the_same_goes_on_with_a_higher_epoch() -> None:
    runner = FakeRunner("one")
    to = deliveries(FakeRegistry(runner), FakeTerm(3))
    runner.errors = [refused(RefusalReason.STALE_EPOCH, 9)]
    assert put(to).epoch == 10
    assert runner.orders == [(10, 2)]


def test_what_an_object_has_is_known_by_what_runners_say() -> None:
    one = FakeRunner("one")
    to = deliveries(FakeRegistry(one))
    put(to, "w-1")
    successor = deliveries(FakeRegistry(one))
    successor.observe(OWNER, "w-1")
    assert successor.instances("u-1") == {"w-1"}
    one.restart()
    successor.observe(OWNER, "w-1")
    assert successor.instances("u-1") == set()


def test_dropping_an_object_ends_all_that_it_has_and_says_when_nothing_is_left() -> None:
    one, two = FakeRunner("one"), FakeRunner("two")
    to = deliveries(FakeRegistry(one, two))
    put(to, "w-1", "one")
    put(to, "w-2", "two")
    two.on_delete = lambda _: None
    assert run(to.drop("u-1")) is False
    two.says("w-2", phase=Phase.ENDED)
    assert run(to.drop("u-1")) is True
    assert (dict(one.state.statuses), dict(two.state.statuses), to.instances("u-1")) == ({}, {}, set())
    assert run(to.drop("u-1")) is True
    assert all(grace == 0 for _, grace in one.deletes + two.deletes)


def test_a_silent_runner_holds_up_no_drop() -> None:
    one = FakeRunner("one")
    to = deliveries(FakeRegistry(one))
    put(to)
    one.go_silent()
    assert run(to.drop("u-1")) is True
    assert one.deletes == []


def test_a_second_copy_is_seen() -> None:
    one, two = FakeRunner("one"), FakeRunner("two")
    to = deliveries(FakeRegistry(one, two))
    put(to)
    place = to.locate("w")
    assert place is not None
    assert not place.copies
    put(to, runner="two")
    place = to.locate("w", last_runner="two")
    assert place is not None
    assert (place.runner, place.copies) == ("two", True)


def keys(*names: str) -> set[Key]:
    return {Key("WasmWorkload", "boats", name) for name in names}


def owner(name: str) -> protocol.Owner:
    return protocol.Owner(kind="WasmWorkload", namespace="boats", name=name, uid=f"u-{name}")


def sends(to: Deliveries, name: str, index: int, runner: str, *, memory: int = 0) -> str:
    """An instance of a WasmWorkload is sent to a runner; its id."""
    workload_id = f"u-{name}-abc-{index}"
    container = RESOLVED.workload.containers[0].model_copy(
        update={"resources": protocol.Resources(memory_request_bytes=memory)}
    )
    workload = RESOLVED.workload.model_copy(update={"owner": owner(name), "containers": (container,)})
    run(to.put(workload_id, runner, replace(RESOLVED, workload=workload), ()))
    return workload_id


def test_a_silent_runner_is_lost_after_the_grace_and_no_more_once_it_is_back() -> None:
    time = FakeTime()
    one = FakeRunner("one")
    to = deliveries(FakeRegistry(one, FakeRunner("two")), clock=time.clock)
    put(to)

    def place() -> Place:
        found = to.locate("w")
        assert found is not None
        return found

    assert (place().lost, place().lost_in_seconds) == (False, None)
    time.seconds = 100.0
    one.go_silent(since=100.0)
    assert (place().lost, place().lost_in_seconds) == (False, LOSS_SECONDS)
    time.seconds += LOSS_SECONDS - 1
    assert (place().lost, place().lost_in_seconds) == (False, 1.0)
    time.seconds += 1
    assert (place().lost, place().lost_in_seconds) == (True, None)
    one.come_back()
    assert (place().lost, place().reachable) == (False, True)


def test_what_was_sent_elsewhere_after_a_loss_is_there_also_before_its_runner_has_said_so() -> None:
    time = FakeTime()
    one, two = FakeRunner("one"), FakeRunner("two")
    to = deliveries(FakeRegistry(one, two), clock=time.clock)
    put(to)
    one.go_silent()
    time.seconds = LOSS_SECONDS
    assert choose(to, "w") == "two"
    put(to, runner="two")
    two.restart()
    place = to.locate("w", last_runner="one")
    assert place is not None
    assert (place.runner, place.status) == ("two", None)
    put(to, runner="two")
    place = to.locate("w", last_runner="one")
    assert place is not None
    assert (place.runner, place.copies) == ("two", False), "a copy that can't be reached can't be ended"
    one.come_back()
    place = to.locate("w", last_runner="two")
    assert place is not None
    assert (place.runner, place.copies) == ("two", True)
    run(to.drop_copies("w", keep="two"))
    assert (list(one.state.statuses), list(two.state.statuses)) == ([], ["w"])


def test_on_a_node_that_is_out_of_service_nothing_runs_any_more() -> None:
    nodes, one = FakeNodes(), FakeRunner("one")
    to = deliveries(FakeRegistry(one, FakeRunner("two")), nodes=nodes)
    put(to)
    nodes.nodes["node-one"] = NodeFacts(taints=(Taint("node.kubernetes.io/out-of-service", "", "NoExecute"),))
    assert to.locate("w") is not None, "it answers: somebody was wrong"
    one.go_silent()
    assert to.locate("w", last_runner="one") is None
    assert choose(to, "w") == "two"


def test_a_change_of_a_runner_concerns_what_it_has_and_what_waits_for_one() -> None:
    one, two = FakeRunner("one"), FakeRunner("two")
    registry = FakeRegistry(one, two)
    to = deliveries(registry)
    sends(to, "a", 0, "one")
    sends(to, "a", 1, "one")
    sends(to, "b", 0, "two")
    assert to.concerned("one") == keys("a")
    to.wait(Key("WasmWorkload", "boats", "c"))
    assert to.concerned("two") == keys("b", "c")
    assert to.concerned("two") == keys("b"), "it does not wait for ever"
    del registry.runners["one"]
    assert to.concerned("one") == keys("a")
    assert to.concerned("one") == set()


def test_what_a_runner_brings_back_after_it_was_given_up_is_known_again() -> None:
    one = FakeRunner("one")
    to = deliveries(FakeRegistry(one))
    workload_id = sends(to, "a", 0, "one")
    one.go_silent()
    to.forget("u-a", workload_id)
    assert to.instances("u-a") == set()
    one.come_back()
    assert to.concerned("one") == keys("a")
    assert to.instances("u-a") == {workload_id}


def test_memory_is_kept_for_what_is_there_and_on_its_way_until_it_has_ended() -> None:
    one, two = FakeRunner("one", memory_bytes=100), FakeRunner("two", memory_bytes=50)
    registry = FakeRegistry(one, two)
    to = deliveries(registry)
    big = Demand(memory_bytes=60)
    assert choose(to, "w", demand=big) == "one"
    with pytest.raises(NoRunner, match="0/2 runners fit: 2 lack memory"):
        choose(to, "x", demand=big)
    to.forget("u-1", "w")
    workload_id = sends(to, "a", 0, "one", memory=60)
    with pytest.raises(NoRunner):
        choose(to, "x", demand=big)
    one.says(workload_id, phase=Phase.ENDED)
    to.observe(owner("a"), workload_id)
    assert choose(to, "x", demand=big) == "one"


def test_a_successor_learns_what_is_kept_when_it_looks_at_each() -> None:
    one = FakeRunner("one", memory_bytes=100)
    workload_id = sends(deliveries(FakeRegistry(one)), "a", 0, "one", memory=60)
    successor = deliveries(FakeRegistry(one))
    successor.observe(owner("a"), workload_id)
    place = successor.locate(workload_id)
    assert place is not None
    successor.weigh(workload_id, place, one.puts[0][1].workload)
    with pytest.raises(NoRunner, match="1 lacks memory"):
        choose(successor, "x", demand=Demand(memory_bytes=60))


def test_a_port_is_taken_from_when_a_workload_is_sent_until_it_turns_out_to_have_none() -> None:
    one, two, three = FakeRunner("one"), FakeRunner("two"), FakeRunner("three")
    to = deliveries(FakeRegistry(one, two, three))
    eighty = frozenset({80})
    assert [choose(to, each, ports=eighty) for each in "wxy"] == ["one", "three", "two"], (
        "where it is free, if anywhere"
    )
    assert choose(to, "z", ports=eighty) == "one", "another port will do"
    to.forget("u-1", "z")
    put(to)
    one.says("w", protocol.ContainerStatus(name="main", state=protocol.Waiting(reason="Pulling")))
    to.observe(OWNER, "w")
    to.forget("u-1", "y")
    assert choose(to, "y", ports=eighty) == "two", "that of one is taken as long as nobody knows"
    to.forget("u-1", "x")
    one.says("w", protocol.ContainerStatus(name="main", state=Running(started_at=AT)))  # a command
    to.observe(OWNER, "w")
    assert {choose(to, each, ports=eighty) for each in "ab"} == {"one", "three"}


def test_a_successor_learns_which_ports_are_taken() -> None:
    one, two = FakeRunner("one"), FakeRunner("two")
    registry = FakeRegistry(one, two)
    put(deliveries(registry))
    one.says("w", protocol.ContainerStatus(name="main", state=Running(started_at=AT), port=80))
    successor = deliveries(registry)
    successor.observe(OWNER, "w")
    assert choose(successor, "x", ports=frozenset({80})) == "two"
    one.says("w", phase=Phase.ENDED)
    successor.observe(OWNER, "w")
    assert choose(successor, "y", ports=frozenset({80})) == "one"


def test_instances_of_one_workload_are_spread_whoever_else_is_there() -> None:
    one, two = FakeRunner("one"), FakeRunner("two")
    to = deliveries(FakeRegistry(one, two))
    sends(to, "a", 0, "one")
    for index in range(4):
        sends(to, "b", index, "two")
    assert to.choose("u-a-abc-1", owner("a"), Needs()).runner == "two"
    assert to.choose("u-a-abc-2", owner("a"), Needs()).runner == "one"


def test_a_runner_that_has_run_a_module_is_known_to_have_it() -> None:
    one, two = FakeRunner("one"), FakeRunner("two")
    to = deliveries(FakeRegistry(one, two))
    put(to, runner="two")
    two.says(
        "w", protocol.ContainerStatus(name="main", state=Running(started_at=AT), image="i", module_digest="sha256:1")
    )
    to.observe(OWNER, "w")
    run(to.delete("w", "two", grace_seconds=0))
    to.observe(OWNER, "w")
    to.forget("u-1", "w")
    assert choose(to, "x", module="i") == "two"
    to.forget("u-1", "x")
    assert choose(to, "y", module="other") == "one"


@settings(deadline=None)
@given(st.data())
def test_the_ledger_adds_up_whatever_comes_and_goes(data: st.DataObject) -> None:
    """Against a table of what is there."""
    ledger = Ledger()
    table: dict[tuple[str, str], Demand] = {}
    owners = {f"u-{name}-abc-{index}": owner(name) for name in "ab" for index in range(3)}
    for _ in range(data.draw(st.integers(0, 30))):
        workload_id = data.draw(st.sampled_from(sorted(owners)))
        name = data.draw(st.sampled_from(["one", "two"]))
        match data.draw(st.sampled_from(["note", "weigh", "release", "close"])):
            case "note":
                ledger.note(workload_id, name, owners[workload_id])
                table.setdefault((workload_id, name), Demand())
            case "weigh":
                demand = Demand(data.draw(st.integers(0, 9)), data.draw(st.integers(0, 1)))
                ledger.note(workload_id, name, owners[workload_id], demand)
                table[workload_id, name] = demand
            case "release":
                ledger.release(workload_id, name)
                table.pop((workload_id, name), None)
            case "close":
                ledger.close(name)
                table = {place: demand for place, demand in table.items() if place[1] != name}
    for name in ("one", "two"):
        there = {place[0]: demand for place, demand in table.items() if place[1] == name}
        assert ledger.count(name) == len(there)
        assert ledger.kept(name) == sum(there.values(), Demand())
        assert ledger.owners(name) == {owners[workload_id] for workload_id in there}
        for letter in "ab":
            kind = f"u-{letter}-abc"
            assert ledger.alike(kind, name) == sum(workload_id.startswith(kind) for workload_id in there)
    for workload_id in owners:
        assert ledger.runners(workload_id) == {place[1] for place in table if place[0] == workload_id}


def test_a_runner_under_pressure_gets_nothing_new_and_keeps_what_it_has() -> None:
    one, two = FakeRunner("one"), FakeRunner("two")
    to = deliveries(FakeRegistry(one, two))
    one.state.condition = protocol.RunnerCondition(disk_pressure="3 MiB are free")
    place = to.choose("u-1", OWNER, Needs())
    assert place.runner == "two"
    two.state.condition = one.state.condition
    with pytest.raises(NoRunner, match="0/2 runners fit: 2 are short of disk"):
        to.choose("u-2", OWNER, Needs())
    found = to.locate("u-1")
    assert found is not None and found.runner == "two"


class HeardWhileAsked(FakeRunner):
    """Its watch tells of a workload before it answers the PUT."""

    heard: list[bool]

    async def put(self, workload_id: str, put: protocol.WorkloadPut) -> protocol.WorkloadStatus:
        self.heard.append(self.deliveries.heard(workload_id, self.name))
        self.heard.append(self.deliveries.heard(workload_id, "another"))
        return await super().put(workload_id, put)

    deliveries: Deliveries


def test_what_a_watch_tells_while_a_put_is_under_way_is_news_to_nobody_unless_that_fails() -> None:
    runner = HeardWhileAsked("one")
    registry = FakeRegistry(runner)
    runner.heard, runner.deliveries = [], deliveries(registry)
    put(runner.deliveries)
    assert runner.heard == [True, False]
    assert registry.told == []
    assert not runner.deliveries.heard("w", "one"), "nobody waits any more"

    runner.errors = [RunnerUnavailable("broken off")]
    with pytest.raises(RunnerUnavailable):
        put(runner.deliveries)
    assert registry.told == [("one", "w")], "whoever asked knows nothing of it"
