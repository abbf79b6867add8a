"""Servers on the native executor, asked by real clients on loopback: what is answered, what is bounded, and what ends."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from tests.guests.servers import SERVER
from tests.guests.servers_03 import SERVER_03
from tests.runner.conftest import SCENARIO_SECONDS, Play, children
from tests.runner.harness import Bench, Running, bench, until
from wherry_runner.execution.engine import (
    HttpBounds,
    HttpServing,
    Limits,
    ModuleKind,
    NetworkGrant,
    Preopen,
    StartRefused,
)
from wherry_runner.http_counts import HttpCounts

pytestmark = pytest.mark.native_only
"""The only one that serves."""

GREETING = "hello over HTTP\n"

BOUNDS = HttpBounds()
SHORT = dataclasses.replace(BOUNDS, request_seconds=1.0, head_seconds=1.0, idle_seconds=1.0)


@pytest.fixture(params=[False, True], ids=["0.2", "0.3"])
def wasi_03(request: pytest.FixtureRequest) -> bool:
    """Servers of both versions of WASI keep to the same."""
    return bool(request.param)


def server_module(opened: Bench) -> str:
    """The server that is asked here, of the version that is served."""
    return SERVER_03 if opened.wasi_03 else SERVER


@dataclass
class Server:
    """A server that takes connections, and a client."""

    bench: Bench
    running: Running
    port: int
    client: aiohttp.ClientSession

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def counts(self) -> HttpCounts:
        counts = self.running.guest.http_counts()
        assert counts is not None
        return counts

    async def get(self, path: str = "/") -> tuple[int, str]:
        async with self.client.get(self.url + path) as answer:
            return answer.status, await answer.text()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def asks(self, data: bytes) -> bytes:
        """All that comes back for these bytes, until the server closes the connection."""
        reader, writer = await self.connect()
        try:
            writer.write(data)
            return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()

    async def log(self) -> str:
        self.running.guest.kill()
        return (await self.bench.end(self.running)).text()


@asynccontextmanager
async def served(
    opened: Bench,
    *,
    module: bytes | str | None = None,
    bounds: HttpBounds = BOUNDS,
    limits: Limits | None = None,
    preopens: tuple[Preopen, ...] = (),
    network: NetworkGrant | None = None,
) -> AsyncIterator[Server]:
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        listener.setblocking(False)
        port = listener.getsockname()[1]
        running = await opened.start(
            module or server_module(opened),
            limits=limits or Limits(memory_bytes=256 << 20),
            http=HttpServing(listener=listener.fileno(), bounds=bounds),
            preopens=preopens,
            network=network,
        )
    try:
        assert await running.guest.serving(), (await opened.end(running)).exit
        async with aiohttp.ClientSession() as client:
            yield Server(opened, running, port, client)
    finally:
        running.guest.kill()
        await running.guest.wait()


async def _are_closed(server: Server) -> None:
    await until(lambda: server.counts.connections == 0)


def test_a_server_answers_and_counts(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened) as server:
            assert await server.get() == (200, GREETING)
            assert await server.get("/log") == (200, GREETING)
            answers = await asyncio.gather(*(server.get() for _ in range(200)))
            assert set(answers) == {(200, GREETING)}
            await until(lambda: server.counts.answers[1] == 202)
            counts = server.counts
            assert sum(counts.buckets) == 202
            assert counts.seconds > 0
            assert (counts.requests, counts.refused, counts.failed, counts.overdue) == (0, 0, 0, 0)
            assert "asked" in await server.log()

    play(scenario)


def test_a_body_goes_in_and_comes_out(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened) as server:
            data = bytes(range(256)) * 4096
            async with server.client.post(server.url + "/echo", data=data) as answer:
                assert (answer.status, await answer.read()) == (200, data)

    play(scenario)


def test_each_request_has_an_instance_of_its_own_and_all_are_worked_on_at_once(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened) as server:
            waiting = [asyncio.create_task(server.get("/wait")) for _ in range(20)]
            await until(lambda: server.counts.requests == 20)
            assert await server.get() == (200, GREETING)
            assert [await each for each in waiting] == [(200, GREETING)] * 20

    play(scenario)


@pytest.mark.parametrize("reuse", [1, 20])
def test_a_request_that_is_over_leaves_nothing_in_memory(play: Play, reuse: int) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened, bounds=dataclasses.replace(BOUNDS, instance_reuse=reuse)) as server:

            async def ask(times: int) -> int:
                for _ in range(times):
                    assert set(await asyncio.gather(*(server.get() for _ in range(10)))) == {(200, GREETING)}
                    assert await server.get() == (200, GREETING)
                return _resident_bytes(server.running.pid)

            before = await ask(40)
            assert await ask(360) - before < 4 << 20  # a KiB for each of them, if they left something

    play(scenario)


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_each_instance_has_the_containers_folders_and_none_is_left_open(play: Play, tmp_path: Path) -> None:
    async def scenario(opened: Bench) -> None:
        folders = []
        for number in range(10):
            (folder := tmp_path / f"folder-{number}").mkdir()
            folders.append(Preopen(host_path=folder, guest_path=f"/{number}", writable=number % 2 == 0))
        async with served(opened, preopens=tuple(folders)) as server:
            answers = await asyncio.gather(*(server.get() for _ in range(100)))
            assert set(answers) == {(200, GREETING)}
            await server.client.close()
            await until(lambda: server.counts.connections == 0)
            opens = [link.readlink() for link in Path(f"/proc/{server.running.guest.pid}/fd").iterdir()]
            assert len([path for path in opens if path.is_relative_to(tmp_path) and "folder-" in path.name]) == 10

    play(scenario)


def test_beyond_the_bound_a_request_is_answered_503(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened, bounds=dataclasses.replace(BOUNDS, max_requests=2)) as server:
            waiting = [asyncio.create_task(server.get("/wait")) for _ in range(2)]
            await until(lambda: server.counts.requests == 2)
            async with server.client.get(server.url) as answer:
                assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
            assert [await each for each in waiting] == [(200, GREETING)] * 2
            assert await server.get() == (200, GREETING)
            assert server.counts.refused == 1

    play(scenario)


def test_a_guest_that_computes_for_ever_stops_neither_others_nor_the_clock(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened, bounds=SHORT) as server:
            spinning = asyncio.create_task(server.get("/spin"))
            await until(lambda: server.counts.requests == 1)
            assert await server.get() == (200, GREETING)
            assert not spinning.done()
            assert (await spinning)[0] == 504
            assert server.counts.overdue == 1
            assert "GET /spin: not done within 1 s" in await server.log()

    play(scenario)


def test_a_guest_that_never_answers_is_given_up(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened, bounds=SHORT) as server:
            assert (await server.get("/never"))[0] == 504
            assert await server.get() == (200, GREETING)

    play(scenario)


def test_a_guest_whose_client_is_gone_is_given_up(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened, bounds=dataclasses.replace(BOUNDS, max_requests=1)) as server:
            _, writer = await server.connect()
            writer.write(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: server.counts.requests == 1)
            writer.close()
            await until(lambda: server.counts.requests == 0)
            assert await server.get() == (200, GREETING)

    play(scenario)


def test_a_trap_is_500_and_is_told_in_the_log(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened) as server:
            assert (await server.get("/trap"))[0] == 500
            assert (await server.get("/quit"))[0] == 500
            assert await server.get() == (200, GREETING)
            assert server.counts.failed == 2
            log = await server.log()
            assert "wherry: GET /trap: wasm trap: wasm `unreachable` instruction executed" in log
            assert ("failed to produce a result" if opened.wasi_03 else "without an answer") in log

    play(scenario)


def test_half_an_answer_never_looks_complete(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened) as server:
            with pytest.raises(aiohttp.ClientPayloadError):
                await server.get("/half")
            said = await server.asks(b"GET /half HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert b"half" in said
            assert not said.endswith(b"0\r\n\r\n"), "the last chunk of a complete body"
            assert await server.get() == (200, GREETING)

    play(scenario)


def test_a_slow_head_and_an_idle_connection_are_cut_off(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        for bounds, data in (
            (dataclasses.replace(BOUNDS, head_seconds=1.0), b"GET / HTTP/1.1\r\nX: "),
            (dataclasses.replace(BOUNDS, idle_seconds=1.0), b""),
        ):
            async with served(opened, bounds=bounds) as server:
                assert await server.asks(data) == b""
                await _are_closed(server)

    play(scenario)


def test_a_head_that_comes_in_drops_is_not_waited_for(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened, bounds=dataclasses.replace(BOUNDS, head_seconds=1.0)) as server:
            reader, writer = await server.connect()

            async def drip() -> None:
                with contextlib.suppress(ConnectionError):
                    while True:
                        writer.write(b"x")
                        await writer.drain()
                        await asyncio.sleep(0.05)

            writer.write(b"GET / HTTP/1.1\r\nX: ")
            dripping = asyncio.create_task(drip())
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            dripping.cancel()
            await asyncio.gather(dripping, return_exceptions=True)
            writer.close()
            assert await server.get() == (200, GREETING)

    play(scenario)


def test_a_client_that_takes_nothing_is_cut_off(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        bounds = dataclasses.replace(BOUNDS, idle_seconds=1.0)
        async with served(opened, bounds=bounds) as server:
            _, writer = await server.connect()
            writer.write(b"GET /pour HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: server.counts.requests == 1)
            await until(lambda: server.counts.connections == 0 and server.counts.requests == 0)
            writer.close()

    play(scenario)


def test_a_huge_head_is_refused(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened, bounds=dataclasses.replace(BOUNDS, head_bytes=8192)) as server:
            for head in (
                b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
                b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000 + b"\r\n\r\n",
                b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X%d: y\r\n" % n for n in range(500)) + b"\r\n",
            ):
                said = await server.asks(head)
                assert said == b"" or said.split()[1] in (b"431", b"414"), said
            assert await server.get() == (200, GREETING)

    play(scenario)


def test_what_is_no_request_is_refused(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened) as server:
            for data in (b"\0\1\2\r\n\r\n", b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n"):
                assert (await server.asks(data)).split()[1] == b"400"
            assert b"200 OK" in await server.asks(b"GET / HTTP/1.0\r\n\r\n")

    play(scenario)


def test_an_endless_body_ends_with_its_requests_time(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened, bounds=SHORT) as server:

            async def endless() -> AsyncIterator[bytes]:
                while True:
                    yield b"x" * 65536
                    await asyncio.sleep(0.01)

            with contextlib.suppress(aiohttp.ClientError, ConnectionError):
                async with server.client.post(server.url + "/read", data=endless()) as answer:
                    assert answer.status == 504
            await until(lambda: server.counts.requests == 0)
            assert server.counts.overdue == 1
            assert await server.get() == (200, GREETING)

    play(scenario)


def test_instances_share_their_containers_memory(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened, limits=Limits(memory_bytes=24 << 20)) as server:
            first = asyncio.create_task(server.get("/memory"))
            await until(lambda: server.counts.requests == 1)
            assert (await server.get("/memory"))[0] == 500
            assert await first == (200, GREETING)
            assert await server.get("/memory") == (200, GREETING)
            assert "all instances together wanted" in await server.log()

    play(scenario)


def test_fuel_is_each_requests_own(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened, limits=Limits(fuel=100_000)) as server:
            for _ in range(3):
                assert await server.get() == (200, GREETING)
                assert (await server.get("/spin"))[0] == 500
            assert "all fuel consumed" in await server.log()

    play(scenario)


def test_a_server_drains(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened) as server:
            _, idle = await server.connect()
            waiting = [asyncio.create_task(server.get("/wait")) for _ in range(10)]
            await until(lambda: server.counts.requests == 10)
            server.running.guest.drain()
            outcome = await opened.end(server.running)
            assert (outcome.exit.exit_code, outcome.exit.reason) == (0, "Completed")
            assert [await each for each in waiting] == [(200, GREETING)] * 10
            assert outcome.exit.http is not None
            assert outcome.exit.http.answers == (0, 10, 0, 0, 0)
            idle.close()
            with pytest.raises(ConnectionRefusedError):
                await server.connect()

    play(scenario)


def test_who_waits_in_the_queue_when_a_server_drains_is_answered(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened, bounds=dataclasses.replace(BOUNDS, max_connections=1)) as server:
            first = asyncio.create_task(server.asks(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n"))
            await until(lambda: server.counts.requests == 1)
            queued = asyncio.create_task(server.asks(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
            reader, writer = await server.connect()  # behind it, so it has been there, too
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            server.running.guest.drain()
            for said in (await first, await queued, await reader.read()):
                assert said.startswith(b"HTTP/1.1 200 OK"), said
            writer.close()
            assert (await server.running.guest.wait()).exit_code == 0

    play(scenario)


def test_connections_beyond_the_bound_take_the_place_of_idle_ones(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        bounds = dataclasses.replace(BOUNDS, max_connections=4)
        async with served(opened, bounds=bounds) as server:
            idle = [await server.connect() for _ in range(20)]
            await until(lambda: server.counts.connections == 4)
            assert await server.get() == (200, GREETING)
            for _, writer in idle:
                writer.close()

    play(scenario)


def test_a_module_that_can_have_no_instance_does_not_serve(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        serving = HttpServing(listener=listener.fileno())
        running = await opened.start(server_module(opened), limits=Limits(memory_bytes=65536), http=serving)
        listener.close()
        assert not await running.guest.serving()
        end = (await opened.end(running)).exit
        assert (end.exit_code, end.reason) == (128, "Error")
        assert "its memories and tables begin with" in end.message

    play(scenario)


def test_who_serves_without_a_port_is_refused(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        module = await opened.compile(server_module(opened))
        assert module.kind is ModuleKind.HTTP
        with pytest.raises(StartRefused, match="listening socket"):
            await opened.start(module)

    play(scenario)


def test_the_python_executor_says_that_it_does_not_serve(tmp_path: Path, store: Path) -> None:
    async def scenario() -> None:
        async with asyncio.timeout(SCENARIO_SECONDS), bench("python", tmp_path, store) as opened:
            with pytest.raises(StartRefused, match="serves HTTP, which the python executor can't do"):
                await opened.start(SERVER)

    before = children()
    asyncio.run(scenario())
    assert children() == before
