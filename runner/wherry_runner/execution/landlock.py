"""Landlock: which files a process may reach, by rules that it gives itself (landlock(7)).

Every right that the kernel's version knows is taken away, and then given back below the guest's own folders. A right counts
when a file is opened: what is open already stays as it is. The process is then in a domain of its own: it can't ptrace a
process outside, nor read its memory, and from version 6 on not signal it.

The native executor does the same (`runner/executor/src/sandbox/landlock.rs`).
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

from wherry_runner.execution import syscalls

NEWEST_KNOWN = 7
"""The newest version whose rights are all named below; what later ones add is not used."""

# Rights of <linux/landlock.h>, LANDLOCK_ACCESS_FS_*.
WRITE_FILE = 1 << 1
READ_FILE = 1 << 2
READ_DIR = 1 << 3
REMOVE_DIR = 1 << 4
REMOVE_FILE = 1 << 5
MAKE_DIR = 1 << 7
MAKE_REG = 1 << 8
MAKE_SYM = 1 << 12
REFER = 1 << 13
"""Renaming and linking from one folder to another (version 2)."""
TRUNCATE = 1 << 14
"""Version 3."""

READ = READ_FILE | READ_DIR
READ_WRITE = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SYM | REFER | TRUNCATE
"""All that WASI has functions for: no devices, pipes or sockets are made, and nothing is executed."""

_RIGHTS = {0: 0, 1: 13, 2: 14, 3: 15, 4: 15}
"""How many rights a version has, numbered without gaps; 16 from version 5 on."""

_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1

_libc = ctypes.CDLL(None, use_errno=True)


def rights(abi: int) -> int:
    """All rights over files that a version knows."""
    return (1 << _RIGHTS.get(abi, 16)) - 1


def taken_away(abi: int) -> bytes:
    """`struct landlock_ruleset_attr`: what only rules can allow from then on.

    The kernel takes a longer one than it knows if the rest is 0.
    """
    tcp_bind_and_connect = 0b11 if abi >= 4 else 0
    abstract_sockets_and_signals = 0b11 if abi >= 6 else 0
    return struct.pack("=QQQ", rights(abi), tcp_bind_and_connect, abstract_sockets_and_signals)


def abi() -> int:
    """The version that this kernel has and that is used; 0: none."""
    try:
        found = _call("landlock_create_ruleset", None, 0, _CREATE_RULESET_VERSION)
    except OSError:
        return 0
    return min(found, NEWEST_KNOWN)


def ruleset(abi: int, *, readable: Iterable[int], writable: Iterable[int]) -> int:
    """Rules (a descriptor) by which nothing is left but these folders (open descriptors). Raises OSError."""
    attribute = taken_away(abi)
    descriptor = _call("landlock_create_ruleset", attribute, len(attribute), 0)
    for access, folders in ((READ, readable), (READ_WRITE, writable)):
        for folder in folders:
            rule = struct.pack("=Qi", access & rights(abi), folder)
            _call("landlock_add_rule", descriptor, _RULE_PATH_BENEATH, rule, 0)
    return descriptor


def enforce(descriptor: int) -> None:
    """Keep this thread, and those that it will start, to the rules. Raises OSError."""
    _call("landlock_restrict_self", descriptor, 0)
    os.close(descriptor)


def _call(name: str, *arguments: int | bytes | None) -> int:
    number = syscalls.HERE.get(name, -1)  # -1 is no system call: ENOSYS
    words = [ctypes.c_long(word) if isinstance(word, int) else word for word in arguments]
    answer: int = _libc.syscall(ctypes.c_long(number), *words)
    if answer < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return answer
