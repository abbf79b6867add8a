"""A folder of files that a workload brings: written once, swapped as a whole, never half-seen by a guest.

The layout is the kubelet's (pkg/volume/util/atomic_writer.go): a folder `..REVISION` holds the files, the link `..data` points
to it, and each name that the guest sees links through `..data`. Replacing that one link changes all files at once.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from wherry_runner import protocol
from wherry_runner.volumes.errors import VolumeError

MAX_DEPTH = 64
"""Folders within folders. What removes a revision descends by recursion, and nobody's configuration is that deep."""

Files = Mapping[PurePosixPath, protocol.VolumeFile]


def checked(volume: protocol.FilesVolume) -> Files:
    """The volume's files by their paths. Raises VolumeError."""
    files: dict[PurePosixPath, protocol.VolumeFile] = {}
    for file in volume.files:
        path = PurePosixPath(file.path)
        if (
            path.is_absolute()
            or not path.parts
            or "\0" in file.path
            or any(part.startswith("..") for part in path.parts)
        ):
            raise VolumeError(f'volume "{volume.name}": {file.path!r} is no path inside a volume')
        if len(path.parts) > MAX_DEPTH:
            raise VolumeError(f'volume "{volume.name}": {file.path[:64]!r}… is in more than {MAX_DEPTH} folders')
        if path in files:
            raise VolumeError(f'volume "{volume.name}": {file.path!r} is there twice')
        files[path] = file
    for path in files:
        for parent in path.parents:
            if parent in files:
                raise VolumeError(f'volume "{volume.name}": {str(parent)!r} is both a file and a folder')
    return files


def beneath(files: Files, sub_path: str) -> protocol.VolumeFile | Files:
    """What a path inside the volume names: a file, or the files of a folder by their paths in it. Raises KeyError."""
    path = PurePosixPath(sub_path)
    if path in files:
        return files[path]
    found = {name.relative_to(path): file for name, file in files.items() if path in name.parents}
    if not found:
        raise KeyError(sub_path)
    return found


def swap(folder: Path, files: Files) -> None:
    """Bring a folder to this content, for its readers at one moment. Raises OSError; then it is as it was."""
    revision = folder / f"..{secrets.token_hex(8)}"
    revision.mkdir(mode=0o755)
    try:
        fill(revision, files)
    except OSError:
        shutil.rmtree(revision, ignore_errors=True)  # it will be tried again, and again
        raise

    data = folder / "..data"
    old = os.readlink(data) if data.is_symlink() else None
    _link(data, revision.name)
    visible = {path.parts[0] for path in files}
    for name in visible:
        if not (folder / name).is_symlink():
            _link(folder / name, f"..data/{name}")
    for entry in folder.iterdir():
        if not entry.name.startswith("..") and entry.name not in visible:
            entry.unlink()
    if old is not None:
        shutil.rmtree(folder / old, ignore_errors=True)


def fill(folder: Path, files: Files) -> None:
    """Write files into an empty folder. Raises OSError."""
    for path, file in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as out:
            out.write(file.data)
        target.chmod(file.mode)


def _link(path: Path, target: str) -> None:
    temporary = path.parent / f"..new-{secrets.token_hex(8)}"
    temporary.symlink_to(target)
    os.replace(temporary, path)
