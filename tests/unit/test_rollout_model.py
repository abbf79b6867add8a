"""What is decided for WasmWorkloads, against a small world of runners in which anything may happen.

The world keeps the object's status (what was written, and no more) and what runners have; operators are born and die between
any two steps, and have nothing of their own.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from wherry_operator.rollout.decide import decide
from wherry_operator.rollout.instances import Instance, Slot, State, by_status
from wherry_operator.rollout.plan import Memory, Plan, Wanted
from wherry_runner.protocol import RestartPolicy

START = datetime(2026, 1, 2, tzinfo=UTC)


@dataclass
class Guest:
    """An instance on a runner."""

    state: State = State.WAITING
    ready_since: datetime | None = None
    ended_at: datetime | None = None


@dataclass
class Runner:
    silent: bool = False
    lost: bool = False
    """Silent for so long that what it has counts as gone."""
    guests: dict[Slot, Guest] = field(default_factory=dict)


class World(RuleBasedStateMachine):
    """Runners, one object, and whoever reconciles it."""

    wanted: Wanted

    def setting(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.now = START
        self.runners = {name: Runner() for name in ("one", "two", "three")}
        self.memory = Memory()
        self.seen: dict[Slot, str] = {}
        """The status' own list: which runner had an instance when it was written."""
        self.succeeded: Counter[Slot] = Counter()
        self.revisions = 0

    # --- the operator ---------------------------------------------------------------------------------------------

    def observe(self) -> list[Instance]:
        found: dict[Slot, Instance] = {}
        for runner in self.runners.values():
            for slot, guest in runner.guests.items():
                instance = Instance(
                    slot=slot,
                    state=guest.state,
                    ready_since=guest.ready_since,
                    ended_at=guest.ended_at,
                    silent=runner.silent,
                    lost=runner.lost,
                )
                if slot not in found or found[slot].silent:  # a copy that was replaced, and came back
                    found[slot] = instance
        for slot, name in self.seen.items():
            if slot not in found:
                found[slot] = by_status(slot, {}, silent=self.runners[name].silent)
        return list(found.values())

    def reachable(self, slot: Slot) -> list[Runner]:
        return [runner for runner in self.runners.values() if not runner.silent and slot in runner.guests]

    def reconcile(self, *, write: bool = True, steps: int | None = None) -> Plan:
        """One pass; it may break off after some of its steps, or before it has written the status."""
        instances = self.observe()
        plan = decide(self.wanted, instances, self.memory, self.now)
        known = {item.slot: item for item in instances}
        self.check(plan, known)
        free = [runner for runner in self.runners.values() if not runner.silent]
        work = [*(("stop", slot) for slot in (*plan.stop, *plan.forget)), *(("run", slot) for slot in plan.run)]
        for what, slot in work[:steps]:
            if what == "stop":
                for runner in self.reachable(slot):
                    del runner.guests[slot]
                continue
            item = known.get(slot)
            if item is not None and item.silent and not item.lost:
                continue
            if not self.reachable(slot) and free:
                min(free, key=lambda runner: len(runner.guests)).guests[slot] = Guest()
        if write and steps is None:
            self.memory = replace(plan.memory)
            self.seen = {slot: name for name, runner in self.runners.items() for slot in runner.guests}
        return plan

    def check(self, plan: Plan, known: dict[Slot, Instance]) -> None:
        """What no plan may ever ask for."""
        wanted = self.wanted
        assert len(set(plan.run)) == len(plan.run)
        assert len(set(plan.stop)) == len(plan.stop)
        assert not set(plan.run) & (set(plan.stop) | set(plan.forget))
        assert set(plan.stop) <= set(known)
        begun = [slot for slot in plan.run if slot not in known]
        for slot in plan.run:
            assert slot.revision == wanted.revision
            assert slot not in known or not known[slot].ended, "what has ended is not run again"
        there = {slot for slot, item in known.items() if not item.ended and not item.lost}
        if wanted.service:
            if begun:
                assert len(there | set(plan.run)) <= wanted.replicas + wanted.max_surge
            self.check_availability(plan, known)
        else:
            assert len(plan.run) <= wanted.replicas
            assert not any(slot.index in self.memory.completed for slot in plan.run if self.same_life())
            for slot in begun:
                done = {item for item in self.succeeded if item.revision == slot.revision}
                assert slot.index not in {item.index for item in done}, "an index that completed runs again"

    def check_availability(self, plan: Plan, known: dict[Slot, Instance]) -> None:
        wanted = self.wanted
        if wanted.recreate or wanted.replicas == 0:
            return
        available = {slot for slot, item in known.items() if item.available(wanted.min_ready_seconds, self.now)}
        left = available - set(plan.stop)
        assert len(left) >= min(len(available), wanted.replicas - wanted.max_unavailable)

    def same_life(self) -> bool:
        return self.memory.revision == self.wanted.revision

    # --- what happens ---------------------------------------------------------------------------------------------

    @rule()
    def works(self) -> None:
        self.reconcile()

    @rule(steps=st.integers(0, 6))
    def dies_at_its_work(self, steps: int) -> None:
        self.reconcile(steps=steps)

    @rule()
    def dies_before_it_writes(self) -> None:
        self.reconcile(write=False)

    @rule(seconds=st.sampled_from([1, 5, 30]))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(data=st.data())
    def begins_to_run(self, data: st.DataObject) -> None:
        waiting = [
            guest
            for runner in self.runners.values()
            for guest in runner.guests.values()
            if guest.state is State.WAITING
        ]
        for guest in waiting[: data.draw(st.integers(1, 8))]:
            guest.state, guest.ready_since = State.RUNNING, self.now

    @rule(data=st.data(), good=st.booleans())
    def ends(self, data: st.DataObject, good: bool) -> None:
        running = [
            (slot, guest)
            for runner in self.runners.values()
            for slot, guest in runner.guests.items()
            if guest.state is State.RUNNING
        ]
        if not running or (self.wanted.service and good):
            return
        slot, guest = data.draw(st.sampled_from(running))
        guest.state, guest.ready_since, guest.ended_at = (State.SUCCEEDED if good else State.FAILED), None, self.now
        if good and len([runner for runner in self.runners.values() if slot in runner.guests]) == 1:
            self.succeeded[slot] += 1

    @rule(name=st.sampled_from(["one", "two", "three"]))
    def goes_silent(self, name: str) -> None:
        self.runners[name].silent = True

    @rule(name=st.sampled_from(["one", "two", "three"]))
    def is_given_up(self, name: str) -> None:
        # Runs to completion are at least once then: the model counts only what it can promise.
        if self.runners[name].silent and self.wanted.service:
            self.runners[name].lost = True

    @rule(name=st.sampled_from(["one", "two", "three"]))
    def comes_back(self, name: str) -> None:
        self.runners[name].silent = self.runners[name].lost = False

    @rule(replicas=st.integers(0, 6), suspended=st.booleans())
    def is_scaled(self, replicas: int, suspended: bool) -> None:
        self.wanted = replace(self.wanted, replicas=0 if suspended else replicas, suspended=suspended)

    @precondition(lambda self: self.revisions < 4)
    @rule()
    def is_changed(self) -> None:
        self.revisions += 1
        self.wanted = replace(self.wanted, revision=f"{self.revisions:x}0")

    # --- the end --------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "wanted"):
            return
        for runner in self.runners.values():
            runner.silent = runner.lost = False
        self.wanted = replace(self.wanted, replicas=max(self.wanted.replicas, 1), suspended=False)
        for _ in range(200):
            before = (self.memory, self.observe())
            plan = self.reconcile()
            self.now += timedelta(seconds=max(self.wanted.min_ready_seconds, plan.again_seconds or 1))
            for runner in self.runners.values():
                for slot, guest in runner.guests.items():
                    if guest.state is State.WAITING:
                        guest.state, guest.ready_since = State.RUNNING, self.now
                    elif guest.state is State.RUNNING and not self.wanted.service:
                        guest.state, guest.ready_since, guest.ended_at = State.SUCCEEDED, None, self.now
                        self.succeeded[slot] += 1
            self.drop_copies()
            if plan.again_seconds is None and before == (self.memory, self.observe()):
                break
        left = [item for item in self.observe() if not item.ended]
        plan = self.reconcile()
        assert plan.stop == plan.forget == ()
        if self.wanted.service:
            assert {item.slot.revision for item in left} <= {self.wanted.revision}
            assert len(left) == self.wanted.replicas
            assert all(item.available(self.wanted.min_ready_seconds, self.now) for item in left)
            assert set(plan.run) == {item.slot for item in left}
        else:
            assert self.memory.finished is not None
            assert left == []
            if self.memory.finished.good:
                assert self.memory.completed >= set(range(self.wanted.completions))
            assert (
                max(Counter((slot.revision, slot.index) for slot in self.succeeded.elements()).values(), default=1) == 1
            )

    def drop_copies(self) -> None:
        """As the reconciler does: the same instance twice is once too often."""
        seen: set[Slot] = set()
        for runner in self.runners.values():
            for slot in list(runner.guests):
                if slot in seen:
                    del runner.guests[slot]
                seen.add(slot)


