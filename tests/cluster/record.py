"""What a cluster writes down about itself, so that other processes can use it, and sweep up after it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.processes import Identity

FILE_NAME = "cluster.json"

GONE_TIMEOUT_SECONDS = 10.0
"""After SIGKILL: only a process that hangs in the kernel takes longer."""


@dataclass(frozen=True)
class Component:
    """A process of a cluster."""

    name: str
    pid: int
    start_time: int
    log: str

    @property
    def identity(self) -> Identity:
        """Which process this is."""
        return Identity(pid=self.pid, start_time=self.start_time)


@dataclass(frozen=True)
class Record:
    """One cluster: where things are and which processes it is made of."""

    name: str
    provider: str
    server: str
    kubeconfig: str
    ca_file: str
    components: tuple[Component, ...] = ()

    def save(self, directory: Path) -> None:
        """Write it into the cluster's folder; readers see the old or the new one, whole."""
        partial = directory / f".{FILE_NAME}"
        partial.write_text(json.dumps(dataclasses.asdict(self), indent=2))
        os.replace(partial, directory / FILE_NAME)

    @classmethod
    def load(cls, directory: Path) -> Record | None:
        """Read the record in a cluster's folder; None if there is none."""
        try:
            document = json.loads((directory / FILE_NAME).read_text())
        except FileNotFoundError:
            return None
        components = tuple(Component(**each) for each in document.pop("components"))
        return cls(**document, components=components)

    def sweep(self) -> list[str]:
        """Kill what still runs of the cluster, and return the names.

        Ordinarily there is nothing: the processes die with the one that started them.
        """
        left = [component for component in self.components if component.identity.alive]
        for component in left:
            component.identity.signal(signal.SIGKILL)
        for component in left:
            component.identity.wait_gone(GONE_TIMEOUT_SECONDS)
        return [component.name for component in left]
