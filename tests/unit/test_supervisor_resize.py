"""Other resources for a workload that runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.operator_fakes import settle
from tests.support.runner_scene import ALWAYS, ID, NEVER, PLENTY, Runner, container, refusal, run
from wherry_runner.protocol import RefusalReason, Resources, RestartPolicy

SMALL = Resources(memory_request_bytes=100, memory_limit_bytes=200, cpu_limit_millicores=100)


@pytest.mark.parametrize(("policy", "runs"), [(ALWAYS, 2), (NEVER, 1)])
def test_other_limits_come_with_another_run_if_there_may_be_one(
    tmp_path: Path, policy: RestartPolicy, runs: int
) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(containers=(container(resources=SMALL),), policy=policy)
        await runner.running()
        larger = SMALL.model_copy(update={"memory_limit_bytes": 300})
        runner.put(sequence=2, content="c2", containers=(container(resources=larger),), policy=policy)
        if runs > 1:
            status = await runner.running(restarts=1)
            last = status.containers[0].last_terminated
            assert last is not None and (last.exit_code, last.message) == (
                137,
                "killed, to run again with other limits",
            )
        await settle()
        limits = [guest.spec.limits.memory_bytes for guest in runner.engine.guests]
        assert limits == [200, 300][:runs]
        await runner.die()

    run(scenario())


def test_other_requests_change_what_is_kept_and_restart_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path, offered=replace(PLENTY, memory_bytes=1000))
        runner.put(containers=(container(resources=SMALL),))
        await runner.running()
        more = SMALL.model_copy(update={"memory_request_bytes": 150})
        runner.put(sequence=2, content="c2", containers=(container(resources=more),))
        await settle()
        found = runner.life().run
        assert found is not None and found.request_bytes == 150
        assert (runner.admission.requested_bytes, len(runner.engine.guests)) == (150, 1)
        huge = SMALL.model_copy(update={"memory_request_bytes": 2000, "memory_limit_bytes": 2000})
        asked = (container(resources=huge),)
        assert refusal(lambda: runner.put(sequence=3, content="c3", containers=asked)) is RefusalReason.NO_ROOM
        assert runner.supervisor.status(ID).content_revision == "c2"
        assert (runner.admission.requested_bytes, len(runner.engine.guests)) == (150, 1)
        await runner.die()

    run(scenario())
