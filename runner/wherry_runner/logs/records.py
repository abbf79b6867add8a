"""Container logs in the CRI format: written for the python executor, read for every one as a kubelet reads them.

A record is one line, `<RFC 3339 time with nanoseconds> stdout|stderr F|P <content>`. `P` marks content that does not end
with a newline: a piece of a line longer than `MAX_LINE_BYTES`, or a last line that the container never ended. Readers join
them, so that what was written comes out byte for byte. Rules: containerd's CRI logger for writing, the kubelet's cri-client
for reading (facts: kubelet-api.md §4).
"""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import os
import re
import stat
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from wherry_runner.protocol import LogOptions

MAX_LINE_BYTES = 16 << 10
"""Longer lines are written in pieces: containerd's default (`max_container_log_line_size`)."""

MAX_FILE_BYTES = 10 << 20
"""A log is rotated when it reaches this, the kubelet's default (`containerLogMaxSize`); one older file is kept."""

POLL_SECONDS = 0.2
"""How late a follower may see what another process wrote; this process's own writers wake it at once."""

_BLOCK_BYTES = 64 << 10
_MAX_RECORD_BYTES = 1 << 20
"""Far above any record of ours: longer "records" are damage, and dropped rather than held in memory."""

_ROTATION_SECONDS = 0.01
_ROTATION_LOOKS = 100
"""In the middle of a rotation the writer may lose its core, and a large older part takes a while to be removed."""

_log = logging.getLogger(__name__)

_followers: defaultdict[Path, set[asyncio.Event]] = defaultdict(set)
"""Who waits for more of a file. Set by writers in the same event loop."""


class LogWriter:
    """Writes one container's log. A full disk makes a gap in it, which is said once; the container goes on."""

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: Callable[[], int] = lambda: MAX_FILE_BYTES,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Create or continue the file. `max_bytes` is what a file may have now; it may change. Raises OSError."""
        self._path = path
        self._max_bytes = max_bytes
        self._clock_ns = clock_ns
        self._pending = {b"stdout": bytearray(), b"stderr": bytearray()}
        self._records: list[bytes] = []
        self._warned = self._torn = False
        self._descriptor = _open(path)
        self._size = os.fstat(self._descriptor).st_size

    def write(self, stream: bytes, data: bytes | memoryview) -> None:
        """Take what the container wrote at once to `stdout` or `stderr`. On disk after `flush`."""
        now = format_time(self._clock_ns())
        full, partial = (b"%s %s %s " % (now, stream, tag) for tag in (b"F", b"P"))
        pending = self._pending[stream]
        *lines, rest = bytes(data).split(b"\n")
        for line in lines:
            if pending:
                pending += line
                line = bytes(pending)
                pending.clear()
            while len(line) > MAX_LINE_BYTES:
                self._records.append(b"%s%s\n" % (partial, line[:MAX_LINE_BYTES]))
                line = line[MAX_LINE_BYTES:]
            self._records.append(b"%s%s\n" % (full, line))
        pending += rest
        while len(pending) > MAX_LINE_BYTES:
            self._records.append(b"%s%s\n" % (partial, pending[:MAX_LINE_BYTES]))
            del pending[:MAX_LINE_BYTES]

    def flush(self) -> None:
        """Write the records so far to the file and wake its followers."""
        if not self._records:
            return
        records, self._records = self._records, []
        try:
            for number, part in enumerate(_parts(records, first_bytes=self._size, max_bytes=self._max_bytes())):
                if number:
                    self._rotate()
                # After a full disk, first the end of the piece of a record that it may have left.
                self._size += _write_all(self._descriptor, b"\n" + part if self._torn else part)
                self._torn = False
        except OSError as error:
            if not self._warned:
                _log.warning("log %s has a gap: %s", self._path, error)
            self._warned = self._torn = True
        for event in _followers.get(self._path, ()):
            event.set()

    def close(self) -> None:
        """Complete the log: a last line without its end becomes a partial record. Safe to call again."""
        if self._descriptor < 0:
            return
        for stream, pending in self._pending.items():
            if pending:
                now = format_time(self._clock_ns())
                self._records.append(b"%s %s P %s\n" % (now, stream, pending))
                pending.clear()
        self.flush()
        os.close(self._descriptor)
        self._descriptor = -1

    def _rotate(self) -> None:
        os.replace(self._path, rotated(self._path))
        os.close(self._descriptor)
        self._descriptor, self._size = -1, 0
        self._descriptor = _open(self._path)


def _parts(records: list[bytes], *, first_bytes: int, max_bytes: int) -> Iterator[bytes]:
    """The records, joined, for the current file, which has `first_bytes`, and for those after it; a part may be empty."""
    part: list[bytes] = []
    size = first_bytes
    for record in records:
        if size and size + len(record) > max_bytes:
            yield b"".join(part)
            part, size = [], 0
        part.append(record)
        size += len(record)
    yield b"".join(part)


def make_sure_of(path: Path) -> None:
    """Let a log be there, empty if need be: a container that runs or has run has one. Raises OSError."""
    os.close(_open(path))


def _open(path: Path) -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(path, flags, 0o600)


def rotated(path: Path) -> Path:
    """Where a log's older part is."""
    return path.with_name(path.name + ".1")


