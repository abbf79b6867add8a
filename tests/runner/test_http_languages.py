"""Servers that were written in C and in Python: what other languages' tools make of their sources is served as it is."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import AsyncIterator

import pytest

from tests.guests import build
from tests.runner.conftest import Play
from tests.runner.harness import Bench
from tests.runner.test_http import BOUNDS, served
from tests.support import executors


@pytest.fixture
def executor() -> str:
    """The only one that serves."""
    if reason := executors.why_not("native"):
        pytest.skip(reason)
    return "native"


def test_a_server_in_c_answers_each_request(play: Play) -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm is missing, by which the tool comes that makes a component of C's module")
    module = build.server_in_c()

    async def scenario(opened: Bench) -> None:
        async with served(opened, module=module) as server:
            for number in range(3):
                assert await server.get(f"/{number}?x=1") == (200, f"hello from C: /{number}?x=1")
            assert (server.counts.answers[1], server.counts.failed) == (3, 0)

    play(scenario)


@pytest.mark.parametrize("reuse", [1, 100])
@pytest.mark.parametrize("wasi_03", [True], ids=["0.3"])
def test_an_async_server_in_python_answers_and_streams(play: Play, reuse: int) -> None:
    module = build.python_in(build.SOURCES / "python_03", "serve", world="server")

    async def scenario(opened: Bench) -> None:
        async with served(opened, module=module, bounds=dataclasses.replace(BOUNDS, instance_reuse=reuse)) as server:
            for number in range(3):
                answer = await server.get(f"/{number}")
                assert answer == (200, f"127.0.0.1:{server.port}/{number}\n")
            data = b"some text\n" * 50_000

            async def pieces() -> AsyncIterator[bytes]:
                for begin in range(0, len(data), 100_000):
                    yield data[begin : begin + 100_000]

            async with server.client.post(server.url, data=pieces()) as answered:
                assert await answered.read() == data.upper()
            assert len(set(await asyncio.gather(*(server.get("/x") for _ in range(5))))) == 1
            assert (server.counts.answers[1], server.counts.failed, server.counts.overdue) == (9, 0, 0)
            assert f"asked for 127.0.0.1:{server.port}/2\n" in await server.log()

    play(scenario)
