"""What ends a workload as a whole: its deadline, eviction, memory that ran out, and the runner's own end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.operator_fakes import settle
from tests.support.runner_scene import (
    ALWAYS,
    ID,
    INFO,
    NEVER,
    ON_FAILURE,
    STUCK,
    Runner,
    container,
    holds,
    init,
    refusal,
    run,
    summary,
)
from wherry_runner.protocol import Failure, Phase, RefusalReason, RestartPolicy, StatusEvent, WorkloadStatus

PAST = datetime(2020, 1, 1, tzinfo=UTC)
DEADLINE = Failure(reason="DeadlineExceeded", message="Pod was active on the node longer than the specified deadline")
"""podstatus/active-deadline-3.yaml."""


def soon() -> datetime:
    return datetime.now(UTC) + timedelta(seconds=1)


# --- deadline ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", list(RestartPolicy))
def test_at_its_deadline_a_workload_is_ended_with_its_grace_period(tmp_path: Path, policy: RestartPolicy) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(policy=policy, deadline=soon(), grace=3600)
        guest = await runner.engine.guest(0)
        status = await runner.when(lambda status: status.failure is not None)
        assert (status.failure, status.phase, summary(status)) == (DEADLINE, Phase.STOPPING, "main=Running")
        assert not guest.killed
        guest.exit(0)
        status = await runner.ended()
        assert (status.failure, summary(status)) == (DEADLINE, "main=Completed")
        assert len(runner.engine.guests) == 1

    run(scenario())


def test_who_does_not_end_by_itself_is_killed(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(deadline=soon(), grace=0)
        await runner.engine.guest(0)
        assert summary(await runner.ended()) == "main=Error:137"

    run(scenario())


def test_a_deadline_that_is_over_lets_nothing_begin(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.modules.free.clear()
        runner.put(deadline=PAST)
        status = await runner.ended()
        assert (status.failure, summary(status)) == (DEADLINE, "main=ContainerCreating")
        assert runner.engine.guests == []

    run(scenario())


def test_a_time_without_a_zone_is_utc(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(deadline=PAST.replace(tzinfo=None))
        assert (await runner.ended()).failure == DEADLINE

    run(scenario())


@pytest.mark.parametrize("what", ["a pull", "an init container", "a back-off"])
def test_a_deadline_breaks_off_whatever_goes_on(tmp_path: Path, what: str) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path, back_off=STUCK)
        if what == "a pull":
            runner.modules.free.clear()
        runner.put(deadline=soon(), grace=0, init=(init("i"),) if what == "an init container" else ())
        if what == "a back-off":
            for number in (0, 1):
                (await runner.engine.guest(number)).exit(1)
        status = await runner.ended()
        assert status.failure == DEADLINE
        assert (
            summary(status)
            == {
                "a pull": "main=ContainerCreating",
                "an init container": "i=Error:137 main=PodInitializing",
                "a back-off": "main=Error:1|1",
            }[what]
        )

    run(scenario())


def test_a_deadline_can_be_set_and_moved_while_it_runs(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(deadline=datetime.now(UTC) + timedelta(days=1), grace=0)
        await runner.running()
        runner.put(sequence=2, grace=0, deadline=PAST)
        assert (await runner.ended()).failure == DEADLINE
        runner.put(id="w2", grace=0, deadline=soon())
        runner.put(id="w2", sequence=2)  # taken back
        runner.put(id="w3", grace=0, deadline=soon() + timedelta(seconds=1))
        await runner.ended("w3")
        assert runner.supervisor.status("w2").failure is None

    run(scenario())


def test_who_ended_before_has_no_deadline_any_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        deadline = datetime.now(UTC) + timedelta(seconds=3)
        runner.put(policy=NEVER, deadline=deadline)
        (await runner.engine.guest(0)).exit(0)
        await runner.ended()
        runner.put(id="w2", deadline=deadline + timedelta(milliseconds=1), grace=0)
        await runner.ended("w2")
        assert runner.supervisor.status(ID).failure is None

    run(scenario())


# --- eviction ---------------------------------------------------------------------------------------------------------


async def evicted(runner: Runner) -> WorkloadStatus:
    assert runner.supervisor.evict(ID, 'Usage of EmptyDir volume "v" exceeds the limit "1Mi".')
    assert runner.supervisor.evict(ID, "said again at the next look")
    return await runner.ended()


@pytest.mark.parametrize("policy", list(RestartPolicy))
def test_an_evicted_workload_ends_at_once_and_says_why(tmp_path: Path, policy: RestartPolicy) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(policy=policy)
        await runner.running()
        status = await evicted(runner)
        expected = Failure(reason="Evicted", message='Usage of EmptyDir volume "v" exceeds the limit "1Mi".')
        assert (status.failure, summary(status)) == (expected, "main=Error:137")
        assert not runner.supervisor.evict(ID, "nothing is left")
        assert not runner.supervisor.evict("unknown", "")

    run(scenario())


def test_what_failed_as_a_whole_never_runs_again_on_this_runner(tmp_path: Path) -> None:
    async def scenario() -> None:
        first = Runner(tmp_path)
        first.put(policy=ALWAYS)
        await first.running()
        before = await evicted(first)
        await first.die()
        second = Runner(tmp_path)
        second.put(policy=ALWAYS)
        after = await second.ended()
        assert (after.failure, summary(after)) == (before.failure, summary(before))
        assert second.engine.guests == []

    run(scenario())


def test_an_eviction_is_told_after_it_is_on_disk(tmp_path: Path) -> None:
    synced = 0

    def sync(_: int) -> None:
        nonlocal synced
        synced += 1

    async def scenario() -> None:
        runner = Runner(tmp_path, sync=sync)
        runner.put()
        await runner.running()
        before = synced
        runner.supervisor.evict(ID, "x")
        await runner.when(lambda status: status.failure is not None)
        assert synced > before

    run(scenario())


def test_a_guest_that_is_killed_for_memory_is_restarted_as_any_other(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(policy=ON_FAILURE)
        await runner.running()
        (running,) = runner.supervisor.running_guests()
        assert (running.workload_id, running.container) == (ID, "main")
        assert running.container_id == runner.engine.guests[0].spec.guest_id
        running.guest.kill(reason="OOMKilled", message="the runner's memory ran out")
        status = await runner.running(restarts=1)
        last = status.containers[0].last_terminated
        assert last is not None
        assert (last.exit_code, last.reason, last.message) == (137, "OOMKilled", "the runner's memory ran out")

    run(scenario())


# --- the runner's own end ---------------------------------------------------------------------------------------------


async def during(closing: Awaitable[None], what: Callable[[], Awaitable[None]]) -> None:
    task = asyncio.ensure_future(closing)
    await settle()
    assert not task.done()
    await what()
    await task


def test_who_ends_by_itself_while_the_runner_stops_has_ended_and_is_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        first = Runner(tmp_path)
        first.put(policy=NEVER, containers=(container("a"), container("b")))
        await first.running()
        watch = first.supervisor.watch(INFO)
        assert len([await anext(watch), await anext(watch)]) == 2, "the snapshot"

        async def end() -> None:
            assert refusal(lambda: first.put(id="w2")) is RefusalReason.STOPPING
            assert refusal(lambda: first.put(sequence=2)) is RefusalReason.STOPPING
            for guest in first.engine.guests:
                guest.exit(3)

        await during(first.die(grace=3600), end)
        told = [event async for batch in watch for event in batch]
        assert isinstance(told[-1], StatusEvent)
        assert (told[-1].status.phase, summary(told[-1].status)) == (Phase.ENDED, "a=Error:3 b=Error:3")

        second = Runner(tmp_path)
        second.put(policy=NEVER, containers=(container("a"), container("b")))
        assert summary(await second.ended()) == "a=Error:3 b=Error:3"

    run(scenario())


@pytest.mark.parametrize(("own", "given"), [(0, 3600), (3600, 0)])
def test_who_does_not_end_within_the_shorter_of_both_periods_is_lost(tmp_path: Path, own: int, given: int) -> None:
    async def scenario() -> None:
        first = Runner(tmp_path)
        first.put(policy=ON_FAILURE, grace=own)
        await first.running()
        await first.die(grace=given)
        assert first.engine.guests[0].killed
        second = Runner(tmp_path)
        second.put(policy=ON_FAILURE)
        status = await second.running(restarts=1)
        last = status.containers[0].last_terminated
        assert last is not None
        assert last.reason == "RunnerLost"

    run(scenario())


def test_nothing_begins_while_the_runner_stops_and_nothing_is_over_that_would_go_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        first = Runner(tmp_path)
        first.put(id="always")
        first.put(id="prepared", init=(init("i"),))
        first.put(id="changed", grace=3600)
        for number in range(3):
            await first.engine.guest(number)
        await first.running(id="changed")
        first.put(id="changed", sequence=2, template="t2", grace=3600)
        last: dict[str, WorkloadStatus] = {}

        async def end() -> None:
            for guest in first.engine.guests:
                guest.exit(0)
            await holds(lambda: not list(first.supervisor.running_guests()))
            await settle()
            last.update({name: first.supervisor.status(name) for name in ("always", "prepared", "changed")})

        await during(first.die(grace=3600), end)
        assert len(first.engine.guests) == 3
        assert {name: status.phase for name, status in last.items()} == dict.fromkeys(last, Phase.ACTIVE)

        second = Runner(tmp_path)
        second.put(id="always")
        assert summary(await second.running(restarts=1, id="always")) == "main=Running|1"

    run(scenario())


def test_who_is_in_a_hurry_can_end_it_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(containers=(container("a"), container("b")), grace=3600)
        await runner.running()
        patient = asyncio.ensure_future(runner.supervisor.close(3600))
        await settle()
        patient.cancel()
        await asyncio.gather(patient, return_exceptions=True)
        await runner.die()
        assert all(guest.killed for guest in runner.engine.guests)

    run(scenario())


def test_after_its_end_a_runner_does_nothing_any_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put()
        await runner.running()
        await runner.die()
        assert refusal(runner.put) is RefusalReason.STOPPING
        assert refusal(runner.delete) is RefusalReason.STOPPING
        assert not runner.supervisor.evict(ID, "too late")
        assert summary(runner.supervisor.status(ID)) == "main=Running", "as it was told last"

    run(scenario())


def test_a_pull_is_not_waited_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.modules.free.clear()
        runner.put()
        await settle()
        await runner.die(grace=3600)

    run(scenario())


def test_a_workload_that_is_being_deleted_ends_at_its_own_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        first = Runner(tmp_path)
        first.put(policy=NEVER)
        await first.running()
        first.delete(grace=0.05)

        async def nothing() -> None:
            return

        await during(first.die(grace=3600), nothing)
        assert summary(first.supervisor.status(ID)) == "main=Error:137"
        assert first.supervisor.status(ID).phase is Phase.ENDED

    run(scenario())
