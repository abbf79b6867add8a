"""OCI manifests: which layer is the module, or what the thing is instead. Pure; `pull.py` fetches.

Media types say what a producer meant, so they decide what isn't pulled at all; that a layer is WebAssembly is believed only
when its bytes say so (`sniff.py`). Types and their producers: facts oci.md §1.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from wherry_runner.modules.errors import shown

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

PLATFORMS = tuple(
    (system, architecture) for architecture in ("wasm", "wasm32") for system in ("wasi", "wasip1", "wasip2")
)
"""(os, architecture) of WebAssembly; of an index's entries, in the order in which they are preferred."""

MAX_LAYERS = 128
"""Of a container image: as many as Docker stacks."""

_WASM_LAYER_TYPES = (
    "application/wasm",
    KRUSTLET_LAYER_TYPE,
    "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
)
_IMAGE_CONFIG_TYPES = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
_FILE_SYSTEM_LAYER = re.compile(
    r"application/vnd\.(oci\.image\.layer\.|docker\.image\.rootfs\.|oci\.image\.layer\.nondistributable\.).*tar.*"
)
_SIGNATURE = "not a program: its tag or digest belongs to something that was signed or described, so name that"
_OTHERS = (
    ("application/vnd.fermyon.spin.", "a Spin application: it needs Spin's own runtime, not only WASI"),
    ("application/vnd.module.wasm.", "a proxy-wasm extension for Envoy or Istio, not a program that can be run"),
    ("application/vnd.wasmcloud.provider.", "a wasmCloud provider: native code for wasmCloud's own hosts"),
    ("application/vnd.cncf.helm.", "a Helm chart, not a WebAssembly module: install it with helm"),
    ("application/vnd.cncf.flux.", "a Flux artifact (configuration), not a WebAssembly module"),
    ("application/vnd.dev.cosign.", f"a cosign signature or attestation, {_SIGNATURE}"),
    ("application/vnd.dev.sigstore.", f"a Sigstore bundle, {_SIGNATURE}"),
    ("application/vnd.cncf.notary.", f"a Notary signature, {_SIGNATURE}"),
    ("application/vnd.in-toto", f"an in-toto attestation, {_SIGNATURE}"),
    ("application/vnd.dsse.envelope", f"an in-toto attestation, {_SIGNATURE}"),
    ("application/spdx", f"a software bill of materials, {_SIGNATURE}"),
    ("text/spdx", f"a software bill of materials, {_SIGNATURE}"),
    ("application/vnd.cyclonedx", f"a software bill of materials, {_SIGNATURE}"),
    ("application/vnd.docker.plugin", "a plugin for Docker, not a WebAssembly module"),
)
"""Beginnings of media types (of the artifact, its config or its layers) of what is no module."""

_PRECOMPILED = re.compile(r"precompiled|cwasm", re.IGNORECASE)
"""In a layer's media type, or in the name of its annotation (`runwasi.io/precompiled/…`)."""

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
                    raise MalformedManifest(f'it names a blob by "{shown(digest, 80)}", which is not a sha256 digest')
                if not 0 <= size < 1 << 63 or isinstance(size, bool):
                    raise MalformedManifest(f"it gives {digest} the size {shown(size, 40)}")
                platform = _dictionary(fields, "platform")
                return cls(
                    media_type=media_type,
                    digest=digest,
                    size=size,
                    annotations=_annotations(fields),
                    platform=(str(platform.get("os", "")), str(platform.get("architecture", ""))),
                )
            case _:
                raise MalformedManifest("a descriptor in it lacks mediaType, digest or size")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A manifest of one thing."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    artifact_type: str = ""
    annotations: dict[str, str] = field(default_factory=dict)

    def module_layer(self) -> Descriptor | None:
        """The layer that should be the module; None for a container image, in whose files it is. Raises NotAModule."""
        types = [self.artifact_type, self.config.media_type, *(layer.media_type for layer in self.layers)]
        for beginning, what in _OTHERS:
            if any(media_type.startswith(beginning) for media_type in types):
                raise NotAModule(f"is {what}")
        if any(_says_precompiled(layer) for layer in self.layers):
            raise NotAModule(
                "has a precompiled layer (native code), which is never taken: it would run unchecked. Push the .wasm "
                "file itself; it is compiled here"
            )
        if not self.layers:
            raise NotAModule("has no layers, so there is no module in it")
        if self.config.media_type in _IMAGE_CONFIG_TYPES and all(map(_is_file_system, self.layers)):
            _check_file_system(self.layers)
            return None
        modules = [layer for layer in self.layers if _says_wasm(layer)]
        if len(modules) > 1:
            raise NotAModule(f"has {len(modules)} WebAssembly layers; exactly one is run, so push them apart")
        if len(self.layers) == 1:
            return self.layers[0]
        rest = _listed([layer.media_type for layer in self.layers if layer not in modules])
        if modules:
            raise NotAModule(
                f"has a WebAssembly layer and others with it ({rest}), which nothing would be given to: push the module "
                "alone, and its files as a ConfigMap or a volume"
            )
        kind = f" of the type {shown(self.artifact_type, 80)}" if self.artifact_type else ""
        raise NotAModule(f"is an artifact{kind} with {len(self.layers)} layers ({rest}), none of which is WebAssembly")


