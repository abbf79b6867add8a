"""A folder of a runner's own, on disk or in memory, in which the volumes of one kind are."""

from __future__ import annotations

import logging
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from wherry_runner.files.removal import remove_tree

log = logging.getLogger(__name__)


class Root:
    """Made with its first use, by us or not at all: a tmpfs may be everybody's, and the name can be guessed."""

    def __init__(self, path: Path, remover: ThreadPoolExecutor) -> None:
        self.path = path
        self._remover = remover
        self._made = False

    def make(self) -> None:
        """Make it, if this process has not yet. Raises OSError."""
        if not self._made:
            self.path.mkdir(mode=0o700)
            self._made = True

    def remove(self) -> None:
        """Remove it with all that is in it. What can't be removed is logged, and keeps `make` from succeeding."""
        self._made = False
        try:
            remove_tree(self.path)
        except OSError as error:
            log.error("%s can't be removed: %s", self.path, error)

    def retire(self, path: Path) -> None:
        """Take something out of sight at once; it is removed in the background, for that may take a while."""
        if not self._made:
            return
        retired = self.path / f".retired-{secrets.token_hex(8)}"  # no workload's id begins with a dot
        try:
            path.rename(retired)
        except FileNotFoundError:
            return
        except OSError as error:
            log.error("%s can't be moved out of sight: %s", path, error)
            retired = path
        self._remover.submit(_remove, retired)


def _remove(path: Path) -> None:
    try:
        remove_tree(path)
    except OSError as error:
        log.error("%s can't be removed: %s", path, error)
