"""Servers that an executor starts by itself when a client comes: how many may wait so, and what becomes of those that are called
and not answered."""

from __future__ import annotations

import asyncio
import os
import select
from collections.abc import Callable

from wherry_runner.execution.engine import EngineError
from wherry_runner.execution.link import ExecutorGuest

MOST = 64
"""At once. Each has eight descriptors open in the executor, and every guest's process begins by closing its copies of them. One
more takes the place of the one that has waited longest, whose clients the supervisor then waits for."""

LOOK_SECONDS = 30.0
"""A client that has waited for longer, twice that at most, has an executor that is stuck."""


class ArmedStart:
    """One of them; implements `engine.Armed`."""

    __slots__ = ("_called", "_disarm", "_guest", "_listener")

    def __init__(self, guest: ExecutorGuest, listener: int, disarm: Callable[[], None]) -> None:
        """`listener` is closed here."""
        self._guest = guest
        self._listener = listener
        self._disarm: Callable[[], None] | None = disarm
        self._called = False
        """There was a client when it was looked at."""

    async def begun(self) -> ExecutorGuest | None:
        """Wait until its process was forked; None: it never will be."""
        try:
            await asyncio.shield(self._guest.started)
        except EngineError:
            return None
        return self._guest

    @property
    def took_seconds(self) -> float:
        """Of one that has begun: from when its client was noticed."""
        return self._guest.took_seconds

    def disarm(self) -> None:
        """Have nothing started any more. Once is enough."""
        disarm, self._disarm = self._disarm, None
        if disarm is not None and not self._guest.started.done():
            disarm()

    def is_stuck(self) -> bool:
        """Whether there is a client now, and was one when this was asked before."""
        look = select.poll()
        look.register(self._listener, select.POLLIN)
        before, self._called = self._called, bool(look.poll(0))
        return before and self._called

    def on_over(self, over: Callable[[ArmedStart], None]) -> None:
        """Have it told when it waits no more."""

        def close(_: asyncio.Future[None]) -> None:
            os.close(self._listener)
            over(self)

        self._guest.started.add_done_callback(close)


class ArmedStarts:
    """Those of an engine."""

    def __init__(self, on_stuck: Callable[[], None]) -> None:
        """`on_stuck`: there is one whose client is not answered."""
        self._on_stuck = on_stuck
        self._waiting: dict[ArmedStart, None] = {}
        """The one that has waited longest is the first."""
        self._look: asyncio.TimerHandle | None = None

    def make_room(self) -> None:
        """For one more."""
        while len(self._waiting) >= MOST:
            longest = next(iter(self._waiting))
            del self._waiting[longest]
            longest.disarm()

    def add(self, armed: ArmedStart) -> None:
        """It waits from now on, until it is over."""
        self._waiting[armed] = None
        armed.on_over(self._forget)
        if self._look is None:
            self._look = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look_at_all)

    def disarm(self) -> None:
        """All of them."""
        for armed in self._waiting:
            armed.disarm()

    def _forget(self, armed: ArmedStart) -> None:
        self._waiting.pop(armed, None)
        if not self._waiting and self._look is not None:
            self._look.cancel()
            self._look = None

    def _look_at_all(self) -> None:
        self._look = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look_at_all)
        stuck = [armed for armed in self._waiting if armed.is_stuck()]
        if stuck:
            self._on_stuck()
