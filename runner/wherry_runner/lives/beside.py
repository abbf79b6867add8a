"""What goes on beside the runs of a container: the port on which it is reached, its probes, and its rest while nobody asks it."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Coroutine

from wherry_runner import protocol
from wherry_runner.execution.engine import CompiledModule, Guest, ModuleKind, StartRefused
from wherry_runner.lives import idling
from wherry_runner.lives.listeners import Listener
from wherry_runner.lives.probing import Probes, Target
from wherry_runner.lives.surroundings import Surroundings

log = logging.getLogger(__name__)


class Beside:
    """Of one container; `begin` and `end` are called with each of its runs."""

    __slots__ = (
        "_around",
        "_name",
        "_probes",
        "_server",
        "_tasks",
        "idle",
        "listener",
        "resting",
        "serves",
        "stopping",
        "why",
    )

    def __init__(self, name: str, around: Surroundings) -> None:
        self._name = name
        self._around = around
        self._probes: Probes | None = None
        """Of the run that there is, if its spec has any."""
        self._server = False
        """Its module is one."""
        self._tasks: list[asyncio.Task[None]] = []
        self.listener: Listener | None = None
        """Of a server: open from before its first run until it is to be reached no more."""
        self.serves = False
        """The run that there is takes connections."""
        self.resting = False
        """The run that there is was asked to end, for nobody asked it."""
        self.idle = False
        """From then until another that takes connections has followed: it is as ready as it was."""
        self.stopping = False
        """No other run will follow."""
        self.why = ""
        """Why the run that there is was asked to end."""

    # --- what is known ------------------------------------------------------------------------------------------------

    @property
    def takes_requests(self) -> bool:
        """Of a command: always. Of a server: it takes connections. Of both: no probe has anything against it."""
        return (not self._server or self.serves) and (self._probes is None or self._probes.ready)

    @property
    def started(self) -> bool:
        """The startup probe, if there is one, has succeeded."""
        return self._probes is None or self._probes.started

    @property
    def probe_failures(self) -> tuple[protocol.ProbeFailure, ...]:
        """What is told of probes that have failed."""
        return tuple(self._probes.failures.values()) if self._probes is not None else ()

    # --- its port -----------------------------------------------------------------------------------------------------

    def open_port(self, spec: protocol.Container, compiled: CompiledModule) -> None:
        """Have a server's port open, and none for a command. Raises PortError, StartRefused."""
        self._server = compiled.kind is ModuleKind.HTTP
        if not self._server:
            return self.close_port()
        if spec.http is None:
            raise StartRefused("it serves HTTP, and nothing says on which port: name one for the container")
        if self.listener is not None and self.listener.wanted != spec.http.port:
            self.close_port()
        if self.listener is None:
            self.listener = self._around.room.listeners.open(spec.http.port, movable=spec.http.movable)

    def close_port(self) -> None:
        """Have clients refused, once its process takes no more either."""
        if self.listener is not None:
            self.listener.close()
            self.listener, self.serves = None, False

    # --- a run --------------------------------------------------------------------------------------------------------

    def begin(self, guest: Guest, spec: protocol.Container) -> None:
        """A run has begun."""
        if self.listener is not None:
            self._also(self._watch_serving(guest))
            if spec.http is not None and spec.http.idle_seconds is not None:
                self._also(self._end_when_idle(guest, spec.http.idle_seconds))
        if spec.startup_probe or spec.liveness_probe or spec.readiness_probe:
            target = Target(
                address=self._around.room.listeners.address,
                port=lambda: self.listener.port if self.listener is not None else None,
                named=lambda: self.listener.wanted if self.listener is not None else None,
                serves=lambda: self.serves,
            )

            def on_failure(why: str, grace_seconds: float | None) -> None:
                seconds = self._around.grace_seconds if grace_seconds is None else grace_seconds
                self._end_run(guest, f"Container {self._name} {why}", seconds)

            self._probes = Probes(spec=spec, target=target, on_change=self._changed, on_failure=on_failure)
            self._also(self._probes.run())

    def end(self) -> None:
        """The run has ended."""
        self.serves = False
        self._probes = None
        for task in self._tasks:
            task.cancel()
        self._tasks = []

    def _also(self, what: Coroutine[None, None, None]) -> None:
        self._tasks.append(asyncio.create_task(what))

    def _end_run(self, guest: Guest, message: str, grace_seconds: float) -> None:
        """End a run that another may follow: a server has its time to finish what it has."""
        log.info("workload %s: %s", self._around.id, message)
        self.why = message
        if self.serves and grace_seconds > 0:
            _drain(guest, message, grace_seconds)
        else:
            guest.kill(message=message)

    async def _watch_serving(self, guest: Guest) -> None:
        if await guest.serving():
            self.serves = True
            self._changed()

    def _changed(self) -> None:
        if self.takes_requests:
            self.idle = False
        self._around.on_change()

    async def _end_when_idle(self, guest: Guest, seconds: float) -> None:
        # Stopped or ended by a probe, it is on its way already.
        if (
            await guest.serving()
            and await idling.is_idle(guest.http_counts, seconds)
            and not (self.stopping or self.why)
        ):
            self.resting = True
            _drain(guest, "it did not end when nobody asked it", self._around.grace_seconds)


def _drain(guest: Guest, message: str, grace_seconds: float) -> None:
    """Let a server finish what it has, and kill it if that takes longer."""
    guest.drain()
    asyncio.get_running_loop().call_later(grace_seconds, functools.partial(guest.kill, message=message))
