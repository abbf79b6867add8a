"""Runners without a network: what the registry would know of them, and what their clients were asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import cast

from wherry_operator.clock import Clock
from wherry_operator.placement import NodeFacts
from wherry_operator.runners.client import RunnerClient
from wherry_operator.runners.delivery import Deliveries
from wherry_operator.runners.registry import RunnerRegistry, RunnerState
from wherry_runner import protocol
from wherry_runner.protocol import Phase, RunnerInfo, WorkloadPut, WorkloadStatus

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def status_of(
    workload_id: str,
    put: WorkloadPut,
    *,
    containers: tuple[protocol.ContainerStatus, ...] = (),
    phase: Phase = Phase.ACTIVE,
) -> WorkloadStatus:
    waiting = protocol.Waiting(reason="ContainerCreating")
    return WorkloadStatus(
        id=workload_id,
        owner=put.workload.owner,
        phase=phase,
        epoch=put.epoch,
        sequence=put.sequence,
        template_hash=put.template_hash,
        content_revision=put.content_revision,
        accepted_at=AT,
        containers=containers
        or tuple(protocol.ContainerStatus(name=item.name, state=waiting) for item in put.workload.containers),
    )


@dataclass
class FakeRunner:
    """One runner: its state in the registry, and what is done with its requests."""

    name: str
    max_workloads: int = 10
    memory_bytes: int = 1 << 30
    puts: list[tuple[str, WorkloadPut]] = field(default_factory=list)
    deletes: list[tuple[str, int | None]] = field(default_factory=list)
    orders: list[tuple[int, int]] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    stopped: set[str] = field(default_factory=set)
    on_delete: Callable[[str], None] | None = None
    """Instead of: it ends at once, and the watch has told so before the answer."""

    at_once: tuple[protocol.ContainerStatus, ...] = ()
    """How everything has ended before its PUT is answered."""

    def __post_init__(self) -> None:
        info = RunnerInfo(
            runner=self.name,
            node=f"node-{self.name}",
            address=f"10.0.1.{ord(self.name[0])}",
            instance="1",
            wherry_version="0.1.0",
            engines=("fake",),
            cpu_millicores=1000,
            memory_bytes=self.memory_bytes,
            max_workloads=self.max_workloads,
        )
        self.state = RunnerState(name=self.name, url=f"https://{self.name}", info=info, connected=True, synced=True)

    def says(self, workload_id: str, *containers: protocol.ContainerStatus, phase: Phase = Phase.ACTIVE) -> None:
        """The watch brings a workload's new status."""
        newest = next(put for name, put in reversed(self.puts) if name == workload_id)
        status = status_of(workload_id, newest, containers=containers, phase=phase)
        self.state.statuses[workload_id] = status.model_copy(update={"stopped": workload_id in self.stopped})

    def restart(self) -> None:
        """Another process: it knows of nothing that it was not told."""
        self.state.statuses.clear()

    def go_silent(self, since: float = 0.0) -> None:
        """From this moment on, in seconds of the test's clock."""
        self.state.connected = self.state.synced = False
        self.state.silent_since = since

    def leave(self) -> None:
        """It says that it is about to end."""
        self.state.leaving = True

    def come_back(self) -> None:
        self.state.connected = self.state.synced = True
        self.state.leaving = False
        self.state.silent_since = None

    async def put(self, workload_id: str, put: WorkloadPut) -> WorkloadStatus:
        self._order(put.epoch, put.sequence)
        self.puts.append((workload_id, put))
        self.stopped.discard(workload_id)
        status = status_of(workload_id, put)
        if self.at_once:
            status = status_of(workload_id, put, containers=self.at_once, phase=Phase.ENDED)
        self.state.statuses[workload_id] = status
        return status

    async def delete(
        self, workload_id: str, *, epoch: int, sequence: int, grace_seconds: int | None, keep_ended: bool = False
    ) -> WorkloadStatus | None:
        self._order(epoch, sequence)
        self.deletes.append((workload_id, grace_seconds))
        status = self.state.statuses.get(workload_id)
        if status is not None and status.phase is Phase.ENDED and keep_ended and not status.stopped:
            return status
        if status is None or status.phase is Phase.ENDED:
            self.state.statuses.pop(workload_id, None)
            return None
        if self.on_delete is not None:
            self.stopped.add(workload_id)
            self.on_delete(workload_id)
            return status.model_copy(update={"phase": Phase.STOPPING})
        del self.state.statuses[workload_id]
        return None

    def _order(self, epoch: int, sequence: int) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.orders.append((epoch, sequence))


class FakeRegistry:
    """The part of `RunnerRegistry` that others read."""

    def __init__(self, *runners: FakeRunner) -> None:
        self.runners = {runner.name: runner for runner in runners}
        self.told: list[tuple[str, str]] = []

    def states(self) -> tuple[RunnerState, ...]:
        return tuple(runner.state for runner in self.runners.values())

    def state(self, name: str) -> RunnerState | None:
        runner = self.runners.get(name)
        return runner.state if runner else None

    def client(self, name: str) -> RunnerClient | None:
        return cast("RunnerClient | None", self.runners.get(name))

    def instance(self, name: str) -> str:
        state = self.state(name)
        return state.info.instance if state is not None and state.info is not None else ""

    def answered(self, name: str, instance: str, status: WorkloadStatus) -> WorkloadStatus:
        """Nothing to note: what fake runners say is known at once."""
        return status

    def tell(self, name: str, workload_id: str) -> None:
        self.told.append((name, workload_id))

    def find(self, workload_id: str) -> list[tuple[str, WorkloadStatus]]:
        return [(state.name, status) for state in self.states() if (status := state.statuses.get(workload_id))]


class FakeTerm:
    """A term as leader; `advance` does as the test says."""

    def __init__(self, epoch: int = 3, lost: Exception | None = None) -> None:
        self.epoch = epoch
        self.lost = lost

    async def advance(self, beyond: int) -> int:
        if self.lost is not None:
            raise self.lost
        self.epoch = beyond + 1
        return self.epoch


class FakeNodes:
    """Nodes by their names; of others nothing is known."""

    def __init__(self) -> None:
        self.nodes: dict[str, NodeFacts] = {}

    def facts(self, name: str) -> NodeFacts:
        return self.nodes.get(name, NodeFacts.unknown(name))


def deliveries(
    registry: FakeRegistry,
    term: FakeTerm | None = None,
    *,
    nodes: FakeNodes | None = None,
    clock: Clock | None = None,
) -> Deliveries:
    """`clock`: without one no time passes."""
    still = clock or Clock(monotonic=lambda: 0.0)
    return Deliveries(cast("RunnerRegistry", registry), term or FakeTerm(), nodes=nodes or FakeNodes(), clock=still)
