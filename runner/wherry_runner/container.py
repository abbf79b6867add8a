"""One container's life: module, run, end, and whether it runs again.

    Waiting(ContainerCreating) → Waiting(ErrImagePull ⇄ ImagePullBackOff, CreateContainerError, …) → Running
      → Terminated → (restartPolicy) → Waiting(CrashLoopBackOff) → Running → …

Reasons and messages are the kubelet's. Each change of state is reported at once by `on_change`; an end is in the journal
before that.
"""

from __future__ import annotations

import asyncio
import logging
import posixpath
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from wherry_runner import protocol
from wherry_runner.backoff import BackOff, BackOffSettings
from wherry_runner.execution.engine import (
    KILLED_EXIT_CODE,
    CompiledModule,
    Engine,
    EngineLost,
    Guest,
    GuestExit,
    GuestSpec,
    Preopen,
    StartRefused,
)
from wherry_runner.journal import Journal, Past
from wherry_runner.modules.errors import ModuleError

log = logging.getLogger(__name__)

KEPT_LOGS = 2
"""Log files of a container: of the newest run and of the one before (`kubectl logs --previous`)."""


class ModuleSource(Protocol):
    """Where modules come from (`modules/library.py`)."""

    async def get(self, module: protocol.Module, /) -> CompiledModule:
        """A module, compiled. Raises ModuleError."""


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a container's life needs of its runner and its workload."""

    engine: Engine
    modules: ModuleSource
    journal: Journal
    back_off: BackOffSettings
    owner: protocol.Owner
    restart_policy: protocol.RestartPolicy
    log_folder: Path
    mounts: tuple[Preopen, ...]
    on_change: Callable[[], None]


