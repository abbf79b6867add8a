"""What the kernel grants this process: the limits of its cgroup (v1 and v2) and of its machine, and the memory in use.

Read from files that anybody may read; nothing is ever written. In a container, the tree at /sys/fs/cgroup is the
container's own; outside, a process finds its place in it by /proc/self/cgroup, and every group above counts as well.
Files and their meaning: admin-guide/cgroup-v2.rst and admin-guide/cgroup-v1/memory.rst of the kernel's documentation.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

UNLIMITED_BYTES = 1 << 60
"""cgroup v1 has no word for "no limit", only a number close to 2**63."""


@dataclass(frozen=True, kw_only=True)
class Grants:
    """None: not limited by a cgroup."""

    memory_bytes: int | None = None
    cpu_millicores: int | None = None
    processes: int | None = None
    """Threads count as processes."""


@dataclass(frozen=True)
class MemoryUse:
    """Memory that the kernel can't take back by dropping caches, and where it ends."""

    used_bytes: int
    limit_bytes: int
    shared: bool = False
    """With others: it is the whole machine's, and they may be who uses it."""


def grants(root: Path = Path("/")) -> Grants:
    """What this process's cgroup allows, the tightest of those above it included. `root`: where /proc and /sys are."""
    memory = [limit for _, limit in _memory_limits(root)]
    cpu: list[int] = []
    for folder in _folders(root, "cpu"):
        match (
            _text(folder / "cpu.max") or f"{_text(folder / 'cpu.cfs_quota_us')} {_text(folder / 'cpu.cfs_period_us')}"
        ).split():
            case [quota, period] if quota.isdigit() and period.isdigit() and int(period) > 0:
                cpu.append(int(quota) * 1000 // int(period))
    pids = [limit for folder in _folders(root, "pids") if (limit := _number(folder / "pids.max")) is not None]
    return Grants(
        memory_bytes=min(memory, default=None), cpu_millicores=min(cpu, default=None), processes=min(pids, default=None)
    )


class MemoryMeter:
    """Reads how much memory is in use: of the tightest cgroup with a limit, else of the machine."""

    def __init__(self, root: Path = Path("/")) -> None:
        limits = sorted(_memory_limits(root), key=lambda found: found[1])
        self._folder = limits[0][0] if limits else None
        self._meminfo = root / "proc" / "meminfo"

    def read(self) -> MemoryUse:
        """The memory in use now. Raises OSError."""
        if self._folder is None:
            found = _fields(self._meminfo.read_text().replace(":", "").replace(" kB", ""))
            total = found["MemTotal"] << 10
            return MemoryUse(total - (found["MemAvailable"] << 10), total, shared=True)
        # Of the page cache, active or not, and of what is only kept to be quicker, the kernel takes back before it kills.
        if (self._folder / "memory.max").exists():
            current, limit = _number(self._folder / "memory.current"), _number(self._folder / "memory.max")
            names: tuple[str, ...] = ("inactive_file", "active_file", "slab_reclaimable")
        else:
            current = _number(self._folder / "memory.usage_in_bytes")
            limit = _number(self._folder / "memory.limit_in_bytes")
            names = ("total_inactive_file", "total_active_file")
        if current is None or limit is None:
            raise OSError(f"{self._folder} has no memory limit any more")
        found = _fields((self._folder / "memory.stat").read_text())
        return MemoryUse(max(0, current - sum(found.get(name, 0) for name in names)), limit)


def machine_memory_bytes() -> int:
    """Of the whole machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def machine_processes(root: Path = Path("/")) -> int:
    """Processes and threads that the machine's kernel can number."""
    kernel = root / "proc" / "sys" / "kernel"
    numbers = (_number(kernel / name) for name in ("pid_max", "threads-max"))
    return min(number for number in (*numbers, 1 << 22) if number is not None)


def _memory_limits(root: Path) -> list[tuple[Path, int]]:
    found = []
    for folder in _folders(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _number(folder / name)
            if limit is not None and limit < UNLIMITED_BYTES:
                found.append((folder, limit))
    return found


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """The folder of this process's cgroup, and those above it."""
    tree = root / "sys" / "fs" / "cgroup"
    if (tree / "cgroup.controllers").exists():
        own = _own_path(root, "")
    else:
        tree /= controller
        own = _own_path(root, controller)
    folder = tree / own.lstrip("/")
    # Outside of a cgroup namespace a container sees its own group as the whole tree, under a name that is not in it.
    folder = folder if folder.is_dir() else tree
    while True:
        yield folder
        if folder == tree:
            return
        folder = folder.parent


def _own_path(root: Path, controller: str) -> str:
    """Of /proc/self/cgroup: lines NUMBER:CONTROLLERS:PATH; v2 has the number 0 and no controllers."""
    for line in (_text(root / "proc" / "self" / "cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(",") and "/.." not in path:
            return path
    return "/"


def _fields(text: str) -> dict[str, int]:
    """Lines of a name and a number."""
    pairs = (line.split() for line in text.splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.isdigit() else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
