"""What a cluster with nodes makes on the host, written down before it is made; and its removal by whoever comes next.

Processes, mounts, interfaces and firewall rules of a killed cluster go by themselves (see `machine`). Its control groups
and its folder don't: the next `up` or `down` of any cluster sweeps them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import cgroups
from tests.cluster.errors import ClusterError
from tests.cluster.processes import Identity
from tests.cluster.record import Record

RECORDS = Path("/run/wherry")
"""Emptied by a reboot, as is all that the records are about; removed with the last of them."""


@dataclass(frozen=True)
class Footprint:
    """One cluster's."""

    cgroup: str
    directory: str
    owner_pid: int
    owner_start_time: int

    @classmethod
    def of_this_process(cls, cgroup: str, directory: Path) -> Footprint:
        """Return a footprint that is swept once this process is gone."""
        owner = Identity.of(os.getpid())
        assert owner is not None
        return cls(cgroup, str(directory), owner.pid, owner.start_time)

    def record(self) -> None:
        """Write it down."""
        while True:
            RECORDS.mkdir(mode=0o700, exist_ok=True)
            try:
                self._file.write_text(json.dumps(dataclasses.asdict(self)))
                return
            except FileNotFoundError:  # the last of others has just been removed, and the folder with it
                continue

    def remove(self) -> None:
        """Remove the control groups, then the record.

        :raises ClusterError: they can't be removed.
        """
        if not cgroups.remove(self.cgroup):
            raise ClusterError(f"control group {self.cgroup!r} can't be removed: {cgroups.processes(self.cgroup)}")
        self._file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another cluster's is there
            RECORDS.rmdir()

    @property
    def _file(self) -> Path:
        return RECORDS / f"{self.cgroup}.json"


def sweep() -> list[str]:
    """Remove what killed clusters left, and return their folders. Does nothing without root: they needed it too."""
    swept = []
    if os.geteuid() == 0:
        for file in sorted(RECORDS.glob("*.json")):
            try:
                footprint = Footprint(**json.loads(file.read_text()))
            except (FileNotFoundError, ValueError):  # removed, or being written, this very moment
                continue
            if not Identity(footprint.owner_pid, footprint.owner_start_time).alive:
                record = Record.load(Path(footprint.directory))
                if record is not None:
                    record.sweep()  # it may be dying this very moment: what still writes would make files anew
                footprint.remove()
                shutil.rmtree(footprint.directory, ignore_errors=True)
                swept.append(footprint.directory)
    return swept
