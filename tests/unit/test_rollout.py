"""What is to be done for a WasmWorkload, case by case: the rules of Deployments and of indexed Jobs."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry_operator.rollout import completion, indexes
from wherry_operator.rollout.decide import decide
from wherry_operator.rollout.instances import Instance, Slot, State, by_runner, by_status
from wherry_operator.rollout.plan import Finished, Memory, Plan, Wanted, back_off_seconds
from wherry_runner import protocol
from wherry_runner.protocol import Phase, RestartPolicy

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
NEVER, ON_FAILURE = RestartPolicy.NEVER, RestartPolicy.ON_FAILURE
NEW, OLD = "b0", "a0"


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def at(index: int, revision: str = NEW, attempt: int = 0, **more: Any) -> Instance:
    return Instance(slot=Slot(revision, index, attempt), **more)


def ready(index: int, revision: str = NEW, since: float = 100, **more: Any) -> Instance:
    return at(index, revision, state=State.RUNNING, ready_since=ago(since), **more)


def over(index: int, code: int = 0, since: float = 1, attempt: int = 0, **more: Any) -> Instance:
    state = State.SUCCEEDED if code == 0 else State.FAILED
    return at(index, NEW, attempt, state=state, exit_code=code, ended_at=ago(since), reason="Error", **more)


def service(*instances: Instance, memory: Memory | None = None, **more: Any) -> Plan:
    return decide(Wanted(revision=NEW, **more), instances, memory or Memory(), NOW)


def completions(*instances: Instance, memory: Memory | None = None, **more: Any) -> Plan:
    more = {"policy": NEVER, **more}
    return decide(Wanted(revision=NEW, **more), instances, memory or Memory(revision=NEW), NOW)


def names(slots: tuple[Slot, ...]) -> list[str]:
    return sorted(str(slot) for slot in slots)


# --- services ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, (1, 0)),
        ({"replicas": 10}, (3, 2)),
        ({"replicas": 4}, (1, 1)),
        ({"replicas": 0}, (0, 1)),
        ({"replicas": 10, "strategy": {"rollingUpdate": {"maxSurge": 2, "maxUnavailable": 0}}}, (2, 0)),
        ({"replicas": 10, "strategy": {"rollingUpdate": {"maxSurge": "0%", "maxUnavailable": "9%"}}}, (0, 1)),
        ({"replicas": 10, "strategy": {"rollingUpdate": {"maxSurge": "100%", "maxUnavailable": "50%"}}}, (10, 5)),
        ({"replicas": 10, "strategy": {"rollingUpdate": {"maxSurge": "11%", "maxUnavailable": "19%"}}}, (2, 1)),
    ],
)
def test_the_steps_of_a_rolling_update_are_rounded_as_a_deployment_does(
    spec: dict[str, Any], expected: tuple[int, int]
) -> None:
    wanted = Wanted.of({"spec": {"module": {"image": "i"}, **spec}}, NEW)
    assert (wanted.max_surge, wanted.max_unavailable) == expected


def test_the_wishes_of_a_spec() -> None:
    wanted = Wanted.of({"spec": {"module": {"image": "i"}, "replicas": 3, "suspend": True}}, NEW)
    assert (wanted.replicas, wanted.suspended, wanted.service, wanted.at_once) == (0, True, True, 0)
    wanted = Wanted.of({"spec": {"module": {"image": "i"}, "replicas": 3, "restartPolicy": "Never"}}, NEW)
    assert (wanted.completions, wanted.at_once, wanted.service) == (3, 3, False)
    wanted = Wanted.of({"spec": {"module": {"image": "i"}, "replicas": 0, "restartPolicy": "Never"}}, NEW)
    assert (wanted.completions, wanted.at_once) == (1, 0), "scaled to none it waits; it is not complete"
    wanted = Wanted.of({"spec": {"module": {"image": "i"}, "completions": 0, "restartPolicy": "Never"}}, NEW)
    assert wanted.completions == 0


@pytest.mark.parametrize(
    ("instances", "more", "run", "stop"),
    [
        pytest.param([], {"replicas": 3}, ["b0-0", "b0-1", "b0-2"], [], id="the first start is one step"),
        pytest.param([ready(0), at(1)], {"replicas": 2}, ["b0-0", "b0-1"], [], id="nothing to do"),
        pytest.param([ready(0)], {"replicas": 3}, ["b0-0", "b0-1", "b0-2"], [], id="up"),
        pytest.param([ready(0), ready(2)], {"replicas": 3}, ["b0-0", "b0-1", "b0-2"], [], id="up: free indexes first"),
        pytest.param(
            [ready(0), ready(1), ready(2)], {"replicas": 1}, ["b0-0"], ["b0-1", "b0-2"], id="down: last first"
        ),
        pytest.param(
            [at(0), ready(1), ready(2)], {"replicas": 2}, ["b0-1", "b0-2"], ["b0-0"], id="down: unready first"
        ),
        pytest.param(
            [ready(0, silent=True), ready(1)], {"replicas": 1}, ["b0-1"], ["b0-0"], id="down: the silent ones first"
        ),
        pytest.param([ready(0), at(1)], {"replicas": 0}, [], ["b0-0", "b0-1"], id="none"),
        pytest.param([ready(0, OLD)], {}, ["b0-0"], [], id="one: its successor comes first"),
        pytest.param([ready(0, OLD), at(0)], {}, ["b0-0"], [], id="one: the old one waits for the new"),
        pytest.param([ready(0, OLD), ready(0)], {}, ["b0-0"], ["a0-0"], id="one: then it goes"),
        pytest.param(
            [ready(0, OLD), ready(0, since=3)],
            {"min_ready_seconds": 5},
            ["b0-0"],
            [],
            id="minReadySeconds are waited for",
        ),
        pytest.param(
            [ready(0, OLD), ready(0, since=5)],
            {"min_ready_seconds": 5},
            ["b0-0"],
            ["a0-0"],
            id="minReadySeconds are over",
        ),
        pytest.param(
            [ready(index, OLD) for index in range(4)],
            {"replicas": 4, "max_surge": 1, "max_unavailable": 1},
            ["b0-0"],
            ["a0-3"],
            id="four: one more and one less",
        ),
        pytest.param(
            [*(ready(index, OLD) for index in range(3)), at(0), at(1)],
            {"replicas": 4, "max_surge": 1, "max_unavailable": 1},
            ["b0-0", "b0-1"],
            [],
            id="four: no more than that",
        ),
        pytest.param(
            [ready(0, OLD), at(1, OLD), at(0)],
            {"replicas": 2, "max_surge": 1, "max_unavailable": 0},
            ["b0-0"],
            [],
            id="an old one that serves nobody goes only within what may be missing",
        ),
        pytest.param(
            [ready(0, OLD), at(1, OLD), at(0)],
            {"replicas": 2, "max_surge": 0, "max_unavailable": 1},
            ["b0-0"],
            ["a0-1"],
            id="and goes first",
        ),
        pytest.param(
            [ready(0, OLD), ready(1, OLD)],
            {"replicas": 2, "max_surge": 0, "max_unavailable": 2},
            [],
            ["a0-0", "a0-1"],
            id="without surge, room is made first",
        ),
        pytest.param([ready(0, OLD)], {"recreate": True}, [], ["a0-0"], id="Recreate: first the old one ends"),
        pytest.param(
            [at(0, OLD, state=State.STOPPING)], {"recreate": True}, [], ["a0-0"], id="Recreate: which takes its time"
        ),
        pytest.param(
            [ready(0, OLD, silent=True)],
            {"recreate": True},
            [],
            ["a0-0"],
            id="Recreate: a silent one may well be running",
        ),
        pytest.param(
            [ready(0, OLD, silent=True, lost=True)],
            {"recreate": True},
            ["b0-0"],
            ["a0-0"],
            id="Recreate: a lost one is gone",
        ),
        pytest.param(
            [ready(0, OLD, silent=True), ready(0)],
            {},
            ["b0-0"],
            [],
            id="what can't be reached is stopped when it is back",
        ),
        pytest.param([ready(0, silent=True)], {}, ["b0-0"], [], id="silent is not gone"),
        pytest.param([over(0, 137, 1)], {}, [], [], id="evicted a moment ago"),
        pytest.param([over(0, 137, 11)], {}, ["b0-0.1"], ["b0-0"], id="evicted: replaced after the back-off"),
        pytest.param([over(0, 137, 11, 1)], {}, [], [], id="the second time it takes longer"),
        pytest.param(
            [ready(0, OLD), over(0, 137, 11), ready(1)],
            {"replicas": 2, "max_surge": 0, "max_unavailable": 1},
            ["b0-1"],
            ["a0-0"],
            id="evicted in a rollout: its successor waits for room",
        ),
        pytest.param([at(0), ready(0, attempt=1)], {}, ["b0-0.1"], ["b0-0"], id="an older attempt goes"),
    ],
)
def test_a_service(instances: list[Instance], more: dict[str, Any], run: list[str], stop: list[str]) -> None:
    plan = service(*instances, **more)
    assert (names(plan.run), names(plan.stop)) == (run, stop)


def test_a_service_looks_again_when_time_will_have_changed_something() -> None:
    assert service(ready(0)).again_seconds is None
    assert service(ready(0, since=3), min_ready_seconds=5).again_seconds == 2
    assert service(over(0, 137, 1)).again_seconds == 9


# --- runs to completion -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("instances", "memory", "more", "run", "stop"),
    [
        pytest.param([], {}, {"replicas": 2, "completions": 5}, ["b0-0", "b0-1"], [], id="some at once"),
        pytest.param([], {}, {"replicas": 5, "completions": 2}, ["b0-0", "b0-1"], [], id="no more than are wanted"),
        pytest.param(
            [over(0), at(1)],
            {},
            {"replicas": 2, "completions": 5},
            ["b0-1", "b0-2"],
            [],
            id="one ends, the next begins",
        ),
        pytest.param(
            [at(3)],
            {"completed": {0, 2}},
            {"replicas": 2, "completions": 5},
            ["b0-1", "b0-3"],
            [],
            id="never one that was",
        ),
        pytest.param(
            [at(0), ready(1)],
            {},
            {"replicas": 1, "completions": 5},
            ["b0-1"],
            ["b0-0"],
            id="fewer at once: the idle first",
        ),
        pytest.param([ready(0), ready(1)], {}, {"replicas": 0, "completions": 5}, [], ["b0-0", "b0-1"], id="suspended"),
        pytest.param([ready(4)], {}, {"completions": 2}, ["b0-0"], ["b0-4"], id="fewer are wanted"),
        pytest.param(
            [ready(0)], {"completed": {0}}, {"completions": 2}, ["b0-1"], ["b0-0"], id="a copy that came back"
        ),
        pytest.param([ready(0, OLD)], {}, {}, [], ["a0-0"], id="what runs for another spec ends first"),
        pytest.param([ready(0, OLD, silent=True)], {}, {}, ["b0-0"], ["a0-0"], id="if it can be reached"),
        pytest.param([over(0, 1, 1)], {}, {"backoff_limit": 1}, [], [], id="a failure, a moment ago"),
        pytest.param([over(0, 1, 11)], {}, {"backoff_limit": 1}, ["b0-0.1"], [], id="then the next attempt"),
        pytest.param(
            [over(0, 1, 11), at(0, attempt=1)], {}, {"backoff_limit": 1}, ["b0-0.1"], [], id="which is on its way"
        ),
        pytest.param(
            [over(0, 1, 1)], {}, {"replicas": 2, "completions": 5, "backoff_limit": 1}, ["b0-1"], [], id="others go on"
        ),
    ],
)
def test_a_run_to_completion(
    instances: list[Instance], memory: dict[str, Any], more: dict[str, Any], run: list[str], stop: list[str]
) -> None:
    plan = completions(*instances, memory=Memory(revision=NEW, **memory), **more)
    assert (names(plan.run), names(plan.stop)) == (run, stop)
    assert plan.memory.finished is None


LATE = {"active_deadline_seconds": 60}


@pytest.mark.parametrize(
    ("instances", "memory", "more", "good", "reason", "message"),
    [
        pytest.param([over(0)], {}, {}, True, "Completed", "exit code 0", id="one"),
        pytest.param(
            [over(1)],
            {"completed": {0}},
            {"completions": 2},
            True,
            "Completed",
            "all 2 indexes have completed",
            id="all",
        ),
        pytest.param([], {}, {"completions": 0}, True, "Completed", "all 0 indexes have completed", id="none wanted"),
        pytest.param([over(0, 3)], {}, {}, False, "Error", "exit code 3", id="a failure of one is its own end"),
        pytest.param(
            [over(0, 3)], {}, {"policy": ON_FAILURE}, False, "Error", "exit code 3", id="evicted under OnFailure"
        ),
        pytest.param(
            [over(1, 3), ready(2)],
            {},
            {"completions": 4, "replicas": 4},
            *(False, "BackoffLimitExceeded", "index 1: Error: exit code 3; 1 failed, and backoffLimit is 0"),
            id="a failure of many",
        ),
        pytest.param(
            [over(0, 3, attempt=2)],
            {},
            {"backoff_limit": 2},
            *(False, "BackoffLimitExceeded", "index 0: Error: exit code 3; 3 failed, and backoffLimit is 2"),
            id="one too often",
        ),
        pytest.param(
            [over(1, 3)],
            {"completed": {0}, "retried": 2, "failed": 2},
            {"backoff_limit": 2, "completions": 2},
            *(False, "BackoffLimitExceeded", "index 1: Error: exit code 3; 3 failed, and backoffLimit is 2"),
            id="those count too that others got over",
        ),
        pytest.param(
            [ready(0, restarts=2), ready(1, restarts=2)],
            {},
            {"backoff_limit": 3, "policy": ON_FAILURE, "replicas": 2, "completions": 2},
            *(False, "BackoffLimitExceeded", "4 restarts; 4 failed, and backoffLimit is 3"),
            id="restarts in place",
        ),
        pytest.param(
            [ready(0)],
            {"start": ago(60)},
            LATE,
            *(False, "DeadlineExceeded", "it was active for longer than activeDeadlineSeconds (60 s)"),
            id="too late",
        ),
        pytest.param(
            [dataclasses.replace(over(0, 137), reason="DeadlineExceeded")],
            {"start": ago(59)},
            LATE,
            *(False, "DeadlineExceeded", "it was active for longer than activeDeadlineSeconds (60 s)"),
            id="as its runner says",
        ),
    ],
)
def test_how_it_ends(
    instances: list[Instance], memory: dict[str, Any], more: dict[str, Any], good: bool, reason: str, message: str
) -> None:
    plan = completions(*instances, memory=Memory(revision=NEW, **memory), **more)
    assert plan.memory.finished == Finished(good=good, reason=reason, message=message, at=NOW)
    assert plan.run == ()
    again = completions(*instances, memory=plan.memory, **more)
    assert (again.memory, again.run) == (plan.memory, ())


def test_what_is_finished_is_stopped_and_stays_finished_whatever_is_asked() -> None:
    finished = Memory(
        revision=NEW, completed=frozenset({0}), finished=Finished(good=True, reason="r", message="m", at=NOW)
    )
    plan = completions(ready(1), memory=finished, completions=7, replicas=7)
    assert (names(plan.run), names(plan.stop), plan.memory) == ([], ["b0-1"], finished)
    other = completions(over(0), memory=dataclasses.replace(finished, revision=OLD))
    assert other.memory.completed == {0}, "another spec is another life, which has run as well"
    fresh = completions(memory=dataclasses.replace(finished, revision=OLD))
    assert (names(fresh.run), fresh.memory.completed, fresh.memory.finished) == (["b0-0"], frozenset(), None)


def test_at_the_deadline_runners_have_a_moment_to_end_what_they_run() -> None:
    plan = completions(ready(0), memory=Memory(revision=NEW, start=ago(60)), **LATE)
    assert (plan.stop, plan.again_seconds) == ((), 5)
    ended = dataclasses.replace(
        plan.memory, finished=Finished(good=False, reason="DeadlineExceeded", message="", at=ago(5))
    )
    assert names(completions(ready(0), memory=ended, **LATE).stop) == ["b0-0"]
    set_back = dataclasses.replace(ended.finished, at=ago(-3600)) if ended.finished else None
    assert names(completions(ready(0), memory=dataclasses.replace(ended, finished=set_back), **LATE).stop) == ["b0-0"]


def test_it_is_deleted_a_while_after_its_end() -> None:
    def finished(seconds: float) -> Plan:
        end = Finished(good=True, reason="r", message="m", at=ago(seconds))
        return completions(memory=Memory(revision=NEW, finished=end), ttl_seconds=10)

    assert (finished(4).expired, finished(4).again_seconds) == (False, 6)
    assert finished(10).expired


def test_failures_are_counted_once_and_never_forgotten() -> None:
    more: dict[str, Any] = {"backoff_limit": 9, "completions": 3, "replicas": 3}
    first = completions(over(0, 1), over(1, 1, attempt=1), at(2), **more).memory
    assert (first.failed, first.retried) == (3, 0)
    second = completions(over(0, attempt=1), over(1, 1, attempt=1), at(2), memory=first, **more).memory
    assert (second.failed, second.retried, second.completed) == (3, 1, frozenset({0}))
    assert completions(over(0, attempt=1), over(1, 1, attempt=1), at(2), memory=second, **more).memory == second
    assert completions(memory=second, **more).memory.failed == 3, "a runner that lost its journal"


def test_its_time_begins_with_its_first_instance_and_anew_after_a_suspension() -> None:
    start = completions().memory.start
    assert start == NOW.replace(microsecond=0)
    assert completions(at(0), memory=Memory(revision=NEW, start=ago(9))).memory.start == ago(9)
    memory = Memory(revision=NEW, start=ago(9))
    assert completions(at(0), memory=memory, replicas=0, suspended=True).memory.start == ago(9), "one still runs"
    assert completions(memory=memory, replicas=0, suspended=True).memory.start is None


def test_of_many_that_ended_the_oldest_are_forgotten_once_they_are_written_down() -> None:
    count = completion.KEPT + 3
    ended = [over(index, since=count - index) for index in range(count)]
    more: dict[str, Any] = {"completions": count + 1, "replicas": 1}
    assert completions(*ended, **more).forget == ()
    known = Memory(revision=NEW, completed=frozenset(range(count)))
    assert names(completions(*ended, memory=known, **more).forget) == ["b0-0", "b0-1", "b0-2"]


# --- what is observed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slot", [Slot("0a", 0), Slot("0123456789", 41), Slot("ff", 3, 2)])
@pytest.mark.parametrize("prefix", ["hello", "209f6373-ba74-47c3-84b0-2ae34bf82ac3", "a-0b-1"])
def test_a_name_tells_its_slot(slot: Slot, prefix: str) -> None:
    assert Slot.parse(slot.within(prefix), prefix) == slot


@pytest.mark.parametrize(
    "name", ["hello", "hello-", "hello-ab", "hello-ab-x", "other-ab-1", "hello-ab-1.", "helloo-ab-1"]
)
def test_a_strangers_name_tells_none(name: str) -> None:
    assert Slot.parse(name, "hello") is None


def told(
    state: protocol.ContainerState,
    phase: Phase = Phase.ACTIVE,
    failure: str = "",
    *,
    stopped: bool = False,
    silent: bool = False,
) -> Instance:
    status = protocol.WorkloadStatus(
        id="u-1-b0-0",
        owner=protocol.Owner(kind="WasmWorkload", namespace="n", name="a", uid="u-1"),
        phase=phase,
        epoch=1,
        sequence=1,
        template_hash="t",
        accepted_at=ago(50),
        containers=(protocol.ContainerStatus(name="module", state=state, ready=isinstance(state, protocol.Running)),),
        failure=protocol.Failure(reason=failure) if failure else None,
        stopped=stopped,
    )
    return by_runner(Slot(NEW, 0), status, silent=silent)


def ending(code: int) -> protocol.Terminated:
    return protocol.Terminated(exit_code=code, reason="R", finished_at=NOW)


def test_what_a_runner_says() -> None:
    running = told(protocol.Running(started_at=ago(5)))
    assert (running.state, running.ready_since, running.ready) == (State.RUNNING, ago(5), True)
    assert not told(protocol.Running(started_at=ago(5)), silent=True).ready
    waiting = told(protocol.Waiting(reason="ErrImagePull", message="m"))
    assert (waiting.state, waiting.reason, waiting.message, waiting.ready) == (
        State.WAITING,
        "ErrImagePull",
        "m",
        False,
    )
    assert told(ending(0)).state is State.WAITING, "between two runs"
    assert told(ending(0), Phase.ENDED).state is State.SUCCEEDED
    assert told(ending(3), Phase.ENDED).state is State.FAILED
    assert told(ending(0), Phase.ENDED, "Evicted").state is State.FAILED
    assert told(protocol.Waiting(reason="x"), Phase.ENDED).state is State.FAILED
    assert told(protocol.Waiting(reason="x"), Phase.ENDED).ended_at == ago(50), "a back-off must end"
    assert told(protocol.Running(started_at=NOW), Phase.STOPPING).state is State.STOPPING
    assert told(ending(137), Phase.ENDED, stopped=True).state is State.STOPPING, "we killed it: that is no failure"


@pytest.mark.parametrize(
    ("entry", "silent", "state", "on_runner"),
    [
        ({}, False, State.WAITING, False),
        ({"state": "Running", "startedAt": "2026-01-02T03:04:05Z"}, False, State.WAITING, False),
        ({"state": "Running", "startedAt": "2026-01-02T03:04:05Z"}, True, State.RUNNING, True),
        ({"state": "Terminated", "exitCode": 0}, False, State.WAITING, False),
        ({"state": "Terminated", "result": "Succeeded", "exitCode": 0}, False, State.SUCCEEDED, False),
        ({"state": "Terminated", "result": "Failed", "exitCode": 3}, True, State.FAILED, True),
        ({"state": "Waiting", "result": "Failed"}, False, State.FAILED, False),
    ],
)
def test_what_only_the_status_says(entry: dict[str, Any], silent: bool, state: State, on_runner: bool) -> None:
    found = by_status(Slot(NEW, 0), entry, silent=silent)
    assert (found.state, found.on_runner, found.ready) == (state, on_runner, False)


# --- indexes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [("", set()), ("0", {0}), ("0-3,7", {0, 1, 2, 3, 7}), ("5-4", set()), ("x,1,-,2-", {1, 2}), ("9-11", {9, 10, 11})],
)
def test_indexes_of_a_text(text: str, found: set[int]) -> None:
    assert indexes.parse(text) == found


@given(st.frozensets(st.integers(0, 60)))
def test_indexes_as_text_and_back(some: frozenset[int]) -> None:
    text = indexes.compact(some)
    assert indexes.parse(text) == some
    assert text.count(",") == max(0, sum(index + 1 not in some for index in some) - 1)


@pytest.mark.parametrize(("ahead", "waits"), [(-3, 7), (0, 10), (30, 40), (3600, None)])
def test_a_clock_that_was_set_back_makes_nothing_wait_until_it_has_caught_up(ahead: float, waits: float | None) -> None:
    then = NOW + timedelta(seconds=ahead)
    due = back_off_seconds(Instance(slot=Slot(NEW, 0), state=State.FAILED, ended_at=then), NOW)
    assert due == waits if waits is not None else due <= 0
    ready = Instance(slot=Slot(NEW, 0), state=State.RUNNING, ready_since=then)
    assert ready.available(10, NOW) is (waits is None)
