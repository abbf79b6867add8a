"""What is decided for WasmWorkloads, against a small world of runners in which anything may happen.

The world keeps the object's status (what was written, and no more) and what runners have. Operators are born and die between
any two steps; what they know of runners comes late, in any order of workloads, and more than once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
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
NAMES = ("one", "two", "three")
RESULTS = {State.SUCCEEDED: "Succeeded", State.FAILED: "Failed"}
names = st.sampled_from(NAMES)


@dataclass
class Guest:
    """An instance on a runner."""

    state: State = State.WAITING
    ready_since: datetime | None = None
    ended_at: datetime | None = None
    stopped: bool = False
    """It was told to stop, and has not ended by itself."""

    @property
    def over(self) -> bool:
        return self.ended_at is not None

    @property
    def ended(self) -> bool:
        """As an operator hears it."""
        return self.over and not self.stopped


@dataclass
class Runner:
    silent: bool = False
    lost: bool = False
    """Silent for so long that what it has counts as gone."""
    guests: dict[Slot, Guest] = field(default_factory=dict)

    def put(self, slot: Slot) -> None:
        self.guests.setdefault(slot, Guest())

    def delete(self, slot: Slot, *, keep_ended: bool) -> bool:
        """The rules of `protocol.py`; whether it is gone."""
        guest = self.guests.get(slot)
        if guest is None:
            return True
        if not guest.over:
            guest.state, guest.ready_since, guest.stopped = State.STOPPING, None, True
            return False
        if guest.ended and keep_ended:
            return False
        del self.guests[slot]
        return True


class World(RuleBasedStateMachine):
    """Runners, one object, and whoever reconciles it."""

    wanted: Wanted

    def setting(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.now = START
        self.runners = {name: Runner() for name in NAMES}
        self.memory = Memory()
        self.entries: dict[Slot, tuple[str, State]] = {}
        """The status' own list: which runner had an instance when it was written, and how it was."""
        self.succeeded: Counter[Slot] = Counter()
        self.failed: Counter[Slot] = Counter()
        """Of those that nobody had stopped."""
        self.revisions = 0
        self.is_succeeded()

    # --- the operator ---------------------------------------------------------------------------------------------

    def is_succeeded(self) -> None:
        """Another operator: it hears anew from all runners that answer, and has sent nothing."""
        if not self.wanted.service:
            # It waits for them. Without that a run is begun again on another runner: at least once is all that is promised.
            for runner in self.runners.values():
                runner.silent = False
        self.views: dict[str, dict[Slot, Guest]] = {name: {} for name in self.runners}
        self.sent: dict[Slot, str] = {}
        for name in self.runners:
            self.hear(name)

    def hear(self, name: str, slots: Iterable[Slot] | None = None) -> None:
        """The newest states of some workloads, or of all, come in."""
        runner, view = self.runners[name], self.views[name]
        if runner.silent:
            return
        for slot in {*view, *runner.guests} if slots is None else slots:
            if guest := runner.guests.get(slot):
                view[slot] = replace(guest)
            else:
                view.pop(slot, None)

    def where(self, slot: Slot) -> str:
        """The runner of an instance, as far as the operator knows; empty: none."""
        found = [name for name, view in self.views.items() if slot in view]
        found.sort(key=lambda name: self.runners[name].silent)  # a copy that was replaced, and came back
        return next(iter(found), "") or self.sent.get(slot, "") or self.entries.get(slot, ("", None))[0]

    def observe(self) -> list[Instance]:
        known = {slot for view in self.views.values() for slot in view} | {*self.sent, *self.entries}
        return [self.see(slot, self.where(slot)) for slot in sorted(known)]

    def see(self, slot: Slot, name: str) -> Instance:
        runner, guest = self.runners[name], self.views[name].get(slot)
        if guest is None:
            state = self.entries[slot][1] if slot in self.entries else State.WAITING
            entry = {"result": RESULTS[state]} if state in RESULTS else {}
            return by_status(slot, entry, silent=runner.silent, lost=runner.lost)
        return Instance(
            slot=slot,
            state=guest.state,
            ready_since=guest.ready_since,
            ended_at=guest.ended_at,
            silent=runner.silent,
            lost=runner.lost,
        )

    def reconcile(self, *, write: bool = True, steps: int = 1000) -> Plan:
        """One pass; it may break off after some of its steps, or before it has written the status."""
        known = {item.slot: item for item in self.observe()}
        plan = self.decide(known)
        gone = False
        for slot in (*plan.stop, *plan.forget):
            if steps == 0:
                return plan
            steps -= 1
            if self.stop(known[slot]):
                gone = True
                del known[slot]
        if gone:
            plan = self.decide(known)
        for slot in plan.run:
            if steps == 0:
                return plan
            steps -= 1
            self.run(slot, known.get(slot))
        if write:
            self.memory = replace(plan.memory)
            listed = {*known, *(slot for slot in plan.run if slot in self.sent)}
            self.entries = {slot: (name, self.see(slot, name).state) for slot in listed if (name := self.where(slot))}
        return plan

    def decide(self, known: dict[Slot, Instance]) -> Plan:
        plan = decide(self.wanted, list(known.values()), self.memory, self.now)
        self.check(plan, known)
        return plan

    def stop(self, item: Instance) -> bool:
        """Whether it is gone."""
        if item.silent:
            return item.lost
        slot, name = item.slot, self.where(item.slot)
        counts = not self.wanted.service and not item.ended and slot.revision == self.wanted.revision
        if not self.runners[name].delete(slot, keep_ended=counts):
            return False
        self.sent.pop(slot, None)
        return True

    def run(self, slot: Slot, item: Instance | None) -> None:
        if item is not None and item.silent and not item.lost:
            return
        name = "" if item is None or item.lost else self.where(slot)
        if name and slot in self.views[name]:
            assert item is not None
            if not item.stopping or not self.stop(item):
                return
        free = [each for each, runner in self.runners.items() if not runner.silent]
        if not name and not free:
            return
        name = name or min(free, key=lambda each: len(self.runners[each].guests))
        self.runners[name].put(slot)
        self.sent[slot] = name

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
            if plan.memory.revision == wanted.revision:
                assert plan.memory.failed <= self.failures(), "a failure is counted that was none, or twice"

    def failures(self) -> int:
        return sum(number for slot, number in self.failed.items() if slot.revision == self.wanted.revision)

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
        self.reconcile(steps=steps, write=False)
        self.is_succeeded()

    @rule()
    def dies_before_it_writes(self) -> None:
        self.reconcile(write=False)
        self.is_succeeded()

    @rule(name=names)
    def hears_all(self, name: str) -> None:
        self.hear(name)

    @rule(name=names, data=st.data())
    def hears_of_some(self, name: str, data: st.DataObject) -> None:
        slots = sorted({*self.views[name], *self.runners[name].guests})
        if slots:
            self.hear(name, data.draw(st.lists(st.sampled_from(slots))))

    @rule(seconds=st.sampled_from([1, 5, 30]))
    def time_passes(self, seconds: int) -> None:
        self.now += timedelta(seconds=seconds)

    @rule(hours=st.sampled_from([-2, 2]))
    def the_clock_is_set(self, hours: int) -> None:
        self.now += timedelta(hours=hours)

    @rule(data=st.data())
    def begins_to_run(self, data: st.DataObject) -> None:
        waiting = [guest for _, guest in self.guests() if guest.state is State.WAITING]
        for guest in waiting[: data.draw(st.integers(1, 8))]:
            guest.state, guest.ready_since = State.RUNNING, self.now

    @rule(data=st.data(), good=st.booleans())
    def ends(self, data: st.DataObject, good: bool) -> None:
        running = [(slot, guest) for slot, guest in self.guests() if guest.state is State.RUNNING]
        if not running or (self.wanted.service and good):
            return
        slot, guest = data.draw(st.sampled_from(running))
        self.end(slot, guest, good)

    @rule(data=st.data(), faster=st.booleans())
    def is_killed(self, data: st.DataObject, faster: bool) -> None:
        stopping = [(slot, guest) for slot, guest in self.guests() if guest.stopped and not guest.over]
        if stopping:
            slot, guest = data.draw(st.sampled_from(stopping))
            if faster and not self.wanted.service:
                guest.stopped = False
                self.end(slot, guest, good=True)
            guest.ended_at = self.now

    def guests(self) -> list[tuple[Slot, Guest]]:
        return [pair for runner in self.runners.values() for pair in runner.guests.items()]

    def end(self, slot: Slot, guest: Guest, good: bool) -> None:
        guest.state, guest.ready_since, guest.ended_at = (State.SUCCEEDED if good else State.FAILED), None, self.now
        (self.succeeded if good else self.failed)[slot] += 1

    @rule(name=names)
    def goes_silent(self, name: str) -> None:
        self.runners[name].silent = True

    @rule(name=names)
    def is_given_up(self, name: str) -> None:
        # Runs to completion are at least once then: the model counts only what it can promise.
        if self.runners[name].silent and self.wanted.service:
            self.runners[name].lost = True

    @rule(name=names)
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
            for name in self.runners:
                self.hear(name)
            before = (self.memory, self.observe())
            plan = self.reconcile()
            self.now += timedelta(seconds=max(self.wanted.min_ready_seconds, plan.again_seconds or 1))
            for slot, guest in self.guests():
                if guest.state is State.WAITING:
                    guest.state, guest.ready_since = State.RUNNING, self.now
                elif guest.state is State.RUNNING and not self.wanted.service:
                    self.end(slot, guest, good=True)
                elif guest.state is State.STOPPING and not guest.over:
                    guest.ended_at = self.now
            self.drop_copies()
            for name in self.runners:
                self.hear(name)
            if plan.again_seconds is None and before == (self.memory, self.observe()):
                break
        else:
            raise AssertionError("it does not come to rest")
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
                assert self.memory.failed == self.failures(), "a failure was lost"
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
