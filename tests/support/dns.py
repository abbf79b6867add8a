"""A name server on loopback that answers as a test says, and notes what it was asked."""

from __future__ import annotations

import asyncio
import ipaddress
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

_A = 1
_RESPONSE, _TRUNCATED, _NO_NAME = 0x8180, 0x0200, 3


@dataclass
class NameServer:
    """Answers for names; any other does not exist."""

    answers: dict[str, Iterator[list[str]]]
    """By name: what each lookup gets, one after the other; its questions for the two families share it."""
    truncates: bool = False
    """Answers by UDP are cut."""
    seconds: int = 0
    """For which an answer holds."""
    asked: list[str] = field(default_factory=list)
    address: str = ""
    _lookups: dict[str, tuple[list[str], set[int]]] = field(default_factory=dict)
    """Of each name the newest: what it gets, and the families that were asked for."""

    def answer(self, message: bytes, *, cut: bool) -> bytes:
        """The answer to a question."""
        number = message[:2]
        labels, at = [], 12
        while length := message[at]:
            labels.append(message[at + 1 : at + 1 + length].decode())
            at += 1 + length
        name = ".".join(labels)
        (kind,) = struct.unpack_from("!H", message, at + 1)
        question = message[12 : at + 5]
        self.asked.append(name)
        if name not in self.answers:
            return number + struct.pack("!5H", _RESPONSE | _NO_NAME, 1, 0, 0, 0) + question
        if cut:
            return number + struct.pack("!5H", _RESPONSE | _TRUNCATED, 1, 0, 0, 0) + question
        if name not in self._lookups or kind in self._lookups[name][1]:
            self._lookups[name] = (next(self.answers[name]), set())
        given, kinds = self._lookups[name]
        kinds.add(kind)
        wanted = 4 if kind == _A else 6
        found = [ipaddress.ip_address(text) for text in given]
        records = [
            struct.pack("!HHHIH", 0xC00C, kind, 1, self.seconds, len(address.packed)) + address.packed
            for address in found
            if address.version == wanted
        ]
        return number + struct.pack("!5H", _RESPONSE, 1, len(records), 0, 0) + question + b"".join(records)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: NameServer) -> None:
        self._server = server
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        assert self._transport is not None
        self._transport.sendto(self._server.answer(data, cut=self._server.truncates), address)


@asynccontextmanager
async def serving(server: NameServer) -> AsyncIterator[NameServer]:
    """The server answers, by UDP and TCP, as long as this lasts; its `address` is `IP:PORT`."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (length,) = struct.unpack("!H", await reader.readexactly(2))
        said = server.answer(await reader.readexactly(length), cut=False)
        writer.write(struct.pack("!H", len(said)) + said)
        await writer.drain()
        writer.close()

    stream = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = stream.sockets[0].getsockname()[1]
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(server), local_addr=("127.0.0.1", port))
    server.address = f"127.0.0.1:{port}"
    try:
        yield server
    finally:
        transport.close()
        stream.close()
        await stream.wait_closed()
