"""Control groups for a node: one of our own in each hierarchy, so that the host's stay as they are."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from tests.cluster.processes import wait_for

MOUNTS = Path("/sys/fs/cgroup")

REMOVE_TIMEOUT_SECONDS = 10.0
"""Its processes are killed by then; the kernel lets go of a group a moment after its last process."""


def unified() -> bool:
    """Whether the machine has cgroup v2 alone."""
    return (MOUNTS / "cgroup.controllers").exists()


def make(name: str) -> None:
    """Make the group `name` at the top of every hierarchy that kubelet and runc use."""
    for top in _hierarchies():
        group = top / name
        group.mkdir(exist_ok=True)
        if unified():
            # Children get a controller only if each group above passes it on. (systemd has done the top.)
            wanted = " ".join(f"+{each}" for each in (group / "cgroup.controllers").read_text().split())
            (group / "cgroup.subtree_control").write_text(wanted)
        elif (group / "cpuset.cpus").exists():
            for setting in ("cpuset.cpus", "cpuset.mems"):  # a new cpuset is empty: no process could enter it
                (group / setting).write_text((top / setting).read_text())


def remove(name: str) -> bool:
    """Kill what is in the group, and remove it with all below it; whether nothing is left."""
    return wait_for(lambda: _removed(name), timeout_seconds=REMOVE_TIMEOUT_SECONDS)


def processes(group: str) -> set[int]:
    """Return the processes in a group and all below it: `NAME` or `NAME/...`."""
    pids: set[int] = set()
    for top in _hierarchies():
        for folder, _, _ in os.walk(top / group):  # passes over what vanishes meanwhile
            with contextlib.suppress(OSError):
                pids.update(map(int, (Path(folder) / "cgroup.procs").read_text().split()))
    return pids


def _removed(name: str) -> bool:
    for pid in processes(name):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for top in _hierarchies():
        for folder, _, _ in os.walk(top / name, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)
    return not any((top / name).exists() for top in _hierarchies())


def _hierarchies() -> list[Path]:
    if unified():
        return [MOUNTS]
    # Links (cpu,cpuacct) lead to the same; `unified` beside v1 is nobody's here, but runc puts its processes there too.
    return [each for each in sorted(MOUNTS.iterdir()) if each.is_dir() and not each.is_symlink()]
