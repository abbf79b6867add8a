"""All workloads of a runner: which there are, which changes are accepted, and who is told of their states."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import suppress

from wherry_runner import protocol
from wherry_runner.container import ContainerLife
from wherry_runner.journal import Journals
from wherry_runner.protocol import Refusal, RefusalReason
from wherry_runner.volumes import VolumeError
from wherry_runner.workload import Room, WorkloadLife

log = logging.getLogger(__name__)

TOMBSTONES = 10_000
"""Deleted workloads whose order is remembered, so that a delayed PUT can't bring one back."""


class Refused(Exception):
    """A request is not carried out."""

    def __init__(self, reason: RefusalReason, message: str, *, epoch: int | None = None) -> None:
        super().__init__(message)
        self.refusal = Refusal(reason=reason, message=message, epoch=epoch)


class Subscription:
    """One reader of the watch: the newest status of each workload that changed since it last looked."""

    def __init__(self) -> None:
        self._dirty: dict[str, None] = {}
        self._wake = asyncio.Event()

    def mark(self, workload_id: str) -> None:
        """Note a change."""
        self._dirty[workload_id] = None
        self._wake.set()

    def wake(self) -> None:
        """Let `next` return, whether there is a change or not."""
        self._wake.set()

    async def next(self, timeout: float) -> list[str]:
        """The ids that changed, oldest first; empty after `timeout` seconds without any."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._wake.wait()
        self._wake.clear()
        changed, self._dirty = list(self._dirty), {}
        return changed


class Supervisor:
    """The runner's state. One event loop; nothing here blocks for long."""

    def __init__(self, *, room: Room, journals: Journals, max_workloads: int) -> None:
        self._room = room
        self._journals = journals
        self._max_workloads = max_workloads
        self._lives: dict[str, WorkloadLife] = {}
        self._tombstones: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._subscriptions: set[Subscription] = set()
        self._stopping = False

    def drop_orphaned_logs(self) -> None:
        """Remove logs of workloads whose journal was forgotten: nobody will ask for them. Called once, at the start."""
        for folder in self._room.logs_directory.glob("*"):
            if not self._journals.known(folder.name):
                shutil.rmtree(folder, ignore_errors=True)

    async def close(self) -> None:
        """End all lives. What ran is not journaled as ended: it runs again where the policy allows (design §3.8)."""
        self._stopping = True
        for subscription in self._subscriptions:
            subscription.wake()
        await asyncio.gather(*(life.close() for life in self._lives.values()))

    # --- changes ------------------------------------------------------------------------------------------------------

    def put(self, workload_id: str, put: protocol.WorkloadPut) -> protocol.WorkloadStatus:
        """Bring a workload to this state. Raises Refused."""
        self._accept_epoch(put.epoch)
        life = self._lives.get(workload_id)
        order = (put.epoch, put.sequence)
        self._accept_order(workload_id, order, life)
        if life is None and self._tombstones.get(workload_id) == order:
            raise Refused(RefusalReason.STALE_SEQUENCE, f"{order} deleted this workload")
        if self._stopping:
            raise Refused(RefusalReason.STOPPING, "the runner is stopping")
        _check(put.workload)
        try:
            if life is not None:
                if order > life.order:
                    life.put(put)
                return life.status
            if len(self._lives) >= self._max_workloads:
                raise Refused(RefusalReason.TOO_LARGE, f"the runner has its maximum of {self._max_workloads} workloads")
            journal = self._journals.open(workload_id)
            if order < journal.order:
                raise Refused(
                    RefusalReason.STALE_SEQUENCE, f"{order} is older than {journal.order}, which was accepted"
                )
            journal.accepted(*order)
            life = WorkloadLife(
                workload_id, put, room=self._room, journal=journal, on_change=lambda: self._tell(workload_id)
            )
        except VolumeError as error:
            if life is None:
                self._room.volumes.drop(workload_id)
            raise Refused(RefusalReason.INVALID, str(error)) from error
        self._lives[workload_id] = life
        self._tell(workload_id)
        return life.status

    def delete(
        self, workload_id: str, *, epoch: int, sequence: int, grace_seconds: float
    ) -> protocol.WorkloadStatus | None:
        """Stop a workload; once it has ended, forget it. None: it is gone. Raises Refused."""
        self._accept_epoch(epoch)
        life = self._lives.get(workload_id)
        self._accept_order(workload_id, (epoch, sequence), life)
        if life is not None and not life.ended:
            life.stop(epoch=epoch, sequence=sequence, grace_seconds=grace_seconds)
            if not life.ended:
                return life.status
        self._forget(workload_id, (epoch, sequence))
        return None

    def _accept_epoch(self, epoch: int) -> None:
        if epoch < self._journals.epoch:
            raise Refused(
                RefusalReason.STALE_EPOCH,
                f"epoch {epoch} is over: a leader of epoch {self._journals.epoch} has spoken",
                epoch=self._journals.epoch,
            )
        if epoch > self._journals.epoch:
            self._journals.raise_epoch(epoch)

    def _accept_order(self, workload_id: str, order: tuple[int, int], life: WorkloadLife | None) -> None:
        newest = life.order if life is not None else self._tombstones.get(workload_id, (0, 0))
        if order < newest:
            raise Refused(RefusalReason.STALE_SEQUENCE, f"{order} is older than {newest}, which was accepted")

    def _forget(self, workload_id: str, order: tuple[int, int]) -> None:
        known = self._lives.pop(workload_id, None) is not None
        self._room.volumes.drop(workload_id)
        shutil.rmtree(self._room.logs_directory / workload_id, ignore_errors=True)
        self._journals.drop(workload_id)
        self._tombstones[workload_id] = order
        self._tombstones.move_to_end(workload_id)
        while len(self._tombstones) > TOMBSTONES:
            self._tombstones.popitem(last=False)
        if known:
            self._tell(workload_id)

    # --- what is true -------------------------------------------------------------------------------------------------

    def status(self, workload_id: str) -> protocol.WorkloadStatus:
        """One workload. Raises Refused (NotFound)."""
        return self._life(workload_id).status

    def container(self, workload_id: str, name: str) -> ContainerLife:
        """One container. Raises Refused (NotFound)."""
        container = self._life(workload_id).container(name)
        if container is None:
            raise Refused(RefusalReason.NOT_FOUND, f'workload "{workload_id}" has no container "{name}"')
        return container

    async def watch(
        self, info: protocol.RunnerInfo, *, heartbeat: float = protocol.HEARTBEAT_SECONDS
    ) -> AsyncIterator[list[protocol.WatchEvent]]:
        """The snapshot, then changes, in batches; a batch waits for its reader, never the other way round."""
        subscription = Subscription()
        self._subscriptions.add(subscription)
        try:
            for workload_id in list(self._lives):
                if (life := self._lives.get(workload_id)) is not None:
                    yield [protocol.StatusEvent(status=life.status)]
            yield [protocol.SyncedEvent(info=info)]
            quiet_since = time.monotonic()
            while not self._stopping:
                changed = await subscription.next(heartbeat)
                if changed:
                    yield [self._event(workload_id) for workload_id in changed]
                    quiet_since = time.monotonic()
                elif time.monotonic() - quiet_since >= heartbeat:
                    yield [protocol.HeartbeatEvent()]
                    quiet_since = time.monotonic()
        finally:
            self._subscriptions.discard(subscription)

    def _event(self, workload_id: str) -> protocol.StatusEvent | protocol.GoneEvent:
        life = self._lives.get(workload_id)
        return protocol.GoneEvent(id=workload_id) if life is None else protocol.StatusEvent(status=life.status)

    def _life(self, workload_id: str) -> WorkloadLife:
        life = self._lives.get(workload_id)
        if life is None:
            raise Refused(RefusalReason.NOT_FOUND, f'there is no workload "{workload_id}" here')
        return life

    def _tell(self, workload_id: str) -> None:
        for subscription in self._subscriptions:
            subscription.mark(workload_id)


