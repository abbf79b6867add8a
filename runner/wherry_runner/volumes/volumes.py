"""Where the volumes of a runner's workloads are, and what a container's mounts come to.

    ROOT/ID/files/VOLUME                    a files volume (`files.py`); those with Secrets in a root in memory
    ROOT/ID/empty/VOLUME/folder             an emptyDir; with medium Memory in another root in memory
    ROOT/ID/empty/VOLUME/mounts/CONTAINER   folders made for mounts of single files of it (`file_mounts.py`)
    ROOT/ID/mounts/CONTAINER                the same for files volumes, and what their subPaths name

Guests get open folders and see nothing above them. So the paths that are written here are ours alone; everything below a
`folder`, every hostPath and every claim, is opened as what it is: others' (`files/beneath.py`).
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from wherry_runner import protocol
from wherry_runner.execution.engine import Preopen
from wherry_runner.files.beneath import make_folder, open_beneath, opened
from wherry_runner.volumes import claim, file_mounts, files, host_path, mounts
from wherry_runner.volumes.claim import Claim
from wherry_runner.volumes.errors import VolumeError
from wherry_runner.volumes.file_mounts import FileMount
from wherry_runner.volumes.host_path import HostPath, Place
from wherry_runner.volumes.mounts import Mount
from wherry_runner.volumes.root import Root

SHARED_MODE = 0o777
"""Of an emptyDir and of the folders that its subPaths need, as on a kubelet. Only guests that were given it come there."""


@dataclass(frozen=True, kw_only=True)
class Limited:
    """An emptyDir with a limit."""

    workload_id: str
    volume: str
    limit_bytes: int
    in_memory: bool
    path: Path

    def folders(self) -> list[Path]:
        """The folders that guests can write to."""
        return [self.path / "folder", *self.path.glob("mounts/*/*")]


class Volumes:
    """All volumes of a runner's workloads. One event loop; nothing here takes long, whatever guests have written."""

    def __init__(
        self,
        directory: Path,
        memory_directory: Path,
        *,
        volumes_memory_directory: Path | None = None,
        host_paths: Sequence[HostPath] = (),
        claims: Sequence[Claim] = (),
    ) -> None:
        """`memory_directory`: a tmpfs for Secrets. `volumes_memory_directory`: one for emptyDirs; None: they are refused."""
        # One thread: what is removed in the background shall disturb little.
        self._remover = ThreadPoolExecutor(1, thread_name_prefix="remove-volumes")
        # One folder for each state directory: two runners on one machine never meet, and the next start finds its own.
        key = hashlib.sha256(str(directory.absolute()).encode()).hexdigest()[:16]
        self._disk = Root(directory, self._remover)
        self._secrets = Root(memory_directory / f"wherry-{key}", self._remover)
        self._memory: Root | None = None
        if volumes_memory_directory is not None:
            self._memory = Root(volumes_memory_directory / f"wherry-volumes-{key}", self._remover)
        self._host_paths = tuple(host_paths)
        self._claims = tuple(claims)
        self._limited: dict[str, list[Limited]] = {}

    def clear(self) -> None:
        """Remove what an earlier process left: its guests are dead. Raises OSError."""
        for root in self._roots:
            root.remove()
        self._disk.path.parent.mkdir(parents=True, exist_ok=True)
        self._disk.make()

    def close(self) -> None:
        """Remove everything, and wait until it is gone."""
        self._remover.shutdown()
        for root in self._roots:
            root.remove()

    # --- a workload's volumes -----------------------------------------------------------------------------------------

    def write(
        self, workload_id: str, volumes: Iterable[protocol.Volume], *, limit_in_memory_bytes: int | None = None
    ) -> None:
        """Bring a workload's volumes to this content; an emptyDir that is there stays as it is. Raises VolumeError.

        What is no longer named stays until `drop`, for containers may still have it.
        `limit_in_memory_bytes`: of an emptyDir in memory that names none (`empty_dir.limit_in_memory`).
        """
        volumes = tuple(volumes)
        for volume in volumes:  # all of them first: nothing changes if one can't be had
            match volume:
                case protocol.FilesVolume():
                    files.checked(volume)
                case protocol.EmptyDirVolume():
                    self._root(volume)
                case protocol.HostPathVolume() | protocol.ClaimVolume():
                    self._place(volume)
        limited = []
        for volume in volumes:
            with _naming(volume):
                if isinstance(volume, protocol.FilesVolume):
                    self._write_files(workload_id, volume)
                elif isinstance(volume, protocol.EmptyDirVolume):
                    limited += self._make_empty_dir(workload_id, volume, limit_in_memory_bytes)
        self._limited.pop(workload_id, None)
        if limited:
            self._limited[workload_id] = limited

    def drop(self, workload_id: str) -> None:
        """A workload has ended: remove its volumes. They are gone at once, the space they take soon after."""
        self._limited.pop(workload_id, None)
        for root in self._roots:
            root.retire(root.path / workload_id)

    def limited(self, *, in_memory: bool) -> list[Limited]:
        """The emptyDirs of a medium that have a limit."""
        return [each for found in self._limited.values() for each in found if each.in_memory == in_memory]

    def is_current(self, limited: Limited) -> bool:
        """Whether that is still so: a workload may have been dropped since, and have begun another life."""
        return any(each is limited for each in self._limited.get(limited.workload_id, ()))

    def largest_file(
        self, workload_id: str, container: protocol.Container, volumes: Iterable[protocol.Volume]
    ) -> int | None:
        """The largest file that fits into what a container may write to, in bytes; None: no limit says.

        As a limit of its process (`Limits.file_bytes`) it stops a single file at once, between two looks of `SizeWatch`.
        """
        limits = {each.volume: each.limit_bytes for each in self._limited.get(workload_id, ())}
        files_only = {volume.name for volume in volumes if isinstance(volume, protocol.FilesVolume)}
        written = {mount.volume for mount in container.mounts if not mount.read_only} - files_only
        return max((limits[name] for name in written), default=None) if written <= limits.keys() else None

    def _write_files(self, workload_id: str, volume: protocol.FilesVolume) -> None:
        content = files.checked(volume)
        root = self._secrets if volume.secret else self._disk
        root.make()
        folder = root.path / workload_id / "files" / volume.name
        folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        files.swap(folder, content)

    def _make_empty_dir(
        self, workload_id: str, volume: protocol.EmptyDirVolume, limit_in_memory_bytes: int | None
    ) -> list[Limited]:
        """Make it, if it is not there; what is to be watched of it."""
        self._root(volume).make()
        path = self._empty_dir(workload_id, volume)
        folder = path / "folder"
        if not folder.exists():
            folder.mkdir(parents=True)
            folder.chmod(SHARED_MODE)
        in_memory = volume.medium == "Memory"
        limit = volume.size_limit_bytes or (limit_in_memory_bytes if in_memory else None)
        if not limit:
            return []
        return [Limited(workload_id=workload_id, volume=volume.name, limit_bytes=limit, in_memory=in_memory, path=path)]

    # --- a container's mounts -----------------------------------------------------------------------------------------

    def preopens(
        self, workload_id: str, container: protocol.Container, volumes: Iterable[protocol.Volume]
    ) -> tuple[Preopen, ...]:
        """The folders that a container is given for its next run. Raises VolumeError.

        Those that are made for it are made anew, so none of its runs may still be going on.
        """
        volumes = tuple(volumes)
        plan = mounts.plan(container, volumes)
        self._retire_mounts(workload_id, container, volumes)
        found: list[Preopen] = []
        single: list[FileMount] = []
        for mount in plan:
            with _naming(mount.volume, mount.sub_path):
                made = self._mounted(workload_id, container, mount)
            if isinstance(made, FileMount):
                single.append(made)
            else:
                found.append(made)
        try:
            folders = file_mounts.folders(single, {mount.path for mount in plan})
        except VolumeError as error:
            raise VolumeError(f'container "{container.name}": {error}') from None
        for folder in folders:
            with _naming(folder.files[0].mount.volume, folder.files[0].mount.sub_path):
                found.append(self._made(workload_id, container, folder))
        return tuple(found)

    def _mounted(self, workload_id: str, container: protocol.Container, mount: Mount) -> Preopen | FileMount:
        match mount.volume:
            case protocol.FilesVolume() as volume:
                return self._mounted_files(workload_id, container, volume, mount)
            case protocol.EmptyDirVolume() as volume:
                return self._mounted_empty_dir(workload_id, volume, mount)
            case protocol.HostPathVolume() as volume:
                found = self._place(volume)
                host_path.prepare(volume, found)
                return _mounted_folder(volume, found, mount)
            case protocol.ClaimVolume() as volume:
                return _mounted_folder(volume, self._place(volume), mount)

    def _mounted_files(
        self, workload_id: str, container: protocol.Container, volume: protocol.FilesVolume, mount: Mount
    ) -> Preopen | FileMount:
        root = self._secrets if volume.secret else self._disk
        if not mount.sub_path:
            return Preopen(host_path=root.path / workload_id / "files" / volume.name, guest_path=mount.path)
        try:
            named = files.beneath(files.checked(volume), mount.sub_path)
        except KeyError:
            raise VolumeError(f'volume "{volume.name}": there is no "{mount.sub_path}" in it') from None
        if isinstance(named, protocol.VolumeFile):
            return FileMount(mount=mount, file=named)
        # A copy: like a kubelet's subPath it does not follow changes, and the original goes with the next one.
        folder = _new_folder(root.path / workload_id / "mounts" / container.name)
        files.fill(folder, named)
        return Preopen(host_path=folder, guest_path=mount.path)

    def _mounted_empty_dir(
        self, workload_id: str, volume: protocol.EmptyDirVolume, mount: Mount
    ) -> Preopen | FileMount:
        folder = self._empty_dir(workload_id, volume) / "folder"
        if mount.sub_path and _is_file(folder, (), mount.sub_path, make_mode=SHARED_MODE):
            return FileMount(mount=mount)
        return Preopen(
            host_path=folder,
            beneath=(mount.sub_path,) if mount.sub_path else (),
            guest_path=mount.path,
            writable=not mount.read_only,
        )

    def _made(self, workload_id: str, container: protocol.Container, folder: file_mounts.Folder) -> Preopen:
        volume = folder.empty_dir
        if volume is not None:
            origin = self._empty_dir(workload_id, volume)
            path = _new_folder(origin / "mounts" / container.name)
            path.chmod(SHARED_MODE)
            for file in folder.files:
                _hard_link(origin / "folder", file.mount.sub_path, path, file.name)
        else:
            root = self._secrets if folder.secret else self._disk
            path = _new_folder(root.path / workload_id / "mounts" / container.name)
            files.fill(path, {PurePosixPath(file.name): file.file for file in folder.files if file.file})
        return Preopen(host_path=path, guest_path=folder.path, writable=folder.writable)

    def _retire_mounts(
        self, workload_id: str, container: protocol.Container, volumes: Iterable[protocol.Volume]
    ) -> None:
        """Remove what was made for the container's run before."""
        for root in (self._disk, self._secrets):
            root.retire(root.path / workload_id / "mounts" / container.name)
        for volume in volumes:
            if isinstance(volume, protocol.EmptyDirVolume):
                self._root(volume).retire(self._empty_dir(workload_id, volume) / "mounts" / container.name)

    # --- where things are ---------------------------------------------------------------------------------------------

    @property
    def _roots(self) -> list[Root]:
        return [root for root in (self._disk, self._secrets, self._memory) if root is not None]

    def _root(self, volume: protocol.EmptyDirVolume) -> Root:
        root = self._memory if volume.medium == "Memory" else self._disk
        if root is None:
            raise VolumeError(
                f'volume "{volume.name}": this runner has no memory for volumes (its setting --volumes-memory-directory)'
            )
        return root

    def _empty_dir(self, workload_id: str, volume: protocol.EmptyDirVolume) -> Path:
        return self._root(volume).path / workload_id / "empty" / volume.name

    def _place(self, volume: protocol.HostPathVolume | protocol.ClaimVolume) -> Place:
        if isinstance(volume, protocol.ClaimVolume):
            return claim.place(volume, self._claims)
        return host_path.place(volume, self._host_paths)