def format_time(nanoseconds: int) -> bytes:
    """Nanoseconds since 1970 as RFC 3339 in UTC, always with nine digits."""
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)).encode() + b".%09dZ" % fraction


async def read(path: Path, options: LogOptions, *, ended: Callable[[], bool]) -> AsyncGenerator[bytes, None]:
    """A log as `kubectl logs` shows it, in pieces. `previous` is the caller's: it chooses the file.

    With `follow`, until `ended()` is true and everything written before that was given; a rotation in between is followed.
    Without, what was there when it began. Raises FileNotFoundError, OSError.
    """
    output = _Output(options)
    with _following(path) as changed, await _first(path) as first:
        file: BinaryIO = first
        successor: BinaryIO | None = None
        limit = None if options.follow else os.fstat(file.fileno()).st_size
        if options.tail_lines is not None:
            file.seek(_tail_start(file, options.tail_lines))
        try:
            while True:
                # Asked before reading: what comes after a container's end is nothing, what came before is read below.
                changed.clear()
                last = limit is not None or ended()
                successor = None if limit is not None else _successor(path, file)
                for piece in _pieces(file, output, limit):
                    yield piece
                if output.full:
                    return
                if successor is not None:
                    # Its writer had left the old file before we found the new one, so the old one was read to its end.
                    file.close()
                    file = successor
                elif last:
                    return
                else:
                    await _wait(changed)
        finally:
            file.close()
            if successor is not None:  # whoever reads may leave before its turn has come
                successor.close()


def _pieces(file: BinaryIO, output: _Output, limit: int | None) -> Iterator[bytes]:
    """What the whole records up to the end (or `limit`) show; an incomplete last one is left for later."""
    rest = b""
    while True:
        wanted = _BLOCK_BYTES if limit is None else min(_BLOCK_BYTES, limit - file.tell())
        block = file.read(wanted) if wanted > 0 else b""
        if not block:
            file.seek(-len(rest), os.SEEK_CUR)
            return
        data = rest + block if rest else block
        shown, start = [], 0
        while (end := data.find(b"\n", start)) >= 0:
            shown.append(output.show(data, start, end))
            start = end + 1
        rest = data[start:]
        if len(rest) > _MAX_RECORD_BYTES:
            rest = b""
        if piece := b"".join(shown):
            yield piece
        if output.full:
            return


class _Output:
    """Applies the options to one record after the other."""

    def __init__(self, options: LogOptions) -> None:
        self._timestamps = options.timestamps
        self._stream = None if options.stream == "All" else options.stream.lower().encode()
        self._since = _since(options)
        self._remaining = options.limit_bytes
        self._at_line_start = True
        self.full = False
        """The limit of bytes is reached: nothing more is shown."""

    def show(self, data: bytes, start: int, end: int) -> bytes:
        """What the record up to the newline at `end` shows: nothing for one that is skipped or damaged."""
        header = _HEADER.match(data, start, end)
        if header is None or self.full or (seconds := _seconds(header[1], header[3])) is None:
            return b""
        content = data[header.end() : end + (not _is_partial(header))]
        at_line_start, self._at_line_start = self._at_line_start, content.endswith(b"\n") or not content
        if self._stream not in (None, header[4]) or (self._since and _nanoseconds(seconds, header) < self._since):
            return b""
        if self._timestamps and at_line_start:
            content = b"%s %s" % (_time(header), content)
        if self._remaining is not None:
            content = content[: self._remaining]
            self._remaining -= len(content)
            self.full = self._remaining == 0
        return content


