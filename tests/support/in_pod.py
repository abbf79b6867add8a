"""Runs a program where the ServiceAccount's files are as in a Pod: `python in_pod.py FOLDER PROGRAM ARGUMENTS...`.

With mounts of its own, which end with it. What is below /run on this machine is not there.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

PLACE = "/run/secrets/kubernetes.io/serviceaccount"
"""Through /var/run, which leads to /run."""

_CLONE_NEWNS, _CLONE_NEWUSER = 0x0002_0000, 0x1000_0000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x4_0000
_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def command(folder: Path, program: Sequence[str]) -> list[str]:
    """What runs a program with the files of this folder. It keeps its process id."""
    return [sys.executable, "-I", "-S", __file__, str(folder), *program]


def main(folder: str, program: list[str]) -> NoReturn:
    """Mount, and become the program."""
    user, group = os.getuid(), os.getgid()
    _done(_libc.unshare(_CLONE_NEWNS if user == 0 else _CLONE_NEWNS | _CLONE_NEWUSER), "unshare")
    if user != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    _done(_libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None), "mount /")
    _done(_libc.mount(b"tmpfs", b"/run", b"tmpfs", 0, None), "mount /run")
    os.makedirs(PLACE)
    _done(_libc.mount(folder.encode(), PLACE.encode(), None, _MS_BIND, None), f"mount {PLACE}")
    _libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)  # forgotten when rights are gained
    os.execv(program[0], program)


def _done(result: int, what: str) -> None:
    if result != 0:
        sys.exit(f"{what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
