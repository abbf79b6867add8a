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
import hashlib
import logging
import secrets
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from wherry_runner import protocol
from wherry_runner.execution.engine import (
    KILLED_EXIT_CODE,
    Armed,
    CompiledModule,
    EngineLost,
    Guest,
    GuestExit,
    GuestLog,
    GuestSpec,
    StartRefused,
    Variant,
)
from wherry_runner.journal.journals import NOTHING, Past
from wherry_runner.lives import idling, order, starting, words
from wherry_runner.lives.backoff import BackOff
from wherry_runner.lives.beside import Beside
from wherry_runner.lives.listeners import Listener, PortError
from wherry_runner.lives.order import Role
from wherry_runner.lives.packed import Packed
from wherry_runner.lives.surroundings import Surroundings
from wherry_runner.logs import folders as log_folders
from wherry_runner.modules.errors import ModuleError
from wherry_runner.modules.library import Compiling, Progress, Pulling
from wherry_runner.resources.admission import memory_request
from wherry_runner.volumes import VolumeError

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 0.5
"""Progress is told no more often: each time is a line to every reader of the watch."""

CREATING = protocol.Waiting(reason="ContainerCreating")
INITIALIZING = protocol.Waiting(reason="PodInitializing")
"""The kubelet's word for all containers of a Pod with init containers, until they run."""

