"""The listening sockets of containers that serve: opened here, handed to their processes, and kept while one follows another.

A port is a container's for as long as it is open. What opens it is the runner, so a guest's process needs no right to. A command
whose own sockets listen has to bind its ports itself; they are only kept for it here.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from wherry_runner import protocol

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


@dataclass(kw_only=True, eq=False)
class Reservation:
    """A port that a guest may bind, and nobody else on this runner."""

    wanted: int
    """The port that was asked for, which need not be the one that it is."""
    protocol: Literal["TCP", "UDP"]
    host: str
    port: int
    _among: set[Reservation] = field(repr=False)

    @property
    def address(self) -> str:
        """`IP:PORT`."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def close(self) -> None:
        """It may be another's."""
        self._among.discard(self)


class Listeners:
    """Opens ports on one address."""

    def __init__(self, address: str, ports: PortRange) -> None:
        self._address = address
        self._ports = ports
        self._last = ports.last
        self._reserved: set[Reservation] = set()

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

    def reserve(self, wanted: Sequence[protocol.ListenPort]) -> tuple[Reservation, ...]:
        """Keep all these ports, or, where one is taken that is movable, another of the range. Raises PortError and keeps none."""
        with contextlib.ExitStack() as undone:
            found: list[Reservation] = []
            for each in wanted:
                reservation = self._reserve(each)
                undone.callback(reservation.close)
                found.append(reservation)
            undone.pop_all()
        return tuple(found)

    def _reserve(self, wanted: protocol.ListenPort) -> Reservation:
        for port in (wanted.port, *(self._in_turn() if wanted.movable else ())):
            try:
                self._bound(port, protocol=wanted.protocol).close()
            except OSError as error:
                if error.errno != errno.EADDRINUSE or not wanted.movable:
                    raise PortError(_why_not(port, error, wanted.protocol)) from error
                continue
            if port != wanted.port:
                self._last = port
            reservation = Reservation(
                wanted=wanted.port, protocol=wanted.protocol, host=self._address, port=port, _among=self._reserved
            )
            self._reserved.add(reservation)
            return reservation
        raise PortError(f"no port is free from {self._ports.first} to {self._ports.last}")

    def _in_turn(self) -> Iterator[int]:
        """All ports of the range, beginning behind the one that was given last: who still asks for one that was just given
        up meets nobody else there for a while."""
        first, count = self._ports.first, self._ports.last - self._ports.first + 1
        for step in range(1, count + 1):
            yield first + (self._last - first + step) % count

    def _bound(self, port: int, *, protocol: str = "TCP") -> socket.socket:
        """A socket that has the port, and listens if it can. Raises OSError."""
        if any((each.port, each.protocol) == (port, protocol) for each in self._reserved):
            raise OSError(errno.EADDRINUSE, "kept for a container")
        family = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        kind = socket.SOCK_STREAM if protocol == "TCP" else socket.SOCK_DGRAM
        opened = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            if protocol == "UDP":
                opened.bind((self._address, port))
                return opened
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


def _why_not(port: int, error: OSError, protocol: str = "TCP") -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"{'UDP ' if protocol == 'UDP' else ''}port {port} is taken on this runner"
        case errno.EACCES:
            return f"port {port} may not be opened by this runner: it lies below net.ipv4.ip_unprivileged_port_start"
        case _:
            return f"port {port} can't be opened: {error.strerror}"
