"""One container's life: module, run, end, and whether it runs again.

    Waiting(ContainerCreating; Pulling, Compiling) → Waiting(ErrImagePull ⇄ ImagePullBackOff, CreateContainerError, …) → Running
      → Terminated → (restart policy) → Waiting(CrashLoopBackOff) → Running → …

Reasons and messages are the kubelet's. Each change of state is reported at once by `on_change`; an end is in the journal, and
on disk, before that. When a container begins and ends, its workload decides (`workload.py`, `order.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from wherry_runner import protocol
from wherry_runner.execution.engine import (
    KILLED_EXIT_CODE,
    Armed,
    CompiledModule,
    EngineLost,
    Guest,
    GuestExit,
    StartRefused,
    Variant,
)
from wherry_runner.journal.journals import NOTHING, Past
from wherry_runner.lives import idling, order, starting, words
from wherry_runner.lives.beside import Beside
from wherry_runner.lives.listeners import Listener, PortError
from wherry_runner.lives.order import Role
from wherry_runner.lives.pauses import Pauses
from wherry_runner.lives.shown import Shown
from wherry_runner.lives.starting import Plan
from wherry_runner.lives.surroundings import Surroundings
from wherry_runner.lives.wanted import Wanted
from wherry_runner.logs import folders as log_folders
from wherry_runner.modules.errors import ModuleError
from wherry_runner.modules.library import Progress
from wherry_runner.resources.admission import memory_request
from wherry_runner.volumes import VolumeError

log = logging.getLogger(__name__)

CREATING = protocol.Waiting(reason="ContainerCreating")
INITIALIZING = protocol.Waiting(reason="PodInitializing")
"""The kubelet's word for all containers of a Pod with init containers, until they run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A guest that runs now."""

    container_id: str
    guest: Guest
    request_bytes: int
    """Memory that is kept for it."""
    limit_bytes: int | None
    """Memory that it may use."""


