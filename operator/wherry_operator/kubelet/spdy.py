"""The server's side of SPDY/3.1, as far as API servers use it to attach and to forward ports: streams that the client opens,
and their data.

Frames and header blocks: draft-mbelshe-httpbis-spdy-00, §2. There is no flow control in it, as in Kubernetes' own library
(moby/spdystream): a slow reader is waited for by TCP alone.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections import deque
from collections.abc import AsyncIterator

from aiohttp import web

VERSION = 3

MAX_CONTROL_BYTES = 16 << 10
"""Of one control frame, and of its headers: a stream has three short ones."""

MAX_STREAMS = 16
"""At a time. Who attaches opens five at most."""

MAX_UNREAD_BYTES = 256 << 10
"""Of input that nobody has taken yet: beyond it the client has to wait."""

FRAME_BYTES = 32 << 10
"""Of one data frame that we send."""

CLOSE_SECONDS = 5.0
"""How long the client may take to close the connection after our last word."""

_SYN_STREAM, _SYN_REPLY, _RST_STREAM, _PING, _HEADERS = 1, 2, 3, 6, 8
_FIN = 0x01
_REFUSED_STREAM = 3

_KEPT = ("stdin", "data")
"""The types of streams on which clients have something to say."""

# §2.6.10.1: both sides compress header blocks with this in mind. Names and values with their length, then plain text.
_WORDS = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow "
    "authorization cache-control connection content-base content-encoding content-language content-length content-location "
    "content-md5 content-range content-type date etag expect expires from host if-match if-modified-since if-none-match "
    "if-range if-unmodified-since last-modified location max-forwards pragma proxy-authenticate proxy-authorization range "
    "referer retry-after server te trailer transfer-encoding upgrade user-agent vary via warning www-authenticate method get "
    "status 200_OK version HTTP/1.1 url public set-cookie keep-alive origin"
)
_TEXT = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Authoritative "
    "Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 Internal "
    "Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, "
    "Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,"
    "application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8"
    "charset=iso-8859-1,utf-,*,enq=0."
)
DICTIONARY = (
    b"".join(
        struct.pack(">I", len(word)) + word.encode() for word in (each.replace("_", " ") for each in _WORDS.split(" "))
    )
    + _TEXT.encode()
)


class ProtocolError(Exception):
    """The client does not speak SPDY as it should."""


class Headers:
    """Header blocks of one connection: each is compressed with those before it in mind."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._deflate = zlib.compressobj(zdict=DICTIONARY)

    def read(self, block: bytes) -> dict[str, str]:
        """A block's headers. Raises ProtocolError."""
        try:
            plain = self._inflate.decompress(block, MAX_CONTROL_BYTES)
        except zlib.error as error:
            raise ProtocolError(f"headers: {error}") from None
        if self._inflate.unconsumed_tail:
            raise ProtocolError("headers: too many")
        fields = _Fields(plain)
        return {fields.text().lower(): fields.text() for _ in range(fields.number())}

    def write(self, headers: dict[str, str]) -> bytes:
        """A block of these headers."""
        plain = struct.pack(">I", len(headers))
        for text in (each for pair in headers.items() for each in pair):
            plain += struct.pack(">I", len(text)) + text.encode()
        return self._deflate.compress(plain) + self._deflate.flush(zlib.Z_SYNC_FLUSH)


class _Fields:
    def __init__(self, data: bytes) -> None:
        self._rest = data

    def number(self) -> int:
        return int.from_bytes(self._take(4))

    def text(self) -> str:
        return self._take(self.number()).decode(errors="replace")

    def _take(self, count: int) -> bytes:
        if count > len(self._rest):
            raise ProtocolError("headers: cut off")
        found, self._rest = self._rest[:count], self._rest[count:]
        return found


class Stream:
    """One stream. What the client sends on it is kept only if `kept` says so."""

    def __init__(self, stream_id: int, headers: dict[str, str]) -> None:
        self.id = stream_id
        self.headers = headers
        self.kept = False
        self.ended = False
        """The client sends no more."""
        self.pieces: deque[bytes] = deque()
        self.unread = 0
        self.changed = asyncio.Event()


