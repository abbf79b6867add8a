"""An engine whose guests live and end as a test says, and a source of modules that need no compiler."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
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
)

BIRTH = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class FakeGuest:
    """Runs until `exit`, `kill` or the loss of its engine."""

    def __init__(self, spec: GuestSpec, number: int) -> None:
        self.spec = spec
        self.pid = number
        self.started_at = BIRTH + timedelta(seconds=number)
        self.killed = False
        self._end: asyncio.Future[GuestExit] = asyncio.get_running_loop().create_future()

    @property
    def env(self) -> dict[str, str]:
        return dict(self.spec.environment)

    async def wait(self) -> GuestExit:
        return await asyncio.shield(self._end)

    def exit(self, code: int, message: str = "") -> None:
        if not self._end.done():
            reason = "Completed" if code == 0 else "Error"
            finished = self.started_at + timedelta(milliseconds=500)
            self._end.set_result(GuestExit(exit_code=code, reason=reason, message=message, finished_at=finished))

    def kill(self) -> None:
        self.killed = True
        self.exit(KILLED_EXIT_CODE)

    def lose(self) -> None:
        self._end.set_exception(EngineLost("gone"))


class FakeEngine:
    """Starts whatever it is given, unless `refusals` says otherwise; `on_start` may end a guest at once."""

    name = "fake"

    def __init__(self, on_start: Callable[[FakeGuest], None] | None = None) -> None:
        self.guests: list[FakeGuest] = []
        self.refusals: list[Exception] = []
        self.closed = False
        self._on_start = on_start
        self._news = asyncio.Condition()

    async def open(self) -> None:
        return

    async def run(self, spec: GuestSpec) -> FakeGuest:
        await asyncio.sleep(0)
        if self.refusals:
            raise self.refusals.pop(0)
        guest = FakeGuest(spec, len(self.guests))
        spec.log_path.touch()
        self.guests.append(guest)
        if self._on_start is not None:
            self._on_start(guest)
        async with self._news:
            self._news.notify_all()
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
        self.free = asyncio.Event()
        self.free.set()

    async def get(self, module: protocol.Module, /) -> CompiledModule:
        self.asked.append(module)
        await self.free.wait()
        if self.errors:
            raise self.errors.pop(0)
        return CompiledModule(
            path=Path("/nowhere/module.cwasm"),
            digest="sha256:" + "1" * 64,
            kind=ModuleKind.CORE,
            name="hello",
            image_digest="sha256:" + "2" * 64,
        )
