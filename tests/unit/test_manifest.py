"""Manifests: which layer is the module, and what everything else is, said before a layer is pulled."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry_runner.modules import image_config
from wherry_runner.modules import manifest as manifests
from wherry_runner.modules.manifest import Index, MalformedManifest, Manifest, NotAModule

DIGEST = "sha256:" + "0123456789abcdef" * 4
WASM = "application/wasm"
WASM_CONFIG = "application/vnd.wasm.config.v0+json"
EMPTY_CONFIG = "application/vnd.oci.empty.v1+json"
OCI_IMAGE = "application/vnd.oci.image.config.v1+json"
DOCKER_IMAGE = "application/vnd.docker.container.image.v1+json"
TAR = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


def descriptor(media_type: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": DIGEST, "size": 7, **more}


def artifact(*layers: str | dict[str, Any], config: str = WASM_CONFIG, **more: Any) -> Manifest:
    """A manifest as it is read from JSON."""
    described = [descriptor(layer) if isinstance(layer, str) else layer for layer in layers]
    fields = {"schemaVersion": 2, "config": descriptor(config), "layers": described, **more}
    parsed = manifests.parse(json.dumps(fields).encode(), content_type=manifests.MANIFEST_TYPES[0])
    assert isinstance(parsed, Manifest)
    return parsed


def index(*platforms: tuple[str, str]) -> Index:
    entries = [
        descriptor(manifests.MANIFEST_TYPES[0], platform={"os": system, "architecture": architecture})
        for system, architecture in platforms
    ]
    fields = {"schemaVersion": 2, "mediaType": manifests.INDEX_TYPES[0], "manifests": entries}
    parsed = manifests.parse(json.dumps(fields).encode(), content_type="")
    assert isinstance(parsed, Index)
    return parsed


# --- manifests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "config"),
    [
        (WASM, WASM_CONFIG),
        (manifests.KRUSTLET_LAYER_TYPE, "application/vnd.wasm.config.v1+json"),
        ("application/vnd.bytecodealliance.wasm.component.layer.v0+wasm", OCI_IMAGE),
        (WASM, OCI_IMAGE),
        (TAR, EMPTY_CONFIG),  # what `oras push` calls any file
        ("application/octet-stream", "application/vnd.unknown.config.v1+json"),
    ],
)
def test_one_layer_may_be_the_module_whatever_it_is_called(layer: str, config: str) -> None:
    found = artifact(layer, config=config).module_layer()
    assert found is not None
    assert found.media_type == layer


@pytest.mark.parametrize("config", [OCI_IMAGE, DOCKER_IMAGE])
@pytest.mark.parametrize("layers", [(TAR,), (TAR + "+gzip", TAR), (DOCKER_LAYER,) * 3])
def test_a_container_image_has_its_module_among_its_files(config: str, layers: tuple[str, ...]) -> None:
    assert artifact(*layers, config=config).module_layer() is None


SPIN = "application/vnd.fermyon.spin.application.v1+config"
COSIGN = "application/vnd.dev.cosign.simplesigning.v1+json"
IN_TOTO = "application/vnd.in-toto+json"
HELM = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
NAMED = {"org.opencontainers.image.title": "tool.wasm"}


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (artifact(SPIN, manifests.KRUSTLET_LAYER_TYPE, config=OCI_IMAGE), "is a Spin application: it needs Spin's own"),
        (artifact(WASM, config="application/vnd.module.wasm.config.v1+json"), "is a proxy-wasm extension for Envoy"),
        (artifact("application/vnd.module.wasm.content.layer.v1+wasm"), "is a proxy-wasm extension for Envoy or Istio"),
        (artifact(HELM, config="application/vnd.cncf.helm.config.v1+json"), "is a Helm chart"),
        (artifact(COSIGN, config=OCI_IMAGE), "is a cosign signature or attestation, not a program"),
        (artifact("application/vnd.dev.sigstore.bundle.v0.3+json", config=EMPTY_CONFIG), "is a Sigstore bundle"),
        (artifact("application/jose+json", config="application/vnd.cncf.notary.signature"), "is a Notary signature"),
        (artifact(IN_TOTO, config=OCI_IMAGE), "is an in-toto attestation, not a program: its tag or digest belongs to"),
        (artifact("application/vnd.dsse.envelope.v1+json", config=OCI_IMAGE), "is an in-toto attestation"),
        (artifact("application/spdx+json", config=EMPTY_CONFIG), "is a software bill of materials"),
        (artifact("application/json", artifactType="application/vnd.cyclonedx+json"), "is a software bill of materials"),
        (artifact("application/vnd.wasmcloud.provider.archive.layer.v1+par"), "is a wasmCloud provider: native code"),
        (artifact("application/vnd.cncf.flux.content.v1.tar+gzip"), "is a Flux artifact"),
        (artifact("application/vnd.example.precompiled.wasmtime.v48"), "has a precompiled layer (native code), which is"),
        (artifact(descriptor(WASM, annotations={"runwasi.io/precompiled/wasmtime/48": "x"})), "has a precompiled layer"),
        (artifact("application/vnd.example.cwasm"), "has a precompiled layer"),
        (artifact(), "has no layers, so there is no module in it"),
        (artifact(WASM, WASM), "has 2 WebAssembly layers; exactly one is run, so push them apart"),
        (artifact(WASM, descriptor("text/plain", annotations=NAMED)), "has 2 WebAssembly layers"),
        (artifact(WASM, "application/octet-stream", "text/plain"), ("has a WebAssembly layer and others with it "
            "(application/octet-stream, text/plain), which nothing would be given to: push the module alone")),
        (artifact("text/plain", "image/png", artifactType="application/vnd.example.album"), ("is an artifact of the type "
            "application/vnd.example.album with 2 layers (text/plain, image/png), none of which is WebAssembly")),
        (artifact(TAR + "+zstd", config=OCI_IMAGE), ("is a container image with layers compressed by zstd, which can't be "
            "unpacked here: build it with gzip")),
        (artifact(TAR + "+gzip+encrypted", config=OCI_IMAGE), "is a container image with encrypted layers"),
        (artifact(*[TAR] * 129, config=OCI_IMAGE), "is a container image with 129 layers; at most 128 are unpacked"),
        (artifact(*["a/\nb"] * 10), "is an artifact with 10 layers (a/\\nb, a/\\nb, "),
    ],
)  # fmt: skip
def test_what_is_no_module_is_named(manifest: Manifest, message: str) -> None:
    with pytest.raises(NotAModule) as error:
        manifest.module_layer()
    assert str(error.value).startswith(message), str(error.value)
    assert str(error.value).isprintable()


# --- indexes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("platforms", "chosen"),
    [
        ([("linux", "amd64"), ("wasip2", "wasm"), ("wasi", "wasm")], ("wasi", "wasm")),
        ([("linux", "amd64"), ("wasip2", "wasm"), ("wasip1", "wasm")], ("wasip1", "wasm")),
        ([("wasi", "wasm32"), ("linux", "amd64")], ("wasi", "wasm32")),
        ([("linux", "amd64")], ("linux", "amd64")),  # its config will tell what it is
        ([("linux", "amd64"), ("unknown", "unknown")], ("linux", "amd64")),
    ],
)
def test_of_an_index_the_entry_for_wasm_is_taken(platforms: list[tuple[str, str]], chosen: tuple[str, str]) -> None:
    assert index(*platforms).choose().platform == chosen


def test_an_index_without_wasm_says_what_it_has() -> None:
    with pytest.raises(NotAModule, match="offers linux/amd64, linux/arm64, but nothing for WebAssembly"):
        index(("linux", "arm64"), ("linux", "amd64"), ("unknown", "unknown")).choose()
    with pytest.raises(NotAModule, match="offers nothing for WebAssembly"):
        index(("unknown", "unknown")).choose()


# --- nonsense ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it answered with text/html instead of a manifest"),
        (b"<html>", "it answered with text/html instead of a manifest"),
        (b"[" * 100_000, "it answered with text/html instead of a manifest"),
        (b"9" * 10_000, "it answered with text/html instead of a manifest"),
        (b"[]", "its answer is JSON, but not a manifest"),
        (b"{}", "its manifest has the schema version None, not 2"),
        (b'{"schemaVersion": 1, "fsLayers": []}', "its manifest has the schema version 1, not 2"),
        (b'{"schemaVersion": 2, "config": 1, "layers": []}', "a descriptor in it lacks mediaType, digest or size"),
        (b'{"schemaVersion": 2, "layers": {}}', "its manifest has no list of layers"),
        (b'{"manifests": {}}', "its manifest has no list of manifests"),
        (json.dumps({"schemaVersion": 2, "config": descriptor("x", digest="sha512:00"), "layers": []}).encode(),
         'it names a blob by "sha512:00", which is not a sha256 digest'),
        (json.dumps({"schemaVersion": 2, "config": descriptor("x", digest="../../etc"), "layers": []}).encode(),
         'it names a blob by "../../etc", which is not a sha256 digest'),
        (json.dumps({"schemaVersion": 2, "config": descriptor("x", size=-1), "layers": []}).encode(),
         f"it gives {DIGEST} the size -1"),
        (json.dumps({"schemaVersion": 2, "config": descriptor("x", size=True), "layers": []}).encode(),
         f"it gives {DIGEST} the size True"),
        (json.dumps({"schemaVersion": 2, "config": descriptor("x", size=1 << 70), "layers": []}).encode(), "the size 1180"),
        (json.dumps({"schemaVersion": 2, "config": descriptor("x", size=1.5), "layers": []}).encode(), "lacks mediaType"),
    ],
)  # fmt: skip
def test_what_is_no_manifest_is_named(data: bytes, message: str) -> None:
    with pytest.raises(MalformedManifest) as error:
        manifests.parse(data, content_type="text/html")
    assert message in str(error.value)


_WORDS = st.sampled_from(
    ["schemaVersion", "mediaType", "config", "layers", "manifests", "digest", "size", "annotations", "platform", "os",
     "artifactType", "Entrypoint", "Cmd", "WorkingDir", "architecture", DIGEST, WASM, OCI_IMAGE, TAR, "wasi", "wasm",
     manifests.INDEX_TYPES[0], manifests.MANIFEST_TYPES[0], "/app.wasm", "app.wasm#x", ""]
)  # fmt: skip
_JSON = st.recursive(
    st.none() | st.booleans() | st.sampled_from([0, 1, 2, -1, 1 << 80, 1.5]) | _WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_WORDS, inner, max_size=5),
    max_leaves=25,
)
_DESCRIPTOR = st.fixed_dictionaries(
    {},
    optional={
        "mediaType": _WORDS | _JSON,
        "digest": st.just(DIGEST) | _JSON,
        "size": st.just(7) | _JSON,
        "annotations": _JSON,
        "platform": _JSON,
    },
)
_MANIFEST = st.fixed_dictionaries(
    {},
    optional={
        "schemaVersion": st.just(2) | _JSON,
        "mediaType": _WORDS | _JSON,
        "artifactType": _WORDS | _JSON,
        "config": _DESCRIPTOR | _JSON,
        "layers": st.lists(_DESCRIPTOR, max_size=3) | _JSON,
        "manifests": st.lists(_DESCRIPTOR, max_size=3) | _JSON,
        "annotations": _JSON,
    },
)


@given(_MANIFEST | _JSON, st.sampled_from(["", *manifests.MANIFEST_TYPES, *manifests.INDEX_TYPES, "text/html"]))
def test_whatever_a_registry_sends_is_read_or_refused(fields: Any, content_type: str) -> None:
    try:
        parsed = manifests.parse(json.dumps(fields).encode(), content_type=content_type)
        if isinstance(parsed, Index):
            parsed.choose()
        else:
            parsed.module_layer()
    except (MalformedManifest, NotAModule) as error:
        assert str(error).isprintable()


@given(st.binary(max_size=200))
def test_whatever_bytes_a_registry_sends_are_read_or_refused(data: bytes) -> None:
    with pytest.raises((MalformedManifest, NotAModule)):
        manifest = manifests.parse(data, content_type="")
        assert isinstance(manifest, Manifest)
        manifest.module_layer()


# --- configs of container images --------------------------------------------------------------------------------------


def config(os: Any = "wasi", architecture: Any = "wasm", **inner: Any) -> bytes:
    return json.dumps({"os": os, "architecture": architecture, "config": inner}).encode()


@pytest.mark.parametrize(
    ("data", "path", "entrypoint_args", "args"),
    [
        (config(Entrypoint=["/app.wasm"]), "/app.wasm", (), ()),
        (config(Entrypoint=["/app.wasm", "serve"], Cmd=["--fast", ""]), "/app.wasm", ("serve",), ("--fast", "")),
        (config(Cmd=["/app.wasm", "-v"]), "/app.wasm", (), ("-v",)),
        (config(Entrypoint=["app.wasm"], WorkingDir="/srv/tools/"), "/srv/tools/app.wasm", (), ()),
        (config(Entrypoint=["bin/app.wasm"]), "/bin/app.wasm", (), ()),
        (config(Entrypoint=["../app.wasm"], WorkingDir="/srv"), "/srv/../app.wasm", (), ()),
        (config(Entrypoint=["/app.wasm#_start"]), "/app.wasm", (), ()),
        (config(Entrypoint=["/tool"]), "/tool", (), ()),
        (config(os="wasip2", Entrypoint=["/tool"]), "/tool", (), ()),
        (config(os="linux", architecture="amd64", Entrypoint=["/app.wasm"]), "/app.wasm", (), ()),
    ],
)
def test_an_image_says_what_is_run(data: bytes, path: str, entrypoint_args: Any, args: Any) -> None:
    assert image_config.parse(data) == image_config.Command(path=path, entrypoint_args=entrypoint_args, args=args)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is a container image whose config is not JSON"),
        (b"[]", "is a container image whose config is not JSON"),
        (config(os="linux", architecture="amd64", Entrypoint=["/bin/sh"]),
         "is a container image for linux/amd64, not a WebAssembly module: it would need a node that runs containers"),
        (config(os="linux", architecture="arm64"), "is a container image for linux/arm64, not a WebAssembly module"),
        (config(os="windows", architecture="amd64\n", Entrypoint=["C:\\x"]), "is a container image for windows/amd64\\n, not"),
        (config(), "is a container image for WebAssembly that doesn't say which file is to be run: set ENTRYPOINT"),
        (config(Entrypoint="/app.wasm"), "is a container image whose Entrypoint is not a list of strings"),
        (config(Entrypoint=["/app.wasm"], Cmd=["a\0b"]), "is a container image whose Cmd is not a list of strings"),
        (config(Entrypoint=["\ud800.wasm"]), "is a container image whose Entrypoint is not a list of strings"),
        (config(Entrypoint=["/app.wasm"], Cmd=["x" * 70_000]), "is a container image whose Cmd is longer than 65536"),
        (config(Entrypoint=["/app.wasm#handle"]), "is to be run by its function handle; modules are run by `_start`"),
    ],
)  # fmt: skip
def test_an_image_that_runs_nothing_of_ours_is_named(data: bytes, message: str) -> None:
    with pytest.raises(NotAModule) as error:
        image_config.parse(data)
    assert str(error.value).startswith(message), str(error.value)


@given(st.fixed_dictionaries({}, optional={"os": _WORDS, "architecture": _WORDS, "config": _JSON}) | _JSON)
def test_whatever_a_config_says_is_read_or_refused(fields: Any) -> None:
    try:
        command = image_config.parse(json.dumps(fields).encode())
    except NotAModule:
        return
    assert command.path.startswith("/")
