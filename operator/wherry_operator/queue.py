"""The work queue: one reconcile at a time per key, many keys at once, back-off per key.

An event only says *which* object to look at. A key that is added while it is worked on is worked on once more afterwards, so
that nothing is missed and a storm of events costs two reconciles.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from wherry_operator.errors import Expected, text
from wherry_operator.metrics import Metrics, Result

log = logging.getLogger(__name__)

WORKERS = 32
"""Reconciles at once: enough to hide the latency of the API server, few enough not to storm it."""

BUSY = WORKERS // 4
"""Keys waiting or worked on."""

BUSY_PER_SECOND = 10
"""Reconciles in the last second: a handful of Pods that start takes as many. At any one moment of that second few may be at
work."""

FIRST_RETRY_SECONDS = 0.25
LAST_RETRY_SECONDS = 60.0


class Key(NamedTuple):
    """An object."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


Reconcile = Callable[[Key], Awaitable[float | None]]
"""Brings what is to what should be. Returns after how many seconds to look again, or None. An exception is a failure:
it is logged, and tried again with back-off."""


class WorkQueue:
    """Keys waiting to be reconciled."""

    def __init__(self, reconcile: Reconcile, *, workers: int = WORKERS, metrics: Metrics | None = None) -> None:
        self._reconcile = reconcile
        self._metrics = metrics or Metrics()
        self._workers = workers
        self._ready: deque[Key] = deque()
        self._queued: dict[Key, float] = {}
        """Keys in `_ready`, and since when."""
        self._active: set[Key] = set()
        self._again: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._delayed: list[tuple[float, int, Key]] = []
        self._due: dict[Key, float] = {}
        self._lately: deque[float] = deque(maxlen=BUSY_PER_SECOND)
        """When the last ones began."""
        self._numbers = itertools.count()
        self._wake = asyncio.Event()
        self._timer_wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._ready)

    @property
    def busy(self) -> bool:
        """Much is going on: what can wait should."""
        return len(self._ready) + len(self._active) >= BUSY

    @property
    def busy_lately(self) -> bool:
        """Much is going on, or did within the last second: for what can wait, and does not do so for ever."""
        return self.busy or (
            len(self._lately) == BUSY_PER_SECOND and asyncio.get_running_loop().time() - self._lately[0] < 1
        )

    @property
    def delayed(self) -> int:
        """Keys that wait for a time to come."""
        return len(self._due)

    def add(self, key: Key) -> None:
        """Reconcile the key soon."""
        if key in self._active:
            self._again.add(key)
        elif key not in self._queued:
            self._queued[key] = time.monotonic()
            self._ready.append(key)
            self._wake.set()

    def add_after(self, key: Key, seconds: float) -> None:
        """Reconcile the key after some seconds, or earlier if that was asked for before."""
        due = asyncio.get_running_loop().time() + seconds
        if self._due.get(key, float("inf")) <= due:
            return
        self._due[key] = due
        heapq.heappush(self._delayed, (due, next(self._numbers), key))
        self._timer_wake.set()

    async def run(self) -> None:
        """Work until cancelled. Raises Fatal where a reconcile did."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._timer())
                for _ in range(self._workers):
                    group.create_task(self._work())
        except* Fatal as group:
            fatal = group.exceptions[0]
        else:
            return
        raise fatal

    async def _work(self) -> None:
        while True:
            while not self._ready:
                self._wake.clear()
                await self._wake.wait()
            key = self._ready.popleft()
            self._metrics.waited(time.monotonic() - self._queued.pop(key))
            self._active.add(key)
            try:
                await self._one(key)
            finally:
                self._active.discard(key)
                if key in self._again:
                    self._again.discard(key)
                    self.add(key)

    async def _one(self, key: Key) -> None:
        self._due.pop(key, None)
        started = time.monotonic()
        self._lately.append(asyncio.get_running_loop().time())
        result: Result = "ok"
        try:
            after = await self._reconcile(key)
            result = "ok" if after is None else "again"
        except (asyncio.CancelledError, Fatal):
            raise
        except Exception as error:
            result = "error"
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            after = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2 ** min(failures - 1, 16)) * random.uniform(0.8, 1.2)
            # The traceback once, and only of what nobody foresaw.
            traceback = failures == 1 and not isinstance(error, Expected)
            log.warning("%s: %s; again in %.1f s", key, text(error), after, exc_info=traceback)
        else:
            self._failures.pop(key, None)
        self._metrics.reconciled(key.kind, result, time.monotonic() - started)
        if after is not None:
            self.add_after(key, after)

    async def _timer(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._timer_wake.clear()
            now = loop.time()
            while self._delayed and self._delayed[0][0] <= now:
                due, _, key = heapq.heappop(self._delayed)
                if self._due.get(key) == due:
                    del self._due[key]
                    self.add(key)
            timeout = self._delayed[0][0] - now if self._delayed else None
            try:
                async with asyncio.timeout(timeout):
                    await self._timer_wake.wait()
            except TimeoutError:
                continue


class Fatal(Exception):
    """The process must end: it may not act any more."""
