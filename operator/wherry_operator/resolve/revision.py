"""Names for what a workload is made of: which changes restart containers, and which are swapped in place (design §3.4)."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from wherry_runner import protocol

_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A workload ready to be sent."""

    workload: protocol.Workload
    template_hash: str
    content_revision: str
    complaints: tuple[str, ...] = ()
    """What is wrong and hinders nothing for certain: pull secrets that can't be read."""


def of(workload: protocol.Workload) -> str:
    """Of all in a workload that may change while it runs, its `content_revision`."""
    every = (*workload.init_containers, *workload.containers)
    return digest(
        [
            [_container(container) for container in every],
            [_volume(volume) for volume in workload.volumes],
            workload.deadline.isoformat() if workload.deadline else None,
            [
                [item.registry, item.username, item.password.get_secret_value(), item.identity_token.get_secret_value()]
                for item in workload.credentials
            ],
        ]
    )


def _container(container: protocol.Container) -> Any:
    # An inline module may stand in a ConfigMap: another one there is the one of the next run.
    inline = isinstance(container.module, protocol.InlineModule)
    module = hashlib.sha256(container.module.data).hexdigest() if inline else ""  # type: ignore[union-attr]
    variables = [[item.name, item.value.get_secret_value()] for item in container.env]
    return [module, variables, container.resources.model_dump()]


def _volume(volume: protocol.Volume) -> Any:
    if not isinstance(volume, protocol.FilesVolume):
        return None
    return [[file.path, file.mode, base64.b64encode(file.data).decode()] for file in volume.files]


def digest(value: Any) -> str:
    """A stable name for a JSON value. Cryptographic: it may be of Secrets, and is kept where others read."""
    return hashlib.sha256(_JSON.encode(value).encode()).hexdigest()[:32]
