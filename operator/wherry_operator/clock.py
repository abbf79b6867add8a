"""Time as a dependency: what waits or expires is given a clock, so that tests move time instead of
sleeping."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime


def utc_now() -> datetime:
    """The wall clock, for time stamps only: it jumps, so nothing is ever measured with it."""
    return datetime.now(UTC)


@dataclass(frozen=True, kw_only=True)
class Clock:
    """The three ways in which time is used."""

    monotonic: Callable[[], float] = time.monotonic
    """Seconds since some moment; never goes back."""
    now: Callable[[], datetime] = utc_now
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    """Waits so many seconds."""


def micro_time(moment: datetime) -> str:
    """`metav1.MicroTime`: RFC 3339 with exactly six digits, in UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def second_time(moment: datetime) -> str:
    """`metav1.Time`: RFC 3339 in whole seconds, in UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
