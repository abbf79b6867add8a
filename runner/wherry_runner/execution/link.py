"""One life of an executor's process: what it is sent, what it says, and how it is buried with its guests.

Everything here runs in the supervisor's event loop, on its main thread (a process that asked to die with its parent dies
with the *thread* that spawned it). Of a running guest the supervisor holds a pidfd and a report pipe, and where they are
used the writing end of its input and, for an executor that writes no logs, the receiver of its output. There may be
thousands: nothing of a guest's arguments, environment or folders is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import logging
import os
import socket
import subprocess
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wherry_runner import http_counts, network_counts
from wherry_runner.execution import channel, process
from wherry_runner.execution.ceiling import Ceiling
from wherry_runner.execution.endings import Kill, guest_exit
from wherry_runner.execution.engine import EngineError, EngineLost, GuestExit, Limits, StartRefused
from wherry_runner.execution.guest_input import CLOSED, GuestInput
from wherry_runner.execution.output import GuestOutput
from wherry_runner.http_counts import HttpCounts
from wherry_runner.logs.records import make_sure_of
from wherry_runner.network_counts import NetworkCounts

CPU_LIMIT = "cpu-limit"
"""Feature of an executor whose guests keep their CPU ceiling themselves; for others it is kept from here (`ceiling.py`)."""

CLOSE_SECONDS = 5.0
"""For the executor to leave by itself when the channel is closed, from either side; then it is killed."""

_LAST_WORDS_BYTES = 4096
_PIPE_BYTES = 64 << 10
"""What a pipe holds by default: read at once, the last words are complete."""

_MAX_LOGGED_BYTES = 256 << 10
"""Of what one executor's process says on its standard error: more is not repeated in the runner's log."""

_log = logging.getLogger(__name__)


class Disarmed(EngineError):
    """This guest was to be started for a client, and will not be."""


class ExecutorGuest:
    """A guest of an executor's process; implements `engine.Guest`."""

    __slots__ = (
        "_ceiling", "_end", "_kill", "_limits", "_pid", "_pidfd", "_serving", "_started_at", "_waiting",
        "counts", "input", "log_path", "on_drain", "output", "ready", "report", "serves", "started", "took_seconds",
    )  # fmt: skip

    def __init__(self, limits: Limits) -> None:
        loop = asyncio.get_running_loop()
        self.started: asyncio.Future[None] = loop.create_future()
        # A guest that nobody waits for may be lost without a warning about it.
        self.started.add_done_callback(_retrieve)
        # No future: one that is shielded for who waits takes a thousand bytes, and thousands of guests wait for their ends.
        self._end: GuestExit | Exception | None = None
        self._waiting: tuple[asyncio.Future[None], ...] = ()
        # What we hold of it, as far as it has them; closed here.
        self.report = -1
        self.ready = -1
        """Of a server: says when it takes connections."""
        self.counts = -1
        """The page that it writes what it counts to."""
        self.serves = False
        self.took_seconds = 0.0
        """Until its process was forked, by the executor's clock."""
        self.on_drain: Callable[[], None] | None = None
        """Asks a server to end."""
        self._serving: asyncio.Future[bool] | None = None
        self.output: GuestOutput | None = None
        self.input: GuestInput | None = None
        self.log_path = ""
        """Of a guest that writes its log itself. (A Path takes six hundred bytes.)"""
        self._limits = limits
        self._ceiling: Ceiling | None = None
        self._kill: Kill | None = None
        self._pid = 0
        self._pidfd = -1
        self._started_at = datetime.now(UTC)

    @property
    def pid(self) -> int:
        """Its process, for measurements."""
        return self._pid

    @property
    def started_at(self) -> datetime:
        """When its process was forked."""
        return self._started_at

    async def wait(self) -> GuestExit:
        """Wait for its end, with its log complete on disk. Raises EngineLost."""
        while self._end is None:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting = (*self._waiting, waiter)
            try:
                await waiter
            finally:
                self._waiting = tuple(each for each in self._waiting if each is not waiter)
        if isinstance(self._end, Exception):
            raise self._end.with_traceback(None)  # many may have the same, which would grow with each
        return self._end

    async def serving(self) -> bool:
        """Of a server: wait until it takes connections. False if it ended before."""
        return self._serving is not None and await asyncio.shield(self._serving)

    def http_counts(self) -> HttpCounts | None:
        """Of a server that runs: what it has counted so far."""
        with contextlib.suppress(OSError):
            return http_counts.read(self.counts) if self.serves and self.counts >= 0 else None
        return None

    def network_counts(self) -> NetworkCounts:
        """What the network refused to it so far."""
        with contextlib.suppress(OSError):
            return network_counts.read(self.counts) if self.counts >= 0 else network_counts.NONE
        return network_counts.NONE

    def drain(self) -> None:
        """Let a server finish the requests that it has, and end. For others, and after its end, a no-op."""
        if self._pidfd >= 0 and self.on_drain is not None:
            self.on_drain()

    def kill(self, *, reason: str = "Error", message: str = "") -> None:
        """End it at once, for this reason; of several the first counts. A no-op after its end."""
        if self._pidfd >= 0:
            self._kill = self._kill or Kill(reason=reason, message=message)
            process.kill(self._pidfd)

    async def write(self, data: bytes) -> None:
        """Give it input; waits while it reads none. Raises BrokenPipeError."""
        if self.input is None:
            raise BrokenPipeError(CLOSED)
        await self.input.write(data)

    def close_input(self) -> None:
        """Let it read the end of its input. Safe to call again."""
        if self.input is not None:
            self.input.close()

    def on_started(self, pid: int, pidfd: int, *, hold_down: bool) -> None:
        """The executor forked its process. `hold_down`: its CPU ceiling is ours to keep."""
        self._pid, self._pidfd, self._started_at = pid, pidfd, datetime.now(UTC)
        if hold_down and self._limits.cpu_millicores is not None:
            self._ceiling = Ceiling(pid, pidfd, self._limits.cpu_millicores)
        if self.ready >= 0:
            loop = asyncio.get_running_loop()
            self._serving = loop.create_future()
            loop.add_reader(self.ready, self._on_ready)
        if not self.started.done():
            self.started.set_result(None)

    def _on_ready(self) -> None:
        """A server takes connections, or will never: its process has ended, or is about to."""
        said = b""
        with contextlib.suppress(OSError):
            said = os.read(self.ready, 1)
        self._stop_waiting(serves=bool(said))

    def _stop_waiting(self, *, serves: bool) -> None:
        if self.ready >= 0:
            if self._serving is not None:
                asyncio.get_running_loop().remove_reader(self.ready)
            os.close(self.ready)
            self.ready = -1
        if self._serving is not None and not self._serving.done():
            self._serving.set_result(serves)

    def on_exited(self, message: channel.Exited) -> None:
        """Its process has ended: what it wrote and reported is all there."""
        report = None
        with contextlib.suppress(OSError):
            report = channel.Report.decode(os.read(self.report, channel.MAX_REPORT_BYTES))
        counted, refused = self.http_counts(), self.network_counts()
        self._release()
        end = guest_exit(message, report, self._kill, limits=self._limits, finished_at=datetime.now(UTC))
        http = None if counted is None else counted.over()
        self._set_end(dataclasses.replace(end, http=http, refused=refused))

    def on_failed(self, error: Exception) -> None:
        """It was refused, or its executor was lost: `wait` and the start raise this."""
        self._release()
        if not self.started.done():
            self.started.set_exception(error)
        self._set_end(error)

    def _set_end(self, end: GuestExit | Exception) -> None:
        if self._end is None:
            self._end = end
            for waiter in self._waiting:
                if not waiter.done():
                    waiter.set_result(None)

    async def bury(self) -> None:
        """After the executor's death: make sure that the process is gone."""
        if self._pidfd >= 0:
            process.kill(self._pidfd)
            await process.readable(self._pidfd)

    def _release(self) -> None:
        if self._ceiling is not None:
            self._ceiling.close()
        if self.output is not None:
            self.output.finish()
        if self.input is not None:
            self.input.close()
        if self.log_path:
            with contextlib.suppress(OSError):
                make_sure_of(Path(self.log_path))  # it may have been killed while it rotated
        self._stop_waiting(serves=False)
        channel.close_all(number for number in (self.report, self.counts, self._pidfd) if number >= 0)
        self.report = self.counts = self._pidfd = -1
        self.output = self._ceiling = self.on_drain = None