class ContainerLife:
    """The state machine of one container; `run` is its task.

    `again`: what ran before runs again whatever the restart policy, for it was ended by us.
    """

    def __init__(self, spec: protocol.Container, around: Surroundings, *, again: bool = False) -> None:
        self._spec = spec
        self._around = around
        self._guest: Guest | None = None
        self._stopping = False
        self._wake = asyncio.Event()
        self._restart_back_off = BackOff(around.back_off)
        self._module_back_off = BackOff(around.back_off)
        past = around.journal.past.get(spec.name, Past())
        self._restart_count = past.restart_count
        self._container_id = past.container_id
        self._digest = ""
        self._image_digest = ""
        self._last: protocol.Terminated | None = None
        self._state: protocol.ContainerState = protocol.Waiting(reason="ContainerCreating")
        self.finished = False
        """No run will follow."""
        if past.ran:
            self._take_up(past, again=again)

    @property
    def status(self) -> protocol.ContainerStatus:
        """The container as it is."""
        spec = self._spec
        running = isinstance(self._state, protocol.Running)
        return protocol.ContainerStatus(
            name=spec.name,
            state=self._state,
            last_terminated=self._last,
            container_id=self._container_id,
            restart_count=self._restart_count,
            ready=running,
            image=spec.module.reference if isinstance(spec.module, protocol.ImageModule) else spec.module.source,
            module_digest=self._digest,
            image_digest=self._image_digest,
        )

    @property
    def running(self) -> bool:
        """Whether a guest runs now."""
        return self._guest is not None

    @property
    def log_path(self) -> Path | None:
        """The log of the newest run; None before the first on this runner."""
        return self._newest_log(0)

    @property
    def previous_log_path(self) -> Path | None:
        """The log of the run before the newest, where there was one on this runner."""
        return self._newest_log(1)

    def update(self, spec: protocol.Container) -> None:
        """Take what the next run is to have: another environment, other arguments."""
        self._spec = spec

    def stop(self) -> None:
        """Start nothing more. A running guest runs on until it ends or is killed."""
        self._stopping = True
        self._wake.set()

    def kill(self) -> None:
        """End the running guest at once."""
        if self._guest is not None:
            self._guest.kill()

    async def run(self) -> None:
        """Live until no further run follows. Raises nothing but CancelledError."""
        while not self.finished and not self._stopping:
            module = await self._have_module()
            if module is None:
                break
            ended = await self._run_once(module)
            if ended is None:
                continue
            if not self._runs_again(ended.exit_code):
                self.finished = True
                break
            await self._wait_for_restart()
        self.finished = True
        self._around.on_change()

    # --- one step each ------------------------------------------------------------------------------------------------

    async def _have_module(self) -> CompiledModule | None:
        """The module, however long it takes; None when the container was stopped first."""
        while not self._stopping:
            getting = asyncio.ensure_future(self._around.modules.get(self._spec.module))
            stopped = asyncio.ensure_future(self._wake.wait())
            try:
                await asyncio.wait([getting, stopped], return_when=asyncio.FIRST_COMPLETED)
                if not getting.done():
                    return None
                module = getting.result()
            except ModuleError as error:
                await self._wait_for_module(error.reason, error.message)
                continue
            finally:
                getting.cancel()
                stopped.cancel()
            self._digest, self._image_digest = module.digest, module.image_digest
            return module
        return None

    async def _wait_for_module(self, reason: str, message: str) -> None:
        failed_at = time.monotonic()
        self._module_back_off.advance(failed_at, failed_at)
        self._set(protocol.Waiting(reason=reason, message=_cut(message)))
        await self._pause(min(self._around.back_off.error_shown, self._module_back_off.delay))
        remaining = self._module_back_off.remaining(failed_at, time.monotonic())
        if remaining <= 0 or self._stopping:
            return
        if reason == "ErrImagePull" and isinstance(self._spec.module, protocol.ImageModule):
            # Words of the kubelet: pkg/kubelet/images/image_manager.go.
            text = f'Back-off pulling image "{self._spec.module.reference}": {reason}: {message}'
            self._set(protocol.Waiting(reason="ImagePullBackOff", message=_cut(text)))
        await self._pause(remaining)

    async def _run_once(self, module: CompiledModule) -> protocol.Terminated | None:
        """One run, from start to end. None when it could not begin, after a pause."""
        container_id = secrets.token_hex(32)
        number = self._restart_count + 1 if self._container_id else 0
        spec = GuestSpec(
            guest_id=container_id,
            module=module,
            argv=argv(self._spec, module),
            environment=tuple((item.name, item.value.get_secret_value()) for item in self._spec.env),
            preopens=self._around.mounts,
            log_path=self._log_file(number),
        )
        journal = self._around.journal
        try:
            spec.log_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Written before the fork: a run that may have begun is never run again under Never.
            journal.started(self._spec.name, container_id=container_id, restart_count=number, at=datetime.now(UTC))
            try:
                guest = await self._around.engine.run(spec)
            except (StartRefused, EngineLost, OSError) as error:
                if isinstance(error, EngineLost) and error.may_have_begun:
                    self._container_id, self._restart_count = container_id, number
                    return self._end(_lost_with_executor(), started_at=None)
                journal.withdrawn(self._spec.name)
                raise
        except (StartRefused, EngineLost, OSError) as error:
            await self._wait_for_module("CreateContainerError", str(error))
            return None
        self._guest = guest
        self._container_id = container_id
        self._restart_count = number
        self._set(protocol.Running(started_at=guest.started_at))
        self._drop_old_logs()
        if self._stopping:
            guest.kill()
        try:
            end = await guest.wait()
        except EngineLost:
            end = _lost_with_executor()
        finally:
            self._guest = None
        return self._end(end, started_at=guest.started_at)

    def _end(self, end: GuestExit, *, started_at: datetime | None) -> protocol.Terminated:
        """Note how the newest run ended: in the journal first, then for everybody."""
        terminated = protocol.Terminated(
            exit_code=end.exit_code,
            reason=end.reason,
            message=_cut(end.message),
            container_id=self._container_id,
            started_at=started_at,
            finished_at=end.finished_at,
        )
        try:
            self._around.journal.ended(self._spec.name, terminated)
        except OSError as error:
            # It is told nevertheless: the object's status is the second record of it (protocol.History).
            log.error("container %s: its end is not journaled: %s", self._spec.name, error)
        self._set(terminated)
        return terminated

    async def _wait_for_restart(self) -> None:
        ended = self._state
        assert isinstance(ended, protocol.Terminated)
        ended_at = time.monotonic()
        await self._pause(self._around.back_off.settle)
        remaining = self._restart_back_off.remaining(ended_at, time.monotonic())
        if remaining > 0 and not self._stopping:
            owner = self._around.owner
            # Words of the kubelet: pkg/kubelet/kuberuntime/kuberuntime_manager.go, doBackOff.
            message = (
                f"back-off {_go_duration(self._restart_back_off.delay)} restarting failed container={self._spec.name} "
                f"pod={owner.name}_{owner.namespace}({owner.uid})"
            )
            self._set(protocol.Waiting(reason="CrashLoopBackOff", message=message))
            await self._pause(remaining)
        self._restart_back_off.advance(ended_at, time.monotonic())

    async def _pause(self, seconds: float) -> None:
        """Wait, but not after `stop`."""
        if seconds <= 0 or self._stopping:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    # --- what is known ------------------------------------------------------------------------------------------------

    def _take_up(self, past: Past, *, again: bool) -> None:
        """Go on from what ran before this process began."""
        end = past.terminated
        if end is None:
            never = self._around.restart_policy is protocol.RestartPolicy.NEVER
            end = protocol.Terminated(
                exit_code=KILLED_EXIT_CODE,
                reason="RunnerLost",
                message="the runner ended while the container ran, and the container with it"
                + ("; with restartPolicy Never it is not run again" if never else ""),
                container_id=past.container_id,
                started_at=past.started_at,
                finished_at=datetime.now(UTC),
            )
            self._around.journal.ended(self._spec.name, end)
        if again or self._runs_again(end.exit_code):
            self._last = end
        else:
            self._state = end
            self.finished = True

    def _runs_again(self, exit_code: int) -> bool:
        match self._around.restart_policy:
            case protocol.RestartPolicy.ALWAYS:
                return True
            case protocol.RestartPolicy.ON_FAILURE:
                return exit_code != 0
            case protocol.RestartPolicy.NEVER:
                return False

    def _set(self, state: protocol.ContainerState) -> None:
        if isinstance(self._state, protocol.Terminated):
            self._last = self._state
        self._state = state
        self._around.on_change()

    def _log_file(self, restart_count: int) -> Path:
        return self._around.log_folder / f"{restart_count}.log"

    def _newest_log(self, back: int) -> Path | None:
        numbers = self._logged_runs()
        return self._log_file(numbers[-1 - back]) if len(numbers) > back else None

    def _logged_runs(self) -> list[int]:
        return sorted(int(path.stem) for path in self._around.log_folder.glob("*.log") if path.stem.isdigit())

    def _drop_old_logs(self) -> None:
        for number in self._logged_runs()[:-KEPT_LOGS]:
            for path in self._around.log_folder.glob(f"{number}.log*"):
                path.unlink(missing_ok=True)


