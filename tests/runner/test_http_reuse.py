"""Servers whose instances serve several requests, one after the other."""

from __future__ import annotations

import asyncio
import dataclasses

import aiohttp
import pytest

from tests.runner.conftest import Play
from tests.runner.harness import Bench, until
from tests.runner.test_http import BOUNDS, GREETING, served
from wherry_runner.execution.engine import Limits

pytestmark = pytest.mark.native_only
"""The only one that serves."""

REUSED = dataclasses.replace(BOUNDS, instance_reuse=1000)


@pytest.fixture(params=[False, True], ids=["0.2", "0.3"])
def wasi_03(request: pytest.FixtureRequest) -> bool:
    """Servers of both versions of WASI keep to the same."""
    return bool(request.param)


@pytest.mark.parametrize(("reuse", "expected"), [(1, "111111"), (3, "123123"), (1000, "123456")])
def test_an_instance_serves_as_many_requests_as_it_may(play: Play, reuse: int, expected: str) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened, bounds=dataclasses.replace(BOUNDS, instance_reuse=reuse)) as server:
            assert "".join([(await server.get("/count"))[1] for _ in expected]) == expected

    play(scenario)


def test_no_two_requests_have_one_instance_at_once(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened, bounds=REUSED) as server:
            answers = await asyncio.gather(*(server.get("/wait") for _ in range(20)))
            assert answers == [(200, GREETING)] * 20
            counts = await asyncio.gather(*(server.get("/count") for _ in range(20)))
            assert {status for status, _ in counts} == {200}
            assert "2" in {text for _, text in counts}

    play(scenario)


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("/trap", 500, "the guest failed"),
        ("/never", 504, "the guest did not answer in time"),
        ("/quit", 500, "the guest gave no answer"),
        ("/keep", 200, GREETING),
    ],
)
def test_an_instance_that_did_not_end_well_serves_no_more(play: Play, path: str, status: int, text: str) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened, bounds=dataclasses.replace(REUSED, request_seconds=1.0)) as server:
            assert [(await server.get("/count"))[1] for _ in range(3)] == ["1", "2", "3"]
            if opened.wasi_03 and path == "/keep":
                with pytest.raises(aiohttp.ClientPayloadError):
                    await server.get(path)
            elif opened.wasi_03 and path == "/quit":
                assert await server.get(path) == (status, "the guest failed")  # a trap of its own
            else:
                assert await server.get(path) == (status, text)
            assert await server.get("/count") == (200, "1")

    play(scenario)


def test_each_request_has_its_own_fuel(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened, bounds=REUSED, limits=Limits(fuel=20_000)) as server:
            for _ in range(200):
                assert await server.get() == (200, GREETING)
            assert (await server.get("/spin"))[0] == 500

    play(scenario)


def test_an_instance_that_waits_gives_way_to_one_that_wants_its_memory(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened, bounds=REUSED, limits=Limits(memory_bytes=24 << 20)) as server:
            large = asyncio.create_task(server.get("/memory"))
            await until(lambda: server.counts.requests == 1)
            small = asyncio.create_task(server.get("/wait"))
            assert (await large, await small) == ((200, GREETING), (200, GREETING))
            # That of `small`, which was over last; `large` still has its 16 MiB.
            assert await server.get("/memory") == (200, GREETING)
            assert await server.get("/count") == (200, "3")

    play(scenario)
