"""Single files as mounts: which folders they need. Pure: `volumes.py` makes them.

WASI gives a guest folders, no files. So a file that is mounted at /etc/app/config.yaml comes into a folder that is made for
this run of the container and given to it as /etc/app, with the other files that are mounted there. As with a kubelet's
subPath, a file of a ConfigMap or Secret in it does not follow changes; a file of an emptyDir is the file itself (a hard link).
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from wherry_runner import protocol
from wherry_runner.volumes.errors import VolumeError
from wherry_runner.volumes.mounts import Mount


@dataclass(frozen=True, kw_only=True)
class FileMount:
    """A mount that turned out to name a file."""

    mount: Mount
    file: protocol.VolumeFile | None = None
    """With its content; None: `mount.sub_path` in an emptyDir."""

    @property
    def name(self) -> str:
        """In its folder."""
        return posixpath.basename(self.mount.path)

    @property
    def writable(self) -> bool:
        """Whether the container may write to it."""
        return self.file is None and not self.mount.read_only


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder to be made for a container."""

    path: str
    """Where the container sees it."""
    files: tuple[FileMount, ...]

    @property
    def writable(self) -> bool:
        """The same for all files in it."""
        return self.files[0].writable

    @property
    def empty_dir(self) -> protocol.EmptyDirVolume | None:
        """The volume that its files are of, all of them; None: they are of files volumes, perhaps of several."""
        volume = self.files[0].mount.volume
        return volume if isinstance(volume, protocol.EmptyDirVolume) else None

    @property
    def secret(self) -> bool:
        """Whether one of the files must be kept in memory only."""
        volumes = (file.mount.volume for file in self.files)
        return any(isinstance(volume, protocol.FilesVolume) and volume.secret for volume in volumes)


def folders(files: Iterable[FileMount], taken: Collection[str]) -> list[Folder]:
    """The folders that these files come into; at the paths in `taken` other folders are mounted. Raises VolumeError."""
    parents: dict[str, list[FileMount]] = {}
    for file in files:
        if file.mount.path == "/":
            raise VolumeError(f'{_named(file)} is a file, which can\'t be mounted at "/"')
        parents.setdefault(posixpath.dirname(file.mount.path), []).append(file)
    for path, (first, *others) in parents.items():
        if path in taken:
            raise VolumeError(
                f'"{first.mount.path}" is a file, and another volume is mounted at "{path}": '
                "a module sees folders, and can't have both; mount the file elsewhere"
            )
        for other in others:
            if other.writable != first.writable:
                raise VolumeError(f'"{path}" would hold files that are read-only and files that are not; {_APART}')
            if (other.file is None or first.file is None) and other.mount.volume is not first.mount.volume:
                raise VolumeError(f'"{path}" would hold files of an emptyDir and of another volume; {_APART}')
    return [Folder(path=path, files=tuple(found)) for path, found in parents.items()]


_APART = "mount them in folders of their own"


def _named(file: FileMount) -> str:
    return f'"{file.mount.sub_path}" of volume "{file.mount.volume.name}"'
