"""Container images with a module in their files (`docker build --platform wasi/wasm`, buildah)."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.runner import fake_registry as fake
from tests.runner.fake_registry import FakeRegistry
from tests.runner.harness import until
from tests.runner.module_room import OTHER, WASM, Room, image, sha256
from wherry_runner.modules.errors import ModuleError, NotRunnable
from wherry_runner.modules.library import Modules, Progress, Pulling

DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
MIB = 1 << 20


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as started:
        yield started


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path / "modules")


def layer(**files: bytes) -> bytes:
    """A tar archive. `__` in a name is a slash, `_` a dot."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name.replace("__", "/").replace("_", "."))
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def push(registry: FakeRegistry, *layers: bytes, name: str = "tools/hello:v1", **more: Any) -> str:
    """An image as BuildKit makes it, unless said otherwise."""
    config = {"os": "wasi", "architecture": "wasm", "config": {"Entrypoint": ["/app.wasm"]}} | more.pop("config", {})
    return registry.push(
        name,
        *layers,
        **{"layer_type": fake.TAR_GZIP, "config_type": fake.IMAGE_CONFIG, "config": json.dumps(config).encode()} | more,
    )


@pytest.mark.parametrize(
    ("config_type", "layer_type", "packed"),
    [
        (fake.IMAGE_CONFIG, fake.TAR, False),
        (fake.IMAGE_CONFIG, fake.TAR_GZIP, True),
        ("application/vnd.docker.container.image.v1+json", DOCKER_LAYER, True),
        (fake.IMAGE_CONFIG, fake.TAR_GZIP, False),  # by its bytes, not by its label
    ],
)
def test_the_entrypoint_is_run(
    room: Room, registry: FakeRegistry, config_type: str, layer_type: str, packed: bool
) -> None:
    data = layer(etc__motd=b"hello", app_wasm=WASM)
    data = gzip.compress(data) if packed else data
    config = {"config": {"Entrypoint": ["/app.wasm", "serve"], "Cmd": ["--fast"], "Env": ["A=b"]}}
    reference = push(registry, data, config_type=config_type, layer_type=layer_type, config=config)
    module = room.get(reference)
    assert (module.digest, module.name) == (sha256(WASM), "app.wasm")
    assert (module.entrypoint_args, module.image_args) == (("serve",), ("--fast",))
    assert module.image_digest.startswith("sha256:")
    assert room.get(reference, "Never") == module, "all of it is known the next time"
    assert room.get(reference, "Always") == module
    assert registry.count(f"/blobs/{sha256(data)}") == 1
    blobs = [path.name for path in (room.folder / "blobs" / "sha256").iterdir()]
    assert blobs == [sha256(WASM).removeprefix("sha256:")], "nothing else of the image is kept"


def test_an_index_s_wasm_image_is_taken(room: Room, registry: FakeRegistry) -> None:
    push(registry, layer(app_wasm=WASM), name="hello:wasi", layer_type=fake.TAR)
    body = registry.content("hello/manifests/wasi")
    entries = [
        fake.descriptor(fake.MANIFEST, b"{}", platform={"os": "linux", "architecture": "amd64"}),
        fake.descriptor(fake.MANIFEST, body, platform={"os": "wasi", "architecture": "wasm"}),
        fake.descriptor(fake.MANIFEST, b"[]", platform={"os": "unknown", "architecture": "unknown"}),
    ]
    registry.push_manifest("hello", "v1", {"schemaVersion": 2, "manifests": entries}, fake.INDEX)
    assert room.get(f"{registry.address}/hello:v1").digest == sha256(WASM)


def test_later_layers_win(room: Room, registry: FakeRegistry) -> None:
    lower, upper = layer(app_wasm=OTHER, kept=b"x"), layer(app_wasm=WASM)
    assert room.get(push(registry, lower, upper, layer_type=fake.TAR)).digest == sha256(WASM)
    gone = layer(_wh_app_wasm=b"")
    error = room.fail(push(registry, lower, gone, name="gone:v1", layer_type=fake.TAR))
    assert error.message.endswith('is to run "/app.wasm", which is not among its files')


def test_progress_is_that_of_all_layers(room: Room, registry: FakeRegistry) -> None:
    layers = [layer(lib=b"x" * 5000), layer(app_wasm=WASM)]
    seen: list[Progress] = []
    room.get(push(registry, *layers, layer_type=fake.TAR), on_progress=seen.append)
    total = sum(map(len, layers))
    told = [item for item in seen if isinstance(item, Pulling)]
    assert (told[0], told[-1]) == (
        Pulling(done_bytes=0, total_bytes=total),
        Pulling(done_bytes=total, total_bytes=total),
    )
    assert room.counted.pulls == [("ok", total)]


def test_a_layer_that_breaks_off_is_fetched_anew(room: Room, registry: FakeRegistry) -> None:
    reference = push(registry, layer(lib=b"x" * 5000), layer(app_wasm=WASM), layer_type=fake.TAR)
    digest = sha256(layer(app_wasm=WASM)).removeprefix("sha256:")
    registry.answer(digest, fake.truncated(600), fake.status(503))
    assert room.get(reference).digest == sha256(WASM)
    assert room.waits == [0.5, 1.0]


