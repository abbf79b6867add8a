"""Writes images of one layer: an OCI layout in a folder or a tar, the form that containerd, buildah and our `push` read."""

from __future__ import annotations

import hashlib
import json
import platform
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
"""Not compressed: all ways are loopback, and a gzip would cost more than the copy."""

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


def write_layout(folder: Path, name: str, layer: Path, config: Mapping[str, Any]) -> None:
    """Write an OCI layout of one image with one layer, which is moved into it.

    :param name: the image's reference.
    :param layer: a tar file.
    :param config: the image's `config`: `Entrypoint`, `Env` and so on.
    """
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    with layer.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    size = layer.stat().st_size
    layer.rename(blobs / digest)
    machine = platform.machine()
    image = {
        "architecture": ARCHITECTURES.get(machine, machine),
        "os": "linux",
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        "history": [{"created_by": "wherry tests"}],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": _put(blobs, CONFIG_TYPE, image),
        "layers": [{"mediaType": LAYER_TYPE, "digest": f"sha256:{digest}", "size": size}],
    }
    entry = _put(blobs, MANIFEST_TYPE, manifest)
    entry["annotations"] = {
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name.rpartition(":")[2],
    }
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (folder / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))


def tar(output: Path, members: Mapping[str, Path]) -> None:
    """Write a tar of files, each executable by all and owned by root."""
    with tarfile.open(output, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, file in members.items():
            info = tarfile.TarInfo(name)
            info.size = file.stat().st_size
            info.mode = 0o755
            with file.open("rb") as content:
                archive.addfile(info, content)


def tar_layout(folder: Path, output: Path) -> None:
    """Pack an OCI layout into one file, as `ctr images import` takes it."""
    with tarfile.open(output, "w") as archive:
        for each in _sorted(folder):
            archive.add(each, arcname=str(each.relative_to(folder)), recursive=False)


def _sorted(folder: Path) -> Sequence[Path]:
    return sorted(folder.rglob("*"))


def _put(blobs: Path, media_type: str, document: Mapping[str, Any]) -> dict[str, Any]:
    content = json.dumps(document).encode()
    digest = hashlib.sha256(content).hexdigest()
    (blobs / digest).write_bytes(content)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}
