"""Removing what guests left: trees of any size and depth, with any modes, and never a step through a link.

`shutil.rmtree` descends by recursion and holds a descriptor for each level, so a tree of a thousand levels stops it. Here
nothing descends: a folder that isn't empty is moved to the top and emptied there. At any moment two folders are open.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path

_NOT_EMPTY = (errno.ENOTEMPTY, errno.EEXIST)
_NO_FOLDER = (errno.ENOTDIR, errno.ELOOP)


def remove_tree(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it; what is not there is no matter.

    Raises OSError for what can't be removed, after all else is.
    """
    try:
        top = _open(path)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in _NO_FOLDER:
            raise
        path.unlink(missing_ok=True)
        return
    try:
        _Top(top).empty()
    finally:
        os.close(top)
    path.rmdir()


class _Top:
    """The folder that everything is moved to."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._prefix = secrets.token_hex(8)  # no guest can have made a folder of such a name
        self._steps = 0
        self._failure: OSError | None = None

    def empty(self) -> None:
        """Remove all that is in it. Raises the first error, if something is left."""
        while True:
            before, self._failure = self._steps, None
            # What is moved here meanwhile may be seen by this pass or by the next one only.
            with os.scandir(self._descriptor) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        self._remove_folder(entry.name)
                    else:
                        self._unlink(entry.name, self._descriptor)
            if self._steps == before:
                break
        if self._failure is not None:
            raise self._failure

    def _remove_folder(self, name: str) -> None:
        try:
            folder = _open(name, at=self._descriptor)
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            self._take(entry.name, folder)
                        else:
                            self._unlink(entry.name, folder)
            finally:
                os.close(folder)
            os.rmdir(name, dir_fd=self._descriptor)
            self._steps += 1
        except OSError as error:
            self._failure = self._failure or error

    def _unlink(self, name: str, folder: int) -> None:
        try:
            os.unlink(name, dir_fd=folder)
            self._steps += 1
        except OSError as error:
            self._failure = self._failure or error

    def _take(self, name: str, folder: int) -> None:
        """Remove a folder's folder if it is empty, else move it to the top."""
        try:
            os.rmdir(name, dir_fd=folder)
        except OSError as error:
            if error.errno not in _NOT_EMPTY:
                self._failure = self._failure or error
                return
            try:
                os.close(_open(name, at=folder))  # to move a folder, one must be allowed to write to it
                new = f"{self._prefix}-{self._steps}"
                os.rename(name, new, src_dir_fd=folder, dst_dir_fd=self._descriptor)
            except OSError as error:
                self._failure = self._failure or error
                return
        self._steps += 1


def _open(place: Path | str, *, at: int | None = None) -> int:
    """Open a folder, with all rights to it for its owner. Raises OSError."""
    way = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    try:
        if os.fstat(way).st_mode & 0o700 != 0o700:
            with contextlib.suppress(PermissionError):  # not ours: perhaps it can be emptied all the same
                os.chmod(f"/proc/self/fd/{way}", 0o700)
        return os.open(f"/proc/self/fd/{way}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    finally:
        os.close(way)
