"""The listening sockets of containers that serve: opened here, handed to their processes, and kept while one follows another.

A port is a container's for as long as it is open. What opens it is the runner, so a guest's process needs no right to.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass

BACKLOG = 1024
"""Connections that wait to be taken; the kernel may hold fewer (net.core.somaxconn)."""


class PortError(Exception):
    """A port can't be opened; the message says which and why."""


@dataclass(frozen=True, kw_only=True)
class PortRange:
    """The ports from which a container gets one that names none."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> PortRange:
        """`FIRST-LAST`. Raises ValueError."""
        first, separator, last = text.partition("-")
        if not separator or not (1 <= int(first) <= int(last) <= 65_535):
            raise ValueError(f"wants FIRST-LAST, ports from 1 to 65535, not {text!r}")
        return cls(first=int(first), last=int(last))


class Listener:
    """An open port. Connections wait in it until a process takes them."""

    def __init__(self, opened: socket.socket, *, wanted: int | None) -> None:
        """`wanted`: the port that was asked for, which need not be the one that it is; None: any of the range."""
        self._socket = opened
        self.wanted = wanted
        self.port: int = opened.getsockname()[1]

    @property
    def descriptor(self) -> int:
        """To be handed on."""
        return self._socket.fileno()

    def close(self) -> None:
        """Ours is closed; clients are refused once no process has another."""
        self._socket.close()


class Listeners:
    """Opens ports on one address."""

    def __init__(self, address: str, ports: PortRange) -> None:
        self._address = address
        self._ports = ports
        self._last = ports.last

    @property
    def address(self) -> str:
        """Where ports are opened."""
        return self._address

    def open(self, wanted: int | None, *, movable: bool = False) -> Listener:
        """Open a port: the one that is wanted, or any free one of the range. `movable`: where the one that is wanted is taken,
        another will do. Raises PortError."""
        if wanted is not None:
            try:
                return Listener(self._bound(wanted), wanted=wanted)
            except OSError as error:
                if not movable or error.errno != errno.EADDRINUSE:
                    raise PortError(_why_not(wanted, error)) from error
        for port in self._in_turn():
            try:
                listener = Listener(self._bound(port), wanted=wanted)
            except OSError as error:
                if error.errno in (errno.EADDRINUSE, errno.EACCES):
                    continue
                raise PortError(f"no port can be opened: {error.strerror}") from error
            self._last = port
            return listener
        raise PortError(f"no port is free from {self._ports.first} to {self._ports.last}")

    def _in_turn(self) -> Iterator[int]:
        """All ports of the range, beginning behind the one that was given last: who still asks for one that was just given
        up meets nobody else there for a while."""
        first, count = self._ports.first, self._ports.last - self._ports.first + 1
        for step in range(1, count + 1):
            yield first + (self._last - first + step) % count

    def _bound(self, port: int) -> socket.socket:
        """Raises OSError."""
        family = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        opened = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            # What lingers of closed connections keeps no port; another that listens still does.
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Its connections inherit these: their process may set nothing.
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            opened.bind((self._address, port))
            opened.listen(BACKLOG)
        except BaseException:
            opened.close()
            raise
        return opened


def _why_not(port: int, error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} is taken on this runner"
        case errno.EACCES:
            return f"port {port} may not be opened by this runner: it lies below net.ipv4.ip_unprivileged_port_start"
        case _:
            return f"port {port} can't be opened: {error.strerror}"
