"""The python executor as the supervisor sees it: starts the zygote, hands it guests, and knows how each one ended.

Everything here runs in the supervisor's event loop, on its main thread (a process that asked to die with its parent dies
with the *thread* that spawned it). Per guest there are a pidfd, a report pipe and the receiver of its output.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
from datetime import UTC, datetime

from wherry_runner.execution import channel, process
from wherry_runner.execution.engine import (
    KILLED_EXIT_CODE,
    EngineLost,
    GuestExit,
    GuestSpec,
    StartRefused,
)
from wherry_runner.execution.output import GuestOutput
from wherry_runner.execution.wasmtime_config import engine_name
from wherry_runner.logs import LogWriter

READY_SECONDS = 60.0
"""For the executor to be ready: 0.2 s on an idle machine, much more on one that has just been given fifty Pods."""

CLOSE_SECONDS = 5.0
"""For the executor to leave by itself when it is closed; then it is killed."""

STARTS_IN_FLIGHT = 16
"""Starts sent and not answered. Each has some ten descriptors in flight, and the kernel refuses more of them than one
process may have open (ETOOMANYREFS)."""

_LAST_WORDS_BYTES = 4096

_log = logging.getLogger(__name__)


class PythonGuest:
    """A guest of the python executor; implements `engine.Guest`."""

    def __init__(self, spec: GuestSpec, output: GuestOutput, report: int) -> None:
        loop = asyncio.get_running_loop()
        self.spec = spec
        self.started: asyncio.Future[None] = loop.create_future()
        self._ended: asyncio.Future[GuestExit] = loop.create_future()
        # A guest that nobody waits for may be lost without a warning about it.
        self._ended.add_done_callback(lambda future: future.cancelled() or future.exception())
        self.started.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._output = output
        self._report = report
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
        return await asyncio.shield(self._ended)

    def kill(self) -> None:
        """End it at once. A no-op after its end."""
        if self._pidfd >= 0:
            process.kill(self._pidfd)

    def on_started(self, pid: int, pidfd: int) -> None:
        """The executor forked its process."""
        self._pid, self._pidfd, self._started_at = pid, pidfd, datetime.now(UTC)
        if not self.started.done():
            self.started.set_result(None)

    def on_exited(self, message: channel.Exited) -> None:
        """Its process has ended: what it wrote and reported is all there."""
        report = None
        with contextlib.suppress(OSError):
            report = channel.Report.decode(os.read(self._report, channel.MAX_REPORT_BYTES))
        self._release()
        self._ended.set_result(_guest_exit(message, report))

    def on_failed(self, error: Exception) -> None:
        """It was refused, or its executor was lost: `wait` and the start raise this."""
        self._release()
        for future in (self.started, self._ended):
            if not future.done():
                future.set_exception(error)

    async def bury(self) -> None:
        """After the executor's death: make sure that the process is gone, and reap it if it became ours."""
        if self._pidfd < 0:
            return
        pidfd = os.dup(self._pidfd)
        try:
            process.kill(pidfd)
            await process.readable(pidfd)
            with contextlib.suppress(ChildProcessError):
                process.reap(pidfd)
        finally:
            os.close(pidfd)

    def _release(self) -> None:
        self._output.finish()
        channel.close_all(number for number in (self._report, self._pidfd) if number >= 0)
        self._report = self._pidfd = -1


