"""Volumes of a spec → volumes of the wire."""

from __future__ import annotations

from wherry_operator.models import EmptyDir, Volume, WorkloadEmptyDir, WorkloadVolume
from wherry_operator.resolve import files, quantity
from wherry_operator.resolve.downward import Downward
from wherry_operator.resolve.objects import Objects, mount_error
from wherry_operator.resolve.tokens import Tokens
from wherry_runner import protocol

KINDS = ("configMap", "secret", "projected", "downwardAPI", "emptyDir", "hostPath", "persistentVolumeClaim")
"""The kinds of volumes that a Pod may have here, by their names in its spec."""


def volume(
    spec: Volume | WorkloadVolume,
    *,
    namespace: str,
    objects: Objects,
    downward: Downward,
    tokens: Tokens | None = None,
) -> protocol.Volume:
    """One volume, resolved. Raises ResolveError."""
    if spec.empty_dir is not None:
        return _empty_dir(spec.name, spec.empty_dir)
    if isinstance(spec, Volume) and spec.host_path is not None:
        return _host_path(spec)
    if isinstance(spec, Volume) and spec.persistent_volume_claim is not None:
        claim = spec.persistent_volume_claim
        named = f"{namespace}/{claim.claim_name}"
        return protocol.ClaimVolume(name=spec.name, claim=named, read_only=bool(claim.read_only))
    return files.volume_files(spec, namespace=namespace, objects=objects, downward=downward, tokens=tokens)


def _empty_dir(name: str, source: EmptyDir | WorkloadEmptyDir) -> protocol.EmptyDirVolume:
    medium = source.medium or ""
    if medium != "" and medium != "Memory":
        raise mount_error(name, f'medium "{source.medium}" is not supported; "" (disk) and Memory are')
    try:
        limit = None if source.size_limit is None else quantity.ceiling(quantity.parse(source.size_limit))
    except ValueError as error:
        raise mount_error(name, f"sizeLimit: {error}") from None
    # A limit of 0 is none (pkg/volume/emptydir).
    return protocol.EmptyDirVolume(name=name, medium=medium, size_limit_bytes=limit or None)


def _host_path(spec: Volume) -> protocol.HostPathVolume:
    source = spec.host_path
    assert source is not None
    match source.type or "":
        case "" | "Directory" | "DirectoryOrCreate" as kind:
            return protocol.HostPathVolume(name=spec.name, path=source.path, type=kind)
    raise mount_error(
        spec.name,
        f'hostPath type "{source.type}" is not supported; a module sees folders: Directory, DirectoryOrCreate',
    )
