"""The files of the journal, and how what is written comes to the disk.

    journal/epoch      the highest term of an operator that was heard of (`journals.py`)
    journal/N.records  what happened, JSON lines of all workloads in their order; each process begins a new file, and another
                       one when it has grown
    journal/N.base     what was known before the first record of N: files with lower numbers are not needed any more

A torn line is one that nobody was told of: it is ignored.
"""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

FILE_BYTES = 4 << 20
"""A file of records that has grown to this is followed by the next one, and what it says becomes part of a base."""

_NAME = re.compile(r"([0-9]+)\.(records|base)")

_encode = json.JSONEncoder(separators=(",", ":")).encode

Record = dict[str, Any]


class JournalFiles:
    """The files of all journals: one is written to, and a thread brings it to the disk for all who wait at once."""

    def __init__(
        self,
        directory: Path,
        snapshot: Callable[[], list[Callable[[], Record]]],
        *,
        file_bytes: int,
        sync: Callable[[int], None],
    ) -> None:
        self._directory = directory
        self._snapshot = snapshot
        self._file_bytes = file_bytes
        self._sync = sync
        self._number = 0
        self._descriptor = -1
        self._size = 0
        self._full_at = file_bytes
        self._torn = False
        """A part of a record is at the file's end, and could not be removed."""
        self._waiting: list[asyncio.Future[None]] = []
        self._rounds: asyncio.Task[None] | None = None
        # Of its own: an end must not wait for a pull that takes the shared threads.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")

    def read(self) -> Iterator[Record]:
        """The records that count, in their order."""
        files = self._there()
        self._number = max((number for number, _ in files), default=0)
        base = max((number for number, kind in files if kind == "base"), default=0)
        if base:
            yield from _records(self._path(base, "base"))
        for number in sorted(number for number, kind in files if kind == "records" and number >= base):
            yield from _records(self._path(number, "records"))

    def begin(self) -> None:
        """Begin a file of our own; what was known before becomes its base. Raises OSError."""
        self._next()
        self._write_base(self._number, self._snapshot())

    def append(self, record: Record) -> None:
        """Write a record. Raises OSError, and then it is not there."""
        line = _encode(record).encode() + b"\n"
        if self._torn:
            line = b"\n" + line  # what is torn must not be continued
        written = os.write(self._descriptor, line)
        if written != len(line):
            # A disk that is full takes a part.
            try:
                os.ftruncate(self._descriptor, self._size)
            except OSError:
                self._torn = True
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._directory))
        self._torn = False
        self._size += written
        if self._size >= self._full_at:
            self._work()

    async def synced(self) -> None:
        """Wait until all that was appended is on disk. Raises OSError."""
        if self._descriptor < 0:
            raise OSError(errno.EBADF, "the journal is closed")
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        self._work()
        await waiting

    async def close(self) -> None:
        """Wait for what is on its way to the disk, and close the file."""
        if self._rounds is not None:
            await asyncio.wait([self._rounds])
        self._thread.shutdown(wait=False)
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _work(self) -> None:
        if self._rounds is None:
            self._rounds = asyncio.get_running_loop().create_task(self._catch_up(), name="journal")

    async def _catch_up(self) -> None:
        """One round after the other: who comes during one waits for the next, and with all others who came by then."""
        loop = asyncio.get_running_loop()
        while self._waiting or self._size >= self._full_at:
            waiting, self._waiting = self._waiting, []
            try:
                await loop.run_in_executor(self._thread, self._round())
            except OSError as error:
                log.error("journal: what was written may not be on disk: %s", error)
                for each in waiting:
                    if not each.done():
                        each.set_exception(OSError(error.errno, error.strerror))
            else:
                for each in waiting:
                    if not each.done():
                        each.set_result(None)
        self._rounds = None

    def _round(self) -> Callable[[], None]:
        """What a thread has to do for all that was appended by now."""
        descriptor = self._descriptor
        if self._size < self._full_at:
            return lambda: self._sync(descriptor)
        try:
            self._next()
        except OSError as error:
            log.error("journal: no next file: %s", error)
            self._full_at += self._file_bytes
            return lambda: self._sync(descriptor)
        number, known = self._number, self._snapshot()

        def finish() -> None:
            try:
                self._sync(descriptor)
                self._sync_names()
            finally:
                os.close(descriptor)
            try:
                self._write_base(number, known)
            except OSError as error:
                log.error("journal: no base for file %d, those before it stay: %s", number, error)

        return finish

    def _next(self) -> None:
        """Begin the next file. Raises OSError, and then all is as before."""
        path = self._path(self._number + 1, "records")
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._number += 1
        self._size, self._full_at, self._torn = 0, self._file_bytes, False

    def _write_base(self, number: int, known: list[Callable[[], Record]]) -> None:
        """Write what was known before the records of this number, and remove what that replaces. Raises OSError."""
        temporary = self._directory / "base.new"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            for record in known:
                file.write(_encode(record()).encode() + b"\n")
            file.flush()
            self._sync(descriptor)
        os.replace(temporary, self._path(number, "base"))
        self._sync_names()
        for older, kind in self._there():
            if older < number:
                self._path(older, kind).unlink()

    def _sync_names(self) -> None:
        """A file whose name is not on disk is lost with all that was synced in it."""
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _there(self) -> list[tuple[int, str]]:
        names = (_NAME.fullmatch(name) for name in os.listdir(self._directory))
        return [(int(name[1]), name[2]) for name in names if name]

    def _path(self, number: int, kind: str) -> Path:
        return self._directory / f"{number}.{kind}"


def _records(path: Path) -> Iterator[Record]:
    whole, _, torn = path.read_bytes().rpartition(b"\n")
    if torn:
        log.warning("journal %s: ignoring a torn last line of %d bytes", path, len(torn))
    for line in filter(None, whole.split(b"\n")):
        try:
            yield json.loads(line)
        except ValueError as error:
            log.warning("journal %s: ignoring a line of %d bytes: %s", path, len(line), error)
