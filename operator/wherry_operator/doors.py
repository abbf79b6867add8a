"""Ports that are listened on before the one who serves them is there, and go from hand to hand without being closed."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

log = logging.getLogger(__name__)

BACKLOG = 128
"""Connections that the kernel keeps for whoever accepts them next; aiohttp's own number."""

PAUSE_SECONDS = 1.0
"""After the process has run out of descriptors."""

Accept = Callable[[socket.socket], None]
"""Is given a connection, which is its own from then on. Must not block."""


class Door:
    """One port. Who accepts its connections changes; what nobody could serve waits for the last one, who takes the port over."""

    def __init__(self, listeners: list[socket.socket]) -> None:
        self._listeners = listeners
        self._accept: Accept | None = None
        self._adopt: Accept | None = None
        self._kept: list[socket.socket] = []

    @classmethod
    async def open(cls, host: str, port: int) -> Door:
        """Listen. Connections wait until somebody accepts. Raises OSError.

        :param port: 0: any free one.
        """
        # asyncio's own way to sockets, so that each `host` means what it means to every other server here.
        server = await asyncio.get_running_loop().create_server(asyncio.Protocol, host, port, start_serving=False)
        listeners = [each.dup() for each in server.sockets]
        server.close()
        for each in listeners:
            each.setblocking(False)
            each.listen(BACKLOG)
        return cls(listeners)

    @property
    def port(self) -> int:
        """The bound one."""
        return int(self._listeners[0].getsockname()[1])

    def watch(self, accept: Accept) -> None:
        """Give each new connection to `accept`, until `shut`."""
        self._accept = accept
        for each in self._listeners:
            asyncio.get_running_loop().add_reader(each, self._ready, each)

    def shut(self) -> None:
        """Accept no more: who connects now waits."""
        self._accept = None
        for each in self._listeners:
            asyncio.get_running_loop().remove_reader(each)

    def keep(self, connection: socket.socket) -> None:
        """A connection of which nothing was read waits for whoever takes the port over."""
        if self._adopt is None:
            self._kept.append(connection)
        else:
            self._adopt(connection)

    def take(self, adopt: Accept) -> list[socket.socket]:
        """Hand over: the sockets that listen, and to `adopt` what was kept and what will be."""
        self.shut()
        listeners, self._listeners = self._listeners, []
        kept, self._kept = self._kept, []
        self._adopt = adopt
        for each in kept:
            adopt(each)
        return listeners

    def close(self) -> None:
        """Close what nobody has taken."""
        self.shut()
        for each in (*self._listeners, *self._kept):
            each.close()
        self._listeners, self._kept = [], []

    def _ready(self, listener: socket.socket) -> None:
        if self._accept is None:
            return
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            log.error("can't accept connections for now: %s", error)
            accept = self._accept
            self.shut()
            self._accept = accept
            asyncio.get_running_loop().call_later(PAUSE_SECONDS, self._again, accept)
            return
        connection.setblocking(False)
        self._accept(connection)

    def _again(self, accept: Accept) -> None:
        if self._accept is accept:
            self.watch(accept)
