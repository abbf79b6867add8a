"""One workload's life: its volumes, its containers side by side, and their common end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from wherry_runner import protocol
from wherry_runner.backoff import BackOffSettings
from wherry_runner.container import ContainerLife, ModuleSource, Surroundings, preopens
from wherry_runner.execution.engine import Engine
from wherry_runner.journal import Journal
from wherry_runner.volumes import Volumes

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Room:
    """What all workloads of a runner share."""

    engine: Engine
    modules: ModuleSource
    volumes: Volumes
    logs_directory: Path
    back_off: BackOffSettings


class WorkloadLife:
    """A workload from its first PUT to its DELETE.

    `put` and `stop` only change what should be; one task (`_live`) brings it about, so that two requests never race.
    """

    def __init__(
        self,
        workload_id: str,
        put: protocol.WorkloadPut,
        *,
        room: Room,
        journal: Journal,
        on_change: Callable[[], None],
    ) -> None:
        self.id = workload_id
        self._room = room
        self._journal = journal
        self._on_change = on_change
        self._put = put
        self._accepted_at = datetime.now(UTC)
        self._phase = protocol.Phase.ACTIVE
        self._deadline: float | None = None
        """When what still runs is killed, once it is to stop; monotonic."""
        self._changed = asyncio.Event()
        self._containers: dict[str, ContainerLife] = {}
        journal.adopt(put.history)
        self._begin()
        self._task = asyncio.create_task(self._live(), name=f"workload {workload_id}")

    @property
    def order(self) -> tuple[int, int]:
        """(epoch, sequence) of the newest accepted change."""
        return self._put.epoch, self._put.sequence

    @property
    def ended(self) -> bool:
        """Nothing runs and nothing will."""
        return self._phase is protocol.Phase.ENDED

    @property
    def status(self) -> protocol.WorkloadStatus:
        """The workload as it is."""
        put = self._put
        return protocol.WorkloadStatus(
            id=self.id,
            owner=put.workload.owner,
            phase=self._phase,
            epoch=put.epoch,
            sequence=put.sequence,
            template_hash=put.template_hash,
            content_revision=put.content_revision,
            accepted_at=self._accepted_at,
            containers=tuple(container.status for container in self._containers.values()),
        )

    def container(self, name: str) -> ContainerLife | None:
        """A container by its name."""
        return self._containers.get(name)

    def put(self, put: protocol.WorkloadPut) -> None:
        """Take a newer change. Raises VolumeError."""
        before = self._put
        if put.content_revision != before.content_revision and not self.ended:
            self._room.volumes.write(self.id, put.workload.volumes)
        self._journal.accepted(put.epoch, put.sequence)
        self._put = put
        if put.template_hash == before.template_hash:
            for spec in put.workload.containers:
                if (container := self._containers.get(spec.name)) is not None:
                    container.update(spec)
        elif self._phase is protocol.Phase.ACTIVE:
            self._changed.set()
        self._on_change()

    def stop(self, *, epoch: int, sequence: int, grace_seconds: float) -> None:
        """Start nothing more, and kill what still runs after the grace period. Again: a shorter period counts."""
        self._put = self._put.model_copy(update={"epoch": epoch, "sequence": sequence})
        try:
            self._journal.accepted(epoch, sequence)
        except OSError as error:
            log.error("workload %s: its end is not journaled: %s", self.id, error)  # it must stop all the same
        deadline = time.monotonic() + grace_seconds
        if self._deadline is not None and deadline >= self._deadline:
            return  # asked again: the period goes on, and nobody is told anew
        self._deadline = deadline
        if self._phase is protocol.Phase.ACTIVE:
            self._phase = protocol.Phase.STOPPING
        for container in self._containers.values():
            container.stop()
        self._changed.set()
        self._on_change()

    async def close(self) -> None:
        """Abandon the life: the runner ends. Guests are killed by the engine."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    # --- the one task -------------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        runs = self._start_tasks()
        try:
            while runs or self._changed.is_set():
                changed = asyncio.create_task(self._changed.wait())
                try:
                    await asyncio.wait([changed, *runs], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    changed.cancel()
                for run in runs:
                    if run.done() and (error := run.exception()) is not None:
                        raise error
                runs = [run for run in runs if not run.done()]
                if self._deadline is not None:
                    await self._end(runs, self._deadline)
                    break
                if self._changed.is_set():
                    self._changed.clear()
                    await self._replace(runs)
                    runs = self._start_tasks()
            self._finish()
        except asyncio.CancelledError:
            for run in runs:
                run.cancel()
            await asyncio.gather(*runs, return_exceptions=True)
            raise
        except Exception:
            # A bug here must not take the other workloads along, and must be seen.
            log.exception("workload %s: its life ended by an error of ours", self.id)
            await self._end([run for run in runs if not run.done()], time.monotonic())
            self._finish()

    def _finish(self) -> None:
        """Nothing runs any more: what it had to read, Secrets above all, is kept no longer."""
        self._phase = protocol.Phase.ENDED
        self._room.volumes.drop(self.id)
        self._on_change()

    def _begin(self, again: Collection[str] = ()) -> None:
        """Make the containers of the current spec. Raises VolumeError, KeyError."""
        workload = self._put.workload
        self._room.volumes.write(self.id, workload.volumes)
        paths = {volume.name: self._room.volumes.path(self.id, volume) for volume in workload.volumes}
        self._containers = {
            spec.name: ContainerLife(
                spec,
                Surroundings(
                    engine=self._room.engine,
                    modules=self._room.modules,
                    journal=self._journal,
                    back_off=self._room.back_off,
                    owner=workload.owner,
                    restart_policy=workload.restart_policy,
                    log_folder=self._room.logs_directory / self.id / spec.name,
                    mounts=preopens(spec, paths),
                    on_change=self._on_change,
                ),
                again=spec.name in again,
            )
            for spec in workload.containers
        }

    def _start_tasks(self) -> list[asyncio.Task[None]]:
        return [
            asyncio.create_task(container.run(), name=f"container {self.id}/{name}")
            for name, container in self._containers.items()
            if not container.finished
        ]

    async def _replace(self, runs: list[asyncio.Task[None]]) -> None:
        """Another template: the containers of the old one end, those of the new one begin with the next restart count.

        As on a kubelet, that is no matter of the restart policy; only what had ended by itself stays ended.
        """
        again = [name for name, container in self._containers.items() if not container.finished]
        await self._end(runs, time.monotonic() + self._put.workload.termination_grace_period_seconds)
        if self._deadline is None:
            self._changed.clear()  # what came meanwhile begins now
            self._begin(again)

    async def _end(self, runs: list[asyncio.Task[None]], latest: float) -> None:
        """End the containers by then, or by the deadline if that is earlier, also by one that is set meanwhile."""
        while runs:
            self._changed.clear()
            shortened = asyncio.create_task(self._changed.wait())
            deadline = latest if self._deadline is None else min(latest, self._deadline)
            ending = asyncio.create_task(self._end_containers(runs, deadline))
            await asyncio.wait([shortened, ending], return_when=asyncio.FIRST_COMPLETED)
            shortened.cancel()
            if ending.done():
                ending.result()
                return
            ending.cancel()

    async def _end_containers(self, runs: list[asyncio.Task[None]], deadline: float) -> None:
        for container in self._containers.values():
            container.stop()
        if runs:
            await asyncio.wait(runs, timeout=max(0.0, deadline - time.monotonic()))
        for container in self._containers.values():
            container.kill()
        if runs:
            # Not gather: its cancellation (a shorter grace period) would cancel the runs.
            await asyncio.wait(runs)
