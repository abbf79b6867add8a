"""Opening paths that strangers may have a hand in: below a folder, and never outside of it, whatever links stand in the way.

One call of openat2(2) resolves and opens, so there is nothing between a check and its use. The standard library has no
openat2; the kernel has had it since 5.6.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# Numbers of <linux/openat2.h> and of the system call table: part of the kernel's ABI, which never changes. 437 is the same
# on x86_64 and aarch64: since Linux 5.1 a new system call has one number on (nearly) all architectures.
_SYS_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_BENEATH = 0x08

_ATTEMPTS = 100
"""A rename elsewhere can make the kernel unsure whether `..` led out (EAGAIN). It says: try again, but not for ever."""

FOLDER = os.O_RDONLY | os.O_DIRECTORY
"""A folder whose entries are read."""


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def open_beneath(folder: int, path: str, flags: int) -> int:
    """Open a path below an open folder (close-on-exec); the caller closes it. Links are followed as long as they stay below.

    Raises OSError: with EXDEV where `path` is absolute or leads out, through a link or `..`; ENOSYS before Linux 5.6.
    """
    if "\0" in path:
        raise OSError(errno.EINVAL, "a NUL character is in it", path)
    how = _OpenHow(flags=flags | os.O_CLOEXEC, mode=0, resolve=_RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
    name = ctypes.c_char_p(os.fsencode(path))
    size = ctypes.c_size_t(ctypes.sizeof(how))
    for _ in range(_ATTEMPTS):
        number = _libc.syscall(ctypes.c_long(_SYS_OPENAT2), ctypes.c_int(folder), name, ctypes.byref(how), size)
        if number >= 0:
            return int(number)
        if ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):
            break
    error = ctypes.get_errno()
    raise OSError(error, "it leads out of the folder" if error == errno.EXDEV else os.strerror(error), path)


def open_folder(start: Path, steps: Sequence[str] = ()) -> int:
    """Open a folder: `start`, which is trusted, then each step below the one before. The caller closes it. Raises OSError."""
    number = os.open(start, FOLDER | os.O_CLOEXEC)
    for step in steps:
        try:
            below = open_beneath(number, step, FOLDER)
        finally:
            os.close(number)
        number = below
    return number


@contextmanager
def opened(start: Path, steps: Sequence[str] = ()) -> Iterator[int]:
    """The same for as long as it is needed. Raises OSError."""
    number = open_folder(start, steps)
    try:
        yield number
    finally:
        os.close(number)


def make_folder(folder: int, path: str, *, mode: int) -> int:
    """Open a folder below another, and make what is missing on the way. The caller closes it. Raises OSError."""
    parts = path.split("/")
    there = len(parts)
    while True:
        try:
            number = open_beneath(folder, "/".join(parts[:there]) or ".", FOLDER)
            break
        except FileNotFoundError:
            there -= 1
    for part in parts[there:]:
        try:
            below = _made(number, part, mode)
        finally:
            os.close(number)
        number = below
    return number


def _made(folder: int, name: str, mode: int) -> int:
    os.mkdir(name, dir_fd=folder)
    # Should somebody have put a link in its place, this doesn't follow it.
    number = os.open(name, FOLDER | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.fchmod(number, mode)  # the mode of mkdir is cut by the umask
    except OSError:
        os.close(number)
        raise
    return number