class Executor:
    """One life of an executor's process."""

    def __init__(
        self,
        name: str,
        program: Sequence[str],
        options: Sequence[str],
        *,
        allowances: int,
        on_lost: Callable[[EngineLost], None],
    ) -> None:
        """Spawn it. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self.process = process.spawn(
                    [*program, str(theirs.fileno()), str(os.getpid()), str(allowances), *options],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    pass_fds=[theirs.fileno(), allowances],
                )
        except BaseException:
            ours.close()
            raise
        ours.setblocking(False)
        self._name = name
        self._on_lost = on_lost
        self._socket = ours
        self.pidfd = os.pidfd_open(self.process.pid)
        self.guests: dict[str, ExecutorGuest] = {}
        self.ready: asyncio.Future[channel.Ready] = asyncio.get_running_loop().create_future()
        self.ready.add_done_callback(_retrieve)
        self.lost: EngineLost | None = None
        self._fault = ""
        self._writable: asyncio.Future[None] | None = None
        self._overdue: asyncio.TimerHandle | None = None
        self._heard = 0
        self._sending: set[asyncio.Task[None]] = set()
        self._last_words = b""
        self._watch = asyncio.create_task(self._serve(), name=f"{name}-executor")

    @property
    def serves(self) -> bool:
        """It is ready, and was not lost."""
        return self.lost is None and self.ready.done() and self.ready.exception() is None

    async def send(self, message: channel.Message, descriptors: dict[str, int] | None = None) -> None:
        """Send when there is room. Raises EngineLost."""
        while self.lost is None:
            try:
                return channel.send(self._socket, message, descriptors)
            except BlockingIOError:
                await self._room()
            except OSError as error:
                if error.errno == errno.ETOOMANYREFS:  # too many descriptors in flight
                    await asyncio.sleep(0.001)  # the executor is behind, and nothing tells when it has taken them
                else:
                    await asyncio.shield(self._watch)
        raise self.lost

    def send_soon(self, message: channel.Message) -> None:
        """Send when there is room; nothing, if it is lost before."""
        self._sending.add(task := asyncio.get_running_loop().create_task(self._try_to_send(message)))
        task.add_done_callback(self._sending.discard)

    async def _try_to_send(self, message: channel.Message) -> None:
        with contextlib.suppress(EngineLost):
            await self.send(message)

    def fail(self, fault: str) -> None:
        """It is of no use: it is killed, and this becomes what is said of its end."""
        self._fault = self._fault or fault
        process.kill(self.pidfd)

    async def close(self) -> None:
        """End it and wait until it and its guests are gone."""
        with contextlib.suppress(OSError):  # it may be gone already
            self._socket.shutdown(socket.SHUT_WR)
        await asyncio.wait({self._watch}, timeout=CLOSE_SECONDS)
        if not self._watch.done():
            process.kill(self.pidfd)
        await asyncio.shield(self._watch)

    async def _room(self) -> None:
        """Until the socket has room, or the executor is lost."""
        loop = asyncio.get_running_loop()
        if self._writable is None:
            self._writable = loop.create_future()
            loop.add_writer(self._socket, self._on_writable)
        await asyncio.shield(self._writable)

    def _on_writable(self) -> None:
        asyncio.get_running_loop().remove_writer(self._socket)
        if self._writable is not None:
            self._writable.set_result(None)
            self._writable = None

    async def _serve(self) -> None:
        """Take its messages until its end, then bury it."""
        loop = asyncio.get_running_loop()
        assert self.process.stderr is not None
        os.set_blocking(self.process.stderr.fileno(), False)
        loop.add_reader(self.process.stderr, self._hear)
        loop.add_reader(self._socket, self._receive)
        await process.readable(self.pidfd)
        loop.remove_reader(self.process.stderr)
        loop.remove_reader(self._socket)
        self._receive()  # what it said before its end is still true
        self._hear()
        if self._overdue is not None:
            self._overdue.cancel()
        code = self.process.wait()
        self.lost = EngineLost(f"the {self._name} executor ended ({_ending(code)}){self._words()}")
        self._on_lost(self.lost)
        self._on_writable()
        guests = list(self.guests.values())
        await asyncio.gather(*(guest.bury() for guest in guests))
        await _bury_orphans(session=self.process.pid)
        for guest in guests:
            guest.on_failed(self.lost)
        self.guests.clear()
        if not self.ready.done():
            self.ready.set_exception(self.lost)
        self._socket.close()
        self.process.stderr.close()
        os.close(self.pidfd)

    def _words(self) -> str:
        words = self._fault or self._last_words.decode(errors="replace").strip()
        return f": {words}" if words else ""

    def _hear(self) -> None:
        assert self.process.stderr is not None
        try:
            words = os.read(self.process.stderr.fileno(), _PIPE_BYTES)
        except BlockingIOError:
            return
        if not words:
            asyncio.get_running_loop().remove_reader(self.process.stderr)
            return
        self._last_words = (self._last_words + words)[-_LAST_WORDS_BYTES:]
        shown = words[-_LAST_WORDS_BYTES:]
        if self._heard < _MAX_LOGGED_BYTES:
            _log.warning("%s executor: %s", self._name, shown.decode(errors="replace").rstrip())
        self._heard += len(shown)

    def _receive(self) -> None:
        while True:
            try:
                received = channel.receive(self._socket)
            except BlockingIOError:
                return
            except (channel.ChannelError, OSError) as error:
                self.fail(f"it broke the protocol: {error}")
                received = None
            if received is None:
                loop = asyncio.get_running_loop()
                loop.remove_reader(self._socket)
                if self._overdue is None:  # it is about to end, and how it does is worth knowing
                    self._overdue = loop.call_later(CLOSE_SECONDS, process.kill, self.pidfd)
                return
            self._handle(*received)

    def _handle(self, message: channel.Message, descriptors: dict[str, int]) -> None:
        match message:
            case channel.Ready() if not self.ready.done():
                if message.protocol == channel.PROTOCOL:
                    self.ready.set_result(message)
                else:
                    self.fail(
                        f"it speaks version {message.protocol} of the protocol, this runner {channel.PROTOCOL}: "
                        "both must come from one release"
                    )
            case channel.Started() if message.guest in self.guests and "pidfd" in descriptors:
                hold_down = CPU_LIMIT not in self.ready.result().features
                begun = self.guests[message.guest]
                begun.took_seconds = message.took_nanoseconds / 1e9
                begun.on_started(message.pid, descriptors.pop("pidfd"), hold_down=hold_down)
            case channel.Disarmed() if guest := self.guests.pop(message.guest, None):
                guest.on_failed(Disarmed("no client came for it"))
            case channel.Refused() if guest := self.guests.pop(message.guest, None):
                guest.on_failed(StartRefused(message.message))
            case channel.Exited() if guest := self.guests.pop(message.guest, None):
                guest.on_exited(message)
        channel.close_all(descriptors.values())


async def _bury_orphans(session: int) -> None:
    """Reap what an executor's process left to us, a subreaper: its guests, and what it had forked and not told of yet."""
    for pid in process.children_in_session(session):
        with contextlib.suppress(ProcessLookupError, ChildProcessError):  # reaped by somebody else meanwhile
            pidfd = os.pidfd_open(pid)
            try:
                process.kill(pidfd)
                await process.readable(pidfd)
                process.reap(pid)
            finally:
                os.close(pidfd)


def _retrieve(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"
