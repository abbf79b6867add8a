"""An executor as the supervisor sees it. The same for every executor: what differs (`python.py`, `native.py`) is a command
line and a name.

Starts its process when it is needed and after it was lost (`link.py`), opens what a guest needs and hands it over.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from wherry_runner import http_counts, protocol
from wherry_runner.execution import channel
from wherry_runner.execution.armed import ArmedStart, ArmedStarts
from wherry_runner.execution.endings import nice_value
from wherry_runner.execution.engine import (
    NETWORK,
    Destination,
    EngineError,
    EngineLost,
    GuestSpec,
    ModuleKind,
    NetworkGrant,
    StartRefused,
    Variant,
)
from wherry_runner.execution.guest_input import GuestInput
from wherry_runner.execution.link import CPU_LIMIT, Executor, ExecutorGuest
from wherry_runner.execution.output import GuestOutput
from wherry_runner.logs.allowances import Allowances
from wherry_runner.logs.records import LogWriter, make_sure_of

READY_SECONDS = 60.0
"""For the executor to be ready: 0.2 s on an idle machine, much more on one that has just been given fifty Pods."""

START_SECONDS = 60.0
"""For the executor to answer a start: milliseconds. One that is stuck is of no use to anybody, and is replaced."""

_NO_ANSWER = f"it did not answer a start within {START_SECONDS:.0f} s"

CLOSE_SECONDS = 30.0
"""For all guests to end, when they are killed; then their executor is killed, and they with it."""

STARTS_IN_FLIGHT = 16
"""Starts sent and not answered. Each has some ten descriptors in flight, and the kernel refuses more of them than one
process may have open (ETOOMANYREFS)."""

LOSSES = 3
"""So many lost executors within `LOSSES_SECONDS` are a complaint, and a pause of `LOSS_PAUSE_SECONDS` before the next."""

LOSSES_SECONDS = 60.0
LOSS_PAUSE_SECONDS = 1.0

ARM = "arm"
"""Feature of an executor that waits for clients of a server that has no process; for others the supervisor does."""

FUEL = "fuel"
HTTP = "http"
WORKING_DIR = "working-dir"
"""Features of executors (`Ready.features`) that a container may need."""

MAX_PREOPENS = channel.MAX_DESCRIPTORS - 10
"""What a start can carry beside the guest's other descriptors."""

LEAST_FILE_BYTES = 64 << 10
"""Of a guest that writes its log itself, the least that its largest file is limited to: its log is one of its files."""

_DESCRIPTORS_KEPT = 32
"""Of a guest's open files, those that the executor and a module's first steps need beside its folders."""


