"""Folders of the runner's own file system: only below what its settings allow, wherever links on the way may point."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wherry_runner import protocol
from wherry_runner.files.beneath import make_folder, open_beneath, opened
from wherry_runner.volumes.errors import VolumeError

MADE_MODE = 0o755
"""Of a folder that DirectoryOrCreate makes, as on a kubelet."""


@dataclass(frozen=True, kw_only=True)
class HostPath:
    """A folder that workloads may mount, with all that is in it: one `--host-path`."""

    prefix: str
    read_only: bool = False

    @classmethod
    def parse(cls, text: str) -> HostPath:
        """`PREFIX[:ro]`. Raises ValueError."""
        prefix, separator, mode = text.partition(":")
        if not prefix.startswith("/") or ".." in prefix.split("/") or (separator and mode != "ro"):
            raise ValueError(f"it wants an absolute path, alone or with :ro behind it, not {text!r}")
        return cls(prefix=_normal(prefix), read_only=bool(separator))


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a hostPath volume is."""

    allowed: HostPath
    beneath: str
    """From the prefix; empty: the prefix itself."""


def place(volume: protocol.HostPathVolume, allowed: Sequence[HostPath]) -> Place:
    """Which setting allows a volume: of several the closest. Pure. Raises VolumeError."""
    path = volume.path
    if not path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise VolumeError(f"volume \"{volume.name}\": hostPath {path!r} must be an absolute path without '..'")
    path = _normal(path)
    for each in sorted(allowed, key=lambda each: len(each.prefix), reverse=True):
        if path == each.prefix or path.startswith(each.prefix.rstrip("/") + "/"):
            return Place(allowed=each, beneath=path[len(each.prefix) :].lstrip("/"))
    raise VolumeError(
        f'volume "{volume.name}": hostPath "{path}" is below no folder that this runner allows (its setting --host-path)'
    )


def prepare(volume: protocol.HostPathVolume, found: Place) -> None:
    """Look whether a volume is what its `type` says, or make it. Raises VolumeError, OSError."""
    try:
        with opened(Path(found.allowed.prefix)) as start:
            if volume.type == "DirectoryOrCreate" and not found.allowed.read_only:
                os.close(make_folder(start, found.beneath or ".", mode=MADE_MODE))
            else:
                os.close(open_beneath(start, found.beneath or ".", os.O_PATH | os.O_DIRECTORY))
    except FileNotFoundError:
        raise VolumeError(f'volume "{volume.name}": there is no folder "{volume.path}" on this runner') from None
    except NotADirectoryError:
        # Words of the kubelet (pkg/volume/hostpath/host_path.go), and what to do.
        raise VolumeError(
            f'volume "{volume.name}": hostPath type check failed: {volume.path} is not a directory; '
            "a module sees folders, so mount the folder that it is in"
        ) from None


def _normal(path: str) -> str:
    return "/" + posixpath.normpath(path).lstrip("/")
