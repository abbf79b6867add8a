"""The objects that a spec refers to, as they were found: the input of resolving."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Kind(StrEnum):
    """Kinds that a spec can refer to; the value is the kubelet's word in messages."""

    CONFIG_MAP = "configmap"
    SECRET = "secret"

    @property
    def plural(self) -> str:
        """The resource's name in paths."""
        return self.value + "s"

    @property
    def title(self) -> str:  # type: ignore[override]
        """The kind's name in manifests."""
        return "ConfigMap" if self is Kind.CONFIG_MAP else "Secret"


@dataclass(frozen=True, order=True)
class Reference:
    """An object of the spec's own namespace."""

    kind: Kind
    name: str


@dataclass(frozen=True)
class Found:
    """An object's data. Not shown in tracebacks or logs: it may be a Secret's."""

    data: Mapping[str, bytes] = field(repr=False)
    immutable: bool = False
    binary: frozenset[str] = frozenset()
    """Keys of a ConfigMap's `binaryData`: files can have them, variables can't."""

    @property
    def text(self) -> Mapping[str, bytes]:
        """What an environment sees: a kubelet makes no variables of `binaryData`."""
        return {key: value for key, value in self.data.items() if key not in self.binary}


@dataclass(frozen=True)
class Missing:
    """The object could not be read; `message` says why, in the kubelet's words where it has them."""

    message: str
    absent: bool = True
    """It does not exist, so that `optional` covers it; False: reading it failed."""


Objects = Mapping[Reference, Found | Missing]


class ResolveError(Exception):
    """A spec can't be resolved now. `reason` is the container's waiting reason, the message what to do."""

    def __init__(self, message: str, *, reason: str = "CreateContainerConfigError", event: str = "Failed") -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.event = event
        """Reason of the Event that tells of it."""


class Unsupported(ResolveError):
    """The spec asks for what no module can have: it will never be resolved."""


def mount_error(volume: str, message: str) -> ResolveError:
    """A volume can't be filled: the kubelet leaves the container in ContainerCreating and says FailedMount."""
    return ResolveError(
        f'MountVolume.SetUp failed for volume "{volume}" : {message}',
        reason="ContainerCreating",
        event="FailedMount",
    )


def found(kind: Kind, body: Mapping[str, object]) -> Found:
    """The data of a ConfigMap or Secret as read from the API server."""
    data: dict[str, bytes] = {}
    plain, binary = ("data", "binaryData") if kind is Kind.CONFIG_MAP else ("stringData", "data")
    for key, value in (_mapping(body.get(plain))).items():
        data[key] = value.encode()
    for key, value in (_mapping(body.get(binary))).items():
        try:
            data[key] = base64.b64decode(value, validate=True)
        except binascii.Error:
            data[key] = b""
    keys = frozenset(_mapping(body.get("binaryData"))) if kind is Kind.CONFIG_MAP else frozenset[str]()
    return Found(data, immutable=body.get("immutable") is True, binary=keys)


def _mapping(value: object) -> dict[str, str]:
    return {k: v for k, v in value.items() if isinstance(v, str)} if isinstance(value, dict) else {}
