"""Leader election against an in-memory Lease that keeps resourceVersions."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.support.operator_fakes import FakeTime
from wherry_operator.kube import Conflict, NotFound, Unavailable
from wherry_operator.leader import LOST_SECONDS, Leadership, LeadershipLost
from wherry_operator.models import Object


class FakeLeases:
    """One Lease."""

    def __init__(self) -> None:
        self.lease: Object | None = None
        self.version = 0
        self.down = False
        self.lose_answers = 0
        self.cut_off: str | None = None

    @property
    def spec(self) -> Object:
        assert self.lease is not None
        found: Object = self.lease["spec"]
        return found

    def _check(self) -> None:
        if self.down:
            raise Unavailable(0, "Unavailable", "down")

    def _store(self, body: Object) -> Object:
        self.version += 1
        self.lease = copy.deepcopy(body)
        self.lease["metadata"]["resourceVersion"] = str(self.version)
        if self.lose_answers:
            self.lose_answers -= 1
            raise Unavailable(0, "Unavailable", "the answer is lost")
        return copy.deepcopy(self.lease)

    async def get(self, path: str) -> Object:
        self._check()
        assert path == "/apis/coordination.k8s.io/v1/namespaces/ns/leases/wherry-operator-wherry"
        if self.lease is None:
            raise NotFound(404, "NotFound", "no lease")
        return copy.deepcopy(self.lease)

    async def create(self, path: str, body: Object) -> Object:
        self._check()
        if self.lease is not None:
            raise Conflict(409, "AlreadyExists", "exists")
        return self._store(body)

    async def replace(self, path: str, body: Object) -> Object:
        self._check()
        if body["spec"]["holderIdentity"] == self.cut_off:
            raise Unavailable(0, "Unavailable", "cut off")
        if self.lease is None:
            raise NotFound(404, "NotFound", "no lease")
        if body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise Conflict(409, "Conflict", "changed")
        return self._store(body)


class Stage:
    def __init__(self) -> None:
        self.time = FakeTime()
        self.leases = FakeLeases()
        self.tasks: list[asyncio.Task[Any]] = []

    def candidate(self, identity: str) -> Leadership:
        return Leadership(
            self.leases,
            namespace="ns",
            name="wherry-operator-wherry",
            identity=identity,
            clock=self.time.clock,
        )

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self.tasks.append(task)
        return task


def play(scenario: Callable[[Stage], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        stage = Stage()
        try:
            await scenario(stage)
        finally:
            for task in stage.tasks:
                task.cancel()
            await asyncio.gather(*stage.tasks, return_exceptions=True)

    asyncio.run(run())


def test_who_waits_is_told_before_a_silent_leaders_lease_is_its_own() -> None:
    async def scenario(stage: Stage) -> None:
        first, second = stage.candidate("a"), stage.candidate("b")
        await first.acquire()
        holding = stage.start(first.hold())
        told: list[float] = []
        waiting = stage.start(second.acquire(when_due=lambda: told.append(stage.time.seconds)))
        await stage.time.advance(60)
        assert not told, "while the leader renews, nobody has to make ready"
        holding.cancel()
        silent = stage.time.seconds
        while not waiting.done():
            await stage.time.advance(0.5)
        assert told and told[0] < stage.time.seconds - 3
        assert told[0] > silent

    play(scenario)


def test_first_candidate_makes_the_lease_and_the_second_waits() -> None:
    async def scenario(stage: Stage) -> None:
        first, second = stage.candidate("a"), stage.candidate("b")
        assert await first.acquire() == 1
        assert first.held
        assert stage.leases.spec["holderIdentity"] == "a"
        assert stage.leases.spec["leaseDurationSeconds"] == 13
        assert stage.leases.spec["renewTime"] == "2026-01-02T03:04:05.678901Z"
        stage.start(first.hold())
        waiting = stage.start(second.acquire())
        await stage.time.advance(120)
        assert not waiting.done()
        assert first.held and not second.held

    play(scenario)


def test_a_silent_holder_is_followed_after_the_duration_was_observed() -> None:
    async def scenario(stage: Stage) -> None:
        first, second = stage.candidate("a"), stage.candidate("b")
        await first.acquire()
        await stage.time.advance(100)  # the time stamp is old, but nobody has watched it yet
        waiting = stage.start(second.acquire())
        await stage.time.advance(12.5)
        assert not waiting.done()
        await stage.time.advance(0.6)
        assert waiting.result() == 2
        assert not first.held
        assert stage.leases.spec["holderIdentity"] == "b"

    play(scenario)


@pytest.mark.parametrize("phase", [0.0, 0.25, 0.5, 0.75])
def test_whenever_a_leader_dies_another_has_15_seconds_to_lead_and_needs_no_more(phase: float) -> None:
    """Whatever there is between its last renewal and the moments at which the follower looks."""

    async def scenario(stage: Stage) -> None:
        first, second = stage.candidate("a"), stage.candidate("b")
        await first.acquire()
        holding = stage.start(first.hold())
        await stage.time.advance(phase)
        waiting = stage.start(second.acquire())
        await stage.time.advance(5 - phase)  # it has just renewed
        holding.cancel()
        await stage.time.advance(LOST_SECONDS)
        assert not waiting.done(), "it may still believe that it leads"
        await stage.time.advance(15 - LOST_SECONDS - 1)  # a second is left for what a leader begins with
        assert waiting.done()

    play(scenario)


def test_the_old_leader_is_out_before_the_new_one_is_in() -> None:
    async def scenario(stage: Stage) -> None:
        first, second = stage.candidate("a"), stage.candidate("b")
        await first.acquire()
        holding, waiting = stage.start(first.hold()), stage.start(second.acquire())
        await stage.time.advance(7)
        stage.leases.cut_off = "a"
        for _ in range(300):
            await stage.time.advance(0.1)
            assert not (first.held and second.held)
            if waiting.done():
                break
        assert holding.done() and isinstance(holding.exception(), LeadershipLost)
        assert waiting.result() == 2

    play(scenario)


def test_a_released_lease_is_taken_at_once() -> None:
    async def scenario(stage: Stage) -> None:
        first, second = stage.candidate("a"), stage.candidate("b")
        await first.acquire()
        waiting = stage.start(second.acquire())
        await stage.time.advance(2)
        await first.release()
        assert stage.leases.spec["holderIdentity"] == ""
        await stage.time.advance(1)
        assert waiting.result() == 2

    play(scenario)


def test_our_own_lease_is_taken_at_once_with_a_higher_epoch() -> None:
    async def scenario(stage: Stage) -> None:
        before = stage.candidate("a")
        assert await before.acquire() == 1
        holding = stage.start(before.hold())
        assert await stage.candidate("a").acquire() == 2
        await stage.time.advance(5)
        assert isinstance(holding.exception(), LeadershipLost)

    play(scenario)


def test_of_two_that_see_it_free_one_wins() -> None:
    async def scenario(stage: Stage) -> None:
        first, second = stage.candidate("a"), stage.candidate("b")
        tasks = [stage.start(first.acquire()), stage.start(second.acquire())]
        await stage.time.advance(10)
        assert [task.done() for task in tasks].count(True) == 1

    play(scenario)


def test_leadership_is_lost_when_it_was_not_renewed_for_ten_seconds() -> None:
    async def scenario(stage: Stage) -> None:
        leader = stage.candidate("a")
        await leader.acquire()
        holding = stage.start(leader.hold())
        await stage.time.advance(5)
        stage.leases.down = True
        await stage.time.advance(9.9)
        assert leader.held and not holding.done()
        await stage.time.advance(0.2)
        assert not leader.held and leader.lost.is_set()
        with pytest.raises(LeadershipLost, match="10 s"):
            holding.result()

    play(scenario)


def test_a_short_outage_costs_nothing() -> None:
    async def scenario(stage: Stage) -> None:
        leader = stage.candidate("a")
        await leader.acquire()
        holding = stage.start(leader.hold())
        stage.leases.down = True
        await stage.time.advance(8.5)
        stage.leases.down = False
        await stage.time.advance(60)
        assert leader.held and not holding.done() and leader.epoch == 1

    play(scenario)


def test_a_renewal_whose_answer_was_lost_is_recognised() -> None:
    async def scenario(stage: Stage) -> None:
        leader = stage.candidate("a")
        await leader.acquire()
        holding = stage.start(leader.hold())
        stage.leases.lose_answers = 1
        await stage.time.advance(20)
        assert leader.held and not holding.done()

    play(scenario)


def test_leadership_is_lost_when_another_holds_the_lease_or_it_was_deleted() -> None:
    async def scenario(stage: Stage) -> None:
        for name, meddle in (("b", _steal), ("deleted", _delete)):
            stage.leases.lease = None
            leader = stage.candidate("a")
            await leader.acquire()
            holding = stage.start(leader.hold())
            meddle(stage.leases)
            await stage.time.advance(5)
            with pytest.raises(LeadershipLost, match=name):
                holding.result()

    play(scenario)


def _steal(leases: FakeLeases) -> None:
    leases.spec["holderIdentity"] = "b"
    leases.version += 1
    assert leases.lease is not None
    leases.lease["metadata"]["resourceVersion"] = str(leases.version)


def _delete(leases: FakeLeases) -> None:
    leases.lease = None


def test_a_lease_deleted_under_its_holder_is_waited_out() -> None:
    async def scenario(stage: Stage) -> None:
        first, second = stage.candidate("a"), stage.candidate("b")
        await first.acquire()
        waiting = stage.start(second.acquire())
        await stage.time.advance(3)
        stage.leases.lease = None
        await stage.time.advance(9)
        assert not waiting.done()
        await stage.time.advance(2)
        assert waiting.done()

    play(scenario)


def test_epoch_can_be_raised_above_what_a_runner_has_seen() -> None:
    async def scenario(stage: Stage) -> None:
        leader = stage.candidate("a")
        await leader.acquire()
        assert await leader.advance(41) == 42
        assert await leader.advance(7) == 42
        stage.start(leader.hold())
        await stage.time.advance(30)
        assert stage.leases.spec["leaseTransitions"] == 42
        _steal(stage.leases)
        with pytest.raises(LeadershipLost):
            await leader.advance(50)

    play(scenario)


def test_whether_somebody_is_known_to_lead_is_said_for_the_health_check() -> None:
    async def scenario(stage: Stage) -> None:
        first, second = stage.candidate("a"), stage.candidate("b")
        assert second.complaint() == "the Lease wherry-operator-wherry can't be read"
        await first.acquire()
        holding = stage.start(first.hold())
        stage.start(second.acquire())
        await stage.time.advance(5)
        assert (first.complaint(), second.complaint()) == ("", "")
        holding.cancel()
        await first.release()
        assert first.complaint() != ""
        await stage.time.advance(2)
        assert second.held
        assert second.complaint() == ""
        await stage.time.advance(11)
        assert not second.held
        assert second.complaint() == "the Lease wherry-operator-wherry can't be read"

    play(scenario)
