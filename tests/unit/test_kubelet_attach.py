"""Attach over real connections: SPDY as an API server speaks it, WebSockets, and what comes in pieces or is nonsense."""

from __future__ import annotations

import asyncio
import json
import random
import struct
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import cast

import aiohttp
import pytest
from aiohttp import web
from multidict import MultiDict

from tests.support.handled import handled
from tests.support.spdy import SpdyClient
from wherry_operator.kubelet import attach
from wherry_operator.kubelet.auth import Attributes
from wherry_operator.kubelet.spdy import Headers
from wherry_operator.models import Object
from wherry_operator.runners.client import Refused, RunnerClient, RunnerUnavailable
from wherry_runner.protocol import LogOptions, Refusal, RefusalReason

ALL = "input=1&output=1&error=1"
SUCCESS = {"metadata": {}, "status": "Success"}


class FakeGuest:
    """A runner with one container, which says what the test lets it say."""

    def __init__(self) -> None:
        self.says: dict[str, asyncio.Queue[bytes | Exception | None]] = {
            name: asyncio.Queue() for name in ("Stdout", "Stderr", "All")
        }
        self.options: list[LogOptions] = []
        self.heard = bytearray()
        self.refuses_input = False
        self.reads = asyncio.Event()
        self.reads.set()
        self.input_ended = asyncio.Event()
        self.left = asyncio.Event()

    @asynccontextmanager
    async def log(self, workload_id: str, container: str, options: LogOptions) -> AsyncIterator[AsyncIterator[bytes]]:
        assert (workload_id, container) == ("u1", "main")
        self.options.append(options)
        try:
            yield self._pieces(options.stream)
        finally:
            self.left.set()

    async def _pieces(self, stream: str) -> AsyncIterator[bytes]:
        while (piece := await self.says[stream].get()) is not None:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    async def write_input(self, workload_id: str, container: str, pieces: AsyncIterable[bytes]) -> None:
        if self.refuses_input:
            raise Refused(Refusal(reason=RefusalReason.NO_INPUT, message="closed"))
        async for piece in pieces:
            await self.reads.wait()
            self.heard += piece
        self.input_ended.set()

    def end(self) -> None:
        for queue in self.says.values():
            queue.put_nowait(None)


class Stage:
    def __init__(self, port: int, guest: FakeGuest, spec: Object) -> None:
        self.port = port
        self.guest = guest
        self.spec = spec


def play(scenario: Callable[[Stage], Awaitable[None]], **spec: object) -> None:
    async def run() -> None:
        guest = FakeGuest()
        container: Object = {"name": "main", "stdin": True, **spec}
        pod: Object = {"metadata": {"uid": "u1"}, "spec": {"containers": [container]}}

        async def handle(request: web.Request) -> web.StreamResponse:
            try:
                return await attach.serve(request, pod, "main", cast("RunnerClient", guest))
            except attach.BadRequest as error:
                return web.Response(status=400, text=str(error))

        async with handled("/attach", handle) as port, asyncio.timeout(60):
            await scenario(Stage(port, guest, container))

    asyncio.run(run())


# --- SPDY -------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def spdy(stage: Stage, query: str = ALL, version: str = attach.SPDY) -> AsyncIterator[SpdyClient]:
    reader, writer = await asyncio.open_connection("127.0.0.1", stage.port)
    head = f"POST /attach?{query} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
    writer.write(f"{head}X-Stream-Protocol-Version: {version}\r\n\r\n".encode())
    try:
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101 "), answer
        yield SpdyClient(reader, writer)
    finally:
        writer.transport.abort()


def test_output_input_and_status_over_spdy() -> None:
    async def scenario(stage: Stage) -> None:
        guest = stage.guest
        async with spdy(stage) as client:
            client.open("error", "stdin", "stdout", "stderr")
            guest.says["Stdout"].put_nowait(b"out")
            guest.says["Stderr"].put_nowait(b"err")
            await client.read(lambda: (client.shown.get("stdout"), client.shown.get("stderr")) == (b"out", b"err"))
            client.data("stdin", b"typed ")
            client.data("stdin", b"twice", fin=True)
            await guest.input_ended.wait()
            assert guest.heard == b"typed twice"
            client.control(6, b"\0\0\0\7")
            await client.read(lambda: client.pongs == [b"\0\0\0\7"])
            guest.says["Stdout"].put_nowait(b"!" * 100_000)
            guest.end()
            assert await client.status() == SUCCESS
            assert client.shown["stdout"] == b"out" + b"!" * 100_000
            assert client.ended == {"stdout", "stderr", "error"}
        assert {(each.stream, each.follow, each.tail_lines) for each in guest.options} == {
            ("Stdout", True, 0), ("Stderr", True, 0),
        }  # fmt: skip

    play(scenario)


