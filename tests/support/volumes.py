"""Volumes and mounts, and what a guest would find in them."""

from __future__ import annotations

import base64
import ctypes
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from wherry_runner.execution.engine import Preopen
from wherry_runner.files.removal import remove_tree
from wherry_runner.protocol import (
    Container,
    EmptyDirVolume,
    FilesVolume,
    ImageModule,
    Volume,
    VolumeFile,
    VolumeMount,
)
from wherry_runner.volumes import Claim, HostPath, Volumes

T = TypeVar("T")

ID = "11111111-2222"
NOBODY = 65534


@contextmanager
def made(folder: Path, *, host_paths: Sequence[HostPath] = (), claims: Sequence[Claim] = ()) -> Iterator[Volumes]:
    """Volumes on `disk`, `memory` and `ram` in a folder; at the end nothing of them is left."""
    for name in ("memory", "ram"):
        (folder / name).mkdir()
    volumes = Volumes(
        folder / "disk",
        folder / "memory",
        volumes_memory_directory=folder / "ram",
        host_paths=host_paths,
        claims=claims,
    )
    volumes.clear()
    yield volumes
    volumes.close()
    assert not (folder / "disk").exists()
    assert not [*(folder / "memory").iterdir(), *(folder / "ram").iterdir()]


@contextmanager
def public_folder(parent: str | None = None) -> Iterator[Path]:
    """A temporary folder of `NOBODY`, if we are root; pytest's own may be entered by root only."""
    with tempfile.TemporaryDirectory(dir=parent) as name:
        if os.geteuid() == 0:
            os.chown(name, NOBODY, NOBODY)
        try:
            yield Path(name)
        finally:
            for entry in Path(name).iterdir():
                remove_tree(entry)


def make_deep(folder: Path, *, levels: int) -> None:
    """Folders within folders, as a guest makes them that goes from one to the next: beyond what a path can name."""
    number = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("d", dir_fd=number)
        below = os.open("d", os.O_RDONLY, dir_fd=number)
        os.close(number)
        number = below
    os.close(number)


def unprivileged(action: Callable[[], T]) -> T:
    """Do something without root's rights to files: in a thread of its own, for these rights are a thread's."""

    def without() -> T:
        libc = ctypes.CDLL(None)
        libc.setfsgid(NOBODY)
        libc.setfsuid(NOBODY)
        return action()

    if os.geteuid() != 0:
        return action()
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(without).result()


def volume(files: dict[str, str | bytes], *, mode: int = 0o644, secret: bool = False, name: str = "v") -> FilesVolume:
    """A volume of files."""
    return FilesVolume(
        name=name,
        secret=secret,
        files=tuple(
            VolumeFile(path=path, data=base64.b64encode(data.encode() if isinstance(data, str) else data), mode=mode)
            for path, data in files.items()
        ),
    )


def empty_dir(name: str = "e", *, medium: str = "", limit: int | None = None) -> EmptyDirVolume:
    """An emptyDir."""
    return EmptyDirVolume.model_validate({"name": name, "medium": medium, "size_limit_bytes": limit})


def mount(volume: str, path: str, sub_path: str = "", *, read_only: bool = False) -> VolumeMount:
    """A mount of a container."""
    return VolumeMount(volume=volume, mount_path=path, sub_path=sub_path, read_only=read_only)


def container(*mounts: VolumeMount, name: str = "main") -> Container:
    """A container with nothing but mounts."""
    return Container(name=name, module=ImageModule(reference="x"), mounts=mounts)


def preopens(
    volumes: Volumes, mounts: Iterable[VolumeMount], specs: Iterable[Volume], *, id: str = ID, name: str = "main"
) -> dict[str, Preopen]:
    """What a container with these mounts is given, by the guest's paths."""
    given = volumes.preopens(id, container(*mounts, name=name), tuple(specs))
    found = {preopen.guest_path: preopen for preopen in given}
    assert len(found) == len(given)
    return found


def folder_of(volumes: Volumes, spec: Volume, *, id: str = ID) -> Path:
    """The folder behind a volume."""
    return preopens(volumes, [mount(spec.name, "/v")], [spec], id=id)["/v"].host_path


@contextmanager
def opened(preopen: Preopen) -> Iterator[Path]:
    """A preopen as an executor has it: a path that leads through its descriptor."""
    number = preopen.open()
    try:
        yield Path(f"/proc/self/fd/{number}")
    finally:
        os.close(number)


def seen(folder: Path | Preopen) -> dict[str, str]:
    """What a guest finds that walks a folder, without the names that begin with two dots."""
    if isinstance(folder, Preopen):
        with opened(folder) as path:
            return seen(path)
    found = {}
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith("..")]
        for name in names:
            path = Path(root) / name
            found[str(path.relative_to(folder))] = path.read_text()
    return found
