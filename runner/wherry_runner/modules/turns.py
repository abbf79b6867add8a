"""Bounds what is under way at once, in all and for each host, so that one slow registry is not waited for by all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """Lets `in_all` in, and `per_host` of one host; the others wait, each in its order."""

    def __init__(self, *, in_all: int, per_host: int) -> None:
        self._all = asyncio.Semaphore(in_all)
        self._per_host = per_host
        self._hosts: dict[str, tuple[asyncio.Semaphore, int]] = {}
        """With how many hold or want it: nobody, and it is forgotten."""

    @asynccontextmanager
    async def take(self, host: str) -> AsyncIterator[None]:
        """Wait for a turn, and have it inside."""
        gate, users = self._hosts.get(host) or (asyncio.Semaphore(self._per_host), 0)
        self._hosts[host] = gate, users + 1
        try:
            # The host's first: who waits for a slow one takes nobody else's place.
            async with gate, self._all:
                yield
        finally:
            gate, users = self._hosts.pop(host)
            if users > 1:
                self._hosts[host] = gate, users - 1
