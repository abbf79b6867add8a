"""What the next process makes of what the last one left."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.operator_fakes import settle
from tests.support.runner_scene import (
    ALWAYS,
    ID,
    NEVER,
    ON_FAILURE,
    STUCK,
    Runner,
    code,
    container,
    holds,
    run,
)
from wherry_runner.execution.engine import EngineLost, StartRefused
from wherry_runner.protocol import (
    History,
    RestartPolicy,
    Running,
    Terminated,
    WorkloadStatus,
)

# --- the next process -------------------------------------------------------------------------------------------------


def shown(status: WorkloadStatus) -> tuple[History, ...]:
    """What an operator that saw this status tells a runner that lost its journal."""
    return tuple(
        History(
            container=item.name,
            container_id=item.container_id,
            restart_count=item.restart_count,
            started_at=item.state.started_at if isinstance(item.state, Running) else None,
            terminated=item.state if isinstance(item.state, Terminated) else item.last_terminated,
        )
        for item in status.containers
    )


@pytest.mark.parametrize("lost", [False, True], ids=["journal", "status alone"])
@pytest.mark.parametrize(
    ("policy", "exit_code", "again"),
    [
        pytest.param(NEVER, 0, False, id="Never, ended"),
        pytest.param(NEVER, 3, False, id="Never, failed"),
        pytest.param(NEVER, None, False, id="Never, lost"),
        pytest.param(ON_FAILURE, 0, False, id="OnFailure, ended"),
        pytest.param(ON_FAILURE, None, True, id="OnFailure, lost"),
        pytest.param(ALWAYS, None, True, id="Always, lost"),
    ],
)
def test_what_the_next_process_runs_again(
    tmp_path: Path, policy: RestartPolicy, exit_code: int | None, again: bool, lost: bool
) -> None:
    async def scenario() -> None:
        first = Runner(tmp_path / "1")
        first.put(policy=policy)
        guest = await first.engine.guest(0)
        if exit_code is None:
            status = await first.running()
        else:
            guest.exit(exit_code)
            status = await first.ended()
        await first.die()

        second = Runner(tmp_path / ("2" if lost else "1"))
        second.put(epoch=2, policy=policy, history=shown(status))
        if again:
            found = (await second.running(restarts=1)).containers[0]
            assert found.container_id != guest.spec.guest_id
            end = found.last_terminated
        else:
            ended = await second.ended()
            found = ended.containers[0]
            assert isinstance(found.state, Terminated)
            assert (found.container_id, found.restart_count) == (guest.spec.guest_id, 0)
            end = found.state
            await settle()
            assert second.engine.guests == []
        assert end is not None
        assert end.container_id == guest.spec.guest_id
        assert (end.exit_code, end.reason == "RunnerLost") == (
            (exit_code, False) if exit_code is not None else (137, True)
        )
        await second.die()

    run(scenario())


def test_a_lost_run_under_never_says_that_it_is_not_run_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        first = Runner(tmp_path)
        first.put(policy=NEVER)
        await first.running()
        await first.die()
        second = Runner(tmp_path)
        second.put(policy=NEVER)
        state = (await second.ended()).containers[0].state
        assert isinstance(state, Terminated)
        assert "not run again" in state.message
        third = Runner(tmp_path)
        third.put(policy=NEVER)
        assert (await third.ended()).containers[0].state == state, "it is journaled as lost, once"

    run(scenario())


def test_a_start_that_broke_off_with_the_process_counts_as_a_run(tmp_path: Path) -> None:
    async def scenario() -> None:
        first = Runner(tmp_path)
        first.put(policy=NEVER)
        await holds(lambda: "main" in first.journals.open(ID).past)
        assert first.engine.guests == []
        await first.die()
        second = Runner(tmp_path)
        second.put(policy=NEVER)
        assert code(await second.ended()) == 137
        assert second.engine.guests == []

    run(scenario())


@pytest.mark.parametrize("error", [StartRefused("no"), EngineLost("gone")])
def test_a_start_that_was_refused_counts_as_none_for_the_next_process_too(tmp_path: Path, error: Exception) -> None:
    async def scenario() -> None:
        first = Runner(tmp_path, back_off=STUCK)
        first.engine.refusals = [error]
        first.put(policy=NEVER)
        await first.waiting("CreateContainerError")
        await first.die()
        second = Runner(tmp_path)
        second.put(policy=NEVER)
        await second.running()

    run(scenario())


def test_of_two_containers_only_the_lost_one_runs_again(tmp_path: Path) -> None:
    both = (container("a"), container("b"))

    async def scenario() -> None:
        first = Runner(tmp_path)
        first.put(policy=ON_FAILURE, containers=both)
        await first.running()
        first.engine.guests[0].exit(0)
        await first.when(lambda status: isinstance(status.containers[0].state, Terminated))
        await first.die()
        second = Runner(tmp_path)
        second.put(policy=ON_FAILURE, containers=both)
        await second.when(lambda status: isinstance(status.containers[1].state, Running))
        await settle()
        assert [guest.spec.log.path.parent.name for guest in second.engine.guests] == ["b"]
        await second.die()

    run(scenario())


def test_a_delete_of_what_only_the_journal_knows_forgets_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        first = Runner(tmp_path)
        first.put()
        await first.running()
        await first.die()
        second = Runner(tmp_path)
        assert second.delete() is None
        assert not second.journals.known(ID)
        await second.die()
        assert not Runner(tmp_path).journals.known(ID)

    run(scenario())


def test_logs_go_with_their_journal(tmp_path: Path) -> None:
    async def scenario() -> None:
        first = Runner(tmp_path)
        first.put()
        await first.running()
        (tmp_path / "logs" / "forgotten" / "main").mkdir(parents=True)
        await first.die()
        second = Runner(tmp_path)
        assert [folder.name for folder in (tmp_path / "logs").iterdir()] == [ID]
        await second.die()
        assert not list((tmp_path / "logs.retired").iterdir())

    run(scenario())


def test_what_no_operator_asked_for_is_forgotten_and_nothing_else(tmp_path: Path) -> None:
    async def scenario() -> None:
        first = Runner(tmp_path)
        for name in ("asked-for", "ended", "deleted"):
            first.put(id=name, policy=NEVER)
            await first.running(id=name)
        first.engine.guests[1].exit(0)
        await first.ended("ended")
        await first.die()
        second = Runner(tmp_path)
        for name in ("asked-for", "ended"):
            second.put(id=name, policy=NEVER)
        second.supervisor.forget_unclaimed()
        assert second.journals.workloads() == ["asked-for", "ended"]
        assert {folder.name for folder in (tmp_path / "logs").iterdir()} == {"asked-for", "ended"}

    run(scenario())
