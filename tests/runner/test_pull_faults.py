"""A registry that lies, cuts off, floods, hangs or answers nonsense: what a container's status then says, and what is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.runner import fake_registry as fake
from tests.runner.fake_registry import FakeRegistry
from tests.runner.module_room import OTHER, WASM, Room, sha256
from wherry_runner.execution.engine import ModuleKind
from wherry_runner.modules.errors import ModuleError, NotRunnable, PullError

MIB = 1 << 20


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as started:
        yield started


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path / "modules")


@pytest.mark.parametrize(
    ("fault", "part", "message"),
    [
        (fake.status(404), "manifests/", "not found (404): the registry has no such repository or tag"),
        (fake.status(401), "manifests/", "access denied (401): the repository does not exist, or it is private and no pull"),
        (fake.status(403), "manifests/", "access denied (403): the repository does not exist, or it is private and no pull"),
        (fake.status(404), "blobs/", "not found (404)"),
        (fake.status(400), "manifests/", "the registry answered 400 Bad Request"),
        (fake.status(206), "blobs/", "the registry answered 206 Partial Content"),
        (fake.status(204), "manifests/", "the registry answered 204 No Content"),
        (fake.status(304), "manifests/", "the registry answered 304 Not Modified"),
        (fake.html, "manifests/", "it answered with text/html instead of a manifest"),
        (fake.flipped, "manifests/", "digest mismatch: sha256:"),
        (fake.flipped, "blobs/", f"came as the layer, which has {sha256(WASM)}"),
        (fake.longer, "blobs/", f"the layer is longer than the {len(WASM)} bytes its manifest gives it"),
        (fake.endless, "blobs/", f"the layer is longer than the {len(WASM)} bytes its manifest gives it"),
        (fake.announcing(1 << 60), "blobs/", f"the layer is longer than the {len(WASM)} bytes its manifest gives it"),
        (fake.endless, "manifests/", f"the manifest is larger than {4 * MIB} bytes"),
        (fake.bomb, "manifests/", "the manifest came compressed (gzip), which was not asked for"),
        (fake.body(b"[" * 100_000), "manifests/", "instead of a manifest"),
        (fake.body(b'"' + b"x" * (5 * MIB) + b'"'), "manifests/", f"the manifest is larger than {4 * MIB} bytes"),
        (fake.redirect("ftp://elsewhere/x?signature=hidden"), "blobs/", "redirects to ftp://elsewhere/x, which is not followed"),
        (fake.redirect("file:///etc/passwd"), "blobs/", "it redirects to file:///etc/passwd, which is not followed"),
        (fake.redirect("http://127.0.0.1:99999/"), "blobs/", "127.0.0.1:99999 is not a host that could be asked: "),
        (fake.redirect("http://" + "a" * 100 + ".example/"), "blobs/", " is not a host that could be asked: "),
    ],
)  # fmt: skip
def test_what_another_try_would_not_mend_is_tried_once(
    room: Room, registry: FakeRegistry, fault: fake.Fault, part: str, message: str
) -> None:
    reference = registry.push("hello:v1", WASM)
    registry.answer(part, fault)
    error = room.fail(reference)
    assert isinstance(error, PullError)
    assert error.message.startswith(f'failed to resolve reference "{reference}": ')
    assert message in error.message
    assert "hidden" not in error.message
    assert registry.count(part) == 1
    assert room.waits == []
    assert room.counted.pulls[0][0] == "error"
    assert room.get(reference).kind is ModuleKind.CORE, "nothing bad was kept"


def test_redirects_have_an_end(room: Room, registry: FakeRegistry) -> None:
    reference = registry.push("hello:v1", WASM)
    digest = hashlib.sha256(WASM).hexdigest()
    registry.answer("blobs/", *[fake.redirect(f"/v2/hello/blobs/sha256:{digest}?again")] * 10)
    assert "it redirects more than 5 times" in room.fail(reference).message
    assert registry.count("blobs/") == 6


@pytest.mark.parametrize(
    ("fault", "part", "message"),
    [
        (fake.status(500), "manifests/", "the registry answered 500 Internal Server Error (3 attempts)"),
        (fake.status(502), "manifests/", "the registry answered 502 Bad Gateway (3 attempts)"),
        (fake.status(503), "blobs/", "the registry answered 503 Service Unavailable (3 attempts)"),
        (fake.status(504), "blobs/", "the registry answered 504 Gateway Timeout (3 attempts)"),
        (fake.status(429), "blobs/", "the registry answered 429 Too Many Requests (3 attempts)"),
        (fake.status(429, Retry_After="soon"), "blobs/", "the registry answered 429 Too Many Requests (3 attempts)"),
        (fake.status(429, Retry_After="\xb2"), "blobs/", "the registry answered 429 Too Many Requests (3 attempts)"),
        (fake.truncated(40), "blobs/", f"the layer ended after 40 of {len(WASM)} bytes (3 attempts)"),
        (fake.announcing(40), "blobs/", f"the layer ended after 40 of {len(WASM)} bytes (3 attempts)"),
        (fake.body(WASM[:40]), "blobs/", f"the layer ended after 40 of {len(WASM)} bytes (3 attempts)"),
        (fake.truncated(40), "manifests/", "the connection to 127.0.0.1:"),
        (fake.redirect("http://[::1/"), "manifests/", "the connection to 127.0.0.1:"),
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


@pytest.mark.parametrize(
    ("asked", "waited"),
    [("7", 7.0), ("0", 0.0), ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0), ("Thu, 01 Jan 1970 00:00:00", 0.0)],
)
def test_retry_after_is_honoured(room: Room, registry: FakeRegistry, asked: str, waited: float) -> None:
    registry.answer("manifests/", fake.status(429, Retry_After=asked))
    room.get(registry.push("hello:v1", WASM))
    assert room.waits == [waited]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("3600", "429 Too Many Requests; the registry asks to wait 3600 s"),
        ("9" * 400, "429 Too Many Requests; the registry asks to wait 999999999999 s"),
        ("Fri, 31 Dec 9999 23:59:59 GMT", "429 Too Many Requests; the registry asks to wait "),
        ("Fri, 31 Dec 9999 23:59:59 -2359", "429 Too Many Requests; the registry asks to wait "),
    ],
)
def test_nobody_waits_for_an_hour(room: Room, registry: FakeRegistry, asked: str, said: str) -> None:
    reference = registry.push("hello:v1", WASM)
    registry.answer("manifests/", fake.status(429, Retry_After=asked))
    assert said in room.fail(reference).message
    assert room.waits == []


def test_a_silent_registry_is_left(tmp_path: Path, registry: FakeRegistry) -> None:
    room = Room(tmp_path, hosts={"read_seconds": 0.05})
    reference = registry.push("hello:v1", WASM)
    registry.answer("manifests/", *[fake.hanging] * 3)
    assert f"{registry.address} did not answer in time (3 attempts)" in room.fail(reference).message
    registry.answer("blobs/", *[fake.stalling(40)] * 3)
    assert f"{registry.address} did not answer in time (3 attempts)" in room.fail(reference).message


def test_a_pull_has_an_end(tmp_path: Path, registry: FakeRegistry) -> None:
    room = Room(tmp_path, total_seconds=0.05)
    reference = registry.push("hello:v1", WASM)
    registry.answer("manifests/", fake.hanging)
    assert room.fail(reference).message == f'failed to pull "{reference}": it took more than 0 s'


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("127.0.0.1:1/hello", "can't reach 127.0.0.1:1: "),
        ("127.0.0.1:99999/hello", "is not a host that could be asked: "),
        ("localhost:" + "9" * 30 + "/hello", ""),
        ("a" * 70 + ".localhost:5000/hello", ""),
        ("127.0.0.1:0/hello", "can't reach 127.0.0.1:0: "),
        ("[:::]:1/hello", ""),
    ],
)
def test_nobody_is_there(tmp_path: Path, reference: str, message: str) -> None:
    room = Room(tmp_path, hosts={"insecure_registries": frozenset({reference.rpartition("/")[0]})})
    error = room.fail(reference)
    assert isinstance(error, PullError)
    assert message in error.message


def test_a_wrong_digest_in_the_reference(room: Room, registry: FakeRegistry) -> None:
    registry.push("hello:v1", WASM)
    wrong = "sha256:" + "0" * 64
    registry._content[f"hello/manifests/{wrong}"] = registry._content["hello/manifests/v1"]
    message = room.fail(f"{registry.address}/hello@{wrong}").message
    assert f"came as the manifest, which has {wrong}" in message


def test_an_index_that_names_another_manifest_or_itself(room: Room, registry: FakeRegistry) -> None:
    registry.push("hello:v1", WASM)
    entry = fake.descriptor(fake.MANIFEST, b"another", platform={"os": "wasi", "architecture": "wasm"})
    index = {"schemaVersion": 2, "mediaType": fake.INDEX, "manifests": [entry]}
    registry.push_manifest("hello", "lost", index, fake.INDEX)
    assert "not found (404)" in room.fail(f"{registry.address}/hello:lost").message
    registry._content[f"hello/manifests/{entry['digest']}"] = registry._content["hello/manifests/v1"]
    assert f"came as the manifest, which has {entry['digest']}" in room.fail(f"{registry.address}/hello:lost").message
    inner = registry.content("hello/manifests/lost")
    index["manifests"] = [fake.descriptor(fake.INDEX, inner)]
    registry.push_manifest("hello", "nested", index, fake.INDEX)
    assert "it answered with an index inside an index" in room.fail(f"{registry.address}/hello:nested").message


@pytest.mark.parametrize(
    ("size", "message"), [(len(WASM) + 1, " bytes (3 attempts)"), (len(WASM) - 1, "is longer than the")]
)
def test_a_wrong_size_in_the_manifest(room: Room, registry: FakeRegistry, size: int, message: str) -> None:
    registry.push("hello:v1", WASM)
    manifest = json.loads(registry.content("hello/manifests/v1"))
    manifest["layers"][0]["size"] = size
    registry.push_manifest("hello", "wrong", manifest, fake.MANIFEST)
    assert message in room.fail(f"{registry.address}/hello:wrong").message


def test_sizes_are_limited_before_a_layer_is_pulled(tmp_path: Path, registry: FakeRegistry) -> None:
    room = Room(tmp_path, max_module_bytes=100)
    error = room.fail(registry.push("hello:v1", WASM))
    assert isinstance(error, NotRunnable)
    assert f"has {len(WASM)} bytes; this runner takes modules of at most 100" in error.message
    assert registry.count("/blobs/") == 0


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (b"\x7fELF\2\1\1" + b"\0" * 100, "native code (ELF): precompiled modules are never taken"),
        (b"\x1f\x8b\x08" + b"\0" * 100, "a gzip archive"),
        (b"hello", "is not WebAssembly: it begins with 'hello'; a module begins with \\0asm"),
        (b"(module)", "is WebAssembly in its text format; a registry's layer must be binary"),
        (b"\0asm\7\0\0\0", "is WebAssembly of a version that this runner doesn't know (07000000)"),
        (b"\0asm", "is WebAssembly of a version that this runner doesn't know ()"),
        (b"", "is not WebAssembly: it is empty"),
    ],
)
def test_a_label_is_not_believed(room: Room, registry: FakeRegistry, layer: bytes, message: str) -> None:
    error = room.fail(registry.push("thing:v1", layer))
    assert isinstance(error, NotRunnable)
    assert message in error.message


def test_what_is_no_module_is_not_fetched_to_its_end(room: Room, registry: FakeRegistry) -> None:
    big = b"\x7fELF" + bytes(64 * MIB)
    reference = registry.push("thing:v1", big)
    registry.answer("blobs/", fake.stalling(MIB))
    assert "native code (ELF)" in room.fail(reference).message, "though the rest never comes"


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _paths(inner, (*path, key))


def _replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _replaced(value[path[0]], path[1:], new)
    return copy


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(data=st.data())
def test_a_manifest_with_a_part_of_nonsense(data: st.DataObject, tmp_path: Path, registry: FakeRegistry) -> None:
    registry.push("hello:v1", WASM, annotations={"a": "b"})
    manifest = json.loads(registry.content("hello/manifests/v1"))
    path = data.draw(st.sampled_from(list(_paths(manifest))))
    registry.put(
        "hello/manifests/v1", json.dumps(_replaced(manifest, path, data.draw(_VALUES))).encode(), fake.MANIFEST
    )
    room = Room(tmp_path / "modules", hosts={"attempts": 1})
    try:
        assert room.get(f"{registry.address}/hello:v1", "Always").digest == sha256(WASM)
    except ModuleError as error:
        assert error.reason in ("ErrImagePull", "InvalidImageName")
        assert error.message.isprintable()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(bytes_=st.binary(max_size=300), part=st.sampled_from(["manifests/", "blobs/"]), code=st.integers(200, 599))
def test_any_answer_at_all(bytes_: bytes, part: str, code: int, tmp_path: Path, registry: FakeRegistry) -> None:
    reference = registry.push("hello:v1", WASM)
    registry.answer(part, lambda good: fake.Reply(code, {}, bytes_))
    room = Room(tmp_path / "modules", hosts={"attempts": 1})
    registry.put(f"hello/blobs/{sha256(WASM)}", WASM)
    try:
        assert room.get(reference, "Always").digest == sha256(WASM)
    except ModuleError as error:
        assert error.message.isprintable()
    registry._faults.clear()