class ExecutorEngine:
    """An executor in a process of its own; implements `engine.Engine`."""

    def __init__(
        self,
        short_name: str,
        *,
        name: str,
        program: Sequence[str],
        options: Sequence[str] = (),
        compiler: Sequence[str],
        allowances: Allowances,
    ) -> None:
        """`program` is what is run, before the channel's arguments; `options` stand after them.

        `compiler` makes the code that it loads. `allowances` is not closed here, and must stay open as long as the engine.
        """
        self._short_name = short_name
        self._name = name
        self._program = tuple(program)
        self._options = tuple(options)
        self._compiler = tuple(compiler)
        self._allowances = allowances
        self._executor: Executor | None = None
        self._closing = False
        self._ready: channel.Ready | None = None
        self._starts = asyncio.Semaphore(STARTS_IN_FLIGHT)
        self._armed = ArmedStarts(self._on_stuck)
        self._losses: deque[float] = deque(maxlen=LOSSES)
        self._last_loss = ""
        self.losses = 0
        """Executors that died, or could not be started, since this engine was made."""

    @property
    def name(self) -> str:
        """For messages and RunnerInfo. Part of the key of the compile cache."""
        return self._name

    @property
    def features(self) -> frozenset[str]:
        """What it can do beyond plain commands; empty before `open`."""
        # A CPU ceiling that the executor can't keep is kept from here.
        # And whether it waits for clients is nothing that a container could need.
        return frozenset((*self._ready.features, CPU_LIMIT)) - {ARM} if self._ready else frozenset()

    @property
    def confinement(self) -> protocol.Confinement:
        """What is in force for its guests on this kernel; known after `open`."""
        if self._ready is None:
            return protocol.Confinement()
        return protocol.Confinement(
            no_new_privileges=self._ready.no_new_privileges,
            landlock_abi=self._ready.landlock_abi,
            seccomp=self._ready.seccomp,
        )

    @property
    def executor_pid(self) -> int | None:
        """The executor's process, for measurements; None while there is none."""
        return None if self._executor is None or self._executor.lost else self._executor.process.pid

    def complaint(self) -> str:
        """Why this engine is not fit to be given work now; empty if it is."""
        if len(self._losses) < LOSSES or time.monotonic() - self._losses[0] > LOSSES_SECONDS:
            return ""
        return f"lost {LOSSES} executors within {LOSSES_SECONDS:.0f} s, the last one so: {self._last_loss}"

    def compiler(self, variant: Variant) -> tuple[str, ...]:
        """Program and first arguments of the compiler: the same for every variant, it is told which."""
        return self._compiler

    async def open(self) -> None:
        """Start the executor's process and wait until it is ready. Raises EngineLost with its last words."""
        await self._opened()

    async def run(self, spec: GuestSpec) -> ExecutorGuest:
        """Start a guest. Raises StartRefused, EngineLost; after EngineLost the next call starts a new executor."""
        executor = await self._opened()
        if why := refusal(spec, self._short_name, self.features):
            raise StartRefused(why)
        async with self._starts:
            guest = ExecutorGuest(spec.limits)
            executor.guests[spec.guest_id] = guest
            try:
                await self._send(executor, spec, guest)
            except BaseException:
                executor.guests.pop(spec.guest_id, None)
                guest.on_failed(EngineLost("it was never started"))
                raise
            overdue = asyncio.get_running_loop().call_later(START_SECONDS, executor.fail, _NO_ANSWER)
            try:
                await guest.started
            except asyncio.CancelledError:
                # Nobody will know of this guest: it ends as soon as it has begun.
                with contextlib.suppress(EngineLost):
                    await executor.send(channel.Stop(guest=spec.guest_id))
                raise
            except EngineLost as error:
                raise EngineLost(str(error), may_have_begun=True) from error
            finally:
                overdue.cancel()
        return guest

    async def arm(self, spec: GuestSpec) -> ArmedStart | None:
        """Have a server started when a client comes. None: not now, and `run` is the way."""
        if spec.http is None or refusal(spec, self._short_name, self.features):
            return None
        try:
            executor = await self._opened()
            if ARM not in executor.ready.result().features:
                return None
            listener = os.dup(spec.http.listener)
        except (EngineLost, OSError):
            return None
        self._armed.make_room()
        guest = ExecutorGuest(spec.limits)
        executor.guests[spec.guest_id] = guest
        try:
            await self._send(executor, spec, guest, channel.Arm)
        except BaseException as error:
            os.close(listener)
            executor.guests.pop(spec.guest_id, None)
            guest.on_failed(EngineLost("it was never armed"))
            if isinstance(error, EngineError):
                return None
            raise

        def disarm() -> None:
            executor.send_soon(channel.Disarm(guest=spec.guest_id))
            overdue = asyncio.get_running_loop().call_later(START_SECONDS, executor.fail, _NO_ANSWER)
            guest.started.add_done_callback(lambda _: overdue.cancel())

        armed = ArmedStart(guest, listener, disarm)
        self._armed.add(armed)
        return armed

    async def close(self) -> None:
        """Kill all guests and the executor, and wait for their ends."""
        self._closing = True
        executor, self._executor = self._executor, None
        if executor is None:
            return
        self._armed.disarm()
        guests = list(executor.guests.values())
        for guest in guests:
            guest.kill()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await asyncio.gather(*(guest.wait() for guest in guests), return_exceptions=True)
        await executor.close()

    async def _opened(self) -> Executor:
        """An executor that is ready. All who come while one starts share it, and its failure."""
        executor = self._executor
        if executor is not None and executor.serves:
            return executor
        if executor is None or executor.lost:
            if self.complaint() and time.monotonic() - self._losses[-1] < LOSS_PAUSE_SECONDS:
                raise EngineLost(self.complaint())
            try:
                executor = self._executor = Executor(
                    self._short_name,
                    self._program,
                    self._options,
                    allowances=self._allowances.descriptor,
                    on_lost=self._on_lost,
                )
            except OSError as error:
                lost = EngineLost(f"the {self._short_name} executor can't be started: {error}")
                self._on_lost(lost)
                raise lost from error
        if not executor.ready.done():
            await asyncio.wait({executor.ready}, timeout=READY_SECONDS)
        if not executor.ready.done():
            executor.fail(f"it was not ready within {READY_SECONDS:.0f} s")
        self._ready = await asyncio.shield(executor.ready)
        return executor

    def _on_stuck(self) -> None:
        if self._executor is not None:
            self._executor.fail(_NO_ANSWER)

    def _on_lost(self, error: EngineLost) -> None:
        if not self._closing:
            self.losses += 1
            self._losses.append(time.monotonic())
            self._last_loss = str(error)

    async def _send(
        self, executor: Executor, spec: GuestSpec, guest: ExecutorGuest, how: type[channel.Start] = channel.Start
    ) -> None:
        """Open all that a guest needs and send it. Raises StartRefused, EngineLost."""
        writes_logs = executor.ready.result().writes_logs
        slot = spec.log.slot
        descriptors: dict[str, int] = {}
        try:
            try:
                descriptors["module"] = _open(spec.module.path)
                descriptors["payload"] = _payload(spec, log_name=spec.log.path.name if writes_logs else "").seal()
                guest.report, descriptors["report"] = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
                if writes_logs:
                    descriptors["log"] = _open(spec.log.path.parent, os.O_DIRECTORY | os.O_NOFOLLOW)
                    guest.log_path = str(spec.log.path)
                else:
                    writer = LogWriter(spec.log.path, max_bytes=lambda: self._allowances[slot])
                    guest.output = GuestOutput(writer, bytes_per_second=spec.limits.log_bytes_per_second)
                    descriptors["stdout"], descriptors["stderr"] = guest.output.hand_over()
                if spec.stdin:
                    descriptors["stdin"], writing_end = os.pipe2(os.O_CLOEXEC)
                    os.set_blocking(writing_end, False)
                    guest.input = GuestInput(writing_end)
                if spec.http is not None:
                    descriptors["listener"] = os.dup(spec.http.listener)
                    guest.ready, descriptors["ready"] = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
                    guest.serves = True
                if spec.module.kind is not ModuleKind.CORE and NETWORK in self.features:
                    guest.counts = http_counts.make_page()
                    descriptors["counts"] = os.dup(guest.counts)
                for index, preopen in enumerate(spec.preopens):
                    descriptors[f"preopen:{index}"] = preopen.open()
            except (OSError, ValueError) as error:
                raise StartRefused(f"can't prepare the container: {error}") from error
            module = os.fstat(descriptors["module"])
            start = how(
                guest=spec.guest_id,
                # A compiled module that was made anew is another one, whatever its path.
                module_key=f"{spec.module.digest}:{module.st_dev}:{module.st_ino}:{module.st_mtime_ns}",
                kind=spec.module.kind,
                variant=spec.module.variant,
            )
            if spec.http is not None:
                guest.on_drain = functools.partial(executor.send_soon, channel.Drain(guest=spec.guest_id))
            await executor.send(start, descriptors)
            if writes_logs:
                # The guest makes its log itself, but only once it has come so far; whoever asks for it must find one.
                with contextlib.suppress(OSError):
                    make_sure_of(spec.log.path)
        finally:
            # The executor has its own copies; ours would keep pipes and sockets open.
            channel.close_all(descriptors.values())