class Services(World):
    """Workloads that run for ever."""

    @initialize(
        replicas=st.integers(0, 6),
        surge=st.integers(0, 3),
        unavailable=st.integers(0, 3),
        min_ready=st.sampled_from([0, 0, 5]),
        recreate=st.sampled_from([False, False, False, True]),
    )
    def begin(self, replicas: int, surge: int, unavailable: int, min_ready: int, recreate: bool) -> None:
        self.setting(
            Wanted(
                revision="00",
                replicas=replicas,
                max_surge=surge,
                max_unavailable=unavailable if surge or unavailable else 1,
                min_ready_seconds=min_ready,
                recreate=recreate,
            )
        )


class Completions(World):
    """Workloads that run to their end."""

    @initialize(
        replicas=st.integers(1, 5),
        completions=st.integers(1, 9),
        limit=st.sampled_from([None, 0, 3, 100]),
        policy=st.sampled_from([RestartPolicy.NEVER, RestartPolicy.ON_FAILURE]),
    )
    def begin(self, replicas: int, completions: int, limit: int | None, policy: RestartPolicy) -> None:
        self.setting(
            Wanted(revision="00", replicas=replicas, completions=completions, backoff_limit=limit, policy=policy)
        )

    @invariant()
    def failures_are_bounded(self) -> None:
        memory = self.memory
        if memory.finished is None and self.same_life():
            assert memory.failed <= (self.wanted.backoff_limit or 0)


CHECKS = settings(max_examples=30, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
TestServices = Services.TestCase
TestServices.settings = CHECKS
TestCompletions = Completions.TestCase
TestCompletions.settings = CHECKS
