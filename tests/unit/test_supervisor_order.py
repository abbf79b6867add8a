"""Init containers, sidecars and containers, in the kubelet's order and words (facts: podstatus/)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_engine import FakeGuest
from tests.support.operator_fakes import settle
from tests.support.runner_scene import (
    ALWAYS,
    ID,
    NEVER,
    ON_FAILURE,
    STUCK,
    Runner,
    container,
    init,
    run,
    sidecar,
    summary,
)
from wherry_runner.protocol import Phase, RestartPolicy, WorkloadStatus

MAINS = (container("main"),)


def name(guest: FakeGuest) -> str:
    """The container that a guest is a run of."""
    return guest.spec.log.path.parent.name


def started(runner: Runner) -> list[str]:
    return [name(guest) for guest in runner.engine.guests]


def guest(runner: Runner, container: str) -> FakeGuest:
    """The newest run of a container."""
    return next(each for each in reversed(runner.engine.guests) if name(each) == container)


async def ended(runner: Runner) -> str:
    return summary(await runner.ended())


# --- init containers --------------------------------------------------------------------------------------------------


def test_init_containers_run_one_after_the_other_and_the_others_wait(tmp_path: Path) -> None:
    """podstatus/init-containers-then-main.yaml."""

    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(policy=NEVER, init=(init("i1"), init("i2")), containers=MAINS)
        status = await runner.told("i1=Running i2=PodInitializing main=PodInitializing")
        assert [each.ready for each in status.init_containers] == [False, False]
        guest(runner, "i1").exit(0)
        status = await runner.told("i1=Completed i2=Running main=PodInitializing")
        assert [each.ready for each in status.init_containers] == [True, False]
        guest(runner, "i2").exit(0)
        await runner.told("i1=Completed i2=Completed main=Running")
        guest(runner, "main").exit(0)
        assert await ended(runner) == "i1=Completed i2=Completed main=Completed"
        assert started(runner) == ["i1", "i2", "main"]

    run(scenario())


def test_all_containers_begin_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(init=(init("i"),), containers=tuple(container(f"c{number}") for number in range(200)))
        await runner.engine.guest(0)
        assert started(runner) == ["i"]
        guest(runner, "i").exit(0)
        await runner.running()
        assert len(runner.engine.guests) == 201

    run(scenario())


def test_a_failed_init_container_fails_the_workload_under_never(tmp_path: Path) -> None:
    """podstatus/failing-init-never.yaml."""

    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(policy=NEVER, init=(init("i1"), init("i2")), containers=MAINS)
        (await runner.engine.guest(0)).exit(7)
        status = await runner.ended()
        assert summary(status) == "i1=Error:7 i2=PodInitializing main=PodInitializing"
        assert status.failure is None, "its container tells"
        assert len(runner.engine.guests) == 1

    run(scenario())


@pytest.mark.parametrize("policy", [ALWAYS, ON_FAILURE])
def test_a_failed_init_container_is_run_again_until_it_succeeds(tmp_path: Path, policy: RestartPolicy) -> None:
    """podstatus/failing-init-always.yaml."""

    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(policy=policy, init=(init("i1"),), containers=MAINS)
        (await runner.engine.guest(0)).exit(7)
        status = await runner.told("i1=Running|1 main=PodInitializing")
        last = status.init_containers[0].last_terminated
        assert last is not None
        assert last.exit_code == 7
        guest(runner, "i1").exit(0)
        await runner.told("i1=Completed|1 main=Running")
        assert started(runner) == ["i1", "i1", "main"]

    run(scenario())


def test_a_failing_init_container_backs_off_as_any_other(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path, back_off=STUCK)
        runner.put(init=(init("i1"),), containers=MAINS)
        for number in (0, 1):
            (await runner.engine.guest(number)).exit(7)
        await runner.told("i1=CrashLoopBackOff|1 main=PodInitializing")
        runner.delete()
        assert await ended(runner) == "i1=Error:7|1 main=PodInitializing"

    run(scenario())


def test_a_restarted_container_does_not_bring_its_init_containers_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(init=(init("i1"),), containers=MAINS)
        (await runner.engine.guest(0)).exit(0)
        (await runner.engine.guest(1)).exit(1)
        await runner.told("i1=Completed main=Running|1")
        assert started(runner) == ["i1", "main", "main"]

    run(scenario())


def test_a_delete_while_an_init_container_runs_begins_nothing_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(init=(init("i1"), init("i2")), containers=MAINS)
        running = await runner.engine.guest(0)
        runner.delete(grace=3600)
        await settle()
        running.exit(0)
        assert await ended(runner) == "i1=Completed i2=PodInitializing main=PodInitializing"
        assert len(runner.engine.guests) == 1

    run(scenario())


# --- sidecars ---------------------------------------------------------------------------------------------------------


def test_a_sidecar_only_has_to_run_for_what_follows_it(tmp_path: Path) -> None:
    """podstatus/sidecar-and-main-completes.yaml."""

    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(policy=NEVER, init=(sidecar("s1"), init("i1"), sidecar("s2")), containers=MAINS, grace=3600)
        status = await runner.told("s1=Running i1=Running s2=PodInitializing main=PodInitializing")
        assert [each.ready for each in status.init_containers] == [True, False, False]
        guest(runner, "i1").exit(0)
        await runner.told("s1=Running i1=Completed s2=Running main=Running")
        guest(runner, "main").exit(0)
        status = await runner.told("s1=Running i1=Completed s2=Running main=Completed")
        assert status.phase is Phase.ACTIVE
        guest(runner, "s1").exit(0)
        guest(runner, "s2").exit(0)
        assert await ended(runner) == "s1=Completed i1=Completed s2=Completed main=Completed"
        assert started(runner) == ["s1", "i1", "s2", "main"], "nothing is restarted once the workload ends"

    run(scenario())


@pytest.mark.parametrize("policy", list(RestartPolicy))
@pytest.mark.parametrize("code", [0, 1])
def test_a_sidecar_is_always_run_again(tmp_path: Path, policy: RestartPolicy, code: int) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(policy=policy, init=(sidecar("s"),), containers=MAINS)
        await runner.told("s=Running main=Running")
        guest(runner, "s").exit(code)
        await runner.told("s=Running|1 main=Running")

    run(scenario())


def test_a_sidecar_that_ended_at_once_has_run_all_the_same(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path, back_off=STUCK)
        runner.engine.on_start = lambda started: started.exit(1) if name(started) == "s" else None
        runner.put(policy=NEVER, init=(sidecar("s"),), containers=MAINS)
        await runner.told("s=CrashLoopBackOff|1 main=Running")

    run(scenario())


def test_sidecars_keep_no_finished_workload_alive_longer_than_its_grace_period_and_end_the_last_one_first(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(policy=ON_FAILURE, init=(sidecar("s1"), sidecar("s2")), containers=MAINS, grace=0)
        await runner.told("s1=Running s2=Running main=Running")
        order: list[str] = []
        for each in runner.engine.guests:
            each.on_end = partial(order.append, name(each))
        guest(runner, "main").exit(0)
        assert await ended(runner) == "s1=Error:137 s2=Error:137 main=Completed"
        assert order == ["main", "s2", "s1"]

    run(scenario())


def test_a_delete_ends_the_containers_first_and_then_the_sidecars_within_one_grace_period(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(init=(sidecar("s1"), sidecar("s2")), containers=(container("a"), container("b")))
        await runner.told("s1=Running s2=Running a=Running b=Running")
        runner.delete(grace=3600)
        await settle()
        assert not any(each.killed for each in runner.engine.guests)
        guest(runner, "a").exit(0)
        await runner.told("s1=Running s2=Running a=Completed b=Running")
        order: list[str] = []
        for each in runner.engine.guests:
            each.on_end = partial(order.append, name(each))
        runner.delete(grace=0, sequence=101)
        assert await ended(runner) == "s1=Error:137 s2=Error:137 a=Completed b=Error:137"
        assert order == ["b", "s2", "s1"]

    run(scenario())


def test_a_failed_init_container_ends_the_sidecars_before_it_too(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(policy=NEVER, init=(sidecar("s"), init("i")), containers=MAINS, grace=0)
        await runner.told("s=Running i=Running main=PodInitializing")
        guest(runner, "i").exit(1)
        assert await ended(runner) == "s=Error:137 i=Error:1 main=PodInitializing"

    run(scenario())


# --- another template, another process --------------------------------------------------------------------------------


def test_another_template_leaves_what_init_containers_did(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        spec: dict[str, Any] = {"init": (init("i"), sidecar("s")), "containers": MAINS, "grace": 0}
        runner.put(**spec)
        (await runner.engine.guest(0)).exit(0)
        await runner.told("i=Completed s=Running main=Running")
        runner.put(sequence=2, template="t2", **spec)
        await runner.told("i=Completed s=Running|1 main=Running|1")
        assert started(runner) == ["i", "s", "main", "s", "main"]

    run(scenario())


def test_another_template_while_an_init_container_runs_begins_that_one_anew(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(init=(init("i1"), init("i2")), containers=MAINS, grace=0)
        (await runner.engine.guest(0)).exit(0)
        await runner.engine.guest(1)
        runner.put(sequence=2, template="t2", init=(init("i1"), init("i2"), init("i3")), containers=MAINS, grace=0)
        await runner.told("i1=Completed i2=Running|1 i3=PodInitializing main=PodInitializing")

    run(scenario())


def test_another_template_may_have_other_containers_and_the_logs_of_those_that_are_gone_go(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(containers=(container("a"), container("b")), grace=0)
        await runner.told("a=Running b=Running")
        runner.put(sequence=2, template="t2", containers=(container("b"), container("c")), grace=0)
        await runner.told("b=Running|1 c=Running")
        assert {folder.name for folder in (tmp_path / "logs" / ID).iterdir()} == {"b", "c"}

    run(scenario())


@pytest.mark.parametrize(
    ("policy", "before", "after", "runs"),
    [
        # `before`: what each container's first run did when the runner died; None: it still ran.
        (ALWAYS, {"i1": 0, "i2": 0, "main": None}, "i1=Running|1 i2=PodInitializing main=PodInitializing", ["i1"]),
        (ON_FAILURE, {"i1": 0, "i2": None}, "i1=Running|1 i2=PodInitializing main=PodInitializing", ["i1"]),
        (ON_FAILURE, {"i1": 0, "i2": 0, "main": 0}, "i1=Completed i2=Completed main=Completed", []),
        (NEVER, {"i1": 0, "i2": None}, "i1=Completed i2=RunnerLost:137 main=PodInitializing", []),
        (NEVER, {"i1": 0, "i2": 0, "main": None}, "i1=Completed i2=Completed main=RunnerLost:137", []),
        (NEVER, {"i1": 7}, "i1=Error:7 i2=PodInitializing main=PodInitializing", []),
    ],
)
def test_after_the_runners_death_init_containers_run_again_for_what_is_left_to_run(
    tmp_path: Path, policy: RestartPolicy, before: dict[str, int | None], after: str, runs: list[str]
) -> None:
    spec: dict[str, Any] = {"policy": policy, "init": (init("i1"), init("i2")), "containers": MAINS}

    async def scenario() -> None:
        first = Runner(tmp_path)
        first.put(**spec)
        for number, (container_name, exit_code) in enumerate(before.items()):
            running = await first.engine.guest(number)
            assert name(running) == container_name
            if exit_code is not None:
                running.exit(exit_code)
            expected = "Running" if exit_code is None else "Completed" if exit_code == 0 else f"Error:{exit_code}"
            await first.when(partial(says, f"{container_name}={expected}"))
        await first.die()
        second = Runner(tmp_path)
        second.put(**spec)
        await second.told(after)
        await settle()
        assert started(second) == runs
        if not runs:
            assert (await second.ended()).failure is None

    run(scenario())


def says(text: str, status: WorkloadStatus) -> bool:
    return text in summary(status).split()


def test_under_never_what_never_ran_is_not_begun_after_the_runners_death_and_the_workload_says_why(
    tmp_path: Path,
) -> None:
    spec: dict[str, Any] = {"policy": NEVER, "init": (init("i1"),), "containers": MAINS}

    async def scenario() -> None:
        first = Runner(tmp_path)
        first.put(**spec)
        running = await first.engine.guest(0)
        first.modules.free.clear()
        running.exit(0)
        await first.told("i1=Completed main=PodInitializing")
        await first.die()
        for _ in range(2):  # also of the failure, the journal knows
            second = Runner(tmp_path)
            second.put(**spec)
            status = await second.ended()
            assert summary(status) == "i1=Completed main=PodInitializing"
            assert status.failure is not None
            assert status.failure.reason == "RunnerLost"
            assert second.engine.guests == []
            await second.die()

    run(scenario())
