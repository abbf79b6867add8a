"""Answers `GET /v1/condition`: what the runner is short of, and which images it has."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from wherry_runner import protocol
from wherry_runner.modules.store import StoredImage
from wherry_runner.serving.health import Complaint

MAX_IMAGES = 50
"""Those that a kubelet lists (nodeStatusMaxImages), the largest first."""

MAX_NAMES = 5
"""Of one image (kubelet: MaxNamesPerImageInNodeStatus)."""


class Condition:
    """Reads it anew whenever somebody asks."""

    def __init__(
        self,
        *,
        memory: Iterable[Complaint],
        disk: Iterable[Complaint],
        processes: Iterable[Complaint],
        images: Callable[[], list[StoredImage]],
    ) -> None:
        self._memory = tuple(memory)
        self._disk = tuple(disk)
        self._processes = tuple(processes)
        self._images = images

    def read(self) -> protocol.RunnerCondition:
        """As it is now."""
        return protocol.RunnerCondition(
            memory_pressure=_said(self._memory),
            disk_pressure=_said(self._disk),
            pid_pressure=_said(self._processes),
            images=listed(self._images()),
        )


def listed(images: Iterable[StoredImage]) -> tuple[protocol.Image, ...]:
    """As a node lists them: one entry for each manifest, whatever the references by which it was pulled."""
    by_manifest: dict[str, tuple[int, dict[str, None]]] = {}
    for each in images:
        _, names = by_manifest.setdefault(each.manifest_digest, (each.size_bytes, {}))
        names[f"{each.repository}@{each.manifest_digest}"] = None
        if "@" not in each.reference:
            names[each.reference] = None
    entries = [
        # Those with a digest first, as a kubelet has them.
        protocol.Image(names=tuple(sorted(names, key=lambda name: "@" not in name))[:MAX_NAMES], size_bytes=size)
        for size, names in by_manifest.values()
    ]
    return tuple(sorted(entries, key=lambda each: (-each.size_bytes, each.names))[:MAX_IMAGES])


def _said(complaints: Iterable[Complaint]) -> str:
    return "; ".join(said for complaint in complaints if (said := complaint()))
