"""How a workload is stopped and forgotten."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.operator_fakes import settle
from tests.support.runner_scene import (
    ID,
    Runner,
    code,
    container,
    files,
    holds,
    refusal,
    run,
)
from wherry_runner.protocol import (
    Phase,
    RefusalReason,
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