class _Executor:
    """One life of the zygote's process."""

    def __init__(self) -> None:
        """Spawn it. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = process.spawn(
                ["wherry_runner.execution.zygote", str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
            )
        ours.setblocking(False)
        self.socket = ours
        self.pidfd = os.pidfd_open(self.process.pid)
        self.guests: dict[str, PythonGuest] = {}
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost: EngineLost | None = None
        self._last_words = b""
        self._watch = asyncio.create_task(self._serve(), name="python-executor")

    async def send(self, message: channel.Message, descriptors: dict[str, int] | None = None) -> None:
        """Send when there is room. Raises EngineLost."""
        while self.lost is None:
            try:
                return channel.send(self.socket, message, descriptors)
            except BlockingIOError:
                await asyncio.sleep(0.001)  # the executor is behind; it answers in the order of what it has
            except OSError:
                await asyncio.shield(self._watch)
        raise self.lost

    async def close(self) -> None:
        """End it and wait until it and its guests are gone."""
        with contextlib.suppress(OSError):  # it may be gone already
            self.socket.shutdown(socket.SHUT_WR)
        await asyncio.wait({self._watch}, timeout=CLOSE_SECONDS)
        if not self._watch.done():
            process.kill(self.pidfd)
        await asyncio.shield(self._watch)

    async def _serve(self) -> None:
        """Take its messages until its end, then bury it."""
        loop = asyncio.get_running_loop()
        assert self.process.stderr is not None
        os.set_blocking(self.process.stderr.fileno(), False)
        loop.add_reader(self.process.stderr, self._hear)
        loop.add_reader(self.socket, self._receive)
        await process.readable(self.pidfd)
        loop.remove_reader(self.process.stderr)
        loop.remove_reader(self.socket)
        self._receive()  # what it said before its end is still true
        self._hear()
        code = self.process.wait()
        words = self._last_words.decode(errors="replace").strip()
        self.lost = EngineLost(f"the python executor ended ({_ending(code)})" + (f": {words}" if words else ""))
        guests = list(self.guests.values())
        await asyncio.gather(*(guest.bury() for guest in guests))
        for guest in guests:
            guest.on_failed(self.lost)
        self.guests.clear()
        if not self.ready.done():
            self.ready.set_exception(self.lost)
        self.socket.close()
        self.process.stderr.close()
        os.close(self.pidfd)

    def _hear(self) -> None:
        assert self.process.stderr is not None
        words = self.process.stderr.read(_LAST_WORDS_BYTES) or b""
        if words:
            _log.warning("python executor: %s", words.decode(errors="replace").rstrip())
            self._last_words = (self._last_words + words)[-_LAST_WORDS_BYTES:]
        else:
            asyncio.get_running_loop().remove_reader(self.process.stderr)

    def _receive(self) -> None:
        while True:
            try:
                received = channel.receive(self.socket)
            except BlockingIOError:
                return
            except (channel.ChannelError, OSError) as error:
                _log.error("python executor: %s; it is killed", error)
                received = None
            if received is None:
                asyncio.get_running_loop().remove_reader(self.socket)
                process.kill(self.pidfd)
                return
            self._handle(*received)

    def _handle(self, message: channel.Message, descriptors: dict[str, int]) -> None:
        match message:
            case channel.Ready() if not self.ready.done():
                self.ready.set_result(None)
            case channel.Started() if message.guest in self.guests and "pidfd" in descriptors:
                self.guests[message.guest].on_started(message.pid, descriptors.pop("pidfd"))
            case channel.Refused() if guest := self.guests.pop(message.guest, None):
                guest.on_failed(StartRefused(message.message))
            case channel.Exited() if guest := self.guests.pop(message.guest, None):
                guest.on_exited(message)
        channel.close_all(descriptors.values())


class PythonEngine:
    """The python executor; implements `engine.Engine`."""

    def __init__(self) -> None:
        self._executor: _Executor | None = None
        self._opening = asyncio.Lock()
        self._starts = asyncio.Semaphore(STARTS_IN_FLIGHT)

    @property
    def name(self) -> str:
        """E.g. `python/wasmtime-50.0.1`."""
        return engine_name()

    @property
    def executor_pid(self) -> int | None:
        """The zygote's process, for measurements and tests; None before the first start."""
        return self._executor.process.pid if self._executor else None

    async def open(self) -> None:
        """Start the executor's process and wait until it is ready. Raises EngineLost with its last words."""
        await self._ready()

    async def run(self, spec: GuestSpec) -> PythonGuest:
        """Start a guest. Raises StartRefused, EngineLost; after EngineLost the next call starts a new executor."""
        executor = await self._ready()
        async with self._starts:
            with contextlib.ExitStack() as stack:
                guest, start, descriptors = _prepare(spec, stack)
                executor.guests[spec.guest_id] = guest
                sent = False
                try:
                    await executor.send(start, descriptors)
                    sent = True
                    stack.close()  # the executor has its own copies; ours would keep the pipe and the sockets open
                    await guest.started
                except BaseException as error:
                    if sent and isinstance(error, asyncio.CancelledError):
                        # Nobody will know of this guest: it ends as soon as it has begun.
                        with contextlib.suppress(EngineLost):
                            await executor.send(channel.Stop(guest=spec.guest_id))
                    else:
                        executor.guests.pop(spec.guest_id, None)
                        guest.on_failed(EngineLost(str(error)))
                    if sent and isinstance(error, EngineLost):
                        raise EngineLost(str(error), may_have_begun=True) from error
                    raise
        return guest

    async def close(self) -> None:
        """Kill all guests and the executor, and wait for their ends."""
        executor, self._executor = self._executor, None
        if executor is None:
            return
        for guest in list(executor.guests.values()):
            guest.kill()
            with contextlib.suppress(Exception):
                await guest.wait()
        await executor.close()

    async def _ready(self) -> _Executor:
        async with self._opening:
            if self._executor is None or self._executor.lost:
                try:
                    self._executor = _Executor()
                except OSError as error:
                    raise EngineLost(f"the python executor can't be started: {error}") from error
            executor = self._executor
            try:
                await asyncio.wait_for(asyncio.shield(executor.ready), READY_SECONDS)
            except TimeoutError:
                process.kill(executor.pidfd)
                raise EngineLost(f"the python executor was not ready within {READY_SECONDS:.0f} s") from None
            return executor


