"""From a reference to a compiled module, against a registry that misbehaves and a real compiler."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import wasmtime

from tests.guests import wat
from tests.runner import fake_registry as fake
from tests.runner.fake_registry import FakeRegistry
from tests.runner.harness import inline, until
from tests.support import wat as simple
from wherry_runner import protocol
from wherry_runner.execution.engine import ModuleKind
from wherry_runner.modules.compile import CompileSettings
from wherry_runner.modules.errors import InvalidReference, ModuleError, NeverPull, NotRunnable, PullError
from wherry_runner.modules.library import Compiling, Modules, Progress, Pulling
from wherry_runner.modules.pull import PullSettings
from wherry_runner.modules.registry import RegistryClient, RegistrySettings

ENGINE = "python/test"
WASM = bytes(wasmtime.wat2wasm(simple.exits(0)))
OTHER = bytes(wasmtime.wat2wasm(simple.exits(1)))

T = TypeVar("T")


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as started:
        yield started


class Room:
    """A library over a folder, opened for one piece of work at a time; waits are noted, not waited."""

    def __init__(self, folder: Path, **limits: Any) -> None:
        self.folder = folder
        self.waits: list[float] = []
        self.registries = RegistrySettings(read_seconds=limits.pop("read_seconds", 10.0), **limits.pop("hosts", {}))
        self.pull = PullSettings(registries=self.registries, **limits)
        self.compile = CompileSettings()

    def do(self, work: Callable[[Modules], Awaitable[T]]) -> T:
        async def sleep(seconds: float) -> None:
            self.waits.append(seconds)

        async def whole() -> T:
            modules = Modules(self.folder, engine_name=ENGINE, pull=self.pull, compile=self.compile, sleep=sleep)
            try:
                return await work(modules)
            finally:
                await modules.close()

        return asyncio.run(whole())

    def get(self, reference: str, policy: str = "IfNotPresent", **more: Any) -> Any:
        return self.do(lambda modules: modules.get(image(reference, policy), **more))

    def fail(self, reference: str, policy: str = "IfNotPresent") -> ModuleError:
        with pytest.raises(ModuleError) as error:
            self.get(reference, policy)
        assert list((self.folder / "tmp").iterdir()) == [], "nothing unfinished is left"
        return error.value


def image(reference: str, policy: str = "IfNotPresent") -> protocol.ImageModule:
    return protocol.ImageModule(reference=reference, pull_policy=protocol.PullPolicy(policy))


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path / "modules")


# --- what is pulled ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer_type", "config_type", "krustlet"),
    [
        (fake.WASM, fake.WASM_CONFIG, False),
        ("application/vnd.wasm.content.layer.v1+wasm", "application/vnd.wasm.config.v1+json", True),
        ("application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.empty.v1+json", None),
        ("application/octet-stream", "application/vnd.unknown.config.v1+json", False),
    ],
)
def test_artifacts_of_every_producer(
    room: Room, registry: FakeRegistry, layer_type: str, config_type: str, krustlet: bool | None
) -> None:
    reference = registry.push("tools/hello:v1", WASM, layer_type=layer_type, config_type=config_type)
    if krustlet is None:  # a file system layer is never taken for a module, whatever is in it
        assert "is a container image" in room.fail(reference).message
        return
    module = room.get(reference)
    assert module.digest == "sha256:" + hashlib.sha256(WASM).hexdigest()
    assert (module.kind, module.name, module.packed_by_krustlet) == (ModuleKind.CORE, "hello", krustlet)
    assert module.path.stat().st_mode & 0o777 == 0o600
    digest = module.image_digest
    assert room.get(f"{registry.address}/tools/hello@{digest}").image_digest == digest


def test_an_index_gives_its_wasm_entry(room: Room, registry: FakeRegistry) -> None:
    registry.push("hello:linux", OTHER)
    registry.push("hello:wasi", WASM)
    entries = []
    for tag, platform in (("linux", ("linux", "amd64")), ("wasi", ("wasip1", "wasm"))):
        body = registry._content[f"hello/manifests/{tag}"].body
        names = {"os": platform[0], "architecture": platform[1]}
        entries.append(fake.descriptor(fake.MANIFEST, body, platform=names))
    index = {"schemaVersion": 2, "mediaType": fake.INDEX, "manifests": entries}
    digest = registry.push_manifest("hello", "all", index, fake.INDEX)
    module = room.get(f"{registry.address}/hello:all")
    assert module.digest == "sha256:" + hashlib.sha256(WASM).hexdigest()
    assert module.image_digest == digest
    only_linux = {
        **index,
        "manifests": [*entries[:1], {**entries[0], "platform": {"os": "linux", "architecture": "arm64"}}],
    }
    registry.push_manifest("hello", "linux-only", only_linux, fake.INDEX)
    message = room.fail(f"{registry.address}/hello:linux-only").message
    assert "offers linux/amd64, linux/arm64, but nothing for WebAssembly" in message


def test_progress_is_told(room: Room, registry: FakeRegistry) -> None:
    reference = registry.push("hello:v1", WASM)
    seen: list[Progress] = []
    room.get(reference, on_progress=seen.append)
    assert seen[0] == Pulling(done_bytes=0, total_bytes=len(WASM))
    assert seen[-2] == Pulling(done_bytes=len(WASM), total_bytes=len(WASM))
    assert seen[-1] == Compiling()


def test_pull_policies(room: Room, registry: FakeRegistry) -> None:
    reference = registry.push("hello:v1", WASM)
    error = room.fail(reference, "Never")
    assert isinstance(error, NeverPull)
    assert error.message == f'Container image "{reference}" is not present with pull policy of Never'
    first = room.get(reference)
    registry.push("hello:v1", OTHER)
    asked = len(registry.requests)
    assert room.get(reference).digest == room.get(reference, "Never").digest == first.digest
    assert len(registry.requests) == asked, "the registry was not asked"
    assert room.get(reference, "Always").digest == "sha256:" + hashlib.sha256(OTHER).hexdigest()
    blobs = registry.count("/blobs/")
    room.get(reference, "Always")
    assert registry.count("/blobs/") == blobs, "unchanged, so only its digest was asked for"
    assert registry.requests[-1].startswith("HEAD ")


def test_many_waiters_pull_once_and_a_cancelled_one_disturbs_nobody(room: Room, registry: FakeRegistry) -> None:
    reference = registry.push("hello:v1", WASM)

    async def work(modules: Modules) -> list[Any]:
        tasks = [asyncio.create_task(modules.get(image(reference, "Always"))) for _ in range(10)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, *others = room.do(work)
    assert isinstance(first, asyncio.CancelledError)
    assert len({module.path for module in others}) == 1
    assert (registry.count("/manifests/"), registry.count("/blobs/")) == (1, 1)


def test_when_every_waiter_is_cancelled_the_work_ends(room: Room, registry: FakeRegistry) -> None:
    reference = registry.push("hello:v1", WASM)
    registry.answer("blobs/", fake.hanging)

    async def work(modules: Modules) -> None:
        tasks = [asyncio.create_task(modules.get(image(reference))) for _ in range(3)]
        await until(lambda: registry.count("/blobs/") == 1)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: len(asyncio.all_tasks()) == 1)
        await modules.get(image(reference))  # and anew, it works

    room.do(work)


def test_a_mirror_is_asked_instead(tmp_path: Path, registry: FakeRegistry) -> None:
    registry.push("library/hello:latest", WASM)
    room = Room(tmp_path, hosts={"mirrors": {"docker.io": f"http://{registry.address}"}})
    assert room.get("hello").name == "hello"


def test_public_registries_give_anybody_a_token(room: Room, registry: FakeRegistry) -> None:
    reference = registry.push("tools/hello:v1", WASM)
    registry.token = "for-anybody"
    room.get(reference)
    assert "GET /token?scope=repository%3Atools%2Fhello%3Apull&service=fake" in registry.requests


def test_redirects_are_followed_without_the_token(room: Room, registry: FakeRegistry) -> None:
    with FakeRegistry() as storage:
        reference = registry.push("hello:v1", WASM)
        registry.token = "for-anybody"
        storage.put("bucket/1", WASM)
        registry.answer("blobs/", fake.redirect(f"http://{storage.address}/v2/bucket/1?signature=x"))
        storage._content["bucket/1?signature=x"] = storage._content["bucket/1"]
        assert room.get(reference).kind is ModuleKind.CORE
        assert storage.authorizations == [None]


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "part", "message"),
    [
        (fake.status(404), "manifests/", "not found (404): the registry has no such repository or tag"),
        (fake.status(403), "manifests/", "access denied (403): the repository does not exist, or it is private"),
        (fake.status(400), "manifests/", "the registry answered 400 Bad Request"),
        (fake.html, "manifests/", "it answered with text/html instead of a manifest"),
        (fake.flipped, "manifests/", "the manifest's digest mismatch: the registry sent sha256:"),
        (fake.flipped, "blobs/", "the layer's digest mismatch: the registry sent sha256:"),
        (fake.longer, "blobs/", f"is longer than the {len(WASM)} bytes its manifest gives it"),
        (fake.redirect("ftp://elsewhere/x"), "blobs/", "redirects to ftp://elsewhere/x, which is not followed"),
    ],
)
def test_what_another_try_would_not_mend_is_tried_once(
    room: Room, registry: FakeRegistry, fault: fake.Fault, part: str, message: str
) -> None:
    reference = registry.push("hello:v1", WASM)
    registry.answer(part, fault)
    error = room.fail(reference)
    assert isinstance(error, PullError)
    assert error.message.startswith(f'failed to resolve reference "{reference}": ')
    assert message in error.message
    assert registry.count(part) == 1
    assert room.waits == []
    assert room.get(reference).kind is ModuleKind.CORE, "nothing bad was kept"


@pytest.mark.parametrize(
    ("fault", "part", "message"),
    [
        (fake.status(500), "manifests/", "the registry answered 500 Internal Server Error (3 attempts)"),
        (fake.status(503), "blobs/", "the registry answered 503 Service Unavailable (3 attempts)"),
        (fake.truncated(40), "blobs/", f"ended after 40 of {len(WASM)} bytes (3 attempts)"),
        (fake.truncated(40), "manifests/", "the connection to 127.0.0.1:"),
    ],
)
def test_what_may_mend_is_tried_again(
    room: Room, registry: FakeRegistry, fault: fake.Fault, part: str, message: str
) -> None:
    reference = registry.push("hello:v1", WASM)
    registry.answer(part, fault, fault)
    assert room.get(reference).kind is ModuleKind.CORE
    assert room.waits == [0.5, 1.0]
    reference = registry.push("other:v1", OTHER)
    registry.answer(part, fault, fault, fault)
    assert message.replace(str(len(WASM)), str(len(OTHER))) in room.fail(reference).message


def test_retry_after_is_honoured_and_bounded(room: Room, registry: FakeRegistry) -> None:
    reference = registry.push("hello:v1", WASM)
    registry.answer("manifests/", fake.status(429, Retry_After="7"))
    room.get(reference)
    assert room.waits == [7.0]
    registry.answer("manifests/", fake.status(429, Retry_After="3600"))
    message = room.fail(reference, "Always").message
    assert "429 Too Many Requests; the registry asks to wait 3600 s" in message
    assert room.waits == [7.0]


def test_a_silent_registry_is_left(tmp_path: Path, registry: FakeRegistry) -> None:
    room = Room(tmp_path, read_seconds=0.05)
    reference = registry.push("hello:v1", WASM)
    registry.answer("manifests/", *[fake.hanging] * 3)
    assert f"{registry.address} did not answer in time (3 attempts)" in room.fail(reference).message


def test_a_pull_has_an_end(tmp_path: Path, registry: FakeRegistry) -> None:
    room = Room(tmp_path, total_seconds=0.05)
    reference = registry.push("hello:v1", WASM)
    registry.answer("manifests/", fake.hanging)
    assert "it took more than 0 s" in room.fail(reference).message


def test_nobody_listens(room: Room) -> None:
    assert "can't reach 127.0.0.1:1: " in room.fail("127.0.0.1:1/hello").message


def test_a_wrong_digest_in_the_reference(room: Room, registry: FakeRegistry) -> None:
    registry.push("hello:v1", WASM)
    wrong = "sha256:" + "0" * 64
    registry._content[f"hello/manifests/{wrong}"] = registry._content["hello/manifests/v1"]
    message = room.fail(f"{registry.address}/hello@{wrong}").message
    assert f"for {wrong}" in message
    assert "digest mismatch" in message


def test_sizes_are_limited(tmp_path: Path, registry: FakeRegistry) -> None:
    room = Room(tmp_path, max_module_bytes=100)
    error = room.fail(registry.push("hello:v1", WASM))
    assert isinstance(error, NotRunnable)
    assert f"has {len(WASM)} bytes; this runner takes modules of at most 100" in error.message
    registry.put("big/manifests/v1", b'{"schemaVersion": 2, "x": "' + b"x" * (5 << 20) + b'"}', fake.MANIFEST)
    assert "the manifest is larger than 4194304 bytes" in room.fail(f"{registry.address}/big:v1").message


@pytest.mark.parametrize(
    ("push", "message"),
    [
        (
            {"layers": [b"tar"], "layer_type": fake.TAR_GZIP, "config_type": fake.IMAGE_CONFIG,
             "config": json.dumps({"os": "linux", "architecture": "amd64"}).encode()},
            "is a container image for linux/amd64, not a WebAssembly module",
        ),
        (
            {"layers": [b"tar"], "layer_type": fake.TAR_GZIP, "config_type": fake.IMAGE_CONFIG,
             "config": json.dumps({"os": "wasi", "architecture": "wasm"}).encode()},
            "is a WebAssembly module inside a container image (wasi/wasm), which can't be unpacked yet",
        ),
        ({"layers": [b"{}"], "layer_type": "application/vnd.fermyon.spin.application.v1+config"}, "is a Spin application"),
        ({"layers": [WASM], "config_type": "application/vnd.module.wasm.config.v1+json"}, "is a proxy-wasm extension"),
        ({"layers": [WASM, OTHER]}, "has 2 WebAssembly layers; exactly one is run"),
        ({"layers": []}, "has no layers"),
    ],
)  # fmt: skip
def test_other_things_are_named_before_a_layer_is_pulled(
    room: Room, registry: FakeRegistry, push: dict[str, Any], message: str
) -> None:
    layers = push.pop("layers")
    reference = registry.push("thing:v1", *layers, **push)
    push["layers"] = layers
    error = room.fail(reference)
    assert isinstance(error, NotRunnable)
    assert error.message.startswith(f'"{reference}" {message}'), error.message
    assert not any(hashlib.sha256(layer).hexdigest() in request for layer in layers for request in registry.requests)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (b"\x7fELF\2\1\1" + b"\0" * 100, "native code (ELF): precompiled modules are never taken"),
        (b"\x1f\x8b\x08" + b"\0" * 100, "a gzip archive"),
        (b"hello", "is not WebAssembly: it begins with 'hello'; a module begins with \\0asm"),
        (b"(module)", "is WebAssembly in its text format; a registry's layer must be binary"),
        (b"", "is not WebAssembly: it is empty"),
    ],
)
def test_a_label_is_not_believed(room: Room, registry: FakeRegistry, layer: bytes, message: str) -> None:
    error = room.fail(registry.push("thing:v1", layer))
    assert isinstance(error, NotRunnable)
    assert message in error.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (wat.LIBRARY, "is a library: it has no `_start` to be run, and exports add"),
        (wat.REACTOR, "is a reactor: it has no `_start` to be run, only functions to be called (_initialize, handle,"),
        (wat.PREVIEW_0, "was built for WASI preview 0"),
        (wat.component(exports_as="wasi:http/incoming-handler@0.2.0"), "is an HTTP server"),
        (wat.component(exports_as="tools:hello/world@1.0.0"), "is a component of another world: it exports tools:hello"),
        ("(module (func (export", "is not valid WebAssembly: "),
        (b"\0asm\1\0\0\0\xff", "is not valid WebAssembly: "),
    ],
)  # fmt: skip
def test_what_is_no_command_is_named(room: Room, text: str | bytes, message: str) -> None:
    with pytest.raises(NotRunnable) as error:
        room.do(lambda modules: modules.get(inline(text, 'ConfigMap "tools", key "x.wat"')))
    assert error.value.reason == "CreateContainerConfigError"
    assert error.value.message.startswith(f'ConfigMap "tools", key "x.wat" {message}'), error.value.message


def test_an_inline_module_that_is_no_webassembly(room: Room) -> None:
    with pytest.raises(NotRunnable) as error:
        room.do(lambda modules: modules.get(inline("#!/bin/sh\n", 'ConfigMap "tools", key "hello.wasm"')))
    assert error.value.message == (
        'ConfigMap "tools", key "hello.wasm" is not WebAssembly: it begins with \'#!/bin/sh\\n\', a script; '
        "expected a binary module (\\0asm) or its text format"
    )


def test_an_inline_module_has_its_keys_name(room: Room) -> None:
    module = room.do(lambda modules: modules.get(inline(wat.component(), 'ConfigMap "tools", key "hello.wat"')))
    assert (module.kind, module.name) == (ModuleKind.COMPONENT, "hello.wat")


def test_a_bad_reference(room: Room) -> None:
    error = room.fail("UPPER/Case::x")
    assert isinstance(error, InvalidReference)


# --- limits and damage ------------------------------------------------------------------------------------------------


def test_a_compiler_out_of_memory_says_so(room: Room) -> None:
    room.compile = CompileSettings(memory_bytes=24 << 20)
    functions = "".join(
        f'(func (export "f{i}") (param i32) (result i32) {"(i32.add (local.get 0) " * 50}(i32.const 1){")" * 50})'
        for i in range(2000)
    )
    with pytest.raises(NotRunnable, match="needs more than 24 MiB of memory to compile"):
        room.do(lambda modules: modules.get(inline(f'(module (func (export "_start")) {functions})')))


def test_a_compiler_out_of_time_says_so(room: Room) -> None:
    room.compile = CompileSettings(wall_seconds=0.0)
    with pytest.raises(NotRunnable, match="takes more than 0 s to compile"):
        room.do(lambda modules: modules.get(inline(WASM)))


def test_damaged_code_is_made_anew_and_a_damaged_module_pulled_anew(room: Room, registry: FakeRegistry) -> None:
    reference = registry.push("hello:v1", WASM)
    module = room.get(reference)
    good = module.path.read_bytes()
    for damage in (good[:-1], good[:1000] + b"\xff" + good[1001:], b""):
        module.path.write_bytes(damage)
        assert room.get(reference).path.read_bytes() == good
    blob = room.folder / "blobs" / "sha256" / module.digest.removeprefix("sha256:")
    blob.write_bytes(WASM[:-1])
    (module.path.parent / "facts.json").unlink()
    assert room.get(reference).path.read_bytes() == good
    assert registry.count("/blobs/") == 2
    assert blob.read_bytes() == WASM


def test_plain_http_is_for_loopback_and_the_listed(tmp_path: Path) -> None:
    client = RegistryClient(
        RegistrySettings(insecure_registries=frozenset({"lab:5000"}), ca_files={"localhost:5001": tmp_path})
    )
    assert [client.base_url(host) for host in ("lab:5000", "lab", "localhost", "127.0.0.9:5", "[::1]:5", "docker.io")] == [
        "http://lab:5000", "https://lab", "http://localhost", "http://127.0.0.9:5", "http://[::1]:5",
        "https://registry-1.docker.io",
    ]  # fmt: skip
    assert client.base_url("localhost:5001") == "https://localhost:5001", "it has a CA, so it speaks TLS"
