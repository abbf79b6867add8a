"""One workload's life: its volumes, the order of its containers, and their common end.

`put`, `stop` and `fail` only change what should be. `_advance` brings it about, step by step: it is called after every
change, looks at what is, and does what is due (`order.py` says what that is). A workload that just runs has no task and no
timer of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime

from wherry_runner import protocol
from wherry_runner.journal.journals import Journal
from wherry_runner.lives.container import CREATING, INITIALIZING, ContainerLife
from wherry_runner.lives.order import Role, resume, to_begin, to_end
from wherry_runner.lives.packed import Packed
from wherry_runner.lives.surroundings import Room
from wherry_runner.protocol import Failure, Phase, RestartPolicy
from wherry_runner.volumes.empty_dir import limit_in_memory

log = logging.getLogger(__name__)

DEADLINE_EXCEEDED = Failure(
    reason="DeadlineExceeded", message="Pod was active on the node longer than the specified deadline"
)
"""Words of the kubelet: pkg/kubelet/active_deadline.go."""

EVICTED = "Evicted"
"""The kubelet's word for what it ended because something ran out: pkg/kubelet/eviction."""

MAX_SECONDS = 10 * 365 * 24 * 3600
"""No clock is set for longer."""


class WorkloadLife:
    """A workload from its first PUT to its DELETE; its containers' `Surroundings`."""

    __slots__ = (
        "_accepted_at",
        "_alarm",
        "_containers",
        "_content_revision",
        "_deadline",
        "_due",
        "_end_at",
        "_failing",
        "_failure",
        "_grace_seconds",
        "_held",
        "_next",
        "_on_change",
        "_phase",
        "_policy",
        "_shared",
        "_stay",
        "_stopped",
        "_template_hash",
        "_volumes_written",
        "id",
        "journal",
        "order",
        "owner",
        "room",
    )

    def __init__(
        self,
        workload_id: str,
        put: protocol.WorkloadPut,
        *,
        room: Room,
        journal: Journal,
        on_change: Callable[[str], None],
    ) -> None:
        """`on_change` is told the id. Raises VolumeError, TooManyLogs, OSError; then nothing is left of it."""
        self.id = workload_id
        self.room = room
        self.journal = journal
        self._on_change = on_change
        self._accepted_at = datetime.now(UTC)
        self._phase = Phase.ACTIVE
        self._failure = journal.failure
        self._failing: asyncio.Task[None] | None = None
        self._stopped = False
        self._policy = put.workload.restart_policy
        self._containers: list[ContainerLife] = []
        """In the order of the spec, init containers first."""
        self._next: protocol.Workload | None = None
        """The template that begins once what runs has ended; `_stay`: the containers that are then not run again."""
        self._stay: Collection[str] = ()
        self._end_at: float | None = None
        """When what still runs is killed, once it is to end; by the event loop's clock."""
        self._alarm: asyncio.TimerHandle | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._due = False
        self._held = False
        self._shared: Packed[_Shared] | None = None
        self._volumes_written = False
        try:
            self._write_volumes(put.workload)
            journal.adopt(put.history)
            journal.accepted(put.epoch, put.sequence)
            self._take(put)
            self._resume(put.workload)
        except BaseException:
            self._give_back()
            raise

    # --- what is known ------------------------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """Where it is in its life."""
        return self._phase

    @property
    def ended(self) -> bool:
        """Nothing runs and nothing will."""
        return self._phase is Phase.ENDED

    @property
    def status(self) -> protocol.WorkloadStatus:
        """The workload as it is."""
        epoch, sequence = self.order
        return protocol.WorkloadStatus(
            id=self.id,
            owner=self.owner,
            phase=self._phase,
            epoch=epoch,
            sequence=sequence,
            template_hash=self._template_hash,
            content_revision=self._content_revision,
            accepted_at=self._accepted_at,
            init_containers=tuple(each.status for each in self._containers if each.role is not Role.MAIN),
            containers=tuple(each.status for each in self._containers if each.role is Role.MAIN),
            failure=self._failure,
            stopped=self.stopped,
        )

    @property
    def stopped(self) -> bool:
        """It was told to stop before it had ended by itself. One that ends well all the same has ended by itself."""
        if not self._stopped or self._failure is not None or self._failing is not None:
            return False
        if self._policy is RestartPolicy.ALWAYS or not self.ended:
            return True
        return not all(each.succeeded for each in self._containers if each.role is Role.MAIN)

    @property
    def beginning(self) -> bool:
        """Nothing has come of it as yet: with a module that is there, that takes milliseconds."""
        return self._phase is Phase.ACTIVE and self._failure is None and all(each.untold for each in self._containers)

    @property
    def containers(self) -> Sequence[ContainerLife]:
        """All containers, init containers first."""
        return self._containers

    @property
    def serves(self) -> bool:
        """Clients reach something of it."""
        return any(container.serves for container in self._containers)

    def container(self, name: str) -> ContainerLife | None:
        """A container by its name."""
        return next((each for each in self._containers if each.name == name), None)

    @property
    def template_hash(self) -> str:
        """Of the newest accepted change."""
        return self._template_hash

    @property
    def volumes(self) -> tuple[protocol.Volume, ...]:
        """What can be mounted; without the files, where they are needed no more."""
        return self._shared.unpack().volumes if self._shared is not None else ()

    @property
    def grace_seconds(self) -> float:
        """For what it has to end by itself."""
        return self._grace_seconds

    @property
    def credentials(self) -> tuple[protocol.RegistryCredential, ...]:
        """For pulls."""
        return self._shared.unpack().credentials if self._shared is not None else ()

    # --- what is wanted -----------------------------------------------------------------------------------------------

    def put(self, put: protocol.WorkloadPut) -> None:
        """Take a newer change. Raises VolumeError, OSError; then it was not taken."""
        another = put.template_hash != self._template_hash
        if self.ended:
            self.journal.accepted(put.epoch, put.sequence)
            self._name(put)
            return self.on_change()
        if another or put.content_revision != self._content_revision:
            self._write_volumes(put.workload)
        self.journal.accepted(put.epoch, put.sequence)
        self._take(put)
        if self._next is not None:
            self._next = put.workload  # of several that come while the old one ends, the newest
        elif not another:
            for spec in _specs(put.workload):
                if (container := self.container(spec.name)) is not None:
                    container.update(spec)
        elif self._end_at is None:
            self._next = put.workload
            self._stay = {container.name for container in self._containers if container.finished}
            self._end(self._grace_seconds)
        self.on_change()

    def stop(self, *, epoch: int, sequence: int, grace_seconds: float) -> None:
        """Start nothing more, and kill what still runs after the grace period. Again: a shorter period counts."""
        self.order = (epoch, sequence)
        try:
            self.journal.accepted(epoch, sequence, stop=True)
        except OSError as error:
            log.error("workload %s: its end is not journaled: %s", self.id, error)  # it must stop all the same
        self._next = None
        self._stopped = True
        if self._end(grace_seconds) or self._phase is Phase.ACTIVE:
            self._phase = Phase.STOPPING
            self.on_change()

    def fail(self, failure: Failure, *, grace_seconds: float = 0.0) -> None:
        """End it as a whole, for a reason that no container has; it never runs again. Once is enough."""
        if self._failing is None and self._failure is None and not self.ended:
            self._failing = asyncio.get_running_loop().create_task(self._fail(failure, grace_seconds))

    async def close(self, grace_seconds: float) -> None:
        """The runner ends: start nothing more. What runs may end by itself within its grace period, or so long; then it is
        broken off, and not journaled as ended (design §3.8)."""
        self._held = True
        for container in self._containers:
            container.hold()
        seconds = min(self._grace_seconds, grace_seconds)
        running = [asyncio.ensure_future(each.ended()) for each in self._containers if each.running]
        try:
            if running and seconds > 0:
                for container in self._containers:
                    container.drain()
                await asyncio.wait(running, timeout=seconds)
        finally:
            for waiting in running:
                waiting.cancel()
        for container in self._containers:
            await container.abandon()
        if self._failing is not None:
            await asyncio.wait([self._failing])
        self._silence()

    def forget(self) -> None:
        """It has ended, and nobody asks for it any more: its logs go."""
        self.room.logs.retire(self.id)
        self._give_back()

    # --- what its containers tell -------------------------------------------------------------------------------------

    def on_change(self) -> None:
        """Something is not as it was: tell it, and do what is due."""
        self._on_change(self.id)
        self._schedule()

    def on_error(self) -> None:
        """A container's life ended by an error of ours: so does the workload."""
        self._next = None
        self._end(0.0)

    # --- step by step -------------------------------------------------------------------------------------------------

    def _schedule(self) -> None:
        """Not at once: what called us is to finish first, and several changes are one."""
        if not self._due and not self.ended:
            self._due = True
            asyncio.get_running_loop().call_soon(self._run_due)

    def _run_due(self) -> None:
        self._due = False
        try:
            self._advance()
        except Exception:
            # A bug here must not take the other workloads along, and must be seen.
            log.exception("workload %s: its life ended by an error of ours", self.id)
            for container in self._containers:
                container.stop()
                container.kill()
            self._finish()

    def _advance(self) -> None:
        if self.ended:
            return
        if self._end_at is None:
            beginning = to_begin(self._containers)
            if beginning is not None:
                if not self._held and self._failing is None:
                    for container in beginning:
                        container.start()
                return
            # Only sidecars are left, if anything is.
            self._end(self._grace_seconds)
        assert self._end_at is not None
        ending = to_end(self._containers)
        if not ending:
            if self._next is not None:
                if not self._held:
                    self._replace(self._next)
            elif self._failing is None:
                self._finish()
        elif asyncio.get_running_loop().time() >= self._end_at:
            for container in ending:
                container.expire()
        else:
            for container in ending:
                container.drain()

    def _end(self, seconds: float) -> bool:
        """Begin to end what runs, within so many seconds; whether that is sooner than before."""
        loop = asyncio.get_running_loop()
        end_at = loop.time() + min(max(seconds, 0.0), MAX_SECONDS)
        sooner = self._end_at is None or end_at < self._end_at
        if sooner:
            self._end_at = end_at
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm = loop.call_at(end_at, self._schedule)
        for container in self._containers:
            container.stop()
        self._schedule()
        return sooner

    async def _fail(self, failure: Failure, grace_seconds: float) -> None:
        try:
            self.journal.failed(failure)
            await self.journal.synced()
        except OSError as error:
            log.error("workload %s: its failure is not journaled: %s", self.id, error)
        self._failing = None
        if self.ended:
            return
        self._failure = failure
        self._next = None
        if self._phase is Phase.ACTIVE:
            self._phase = Phase.STOPPING
        self._end(grace_seconds)
        self.on_change()

    def _finish(self) -> None:
        """Nothing runs any more: what it had to read, Secrets above all, is kept no longer."""
        self._phase = Phase.ENDED
        self._silence()
        self._shared = self._next = None
        self._drop_volumes()
        self._on_change(self.id)

    def _silence(self) -> None:
        for timer in (self._alarm, self._deadline):
            if timer is not None:
                timer.cancel()
        self._alarm = self._deadline = None

    def _drop_volumes(self) -> None:
        if self._volumes_written:
            self._volumes_written = False
            self.room.volumes.drop(self.id)

    def _give_back(self) -> None:
        self._silence()
        self._drop_volumes()
        for container in self._containers:
            self.room.log_slots.give_back(container.log_slot)
        self._containers = []

    # --- templates ----------------------------------------------------------------------------------------------------

    def _resume(self, workload: protocol.Workload) -> None:
        """Begin, or go on from what is journaled. Raises TooManyLogs."""
        resumption = resume(workload, self.journal.past)
        over = resumption.over or self._failure is not None
        self._begin(workload, stay=self.journal.past if over else resumption.stay)
        if over:
            self._end(0.0)
        if self._failure is None and resumption.failure is not None:
            self.fail(resumption.failure)
        self._schedule()

    def _replace(self, workload: protocol.Workload) -> None:
        """Another template: the containers of the old one have ended, those of the new one begin with the next restart count.

        As on a kubelet, that is no matter of the restart policy; only what had ended by itself stays ended.
        """
        self._next = None
        self._end_at = None
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        self._begin(workload, stay=self._stay)
        self.on_change()

    def _begin(self, workload: protocol.Workload, *, stay: Collection[str]) -> None:
        """Make the containers of a template. Raises TooManyLogs."""
        specs = list(_specs(workload))
        slots = {container.name: container.log_slot for container in self._containers}
        for name in slots.keys() - {spec.name for spec in specs}:
            self.room.logs.retire(self.id, name)
            self.room.log_slots.give_back(slots[name])
        waiting = INITIALIZING if workload.init_containers else CREATING
        self._containers = []
        for spec in specs:
            slot = slots.get(spec.name)
            if slot is None:
                slot = self.room.log_slots.take(self.room.logs.of(self.id, spec.name))
            self._containers.append(
                ContainerLife(
                    spec,
                    self,
                    restart_policy=workload.restart_policy,
                    waiting=waiting,
                    log_slot=slot,
                    stay=spec.name in stay,
                )
            )

    def _take(self, put: protocol.WorkloadPut) -> None:
        """Keep of a change what its containers' specs don't say."""
        workload = put.workload
        self._name(put)
        self.owner = workload.owner
        self._policy = workload.restart_policy
        self._grace_seconds = float(min(workload.termination_grace_period_seconds, MAX_SECONDS))
        shared = _Shared(volumes=_lean(workload), credentials=workload.credentials)
        self._shared = Packed(shared) if shared.volumes or shared.credentials else None
        self._set_deadline(workload.deadline)

    def _name(self, put: protocol.WorkloadPut) -> None:
        self.order = (put.epoch, put.sequence)
        self._template_hash, self._content_revision = put.template_hash, put.content_revision

    def _set_deadline(self, deadline: datetime | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if deadline is None:
            return
        if deadline.tzinfo is None:
            deadline = deadline.replace(tzinfo=UTC)
        seconds = min((deadline - datetime.now(UTC)).total_seconds(), MAX_SECONDS)
        if seconds > 0:
            self._deadline = asyncio.get_running_loop().call_later(seconds, self._exceed_deadline)
        else:
            self._exceed_deadline()

    def _exceed_deadline(self) -> None:
        self.fail(DEADLINE_EXCEEDED, grace_seconds=self._grace_seconds)

    def _write_volumes(self, workload: protocol.Workload) -> None:
        """Raises VolumeError."""
        if workload.volumes:
            limit = limit_in_memory(workload, default_limit_bytes=self.room.defaults.memory_limit_bytes)
            self._volumes_written = True
            self.room.volumes.write(self.id, workload.volumes, limit_in_memory_bytes=limit)


class _Shared(protocol.Wire):
    """What a workload's containers share, as it is kept."""

    volumes: tuple[protocol.Volume, ...] = ()
    credentials: tuple[protocol.RegistryCredential, ...] = ()


def _specs(workload: protocol.Workload) -> Iterator[protocol.Container]:
    yield from workload.init_containers
    yield from workload.containers


def _lean(workload: protocol.Workload) -> tuple[protocol.Volume, ...]:
    """The volumes without their files, which are written now; a mount with a subPath needs them anew at each start."""
    needed = {mount.volume for spec in _specs(workload) for mount in spec.mounts if mount.sub_path}
    return tuple(
        volume.model_copy(update={"files": ()})
        if isinstance(volume, protocol.FilesVolume) and volume.name not in needed
        else volume
        for volume in workload.volumes
    )
