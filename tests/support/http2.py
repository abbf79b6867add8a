"""A client of HTTP/2 by prior knowledge, which shows what others hide: trailers, resets, and the server's farewell."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.exceptions import ProtocolError
from hyperframe.frame import Frame, GoAwayFrame


class GoneError(Exception):
    """The server takes no more requests on this connection, so this one was not begun: another may."""


@dataclass
class Answer:
    """To one request, as far as it has come."""

    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)
    reset: int | None = None
    """The code with which the server gave it up."""
    is_over: bool = False

    @property
    def status(self) -> int:
        return int(self.headers[":status"])


class _Connection(H2Connection):
    """One that hears a farewell to its end: what was begun before goes on (RFC 9113, 6.8), where h2 takes it for closed."""

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[Event]]:
        event = ConnectionTerminated()
        event.error_code = ErrorCodes(frame.error_code)
        event.last_stream_id = frame.last_stream_id
        return [], [event]


class Http2Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self.http = _Connection(H2Configuration(client_side=True))
        self._changed = asyncio.Condition()
        self._answers: dict[int, Answer] = {}
        self.farewell: ConnectionTerminated | None = None
        self.is_closed = False

    async def begin(
        self, path: str, *, method: str = "GET", headers: dict[str, str] | None = None, more: bool = False
    ) -> int:
        """Send a request's head: its stream. `more`: a body follows. Raises GoneError."""
        while self.http.open_outbound_streams >= self.http.remote_settings.max_concurrent_streams:
            await self._change()
        if self.farewell is not None or self.is_closed:
            raise GoneError
        stream = self.http.get_next_available_stream_id()
        head = {":method": method, ":path": path, ":scheme": "http", ":authority": "localhost"} | (headers or {})
        self._answers[stream] = Answer()
        self.http.send_headers(stream, list(head.items()), end_stream=not more)
        self.flush()
        return stream

    async def send(self, stream: int, data: bytes) -> None:
        """A request's body, as the server lets it come."""
        while data:
            room = min(self.http.local_flow_control_window(stream), self.http.max_outbound_frame_size, len(data))
            if room == 0:
                await self._change()
                continue
            self.http.send_data(stream, data[:room], end_stream=room == len(data))
            data = data[room:]
            self.flush()

    async def answer(self, stream: int) -> Answer:
        """Wait for all of it. Raises GoneError where the server has not begun to work on it."""
        answer = self._answers[stream]
        while not answer.is_over:
            if self.farewell is not None and stream > (self.farewell.last_stream_id or 0):
                raise GoneError
            if self.is_closed:
                raise ConnectionError(f"closed before the end of the answer on stream {stream}")
            await self._change()
        return answer

    async def ask(
        self, path: str = "/", *, method: str = "GET", body: bytes = b"", headers: dict[str, str] | None = None
    ) -> Answer:
        """Request and answer. Raises GoneError, ConnectionError."""
        stream = await self.begin(path, method=method, headers=headers, more=bool(body))
        sending = asyncio.create_task(self.send(stream, body))
        try:
            return await self.answer(stream)
        finally:
            sending.cancel()

    async def closed(self) -> None:
        """Wait until the server has closed the connection."""
        while not self.is_closed:
            await self._change()

    def flush(self) -> None:
        """Send what was put together."""
        self.writer.write(self.http.data_to_send())

    async def listen(self) -> None:
        """Take what comes, until the server closes the connection."""
        with contextlib.suppress(ConnectionError, ProtocolError):
            while data := await self._reader.read(65536):
                for event in self.http.receive_data(data):
                    self._take(event)
                self.flush()
                await self._tell()
        self.is_closed = True
        await self._tell()

    def _take(self, event: Event) -> None:
        match event:
            case ResponseReceived():
                self._answers[event.stream_id].headers = _texts(event.headers)
            case DataReceived():
                self._answers[event.stream_id].body += event.data
                self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case TrailersReceived():
                self._answers[event.stream_id].trailers = _texts(event.headers)
            case StreamEnded():
                self._answers[event.stream_id].is_over = True
            case StreamReset():
                self._answers[event.stream_id].reset = event.error_code
                self._answers[event.stream_id].is_over = True
            case ConnectionTerminated():
                self.farewell = event

    async def _change(self) -> None:
        async with self._changed:
            await self._changed.wait()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


def _texts(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    return {
        (name if isinstance(name, str) else name.decode()): value if isinstance(value, str) else value.decode()
        for name, value in headers
    }


@asynccontextmanager
async def http2(port: int) -> AsyncIterator[Http2Client]:
    """A connection to a port of loopback, which has said what a client says first."""
    client = Http2Client(*await asyncio.open_connection("127.0.0.1", port))
    client.http.initiate_connection()
    client.flush()
    listening = asyncio.create_task(client.listen())
    try:
        yield client
    finally:
        listening.cancel()
        client.writer.close()
