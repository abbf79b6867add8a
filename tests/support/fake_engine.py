"""An engine whose guests live and end as a test says, and a source of modules that need no compiler."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from wherry_runner import protocol
from wherry_runner.execution.engine import (
    KILLED_EXIT_CODE,
    CompiledModule,
    EngineLost,
    GuestExit,
    GuestSpec,
    ModuleKind,
    Variant,
)
from wherry_runner.http_counts import HttpCounts
from wherry_runner.modules.library import OnProgress
from wherry_runner.network_counts import NONE, NetworkCounts

BIRTH = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class FakeGuest:
    """Runs until `exit`, `kill` or the loss of its engine."""

    def __init__(self, spec: GuestSpec, number: int) -> None:
        self.spec = spec
        self.pid = number
        self.started_at = BIRTH + timedelta(seconds=number)
        self.killed = False
        self.on_end: Callable[[], object] = lambda: None
        self.input = b""
        self.input_closed = not spec.stdin
        self.drained = False
        self.counts: HttpCounts | None = None
        self._serving: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._end: asyncio.Future[GuestExit] = asyncio.get_running_loop().create_future()

    @property
    def env(self) -> dict[str, str]:
        return dict(self.spec.environment)

    @property
    def ended(self) -> bool:
        return self._end.done()

    async def wait(self) -> GuestExit:
        return await asyncio.shield(self._end)

    def exit(self, code: int, message: str = "", *, reason: str = "") -> None:
        if not self._end.done():
            self.input_closed = True
            reason = reason or ("Completed" if code == 0 else "Error")
            finished = self.started_at + timedelta(milliseconds=500)
            self._end.set_result(GuestExit(exit_code=code, reason=reason, message=message, finished_at=finished))
            self.on_end()

    async def serving(self) -> bool:
        return await self._serving

    def http_counts(self) -> HttpCounts | None:
        return self.counts

    def network_counts(self) -> NetworkCounts:
        return NONE

    def serve(self) -> None:
        """Take connections from now on."""
        self._serving.set_result(True)

    def drain(self) -> None:
        self.drained = True

    def kill(self, *, reason: str = "Error", message: str = "") -> None:
        self.killed = True
        self.exit(KILLED_EXIT_CODE, message, reason=reason)

    async def write(self, data: bytes) -> None:
        if self.input_closed:
            raise BrokenPipeError("the guest's input is closed")
        self.input += data

    def close_input(self) -> None:
        self.input_closed = True

    def lose(self) -> None:
        self._end.set_exception(EngineLost("gone"))


class FakeArmed:
    """A start that waits for a client: begins when a test has it `called`, unless it was disarmed before."""

    took_seconds = 0.001

    def __init__(self, spec: GuestSpec, begin: Callable[[GuestSpec], FakeGuest]) -> None:
        self.spec = spec
        self.disarmed = False
        self.too_late = False
        """A client comes before anybody can disarm it."""
        self._begin = begin
        self._begun: asyncio.Future[FakeGuest | None] = asyncio.get_running_loop().create_future()

    async def begun(self) -> FakeGuest | None:
        return await asyncio.shield(self._begun)

    def called(self) -> FakeGuest:
        """A client has come."""
        guest = self._begin(self.spec)
        self._begun.set_result(guest)
        return guest

    def lose(self) -> None:
        """It won't begin, though nobody disarmed it."""
        self._begun.set_result(None)

    def disarm(self) -> None:
        if self._begun.done():
            return
        self.disarmed = True
        if self.too_late:
            self.called()
        else:
            self._begun.set_result(None)


class FakeEngine:
    """Starts whatever it is given, unless `refusals` says otherwise; `on_start` may end a guest at once."""

    name = "fake"
    features = frozenset({"fuel", "cpu-limit", "working-dir"})
    confinement = protocol.Confinement()
    executor_pid: int | None = None

    def __init__(self, on_start: Callable[[FakeGuest], None] | None = None) -> None:
        self.guests: list[FakeGuest] = []
        self.refusals: list[Exception] = []
        self.closed = False
        self.free = asyncio.Event()
        """While it is cleared, nothing is started."""
        self.free.set()
        self.complaints = ""
        self.on_start = on_start
        self.arms = False
        """Whether it waits for clients itself."""
        self.armed: list[FakeArmed] = []
        self._news = asyncio.Condition()

    def complaint(self) -> str:
        return self.complaints

    def compiler(self, variant: Variant) -> tuple[str, ...]:
        raise AssertionError("nothing is compiled here")

    async def open(self) -> None:
        return

    async def run(self, spec: GuestSpec) -> FakeGuest:
        await asyncio.sleep(0)
        await self.free.wait()
        if self.refusals:
            raise self.refusals.pop(0)
        guest = self._begin(spec)
        async with self._news:
            self._news.notify_all()
        return guest

    async def arm(self, spec: GuestSpec) -> FakeArmed | None:
        await asyncio.sleep(0)
        if not self.arms:
            return None
        self.armed.append(FakeArmed(spec, self._begin))
        return self.armed[-1]

    def _begin(self, spec: GuestSpec) -> FakeGuest:
        guest = FakeGuest(spec, len(self.guests))
        spec.log.path.touch()
        self.guests.append(guest)
        if self.on_start is not None:
            self.on_start(guest)
        return guest

    async def close(self) -> None:
        self.closed = True

    async def guest(self, number: int) -> FakeGuest:
        """The guest with this number, counted from 0 over all containers, once it was started."""
        async with self._news:
            await self._news.wait_for(lambda: len(self.guests) > number)
        return self.guests[number]


class FakeModules:
    """Gives every module, after the `errors` that were put into it; while `free` is cleared, nothing at all."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.asked: list[protocol.Module] = []
        self.variants: list[Variant] = []
        self.credentials: list[Sequence[protocol.RegistryCredential]] = []
        self.on_progress: list[OnProgress] = []
        self.kind = ModuleKind.CORE
        self.free = asyncio.Event()
        self.free.set()

    def at_hand(self, module: protocol.Module, /, **_: object) -> None:
        """Nothing is: each module is asked for."""

    async def get(
        self,
        module: protocol.Module,
        /,
        *,
        variant: Variant = Variant.PLAIN,
        credentials: Sequence[protocol.RegistryCredential] = (),
        on_progress: OnProgress | None = None,
    ) -> CompiledModule:
        self.asked.append(module)
        self.variants.append(variant)
        self.credentials.append(credentials)
        if on_progress is not None:
            self.on_progress.append(on_progress)
        await self.free.wait()
        if self.errors:
            raise self.errors.pop(0)
        digest = hashlib.sha256(module.data).hexdigest() if isinstance(module, protocol.InlineModule) else "1" * 64
        return CompiledModule(
            path=Path("/nowhere/module.cwasm"),
            digest=f"sha256:{digest}",
            kind=self.kind,
            variant=variant,
            name="hello",
            image_digest="sha256:" + "2" * 64,
        )
