"""How a workload is stopped and forgotten."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.operator_fakes import settle
from tests.support.runner_scene import (
    ALWAYS,
    ID,
    NEVER,
    STUCK,
    Runner,
    code,
    container,
    files,
    holds,
    refusal,
    run,
    summary,
)
from wherry_runner.lives.backoff import BackOffSettings
from wherry_runner.modules.errors import PullError
from wherry_runner.protocol import (
    History,
    Phase,
    RefusalReason,
    RestartPolicy,
    Terminated,
)

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

# --- stopping ---------------------------------------------------------------------------------------------------------


def test_a_guest_that_ends_within_the_grace_period_is_not_killed(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put()
        guest = await runner.engine.guest(0)
        status = runner.delete(grace=3600)
        assert status is not None
        assert status.phase is Phase.STOPPING
        await settle()
        assert not guest.killed
        guest.exit(0)
        assert code(await runner.ended()) == 0
        assert len(runner.engine.guests) == 1, "nothing runs again, though the policy is Always"

    run(scenario())


def test_after_the_grace_period_it_is_killed(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(containers=(container("a"), container("b")))
        await runner.running()
        runner.delete(grace=0.01)
        status = await runner.ended()
        assert all(guest.killed for guest in runner.engine.guests)
        assert code(status) == 137

    run(scenario())


@pytest.mark.parametrize(("first", "second", "killed"), [(3600, 0, True), (3600, 3600, False), (1800, 3600, False)])
def test_of_two_grace_periods_the_shorter_counts(tmp_path: Path, first: float, second: float, killed: bool) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put()
        guest = await runner.engine.guest(0)
        runner.delete(grace=first)
        await settle()
        runner.delete(grace=second, sequence=101)
        await settle()
        assert guest.killed is killed
        guest.exit(0)
        await runner.ended()

    run(scenario())


def test_asking_again_does_not_prolong_the_grace_period(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put()
        guest = await runner.engine.guest(0)
        sequence = 100
        runner.delete(grace=0.2)
        while not guest.killed:  # a reconcile that comes over and over
            sequence += 1
            runner.delete(grace=0.2, sequence=sequence)
            await asyncio.sleep(0.01)
        await runner.ended()

    run(scenario())


def test_a_guest_that_is_just_being_started_when_the_delete_comes_does_not_outlive_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put()
        await holds((tmp_path / "logs" / ID / "main").is_dir)
        assert runner.engine.guests == []
        runner.delete(grace=0)
        await runner.ended()
        assert [guest.killed for guest in runner.engine.guests] == [True]

    run(scenario())


@pytest.mark.parametrize("where", ["in the back-off", "before it", "while its module is pulled again"])
def test_a_crash_loop_that_is_deleted_shows_how_its_last_run_ended(tmp_path: Path, where: str) -> None:
    """As a kubelet: who won't be restarted does not wait for it."""

    async def scenario() -> None:
        settle_seconds = 3600 if where == "before it" else 0
        runner = Runner(
            tmp_path, back_off=BackOffSettings(initial=10, maximum=10, settle=settle_seconds, error_shown=0)
        )
        runner.put()
        (await runner.engine.guest(0)).exit(1)
        if where != "before it":
            if where == "while its module is pulled again":
                runner.modules.errors = [PullError("no route to host")]
                await runner.waiting("ImagePullBackOff")
            else:
                (await runner.engine.guest(1)).exit(2)
                await runner.waiting("CrashLoopBackOff")
        else:
            await runner.told("main=Error:1")
        runner.delete(grace=3600)
        (found,) = (await runner.ended()).containers
        assert isinstance(found.state, Terminated)
        assert found.state.container_id == found.container_id == runner.engine.guests[-1].spec.guest_id
        if len(runner.engine.guests) == 2:
            assert found.last_terminated is not None
            assert found.last_terminated.container_id == runner.engine.guests[0].spec.guest_id
        else:
            assert found.last_terminated is None

    run(scenario())


def test_what_never_ran_is_shown_as_waiting(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path, back_off=STUCK)
        runner.modules.errors = [PullError("no route to host")]
        runner.put()
        await runner.waiting("ImagePullBackOff")
        runner.delete()
        assert summary(await runner.ended()) == "main=ImagePullBackOff"

    run(scenario())


