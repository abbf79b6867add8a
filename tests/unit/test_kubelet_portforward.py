"""Port-forward over real connections, from a client that speaks as an API server does to a guest that listens."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from tests.support.handled import handled
from tests.support.spdy import SpdyClient
from wherry_operator.kubelet import portforward
from wherry_operator.models import Object

CLOSED = 1
"""A port of the Pod where nothing listens: it is not to be had without privileges."""


MOVED = 2
"""A port that the Pod names, and that is another on its runner."""


class Guest:
    """Says back what it hears, in capitals, and that it has heard the end."""

    def __init__(self) -> None:
        self.connections = 0
        self.left = asyncio.Event()
        self.deaf = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            if self.deaf:
                return
            while piece := await reader.read(1 << 16):
                writer.write(piece.upper())
                await writer.drain()
            writer.write(b"<end>")
        except ConnectionError:
            pass
        finally:
            self.left.set()
            writer.close()


class Stage:
    def __init__(self, port: int, guest: Guest, guest_port: int) -> None:
        self.port = port
        self.guest = guest
        self.guest_port = guest_port

    @asynccontextmanager
    async def client(self, version: str = portforward.PROTOCOL) -> AsyncIterator[SpdyClient]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = "POST /portForward HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
        writer.write(f"{head}X-Stream-Protocol-Version: {version}\r\n\r\n".encode())
        try:
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 101 "), answer
            yield SpdyClient(reader, writer)
        finally:
            writer.transport.abort()

    def connect(self, client: SpdyClient, number: int, port: int | None = None) -> None:
        """As kubectl does for each connection that it takes."""
        headers = {"port": str(self.guest_port if port is None else port), "requestid": str(number)}
        client.open_as(f"error-{number}", streamtype="error", **headers)
        client.open_as(f"data-{number}", streamtype="data", **headers)


def play(scenario: Callable[[Stage], Awaitable[None]], *, address: str = "127.0.0.1") -> None:
    async def run() -> None:
        guest = Guest()
        listening = await asyncio.start_server(guest.serve, "127.0.0.1", 0)
        guest_port = listening.sockets[0].getsockname()[1]
        ports = [{"containerPort": each} for each in (guest_port, CLOSED, MOVED)]
        pod: Object = {
            "metadata": {"name": "hello", "uid": "u1"},
            "spec": {"containers": [{"name": "main", "ports": ports}, {"name": "other"}]},
        }
        moved = {guest_port: guest_port, MOVED: guest_port, CLOSED: CLOSED}

        def to(port: int) -> Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
            return portforward.connect(pod, port, address=address, ports=moved)

        async def handle(request: web.Request) -> web.StreamResponse:
            try:
                return await portforward.serve(request, pod, to)
            except portforward.BadRequest as error:
                return web.Response(status=400, text=str(error))

        try:
            async with handled("/portForward", handle) as port, asyncio.timeout(60):
                await scenario(Stage(port, guest, guest_port))
        finally:
            listening.close()

    asyncio.run(run())


def test_several_connections_share_one() -> None:
    async def scenario(stage: Stage) -> None:
        async with stage.client() as client:
            for number in (0, 1):
                stage.connect(client, number)
                client.data(f"data-{number}", f"hello {number}".encode())
            await client.read(lambda: client.shown == {"data-0": b"HELLO 0", "data-1": b"HELLO 1"})
            client.data("data-0", b"!", fin=True)
            await client.read(lambda: {"data-0", "error-0"} <= client.ended)
            assert client.shown["data-0"] == b"HELLO 0!<end>", "what it says after the client's last word comes too"
            client.data("data-1", b"?" * 300_000)
            await client.read(lambda: len(client.shown["data-1"]) == 300_007)
            assert client.ended == {"data-0", "error-0"}
            assert "error-0" not in client.shown or not client.shown["error-0"]

    play(scenario)


def test_thousands_one_after_the_other_leave_nothing_behind() -> None:
    async def scenario(stage: Stage) -> None:
        async with stage.client() as client:
            for number in range(2 * portforward.MAX_CONNECTIONS):
                stage.connect(client, number)
                client.data(f"data-{number}", b"x", fin=True)
                await client.read(lambda number=number: f"error-{number}" in client.ended)  # type: ignore[misc]
                assert client.shown[f"data-{number}"] == b"X<end>"
        assert stage.guest.connections == 2 * portforward.MAX_CONNECTIONS

    play(scenario)


def test_too_many_at_a_time_end_the_connection() -> None:
    async def scenario(stage: Stage) -> None:
        async with stage.client() as client:
            for number in range(portforward.MAX_CONNECTIONS + 1):
                stage.connect(client, number)
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await client.read(lambda: False)

    play(scenario)


@pytest.mark.parametrize(
    ("port", "text"),
    [
        (CLOSED, "error forwarding port 1 to pod hello, uid u1: [Errno 111]"),
        (6443, "error forwarding port 6443 to pod hello, uid u1: pod hello has no port 6443: it has 1, "),
    ],
)
def test_what_can_not_be_forwarded_is_said_on_the_stream_for_it(port: int, text: str) -> None:
    async def scenario(stage: Stage) -> None:
        async with stage.client() as client:
            stage.connect(client, 0, port)
            await client.read(lambda: {"data-0", "error-0"} <= client.ended)
            assert client.shown["error-0"].decode().startswith(text)
            stage.connect(client, 1)
            client.data("data-1", b"a", fin=True)
            await client.read(lambda: "data-1" in client.ended)
            assert client.shown["data-1"] == b"A<end>", "others go on"

    play(scenario)


def test_a_port_that_had_to_be_another_goes_by_its_own_name() -> None:
    async def scenario(stage: Stage) -> None:
        async with stage.client() as client:
            stage.connect(client, 0, MOVED)
            client.data("data-0", b"a", fin=True)
            await client.read(lambda: "data-0" in client.ended)
            assert client.shown["data-0"] == b"A<end>"

    play(scenario)


def test_a_pod_that_serves_nowhere_says_so() -> None:
    async def scenario(stage: Stage) -> None:
        async with stage.client() as client:
            stage.connect(client, 0)
            await client.read(lambda: "error-0" in client.ended)
            assert f"pod hello does not serve on port {stage.guest_port} now" in client.shown["error-0"].decode()

    play(scenario, address="")


def test_the_guest_is_left_when_the_client_goes_and_the_client_when_the_guest_goes() -> None:
    async def scenario(stage: Stage) -> None:
        async with stage.client() as client:
            stage.connect(client, 0)
            client.data("data-0", b"a")
            await client.read(lambda: client.shown.get("data-0") == b"A")
        await stage.guest.left.wait()
        stage.guest.deaf = True
        async with stage.client() as client:
            stage.connect(client, 0)
            client.data("data-0", b"nobody reads this" * 100_000)
            await client.read(lambda: {"data-0", "error-0"} <= client.ended)

    play(scenario)


@pytest.mark.parametrize(
    "headers",
    [
        {"streamtype": "stdin", "port": "80", "requestid": "1"},
        {"streamtype": "data", "port": "0", "requestid": "1"},
        {"streamtype": "data", "port": "65536", "requestid": "1"},
        {"streamtype": "data", "port": "eighty", "requestid": "1"},
        {"streamtype": "data", "requestid": "1"},
    ],
)
def test_a_stream_that_says_nothing_sensible_is_refused(headers: dict[str, str]) -> None:
    async def scenario(stage: Stage) -> None:
        async with stage.client() as client:
            client.open_as("odd", **headers)
            await client.read(lambda: client.refused == {"odd"})
            stage.connect(client, 1)
            client.data("data-1", b"a", fin=True)
            await client.read(lambda: "data-1" in client.ended)

    play(scenario)


def test_half_a_connection_is_waited_for_and_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portforward, "PAIR_SECONDS", 0.01)

    async def scenario(stage: Stage) -> None:
        async with stage.client() as client:
            client.open_as("half", streamtype="error", port=str(stage.guest_port), requestid="0")
            await client.read(lambda: client.refused == {"half"})
            client.open_as("alone", streamtype="data", port=str(stage.guest_port), requestid="0")
            await client.read(lambda: client.refused == {"half", "alone"})
        assert stage.guest.connections == 0

    play(scenario)


def test_another_protocol_is_refused_in_words() -> None:
    async def scenario(stage: Stage) -> None:
        for headers, status, text in (
            ("", b"400", b"port-forward needs SPDY/3.1"),
            ("Upgrade: websocket\r\n", b"400", b"port-forward needs SPDY/3.1"),
            ("Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v9\r\n", b"403", b"server accepts [portforward.k8s.io]"),
        ):
            reader, writer = await asyncio.open_connection("127.0.0.1", stage.port)
            writer.write(f"POST /portForward HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{headers}\r\n".encode())
            answer = await reader.read()
            writer.close()
            assert answer.startswith(b"HTTP/1.1 " + status) and text in answer

    play(scenario)
