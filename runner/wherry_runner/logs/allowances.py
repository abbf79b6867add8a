"""How large each container's log may be now: a table in shared memory that the supervisor writes and guests read.

One budget for a runner's logs is dealt to its containers, and dealt anew as they come and go. A guest that writes its own log
must follow that while it runs, without a message to it: so each has a slot, a 64-bit number in native byte order, the bytes
that **each of its two log files** (the current one and the rotated one) may have. A writer reads its slot before it writes.

The table is a memfd, mapped writable by the supervisor alone: it is sealed against every later writable mapping
(F_SEAL_FUTURE_WRITE), so an executor and its guests can only read it. What a guest learns there of others is a number.
"""

from __future__ import annotations

import fcntl
import mmap
import os

SLOT_BYTES = 8

_F_SEAL_FUTURE_WRITE = 0x0010
"""Of <linux/fcntl.h>; the standard library has no name for it before 3.13."""


class Allowances:
    """The supervisor's side of the table. Slot 0 is nobody's: it holds what a log without a slot of its own may have."""

    def __init__(self, *, slots: int, default_bytes: int) -> None:
        """Make the table. Pages of slots never used cost nothing. Raises OSError."""
        self._default = default_bytes
        self.descriptor = os.memfd_create("allowances", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.descriptor, slots * SLOT_BYTES)
        self._map = mmap.mmap(self.descriptor, slots * SLOT_BYTES)
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _F_SEAL_FUTURE_WRITE
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)
        self._view = memoryview(self._map).cast("Q")
        self._free: list[int] = []
        self._next = 1
        self._view[0] = default_bytes

    def take(self) -> int:
        """A slot for one container, with the default in it. Raises OverflowError when all are taken."""
        if self._free:
            slot = self._free.pop()
        elif self._next < len(self._view):
            slot, self._next = self._next, self._next + 1
        else:
            raise OverflowError(f"all {len(self._view) - 1} log slots are taken")
        self._view[slot] = self._default
        return slot

    def give_back(self, slot: int) -> None:
        """The slot's container is gone."""
        self._free.append(slot)

    def __getitem__(self, slot: int) -> int:
        return self._view[slot]

    def __setitem__(self, slot: int, file_bytes: int) -> None:
        self._view[slot] = file_bytes

    def close(self) -> None:
        """Unmap and close."""
        self._view.release()
        self._map.close()
        os.close(self.descriptor)
