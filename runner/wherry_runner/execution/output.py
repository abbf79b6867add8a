"""A guest's two output streams, received in the order in which they were written.

Two pipes lose the order across stdout and stderr: a reader can't tell which was written first. So the guest's descriptors
1 and 2 are two SOCK_DGRAM sockets connected to one receiver. Each write(2) is one datagram, its source address tells the
stream, and the kernel queues both streams' datagrams in one line. A datagram is whole or not there, so a guest killed in
the middle of a write leaves no half of it; and what was written before a process ended is still queued after.

The kernel holds at most `net.unix.max_dgram_qlen` (10) datagrams: a guest that writes faster than its log is written waits.

**Sizes.** wasmtime writes a WASI 0.1 module's output in pieces of 4,096 bytes at most, so no write is too large. A
component may hand over 1 MiB at once; a socket takes that only if `net.core.wmem_max` is about as large, and by default it
takes 416 KiB. A larger single write of a component then fails with an error that the guest sees (wasmtime offers no smaller
pieces, and a pipe would lose the order of every guest for the sake of this one).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wherry_runner.logs import LogWriter

MAX_WRITE_BYTES = 1 << 20
"""What wasmtime lets a component write at once."""

_OVERHEAD_BYTES = 64 << 10
"""The kernel counts its own bookkeeping as part of a socket's buffer."""

_BATCH = 64
"""Datagrams received before the event loop gets its turn: a flooding guest slows itself, not the others."""

_MAX_DATAGRAM_BYTES = 2 * (MAX_WRITE_BYTES + _OVERHEAD_BYTES)
"""The kernel doubles what SO_SNDBUF is set to, and no datagram is larger than that."""

# One for all guests: it is filled and emptied without giving way in between. Pages never touched cost nothing.
_buffer = memoryview(bytearray(_MAX_DATAGRAM_BYTES))


class GuestOutput:
    """Receives what a guest writes and passes it on to its log."""

    def __init__(self, writer: LogWriter) -> None:
        """Make the sockets; from now on the writer is closed here. Raises OSError, the writer then being closed."""
        self._writer = writer
        self._loop: asyncio.AbstractEventLoop | None = None
        with contextlib.ExitStack() as undo:
            undo.callback(writer.close)
            self._receiver = undo.enter_context(_bound_socket())
            self._receiver.setblocking(False)  # not so the senders: a guest waits until there is room
            self.stdout = undo.enter_context(_bound_socket())
            self.stderr = undo.enter_context(_bound_socket())
            for sender in (self.stdout, self.stderr):
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_WRITE_BYTES + _OVERHEAD_BYTES)
                sender.connect(self._receiver.getsockname())
                sender.shutdown(socket.SHUT_RD)
            undo.pop_all()
        self._streams = {self.stdout.getsockname(): b"stdout", self.stderr.getsockname(): b"stderr"}

    def start(self) -> None:
        """Receive from now on, in the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._receiver, self._receive)

    def close_senders(self) -> None:
        """Close this process's copies, once the guest has its own."""
        self.stdout.close()
        self.stderr.close()

    def finish(self) -> None:
        """After the guest's process has ended: receive the rest, complete the log and close everything."""
        if self._receiver.fileno() < 0:
            return
        if self._loop is not None:
            self._loop.remove_reader(self._receiver)
        while self._receive():
            pass
        self._receiver.close()
        self.close_senders()
        self._writer.close()

    def _receive(self) -> bool:
        """Take a batch to the log; False if nothing was there."""
        for count in range(_BATCH):
            try:
                size, source = self._receiver.recvfrom_into(_buffer)
            except (BlockingIOError, ConnectionError):
                self._writer.flush()
                return count > 0
            # The receiver has a name that other processes could find: only the guest's own sockets are listened to.
            if stream := self._streams.get(source):
                self._writer.write(stream, _buffer[:size])
        self._writer.flush()
        return True


def _bound_socket() -> socket.socket:
    """A datagram socket with a name of the kernel's choice (autobind: an abstract one, gone with the socket)."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    sock.bind("")
    return sock
