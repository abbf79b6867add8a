"""How much a tree takes: what `du` would say, and something for each name, in steps of a bounded size."""

from __future__ import annotations

import os
import stat
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path

ENTRY_BYTES = 1024
"""Counted for each file, folder and link beside its blocks. On a tmpfs it has none and takes about this much of the kernel's
memory; on a disk it takes an inode. Without it a million empty files would count nothing."""

MAX_DEPTH = 100
"""Folders within folders. The walk holds two descriptors for each."""

MAX_LINKED = 100_000
"""Hard-linked files that are remembered to be counted once; those above it are counted with each link."""

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class TooDeep(Exception):
    """A tree has more than MAX_DEPTH levels."""


def usage(folders: Sequence[Path]) -> Iterator[int]:
    """The bytes in these folders, together: after each entry the sum so far, so that the caller can stop or pause.

    The folders themselves are not counted, links are not followed, and what can't be read counts without its content.
    A tree that changes meanwhile is measured as well as that goes. Raises TooDeep.
    """
    total = 0
    linked: set[tuple[int, int]] = set()
    for folder in folders:
        with closing(_entries(folder)) as entries:
            for entry in entries:
                total += ENTRY_BYTES
                if stat.S_ISDIR(entry.st_mode) or entry.st_nlink == 1:
                    total += entry.st_blocks * 512
                elif (key := (entry.st_dev, entry.st_ino)) not in linked:
                    total += entry.st_blocks * 512
                    if len(linked) < MAX_LINKED:
                        linked.add(key)
                yield total
    yield total


class _Level:
    """A folder that is being read."""

    def __init__(self, place: Path | str, *, at: int | None = None) -> None:
        self.descriptor = os.open(place, _FOLDER, dir_fd=at)
        try:
            self.entries = os.scandir(self.descriptor)
        except OSError:
            os.close(self.descriptor)
            raise

    def close(self) -> None:
        self.entries.close()
        os.close(self.descriptor)


def _entries(folder: Path) -> Generator[os.stat_result]:
    """All entries below a folder, each opened from the one that it is in: no path is resolved, so no link is followed."""
    levels: list[_Level] = []
    try:
        with suppress(OSError):  # gone meanwhile
            levels.append(_Level(folder))
        while levels:
            try:
                entry = next(levels[-1].entries, None)
                if entry is None:
                    levels.pop().close()
                    continue
                found = entry.stat(follow_symlinks=False)
                yield found
                if not stat.S_ISDIR(found.st_mode):
                    continue
                if len(levels) > MAX_DEPTH:
                    raise TooDeep
                levels.append(_Level(entry.name, at=levels[-1].descriptor))
            except OSError:
                continue  # gone meanwhile, or not to be read
    finally:
        for level in levels:
            level.close()