def _open(path: os.PathLike[str], flags: int = 0) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)


def _payload(spec: GuestSpec, *, log_name: str) -> channel.Payload:
    limits = spec.limits
    file_bytes = limits.file_bytes
    if log_name and file_bytes is not None:
        file_bytes = max(file_bytes, LEAST_FILE_BYTES)
    return channel.Payload(
        argv=spec.argv,
        env=spec.environment,
        preopens=tuple((preopen.guest_path, preopen.writable) for preopen in spec.preopens),
        working_dir=spec.working_dir,
        log_name=log_name,
        log_slot=spec.log.slot,
        memory_bytes=limits.memory_bytes,
        cpu_millicores=limits.cpu_millicores,
        nice=nice_value(limits.cpu_weight_millicores),
        fuel=limits.fuel,
        # A server's connections are open files too, and not what its guest may have.
        descriptors=limits.descriptors + (spec.http.bounds.max_connections if spec.http is not None else 0),
        file_bytes=file_bytes,
        log_bytes_per_second=limits.log_bytes_per_second,
        http=vars(spec.http.bounds) if spec.http is not None else None,
        network=None if spec.network is None else _network(spec.network),
        network_fields=vars(spec.network_fields),
        listening=[vars(each) for each in spec.listening],
    )


def _network(grant: NetworkGrant) -> dict[str, Any]:
    """A grant as a payload has it."""

    def host(destination: Destination) -> dict[str, str]:
        if destination.network:
            return {"network": destination.network}
        below = destination.name.removeprefix("*.")
        return {"name" if below == destination.name else "below": below}

    return {
        "destinations": [{"host": host(each), "ports": each.ports} for each in grant.destinations],
        "lookups": grant.lookups,
        "nameservers": grant.nameservers,
        "protected": [{"block": each.network, "port": each.port, "what": each.what} for each in grant.protected],
        "certificates": grant.certificates,
    }


