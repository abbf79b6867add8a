"""One budget for all logs of a runner, dealt to its containers and dealt anew as they come and go.

Each container gets the same: the bytes that each of its log files may have (`allowances.py` takes them to the
writers). A deal touches every container, so it is made for more containers than there are, and stays until they outgrow it
or have become far fewer: on the average a start or an end costs a few writes to memory, whatever the number of containers.

When a deal gives less than the one before, files from before may be too large. `keep` removes those that nobody writes to.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
from pathlib import Path

from wherry_runner.logs.allowances import Allowances

log = logging.getLogger(__name__)

FILES_PER_CONTAINER = 4
"""The current and the rotated one, of its newest run and of the one before (`log_folders.KEPT_LOGS`)."""

LEAST_FILE_BYTES = 64 << 10
"""No file is given less: below it a single traceback would rotate its own beginning away."""

GROWTH = 1.25
"""A deal is made for so many times the containers that there are. More: fewer deals, and more of the budget left unused."""

DEFAULT_BUDGET_BYTES = 10 << 30

TRIM_SECONDS = 30.0
"""After a smaller deal, folders with files that are too large are looked at again after this, until there is none."""

_LOG_NAME = re.compile(r"([0-9]+)\.log(\.1)?")


class TooManyLogs(Exception):
    """The budget would give each container less than a useful log."""


class LogBudget:
    """Deals the budget. One event loop."""

    def __init__(self, allowances: Allowances, *, budget_bytes: int, file_bytes: int) -> None:
        """`file_bytes`: what a file gets at most, however large the budget."""
        self._allowances = allowances
        self._budget_bytes = budget_bytes
        self._file_bytes = file_bytes
        self._folders: dict[int, str] = {}
        self._dealt_for = 1
        self._smaller = asyncio.Event()

    @property
    def max_containers(self) -> int:
        """How many the budget can serve."""
        return max_containers(self._budget_bytes)

    @property
    def file_bytes(self) -> int:
        """What each log file may have now."""
        return allowance(self._dealt_for, budget_bytes=self._budget_bytes, file_bytes=self._file_bytes)

    @property
    def allowed_bytes(self) -> int:
        """What all logs together may have now: never more than the budget."""
        return self.file_bytes * FILES_PER_CONTAINER * len(self._folders)

    def take(self, log_folder: Path) -> int:
        """A slot for a container whose logs are in this folder. Raises TooManyLogs."""
        if len(self._folders) >= self.max_containers:
            raise TooManyLogs(f"the log budget of {self._budget_bytes} bytes serves {self.max_containers} containers")
        self._deal(len(self._folders) + 1)  # before it comes: never, not for a moment, more than the budget
        slot = self._allowances.take()
        self._allowances[slot] = self.file_bytes
        self._folders[slot] = str(log_folder)
        return slot

    def give_back(self, slot: int) -> None:
        """The container's logs are gone."""
        del self._folders[slot]
        self._allowances.give_back(slot)
        self._deal(len(self._folders))

    def _deal(self, containers: int) -> None:
        dealt_for = deal_for(containers, self._dealt_for, most=self.max_containers)
        if dealt_for == self._dealt_for:
            return
        before = self.file_bytes
        self._dealt_for = dealt_for
        if self.file_bytes == before:
            return
        for slot in self._folders:
            self._allowances[slot] = self.file_bytes
        if self.file_bytes < before:
            self._smaller.set()

    async def keep(self) -> None:
        """Remove what a smaller deal made too large; runs until it is cancelled."""
        while True:
            await self._smaller.wait()
            self._smaller.clear()
            folders = list(self._folders.values())
            while folders and not self._smaller.is_set():
                limit = self.file_bytes
                folders = await asyncio.to_thread(_trim_all, folders, limit)
                if folders:
                    try:
                        async with asyncio.timeout(TRIM_SECONDS):
                            await self._smaller.wait()
                    except TimeoutError:
                        continue


def budget(given_bytes: int, *, disk_bytes: int) -> int:
    """What is given, or a default that leaves nine tenths of the disk to others, in bytes."""
    return given_bytes or max(FILES_PER_CONTAINER * LEAST_FILE_BYTES, min(DEFAULT_BUDGET_BYTES, disk_bytes // 10))


def allowance(dealt_for: int, *, budget_bytes: int, file_bytes: int) -> int:
    """What each log file may have when the budget is dealt to so many containers, in bytes."""
    return max(LEAST_FILE_BYTES, min(file_bytes, budget_bytes // FILES_PER_CONTAINER // max(1, dealt_for)))


def max_containers(budget_bytes: int) -> int:
    """How many containers a budget can serve."""
    return budget_bytes // FILES_PER_CONTAINER // LEAST_FILE_BYTES


def deal_for(containers: int, dealt_for: int, *, most: int) -> int:
    """For how many containers to deal, when the last deal was for `dealt_for`: the same unless they are more, or far fewer."""
    if dealt_for / GROWTH**2 <= containers <= dealt_for:
        return dealt_for
    return max(1, min(most, math.ceil(containers * GROWTH)))


def trim(folder: str | Path, file_bytes: int) -> bool:
    """Remove the folder's log files that are larger than this and that nobody writes to. Whether one that is written to is.

    A guest may write to its folder, so nothing in it is trusted: links are not followed, other names are left alone.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False  # not made yet, or gone
    try:
        with os.scandir(descriptor) as entries:
            logs = [(entry, found) for entry in entries if (found := _LOG_NAME.fullmatch(entry.name))]
            newest = max((int(found[1]) for _, found in logs), default=0)
            remains = False
            for entry, found in logs:
                try:
                    if entry.stat(follow_symlinks=False).st_size <= file_bytes:
                        continue
                    if int(found[1]) == newest and not found[2]:
                        remains = True
                    else:
                        os.unlink(entry.name, dir_fd=descriptor)
                except OSError:
                    continue  # rotated away, or no file
        return remains
    finally:
        os.close(descriptor)


def _trim_all(folders: list[str], file_bytes: int) -> list[str]:
    return [folder for folder in folders if trim(folder, file_bytes)]