_HEADER = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d) (stdout|stderr) ([^ \n]*) ")
"""What stands before a record's content: time (seconds, fraction, zone), stream, tags."""


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a log file."""

    stream: bytes
    time: bytes
    """With nine digits and the zone it was written with."""
    nanoseconds: int
    """The same, since 1970."""
    content: bytes
    """With its newline, unless partial."""

    @classmethod
    def parse(cls, line: bytes) -> Record | None:
        """A line without its newline; None if it isn't a record."""
        header = _HEADER.match(line)
        if header is None or (seconds := _seconds(header[1], header[3])) is None:
            return None
        return cls(
            stream=header[4],
            time=_time(header),
            nanoseconds=_nanoseconds(seconds, header),
            content=line[header.end() :] + (b"" if _is_partial(header) else b"\n"),
        )


@functools.lru_cache(maxsize=16)
def _seconds(whole: bytes, zone: bytes) -> int | None:
    """Since 1970; None: there is no such time. Thousands of records have the same."""
    try:
        return int(datetime.fromisoformat((whole + zone).decode()).timestamp())
    except ValueError:
        return None


def _nanoseconds(seconds: int, header: re.Match[bytes]) -> int:
    return seconds * 1_000_000_000 + int(_fraction(header))


def _time(header: re.Match[bytes]) -> bytes:
    return b"%s.%s%s" % (header[1], _fraction(header), header[3])


def _fraction(header: re.Match[bytes]) -> bytes:
    return (header[2] or b"").ljust(9, b"0")


def _is_partial(header: re.Match[bytes]) -> bool:
    tags: bytes = header[5]
    return tags != b"F" and tags.split(b":", 1)[0] == b"P"


def _since(options: LogOptions) -> int:
    """The earliest time shown, in nanoseconds since 1970; of two bounds the later."""
    moments = [datetime.fromtimestamp(0, UTC)]
    if options.since_seconds is not None:
        now = datetime.now(UTC)
        # More seconds than a datetime goes back may be asked for: all there is.
        moments.append(now - timedelta(seconds=min(options.since_seconds, now.timestamp())))
    if options.since_time is not None:
        moments.append(options.since_time.replace(tzinfo=options.since_time.tzinfo or UTC))
    since = max(moments) - moments[0]
    return (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1_000


def _tail_start(file: BinaryIO, lines: int) -> int:
    """Where the last `lines` records begin, found backwards; an incomplete one at the end isn't counted."""
    right = file.seek(0, os.SEEK_END)
    needed = lines + 1  # the newline before the first of them
    while right > 0:
        left = max(0, right - _BLOCK_BYTES)
        file.seek(left)
        block = file.read(right - left)
        found = block.count(b"\n")
        if found >= needed:
            at = len(block)
            for _ in range(needed):
                at = block.rindex(b"\n", 0, at)
            return left + at + 1
        needed -= found
        right = left
    return 0


async def _first(path: Path) -> BinaryIO:
    """Open the log; one that is just being rotated has no current file for a moment. Raises FileNotFoundError, OSError."""
    for _ in range(_ROTATION_LOOKS):
        try:
            return _opened(path)
        except FileNotFoundError:
            if not rotated(path).exists():
                raise
            await asyncio.sleep(_ROTATION_SECONDS)
    return _opened(rotated(path))


def _opened(path: Path) -> BinaryIO:
    """Open a file that a guest's process may have made: no link is followed, and nothing but a file is read. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a file", str(path))
    return open(descriptor, "rb")


def _successor(path: Path, file: BinaryIO) -> BinaryIO | None:
    """The new file, if the log was rotated since `file` was opened."""
    try:
        if os.path.samestat(os.lstat(path), os.fstat(file.fileno())):
            return None
        return _opened(path)
    except FileNotFoundError:  # in the middle of a rotation, or removed with its container
        return None


def _write_all(descriptor: int, data: bytes) -> int:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    return len(data)


@contextmanager
def _following(path: Path) -> Iterator[asyncio.Event]:
    event = asyncio.Event()
    _followers[path].add(event)
    try:
        yield event
    finally:
        _followers[path].discard(event)
        if not _followers[path]:
            del _followers[path]


async def _wait(changed: asyncio.Event) -> None:
    try:
        await asyncio.wait_for(changed.wait(), POLL_SECONDS)
    except TimeoutError:
        return