def refusal(spec: GuestSpec, executor: str, features: frozenset[str]) -> str:
    """Why an executor with these features can't run this, as a sentence for the user; empty if it may try."""
    words = [*spec.argv, *(word for pair in spec.environment for word in pair)]
    if any("\0" in word for word in words):
        return "an argument or environment variable contains a NUL character, which WASI can't pass on"
    if spec.working_dir not in ("", "/"):
        if spec.module.kind is ModuleKind.CORE:
            return (
                f'working directory "{spec.working_dir}": a WASI 0.1 module has none but "/"; use absolute paths '
                "(a module built by Go takes the variable PWD for it)"
            )
        if WORKING_DIR not in features:
            return f'working directory "{spec.working_dir}": the {executor} executor can set none but "/"'
    most = min(MAX_PREOPENS, spec.limits.descriptors - _DESCRIPTORS_KEPT)
    if len(spec.preopens) > most:
        return f"{len(spec.preopens)} mounts; at most {most} are possible with {spec.limits.descriptors} open files"
    if (spec.limits.fuel is not None) != (spec.module.variant is Variant.FUEL):
        return "fuel is counted in a module that was compiled for it, and only there"
    if spec.module.kind is ModuleKind.HTTP and HTTP not in features:
        return f"it serves HTTP, which the {executor} executor can't do: the native one does"
    if (spec.module.kind is ModuleKind.HTTP) != (spec.http is not None):
        return "a server is given a listening socket, and nothing else is"
    if spec.network is not None and NETWORK not in features:
        return (
            f"{spec.network_fields.allowed_hosts}: the {executor} executor has no network to give; the native one has"
        )
    if spec.limits.fuel is not None and FUEL not in features:
        return f"fuel: the {executor} executor can't count it"
    return ""