def test_a_delete_always_shows_the_end_before_it_is_gone(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.modules.free.clear()
        runner.put()
        status = runner.delete(grace=0)
        assert status is not None
        assert status.phase is Phase.STOPPING, "also where nothing runs"
        await runner.ended()
        assert runner.delete(sequence=101) is None

    run(scenario())


def test_a_second_delete_forgets_what_has_ended_and_a_third_finds_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(volumes=(files(a="1"),))
        await runner.running()
        runner.delete(grace=0)
        await runner.ended()
        assert runner.supervisor.status(ID).phase is Phase.ENDED, "until the operator has seen its end"
        assert runner.delete(sequence=101) is None
        assert refusal(lambda: runner.supervisor.status(ID)) is RefusalReason.NOT_FOUND
        assert refusal(lambda: runner.supervisor.container(ID, "main")) is RefusalReason.NOT_FOUND
        assert runner.delete(sequence=101) is None, "a repeated request"
        assert runner.delete(sequence=102) is None
        for folder in ("volumes", "logs", "journal"):
            assert not list((tmp_path / folder).glob(f"*{ID}*"))

    run(scenario())


@pytest.mark.parametrize("sequence", [1, 50, 100])
def test_a_delayed_put_brings_nothing_back(tmp_path: Path, sequence: int) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put()
        runner.delete(sequence=99, grace=0)
        await runner.ended()
        runner.delete(sequence=100)
        assert refusal(lambda: runner.put(sequence=sequence)) is RefusalReason.STALE_SEQUENCE
        assert runner.delete(id="never-seen", sequence=100) is None
        assert refusal(lambda: runner.put(id="never-seen", sequence=sequence)) is RefusalReason.STALE_SEQUENCE
        runner.put(sequence=101)
        await runner.die()

    run(scenario())


def test_a_put_while_it_stops_does_not_start_it_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put()
        guest = await runner.engine.guest(0)
        runner.delete(grace=3600)
        runner.put(sequence=101, template="t2")
        await settle()
        guest.exit(0)
        await runner.ended()
        assert len(runner.engine.guests) == 1

    run(scenario())


# --- whose doing the end was ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "ends", "stopped"), [(NEVER, 0, False), (NEVER, 3, True), (ALWAYS, 0, True)])
def test_one_that_was_stopped_says_so_unless_it_came_to_its_own_end(
    tmp_path: Path, policy: RestartPolicy, ends: int, stopped: bool
) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        assert not runner.put(policy=policy).stopped
        guest = await runner.engine.guest(0)
        status = runner.delete(grace=3600)
        assert status is not None
        assert status.stopped
        guest.exit(ends)
        assert (await runner.ended()).stopped is stopped

    run(scenario())


def test_one_that_was_evicted_before_it_was_stopped_does_not_say_that_it_was_stopped(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(policy=NEVER)
        await runner.running()
        runner.supervisor.evict(ID, "it took too much")
        runner.delete(grace=0)
        status = await runner.ended()
        assert status.failure is not None
        assert not status.stopped

    run(scenario())


@pytest.mark.parametrize("code_", [0, 3])
def test_an_end_that_may_not_have_been_heard_of_is_kept_where_that_is_asked_for(tmp_path: Path, code_: int) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(policy=NEVER)
        (await runner.engine.guest(0)).exit(code_)
        await runner.ended()
        status = runner.delete(grace=0, keep_ended=True)
        assert status is not None
        assert code(status) == code_
        await runner.die()
        second = Runner(tmp_path)
        assert second.delete(grace=0, sequence=101, keep_ended=True) is None
        second.put(sequence=102, policy=NEVER)
        assert code(await second.ended()) == code_, "its journal was kept"
        assert second.delete(sequence=103) is None

    run(scenario())


def test_one_that_ended_because_it_was_stopped_is_not_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(policy=NEVER)
        await runner.running()
        runner.delete(grace=0, keep_ended=True)
        await runner.ended()
        assert runner.delete(grace=0, sequence=101, keep_ended=True) is None

    run(scenario())


@pytest.mark.parametrize("how", ["the runner dies at once", "it ended before", "it was forgotten before"])
def test_a_life_that_was_stopped_leaves_nothing_to_the_next(tmp_path: Path, how: str) -> None:
    """An operator that died between the stop and its note of it tells of the old run: that is no lost one."""

    async def scenario() -> None:
        first = Runner(tmp_path)
        first.put(policy=NEVER)
        status = await first.running()
        told = (History(container="main", container_id=status.containers[0].container_id, started_at=AT),)
        runner = first
        first.delete(grace=3600 if how == "the runner dies at once" else 0)
        if how != "the runner dies at once":
            await first.ended()
        if how == "it was forgotten before":
            assert first.delete(grace=0, sequence=101) is None
        else:
            await first.die()
            runner = Runner(tmp_path)
        runner.put(sequence=102, policy=NEVER, history=told)
        status = await runner.running()
        assert status.containers[0].restart_count == 0
        assert not status.stopped

    run(scenario())