def _prepare(spec: GuestSpec, stack: contextlib.ExitStack) -> tuple[PythonGuest, channel.Start, dict[str, int]]:
    """Open all that a guest needs; what only the executor needs is closed by `stack`. Raises StartRefused."""
    words = [*spec.argv, *(word for pair in spec.environment for word in pair)]
    if any("\0" in word for word in words):
        raise StartRefused("an argument or environment variable contains a NUL character, which WASI can't pass on")

    def opened(path: os.PathLike[str] | str, flags: int) -> int:
        number = os.open(path, flags | os.O_CLOEXEC)
        stack.callback(os.close, number)
        return number

    try:
        descriptors = {"module": opened(spec.module.path, os.O_RDONLY)}
        stat = os.fstat(descriptors["module"])
        payload = channel.Payload(
            argv=spec.argv,
            env=spec.environment,
            preopens=tuple((preopen.guest_path, preopen.writable) for preopen in spec.preopens),
        )
        descriptors["payload"] = payload.seal()
        stack.callback(os.close, descriptors["payload"])
        folders = [opened(preopen.host_path, os.O_RDONLY | os.O_DIRECTORY) for preopen in spec.preopens]
        output = GuestOutput(LogWriter(spec.log_path))
        try:
            report, report_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            output.finish()
            raise
    except (OSError, ValueError) as error:
        raise StartRefused(f"can't prepare the container: {error}") from error
    stack.callback(os.close, report_writer)
    stack.callback(output.close_senders)
    output.start()
    descriptors |= {"report": report_writer, "stdout": output.stdout.fileno(), "stderr": output.stderr.fileno()}
    descriptors |= {f"preopen:{index}": number for index, number in enumerate(folders)}
    # A compiled module that was made anew is another one, whatever its path.
    key = f"{spec.module.digest}:{stat.st_dev}:{stat.st_ino}:{stat.st_mtime_ns}"
    start = channel.Start(guest=spec.guest_id, module_key=key, kind=spec.module.kind)
    return PythonGuest(spec, output, report), start, descriptors


def _guest_exit(message: channel.Exited, report: channel.Report | None) -> GuestExit:
    if message.exit_code is not None:
        exit_code, text = message.exit_code, report.message if report else ""
    elif message.signal == KILLED_EXIT_CODE - 128:
        exit_code, text = KILLED_EXIT_CODE, ""
    else:
        exit_code, text = 128 + (message.signal or 0), f"the guest's process died of signal {message.signal}"
    return GuestExit(
        exit_code=exit_code,
        reason="Completed" if exit_code == 0 else "Error",
        message=text,
        finished_at=datetime.now(UTC),
    )


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"