@contextmanager
def _naming(volume: protocol.Volume, sub_path: str = "") -> Iterator[None]:
    """Let errors of the file system name the volume, and not the path: that is the runner's own."""
    try:
        yield
    except OSError as error:
        where = f'volume "{volume.name}"' + (f', subPath "{sub_path}"' if sub_path else "")
        raise VolumeError(f"{where}: {error.strerror}") from error


def _mounted_folder(volume: protocol.Volume, found: Place, mount: Mount) -> Preopen:
    """A folder that is not the runner's own: of the host or of a claim."""
    prefix, steps = Path(found.allowed.prefix), (found.beneath,) if found.beneath else ()
    make_mode = None if found.allowed.read_only else host_path.MADE_MODE
    whose = "a claim" if isinstance(volume, protocol.ClaimVolume) else "a host folder"
    if mount.sub_path and _is_file(prefix, steps, mount.sub_path, make_mode=make_mode):
        raise VolumeError(
            f'volume "{volume.name}": "{mount.sub_path}" is a file of {whose}; '
            "a module sees folders, so mount the folder that it is in"
        )
    return Preopen(
        host_path=prefix,
        beneath=(*steps, mount.sub_path) if mount.sub_path else steps,
        guest_path=mount.path,
        writable=not (mount.read_only or found.allowed.read_only),
    )


