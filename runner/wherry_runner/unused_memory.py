"""Gives back to the kernel what is no longer used, in both processes: garbage, and what the C library keeps of freed memory.

A burst leaves holes of several MiB in its heap: buffers of connections, bodies, what OpenSSL needs for a handshake. The library
gives back what lies at the heap's end, and nothing of what lies below a block that is in use. And it leaves garbage that only the
collector finds: kopf makes 13 KiB of it for each event. In a process where nothing more happens the collector does not come.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc

EVERY_SECONDS = 10.0
"""It takes less than a millisecond where nothing was freed, and few where much was."""

NEW_OBJECTS = 2_000
"""That many may wait for the collector: an idle process makes none, and some of those are always in use."""


async def keep_giving_back() -> None:
    """Until cancelled. (musl's C library has no such call, and keeps little.)"""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)
    while True:
        await asyncio.sleep(EVERY_SECONDS)
        _collect()
        trim(0)


def _collect() -> None:
    """Find the garbage among what is young. What has outlived two of the collector's rounds is its own affair: looking through
    tens of thousands of objects takes as many microseconds."""
    youngest, older, _ = gc.get_count()
    if youngest > NEW_OBJECTS or older:
        gc.collect(1)
