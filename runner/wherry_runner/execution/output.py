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
import mmap
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wherry_runner.logs.records import LogWriter

MAX_WRITE_BYTES = 1 << 20
"""What wasmtime lets a component write at once."""

_OVERHEAD_BYTES = 64 << 10
"""The kernel counts its own bookkeeping as part of a socket's buffer."""

_BATCH = 64
"""Datagrams received before the event loop gets its turn: a flooding guest slows itself, not the others."""

_BATCH_BYTES = 1 << 20
"""The same, of large ones: no more is held in memory on its way to the log."""

_MAX_DATAGRAM_BYTES = 2 * (MAX_WRITE_BYTES + _OVERHEAD_BYTES)
"""The kernel doubles what SO_SNDBUF is set to, and no datagram is larger than that."""

# One for all guests: it is filled and emptied without giving way in between. Mapped, not allocated: Python would fill it with
# zeros, and pages never touched cost nothing.
_buffer = memoryview(mmap.mmap(-1, _MAX_DATAGRAM_BYTES))


class GuestOutput:
    """Receives what a guest writes and passes it on to its log."""

    def __init__(self, writer: LogWriter, *, bytes_per_second: int | None = None) -> None:
        """Make the sockets; from now on the writer is closed here. Raises OSError, the writer then being closed.

        With `bytes_per_second`, a guest that writes more waits: a second's worth may come at once, and then it is slow.
        """
        self._writer = writer
        self._rate = bytes_per_second
        self._credit = float(bytes_per_second or 0)
        self._credited_at = time.monotonic()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pause: asyncio.TimerHandle | None = None
        with contextlib.ExitStack() as undo:
            undo.callback(writer.close)
            self._receiver = undo.enter_context(_bound_socket())
            self._receiver.setblocking(False)  # not so the senders: a guest waits until there is room
            self._senders = tuple(undo.enter_context(_bound_socket()) for _ in range(2))
            for sender in self._senders:
                sender.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_WRITE_BYTES + _OVERHEAD_BYTES)
                sender.connect(self._receiver.getsockname())
                sender.shutdown(socket.SHUT_RD)
            undo.pop_all()
        stdout, stderr = self._senders
        self._streams = {stdout.getsockname(): b"stdout", stderr.getsockname(): b"stderr"}

    def hand_over(self) -> tuple[int, int]:
        """The guest's descriptors 1 and 2, the caller's from now on. What is written to them is received from now on."""
        self._listen()
        stdout, stderr = (sender.detach() for sender in self._senders)
        return stdout, stderr

    def finish(self) -> None:
        """After the guest's process has ended: receive the rest, complete the log and close everything."""
        if self._receiver.fileno() < 0:
            return
        if self._loop is not None:
            self._loop.remove_reader(self._receiver)
        if self._pause is not None:
            self._pause.cancel()
        while self._take():
            pass
        self._receiver.close()
        for sender in self._senders:
            sender.close()
        self._writer.close()

    def _listen(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._receiver, self._receive)

    def _receive(self) -> None:
        """The receiver is readable: take a batch, and pause where that was more than the rate allows."""
        taken = self._take()
        if self._rate is None or self._loop is None:
            return
        now = time.monotonic()
        self._credit = min(self._rate, self._credit + (now - self._credited_at) * self._rate) - taken
        self._credited_at = now
        if self._credit < 0:
            self._loop.remove_reader(self._receiver)
            self._pause = self._loop.call_later(-self._credit / self._rate, self._listen)

    def _take(self) -> int:
        """Take a batch to the log; how many bytes that was."""
        taken = 0
        for _ in range(_BATCH):
            try:
                size, source = self._receiver.recvfrom_into(_buffer)
            except (BlockingIOError, ConnectionError):
                break
            # The receiver has a name that other processes could find: only the guest's own sockets are listened to.
            if stream := self._streams.get(source):
                self._writer.write(stream, _buffer[:size])
            taken += max(size, 1)
            if taken >= _BATCH_BYTES:
                break
        self._writer.flush()
        return taken


def _bound_socket() -> socket.socket:
    """A datagram socket with a name of the kernel's choice (autobind: an abstract one, gone with the socket)."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    sock.bind("")
    return sock
