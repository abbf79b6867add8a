"""A runner's supervisor on a scripted engine, and the words in which tests speak of it."""

from __future__ import annotations

import asyncio
import base64
import os
import resource
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.support.fake_engine import FakeEngine, FakeModules
from wherry_runner.execution.engine import HttpBounds
from wherry_runner.journal.journals import Journals
from wherry_runner.lives.backoff import BackOffSettings
from wherry_runner.lives.container import ContainerLife
from wherry_runner.lives.listeners import Listeners, PortRange
from wherry_runner.lives.supervisor import Refused, Supervisor
from wherry_runner.lives.surroundings import Room
from wherry_runner.logs.allowances import Allowances
from wherry_runner.logs.budget import LogBudget
from wherry_runner.logs.folders import LogFolders
from wherry_runner.metrics import Metrics
from wherry_runner.protocol import (
    Container,
    ContainerStatus,
    EnvironmentVariable,
    FilesVolume,
    HeartbeatEvent,
    History,
    ImageModule,
    InitContainer,
    Owner,
    Phase,
    RefusalReason,
    RestartPolicy,
    RunnerInfo,
    Running,
    StatusEvent,
    SyncedEvent,
    Terminated,
    Volume,
    VolumeFile,
    Waiting,
    Workload,
    WorkloadPut,
    WorkloadStatus,
)
from wherry_runner.resources.admission import Admission, Amounts
from wherry_runner.resources.limits import LimitDefaults
from wherry_runner.volumes import Volumes

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

TOLD = BackOffSettings(initial=0.5, maximum=0.5, settle=0, error_shown=0)
"""What waits is said to wait, on a busy machine too: a wait that is over when it is looked at is not told."""

STUCK = BackOffSettings(initial=10, maximum=300, settle=0, error_shown=0)
"""What waits waits for longer than the test lives."""

ID = "w1"
ALWAYS, ON_FAILURE, NEVER = RestartPolicy.ALWAYS, RestartPolicy.ON_FAILURE, RestartPolicy.NEVER


PLENTY = Amounts(
    memory_bytes=1 << 40, millicores=10**9, workloads=10**6, processes=10**6, descriptors=10**6, logs=10**6
)


@dataclass
class Runner:
    """A runner's supervisor, and what it works with. Another one on the same folder is the next process."""

    folder: Path
    back_off: BackOffSettings = AT_ONCE
    engine: FakeEngine = field(default_factory=FakeEngine)
    modules: FakeModules = field(default_factory=FakeModules)
    max_workloads: int = 3
    offered: Amounts = PLENTY
    defaults: LimitDefaults = field(default_factory=LimitDefaults)
    sync: Callable[[int], None] = os.fdatasync
    """Brings the journal to the disk."""
    supervisor: Supervisor = field(init=False)
    volumes: Volumes = field(init=False)
    admission: Admission = field(init=False)
    journals: Journals = field(init=False)
    log_budget: LogBudget = field(init=False)
    room: Room = field(init=False)

    def __post_init__(self) -> None:
        (self.folder / "memory").mkdir(parents=True, exist_ok=True)
        self.volumes = Volumes(self.folder / "volumes", self.folder / "memory")
        self.volumes.clear()
        self.admission = Admission(
            self.offered,
            default_memory_request_bytes=self.defaults.memory_request_bytes,
            volume_bytes=lambda _: 0,
        )
        self.journals = Journals(self.folder / "journal", sync=self.sync)
        self._allowances = Allowances(slots=1000, default_bytes=1 << 20)
        self.log_budget = LogBudget(self._allowances, budget_bytes=1 << 40, file_bytes=1 << 20)
        self.room = Room(
            engine=self.engine,
            modules=self.modules,
            volumes=self.volumes,
            logs=LogFolders(self.folder / "logs"),
            log_slots=self.log_budget,
            back_off=self.back_off,
            defaults=self.defaults,
            listeners=Listeners("127.0.0.1", PortRange(first=20_000, last=29_999)),
            http=HttpBounds(),
            metrics=Metrics(),
        )
        self.supervisor = Supervisor(
            room=self.room, journals=self.journals, admission=self.admission, max_workloads=self.max_workloads
        )
        _alive.append(self)

    def put(self, *, id: str = ID, **kwargs: Any) -> WorkloadStatus:
        return self.supervisor.put(id, put(**kwargs))

    def delete(
        self, *, sequence: int = 100, epoch: int = 1, grace: float = 30, id: str = ID, keep_ended: bool = False
    ) -> WorkloadStatus | None:
        return self.supervisor.delete(id, epoch=epoch, sequence=sequence, grace_seconds=grace, keep_ended=keep_ended)

    def life(self, name: str = "main", id: str = ID) -> ContainerLife:
        return self.supervisor.container(id, name)

    async def when(self, holds: Callable[[WorkloadStatus], bool], id: str = ID) -> WorkloadStatus:
        """The status as soon as this holds of it."""
        async for batch in self.supervisor.watch(INFO):
            for event in batch:
                if isinstance(event, StatusEvent) and event.status.id == id and holds(event.status):
                    return event.status
        raise AssertionError("the watch ended")

    async def ended(self, id: str = ID) -> WorkloadStatus:
        return await self.when(lambda status: status.phase is Phase.ENDED, id)

    async def told(self, text: str, id: str = ID) -> WorkloadStatus:
        """The status as soon as its containers are as `summary` says."""
        return await self.when(lambda status: summary(status) == text, id)

    async def running(self, restarts: int = 0, id: str = ID) -> WorkloadStatus:
        def holds(status: WorkloadStatus) -> bool:
            return all(isinstance(c.state, Running) and c.restart_count == restarts for c in status.containers)

        return await self.when(holds, id)

    async def waiting(self, reason: str, id: str = ID) -> WorkloadStatus:
        def holds(status: WorkloadStatus) -> bool:
            state = status.containers[0].state
            return isinstance(state, Waiting) and state.reason == reason

        return await self.when(holds, id)

    async def die(self, grace: float = 0) -> None:
        """The process ends, after this grace period; its guests die with it, and nobody journals their ends."""
        _alive.remove(self)
        await self.supervisor.close(grace)
        self.volumes.close()
        self._allowances.close()