def test_frames_may_come_byte_by_byte() -> None:
    async def scenario(stage: Stage) -> None:
        async with spdy(stage) as client:
            whole = bytearray()
            client.writer.write, send = whole.extend, client.writer.write  # type: ignore[method-assign,assignment]
            client.open("error", "stdin", "stdout", "stderr")
            client.data("stdin", b"piece by piece", fin=True)
            for byte in whole:
                send(bytes([byte]))
                await asyncio.sleep(0)
            await stage.guest.input_ended.wait()
            assert stage.guest.heard == b"piece by piece"

    play(scenario)


def test_one_conversation_is_shown_from_its_start() -> None:
    async def scenario(stage: Stage) -> None:
        async with spdy(stage, "output=1&tty=1") as client:
            client.open("error", "stdout", "resize")
            stage.guest.end()
            assert await client.status() == SUCCESS
        # A terminal has one output.
        assert [(each.stream, each.tail_lines) for each in stage.guest.options] == [("All", None)]

    play(scenario, stdinOnce=True)


def test_input_that_nobody_reads_holds_up_its_writer_only() -> None:
    async def scenario(stage: Stage) -> None:
        stage.guest.reads.clear()
        async with spdy(stage) as client:
            client.open("error", "stdin", "stdout", "stderr")
            for _ in range(64):
                client.data("stdin", b"x" * 60_000)
            stage.guest.says["Stdout"].put_nowait(b"still here")
            await client.read(lambda: client.shown.get("stdout") == b"still here")
            stage.guest.reads.set()
            client.data("stdin", b"", fin=True)
            await stage.guest.input_ended.wait()
            assert len(stage.guest.heard) == 64 * 60_000

    play(scenario)


@pytest.mark.parametrize("has_input", [True, False])
def test_input_that_is_not_taken_is_dropped(has_input: bool) -> None:
    async def scenario(stage: Stage) -> None:
        stage.guest.refuses_input = True
        async with spdy(stage) as client:
            client.open("error", "stdin", "stdout", "stderr")
            client.data("stdin", b"x" * 1_000_000, fin=True)
            client.control(6, b"\0\0\0\1")
            await client.read(lambda: bool(client.pongs))
            stage.guest.end()
            assert await client.status() == SUCCESS

    play(scenario, stdin=has_input)


def test_a_runner_that_breaks_off_is_told() -> None:
    async def scenario(stage: Stage) -> None:
        async with spdy(stage) as client:
            client.open("error", "stdin", "stdout", "stderr")
            stage.guest.says["Stdout"].put_nowait(RunnerUnavailable("gone"))
            status = await client.status()
            assert (status["status"], status["message"]) == ("Failure", "gone")

    play(scenario)


def test_a_client_that_leaves_ends_everything() -> None:
    async def scenario(stage: Stage) -> None:
        async with spdy(stage) as client:
            client.open("error", "stdin", "stdout", "stderr")
            stage.guest.says["Stdout"].put_nowait(b"hello")
            await client.read(lambda: client.shown.get("stdout") == b"hello")
        await stage.guest.left.wait()

    play(scenario)