def _new_folder(parent: Path) -> Path:
    parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    folder = parent / str(len(os.listdir(parent)))
    folder.mkdir(mode=0o755)
    return folder


def _is_file(start: Path, steps: Sequence[str], sub_path: str, *, make_mode: int | None) -> bool:
    """Whether a subPath names a file; what is missing is made a folder, if it may be. Raises OSError."""
    with opened(start, steps) as folder:
        try:
            number = open_beneath(folder, sub_path, os.O_PATH)
        except FileNotFoundError:
            if make_mode is None:
                raise
            number = make_folder(folder, sub_path, mode=make_mode)
    try:
        mode = os.fstat(number).st_mode
    finally:
        os.close(number)
    if stat.S_ISDIR(mode) or stat.S_ISREG(mode):
        return stat.S_ISREG(mode)
    raise OSError(errno.EINVAL, "it is neither a file nor a folder")


def _hard_link(start: Path, sub_path: str, target: Path, name: str) -> None:
    """Give a file of an emptyDir another name. Raises OSError."""
    with opened(start) as volume, opened(target) as folder:
        file = open_beneath(volume, sub_path, os.O_PATH)
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise OSError(errno.EINVAL, "it was a file, and is none any more")
            # What is open, wherever it was moved meanwhile: that link is followed, and no other.
            os.link(f"/proc/self/fd/{file}", name, dst_dir_fd=folder, follow_symlinks=True)
        finally:
            os.close(file)
