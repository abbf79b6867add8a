"""Servers that were written in C, JavaScript and Python: what other languages' tools make of their sources is served as it is."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from tests.guests import build
from tests.runner.conftest import Play
from tests.runner.harness import Bench
from tests.runner.test_http import BOUNDS, served
from tests.runner.test_network import FIELD, HERE, rule
from tests.support.dns import NameServer, serving
from wherry_runner.execution.engine import NetworkGrant

pytestmark = pytest.mark.native_only
"""The only one that serves."""

DEMO = Path(__file__).parents[2] / "demos" / "http-javascript"

OTHER = "greeter.default.svc.cluster.local"
"""Whom the demo asks."""


@pytest.fixture
def npm() -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm is missing, by which the tools come that make components of C's modules and of JavaScript")


@pytest.mark.usefixtures("npm")
def test_a_server_in_c_answers_each_request(play: Play) -> None:
    module = build.server_in_c("server")

    async def scenario(opened: Bench) -> None:
        async with served(opened, module=module) as server:
            for number in range(3):
                assert await server.get(f"/{number}?x=1") == (200, f"hello from C: /{number}?x=1")
            assert (server.counts.answers[1], server.counts.failed) == (3, 0)

    play(scenario)


@pytest.mark.usefixtures("npm")
def test_a_server_in_javascript_answers_and_asks_whom_it_may(play_apart: Play) -> None:
    """The demo, which answers as its README shows."""
    module = build.javascript_in(DEMO, "app", world="app")
    greeting, refused, allowed = (
        json.loads(line) for line in (DEMO / "README.md").read_text().splitlines() if line.startswith("{")
    )

    async def scenario(opened: Bench) -> None:
        names = NameServer({OTHER: itertools.repeat([HERE])})
        async with serving(names), greeter():
            async with served(opened, module=module) as server:
                assert _read(await server.get("/greet?name=Ada")) == (200, greeting)
                assert _read(await server.get("/relayed?name=Ada")) == (502, refused)
                assert _read(await server.get("/elsewhere"))[0] == 404
                log = (await server.log()).splitlines()
            assert log == [
                f"200 {server.url}/greet?name=Ada",
                f"wherry: network: HTTP to {OTHER}:80 is refused: {FIELD} grants nothing",
                f"502 {server.url}/relayed?name=Ada",
                f"404 {server.url}/elsewhere",
            ]
            assert names.asked == []
            network = NetworkGrant(destinations=(rule(OTHER, 80),), nameservers=(names.address,))
            async with served(opened, module=module, network=network) as server:
                assert _read(await server.get("/relayed?name=Ada")) == (200, allowed)
                assert await server.log() == f"200 {server.url}/relayed?name=Ada\n"

    play_apart(scenario)


@asynccontextmanager
async def greeter() -> AsyncIterator[None]:
    """Answers as http-python does, the demo's other half."""

    async def greet(request: web.Request) -> web.Response:
        return web.json_response({"greeting": f"Hello, {request.query['name']}!"})

    app = web.Application()
    app.router.add_get("/greet", greet)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, HERE, 80).start()
    try:
        yield
    finally:
        await runner.cleanup()


def _read(answer: tuple[int, str]) -> tuple[int, object]:
    status, text = answer
    return status, json.loads(text)


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
