"""Ports on loopback that nobody else gets.

A port is reserved by keeping a socket *bound* to it, never listening, with SO_REUSEADDR. While it is
held, the kernel gives the port neither to `bind(0)` nor to an outgoing connection, in any process; but a
server that asks for that very port with SO_REUSEADDR, as Go's and asyncio's do, still gets it (Linux refuses
the second bind only if the first socket listens). So two clusters never pick the same port, and a server may
be restarted on its port.
"""

from __future__ import annotations

import socket
from types import TracebackType

LOOPBACK = "127.0.0.1"


class Reservation:
    """A reserved port: kept until `release()`."""

    def __init__(self, host: str = LOOPBACK) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, 0))
        except OSError:
            self._socket.close()
            raise
        self.host = host
        self.port: int = self._socket.getsockname()[1]

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"{self.host}:{self.port}"

    def release(self) -> None:
        """Give the port back; more than once is fine."""
        self._socket.close()

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def is_taken(log_tail: str) -> bool:
    """Whether a server's last words say that its port was in use: worth another try with other ports."""
    return "address already in use" in log_tail
