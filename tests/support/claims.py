"""PersistentVolumeClaims with volumes of an administrator's making."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Json = dict[str, Any]


def claim(name: str, namespace: str, folder: Path) -> list[Json]:
    """A volume, which is a folder of whatever node mounts it, and the claim that has it."""
    volume, size, modes = f"{namespace}-{name}", {"storage": "1Mi"}, ["ReadWriteMany"]
    common = {"accessModes": modes, "storageClassName": ""}
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": volume},
            "spec": {
                **common,
                "capacity": size,
                "hostPath": {"path": str(folder)},
                "claimRef": {"namespace": namespace, "name": name},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {**common, "volumeName": volume, "resources": {"requests": size}},
        },
    ]
