"""OCI manifests: which layer is the module, or what the thing is instead. Pure; `pull.py` fetches.

Media types say what a producer meant, so they decide what isn't pulled at all; that a layer is WebAssembly is believed only
when its bytes say so (`sniff.py`). Types and their producers: facts oci.md §1.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

MANIFEST_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
ACCEPT = ", ".join(MANIFEST_TYPES + INDEX_TYPES)

KRUSTLET_LAYER_TYPE = "application/vnd.wasm.content.layer.v1+wasm"
"""Of wasm-to-oci, Krustlet's tool: such modules get Krustlet's argv (design §6)."""

_WASM_LAYER_TYPES = (
    "application/wasm",
    KRUSTLET_LAYER_TYPE,
    "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
)
_SPIN_LAYER_TYPE = "application/vnd.fermyon.spin.application.v1+config"
_PROXY_WASM_TYPES = (
    "application/vnd.module.wasm.config.v1+json",
    "application/vnd.module.wasm.content.layer.v1+wasm",
)
_FILE_SYSTEM_LAYER = re.compile(
    r"application/vnd\.(oci\.image\.layer\.|docker\.image\.rootfs\.|oci\.image\.layer\.nondistributable\.).*tar.*"
)
_PLATFORMS = (("wasi", "wasm"), ("wasip1", "wasm"), ("wasip2", "wasm"))
"""Of an index's entries, in the order in which they are preferred."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class MalformedManifest(Exception):
    """The registry's answer is no manifest; the text says what is wrong with it."""


class NotAModule(Exception):
    """A good manifest of something else; the text says what it is, to follow the reference."""


@dataclass(frozen=True, kw_only=True)
class Descriptor:
    """What a manifest says of a blob or of another manifest."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = field(default_factory=dict)
    platform: tuple[str, str] = ("", "")
    """(os, architecture), of an index's entry."""

    @classmethod
    def parse(cls, fields: Any) -> Descriptor:
        """Read one. Raises MalformedManifest."""
        match fields:
            case {"mediaType": str(media_type), "digest": str(digest), "size": int(size)}:
                if not _DIGEST.fullmatch(digest):
                    raise MalformedManifest(f"it names a blob by {digest[:80]!r}, which is not a sha256 digest")
                if size < 0:
                    raise MalformedManifest(f"it gives {digest} the size {size}")
                platform = fields.get("platform") or {}
                return cls(
                    media_type=media_type,
                    digest=digest,
                    size=size,
                    annotations=fields.get("annotations") or {},
                    platform=(str(platform.get("os", "")), str(platform.get("architecture", ""))),
                )
            case _:
                raise MalformedManifest("a descriptor in it lacks mediaType, digest or size")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A manifest of one thing."""

    config: Descriptor
    layers: tuple[Descriptor, ...]

    @property
    def is_container_image(self) -> bool:
        """All it has are file system layers: its config tells for which platform."""
        return all(_FILE_SYSTEM_LAYER.fullmatch(layer.media_type) for layer in self.layers)

    def module_layer(self) -> Descriptor:
        """The layer that should be the module. Raises NotAModule."""
        types = [layer.media_type for layer in self.layers]
        if _SPIN_LAYER_TYPE in types:
            raise NotAModule("is a Spin application: it needs Spin's own runtime, not only WASI")
        if any(media_type in _PROXY_WASM_TYPES for media_type in (self.config.media_type, *types)):
            raise NotAModule("is a proxy-wasm extension for Envoy or Istio, not a program that can be run")
        if not self.layers:
            raise NotAModule("has no layers, so there is no module in it")
        if len(self.layers) == 1:
            return self.layers[0]
        modules = [layer for layer in self.layers if _says_wasm(layer)]
        if len(modules) == 1:
            return modules[0]
        if modules:
            raise NotAModule(f"has {len(modules)} WebAssembly layers; exactly one is run, so push them apart")
        raise NotAModule(f"has {len(self.layers)} layers, none of which says that it is WebAssembly")


@dataclass(frozen=True, kw_only=True)
class Index:
    """A list of manifests, one for each platform."""

    entries: tuple[Descriptor, ...]

    def choose(self) -> Descriptor:
        """The entry for WebAssembly, or the only one. Raises NotAModule."""
        # BuildKit adds attestations as entries for the platform unknown/unknown.
        entries = [entry for entry in self.entries if entry.platform[0] != "unknown"]
        for platform in _PLATFORMS:
            for entry in entries:
                if entry.platform == platform:
                    return entry
        if len(entries) == 1:
            return entries[0]
        platforms = sorted({"/".join(entry.platform) for entry in entries})
        offered = ", ".join(platforms[:8]) or "nothing"
        raise NotAModule(f"offers {offered}, but nothing for WebAssembly (wasi/wasm, wasip1/wasm, wasip2/wasm)")


def parse(data: bytes, *, content_type: str) -> Manifest | Index:
    """Read a registry's answer. Raises MalformedManifest."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        raise MalformedManifest(f"it answered with {content_type or 'something'} instead of a manifest") from None
    if not isinstance(fields, dict):
        raise MalformedManifest("its answer is JSON, but not a manifest")
    # OCI leaves mediaType out of the document where the header has it.
    media_type = fields.get("mediaType") or content_type.partition(";")[0].strip()
    if media_type in INDEX_TYPES or (media_type not in MANIFEST_TYPES and "manifests" in fields):
        return Index(entries=tuple(map(Descriptor.parse, _list(fields, "manifests"))))
    if fields.get("schemaVersion") != 2:
        raise MalformedManifest(f"its manifest has the schema version {fields.get('schemaVersion')}, not 2")
    layers = tuple(map(Descriptor.parse, _list(fields, "layers")))
    return Manifest(config=Descriptor.parse(fields.get("config")), layers=layers)


def describe_container_image(config: bytes) -> str:
    """What an image of file system layers is, told by its config: to follow the reference."""
    try:
        fields = json.loads(config)
        system, architecture = str(fields.get("os", "")), str(fields.get("architecture", ""))
    except (ValueError, AttributeError, RecursionError):
        system = architecture = ""
    if (system, architecture) in _PLATFORMS:
        return (
            f"is a WebAssembly module inside a container image ({system}/{architecture}), which can't be unpacked "
            "yet: push the .wasm file itself as an OCI artifact, for example with wkg or oras"
        )
    platform = f" for {system}/{architecture}" if system else ""
    return f"is a container image{platform}, not a WebAssembly module: it would need a node that runs containers"


def _says_wasm(layer: Descriptor) -> bool:
    title = layer.annotations.get("org.opencontainers.image.title", "")
    return layer.media_type in _WASM_LAYER_TYPES or title.endswith(".wasm")


def _list(fields: dict[str, Any], name: str) -> list[Any]:
    value = fields.get(name)
    if not isinstance(value, list):
        raise MalformedManifest(f"its manifest has no list of {name}")
    return value
