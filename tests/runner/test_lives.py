"""Lives of workloads on a whole runner: real modules in the kubelet's order, and what is left of them after its death."""

from __future__ import annotations

import asyncio
import base64
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.processes import wait_for
from tests.guests import build
from tests.support.runner import Certificates, RunnerProcess, healthy
from tests.support.runner_scene import state, summary
from tests.support.talk import talk
from wherry_operator.runners.client import RunnerClient
from wherry_runner import protocol
from wherry_runner.protocol import Phase, RestartPolicy, WorkloadStatus


@pytest.fixture(scope="module")
def tool() -> protocol.InlineModule:
    return protocol.InlineModule(data=base64.b64encode(build.c("tool")))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("pki"))


FLAGS = ("--back-off-initial", "0.1", "--termination-grace-seconds", "60")


@pytest.fixture(scope="module")
def runner(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunnerProcess]:
    process = RunnerProcess(tmp_path_factory.mktemp("runner"), certificates, "runner-a", FLAGS)
    process.start()
    yield process
    process.kill()
    process.close()


@pytest.fixture
def mortal(certificates: Certificates, tmp_path: Path) -> Iterator[RunnerProcess]:
    """A runner that a test may end."""
    process = RunnerProcess(tmp_path, certificates, "runner-b", FLAGS)
    process.start()
    yield process
    process.kill()
    process.close()


SHARED = protocol.VolumeMount(volume="shared", mount_path="/shared")


def put(
    module: protocol.InlineModule,
    *,
    sequence: int = 1,
    policy: RestartPolicy = RestartPolicy.NEVER,
    init: dict[str, tuple[str, ...]] | None = None,
    sidecars: dict[str, tuple[str, ...]] | None = None,
    containers: dict[str, tuple[str, ...]],
    grace: int = 0,
    resources: protocol.Resources | None = None,
    **kwargs: Any,
) -> protocol.WorkloadPut:
    """Containers by name and arguments; sidecars come before the init containers."""

    def common(name: str, args: tuple[str, ...]) -> dict[str, Any]:
        return {
            "name": name,
            "module": module,
            "args": args,
            "mounts": (SHARED,),
            "resources": resources or protocol.Resources(),
        }

    return protocol.WorkloadPut(
        epoch=1,
        sequence=sequence,
        template_hash="t1",
        workload=protocol.Workload(
            owner=protocol.Owner(kind="Pod", namespace="default", name="lives", uid="u"),
            restart_policy=policy,
            init_containers=(
                *(
                    protocol.InitContainer(restart_policy="Always", **common(*item))
                    for item in (sidecars or {}).items()
                ),
                *(protocol.InitContainer(**common(*item)) for item in (init or {}).items()),
            ),
            containers=tuple(protocol.Container(**common(*item)) for item in containers.items()),
            volumes=(protocol.EmptyDirVolume(name="shared"),),
            termination_grace_period_seconds=grace,
            **kwargs,
        ),
    )


async def until(client: RunnerClient, holds: Callable[[WorkloadStatus], bool], workload_id: str) -> WorkloadStatus:
    while not holds(status := await client.get(workload_id)):
        await asyncio.sleep(0.02)
    return status


def ended(status: WorkloadStatus) -> bool:
    return status.phase is Phase.ENDED


async def log(client: RunnerClient, container: str, workload_id: str) -> str:
    async with client.log(workload_id, container, protocol.LogOptions()) as pieces:
        return b"".join([piece async for piece in pieces]).decode()


def test_init_containers_prepare_and_sidecars_accompany_what_the_workload_is_for(
    runner: RunnerProcess, certificates: Certificates, tool: protocol.InlineModule
) -> None:
    async def work(client: RunnerClient) -> None:
        body = put(
            tool,
            sidecars={"side": ("await", "/shared/never", "written")},
            init={"first": ("create", "/shared/prepared", "by the first"), "second": ("read", "/shared/prepared")},
            containers={"main": ("read", "/shared/prepared"), "other": ("exit", "0")},
        )
        await client.put("order", body)
        status = await until(client, ended, "order")
        assert summary(status) == "side=Error:137 first=Completed second=Completed main=Completed other=Completed"
        assert [await log(client, name, "order") for name in ("side", "second", "main")] == [
            "awaiting\n",
            "by the first",
            "by the first",
        ]
        starts = {
            each.name: each.state.started_at
            for each in (*status.init_containers, *status.containers)
            if isinstance(each.state, protocol.Terminated) and each.state.started_at
        }
        assert starts["side"] < starts["first"] < starts["second"] < min(starts["main"], starts["other"])

    talk(runner, certificates, work)


