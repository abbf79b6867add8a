"""Ends a guest before the kernel ends them all.

The sum of requests fits the runner (`admission.py`), what guests really take may not: each may go up to its limit. On cgroup
v2 a kubelet has the kernel kill a container's processes together, so one greedy guest would take all others along. Here
the memory in use is looked at, and shortly before it runs out the guest that is most over its request is killed.

No pressure stall trigger: in a container the cgroup's files can't be written to, so none can be set. One small file is read
instead, a few times a second at most, and seldom while there is plenty: `pause` says when.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from wherry_runner.execution.engine import EngineError, Guest
from wherry_runner.resources.cgroup import MemoryMeter, MemoryUse
from wherry_runner.resources.usage import private_bytes

log = logging.getLogger(__name__)

THRESHOLD = 0.95
"""Of the memory: above it a guest is killed."""

FILL_BYTES_PER_SECOND = 4 << 30
"""So fast can a core fill memory, about: what is free lasts for so long at least."""

LONGEST_PAUSE_SECONDS = 1.0
SHORTEST_PAUSE_SECONDS = 0.025
"""A look takes 0.1 ms: so no more than half a hundredth of a core, and that only while memory is short."""

OVERHEAD_BYTES = 8 << 20
"""What the process of a guest takes beside its module's memory; not held against it. With it, a guest whose limit is its
request is never over it."""

KILL_SECONDS = 2.0
"""So long is waited for a killed guest's memory to come back before another one is chosen."""


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A running guest, and what was kept for it."""

    workload: str
    container: str
    request_bytes: int
    guaranteed: bool
    """Its limit is its request: it has asked for no more than is kept for it, and got no more."""
    guest: Guest


@dataclass(frozen=True)
class Candidate:
    """A guest, and the memory that it has for itself."""

    watched: Watched
    used_bytes: int

    @property
    def over_bytes(self) -> int:
        """By how much it is over its request; below 0: within it."""
        return self.used_bytes - self.watched.request_bytes - OVERHEAD_BYTES


class Meter(Protocol):
    """Says how much memory is in use (`cgroup.MemoryMeter`)."""

    def read(self) -> MemoryUse:
        """The memory in use now. Raises OSError."""


def victim(candidates: Iterable[Candidate], *, only_over: bool = False) -> Candidate | None:
    """Who is to end: the one that is most over its request. `only_over`: nobody, if all are within theirs.

    A guest within its request never ends while one over its request exists. Of several, the guaranteed come last.
    """
    return max(
        (each for each in candidates if each.over_bytes > 0 or not only_over),
        key=lambda each: (
            each.over_bytes > 0,
            not each.watched.guaranteed,
            each.over_bytes,
            each.watched.guest.started_at,
        ),
        default=None,
    )


def pause(use: MemoryUse) -> float:
    """Seconds until it has to be looked at again: before what is free up to the threshold can have been filled."""
    free = use.limit_bytes * THRESHOLD - use.used_bytes
    return min(LONGEST_PAUSE_SECONDS, max(SHORTEST_PAUSE_SECONDS, free / FILL_BYTES_PER_SECOND))


class MemoryWatch:
    """Looks at the memory, and kills by policy. `run` is its task."""

    def __init__(
        self,
        *,
        watched: Callable[[], Sequence[Watched]],
        executor_pid: Callable[[], int | None],
        on_kill: Callable[[], None],
        meter: Meter | None = None,
    ) -> None:
        self._watched = watched
        self._executor_pid = executor_pid
        self._on_kill = on_kill
        self._meter = MemoryMeter() if meter is None else meter
        self._said = ""
        self._use: MemoryUse | None = None

    def complaint(self) -> str:
        """That memory is short, as it was seen last; "" if it is not: for a health check."""
        use = self._use
        return f"memory: {_of(use)}" if use is not None and _is_short(use) else ""

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            try:
                self._use = use = self._meter.read()
            except (OSError, KeyError) as error:
                self._say(f"the memory in use can't be read: {error}")
                await asyncio.sleep(LONGEST_PAUSE_SECONDS)
                continue
            again = pause(use)
            if not _is_short(use):
                self._said = ""
            elif not await self._relieve(use):
                again = LONGEST_PAUSE_SECONDS  # who may not be ended now need not be looked at all the time
            await asyncio.sleep(again)

    async def _relieve(self, use: MemoryUse) -> bool:
        """Kill one guest; whether there was one to kill."""
        watched = {each.guest.pid: each for each in self._watched()}
        # On a thread: with thousands of guests it takes a tenth of a second.
        used = await asyncio.to_thread(private_bytes, list(watched), executor_pid=self._executor_pid())
        # Memory of the whole machine may be others': that is no reason to end who is within what was kept for it.
        chosen = victim((Candidate(watched[pid], size) for pid, size in used.items()), only_over=use.shared)
        if chosen is None:
            self._say("memory runs out, and no guest is over its request")
            return False
        who = chosen.watched
        log.warning("memory runs out (%s): ending container %s of workload %s", _of(use), who.container, who.workload)
        who.guest.kill(reason="OOMKilled", message=message(chosen, use))
        self._on_kill()
        with suppress(TimeoutError, EngineError):  # what counts is what the next look says
            async with asyncio.timeout(KILL_SECONDS):
                await who.guest.wait()
        return True

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            log.warning("%s", text)


def message(chosen: Candidate, use: MemoryUse) -> str:
    """For the container's status: whose memory ran out, and why it was this one."""
    over = chosen.over_bytes + OVERHEAD_BYTES
    why = f"{_mebibytes(over)} more than it requests" if over > 0 else "which is within its request, as with all others"
    return (
        f"the runner's memory ran out ({_of(use)}), not the container's own limit: the container had "
        f"{_mebibytes(chosen.used_bytes)}, {why}"
    )


def _is_short(use: MemoryUse) -> bool:
    return use.used_bytes > use.limit_bytes * THRESHOLD


def _of(use: MemoryUse) -> str:
    return f"{_mebibytes(use.used_bytes)} of {_mebibytes(use.limit_bytes)} in use"


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"
