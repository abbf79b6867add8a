"""Runs guests on an executor, the way the supervisor does: compiled by its compiler, logs from their files."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support import executors
from wherry_runner import protocol
from wherry_runner.execution.adapter import ExecutorEngine
from wherry_runner.execution.engine import (
    CompiledModule,
    Guest,
    GuestExit,
    GuestLog,
    GuestSpec,
    HttpServing,
    Limits,
    Listening,
    ModuleKind,
    NetworkGrant,
    Preopen,
    Variant,
)
from wherry_runner.logs import records as logs
from wherry_runner.logs.allowances import Allowances
from wherry_runner.modules.compile import Compiler
from wherry_runner.modules.store import Store

_numbers = itertools.count()

NO_LIMITS = Limits()

LOG_BYTES = 1 << 30
"""What a log file may have, unless a test says otherwise: nothing is rotated away."""


def inline(data: bytes | str, source: str = "spec.module.inline") -> protocol.InlineModule:
    """A module of a request."""
    raw = data.encode() if isinstance(data, str) else data
    return protocol.InlineModule(data=base64.b64encode(raw), source=source)


async def until(condition: Callable[[], bool]) -> None:
    """Let the event loop turn until something is so that nobody announces."""
    while not condition():
        await asyncio.sleep(0.001)


@dataclass(frozen=True)
class Outcome:
    """A guest that has ended."""

    exit: GuestExit
    records: tuple[logs.Record, ...]

    def text(self, stream: str = "") -> str:
        """What it wrote to one stream, or to both in their order."""
        chosen = (record.content for record in self.records if stream.encode() in (b"", record.stream))
        return b"".join(chosen).decode()

    @property
    def lines(self) -> list[tuple[str, str]]:
        """What it wrote, with the streams."""
        return [(record.stream.decode(), record.content.decode()) for record in self.records]


@dataclass
class Running:
    """A guest, and where its log is."""

    guest: Guest
    log_path: Path

    @property
    def pid(self) -> int:
        return self.guest.pid


@dataclass
class Bench:
    """An engine, its compiler, and a folder for logs."""

    executor: str
    engine: ExecutorEngine
    allowances: Allowances
    folder: Path
    store: Store
    compiler: Compiler
    wasi_03: bool = False
    """Whether it runs WASI 0.3, and serves that unless it is told otherwise."""
    slot: int = field(init=False)
    """Of all logs on this bench."""

    def __post_init__(self) -> None:
        self.slot = self.allowances.take()

    async def compile(self, module: bytes | str, variant: Variant = Variant.PLAIN) -> CompiledModule:
        """A module, ready to run. Raises compile.Refused."""
        digest = self.store.put_blob(module.encode() if isinstance(module, str) else module)
        found = await self.compiler.find(digest, variant) or await self.compiler.compile(digest, variant)
        path, facts = found
        return CompiledModule(path=path, digest=digest, kind=ModuleKind(facts.kind), variant=variant, name="tool")

    async def start(self, module: CompiledModule | bytes | str, *argv: str, **how: Any) -> Running:
        """Start a guest; `how`: as `prepare` takes it."""
        spec = await self.prepare(module, *argv, **how)
        return Running(await self.engine.run(spec), spec.log.path)

    async def prepare(
        self,
        module: CompiledModule | bytes | str,
        *argv: str,
        env: tuple[tuple[str, str], ...] = (),
        preopens: tuple[Preopen, ...] = (),
        limits: Limits = NO_LIMITS,
        working_dir: str = "",
        stdin: bool = False,
        http: HttpServing | None = None,
        listening: tuple[Listening, ...] = (),
        network: NetworkGrant | None = None,
    ) -> GuestSpec:
        """What the engine is asked for, with the module compiled and a folder for its log."""
        if not isinstance(module, CompiledModule):
            module = await self.compile(module, Variant.PLAIN if limits.fuel is None else Variant.FUEL)
        guest_id = f"guest-{next(_numbers)}"
        # A folder each, as on a runner: a guest that writes its own log can't reach another's.
        folder = self.folder / "logs" / guest_id
        folder.mkdir(parents=True)
        return GuestSpec(
            guest_id=guest_id,
            module=module,
            argv=("tool", *argv),
            environment=env,
            preopens=preopens,
            working_dir=working_dir,
            stdin=stdin,
            log=GuestLog(path=folder / "0.log", slot=self.slot),
            limits=limits,
            http=http,
            listening=listening,
            network=network,
        )

    async def end(self, running: Running) -> Outcome:
        """Wait for its end and read its log, the older part first."""
        ended = await running.guest.wait()
        older = logs.rotated(running.log_path)
        data = (older.read_bytes() if older.exists() else b"") + running.log_path.read_bytes()
        # A guest that writes its log itself may be killed in the middle of a record.
        assert data.endswith(b"\n") or not data or ended.exit_code == 137, "a record is torn"
        records = [logs.Record.parse(line) for line in data.split(b"\n")[:-1]]
        assert None not in records
        return Outcome(exit=ended, records=tuple(record for record in records if record))

    async def run(self, module: CompiledModule | bytes | str, *argv: str, **how: Any) -> Outcome:
        """Run a guest to its end; `how`: as `prepare` takes it."""
        started = self.start(module, *argv, **how)
        return await self.end(await started)

    async def said(self, running: Running, text: bytes) -> None:
        """Wait until a running guest's log holds a text. Fails if it ends before."""
        ended = False

        async def notice() -> None:
            nonlocal ended
            await running.guest.wait()
            ended = True

        watching = asyncio.create_task(notice())
        try:
            await until(lambda: running.log_path.exists() or ended)
            seen = b""
            following = logs.read(running.log_path, protocol.LogOptions(follow=True), ended=lambda: ended)
            async with contextlib.aclosing(following) as pieces:
                async for piece in pieces:
                    seen += piece
                    if text in seen:
                        return
            raise AssertionError(f"it ended ({(await running.guest.wait())!r}) and had said {seen[-2000:]!r}")
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)


@asynccontextmanager
async def bench(executor: str, folder: Path, store: Path, *, wasi_03: bool = False) -> AsyncIterator[Bench]:
    """A bench whose engine is closed at the end, with every guest, every descriptor and every task gone.

    `wasi_03`: whether it is set to run WASI 0.3.
    """
    before = open_descriptors()
    allowances = Allowances(slots=1 << 16, default_bytes=LOG_BYTES)
    engine = executors.engine(executor, allowances, wasi_03=wasi_03)
    try:
        await engine.open()
        opened = Store(store)
        yield Bench(executor, engine, allowances, folder, opened, Compiler(opened, engine=engine), wasi_03)
    finally:
        await engine.close()
        allowances.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}, "the engine left tasks behind"
        after = open_descriptors()
        assert after == before, f"descriptors were left open: {after - before}"


def open_descriptors() -> set[str]:
    """This process's open descriptors, each with what it is."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
        except FileNotFoundError:
            continue  # the one that listed them
    return found
