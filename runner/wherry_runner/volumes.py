"""The folders of files that a workload brings: written once, swapped as a whole, never half-seen by a guest.

The layout is the kubelet's (pkg/volume/util/atomic_writer.go): a folder `..REVISION` holds the files, the link `..data` points
to it, and each name that the guest sees links through `..data`. Replacing that one link changes all files at once.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from wherry_runner import protocol


class VolumeError(Exception):
    """A volume can't be written; the message names it and says what is wrong with it."""


class Volumes:
    """All volumes of a runner's workloads: on disk, those with Secrets in memory."""

    def __init__(self, directory: Path, memory_directory: Path) -> None:
        self._directory = directory
        # One folder for each state directory: two runners on one machine never meet, and the next start finds its own.
        name = "wherry-" + hashlib.sha256(str(directory.absolute()).encode()).hexdigest()[:16]
        self._memory_directory = memory_directory / name
        self._has_memory_directory = False

    def clear(self) -> None:
        """Remove what an earlier process left: its guests are dead."""
        for directory in (self._directory, self._memory_directory):
            shutil.rmtree(directory, ignore_errors=True)
        self._directory.mkdir(parents=True, mode=0o700)

    def close(self) -> None:
        """Remove everything."""
        for directory in (self._directory, self._memory_directory):
            shutil.rmtree(directory, ignore_errors=True)

    def write(self, workload_id: str, volumes: Sequence[protocol.Volume]) -> None:
        """Bring a workload's volumes to this content. Raises VolumeError."""
        for volume in volumes:
            files = _checked(volume)
            folder = self.path(workload_id, volume)
            try:
                if volume.secret and not self._has_memory_directory:
                    # Made by us or not at all: a tmpfs may be everybody's, and the name can be guessed.
                    self._memory_directory.mkdir(mode=0o700)
                    self._has_memory_directory = True
                folder.mkdir(parents=True, exist_ok=True, mode=0o755)
                _swap(folder, files)
            except OSError as error:
                raise VolumeError(f'volume "{volume.name}": {error.strerror}') from error

    def path(self, workload_id: str, volume: protocol.Volume) -> Path:
        """The folder of a volume, as it is mounted."""
        root = self._memory_directory if volume.secret else self._directory
        return root / workload_id / volume.name

    def drop(self, workload_id: str) -> None:
        """Remove a workload's volumes."""
        for root in (self._directory, self._memory_directory):
            shutil.rmtree(root / workload_id, ignore_errors=True)


def _checked(volume: protocol.Volume) -> dict[PurePosixPath, protocol.VolumeFile]:
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
        if path in files:
            raise VolumeError(f'volume "{volume.name}": {file.path!r} is there twice')
        files[path] = file
    for path in files:
        for parent in path.parents:
            if parent in files:
                raise VolumeError(f'volume "{volume.name}": {str(parent)!r} is both a file and a folder')
    return files


def _swap(folder: Path, files: dict[PurePosixPath, protocol.VolumeFile]) -> None:
    revision = folder / f"..{secrets.token_hex(8)}"
    revision.mkdir(mode=0o755)
    try:
        _fill(revision, files)
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


def _fill(revision: Path, files: dict[PurePosixPath, protocol.VolumeFile]) -> None:
    for path, file in files.items():
        target = revision / path
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as out:
            out.write(file.data)
        target.chmod(file.mode)


def _link(path: Path, target: str) -> None:
    temporary = path.parent / f"..new-{secrets.token_hex(8)}"
    temporary.symlink_to(target)
    os.replace(temporary, path)
