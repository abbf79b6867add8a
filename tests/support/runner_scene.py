"""A runner's supervisor on a scripted engine, and the words in which tests speak of it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.support.fake_engine import FakeEngine, FakeModules
from wherry_runner.backoff import BackOffSettings
from wherry_runner.journal import Journals
from wherry_runner.protocol import (
    Container,
    EnvironmentVariable,
    History,
    ImageModule,
    Owner,
    Phase,
    RefusalReason,
    RestartPolicy,
    RunnerInfo,
    Running,
    StatusEvent,
    Terminated,
    Volume,
    VolumeFile,
    Waiting,
    Workload,
    WorkloadPut,
    WorkloadStatus,
)
from wherry_runner.supervisor import Refused, Supervisor
from wherry_runner.volumes import Volumes
from wherry_runner.workload import Room

OWNER = Owner(kind="Pod", namespace="boats", name="hello", uid="u-1")
INFO = RunnerInfo(
    runner="one",
    node="n",
    instance="1",
    wherry_version="0.1.0",
    engines=("fake",),
    cpu_millicores=1000,
    memory_bytes=1 << 30,
    max_workloads=3,
)
AT_ONCE = BackOffSettings(initial=0.001, maximum=0.002, settle=0, error_shown=0)
"""Everything that waits goes on at once."""

STUCK = BackOffSettings(initial=10, maximum=300, settle=0, error_shown=0)
"""What waits waits for longer than the test lives."""

ID = "w1"
ALWAYS, ON_FAILURE, NEVER = RestartPolicy.ALWAYS, RestartPolicy.ON_FAILURE, RestartPolicy.NEVER


@dataclass
class Runner:
    """A runner's supervisor, and what it works with. Another one on the same folder is the next process."""

    folder: Path
    back_off: BackOffSettings = AT_ONCE
    engine: FakeEngine = field(default_factory=FakeEngine)
    modules: FakeModules = field(default_factory=FakeModules)
    max_workloads: int = 3
    supervisor: Supervisor = field(init=False)
    volumes: Volumes = field(init=False)

    def __post_init__(self) -> None:
        (self.folder / "memory").mkdir(parents=True, exist_ok=True)
        self.volumes = Volumes(self.folder / "volumes", self.folder / "memory")
        self.volumes.clear()
        room = Room(
            engine=self.engine,
            modules=self.modules,
            volumes=self.volumes,
            logs_directory=self.folder / "logs",
            back_off=self.back_off,
        )
        self.supervisor = Supervisor(
            room=room, journals=Journals(self.folder / "journal"), max_workloads=self.max_workloads
        )

    def put(self, *, id: str = ID, **kwargs: Any) -> WorkloadStatus:
        return self.supervisor.put(id, put(**kwargs))

    def delete(self, *, sequence: int = 100, epoch: int = 1, grace: float = 30, id: str = ID) -> WorkloadStatus | None:
        return self.supervisor.delete(id, epoch=epoch, sequence=sequence, grace_seconds=grace)

    async def when(self, holds: Callable[[WorkloadStatus], bool], id: str = ID) -> WorkloadStatus:
        """The status as soon as this holds of it."""
        async for batch in self.supervisor.watch(INFO):
            for event in batch:
                if isinstance(event, StatusEvent) and event.status.id == id and holds(event.status):
                    return event.status
        raise AssertionError("the watch ended")

    async def ended(self, id: str = ID) -> WorkloadStatus:
        return await self.when(lambda status: status.phase is Phase.ENDED, id)

    async def running(self, restarts: int = 0, id: str = ID) -> WorkloadStatus:
        def holds(status: WorkloadStatus) -> bool:
            return all(isinstance(c.state, Running) and c.restart_count == restarts for c in status.containers)

        return await self.when(holds, id)

    async def waiting(self, reason: str, id: str = ID) -> WorkloadStatus:
        def holds(status: WorkloadStatus) -> bool:
            state = status.containers[0].state
            return isinstance(state, Waiting) and state.reason == reason

        return await self.when(holds, id)

    async def die(self) -> None:
        """The process ends; its guests die with it, and nobody journals their ends."""
        await self.supervisor.close()


def container(name: str = "main", **kwargs: Any) -> Container:
    env = tuple(EnvironmentVariable(name=k, value=SecretStr(v)) for k, v in kwargs.pop("env", {}).items())
    return Container(
        name=name, module=kwargs.pop("module", ImageModule(reference="r.example/hello:v1")), env=env, **kwargs
    )


def put(
    *,
    epoch: int = 1,
    sequence: int = 1,
    template: str = "t1",
    content: str = "c1",
    policy: RestartPolicy = ALWAYS,
    containers: tuple[Container, ...] = (),
    volumes: tuple[Volume, ...] = (),
    history: tuple[History, ...] = (),
    grace: int = 30,
) -> WorkloadPut:
    return WorkloadPut(
        epoch=epoch,
        sequence=sequence,
        template_hash=template,
        content_revision=content,
        workload=Workload(
            owner=OWNER,
            containers=containers or (container(),),
            volumes=volumes,
            restart_policy=policy,
            termination_grace_period_seconds=grace,
        ),
        history=history,
    )


def files(**contents: str) -> Volume:
    return Volume(
        name="v",
        files=tuple(VolumeFile(path=path, data=base64.b64encode(text.encode())) for path, text in contents.items()),
    )


def run(scenario: Awaitable[None]) -> None:
    """Play a scenario; what it waits for in vain fails it soon."""

    async def bounded() -> None:
        async with asyncio.timeout(10):
            await scenario

    asyncio.run(bounded())


async def holds(condition: Callable[[], bool]) -> None:
    """Wait, a step of the event loop after the other: what is waited for is over soon."""
    while not condition():
        await asyncio.sleep(0)


def refusal(call: Callable[[], object]) -> RefusalReason:
    with pytest.raises(Refused) as caught:
        call()
    return caught.value.refusal.reason


def code(status: WorkloadStatus) -> int:
    state = status.containers[0].state
    assert isinstance(state, Terminated), state
    return state.exit_code
