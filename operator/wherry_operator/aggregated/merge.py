"""Several logs as one, by the time of their lines: a pure merge that is fed as bytes come, and says what may be shown.

Lines of one log stay in their order, whatever a clock did. A log that is silent holds up the others: for ever where each log
has an end, and for a moment where they are followed.
"""

from __future__ import annotations

import heapq
import re
from collections import deque
from dataclasses import dataclass, field

MAX_PIECE_BYTES = 16 << 10
"""A longer line is taken in pieces."""

MAX_HELD_BYTES = 64 << 10
"""Of one log: then it is `full`."""

SPLIT_PIECES = 64
"""Of one log at once: as an object, a short line takes ten times its bytes."""

NEWLINE = ord("\n")

TAKEN_BYTES = 64 << 10
"""At once: others want a turn, too."""

_TIME = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z) ")


@dataclass(frozen=True)
class Piece:
    """A line with its newline, or a part of one."""

    log: int
    time: bytes
    """RFC 3339 in UTC, always as long: compared as it is."""
    content: bytes
    begins: bool
    """Whether it begins a line."""


@dataclass
class _Held:
    """A piece that was not taken yet, unless it was."""

    arrived: float
    piece: Piece
    taken: bool = False


@dataclass
class _Log:
    held: deque[_Held] = field(default_factory=deque)
    rest: bytes = b""
    """What is no piece yet; there may be whole lines in it."""
    arrived: float = 0.0
    """When the first came of what there is."""
    time: bytes = b""
    """Of the newest line."""
    inside: bool = False
    """The newest piece did not end its line."""
    ended: bool = False

    @property
    def silent(self) -> bool:
        """There is nothing of it, and may be in a moment."""
        return not self.held and not self.ended


class Merge:
    """Merges logs, numbered from 0, whose lines begin with their time and a space.

    :param hold_seconds: how long a line waits for older ones of logs that are silent; None: until those have ended.
    """

    def __init__(self, logs: int, *, hold_seconds: float | None) -> None:
        self._logs = [_Log() for _ in range(logs)]
        self._hold_seconds = hold_seconds
        self._heads: list[tuple[bytes, int]] = []
        """A heap: the time of the next piece of each log that has one."""
        self._arrivals: deque[_Held] = deque()
        """All pieces as they came, but for the first that were taken."""
        self._silent = logs
        """So many logs are."""

    def feed(self, log: int, data: bytes, now: float) -> None:
        """Take what a log had next, at this moment."""
        one = self._logs[log]
        one.rest += data
        if not one.held:
            one.arrived = now
            self._split(log)

    def end(self, log: int, now: float) -> None:
        """A log has ended; its last line may have no end."""
        one = self._logs[log]
        if one.silent:
            self._silent -= 1
            one.arrived = now
        one.ended = True
        if not one.held:
            self._split(log)

    def full(self, log: int) -> bool:
        """Whether there is enough of a log for now: it need not be read on until something of it was taken."""
        one = self._logs[log]
        return bool(one.held) and len(one.rest) >= MAX_HELD_BYTES

    @property
    def done(self) -> bool:
        """All logs have ended, and everything was taken."""
        return not self._silent and not self._heads

    def take(self, now: float) -> list[Piece]:
        """What may be shown at this moment, in its order; some TAKEN_BYTES of it at most."""
        shown: list[Piece] = []
        shown_bytes = 0
        while shown_bytes < TAKEN_BYTES and self.wait_seconds(now) == 0:
            _, number = heapq.heappop(self._heads)
            one = self._logs[number]
            held = one.held.popleft()
            held.taken = True
            shown.append(held.piece)
            shown_bytes += len(held.piece.content)
            if one.held:
                heapq.heappush(self._heads, (one.held[0].piece.time, number))
            else:
                self._silent += not one.ended
                self._split(number)
            while self._arrivals and self._arrivals[0].taken:
                self._arrivals.popleft()
        return shown

    def wait_seconds(self, now: float) -> float | None:
        """How long until something may be shown though nothing comes; 0: there is something; None: for ever."""
        if not self._heads:
            return None
        if not self._silent:
            return 0.0
        if self._hold_seconds is None:
            return None
        # By the one that has waited longest: a log with a clock that is behind must not hold up the others for ever.
        return max(0.0, self._arrivals[0].arrived + self._hold_seconds - now)

    def _split(self, log: int) -> None:
        """Make the next pieces of what there is of a log that has none, if there is enough of it."""
        one = self._logs[log]
        at = 0
        while len(one.held) < SPLIT_PIECES and at < len(one.rest):
            end = one.rest.find(b"\n", at, at + MAX_PIECE_BYTES) + 1 or min(at + MAX_PIECE_BYTES, len(one.rest))
            if one.rest[end - 1] != NEWLINE and end == len(one.rest) and not one.ended:
                break
            self._add(log, one.rest[at:end])
            at = end
        one.rest = one.rest[at:]

    def _add(self, log: int, data: bytes) -> None:
        one = self._logs[log]
        begins = not one.inside
        if begins and (match := _TIME.match(data)):  # none: the rest of a line whose beginning was not asked for
            one.time, data = match[1], data[match.end() :]
        one.inside = not data.endswith(b"\n")
        held = _Held(one.arrived, Piece(log, one.time, data, begins))
        if not one.held:
            self._silent -= not one.ended
            heapq.heappush(self._heads, (one.time, log))
        one.held.append(held)
        if self._hold_seconds is not None:
            self._arrivals.append(held)


class Shown:
    """Pieces as text.

    :param prefixes: what stands before each line of a log, by its number.
    :param limit_bytes: how much is shown at most.
    """

    def __init__(self, prefixes: list[bytes], *, timestamps: bool, limit_bytes: int | None = None) -> None:
        self._prefixes = prefixes
        self._timestamps = timestamps
        self._remaining = limit_bytes
        self._inside: int | None = None
        """The log whose line is not over."""

    @property
    def full(self) -> bool:
        """Nothing more is shown."""
        return self._remaining == 0

    def text(self, pieces: list[Piece]) -> bytes:
        """How they look after what was shown before."""
        text = b"".join(self._one(piece) for piece in pieces)
        if self._remaining is not None:
            text = text[: self._remaining]
            self._remaining -= len(text)
        return text

    def _one(self, piece: Piece) -> bytes:
        text = piece.content
        if piece.begins or self._inside != piece.log:
            time = piece.time + b" " if self._timestamps else b""
            text = (b"" if self._inside is None else b"\n") + self._prefixes[piece.log] + time + text
        self._inside = None if text.endswith(b"\n") else piece.log
        return text