def argv(spec: protocol.Container, module: CompiledModule) -> tuple[str, ...]:
    """The guest's argv, by the rule of design §6."""
    if spec.command:
        return (*spec.command, *spec.args)
    named = not module.packed_by_krustlet if spec.argv0 is None else spec.argv0 == "auto"
    return (module.name, *spec.args) if named else spec.args


def preopens(
    container: protocol.Container, volumes: dict[str, Path], *, writable: frozenset[str] = frozenset()
) -> tuple[Preopen, ...]:
    """The folders that a container sees. Raises KeyError for a mount of an unknown volume."""
    return tuple(
        Preopen(
            host_path=volumes[mount.volume],
            guest_path=posixpath.normpath(mount.mount_path),
            writable=mount.volume in writable and not mount.read_only,
        )
        for mount in container.mounts
    )


def _lost_with_executor() -> GuestExit:
    return GuestExit(
        exit_code=KILLED_EXIT_CODE,
        reason="RunnerLost",
        message="the executor that ran the container died, and every container with it",
        finished_at=datetime.now(UTC),
    )


def _cut(message: str) -> str:
    limit = protocol.MAX_MESSAGE_CHARACTERS
    return message if len(message) <= limit else message[: limit - 1] + "…"


def _go_duration(seconds: float) -> str:
    """Seconds as Go prints a duration: 10s, 1m20s, 5m0s."""
    whole = round(seconds)
    return f"{whole}s" if whole < 60 else f"{whole // 60}m{whole % 60}s"