PULLING, COMPILING = "Pulling", "Compiling"
"""No words of a kubelet's: what takes long is visible while it lasts."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """A guest that runs now."""

    container_id: str
    guest: Guest
    request_bytes: int
    """Memory that is kept for it."""
    limit_bytes: int | None
    """Memory that it may use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A run that is to be."""

    guest_spec: GuestSpec
    restart_count: int
    listener: Listener | None
    """The one that the spec names by its number."""


class ContainerLife:
    """The state machine of one container, from `start` until it has `finished`.

    `stay`: what ran before is not run again, and is what it is. Without, a container that ran begins with its next run.
    """

    __slots__ = (
        "_armed",
        "_around",
        "_beside",
        "_compiled",
        "_container_id",
        "_digest",
        "_end",
        "_end_before",
        "_held",
        "_image",
        "_image_digest",
        "_module_back_off",
        "_planned",
        "_policy",
        "_restart_back_off",
        "_restart_count",
        "_run",
        "_spec",
        "_state",
        "_stopping",
        "_task",
        "_told_progress_at",
        "_version",
        "_waiting",
        "_waiting_state",
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
        self._spec: protocol.Container | Packed[protocol.Container] = spec
        self._version = 0
        """Of the spec: what was begun with one is not finished with another."""
        self._image = words.image(spec.module)
        self._compiled: CompiledModule | None = None
        """Of a module that came with the request: its bytes are not kept here, so it can't be asked for a second time."""
        self._digest = ""
        self._image_digest = ""
        self._restart_back_off: BackOff | None = None
        self._module_back_off: BackOff | None = None
        self._waiting_state = waiting
        self._state: protocol.ContainerState = waiting
        self._end: protocol.Terminated | None = None
        """How the newest run that has ended did; `_end_before`: the one before that."""
        self._end_before: protocol.Terminated | None = None
        self._run: Run | None = None
        self._planned: Plan | None = None
        """The run that follows when a client comes, made ahead."""
        self._armed: Armed | None = None
        """The same, where the executor waits for the client."""
        self._beside = Beside(spec.name, around)
        self._stopping = False
        self._held = False
        self._waiting: asyncio.Future[Any] | None = None
        """What can be broken off: a pull, a pause."""
        self._told_progress_at = 0.0
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
        state, beside = self._state, self._beside
        terminated = isinstance(state, protocol.Terminated)
        return protocol.ContainerStatus(
            name=self.name,
            state=state,
            last_terminated=self._end_before if terminated else self._end,
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
        if not isinstance(self._state, protocol.Running):
            return False
        return self._beside.idle or self._beside.takes_requests

    @property
    def _started(self) -> bool:
        return isinstance(self._state, protocol.Running) and self._beside.started

    @property
    def succeeded(self) -> bool:
        """It has finished, and its last run ended with 0."""
        return self.finished and isinstance(self._state, protocol.Terminated) and self._state.exit_code == 0

    @property
    def untold(self) -> bool:
        """Nothing has come of it: it neither began, nor waits for anything that is worth a word."""
        return self._state is self._waiting_state

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
        self._follow(self._unpacked().resources, spec.resources)
        self._version += 1
        self._planned = None
        if self._armed is not None:
            self._armed.disarm()
        self.stdin_once = spec.stdin and spec.stdin_once
        if self._compiled is not None and self._compiled.digest == _digest(spec.module):
            self._keep(spec, self._compiled)
        else:
            self._spec, self._compiled = spec, None

    def stop(self) -> None:
        """Start nothing more. A running guest runs on until it ends or is killed."""
        if self._stopping:
            return
        self._stopping = self._beside.stopping = True
        self._break_off()
        if self._task is None and not self.finished:
            self._finish()

    def hold(self) -> None:
        """Start nothing more, and leave open whether it would run again: the runner ends."""
        self._held = True
        self._break_off()

    def drain(self) -> None:
        """Run its hook; then let a server that runs finish what it has, and end: it takes no more connections. A command runs
        on."""
        if self._run is not None:
            self._beside.drain(self._run.guest, self._unpacked().pre_stop)
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
            while not self._stopping and not self._held:
                version = self._version
                compiled = await self._have_module()
                if compiled is None or self._version != version:
                    continue
                ended = await self._run_once(compiled)
                if ended is None:
                    continue
                if not order.runs_again(self._policy, ended.exit_code):
                    return self._finish()
                await self._wait_for_restart()
            if self._stopping:
                self._finish()
        except Exception:
            # A bug here must not take the other workloads along, and must be seen.
            log.exception("workload %s, container %s: its life ended by an error of ours", self._around.id, self.name)
            self.kill()
            self._finish()
            self._around.on_error()

    async def _have_module(self) -> CompiledModule | None:
        """The module, however long it takes; None when there is none, after a pause."""
        if self._compiled is not None:
            return self._compiled
        spec, modules, credentials = self._unpacked(), self._around.room.modules, self._around.credentials
        variant = Variant.PLAIN if spec.resources.fuel is None else Variant.FUEL
        try:
            compiled = modules.at_hand(
                spec.module, variant=variant, credentials=credentials
            ) or await self._unless_stopped(
                modules.get(spec.module, variant=variant, credentials=credentials, on_progress=self._on_progress)
            )
        except ModuleError as error:
            await self._wait_for_better_times(error.reason, error.message)
            return None
        if compiled is None:
            return None
        if self._is_in_progress():
            self._set(self._waiting_state)
        self._digest, self._image_digest = compiled.digest, compiled.image_digest
        return compiled

    def _on_progress(self, progress: Progress) -> None:
        match progress:
            case Pulling():
                state = protocol.Waiting(reason=PULLING, message=words.pulled(progress))
            case Compiling():
                state = protocol.Waiting(reason=COMPILING)
        now = asyncio.get_running_loop().time()
        told = isinstance(self._state, protocol.Waiting) and self._state.reason == state.reason
        if not told or now - self._told_progress_at >= PROGRESS_SECONDS:
            self._told_progress_at = now
            self._set(state)

    async def _run_once(self, compiled: CompiledModule) -> protocol.Terminated | None:
        """One run, from start to end, and those that the executor begins by itself after its rest. None when it could not begin,
        after a pause, and when another is to be begun after its rest."""
        guest: Guest | None
        try:
            guest = await self._begin(compiled)
        except VolumeError as error:
            await self._wait_for_better_times("CreateContainerConfigError", str(error))
            return None
        except PortError as error:
            await self._wait_for_better_times("CreateContainerError", str(error))
            return None
        except (StartRefused, EngineLost, OSError) as error:
            if isinstance(error, EngineLost) and error.may_have_begun:
                return await self._ended(words.lost_with_executor(), started_at=None)
            await self._wait_for_better_times("CreateContainerError", str(error))
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
        if self._stopping:
            guest.kill()
        self._beside.begin(guest, self._unpacked(), lambda: self._set(running))
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
        spec, version = self._unpacked(), self._version
        self._spec = spec
        may_plan = not (spec.mounts or spec.network)  # folders and name servers may be others by then
        plan = armed = None
        with contextlib.suppress(OSError):
            if may_plan:
                plan = self._plan(spec, compiled)
                armed = await self._called(plan, version)
        if plan is not None and armed is not None:
            return await self._take_over(armed, plan, spec, version)
        with contextlib.suppress(OSError):  # without a descriptor to spare it does not rest
            if may_plan and self._version == version:
                self._planned = self._plan(spec, compiled)
            await self._unless_stopped(idling.called(listener.descriptor))
        if self._stopping or self._held:
            self._beside.idle = False
            self._around.room.metrics.ended(end.reason)
            self._end, self._end_before = end, self._end
        return None

    async def _called(self, plan: Plan, version: int) -> Armed | None:
        """Have the executor wait for a client, which needs nobody else then, until something has changed. What it has begun for
        one; None: nothing, and it will not."""
        armed = self._armed = await self._around.room.engine.arm(plan.guest_spec)
        if armed is None:
            return None
        try:
            if self._version != version:
                armed.disarm()
            if await self._unless_stopped(armed.begun()) is None:
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
            await self._wait_for_better_times("CreateContainerError", str(error))
            return None
        return guest

    def _plan(self, spec: protocol.Container, compiled: CompiledModule) -> Plan:
        """What the next run is. No run before it may go on. Raises VolumeError, OSError."""
        container_id = secrets.token_hex(32)
        number = self._restart_count + (1 if self._container_id and not self._beside.idle else 0)
        folder = self.log_folder
        guest_spec = starting.guest_spec(
            spec,
            compiled,
            self._around,
            container_id=container_id,
            log=GuestLog(path=log_folders.log_file(folder, number), slot=self.log_slot),
            listener=self._beside.listener,
            reserved=self._beside.reserved,
        )
        log_folders.make(folder)
        return Plan(guest_spec=guest_spec, restart_count=number, listener=self._beside.listener)

    async def _begin(self, compiled: CompiledModule) -> Guest:
        """Start the next run. Raises VolumeError, PortError, StartRefused, EngineLost, OSError."""
        around, room, spec, version = self._around, self._around.room, self._unpacked(), self._version
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
            guest = await room.engine.run(plan.guest_spec)
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
        if self._version == version:
            self._keep(spec, guest_spec.module)
        else:
            self._follow(spec.resources, self._unpacked().resources)
        log_folders.drop_old(self.log_folder, newest=plan.restart_count)

    async def _ended(self, end: GuestExit, *, started_at: datetime | None) -> protocol.Terminated:
        """Note how the newest run ended: in the journal first, then for everybody."""
        terminated = await self._note(end, started_at=started_at)
        self._around.room.metrics.ended(end.reason)
        self._beside.idle = False
        self._end, self._end_before = terminated, self._end
        self._set(terminated)
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

    # --- pauses -------------------------------------------------------------------------------------------------------

    async def _wait_for_better_times(self, reason: str, message: str) -> None:
        """Say why there is no run, and wait until it may be tried again."""
        self._beside.idle = False
        self._beside.close_port()
        settings, now = self._around.room.back_off, asyncio.get_running_loop().time
        back_off = self._module_back_off = self._module_back_off or BackOff(settings)
        failed_at = now()
        back_off.advance(failed_at, failed_at)
        self._set(protocol.Waiting(reason=reason, message=words.cut(message)))
        await self._pause(min(settings.error_shown, back_off.delay))
        remaining = back_off.remaining(failed_at, now())
        if remaining > 0 and reason == "ErrImagePull":
            text = words.pull_back_off(self._image, reason, message)
            self._set(protocol.Waiting(reason="ImagePullBackOff", message=words.cut(text)))
        await self._pause(remaining)

    async def _wait_for_restart(self) -> None:
        settings, now = self._around.room.back_off, asyncio.get_running_loop().time
        back_off = self._restart_back_off = self._restart_back_off or BackOff(settings)
        ended_at = now()
        await self._pause(settings.settle)
        remaining = back_off.remaining(ended_at, now())
        if remaining > 0 and not self._stopping and not self._held:
            self._beside.close_port()
            text = words.crash_loop(self.name, self._around.owner, back_off.delay)
            self._set(protocol.Waiting(reason="CrashLoopBackOff", message=words.cut(text)))
            await self._pause(remaining)
        back_off.advance(ended_at, now())

    async def _pause(self, seconds: float) -> None:
        """Wait, but not after `stop` or `hold`."""
        if seconds > 0:
            await self._unless_stopped(asyncio.get_running_loop().create_future(), seconds)

    async def _unless_stopped(self, what: Awaitable[T], seconds: float | None = None) -> T | None:
        """Wait for something, at most so long; None once `stop` or `hold` broke it off, or when the time was over."""
        waiting = asyncio.ensure_future(what)
        self._waiting = waiting
        try:
            if not self._stopping and not self._held:
                await asyncio.wait([waiting], timeout=seconds)
        finally:
            self._waiting = None
            if not waiting.done():
                waiting.cancel()
        # Cancelled, now or by `stop`, it is not done or has no result.
        return waiting.result() if waiting.done() and not waiting.cancelled() else None

    def _break_off(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()

    def _follow(self, before: protocol.Resources, resources: protocol.Resources) -> None:
        if self._run is None or resources == before:
            return
        kept = memory_request(resources, default_bytes=self._around.room.defaults.memory_request_bytes)
        self._run = dataclasses.replace(self._run, request_bytes=kept)
        limits = [(each.memory_limit_bytes, each.cpu_limit_millicores, each.fuel) for each in (before, resources)]
        if limits[0] != limits[1] and order.runs_again(self._policy, KILLED_EXIT_CODE):
            self.kill(message="killed, to run again with other limits")

    # --- states -------------------------------------------------------------------------------------------------------

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
        self._end = end
        if stay:
            self._state = end
            self.finished = True

    def _is_in_progress(self) -> bool:
        return isinstance(self._state, protocol.Waiting) and self._state.reason in (PULLING, COMPILING)

    def _finish(self) -> None:
        """No run will follow. Who ran shows how the newest run ended, as a kubelet does, and not that it waited for more."""
        if self._end is not None:
            self._state = self._end
        elif self._is_in_progress():
            self._state = self._waiting_state
        self._beside.close_port()
        self.finished = True
        self._spec, self._compiled, self._planned = _NO_SPEC, None, None
        self._around.on_change()

    def _set(self, state: protocol.ContainerState) -> None:
        self._state = state
        self._around.on_change()

    # --- the spec -----------------------------------------------------------------------------------------------------

    def _unpacked(self) -> protocol.Container:
        return self._spec.unpack() if isinstance(self._spec, Packed) else self._spec

    def _keep(self, spec: protocol.Container, compiled: CompiledModule) -> None:
        """Keep what the next run needs in little memory: the bytes of a module that came with the request are stored now."""
        if isinstance(spec.module, protocol.InlineModule):
            self._compiled = compiled
            spec = spec.model_copy(update={"module": spec.module.model_copy(update={"data": b""})})
        self._spec = Packed(spec)


_NO_SPEC: protocol.Container = protocol.Container(name="none", module=protocol.ImageModule(reference="none"))
"""Of a container that has finished: variables may be Secrets', and are kept no longer than they are needed."""


def _digest(module: protocol.Module) -> str:
    """`sha256:…` of the bytes of a module that came with the request; empty for others."""
    return f"sha256:{hashlib.sha256(module.data).hexdigest()}" if isinstance(module, protocol.InlineModule) else ""
