"""Reads the bodies of requests, many at once, in a bounded amount of memory and time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

BUDGET_BYTES = 64 << 20
"""Of unfinished bodies together. Over it, only the oldest is read on: it ends, or its time does, so nobody waits for ever."""

BODY_SECONDS = 60.0
"""A body must be complete by then: a client that stalls in the middle of one holds memory."""


class BodyTooLarge(Exception):
    """A body is larger than it may be."""


class BodyTooSlow(Exception):
    """A body was not complete in time."""


class Stream(Protocol):
    """`aiohttp.StreamReader`, as far as it is needed."""

    def iter_any(self) -> AsyncIterator[bytes]:
        """Pieces, as they come."""


class Bodies:
    """All bodies that are being read."""

    def __init__(self, *, budget_bytes: int = BUDGET_BYTES, seconds: float = BODY_SECONDS) -> None:
        self._budget_bytes = budget_bytes
        self._seconds = seconds
        self._reading: dict[object, None] = {}
        """Oldest first."""
        self._held_bytes = 0
        self._less = asyncio.Event()

    async def read(self, content: Stream, *, announced_bytes: int | None, max_bytes: int) -> bytes:
        """One body. `announced_bytes`: its Content-Length, if it has one. Raises BodyTooLarge, BodyTooSlow."""
        if announced_bytes is not None and announced_bytes > max_bytes:
            raise BodyTooLarge
        body = bytearray()
        me = object()
        self._reading[me] = None
        try:
            async with asyncio.timeout(self._seconds):
                async for piece in content.iter_any():
                    if len(body) + len(piece) > max_bytes:
                        raise BodyTooLarge
                    body += piece
                    self._held_bytes += len(piece)
                    while self._held_bytes > self._budget_bytes and next(iter(self._reading)) is not me:
                        await self._less.wait()
        except TimeoutError:
            raise BodyTooSlow from None
        finally:
            del self._reading[me]
            self._held_bytes -= len(body)
            # Whoever waits wakes and looks again; who comes later waits for the next time.
            self._less.set()
            self._less = asyncio.Event()
        return bytes(body)
