"""What PersistentVolumeClaims hold: folders that are mounted into the runner, by the names of the claims."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from wherry_runner import protocol
from wherry_runner.volumes.errors import VolumeError
from wherry_runner.volumes.host_path import HostPath, Place

_NAME = re.compile(r"[a-z0-9][-a-z0-9.]*/[a-z0-9][-a-z0-9.]*")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim that workloads may mount: one `--claim`."""

    name: str
    """`NAMESPACE/NAME`, as the objects that name it are in that namespace."""
    folder: HostPath

    @classmethod
    def parse(cls, text: str) -> Claim:
        """`NAMESPACE/NAME=PATH[:ro]`. Raises ValueError."""
        name, separator, folder = text.partition("=")
        if not separator or not _NAME.fullmatch(name):
            raise ValueError(f"it wants NAMESPACE/NAME=PATH, not {text!r}")
        return cls(name=name, folder=HostPath.parse(folder))


def place(volume: protocol.ClaimVolume, offered: Sequence[Claim]) -> Place:
    """Where a claim's folder is. Pure. Raises VolumeError."""
    for each in offered:
        if each.name == volume.claim:
            read_only = each.folder.read_only or volume.read_only
            return Place(allowed=HostPath(prefix=each.folder.prefix, read_only=read_only), beneath="")
    raise VolumeError(
        f'volume "{volume.name}": the claim "{volume.claim}" is not mounted into this runner (its setting --claim)'
    )
