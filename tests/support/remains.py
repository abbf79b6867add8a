"""What a process and its descendants hold: to compare before and after."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """All processes below one, those that have ended and are not reaped too."""
    found = []
    for child in children(pid):
        found += [child, *descendants(child)]
    return found


def children(pid: int) -> list[int]:
    """The processes that one started or adopted."""
    numbers = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            numbers += Path(f"/proc/{pid}/task/{thread}/children").read_text().split()
    return [int(number) for number in numbers]


def descriptors(pid: int) -> Counter[str]:
    """What a process has open, by what it is: files by their paths, others by their kinds. Without its connections, and
    without the modules that an executor keeps loaded."""
    found: Counter[str] = Counter()
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[re.sub(r"\[\d+\]", "", os.readlink(f"/proc/{pid}/fd/{number}"))] += 1
    return Counter({name: number for name, number in found.items() if name != "socket:" and ".cwasm" not in name})


def sockets(pid: int) -> int:
    """How many sockets a process has open."""
    found = 0
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found += os.readlink(f"/proc/{pid}/fd/{number}").startswith("socket:")
    return found


def resident_bytes(pid: int) -> int:
    """The memory of a process that no file backs (RssAnon of proc_pid_status(5))."""
    return _told(pid, "RssAnon")


def peak_bytes(pid: int) -> int:
    """The most memory that a process ever had (VmHWM of proc_pid_status(5))."""
    return _told(pid, "VmHWM")


def _told(pid: int, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


def entries(folder: Path) -> list[str]:
    """Everything in a folder and below it. What vanishes meanwhile counts as gone."""
    return sorted(
        os.path.relpath(os.path.join(place, name), folder)
        for place, folders, files in os.walk(folder)
        for name in (*folders, *files)
    )
