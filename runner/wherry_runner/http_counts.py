"""What a server counts: a page of memory that its process writes and the supervisor reads whenever it likes.

So a count costs the server an addition and the supervisor nothing. The layout is `Counts` in
`runner/executor/src/http/counts.rs`, at the page's beginning; the numbers are the guest's process's own, and no others are
made of them.
"""

from __future__ import annotations

import fcntl
import os
import struct
from dataclasses import dataclass

BUCKETS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper ends of the buckets of how long answers took; one more has none."""

CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx")
"""Of answers, by their status."""

PAGE_BYTES = 4096

_NUMBERS = struct.Struct(f"={len(CLASSES)}Q Q {len(BUCKETS_SECONDS) + 1}Q 5Q".replace(" ", ""))
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


@dataclass(frozen=True, kw_only=True)
class HttpCounts:
    """What one server, or several together, have counted."""

    answers: tuple[int, ...] = (0,) * len(CLASSES)
    """In the order of CLASSES."""
    seconds: float = 0.0
    """That all answers took together, from a request's head to the answer's end."""
    buckets: tuple[int, ...] = (0,) * (len(BUCKETS_SECONDS) + 1)
    """Answers that took no longer than the bucket's end, and longer than the one before."""
    requests: int = 0
    """Being worked on now."""
    connections: int = 0
    """Open now."""
    refused: int = 0
    """Answered 503, for there were too many at once."""
    failed: int = 0
    """Whose guest trapped, or could not be instantiated, or gave no answer."""
    overdue: int = 0
    """Not done in time."""

    def __add__(self, other: HttpCounts) -> HttpCounts:
        return HttpCounts(
            answers=tuple(map(sum, zip(self.answers, other.answers, strict=True))),
            seconds=self.seconds + other.seconds,
            buckets=tuple(map(sum, zip(self.buckets, other.buckets, strict=True))),
            requests=self.requests + other.requests,
            connections=self.connections + other.connections,
            refused=self.refused + other.refused,
            failed=self.failed + other.failed,
            overdue=self.overdue + other.overdue,
        )

    def over(self) -> HttpCounts:
        """What is left of it when its server has ended: nothing is going on any more."""
        return HttpCounts(
            answers=self.answers,
            seconds=self.seconds,
            buckets=self.buckets,
            refused=self.refused,
            failed=self.failed,
            overdue=self.overdue,
        )


def make_page() -> int:
    """A page of zeros, whose size nobody can change; the caller closes it. Raises OSError."""
    descriptor = os.memfd_create("counts", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.truncate(descriptor, PAGE_BYTES)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read(descriptor: int) -> HttpCounts:
    """What a page says now. Raises OSError."""
    numbers = _NUMBERS.unpack(os.pread(descriptor, _NUMBERS.size, 0))
    classes, buckets = len(CLASSES), len(BUCKETS_SECONDS) + 1
    requests, connections, refused, failed, overdue = numbers[classes + 1 + buckets :]
    return HttpCounts(
        answers=numbers[:classes],
        seconds=numbers[classes] / 1e9,
        buckets=numbers[classes + 1 : classes + 1 + buckets],
        requests=requests,
        connections=connections,
        refused=refused,
        failed=failed,
        overdue=overdue,
    )
