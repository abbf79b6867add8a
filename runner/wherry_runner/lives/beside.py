"""What goes on beside the runs of a container: the port on which it is reached, its hooks and probes, and its rest while nobody
asks it."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Literal

from wherry_runner import protocol
from wherry_runner.execution.engine import CompiledModule, Guest, ModuleKind, StartRefused
from wherry_runner.lives import hooks, idling, starting
from wherry_runner.lives.asking import Target
from wherry_runner.lives.hooks import HookError
from wherry_runner.lives.listeners import Listener, Reservation
from wherry_runner.lives.probing import Probes
from wherry_runner.lives.surroundings import Surroundings

log = logging.getLogger(__name__)


class Beside:
    """Of one container; `begin` and `end` are called with each of its runs."""

    __slots__ = (
        "_around",
        "_asked",
        "_closes",
        "_expired",
        "_guest",
        "_name",
        "_pre_stop",
        "_probes",
        "_server",
        "_tasks",
        "hook_failures",
        "idle",
        "listener",
        "reserved",
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
        self._pre_stop: asyncio.Task[None] | None = None
        """Of the run that there is, once it is to end."""
        self._guest: Guest | None = None
        """Of the run that there is."""
        self._asked = False
        """It was asked to end."""
        self._closes = False
        """When it ends, its port is closed: no other run will follow for now."""
        self._expired = False
        """Its grace period was over before its hook was."""
        self.hook_failures: tuple[protocol.HookFailure, ...] = ()
        """Of the newest run."""
        self.listener: Listener | None = None
        """Of a server: open from before its first run until it is to be reached no more."""
        self.reserved: tuple[Reservation, ...] = ()
        """Of a command that may listen: its ports, kept for as long as a server's is open."""
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

    @property
    def ports(self) -> tuple[protocol.OpenPort, ...]:
        """Those that are kept for a command's own sockets."""
        return tuple(
            protocol.OpenPort(named=each.wanted, port=each.port, protocol=each.protocol) for each in self.reserved
        )

    # --- its ports -----------------------------------------------------------------------------------------------------

    def open_port(self, spec: protocol.Container, compiled: CompiledModule) -> None:
        """Have a server's port open, and those of a command kept for it. Raises PortError, StartRefused."""
        self._server = compiled.kind is ModuleKind.HTTP
        if not self._server:
            return self._reserve(starting.listens(spec, compiled, self._around.room.engine))
        if self.reserved:
            self.close_port()
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
        for each in self.reserved:
            each.close()
        self.reserved = ()

    def _reserve(self, wanted: tuple[protocol.ListenPort, ...]) -> None:
        kept = [(each.wanted, each.protocol) for each in self.reserved]
        if self.listener is not None or kept != [(each.port, each.protocol) for each in wanted]:
            self.close_port()
            self.reserved = self._around.room.listeners.reserve(wanted)

    # --- a run --------------------------------------------------------------------------------------------------------

    def begin(self, guest: Guest, spec: protocol.Container, on_started: Callable[[], None]) -> None:
        """A run has begun. `on_started`: its hook has been run, if there is one; not called for one that was idle."""
        self._guest = guest
        self._asked = self._closes = self._expired = False
        self.hook_failures = ()
        if self.listener is not None:
            self._also(self._watch_serving(guest))
            if spec.http is not None and spec.http.idle_seconds is not None:
                self._also(self._end_when_idle(guest, spec.http.idle_seconds))
        if self.idle:
            self._probe(guest, spec)
        elif spec.post_start is None:
            on_started()
            self._probe(guest, spec)
        else:
            self._also(self._start(guest, spec, spec.post_start, on_started))

    def end(self) -> None:
        """The run has ended."""
        self.serves = False
        self._guest = self._probes = self._pre_stop = None
        for task in self._tasks:
            task.cancel()
        self._tasks = []

    def drain(self, guest: Guest, hook: protocol.Hook | None) -> None:
        """Have the run end, and no other follow for now: after its hook a server takes no more connections, and finishes what it
        has; a command runs on. Asked again, once is enough."""
        self._closes = True
        self._ask_to_end(guest, hook)

    def expire(self, guest: Guest, message: str = "") -> None:
        """Its grace period is over. Where its hook took all of that, it has a moment to end nevertheless."""
        if self._pre_stop is not None and not self._pre_stop.done():
            self._pre_stop.cancel()
            self._expired = True
            self._let_end(guest)
            asyncio.get_running_loop().call_later(hooks.LEAST_SECONDS, lambda: guest.kill(message=message))
        elif not self._expired:
            guest.kill(message=message)

    def _ask_to_end(self, guest: Guest, hook: protocol.Hook | None) -> None:
        if self._pre_stop is None and hook is not None:
            self._pre_stop = self._also(self._stop(guest, hook))
        elif self._pre_stop is None or self._pre_stop.done():
            self._let_end(guest)

    def _let_end(self, guest: Guest) -> None:
        drains = self.serves or self._asked or _has_been_asked(guest)
        self._asked = True
        if self._closes and self.listener is not None:
            self.close_port()  # a command's are its own until it has ended
        if self.why and not drains:
            guest.kill(message=self.why)  # nothing to wait for: a command that is asked to end can't hear it
        else:
            guest.drain()

    async def _start(
        self, guest: Guest, spec: protocol.Container, hook: protocol.Hook, on_started: Callable[[], None]
    ) -> None:
        try:
            await hooks.run(hook, self._target, container=self._name, owner=self._around.owner)
        except HookError as error:
            self._failed("PostStart", error)
            self._end_run(guest, str(error), self._around.grace_seconds, spec.pre_stop)
        else:
            on_started()
            self._probe(guest, spec)

    async def _stop(self, guest: Guest, hook: protocol.Hook) -> None:
        try:
            await hooks.run(hook, self._target, container=self._name, owner=self._around.owner)
        except HookError as error:
            self._failed("PreStop", error)
        self._let_end(guest)

    def _failed(self, hook: Literal["PostStart", "PreStop"], error: HookError) -> None:
        log.info("workload %s: %s", self._around.id, error)
        self.hook_failures += (protocol.HookFailure(hook=hook),)
        self._around.on_change()

    def _probe(self, guest: Guest, spec: protocol.Container) -> None:
        if not (spec.startup_probe or spec.liveness_probe or spec.readiness_probe):
            return

        def on_failure(why: str, grace_seconds: float | None) -> None:
            seconds = self._around.grace_seconds if grace_seconds is None else grace_seconds
            self._end_run(guest, f"Container {self._name} {why}", seconds, spec.pre_stop)

        self._probes = Probes(spec=spec, target=self._target, on_change=self._changed, on_failure=on_failure)
        self._also(self._probes.run())

    @property
    def _target(self) -> Target:
        return Target(
            address=self._around.room.listeners.address,
            port=lambda: self.listener.port if self.listener is not None else None,
            named=lambda: self.listener.wanted if self.listener is not None else None,
            serves=lambda: self.serves,
            listens={each.wanted: each.port for each in self.reserved if each.protocol == "TCP"},
        )

    def _also(self, what: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(what)
        self._tasks.append(task)
        return task

    def _end_run(self, guest: Guest, message: str, grace_seconds: float, hook: protocol.Hook | None) -> None:
        """End a run that another may follow: it has its time for its hook, and a server for what it has."""
        log.info("workload %s: %s", self._around.id, message)
        self.why = message
        if grace_seconds > 0:
            self._ask_to_end(guest, hook)
            asyncio.get_running_loop().call_later(grace_seconds, self._expire, guest)
        else:
            guest.kill(message=message)

    def _expire(self, guest: Guest) -> None:
        if self._guest is guest:
            self.expire(guest, self.why)

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
            guest.drain()
            kill = functools.partial(guest.kill, message="it did not end when nobody asked it")
            asyncio.get_running_loop().call_later(self._around.grace_seconds, kill)


def _has_been_asked(guest: Guest) -> bool:
    """Whether a server has taken a request. Its first client may have the answer before we are told that it takes connections."""
    counts = guest.http_counts()
    return counts is not None and bool(counts.requests or sum(counts.answers) or counts.failed)