_alive: list[Runner] = []
"""Those that a scenario left running: they end with it."""


def container(name: str = "main", **kwargs: Any) -> Container:
    return Container(**_container(name, kwargs))


def init(name: str, **kwargs: Any) -> InitContainer:
    return InitContainer(**_container(name, kwargs))


def sidecar(name: str, **kwargs: Any) -> InitContainer:
    return InitContainer(restart_policy="Always", **_container(name, kwargs))


def _container(name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    env = tuple(EnvironmentVariable(name=k, value=SecretStr(v)) for k, v in kwargs.pop("env", {}).items())
    return {"name": name, "module": ImageModule(reference="r.example/hello:v1"), "env": env, **kwargs}


def put(
    *,
    epoch: int = 1,
    sequence: int = 1,
    template: str = "t1",
    content: str = "c1",
    policy: RestartPolicy = ALWAYS,
    init: tuple[InitContainer, ...] = (),
    containers: tuple[Container, ...] = (),
    volumes: tuple[Volume, ...] = (),
    history: tuple[History, ...] = (),
    grace: int = 30,
    **kwargs: Any,
) -> WorkloadPut:
    return WorkloadPut(
        epoch=epoch,
        sequence=sequence,
        template_hash=template,
        content_revision=content,
        workload=Workload(
            owner=OWNER,
            init_containers=init,
            containers=containers or (container(),),
            volumes=volumes,
            restart_policy=policy,
            termination_grace_period_seconds=grace,
            **kwargs,
        ),
        history=history,
    )


def summary(status: WorkloadStatus) -> str:
    """What a workload's containers do, init containers first: `a=Completed b=Running|2 c=PodInitializing`."""
    return " ".join(f"{each.name}={state(each)}" for each in (*status.init_containers, *status.containers))


def state(status: ContainerStatus) -> str:
    """A container's state and how often it was restarted."""
    restarts = f"|{status.restart_count}" if status.restart_count else ""
    match status.state:
        case Waiting(reason=reason):
            return reason + restarts
        case Running():
            return "Running" + restarts
        case Terminated(exit_code=code, reason=reason):
            return (reason if code == 0 else f"{reason}:{code}") + restarts


def files(**contents: str) -> FilesVolume:
    return FilesVolume(
        name="v",
        files=tuple(VolumeFile(path=path, data=base64.b64encode(text.encode())) for path, text in contents.items()),
    )


def run(scenario: Awaitable[None], *, seconds: float = 60) -> None:
    """Play a scenario; what it waits for in vain fails it soon."""

    async def bounded() -> None:
        try:
            async with asyncio.timeout(seconds):
                await scenario
        finally:
            while _alive:
                await _alive[0].die()

    asyncio.run(bounded())


async def holds(condition: Callable[[], bool]) -> None:
    """Wait, a step of the event loop after the other: what is waited for is over soon."""
    while not condition():
        await asyncio.sleep(0)


async def told_leaving(runner: Runner) -> None:
    """Wait until who watches is told that the runner is about to end."""
    async for batch in runner.supervisor.watch(INFO):
        for event in batch:
            if isinstance(event, (HeartbeatEvent, SyncedEvent)):
                leaving = event.leaving if isinstance(event, HeartbeatEvent) else event.info.leaving
                if leaving:
                    return


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """As on a full disk: a write that goes beyond takes a part, the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def refusal(call: Callable[[], object]) -> RefusalReason:
    with pytest.raises(Refused) as caught:
        call()
    return caught.value.refusal.reason


def code(status: WorkloadStatus) -> int:
    state = status.containers[0].state
    assert isinstance(state, Terminated), state
    return state.exit_code
