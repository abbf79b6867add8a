"""All workloads of a runner: which there are, which changes are accepted, and who is told of their states."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from wherry_runner import protocol
from wherry_runner.execution.engine import Guest
from wherry_runner.journal.journals import Journal, Journals
from wherry_runner.lives.check import Invalid, check, check_order
from wherry_runner.lives.container import ContainerLife
from wherry_runner.lives.order import ended_well
from wherry_runner.lives.surroundings import Room
from wherry_runner.lives.workload import EVICTED, WorkloadLife
from wherry_runner.logs.budget import TooManyLogs
from wherry_runner.protocol import Failure, Phase, Refusal, RefusalReason
from wherry_runner.resources.admission import Admission, NoRoom
from wherry_runner.volumes import VolumeError

log = logging.getLogger(__name__)

TOMBSTONES = 10_000
"""Deleted workloads whose order is remembered, so that a delayed PUT can't bring one back."""

BATCH = 100
"""Statuses in one step of a watch: what is told of the last is what is true when the reader has taken those before."""

BEGIN_SECONDS = 0.1
"""For so long the answer to a PUT waits for what comes of it: then it says Running, and needs no further word."""

LEAVE_LOOK_SECONDS = 0.1
"""How often it is looked at, at most, whether anything still serves: it is one look at each workload."""

WATCHED_SECONDS = 1.0
"""How late it is noticed, at most, that nobody watches any more."""

FORGET_AFTER_SECONDS = 24 * 3600.0
"""Counted from the first operator's watch: what no operator asked for by then was deleted while this runner was away."""


class Refused(Exception):
    """A request is not carried out."""

    def __init__(self, reason: RefusalReason, message: str, *, epoch: int | None = None) -> None:
        super().__init__(message)
        self.refusal = Refusal(reason=reason, message=message, epoch=epoch)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunningGuest:
    """A container that runs now."""

    workload_id: str
    container: str
    container_id: str
    started_at: datetime
    guest: Guest
    log_folder: Path
    request_bytes: int
    """Memory that is kept for it."""
    limit_bytes: int | None
    """Memory that it may use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tombstone:
    """What is remembered of a workload that was deleted."""

    order: tuple[int, int]
    runs: frozenset[str]
    """Ids of its containers' newest runs: an operator that died before it wrote down their end still tells of them."""


