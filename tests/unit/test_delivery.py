"""Where workloads are and where they go, and whose word counts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

import pytest

from tests.support.fake_runners import FakeRegistry, FakeRunner, FakeTerm, deliveries
from wherry_operator.leader import LeadershipLost
from wherry_operator.placement import NoRunner
from wherry_operator.resolve.revision import Resolved
from wherry_operator.runners.client import Refused, RunnerUnavailable
from wherry_operator.runners.delivery import Deliveries, Deposed
from wherry_runner import protocol
from wherry_runner.protocol import Phase, Refusal, RefusalReason

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
    assert [to.choose(name).runner for name in "abcd"] == ["one", "two", "one", "two"]
    with pytest.raises(NoRunner, match="2 are full"):
        to.choose("e")
    to.forget("u-1", "b")
    assert to.choose("e").runner == "two"


def test_a_full_runner_is_not_asked_for_ever() -> None:
    one, two = FakeRunner("one"), FakeRunner("two")
    to = deliveries(FakeRegistry(one, two))
    assert to.choose("w").runner == "one"
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
    assert (one.state.statuses, two.state.statuses, to.instances("u-1")) == ({}, {}, set())
    assert run(to.drop("u-1")) is True
    assert all(grace == 0 for _, grace in one.deletes + two.deletes)


def test_a_silent_runner_holds_up_no_drop() -> None:
    one = FakeRunner("one")
    to = deliveries(FakeRegistry(one))
    put(to)
    one.go_silent()
    assert run(to.drop("u-1")) is True
    assert one.deletes == []


def test_what_was_told_to_stop_is_known_until_it_is_gone_or_wanted_again() -> None:
    one = FakeRunner("one")
    to = deliveries(FakeRegistry(one))
    put(to)
    one.on_delete = lambda _: None
    assert run(to.delete("w", "one", grace_seconds=0)) is False
    assert to.is_stopping("w")
    one.says("w", phase=Phase.ENDED)
    assert run(to.delete("w", "one", grace_seconds=0)) is True
    assert not to.is_stopping("w")
    put(to)
    run(to.delete("w", "one", grace_seconds=0))
    put(to)
    assert not to.is_stopping("w")


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