class ContainerLife:
    """The state machine of one container, from `start` until it has `finished`.

    `stay`: what ran before is not run again, and is what it is. Without, a container that ran begins with its next run.
    """

    __slots__ = (
        "_armed",
        "_around",
        "_beside",
        "_container_id",
        "_digest",
        "_image",
        "_image_digest",
        "_pauses",
        "_planned",
        "_policy",
        "_restart_count",
        "_run",
        "_shown",
        "_task",
        "_wanted",
        "begun",
        "finished",
        "log_slot",
        "name",
        "role",
        "stdin_once",
    )

    def __init__(
        self,
        spec: protocol.Container,
        around: Surroundings,
        *,
        restart_policy: protocol.RestartPolicy,
        waiting: protocol.Waiting = CREATING,
        log_slot: int = 0,
        stay: bool = False,
    ) -> None:
        """`restart_policy` is the workload's, `waiting` what is said before the first run."""
        self.name = spec.name
        self.role = order.role(spec)
        self.stdin_once = spec.stdin and spec.stdin_once
        self.log_slot = log_slot
        self.begun = False
        """It has run since this life began."""
        self.finished = False
        """It does not run, and won't."""
        self._around = around
        self._policy = order.restart_policy(self.role, restart_policy)
        self._wanted = Wanted(spec)
        self._shown = Shown(waiting, around.on_change)
        self._pauses = Pauses(around.room.back_off, self._shown)
        self._image = self._wanted.image
        """Where the module comes from that it runs, or waits for; the digests are those of the newest that it had."""
        self._digest = ""
        self._image_digest = ""
        self._run: Run | None = None
        self._planned: Plan | None = None
        """The run that follows when a client comes, made ahead."""
        self._armed: Armed | None = None
        """The same, where the executor waits for the client."""
        self._beside = Beside(spec.name, around)
        self._task: asyncio.Task[None] | None = None
        past = around.journal.past.get(spec.name, NOTHING)
        self._restart_count = past.restart_count
        self._container_id = past.container_id
        if past.ran:
            self._take_up(past, stay=stay)

    # --- what is known ------------------------------------------------------------------------------------------------

    @property
    def status(self) -> protocol.ContainerStatus:
        """The container as it is."""
        shown, beside = self._shown, self._beside
        return protocol.ContainerStatus(
            name=self.name,
            state=shown.state,
            last_terminated=shown.last_terminated,
            container_id=self._container_id,
            restart_count=self._restart_count,
            ready=self.succeeded if self.role is Role.INIT else self._ready,
            started=self._started,
            port=beside.listener.port if beside.listener is not None else None,
            ports=beside.ports,
            idle=beside.idle and self._run is None,
            probe_failures=beside.probe_failures,
            hook_failures=beside.hook_failures,
            image=self._image,
            module_digest=self._digest,
            image_digest=self._image_digest,
        )

    @property
    def _ready(self) -> bool:
        """Of a command: it runs. Of a server: it takes connections."""
        if not isinstance(self._shown.state, protocol.Running):
            return False
        return self._beside.idle or self._beside.takes_requests

    @property
    def _started(self) -> bool:
        return isinstance(self._shown.state, protocol.Running) and self._beside.started

    @property
    def succeeded(self) -> bool:
        """It has finished, and its last run ended with 0."""
        return self.finished and isinstance(self._shown.state, protocol.Terminated) and self._shown.state.exit_code == 0

    @property
    def untold(self) -> bool:
        """Nothing has come of it: it neither began, nor waits for anything that is worth a word."""
        return self._shown.untold

    @property
    def run(self) -> Run | None:
        """The guest that runs now."""
        return self._run

    @property
    def running(self) -> bool:
        """Whether a guest runs now."""
        return self._run is not None

    @property
    def serves(self) -> bool:
        """Clients reach it, or will in a moment; by a command's own sockets, perhaps."""
        return self._beside.listener is not None or bool(self._beside.reserved)

    @property
    def module_digest(self) -> str:
        """`sha256:…` of the module that it runs or would run again; empty before it is known, and after its last run."""
        return "" if self.finished else self._digest

    @property
    def log_folder(self) -> Path:
        """Where its logs are, if it ran."""
        return self._around.room.logs.of(self._around.id, self.name)

    @property
    def log_path(self) -> Path | None:
        """The log of the newest run; None before the first on this runner."""
        return log_folders.newest(self.log_folder)

    @property
    def previous_log_path(self) -> Path | None:
        """The log of the run before the newest, where there was one on this runner."""
        return log_folders.newest(self.log_folder, back=1)

    # --- what is wanted -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin, if it has not begun."""
        if self._task is None and not self.finished:
            self._task = asyncio.get_running_loop().create_task(self._live(), name=f"container {self.name}")

    def update(self, spec: protocol.Container) -> None:
        """Take what the next run is to have: another environment, other arguments, another module, other limits. For other
        limits a run that will be followed by another is ended: a guest's can't be changed."""
        if self.finished:
            return
        self._follow(self._wanted.spec.resources, spec.resources)
        self._planned = None
        if self._armed is not None:
            self._armed.disarm()
        self.stdin_once = spec.stdin and spec.stdin_once
        self._wanted.update(spec)

    def stop(self) -> None:
        """Start nothing more. A running guest runs on until it ends or is killed."""
        if self._pauses.stopping:
            return
        self._beside.stopping = True
        self._pauses.stop()
        if self._task is None and not self.finished:
            self._finish()

    def hold(self) -> None:
        """Start nothing more, and leave open whether it would run again: the runner ends."""
        self._pauses.hold()

    def drain(self) -> None:
        """Run its hook; then let a server that runs finish what it has, and end: it takes no more connections. A command runs
        on."""
        if self._run is not None:
            self._beside.drain(self._run.guest, self._wanted.spec.pre_stop)
        else:
            self._beside.close_port()

    def expire(self) -> None:
        """Its grace period is over."""
        if self._run is not None:
            self._beside.expire(self._run.guest)

    def kill(self, *, reason: str = "Error", message: str = "") -> None:
        """End the running guest at once."""
        if self._run is not None:
            self._run.guest.kill(reason=reason, message=message)

    async def abandon(self) -> None:
        """Break everything off and note nothing: what runs is lost with the runner."""
        run = self._run
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._beside.close_port()
        if run is not None:
            run.guest.kill()

    async def ended(self) -> None:
        """Wait until it does nothing any more."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def write_input(self, data: bytes) -> None:
        """Give the guest input; waits while it reads none. Raises BrokenPipeError (it does not run, or takes no more)."""
        if self._run is None:
            raise BrokenPipeError("it does not run")
        await self._run.guest.write(data)

    def close_input(self) -> None:
        """Let the guest read the end of its input."""
        if self._run is not None:
            self._run.guest.close_input()

    # --- one step each ------------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        try:
            while not self._pauses.over:
                version = self._wanted.version
                compiled = await self._have_module()
                if compiled is None or self._wanted.version != version:
                    continue
                ended = await self._run_once(compiled)
                if ended is None:
                    continue
                if not order.runs_again(self._policy, ended.exit_code):
                    return self._finish()
                await self._pauses.after_end(self.name, self._around.owner, self._beside.close_port)
            if self._pauses.stopping:
                self._finish()
        except Exception:
            # A bug here must not take the other workloads along, and must be seen.
            log.exception("workload %s, container %s: its life ended by an error of ours", self._around.id, self.name)
            self.kill()
            self._finish()
            self._around.on_error()

    async def _have_module(self) -> CompiledModule | None:
        """The module, however long it takes; None when there is none, after a pause."""
        self._image = self._wanted.image
        if self._wanted.compiled is not None:
            return self._wanted.compiled
        spec, modules, credentials = self._wanted.spec, self._around.room.modules, self._around.credentials
        variant = Variant.PLAIN if spec.resources.fuel is None else Variant.FUEL
        try:
            compiled = modules.at_hand(
                spec.module, variant=variant, credentials=credentials
            ) or await self._pauses.unless_over(
                modules.get(spec.module, variant=variant, credentials=credentials, on_progress=self._on_progress)
            )
        except ModuleError as error:
            await self._retry_later(error.reason, error.message)
            return None
        if compiled is None:
            return None
        self._shown.arrived()
        self._digest, self._image_digest = compiled.digest, compiled.image_digest
        return compiled

    def _on_progress(self, progress: Progress) -> None:
        self._shown.progress(progress, asyncio.get_running_loop().time())

    async def _run_once(self, compiled: CompiledModule) -> protocol.Terminated | None:
        """One run, from start to end, and those that the executor begins by itself after its rest. None when it could not begin,
        after a pause, and when another is to be begun after its rest."""
        guest: Guest | None
        try:
            guest = await self._begin(compiled)
        except VolumeError as error:
            await self._retry_later("CreateContainerConfigError", str(error))
            return None
        except PortError as error:
            await self._retry_later("CreateContainerError", str(error))
            return None
        except (StartRefused, EngineLost, OSError) as error:
            if isinstance(error, EngineLost) and error.may_have_begun:
                return await self._ended(words.lost_with_executor(), started_at=None)
            await self._retry_later("CreateContainerError", str(error))
            return None
        while guest is not None:
            end, resting = await self._until_end(guest)
            if not resting or end.exit_code != 0 or self._beside.listener is None:
                return await self._ended(end, started_at=guest.started_at)
            noted = await self._note(end, started_at=guest.started_at)
            guest = await self._rest(compiled, self._beside.listener, noted)
        return None

    async def _until_end(self, guest: Guest) -> tuple[GuestExit, bool]:
        """How a run that has begun ended, and whether it was asked to because nobody asked it."""
        if self._restart_count and not self._beside.idle:
            self._around.room.metrics.restarted()
        self.begun = True
        running = protocol.Running(started_at=guest.started_at)
        if self._pauses.stopping:
            guest.kill()
        self._beside.begin(guest, self._wanted.spec, lambda: self._shown.tell(running))
        try:
            end = await guest.wait()
        except EngineLost:
            end = words.lost_with_executor()
        finally:
            self._run = None
            self._beside.end()
        if self._beside.why and not end.message:
            end = dataclasses.replace(end, message=self._beside.why)
        self._beside.why = ""
        if end.http is not None:
            self._around.room.metrics.served(end.http)
        self._around.room.metrics.network_refused(end.refused)
        resting, self._beside.resting = self._beside.resting, False
        return end, resting

    async def _rest(self, compiled: CompiledModule, listener: Listener, end: protocol.Terminated) -> Guest | None:
        """Be there without a process until a client comes. What is started for it is no restart. The run that the executor has
        begun by itself; None: it is still to be begun, if anything is."""
        self._beside.idle = True
        self._around.on_change()
        # While nobody waits for it.
        spec, version = self._wanted.unpacked(), self._wanted.version
        may_plan = not (spec.mounts or spec.network)  # folders and name servers may be others by then
        plan = armed = None
        with contextlib.suppress(OSError):
            if may_plan:
                plan = self._plan(spec, compiled)
                armed = await self._called(plan, version)
        if plan is not None and armed is not None:
            return await self._take_over(armed, plan, spec, version)
        with contextlib.suppress(OSError):  # without a descriptor to spare it does not rest
            if may_plan and self._wanted.version == version:
                self._planned = self._plan(spec, compiled)
            await self._pauses.unless_over(idling.called(listener.descriptor))
        if self._pauses.over:
            self._beside.idle = False
            self._around.room.metrics.ended(end.reason)
            self._shown.note_end(end)
        return None

    async def _called(self, plan: Plan, version: int) -> Armed | None:
        """Have the executor wait for a client, which needs nobody else then, until something has changed. What it has begun for
        one; None: nothing, and it will not."""
        armed = self._armed = await self._around.room.engine.arm(plan.guest_spec)
        if armed is None:
            return None
        try:
            if self._wanted.version != version:
                armed.disarm()
            if await self._pauses.unless_over(armed.begun()) is None:
                armed.disarm()
                if await armed.begun() is None:
                    return None
            return armed
        finally:
            armed.disarm()
            self._armed = None

    async def _take_over(self, armed: Armed, plan: Plan, spec: protocol.Container, version: int) -> Guest | None:
        """Note a run that the executor has begun by itself. The one before has its end in the journal: nothing that must not run
        again does, should this process end before."""
        guest = await armed.begun()
        assert guest is not None
        try:
            self._journal_start(plan)
            self._has_begun(guest, plan, spec, version, took_seconds=armed.took_seconds)
        except OSError as error:
            guest.kill()
            with contextlib.suppress(EngineLost):
                await guest.wait()
            self._run = None
            await self._retry_later("CreateContainerError", str(error))
            return None
        return guest

    def _plan(self, spec: protocol.Container, compiled: CompiledModule) -> Plan:
        """What the next run is. No run before it may go on. Raises VolumeError, OSError."""
        return starting.plan(
            spec,
            compiled,
            self._around,
            restart_count=self._restart_count + (1 if self._container_id and not self._beside.idle else 0),
            log_slot=self.log_slot,
            listener=self._beside.listener,
            reserved=self._beside.reserved,
        )

    async def _begin(self, compiled: CompiledModule) -> Guest:
        """Start the next run. Raises VolumeError, PortError, StartRefused, EngineLost, OSError."""
        around, spec, version = self._around, self._wanted.spec, self._wanted.version
        now = asyncio.get_running_loop().time
        self._beside.open_port(spec, compiled)
        plan, self._planned = self._planned, None
        if plan is None or plan.guest_spec.module != compiled or plan.listener is not self._beside.listener:
            plan = self._plan(spec, compiled)
        before = around.journal.past.get(self.name, NOTHING)
        # Written before the fork: a run that may have begun is never run again under Never.
        self._journal_start(plan)
        asked_at = now()
        try:
            guest = await around.room.engine.run(plan.guest_spec)
        except (StartRefused, EngineLost, OSError) as error:
            if isinstance(error, EngineLost) and error.may_have_begun:
                self._container_id, self._restart_count = plan.guest_spec.guest_id, plan.restart_count
            else:
                around.journal.withdrawn(self.name, before)
            raise
        self._has_begun(guest, plan, spec, version, took_seconds=now() - asked_at)
        return guest

    def _journal_start(self, plan: Plan) -> None:
        """Raises OSError."""
        self._around.journal.started(
            self.name, container_id=plan.guest_spec.guest_id, restart_count=plan.restart_count, at=datetime.now(UTC)
        )

    def _has_begun(
        self, guest: Guest, plan: Plan, spec: protocol.Container, version: int, *, took_seconds: float
    ) -> None:
        """A run of this spec is there."""
        room, guest_spec = self._around.room, plan.guest_spec
        room.metrics.started(took_seconds)
        self._container_id, self._restart_count = guest_spec.guest_id, plan.restart_count
        self._run = Run(
            container_id=guest_spec.guest_id,
            guest=guest,
            request_bytes=memory_request(spec.resources, default_bytes=room.defaults.memory_request_bytes),
            limit_bytes=guest_spec.limits.memory_bytes,
        )
        if self._wanted.version == version:
            self._wanted.keep(spec, guest_spec.module)
        else:
            self._follow(spec.resources, self._wanted.spec.resources)
        log_folders.drop_old(self.log_folder, newest=plan.restart_count)

    async def _ended(self, end: GuestExit, *, started_at: datetime | None) -> protocol.Terminated:
        """Note how the newest run ended: in the journal first, then for everybody."""
        terminated = await self._note(end, started_at=started_at)
        self._around.room.metrics.ended(end.reason)
        self._beside.idle = False
        self._shown.note_end(terminated)
        self._shown.tell(terminated)
        return terminated

    async def _note(self, end: GuestExit, *, started_at: datetime | None) -> protocol.Terminated:
        terminated = protocol.Terminated(
            exit_code=end.exit_code,
            reason=end.reason,
            message=words.cut(end.message),
            container_id=self._container_id,
            started_at=started_at,
            finished_at=end.finished_at,
        )
        try:
            self._around.journal.ended(self.name, terminated)
            await self._around.journal.synced()
        except OSError as error:
            # It is told nevertheless: the object's status is the second record of it (protocol.History).
            log.error("workload %s, container %s: its end is not journaled: %s", self._around.id, self.name, error)
        return terminated

    async def _retry_later(self, reason: str, message: str) -> None:
        """Say why there is no run, and wait until it may be tried again."""
        self._beside.idle = False
        self._beside.close_port()
        await self._pauses.after_failure(reason, message, image=self._image)

    def _follow(self, before: protocol.Resources, resources: protocol.Resources) -> None:
        if self._run is None or resources == before:
            return
        kept = memory_request(resources, default_bytes=self._around.room.defaults.memory_request_bytes)
        self._run = dataclasses.replace(self._run, request_bytes=kept)
        limits = [(each.memory_limit_bytes, each.cpu_limit_millicores, each.fuel) for each in (before, resources)]
        if limits[0] != limits[1] and order.runs_again(self._policy, KILLED_EXIT_CODE):
            self.kill(message="killed, to run again with other limits")

    def _take_up(self, past: Past, *, stay: bool) -> None:
        """Go on from what ran before this life began."""
        end = past.terminated
        if end is None:
            end = words.lost_with_runner(past, never=self._policy is protocol.RestartPolicy.NEVER)
            try:
                self._around.journal.ended(self.name, end)
            except OSError as error:
                # Without it, the next process says the same.
                log.error("workload %s, container %s: its loss is not journaled: %s", self._around.id, self.name, error)
        self._shown.end = end
        if stay:
            self._shown.state = end
            self.finished = True

    def _finish(self) -> None:
        self._shown.finish()
        self._beside.close_port()
        self.finished = True
        self._planned = None
        self._wanted.drop()
        self._around.on_change()