NO_TOMBSTONE = Tombstone(order=(0, 0), runs=frozenset())


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

    def __init__(self, *, room: Room, journals: Journals, admission: Admission, max_workloads: int) -> None:
        self._room = room
        self._journals = journals
        self._admission = admission
        self._max_workloads = max_workloads
        self._lives: dict[str, WorkloadLife] = {}
        self._tombstones: OrderedDict[str, Tombstone] = OrderedDict()
        self._subscriptions: set[Subscription] = set()
        self._beginning: dict[str, asyncio.Event] = {}
        """Workloads that have just been taken; whoever watches hears of them when something has come of it."""
        self._forgetting: asyncio.TimerHandle | None = None
        self._leaving = False
        self._stopping = False
        self._closed = False
        # Nobody will ask for the logs of what is not journaled any more.
        room.logs.retire_unless(journals.known)

    @property
    def leaving(self) -> bool:
        """It is about to end, and takes nothing new."""
        return self._leaving

    async def leave(self, seconds: float) -> None:
        """Tell who watches that the runner is about to end, and let what serves do so until they have taken it away, or for so
        many seconds. Where nobody watches nothing is waited for."""
        self._leaving = True
        for subscription in self._subscriptions:
            subscription.wake()
        now, changes = asyncio.get_running_loop().time, Subscription()
        until = now() + seconds
        self._subscriptions.add(changes)
        try:
            while (left := until - now()) > 0 and len(self._subscriptions) > 1 and self._serves():
                await changes.next(min(left, WATCHED_SECONDS))
                await asyncio.sleep(min(left, LEAVE_LOOK_SECONDS))
        finally:
            self._subscriptions.discard(changes)

    def _serves(self) -> bool:
        return any(life.serves for life in self._lives.values())

    async def close(self, grace_seconds: float = 0.0) -> None:
        """End all lives: nothing is started any more; what runs may end by itself within its own grace period, or so long.

        What does not is broken off and not journaled as ended: it runs again where the policy allows (design §3.8). The
        watch tells all of it, and ends after that.
        """
        self._stopping = True
        await asyncio.gather(*(life.close(grace_seconds) for life in self._lives.values()))
        if self._forgetting is not None:
            self._forgetting.cancel()
        self._closed = True
        for subscription in self._subscriptions:
            subscription.wake()
        await self._journals.close()
        self._room.logs.close()

    # --- changes ------------------------------------------------------------------------------------------------------

    async def begin(self, workload_id: str, put: protocol.WorkloadPut) -> protocol.WorkloadStatus:
        """As `put`, and wait a moment for what comes of a workload that is new. Raises Refused."""
        new = workload_id not in self._lives
        if new:
            self._beginning[workload_id] = event = asyncio.Event()
        try:
            status = self.put(workload_id, put)
            if not new or not self._is_beginning(workload_id):
                return status
            with suppress(TimeoutError):
                async with asyncio.timeout(BEGIN_SECONDS):
                    await event.wait()
        finally:
            if new and self._beginning.get(workload_id) is event:
                del self._beginning[workload_id]
                if event.is_set() or workload_id in self._lives:  # else it was refused, and nobody has heard of it
                    self._on_change(workload_id)
        life = self._lives.get(workload_id)
        return status if life is None else life.status

    def _is_beginning(self, workload_id: str) -> bool:
        life = self._lives.get(workload_id)
        return life is not None and life.beginning

    def put(self, workload_id: str, put: protocol.WorkloadPut) -> protocol.WorkloadStatus:
        """Bring a workload to this state. Raises Refused."""
        self._accept_epoch(put.epoch, put.sequence)
        life = self._lives.get(workload_id)
        order = (put.epoch, put.sequence)
        self._accept_order(workload_id, order, life)
        if life is None and (deleted := self._tombstones.get(workload_id)) is not None and deleted.order == order:
            raise Refused(RefusalReason.STALE_SEQUENCE, f"{order} deleted this workload")
        if self._stopping or (self._leaving and life is None):
            raise Refused(RefusalReason.STOPPING, "the runner is stopping")
        try:
            check(put)
            if life is None:
                life = self._begin(workload_id, put, order)
            elif order > life.order:
                self._change(life, put)
        except Invalid as error:
            raise Refused(RefusalReason.INVALID, str(error)) from error
        except VolumeError as error:
            raise Refused(RefusalReason.INVALID, str(error)) from error
        except (NoRoom, TooManyLogs) as error:
            raise Refused(RefusalReason.NO_ROOM, str(error)) from error
        except OSError as error:
            raise Refused(RefusalReason.INTERNAL, f"the runner's disk: {error.strerror}") from error
        return life.status

    def _begin(self, workload_id: str, put: protocol.WorkloadPut, order: tuple[int, int]) -> WorkloadLife:
        if len(self._lives) >= self._max_workloads:
            raise Refused(RefusalReason.TOO_LARGE, f"the runner has its maximum of {self._max_workloads} workloads")
        known = self._journals.known(workload_id)
        journal = self._journals.open(workload_id)
        if order >= journal.order and journal.stopped and not _ended_by_itself(put.workload, journal):
            # It was stopped before the runner's last process ended; what comes now is another life.
            self._bury(workload_id, journal.order)
            known, journal = False, self._journals.open(workload_id)
        buried = self._tombstones.get(workload_id, NO_TOMBSTONE).runs
        if any(item.container_id in buried for item in put.history):
            history = tuple(item for item in put.history if item.container_id not in buried)
            put = put.model_copy(update={"history": history})
        try:
            if order < journal.order:
                raise Refused(
                    RefusalReason.STALE_SEQUENCE, f"{order} is older than {journal.order}, which was accepted"
                )
            self._admission.admit(workload_id, put.workload)
            life = WorkloadLife(workload_id, put, room=self._room, journal=journal, on_change=self._on_change)
        except BaseException:
            self._admission.release(workload_id)
            if not known:
                self._journals.drop(workload_id)
            raise
        self._lives[workload_id] = life
        self._on_change(workload_id)
        return life

    def _change(self, life: WorkloadLife, put: protocol.WorkloadPut) -> None:
        if not life.ended:
            self._admission.admit(life.id, put.workload)
        life.put(put)

    def delete(
        self, workload_id: str, *, epoch: int, sequence: int, grace_seconds: float | None, keep_ended: bool = False
    ) -> protocol.WorkloadStatus | None:
        """Stop a workload, within its own grace period unless another is given; once it has ended, forget it: with `keep_ended`
        only if it did so because it was stopped. None: it is gone. Raises Refused."""
        if self._closed:
            raise Refused(RefusalReason.STOPPING, "the runner has stopped")
        self._accept_epoch(epoch, sequence)
        life = self._lives.get(workload_id)
        self._accept_order(workload_id, (epoch, sequence), life)
        if life is not None and not life.ended:
            seconds = life.grace_seconds if grace_seconds is None else grace_seconds
            life.stop(epoch=epoch, sequence=sequence, grace_seconds=seconds)
            return life.status
        if keep_ended and life is not None and not life.stopped:
            return life.status
        if keep_ended and life is None and self._ended_before(workload_id):
            return None  # it ended with the runner's last process: whoever asks for it again will hear how
        self._forget(workload_id, (epoch, sequence))
        return None

    def _ended_before(self, workload_id: str) -> bool:
        if not self._journals.known(workload_id):
            return False
        journal = self._journals.open(workload_id)
        ends = [found.terminated for found in journal.past.values()]
        return not journal.stopped and (journal.failure is not None or any(end is not None for end in ends))

    def evict(self, workload_id: str, message: str) -> bool:
        """End a workload at once because it took more than it may; it never runs again. Whether there was one to end."""
        life = self._lives.get(workload_id)
        if life is None or life.ended or self._closed:
            return False
        life.fail(Failure(reason=EVICTED, message=message))
        return True

    def _accept_epoch(self, epoch: int, sequence: int) -> None:
        try:
            check_order(epoch, sequence)
        except Invalid as error:
            raise Refused(RefusalReason.INVALID, str(error)) from error
        if epoch < self._journals.epoch:
            raise Refused(
                RefusalReason.STALE_EPOCH,
                f"epoch {epoch} is over: a leader of epoch {self._journals.epoch} has spoken",
                epoch=self._journals.epoch,
            )
        if epoch > self._journals.epoch:
            try:
                self._journals.raise_epoch(epoch)
            except OSError as error:
                raise Refused(RefusalReason.INTERNAL, f"the runner's disk: {error.strerror}") from error

    def _accept_order(self, workload_id: str, order: tuple[int, int], life: WorkloadLife | None) -> None:
        newest = life.order if life is not None else self._tombstones.get(workload_id, NO_TOMBSTONE).order
        if order < newest:
            raise Refused(RefusalReason.STALE_SEQUENCE, f"{order} is older than {newest}, which was accepted")

    def _forget(self, workload_id: str, order: tuple[int, int]) -> None:
        life = self._lives.pop(workload_id, None)
        if life is not None:
            life.forget()
        self._room.logs.retire(workload_id)
        self._admission.release(workload_id)
        self._bury(workload_id, order)
        if life is not None:
            self._on_change(workload_id)

    def _bury(self, workload_id: str, order: tuple[int, int]) -> None:
        """Forget a workload but for its order, and which runs were its own."""
        known = self._journals.known(workload_id)
        past = self._journals.open(workload_id).past if known else {}
        runs = frozenset(found.container_id for found in past.values() if found.ran)
        runs |= self._tombstones.get(workload_id, NO_TOMBSTONE).runs if not known else frozenset()
        self._journals.drop(workload_id)
        self._tombstones[workload_id] = Tombstone(order=order, runs=runs)
        self._tombstones.move_to_end(workload_id)
        while len(self._tombstones) > TOMBSTONES:
            self._tombstones.popitem(last=False)

    def forget_unclaimed(self) -> None:
        """Drop what is journaled of workloads that no operator asked for."""
        for workload_id in self._journals.workloads():
            if workload_id not in self._lives:
                self._journals.drop(workload_id)
                self._room.logs.retire(workload_id)

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

    def running_guests(self) -> Iterator[RunningGuest]:
        """All containers that run now."""
        for life in self._lives.values():
            for container in life.containers:
                if (run := container.run) is not None:
                    yield RunningGuest(
                        workload_id=life.id,
                        container=container.name,
                        container_id=run.container_id,
                        started_at=run.guest.started_at,
                        guest=run.guest,
                        log_folder=container.log_folder,
                        request_bytes=run.request_bytes,
                        limit_bytes=run.limit_bytes,
                    )

    def module_digests_in_use(self) -> set[str]:
        """`sha256:…` of all modules that run, or will run again."""
        return {
            digest
            for life in self._lives.values()
            for container in life.containers
            if (digest := container.module_digest)
        }

    def phases(self) -> Mapping[Phase, int]:
        """How many workloads are in which phase."""
        return Counter(life.phase for life in self._lives.values())

    async def watch(
        self, info: protocol.RunnerInfo, *, heartbeat: float = protocol.HEARTBEAT_SECONDS
    ) -> AsyncIterator[list[protocol.WatchEvent]]:
        """The snapshot, then changes, in batches; a batch waits for its reader, never the other way round."""
        if self._forgetting is None and not self._stopping:
            loop = asyncio.get_running_loop()
            self._forgetting = loop.call_later(FORGET_AFTER_SECONDS, self.forget_unclaimed)
        subscription = Subscription()
        self._subscriptions.add(subscription)
        try:
            for some in _in_batches(list(self._lives)):
                yield [protocol.StatusEvent(status=self._lives[each].status) for each in some if each in self._lives]
            told = self._leaving
            yield [protocol.SyncedEvent(info=info.model_copy(update={"leaving": told}))]
            last = False
            while not last:
                last = self._closed
                changed = await subscription.next(0.0 if last else heartbeat)
                for some in _in_batches(changed):
                    yield [self._event(workload_id) for workload_id in some]
                if told != self._leaving or (not changed and not self._closed):
                    told = self._leaving
                    yield [protocol.HeartbeatEvent(leaving=told)]
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

    def _on_change(self, workload_id: str) -> None:
        life = self._lives.get(workload_id)
        if life is not None and life.ended:
            self._admission.ended(workload_id)
        if (event := self._beginning.get(workload_id)) is not None:
            # The answer to the PUT tells of it, and comes first: what a watch says is never older.
            if not self._is_beginning(workload_id):
                event.set()
            return
        for subscription in self._subscriptions:
            subscription.mark(workload_id)


def _ended_by_itself(workload: protocol.Workload, journal: Journal) -> bool:
    return journal.failure is not None or ended_well(workload, journal.past)


def _in_batches(ids: list[str]) -> Iterator[list[str]]:
    """So many at a time that a reader has the first before the last are turned into JSON."""
    for start in range(0, len(ids), BATCH):
        yield ids[start : start + BATCH]
