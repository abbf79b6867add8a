"""Runs guests on the python executor, the way the supervisor does: modules through the library, logs from their files."""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from wherry_runner import logs, protocol
from wherry_runner.execution.engine import CompiledModule, GuestExit, GuestSpec, Preopen
from wherry_runner.execution.python import PythonEngine, PythonGuest
from wherry_runner.modules.library import Modules

_numbers = itertools.count()


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


@dataclass
class Bench:
    """An engine, a library, and a folder for logs."""

    engine: PythonEngine
    modules: Modules
    folder: Path
    _logs: dict[str, Path] = field(default_factory=dict)

    async def start(
        self,
        module: CompiledModule | bytes | str,
        *argv: str,
        env: tuple[tuple[str, str], ...] = (),
        preopens: tuple[Preopen, ...] = (),
    ) -> PythonGuest:
        """Start a guest."""
        if not isinstance(module, CompiledModule):
            module = await self.modules.get(inline(module))
        guest_id = f"guest-{next(_numbers)}"
        return await self.engine.run(
            GuestSpec(
                guest_id=guest_id,
                module=module,
                argv=("tool", *argv),
                environment=env,
                preopens=preopens,
                log_path=self.folder / f"{guest_id}.log",
            )
        )

    async def end(self, guest: PythonGuest) -> Outcome:
        """Wait for its end and read its log."""
        ended = await guest.wait()
        lines = guest.spec.log_path.read_bytes().splitlines()
        records = [logs.Record.parse(line) for line in lines]
        assert None not in records
        return Outcome(exit=ended, records=tuple(record for record in records if record))

    async def run(
        self,
        module: CompiledModule | bytes | str,
        *argv: str,
        env: tuple[tuple[str, str], ...] = (),
        preopens: tuple[Preopen, ...] = (),
    ) -> Outcome:
        """Run a guest to its end."""
        return await self.end(await self.start(module, *argv, env=env, preopens=preopens))

    async def said(self, guest: PythonGuest, text: bytes) -> None:
        """Wait until a running guest's log holds a text."""
        seen = b""
        async for piece in logs.read(guest.spec.log_path, protocol.LogOptions(follow=True), ended=lambda: False):
            seen += piece
            if text in seen:
                return


@asynccontextmanager
async def bench(folder: Path, store: Path) -> AsyncIterator[Bench]:
    """A bench whose engine is closed at the end, with every guest gone."""
    engine = PythonEngine()
    modules = Modules(store, engine_name=engine.name)
    try:
        yield Bench(engine, modules, folder)
    finally:
        await engine.close()
        await modules.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}, "the engine left tasks behind"