def test_nonsense_ends_the_connection() -> None:
    """Each of these is answered with its end, and the server goes on."""

    async def scenario(stage: Stage) -> None:
        dice = random.Random(7)
        samples = [dice.randbytes(dice.randrange(8, 400)) for _ in range(200)]
        samples += [
            b"\x80\x03\x00\x01\x00\xff\xff\xff",  # a control frame of 16 MB
            b"\x80\x03\x00\x01\x00\x00\x00\x02\0\0",  # a stream without a number
            b"\x80\x03\x00\x01\x00\x00\x00\x0c" + struct.pack(">IIH", 1, 0, 0) + b"no",  # no zlib
            b"\x80\x02\x00\x06\x00\x00\x00\x04\0\0\0\1",  # SPDY/2
        ]
        for sample in samples:
            async with spdy(stage) as client:
                # The end of the client's half is the end, wherever the server stood.
                client.writer.write(sample)
                client.writer.write_eof()
                assert b"HTTP/1.1" not in await client.rest()
        test_headers = Headers()
        async with spdy(stage) as client:
            for number in range(1, 101, 2):
                block = test_headers.write({"streamtype": "stdout"})
                client.control(1, struct.pack(">IIH", number, 0, 0) + block)
            await client.rest()  # too many streams
        async with spdy(stage) as client:
            client.open("error", "stdin", "stdout", "stderr")
            stage.guest.end()
            assert await client.status() == SUCCESS

    play(scenario)


# --- WebSocket --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def websocket(stage: Stage, query: str = ALL, version: str = "v5.channel.k8s.io") -> AsyncIterator[
    aiohttp.ClientWebSocketResponse
]:  # fmt: skip
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"http://127.0.0.1:{stage.port}/attach?{query}", protocols=[version]) as connection,
    ):
        yield connection


@pytest.mark.parametrize("version", attach.WEBSOCKETS)
def test_output_input_and_status_over_a_websocket(version: str) -> None:
    async def scenario(stage: Stage) -> None:
        async with websocket(stage, version=version) as client:
            assert client.protocol == version
            await client.send_bytes(b"\0typed")
            await client.send_str("no channel")
            await client.send_str("\0 as text")
            await client.send_bytes(b"\4" + b'{"Width":80,"Height":24}')
            stage.guest.says["Stderr"].put_nowait(b"err")
            assert await client.receive_bytes() == b"\2err"
            await client.send_bytes(b"\xff\0")  # the end of its input
            await stage.guest.input_ended.wait()
            assert stage.guest.heard == b"typed as text"
            stage.guest.end()
            status = await client.receive_bytes()
            assert (status[0], json.loads(status[1:])) == (3, SUCCESS)
            assert (await client.receive()).type is aiohttp.WSMsgType.CLOSE
        assert stage.guest.left.is_set()

    play(scenario)


def test_a_websocket_that_goes_ends_everything() -> None:
    async def scenario(stage: Stage) -> None:
        async with websocket(stage) as client:
            stage.guest.says["Stdout"].put_nowait(b"hello")
            assert await client.receive_bytes() == b"\1hello"
        await stage.guest.left.wait()

    play(scenario)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_what_can_not_be_attached_to_is_refused_before_the_upgrade() -> None:
    async def scenario(stage: Stage) -> None:
        async def ask(query: str, **headers: str) -> tuple[int, str]:
            async with (
                aiohttp.ClientSession() as session,
                session.post(f"http://127.0.0.1:{stage.port}/attach?{query}", headers=headers) as answer,
            ):
                return answer.status, await answer.text()

        upgrade = {"Connection": "Upgrade", "Upgrade": "SPDY/3.1"}
        assert await ask("tty=1", **upgrade) == (400, "you must specify at least 1 of stdin, stdout, stderr")
        assert (await ask(ALL))[0] == 400
        old = await ask(ALL, **upgrade, **{"X-Stream-Protocol-Version": "channel.k8s.io"})
        assert old[0] == 403 and "unable to negotiate protocol" in old[1]
        assert (await ask(ALL, Connection="Upgrade", Upgrade="websocket"))[0] == 400

    play(scenario)


def test_wishes() -> None:
    def of(**query: str) -> attach.Wanted:
        return attach.Wanted.of(MultiDict(query))

    assert of(input="1", output="1", error="1", tty="1") == attach.Wanted(input=True, outputs=("stdout",), tty=True)
    assert of(error="1").outputs == ("stderr",)
    with pytest.raises(attach.BadRequest):
        of(input="true")


def test_whoever_may_only_read_the_node_may_not_write_to_its_containers() -> None:
    assert Attributes.of("GET", "/attach/default/hello/main").verb == "create"
    assert Attributes.of("GET", "/containerLogs/default/hello/main").verb == "get"