@dataclass(frozen=True, kw_only=True)
class Index:
    """A list of manifests, one for each platform."""

    entries: tuple[Descriptor, ...]

    def choose(self) -> Descriptor:
        """The entry for WebAssembly, or the only one. Raises NotAModule."""
        # BuildKit adds attestations as entries for the platform unknown/unknown.
        entries = [entry for entry in self.entries if entry.platform[0] != "unknown"]
        for platform in PLATFORMS:
            for entry in entries:
                if entry.platform == platform:
                    return entry
        if len(entries) == 1:
            return entries[0]
        offered = _listed(sorted({"/".join(entry.platform) for entry in entries}))
        raise NotAModule(
            f"offers {offered + ', but ' if offered else ''}nothing for WebAssembly (wasi/wasm, wasip1/wasm, wasip2/wasm)"
        )


def parse(data: bytes, *, content_type: str) -> Manifest | Index:
    """Read a registry's answer. Raises MalformedManifest."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        what = shown(content_type, 80) or "something"
        raise MalformedManifest(f"it answered with {what} instead of a manifest") from None
    if not isinstance(fields, dict):
        raise MalformedManifest("its answer is JSON, but not a manifest")
    # OCI leaves mediaType out of the document where the header has it.
    media_type = fields.get("mediaType") or content_type.partition(";")[0].strip()
    if media_type in INDEX_TYPES or (media_type not in MANIFEST_TYPES and "manifests" in fields):
        return Index(entries=tuple(map(Descriptor.parse, _list(fields, "manifests"))))
    if fields.get("schemaVersion") != 2:
        raise MalformedManifest(f"its manifest has the schema version {shown(fields.get('schemaVersion'), 40)}, not 2")
    artifact_type = fields.get("artifactType")
    return Manifest(
        layers=tuple(map(Descriptor.parse, _list(fields, "layers"))),
        config=Descriptor.parse(fields.get("config")),
        artifact_type=artifact_type if isinstance(artifact_type, str) else "",
        annotations=_annotations(fields),
    )


def _is_file_system(layer: Descriptor) -> bool:
    return _FILE_SYSTEM_LAYER.fullmatch(layer.media_type) is not None


def _check_file_system(layers: tuple[Descriptor, ...]) -> None:
    """Raises NotAModule for layers that can't be unpacked here."""
    if len(layers) > MAX_LAYERS:
        raise NotAModule(f"is a container image with {len(layers)} layers; at most {MAX_LAYERS} are unpacked")
    for layer in layers:
        if layer.media_type.endswith("zstd"):
            raise NotAModule(ZSTD)
        if layer.media_type.endswith("+encrypted"):
            raise NotAModule("is a container image with encrypted layers, which can't be unpacked")


ZSTD = (
    "is a container image with layers compressed by zstd, which can't be unpacked here: build it with gzip, for example "
    "`docker buildx build --output type=image,compression=gzip`, or push the .wasm file itself with wkg or oras"
)


def _says_wasm(layer: Descriptor) -> bool:
    title = layer.annotations.get("org.opencontainers.image.title", "")
    return layer.media_type in _WASM_LAYER_TYPES or title.endswith(".wasm")


def _says_precompiled(layer: Descriptor) -> bool:
    return any(map(_PRECOMPILED.search, (layer.media_type, *layer.annotations)))


def _listed(names: list[str], most: int = 8) -> str:
    more = len(names) - most
    return ", ".join(shown(name, 80) for name in names[:most]) + (f" and {more} more" if more > 0 else "")


def _list(fields: dict[str, Any], name: str) -> list[Any]:
    value = fields.get(name)
    if not isinstance(value, list):
        raise MalformedManifest(f"its manifest has no list of {name}")
    return value


def _dictionary(fields: dict[str, Any], name: str) -> dict[str, Any]:
    value = fields.get(name)
    return value if isinstance(value, dict) else {}


def _annotations(fields: dict[str, Any]) -> dict[str, str]:
    return {key: value for key, value in _dictionary(fields, "annotations").items() if isinstance(value, str)}
