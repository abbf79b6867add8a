"""Passes connections of one port on to the leader's, byte by byte: TLS and who calls are between the two ends.

A connection of which the leader is not to be had waits at its door, unread, for the whole operator that this process becomes.
Nothing is cut for being idle: a followed log may be silent for days. Who has vanished is found by TCP's own probes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable

from wherry_operator.doors import Door

log = logging.getLogger(__name__)

CONNECT_SECONDS = 2.0
"""Within which a leader that lives accepts a connection."""

PATIENCE_SECONDS = 3.0
"""For a leader that is not reached: another may lead by then, as in an update. An API server that looks whether an API is there
waits for 5 s."""

RETRY_SECONDS = 0.2
"""Between two tries."""

MOST_CONNECTIONS = 128
"""At once; more are the work of a whole operator."""

CHUNK_BYTES = 64 << 10
"""On its way at once, in each direction of a connection: the next is read once the last one was taken."""

_PROBES = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))
"""Seconds until the first one, between two, and how many remain unanswered."""

Address = tuple[str, int]


class Relay:
    """Of one port, from `start` on. What it has begun goes on after `stop`, until `close`."""

    def __init__(self, door: Door, *, leader: Callable[[], Address | None], grow: Callable[[str], None]) -> None:
        """`leader`: where it is, None where that is not known; `grow`: called when it can't be done, with the reason."""
        self._door = door
        self._leader = leader
        self._grow = grow
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()

    def start(self) -> None:
        """Accept."""
        self._door.watch(self._accepted)

    def stop(self) -> None:
        """Accept no more, and wait for no leader any more."""
        self._stopped.set()
        self._door.shut()

    async def close(self) -> None:
        """End what is on its way."""
        self.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accepted(self, client: socket.socket) -> None:
        if len(self._tasks) >= MOST_CONNECTIONS:
            self._door.keep(client)
            self._grow(f"more than {MOST_CONNECTIONS} connections are passed on to the leader")
            return
        task = asyncio.create_task(self._serve(client), name="connection to the leader")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, client: socket.socket) -> None:
        try:
            server = await self._reach()
        except BaseException:
            client.close()
            raise
        if isinstance(server, str):
            self._door.keep(client)
            self._grow(f"somebody calls, and {server}")
        else:
            await splice(client, server)

    async def _reach(self) -> socket.socket | str:
        """A connection to the leader, or why there is none."""
        why = "nobody leads"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not self._stopped.is_set():
                    address = self._leader()
                    why = "the leader does not say where it is"
                    if address is not None:
                        why = f"the leader is not reached at {address[0]}:{address[1]}"
                        with contextlib.suppress(OSError, TimeoutError):
                            async with asyncio.timeout(CONNECT_SECONDS):
                                return await _connect(address)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._stopped.wait(), RETRY_SECONDS)
        return why


async def splice(one: socket.socket, other: socket.socket) -> None:
    """Pass everything on in both directions, ends too, until both have ended or one has failed; then close both."""
    for each in (one, other):
        _prepare(each)
    ways = [asyncio.create_task(_pass(one, other)), asyncio.create_task(_pass(other, one))]
    try:
        with contextlib.suppress(OSError):
            await asyncio.gather(*ways)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        one.close()
        other.close()


async def _connect(address: Address) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        await asyncio.get_running_loop().sock_connect(made, address)
    except BaseException:
        made.close()
        raise
    return made


async def _pass(source: socket.socket, sink: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(source, CHUNK_BYTES):
        await loop.sock_sendall(sink, data)
    sink.shutdown(socket.SHUT_WR)


def _prepare(each: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has ended already: that is found soon enough
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        each.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _PROBES:
            each.setsockopt(socket.IPPROTO_TCP, option, value)
