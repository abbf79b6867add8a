"""A guest's standard input: the writing end of a pipe, kept by the supervisor."""

from __future__ import annotations

import asyncio
import os

CLOSED = "the container's input is closed"


class GuestInput:
    """Written to without ever stopping the event loop: a guest that reads nothing makes its writers wait, nobody else."""

    def __init__(self, descriptor: int) -> None:
        """Take a pipe's writing end, to be closed here. It must be non-blocking; the guest's reading end must not be."""
        self._descriptor = descriptor
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()

    async def write(self, data: bytes) -> None:
        """Write all of it, after the writers that came before. Raises BrokenPipeError."""
        async with self._turn:  # what one writer gives stays together
            rest = memoryview(data)
            while True:
                if self._descriptor < 0:
                    raise BrokenPipeError(CLOSED)
                try:
                    rest = rest[os.write(self._descriptor, rest) :]
                except BlockingIOError:
                    await self._room()
                if not rest:
                    return

    def close(self) -> None:
        """The guest reads the end; writers are told. Safe to call again."""
        if self._descriptor < 0:
            return
        asyncio.get_running_loop().remove_writer(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1
        self._changed.set()

    async def _room(self) -> None:
        """Until there is room in the pipe, or it is closed at either end."""
        loop = asyncio.get_running_loop()
        self._changed.clear()
        loop.add_writer(self._descriptor, self._changed.set)
        try:
            await self._changed.wait()
        finally:
            if self._descriptor >= 0:
                loop.remove_writer(self._descriptor)
