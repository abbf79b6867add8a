"""A client of SPDY/3.1: as little of one as the tests need."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Callable

from wherry_operator.kubelet.spdy import Headers
from wherry_operator.models import Object


class SpdyClient:
    """Opens streams, and takes what comes on them."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._headers = Headers()
        self.names: dict[int, str] = {}
        self.shown: dict[str, bytes] = {}
        self.ended: set[str] = set()
        self.refused: set[str] = set()
        self.pongs: list[bytes] = []

    def open(self, *names: str) -> None:
        """Streams of these types."""
        for name in names:
            self.open_as(name, streamtype=name)

    def open_as(self, name: str, **headers: str) -> None:
        """A stream with these headers; the name is ours for it."""
        number = 2 * len(self.names) + 1
        self.names[number] = name
        self.control(1, struct.pack(">IIH", number, 0, 0) + self._headers.write(headers))

    def control(self, kind: int, body: bytes) -> None:
        self.writer.write(struct.pack(">HHI", 0x8003, kind, len(body)) + body)

    def data(self, name: str, data: bytes, *, fin: bool = False) -> None:
        number = next(number for number, each in self.names.items() if each == name)
        self.writer.write(struct.pack(">II", number, fin << 24 | len(data)) + data)

    async def read(self, until: Callable[[], bool]) -> None:
        """Take frames until something holds."""
        while not until():
            head = await self.reader.readexactly(8)
            length = int.from_bytes(head[5:])
            body = await self.reader.readexactly(length)
            if head[0] & 0x80:
                if head[3] == 6:
                    self.pongs.append(body)
                elif head[3] == 3:
                    self.refused.add(self.names[int.from_bytes(body[:4])])
                continue
            name = self.names[int.from_bytes(head[:4])]
            self.shown[name] = self.shown.get(name, b"") + body
            if head[4] & 1:
                self.ended.add(name)

    async def rest(self) -> bytes:
        """What comes up to the end. One in the middle of what we send is a reset."""
        try:
            return await self.reader.read()
        except ConnectionResetError:
            return b""

    async def status(self) -> Object:
        await self.read(lambda: "error" in self.ended)
        found: Object = json.loads(self.shown["error"])
        return found
