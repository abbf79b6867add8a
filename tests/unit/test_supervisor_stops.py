"""How a workload is stopped and forgotten."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.operator_fakes import settle
from tests.support.runner_scene import (
    ID,
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
    Phase,
    RefusalReason,
    Terminated,
)

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