def _check(workload: protocol.Workload) -> None:
    """What the types can't say. Raises Refused (Invalid)."""
    names = [container.name for container in workload.containers]
    if len(set(names)) != len(names):
        raise Refused(RefusalReason.INVALID, "two containers have the same name")
    volumes = [volume.name for volume in workload.volumes]
    if len(set(volumes)) != len(volumes):
        raise Refused(RefusalReason.INVALID, "two volumes have the same name")
    for container in workload.containers:
        paths = [mount.mount_path.rstrip("/") for mount in container.mounts]
        if len(set(paths)) != len(paths):
            raise Refused(RefusalReason.INVALID, f'container "{container.name}": two mounts have the same path')
        for mount in container.mounts:
            if mount.volume not in volumes:
                raise Refused(
                    RefusalReason.INVALID, f'container "{container.name}" mounts "{mount.volume}", which is no volume'
                )
            if mount.sub_path:
                raise Refused(
                    RefusalReason.INVALID,
                    f'container "{container.name}": subPath is not supported; mount the whole volume',
                )
            if not mount.mount_path.startswith("/") or "\0" in mount.mount_path:
                raise Refused(RefusalReason.INVALID, f'container "{container.name}": mountPath must be absolute')
        for text in (*container.command, *container.args, *(v.value.get_secret_value() for v in container.env)):
            if "\0" in text:
                raise Refused(
                    RefusalReason.INVALID, f'container "{container.name}": an argument or variable has a NUL byte'
                )
        for variable in container.env:
            if "=" in variable.name or "\0" in variable.name:
                raise Refused(
                    RefusalReason.INVALID, f'container "{container.name}": {variable.name!r} is no variable name'
                )
