"""Servers whose instances take their memory from a pool (`--pooling-allocator`)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.guests.wat import command
from tests.runner.conftest import SCENARIO_SECONDS, children
from tests.runner.harness import Bench
from tests.runner.test_http import GREETING, served
from tests.support import executors
from wherry_runner.execution.engine import Limits
from wherry_runner.execution.native import NativeEngine
from wherry_runner.logs.allowances import Allowances
from wherry_runner.modules.compile import Compiler
from wherry_runner.modules.store import Store


@asynccontextmanager
async def pooled(folder: Path, *, wasi_03: bool) -> AsyncIterator[Bench]:
    if reason := executors.why_not("native"):
        pytest.skip(reason)
    directory = executors.native_directory()
    assert directory is not None
    allowances = Allowances(slots=8, default_bytes=1 << 20)
    engine = NativeEngine(directory, allowances=allowances, pooling_allocator=True, wasi_03=wasi_03)
    try:
        await engine.open()
        store = Store(folder / "store")
        yield Bench("native", engine, allowances, folder, store, Compiler(store, engine=engine), wasi_03)
    finally:
        await engine.close()
        allowances.close()


@pytest.mark.parametrize("wasi_03", [False, True], ids=["0.2", "0.3"])
def test_servers_serve_and_keep_their_bounds(tmp_path: Path, wasi_03: bool) -> None:
    async def scenario() -> None:
        async with asyncio.timeout(SCENARIO_SECONDS), pooled(tmp_path, wasi_03=wasi_03) as opened:
            async with served(opened, limits=Limits(memory_bytes=24 << 20)) as server:
                answers = await asyncio.gather(*(server.get() for _ in range(300)))
                assert set(answers) == {(200, GREETING)}
                assert (await server.get("/trap"))[0] == 500
                first = asyncio.create_task(server.get("/memory"))
                while server.counts.requests == 0:
                    await asyncio.sleep(0.01)
                assert (await server.get("/memory"))[0] == 500, "the limit is of all instances"
                assert await first == (200, GREETING)
                assert await server.get("/count") == (200, "1"), "nothing is left of others"
            assert (await opened.run(command(""))).exit.exit_code == 0, "commands run as ever"

    before = children()
    asyncio.run(scenario())
    assert children() == before
