"""What a container's mounts say, checked and in one form. Pure: which folders stand behind them is `volumes.py`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from wherry_runner import protocol
from wherry_runner.volumes.errors import VolumeError

MAX_MOUNTS = 100
"""Of one container: each is a descriptor of its process, which has 256 (`engine.Limits`), and of one message (`channel.py`)."""


@dataclass(frozen=True, kw_only=True)
class Mount:
    """One mount of a container."""

    volume: protocol.Volume
    path: str
    """Where the container sees it: absolute, without `.`, `..` and empty parts."""
    sub_path: str = ""
    """What it sees of the volume: relative, likewise. Empty: all."""
    read_only: bool = False


def check(workload: protocol.Workload) -> None:
    """Refuse mounts that can't be meant. Raises VolumeError."""
    for container in (*workload.init_containers, *workload.containers):
        plan(container, workload.volumes)


def plan(container: protocol.Container, volumes: Iterable[protocol.Volume]) -> tuple[Mount, ...]:
    """A container's mounts, in their order. Raises VolumeError."""
    try:
        return _plan(container, {volume.name: volume for volume in volumes})
    except VolumeError as error:
        raise VolumeError(f'container "{container.name}": {error}') from None


def _plan(container: protocol.Container, volumes: dict[str, protocol.Volume]) -> tuple[Mount, ...]:
    if len(container.mounts) > MAX_MOUNTS:
        raise VolumeError(f"{len(container.mounts)} mounts; {MAX_MOUNTS} are possible")
    found: dict[str, Mount] = {}
    for mount in container.mounts:
        if mount.volume not in volumes:
            raise VolumeError(f'it mounts "{mount.volume}", which is no volume')
        if not mount.mount_path.startswith("/"):
            raise VolumeError(f"mountPath {mount.mount_path!r} must be absolute")
        if mount.sub_path.startswith("/"):
            raise VolumeError(f"subPath {mount.sub_path!r} must be relative")
        path = "/" + "/".join(_parts("mountPath", mount.mount_path))
        if path in found:
            raise VolumeError(f'two mounts have the same path "{path}"')
        found[path] = Mount(
            volume=volumes[mount.volume],
            path=path,
            sub_path="/".join(_parts("subPath", mount.sub_path)),
            read_only=mount.read_only,
        )
    return tuple(found.values())


def _parts(field: str, path: str) -> list[str]:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in path:
        raise VolumeError(f"{field} {path!r} must be without '..' and NUL characters")
    return parts
