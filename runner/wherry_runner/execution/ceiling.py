"""Keeps a guest below its share of CPU from outside, by SIGSTOP and SIGCONT: for executors that can't do it from inside.

A bucket of CPU time, filled at the guest's share of the time that passes and holding no more than one period's worth. It is
looked at when it could be empty at the earliest; a guest that has emptied it is stopped until it is filled again. What was
used beyond is a debt, so over many periods the share is exact.
"""

from __future__ import annotations

import asyncio
import signal
import time

from wherry_runner.execution import process

PERIOD_SECONDS = 0.1
"""As of the kernel's own ceiling (`cpu.max`), which Kubernetes sets."""

_THREADS = 2
"""A guest's at most, and so the cores that it can use at once."""

_SHORTEST_SECONDS = 0.005
"""Between two looks: more of them would cost more than the guest's share."""


class Ceiling:
    """The ceiling of one guest, from its creation until `close`."""

    def __init__(self, pid: int, pidfd: int, millicores: int) -> None:
        """`pidfd` must stay open until `close`. In the running event loop."""
        self._pidfd = pidfd
        self._clock = process.cpu_clock(pid)
        self._share = millicores / 1000
        self._full = self._share * PERIOD_SECONDS
        self._level = self._full
        self._used = 0.0
        self._looked_at = time.monotonic()
        self._stopped = False
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_soon(self._look)

    def close(self) -> None:
        """Look no more. Safe to call again; a stopped guest stays stopped, and is killed as any other."""
        self._handle.cancel()

    def _look(self) -> None:
        now = time.monotonic()
        try:
            used = time.clock_gettime(self._clock)
        except OSError:  # it has ended
            return
        spent = used - self._used
        self._level = min(self._full, self._level + (now - self._looked_at) * self._share - spent)
        self._used, self._looked_at = used, now
        if self._level <= 0:
            wait = (self._full - self._level) / self._share
        elif spent:
            wait = self._level / _THREADS
        else:
            wait = PERIOD_SECONDS  # asleep: its first burst may be a debt, and looking at it costs next to nothing
        if self._stopped != (self._level <= 0):
            self._stopped = not self._stopped
            process.send_signal(self._pidfd, signal.SIGSTOP if self._stopped else signal.SIGCONT)
        self._handle = self._loop.call_later(max(_SHORTEST_SECONDS, wait), self._look)