def test_an_init_container_that_fails_is_retried_or_fails_the_workload(
    runner: RunnerProcess, certificates: Certificates, tool: protocol.InlineModule
) -> None:
    async def work(client: RunnerClient) -> None:
        never = put(tool, init={"init": ("exit", "7")}, containers={"main": ("exit", "0")})
        again = put(
            tool, policy=RestartPolicy.ON_FAILURE, init={"init": ("exit", "7")}, containers={"main": ("exit", "0")}
        )
        await client.put("never", never)
        await client.put("again", again)
        assert summary(await until(client, ended, "never")) == "init=Error:7 main=PodInitializing"
        status = await until(client, lambda status: status.init_containers[0].restart_count >= 2, "again")
        assert state(status.containers[0]) == "PodInitializing"

    talk(runner, certificates, work)


def test_a_deadline_ends_what_runs(
    runner: RunnerProcess, certificates: Certificates, tool: protocol.InlineModule
) -> None:
    async def work(client: RunnerClient) -> None:
        deadline = datetime.now(UTC) + timedelta(seconds=1)
        always = RestartPolicy.ALWAYS
        await client.put("late", put(tool, policy=always, containers={"main": ("wait",)}, deadline=deadline))
        status = await until(client, ended, "late")
        assert status.failure is not None
        assert status.failure.reason == "DeadlineExceeded"
        assert datetime.now(UTC) >= deadline

    talk(runner, certificates, work)


def test_memory_that_is_refused_is_told_as_a_kubelet_tells_it(
    runner: RunnerProcess, certificates: Certificates, tool: protocol.InlineModule
) -> None:
    async def work(client: RunnerClient) -> None:
        resources = protocol.Resources(memory_limit_bytes=16 << 20)
        await client.put("large", put(tool, containers={"main": ("grow", "64", "3")}, resources=resources))
        status = await until(client, ended, "large")
        found = status.containers[0].state
        assert isinstance(found, protocol.Terminated)
        assert (found.exit_code, found.reason) in ((137, "OOMKilled"), (3, "OOMKilled"))

    talk(runner, certificates, work)


def test_sigterm_lets_guests_end_within_their_grace_and_the_next_runner_knows(
    mortal: RunnerProcess, certificates: Certificates, tool: protocol.InlineModule
) -> None:
    """One ends by itself meanwhile, one has no grace, one has ended before."""
    bodies = {
        "ending": put(tool, containers={"main": ("await", "/shared/file", "end")}, grace=60),
        "waiting": put(tool, containers={"main": ("wait",)}),
        "over": put(tool, containers={"main": ("exit", "4")}),
    }

    async def begin(client: RunnerClient) -> None:
        for workload_id, body in bodies.items():
            await client.put(workload_id, body)
        await until(client, ended, "over")
        for workload_id in ("ending", "waiting"):
            await until(client, lambda status: summary(status) == "main=Running", workload_id)

    talk(mortal, certificates, begin)
    process = mortal.process
    assert process is not None
    (shared,) = mortal.state.glob("volumes/ending/**/shared/folder")
    process.signal(signal.SIGTERM)
    assert wait_for(lambda: not healthy(f"{mortal.health_url}/readyz"), timeout_seconds=60)
    (shared / "file").write_text("end")
    assert wait_for(lambda: not process.running, timeout_seconds=60)
    mortal.stop()
    mortal.start()

    async def go_on(client: RunnerClient) -> None:
        found = {}
        for workload_id, body in bodies.items():
            await client.put(workload_id, body)
            found[workload_id] = summary(await until(client, ended, workload_id))
        assert found == {"ending": "main=Completed", "waiting": "main=RunnerLost:137", "over": "main=Error:4"}

    talk(mortal, certificates, go_on)


def test_after_sigkill_what_ended_stays_and_what_ran_runs_again_with_all_that_prepares_it(
    mortal: RunnerProcess, certificates: Certificates, tool: protocol.InlineModule
) -> None:
    bodies = {
        "always": put(
            tool,
            policy=RestartPolicy.ALWAYS,
            init={"init": ("create", "/shared/prepared", "anew")},
            containers={"main": ("await", "/shared/prepared", "never")},
        ),
        "never": put(tool, containers={"main": ("wait",)}),
        "over": put(tool, policy=RestartPolicy.ON_FAILURE, containers={"main": ("exit", "0")}),
    }

    async def begin(client: RunnerClient) -> None:
        for workload_id, body in bodies.items():
            await client.put(workload_id, body)
        await until(client, ended, "over")
        await until(client, lambda status: summary(status) == "init=Completed main=Running", "always")
        await until(client, lambda status: summary(status) == "main=Running", "never")

    talk(mortal, certificates, begin)
    mortal.kill()
    mortal.start()

    async def go_on(client: RunnerClient) -> None:
        for workload_id, body in bodies.items():
            await client.put(workload_id, body)
        assert summary(await until(client, ended, "over")) == "main=Completed"
        assert summary(await until(client, ended, "never")) == "main=RunnerLost:137"
        await until(client, lambda status: summary(status) == "init=Completed|1 main=Running|1", "always")

    talk(mortal, certificates, go_on)
