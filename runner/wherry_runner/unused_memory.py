"""Gives back to the kernel what the C library keeps of freed memory, in both processes.

A burst leaves holes of several MiB in its heap: buffers of connections, bodies, what OpenSSL needs for a handshake. The library
gives back what lies at the heap's end, and nothing of what lies below a block that is in use.
"""

from __future__ import annotations

import asyncio
import ctypes

EVERY_SECONDS = 10.0
"""It takes less than a millisecond where nothing was freed, and few where much was."""


async def keep_giving_back() -> None:
    """Until cancelled. (musl's C library has no such call, and keeps little.)"""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)
    while True:
        await asyncio.sleep(EVERY_SECONDS)
        trim(0)
