"""What is being done for a container that waits for its module."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

TOLD_SECONDS = 0.5
"""Bytes are told no more often: each time is a status that travels to the operator."""


@dataclass(frozen=True, kw_only=True)
class Pulling:
    """A module is being fetched."""

    done_bytes: int
    total_bytes: int
    """0: its server didn't say."""


@dataclass(frozen=True, kw_only=True)
class Compiling:
    """A module is being compiled."""


Progress = Pulling | Compiling

OnProgress = Callable[[Progress], None]

OnBytes = Callable[[int, int], None]
"""Told how many bytes of a module are here, and how many it has."""


def paced(tell: OnProgress, *, clock: Callable[[], float] = time.monotonic) -> OnBytes:
    """Tells of bytes at once when they begin and when all are there, and in between every `TOLD_SECONDS`."""
    told_at: float | None = None

    def on_bytes(done: int, total: int) -> None:
        nonlocal told_at
        now = clock()
        if told_at is None or done == total or now - told_at >= TOLD_SECONDS:
            told_at = now
            tell(Pulling(done_bytes=done, total_bytes=total))

    return on_bytes
