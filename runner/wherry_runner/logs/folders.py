"""Where containers' logs are: LOGS/WORKLOAD/CONTAINER/N.log.

They go with their workload, or with what is journaled of it. Guests write to them, so they are removed as what guests leave is
(`files/removal.py`), and in the background, for that may take a while.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from wherry_runner.files.removal import remove_tree

log = logging.getLogger(__name__)

KEPT_LOGS = 2
"""Log files of a container: of the newest run and of the one before (`kubectl logs --previous`)."""


def make(folder: Path) -> None:
    """Make a container's folder, if it is not there. Raises OSError."""
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        pass
    except FileNotFoundError:
        make(folder.parent)
        os.mkdir(folder, 0o700)


def log_file(folder: Path, restart_count: int) -> Path:
    """The log of a run; its older part has `.1` behind the name."""
    return folder / f"{restart_count}.log"


def newest(folder: Path, *, back: int = 0) -> Path | None:
    """The log of a container's newest run, or of the one so many before it; None where there is none."""
    numbers = _runs(folder)
    return log_file(folder, numbers[-1 - back]) if len(numbers) > back else None


def drop_old(folder: Path, *, newest: int) -> None:
    """Remove what is older than the logs that are kept; `newest` is the number of the newest run."""
    if newest < KEPT_LOGS:
        return
    for number in _runs(folder)[:-KEPT_LOGS]:
        for path in folder.glob(f"{number}.log*"):
            path.unlink(missing_ok=True)


def _runs(folder: Path) -> list[int]:
    # The older part counts too: while a log is rotated, there is a moment without the other.
    numbers = (path.name.removesuffix(".1").removesuffix(".log") for path in folder.glob("*.log*"))
    return sorted({int(number) for number in numbers if number.isdigit()})


class LogFolders:
    """The folders of all containers' logs."""

    def __init__(self, directory: Path) -> None:
        """Remove what an earlier process did not get to remove. Raises OSError."""
        self._directory = directory
        self._retired = directory.with_name(directory.name + ".retired")
        remove_tree(self._retired)
        for folder in (self._directory, self._retired):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._remover = ThreadPoolExecutor(1, thread_name_prefix="remove-logs")

    def of(self, workload_id: str, container: str) -> Path:
        """A container's folder."""
        return self._directory.joinpath(workload_id, container)

    def retire(self, workload_id: str, container: str = "") -> None:
        """Take the logs of a workload, or of one container, out of sight at once, and remove them soon."""
        retired = self._retired / secrets.token_hex(8)
        with contextlib.suppress(FileNotFoundError):
            (self._directory / workload_id / container).rename(retired)
            self._remover.submit(_remove, retired)

    def retire_unless(self, known: Callable[[str], bool]) -> None:
        """Remove the logs of all workloads of which this isn't so."""
        for folder in self._directory.iterdir():
            if not known(folder.name):
                self.retire(folder.name)

    def close(self) -> None:
        """Wait until all that was retired is gone."""
        self._remover.shutdown()


def _remove(path: Path) -> None:
    try:
        remove_tree(path)
    except OSError as error:
        log.error("logs at %s can't be removed: %s", path, error)
