"""gRPC probes against servers on loopback: what is asked, and what is said of each answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import h2.config
import h2.connection
import h2.errors
import h2.events
import pytest

from wherry_runner.lives.asking import Target
from wherry_runner.lives.probing import attempt
from wherry_runner.protocol import Probe

Headers = Sequence[tuple[str, str]]

OK = ((":status", "200"), ("content-type", "application/grpc"))
"""How each answer of gRPC begins."""

SERVING, NOT_SERVING, UNKNOWN = b"\0\0\0\0\2\x08\1", b"\0\0\0\0\2\x08\2", b"\0\0\0\0\0"


@dataclass
class Server:
    """Answers each request alike; `reset`: with an end of the stream, in the place of all else."""

    head: Headers = OK
    body: bytes | None = SERVING
    trailers: Headers | None = (("grpc-status", "0"),)
    reset: bool = False

    def __post_init__(self) -> None:
        self.asked: list[tuple[dict[str, str], bytes]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        connection = h2.connection.H2Connection(config)
        connection.initiate_connection()
        head: dict[str, str] = {}
        while data := await reader.read(65_536):
            for event in connection.receive_data(data):
                match event:
                    case h2.events.RequestReceived():
                        head = {str(name): str(value) for name, value in event.headers or ()}
                    case h2.events.DataReceived(data=bytes(body), stream_id=int(stream)):
                        self.asked.append((head, body))
                        self._answer(connection, stream)
            writer.write(connection.data_to_send())

    def _answer(self, connection: h2.connection.H2Connection, stream: int) -> None:
        if self.reset:
            return connection.reset_stream(stream, h2.errors.ErrorCodes.INTERNAL_ERROR)
        connection.send_headers(stream, self.head, end_stream=self.body is None and self.trailers is None)
        if self.body is not None:
            connection.send_data(stream, self.body, end_stream=self.trailers is None)
        if self.trailers is not None:
            connection.send_headers(stream, self.trailers, end_stream=True)


@asynccontextmanager
async def listening(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """The server's port; at the end its connections have ended too."""
    ends: list[asyncio.Event] = []

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ends.append(end := asyncio.Event())
        try:
            with suppress(ConnectionError):  # who asks goes without a word
                await serve(reader, writer)
        finally:
            writer.close()
            end.set()

    server = await asyncio.start_server(one, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.gather(server.wait_closed(), *(end.wait() for end in ends))


def target(port: int | None, *, named: int = 80) -> Target:
    return Target(address="127.0.0.1", port=lambda: port, named=lambda: named, serves=lambda: True)


async def asked(server: Server, service: str = "") -> str:
    async with listening(server.serve) as port:
        return await attempt(Probe(port=80, grpc_service=service, timeout_seconds=60), target(port))


def ended(code: int, message: str = "") -> Server:
    """One that answers with an error: its head is all there is."""
    return Server(head=(*OK, ("grpc-status", str(code)), ("grpc-message", message)), body=None, trailers=None)


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        (Server(), ""),
        (Server(body=NOT_SERVING), 'service unhealthy (responded with "NOT_SERVING")'),
        (Server(body=UNKNOWN), 'service unhealthy (responded with "UNKNOWN")'),
        (Server(body=b"\0\0\0\0\3\x08\xac\2"), 'service unhealthy (responded with "300")'),
        (
            ended(5, "unknown%20service"),
            "error: health rpc probe failed: rpc error: code = NotFound desc = unknown service",
        ),
        (
            Server(trailers=(("grpc-status", "13"), ("grpc-message", "no"))),
            "error: health rpc probe failed: rpc error: code = Internal desc = no",
        ),
        (
            ended(12, "unknown method"),
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): unknown method",
        ),
        (
            Server(head=((":status", "404"),), body=b"no", trailers=None),
            (
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): "
                "unexpected HTTP status code received from server: 404"
            ),
        ),
        (
            Server(head=((":status", "500"),), body=None, trailers=None),
            (
                "error: health rpc probe failed: rpc error: code = Unknown desc = "
                "unexpected HTTP status code received from server: 500"
            ),
        ),
        (ended(4), "timeout: health rpc did not complete within 1m0s"),
        (
            Server(trailers=None),
            (
                "error: health rpc probe failed: rpc error: code = Unavailable desc = "
                "server closed the stream without sending trailers"
            ),
        ),
        (
            Server(body=b"\0\0\0\0\2\x12\0"),
            "error: health rpc probe failed: rpc error: code = Unavailable desc = failed to unmarshal the received message",
        ),
        (
            Server(body=b"\0" * 5_000),
            "error: health rpc probe failed: rpc error: code = Unavailable desc = received message larger than max",
        ),
        (
            Server(reset=True),
            (
                "error: health rpc probe failed: rpc error: code = Unavailable desc = "
                "stream terminated by RST_STREAM with error code: INTERNAL_ERROR"
            ),
        ),
    ],
)
def test_what_is_said_of_an_answer(server: Server, expected: str) -> None:
    assert asyncio.run(asked(server)) == expected


def test_what_is_asked() -> None:
    server = Server()
    assert asyncio.run(asked(server, "boats.v1.Boats")) == ""
    ((head, body),) = server.asked
    assert (head[":method"], head[":scheme"], head[":path"]) == ("POST", "http", "/grpc.health.v1.Health/Check")
    assert (head["content-type"], head["te"]) == ("application/grpc", "trailers")
    assert body == b"\0\0\0\0\x10\x0a\x0eboats.v1.Boats"
    long = Server()
    assert asyncio.run(asked(long, "b" * 300)) == ""
    assert long.asked[0][1][5:] == b"\x0a\xac\2" + b"b" * 300


def test_where_nobody_listens_or_on_another_port_than_its_own_it_fails_as_if_it_had_tried_for_long() -> None:
    async def scenario() -> None:
        async with listening(Server().serve) as port:
            pass
        for where, asks in ((target(port), 80), (target(None), 80), (target(port), 81)):
            shown = port if asks == 80 and where.port() else asks
            assert await attempt(Probe(port=asks, grpc_service="", timeout_seconds=2), where) == (
                f'timeout: failed to connect service "127.0.0.1:{shown}" within 2s: context deadline exceeded'
            )

    asyncio.run(scenario())


def test_a_server_that_does_not_answer_is_given_up_and_one_of_http_1_is_none() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def older(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")

    async def hasty(*_: object) -> None:
        """Closes at once."""

    async def scenario() -> None:
        probe = Probe(port=80, grpc_service="", timeout_seconds=1)
        async with listening(silent) as port:
            assert await attempt(probe, target(port)) == "timeout: health rpc did not complete within 1s"
        for serve in (older, hasty):
            async with listening(serve) as port:
                failure = await attempt(probe.model_copy(update={"timeout_seconds": 60}), target(port))
            assert failure.startswith("error: health rpc probe failed: rpc error: code = Unavailable desc = ")

    asyncio.run(scenario())