class SpdyConnection(asyncio.Protocol):
    """Takes over a connection after its upgrade, and hands it back, closed, to the protocol that had it."""

    def __init__(self, transport: asyncio.Transport, *, max_streams: int = MAX_STREAMS) -> None:
        self._transport = transport
        self._max_streams = max_streams
        self._last_id = 0
        self._unseen: deque[Stream] = deque()
        self._before = transport.get_protocol()
        self._headers = Headers()
        self._buffer = bytearray()
        self._streams: dict[int, Stream] = {}
        self._data_left = 0
        self._data_stream: Stream | None = None
        self._data_fin = False
        self._changed = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._lost = asyncio.Event()
        transport.set_protocol(self)

    # --- for the one who serves it ------------------------------------------------------------------------------------

    async def streams(self, wanted: set[str]) -> dict[str, Stream]:
        """Wait until the client has opened these, told apart by their header `streamtype`. Raises ConnectionError."""
        found: dict[str, Stream] = {}
        async for stream in self.opened():
            found[stream.headers.get("streamtype", "")] = stream
            if wanted <= found.keys():
                break
        return {name: found[name] for name in wanted}

    async def opened(self) -> AsyncIterator[Stream]:
        """Each stream that the client opens, until it goes. Raises ConnectionError then."""
        while True:
            while self._unseen:
                yield self._unseen.popleft()
            self._changed.clear()
            await self._changed.wait()
            self._check()

    def refuse(self, stream: Stream) -> None:
        """Answer that it can't be."""
        self._send(_RST_STREAM, struct.pack(">II", stream.id, _REFUSED_STREAM))
        self.forget(stream)

    def forget(self, stream: Stream) -> None:
        """Nothing more is done with it, whatever still comes on it."""
        self._streams.pop(stream.id, None)
        stream.kept = False
        stream.pieces.clear()
        if stream.unread >= MAX_UNREAD_BYTES:
            self._transport.resume_reading()
        stream.unread = 0

    async def read(self, stream: Stream) -> AsyncIterator[bytes]:
        """What the client sends on a stream, up to its end. Raises ConnectionError. `kept` must be set before any comes."""
        while True:
            while stream.pieces:
                piece = stream.pieces.popleft()
                stream.unread -= len(piece)
                if stream.unread < MAX_UNREAD_BYTES:
                    self._transport.resume_reading()
                yield piece
            if stream.ended:
                return
            stream.changed.clear()
            await stream.changed.wait()
            self._check()

    async def write(self, stream: Stream, data: bytes) -> None:
        """Send data, as fast as the client takes it. Raises ConnectionError."""
        for start in range(0, len(data), FRAME_BYTES):
            await self._writable.wait()
            self._check()
            self._data(stream, data[start : start + FRAME_BYTES], 0)

    def end(self, stream: Stream) -> None:
        """Nothing more comes on it from us."""
        if not self._lost.is_set():
            self._data(stream, b"", _FIN)

    async def close(self) -> None:
        """Let the client close, for it knows when it has read all; after a while close anyway."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._lost.wait()
        except TimeoutError:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    async def lost(self) -> None:
        """Wait until the client has gone."""
        await self._lost.wait()

    # --- asyncio's protocol -------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Take what came."""
        self._buffer += data
        try:
            while self._step():
                pass
        except ProtocolError:
            self._transport.abort()

    def eof_received(self) -> None:
        """Without its writing half a client has gone."""

    def pause_writing(self) -> None:
        """The client is slow."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._lost.set()
        for event in (self._writable, self._changed, *(stream.changed for stream in self._streams.values())):
            event.set()
        self._before.connection_lost(exc)

    # --- frames -------------------------------------------------------------------------------------------------------

    def _step(self) -> bool:
        """Take one thing out of the buffer; False if there is no whole one."""
        if self._data_left:
            return self._take_data()
        if len(self._buffer) < 8:
            return False
        first, flags, length = int.from_bytes(self._buffer[:4]), self._buffer[4], int.from_bytes(self._buffer[5:8])
        if not first >> 31:
            del self._buffer[:8]
            self._data_stream, self._data_left, self._data_fin = self._streams.get(first), length, bool(flags & _FIN)
            if not length:
                self._data_ended()
            return True
        if (first >> 16) & 0x7FFF != VERSION or length > MAX_CONTROL_BYTES:
            raise ProtocolError("no frame of SPDY/3.1, or one that is too long")
        if len(self._buffer) < 8 + length:
            return False
        body = bytes(self._buffer[8 : 8 + length])
        del self._buffer[: 8 + length]
        self._control(first & 0xFFFF, flags, body)
        return True

    def _take_data(self) -> bool:
        piece = bytes(self._buffer[: self._data_left])
        if not piece:
            return False
        del self._buffer[: len(piece)]
        self._data_left -= len(piece)
        stream = self._data_stream
        if stream is not None and stream.kept and not stream.ended:
            stream.pieces.append(piece)
            stream.unread += len(piece)
            stream.changed.set()
            if stream.unread >= MAX_UNREAD_BYTES:
                self._transport.pause_reading()
        if not self._data_left:
            self._data_ended()
        return True

    def _data_ended(self) -> None:
        if self._data_fin and self._data_stream is not None:
            self._end_of(self._data_stream)

    def _end_of(self, stream: Stream) -> None:
        stream.ended = True
        stream.changed.set()

    def _control(self, kind: int, flags: int, body: bytes) -> None:
        if kind in (_SYN_STREAM, _RST_STREAM, _PING, _HEADERS) and len(body) < (10 if kind == _SYN_STREAM else 4):
            raise ProtocolError("a frame that is too short")
        number = int.from_bytes(body[:4])
        match kind:
            case 1:
                self._open(number, flags, body[10:])
            case 3:
                if stream := self._streams.get(number):
                    self._end_of(stream)
            case 6:
                self._send(_PING, body[:4])
            case 8:
                self._headers.read(body[4:])  # what follows is compressed with it in mind

    def _open(self, stream_id: int, flags: int, block: bytes) -> None:
        stream = Stream(stream_id, self._headers.read(block))
        if stream_id % 2 == 0 or stream_id <= self._last_id or len(self._streams) >= self._max_streams:
            raise ProtocolError("a stream that can't be")
        stream.kept = stream.headers.get("streamtype") in _KEPT
        self._last_id = stream_id
        self._streams[stream_id] = stream
        self._unseen.append(stream)
        if flags & _FIN:
            self._end_of(stream)
        self._send(_SYN_REPLY, struct.pack(">I", stream_id) + self._headers.write({}))
        self._changed.set()

    def _send(self, kind: int, body: bytes) -> None:
        self._transport.write(struct.pack(">HHI", 0x8000 | VERSION, kind, len(body)) + body)

    def _data(self, stream: Stream, data: bytes, flags: int) -> None:
        self._transport.write(struct.pack(">II", stream.id, flags << 24 | len(data)) + data)

    def _check(self) -> None:
        if self._lost.is_set():
            raise ConnectionResetError("the client has gone")


def accept(request: web.Request, protocol: str, *, max_streams: int = MAX_STREAMS) -> SpdyConnection:
    """Take over the connection of a request that asks for SPDY. `protocol`: what is spoken inside.

    Raises HTTPForbidden (the client speaks another), ConnectionResetError.
    """
    offered = [
        name.strip() for line in request.headers.getall("X-Stream-Protocol-Version", []) for name in line.split(",")
    ]
    if protocol not in offered:
        raise web.HTTPForbidden(
            text=f"unable to negotiate protocol: client supports {offered}, server accepts [{protocol}]"
        )
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client has gone")
    connection = SpdyConnection(transport, max_streams=max_streams)
    transport.write(
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
        b"X-Stream-Protocol-Version: " + protocol.encode() + b"\r\n\r\n"
    )
    return connection