def test_of_an_image_of_another_format_nothing_is_pulled(room: Room, registry: FakeRegistry) -> None:
    for number, (config, message) in enumerate(
        [
            ({"os": "linux", "architecture": "amd64", "config": {"Entrypoint": ["/bin/sh"]}},
             "is a container image for linux/amd64, not a WebAssembly module: it would need a node that runs containers"),
            ({"config": {}}, "is a container image for WebAssembly that doesn't say which file is to be run"),
        ]
    ):  # fmt: skip
        error = room.fail(push(registry, layer(app_wasm=WASM), name=f"x{number}:v1", config=config))
        assert isinstance(error, NotRunnable)
        assert message in error.message
    error = room.fail(push(registry, b"x", name="zstd:v1", layer_type=fake.TAR + "+zstd"))
    assert "is a container image with layers compressed by zstd, which can't be unpacked here" in error.message
    assert registry.count("/blobs/") == 2, "their configs"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            layer(app_wasm=b"#!/bin/sh\n"),
            "is a container image; /app.wasm, which it runs, is not WebAssembly: it begins with",
        ),
        (layer(app_wasm=b"\x7fELF" + bytes(100)), "which it runs, is not WebAssembly: it begins with '\\x7fELF"),
        (layer(app_wasm=b""), "which it runs, is not WebAssembly: it is empty"),
        (layer(other=b""), 'is to run "/app.wasm", which is not among its files'),
        (b"\x28\xb5\x2f\xfd" + bytes(100), "is a container image with layers compressed by zstd"),
        (b"hello" * 300, "has a layer that is no good tar archive: "),
        (gzip.compress(layer(app_wasm=WASM))[:100], "has a layer whose gzip data is damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # gzip's bytes have the time in them
)
def test_an_image_without_a_module_is_named(room: Room, registry: FakeRegistry, data: bytes, message: str) -> None:
    error = room.fail(push(registry, data))
    assert isinstance(error, NotRunnable)
    assert message in error.message
    assert list((room.folder / "blobs" / "sha256").iterdir()) == []


def test_a_layer_with_other_bytes_is_not_unpacked(room: Room, registry: FakeRegistry) -> None:
    data = layer(app_wasm=WASM)
    reference = push(registry, data, layer_type=fake.TAR)
    registry.answer(sha256(data).removeprefix("sha256:"), fake.flipped)
    assert "came as the layer, which has" in room.fail(reference).message
    registry.answer("blobs/", fake.flipped)
    assert "came as the image's config, which has" in room.fail(reference).message


def test_sizes_are_limited(tmp_path: Path, registry: FakeRegistry) -> None:
    room = Room(tmp_path, max_module_bytes=MIB)
    bomb = gzip.compress(layer(zeros=bytes(8 * MIB), app_wasm=WASM))
    assert f"unpacks to more than {4 * MIB}" in room.fail(push(registry, bomb, name="bomb:v1")).message
    big = gzip.compress(layer(app_wasm=WASM + bytes(2 * MIB)))
    message = room.fail(push(registry, big, name="big:v1")).message
    assert (
        f"is to run /app.wasm, which has {len(WASM) + 2 * MIB} bytes; this runner takes modules of at most {MIB}"
        in message
    )
    halves = [layer(a=bytes(MIB // 2)), layer(app_wasm=WASM + bytes(MIB // 2))]
    message = room.fail(push(registry, *halves, name="halves:v1", layer_type=fake.TAR)).message
    assert f"is a container image whose layers have {sum(map(len, halves))} bytes; this runner takes" in message
    assert registry.count(sha256(halves[0])) == 0


def test_a_config_of_any_size_is_not_read(room: Room, registry: FakeRegistry) -> None:
    reference = push(registry, layer(app_wasm=WASM), config={"comment": "x" * (5 * MIB)})
    assert "is a container image whose config has 52" in room.fail(reference).message
    assert registry.count("/blobs/") == 0
    push(registry, layer(app_wasm=WASM), name="liar:v1")
    manifest = json.loads(registry.content("liar/manifests/v1"))
    registry.put(f"liar/blobs/{manifest['config']['digest']}", b"x" * (5 * MIB))
    assert "the image's config is larger than" in room.fail(f"{registry.address}/liar:v1").message


def test_what_is_cancelled_while_it_unpacks_leaves_nothing(room: Room, registry: FakeRegistry) -> None:
    reference = push(registry, gzip.compress(layer(zeros=bytes(60 * MIB), app_wasm=WASM)))

    async def work(modules: Modules) -> None:
        pulled = asyncio.Event()

        def on_progress(progress: Progress) -> None:
            if isinstance(progress, Pulling) and progress.done_bytes == progress.total_bytes:
                pulled.set()

        task = asyncio.create_task(modules.get(image(reference), on_progress=on_progress))
        await pulled.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until(lambda: len(asyncio.all_tasks()) == 1)

    room.do(work)
    with pytest.raises(ModuleError):
        room.get(reference, "Never")
