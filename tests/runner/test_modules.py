"""From a spec's words to a compiled module: sources, policies, one piece of work for many, and what is kept.

(What a registry does wrong: `test_pull_faults.py`. Who may have what: `test_pull_access.py`.)
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.guests import wat
from tests.runner import fake_registry as fake
from tests.runner.fake_registry import FakeRegistry
from tests.runner.harness import inline, until
from tests.runner.module_room import OTHER, WASM, RealEngine, Room, fails, image, secret, sha256
from wherry_runner import protocol
from wherry_runner.execution.engine import ModuleKind, Variant
from wherry_runner.modules.errors import InvalidReference, ModuleError, NeverPull, NotRunnable
from wherry_runner.modules.library import Compiling, Modules, Progress, Pulling
from wherry_runner.modules.progress import TOLD_SECONDS, paced
from wherry_runner.modules.store import StoreLimits


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    with FakeRegistry() as started:
        yield started


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path / "modules")


# --- what is pulled ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer_type", "config_type", "krustlet"),
    [
        (fake.WASM, fake.WASM_CONFIG, False),
        ("application/vnd.wasm.content.layer.v1+wasm", "application/vnd.wasm.config.v1+json", True),
        ("application/vnd.bytecodealliance.wasm.component.layer.v0+wasm", fake.IMAGE_CONFIG, False),
        (fake.TAR, "application/vnd.oci.empty.v1+json", False),  # what `oras push` calls any file
        ("application/octet-stream", "application/vnd.unknown.config.v1+json", False),
    ],
)
def test_artifacts_of_every_producer(
    room: Room, registry: FakeRegistry, layer_type: str, config_type: str, krustlet: bool
) -> None:
    reference = registry.push("tools/hello:v1", WASM, layer_type=layer_type, config_type=config_type)
    module = room.get(reference)
    assert module.digest == sha256(WASM)
    assert (module.kind, module.name, module.packed_by_krustlet) == (ModuleKind.CORE, "hello", krustlet)
    assert module.path.stat().st_mode & 0o777 == 0o600
    digest = module.image_digest
    assert room.get(f"{registry.address}/tools/hello@{digest}").image_digest == digest
    assert registry.count("/blobs/") == 1, "the same manifest of the same repository"
    assert room.counted.pulls == [("ok", len(WASM)), ("ok", 0)]


def test_an_index_gives_its_wasm_entry(room: Room, registry: FakeRegistry) -> None:
    registry.push("hello:linux", OTHER)
    registry.push("hello:wasi", WASM)
    entries = []
    for tag, platform in (("linux", ("linux", "amd64")), ("wasi", ("wasip1", "wasm"))):
        body = registry.content(f"hello/manifests/{tag}")
        names = {"os": platform[0], "architecture": platform[1]}
        entries.append(fake.descriptor(fake.MANIFEST, body, platform=names))
    index = {"schemaVersion": 2, "mediaType": fake.INDEX, "manifests": entries}
    digest = registry.push_manifest("hello", "all", index, fake.INDEX)
    module = room.get(f"{registry.address}/hello:all")
    assert (module.digest, module.image_digest) == (sha256(WASM), digest)
    only_linux = {
        **index,
        "manifests": [*entries[:1], {**entries[0], "platform": {"os": "linux", "architecture": "arm64"}}],
    }
    registry.push_manifest("hello", "linux-only", only_linux, fake.INDEX)
    message = room.fail(f"{registry.address}/hello:linux-only").message
    assert "offers linux/amd64, linux/arm64, but nothing for WebAssembly" in message


def test_an_inline_module_has_its_keys_name(room: Room) -> None:
    module = room.do(lambda modules: modules.get(inline(wat.component(), 'ConfigMap "tools", key "hello.wat"')))
    assert (module.name, module.image_digest) == ("hello.wat", "")
    assert module.digest == sha256(wat.component().encode())


def test_each_variant_is_a_compilation_of_its_own(room: Room, registry: FakeRegistry) -> None:
    reference = registry.push("hello:v1", WASM)
    plain, fuel = room.get(reference), room.get(reference, variant=Variant.FUEL)
    assert (plain.variant, fuel.variant) == (Variant.PLAIN, Variant.FUEL)
    assert plain.path != fuel.path
    assert registry.count("/blobs/") == 1


def test_a_real_compiler_s_word_follows_the_module_s_name(tmp_path: Path, registry: FakeRegistry) -> None:
    room = Room(tmp_path / "modules", engine=RealEngine())
    assert room.get(registry.push("hello:v1", WASM)).kind is ModuleKind.CORE
    error = fails(room, inline(wat.LIBRARY, 'ConfigMap "tools", key "x.wat"'))
    assert error.reason == "CreateContainerConfigError"
    assert error.message.startswith('ConfigMap "tools", key "x.wat" is a library: it has no `_start` to be run')
    reference = registry.push("broken:v1", b"\0asm\1\0\0\0\xff")
    error = room.fail(reference)
    assert error.reason == "ErrImagePull"
    assert error.message.startswith(f'"{reference}" is not valid WebAssembly: ')


# --- progress ---------------------------------------------------------------------------------------------------------


def test_progress_is_told(room: Room, registry: FakeRegistry) -> None:
    reference = registry.push("hello:v1", WASM)
    seen: list[Progress] = []
    room.get(reference, on_progress=seen.append)
    assert seen == [
        Pulling(done_bytes=0, total_bytes=len(WASM)),
        Pulling(done_bytes=len(WASM), total_bytes=len(WASM)),
        Compiling(),
    ]
    seen.clear()
    room.get(reference, on_progress=seen.append)
    assert seen == [], "there was nothing to do"


def test_what_is_here_and_was_checked_is_at_hand(room: Room, registry: FakeRegistry) -> None:
    reference = registry.push("hello:v1", WASM)
    always, present = image(reference, "Always"), image(reference)

    async def work(modules: Modules) -> None:
        for module in (present, inline(OTHER)):
            assert modules.at_hand(module) is None, "it was never asked for"
            got = await modules.get(module)
            assert modules.at_hand(module) == got
            assert modules.at_hand(module, variant=Variant.FUEL) is None, "that is other code"
        assert modules.at_hand(always) is None, "the registry is to be asked"
        got.path.write_bytes(b"something else")
        assert modules.at_hand(inline(OTHER)) is None, "it is not what was checked"
        assert (await modules.get(inline(OTHER))).path.read_bytes() != b"something else"
        assert modules.at_hand(inline(OTHER)) is not None

    room.do(work)
    room.do(lambda modules: _nothing_is_at_hand(modules, present))


async def _nothing_is_at_hand(modules: Modules, module: protocol.Module) -> None:
    assert modules.at_hand(module) is None, "this process has not checked it"


def test_a_private_module_is_at_hand_of_who_may_have_it(room: Room, registry: FakeRegistry) -> None:
    private = image(registry.push("hello:v1", WASM))
    registry.lock("hello", user="right")
    credentials = [secret(registry.address, "user", "right")]

    async def work(modules: Modules) -> None:
        await modules.get(private, credentials=credentials)
        assert modules.at_hand(private, credentials=credentials) is not None
        assert modules.at_hand(private) is None
        assert modules.at_hand(private, credentials=[secret(registry.address, "user", "wrong")]) is None

    room.do(work)


def test_bytes_are_told_at_a_pace() -> None:
    now = [100.0]
    told: list[Progress] = []
    on_bytes = paced(told.append, clock=lambda: now[0])
    for done in range(0, 101):
        now[0] += TOLD_SECONDS / 8
        on_bytes(done, 100)
    assert [item.done_bytes for item in told if isinstance(item, Pulling)] == [*range(0, 100, 8), 100]


# --- policies ---------------------------------------------------------------------------------------------------------


def test_pull_policies(room: Room, registry: FakeRegistry) -> None:
    reference = registry.push("hello:v1", WASM)
    error = room.fail(reference, "Never")
    assert isinstance(error, NeverPull)
    assert error.reason == "ErrImageNeverPull"
    assert error.message == f'Container image "{reference}" is not present with pull policy of Never'
    first = room.get(reference)
    registry.push("hello:v1", OTHER)
    asked = len(registry.requests)
    assert room.get(reference).digest == room.get(reference, "Never").digest == first.digest
    assert len(registry.requests) == asked, "the registry was not asked"
    assert room.get(reference, "Always").digest == sha256(OTHER)
    blobs = registry.count("/blobs/")
    room.get(reference, "Always")
    assert registry.count("/blobs/") == blobs, "unchanged, so only its digest was asked for"
    assert registry.requests[-1].startswith("HEAD ")


def test_what_another_repository_gave_is_fetched_all_the_same(room: Room, registry: FakeRegistry) -> None:
    """Who knows the digest of another's module doesn't get it by naming it in a manifest of their own."""
    room.get(registry.push("of-one:v1", WASM))
    mine = registry.push("mine:v1", WASM)
    registry.put(f"mine/blobs/{sha256(WASM)}", b"x" * len(WASM))
    assert "digest mismatch" in room.fail(mine).message or "is not WebAssembly" in room.fail(mine).message
    assert registry.count("GET /v2/mine/blobs/") > 0


# --- many at once -----------------------------------------------------------------------------------------------------


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
    assert room.counted.pulls == [("ok", len(WASM))]


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


def test_a_registry_that_hangs_keeps_nobody_from_another(room: Room, registry: FakeRegistry) -> None:
    with FakeRegistry() as slow:
        references = [slow.push(f"hello{number}:v1", WASM) for number in range(100)]
        slow.answer("manifests/", *[fake.hanging] * 100)

        async def work(modules: Modules) -> None:
            waiting = [asyncio.create_task(modules.get(image(reference))) for reference in references]
            await until(lambda: len(slow.requests) == 8)
            await modules.get(image(registry.push("hello:v1", WASM)))
            assert len(slow.requests) == 8, "the others wait for their turn"
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

        room.do(work)


# --- refused ----------------------------------------------------------------------------------------------------------


def test_what_can_t_run_is_remembered_by_its_manifest(room: Room, registry: FakeRegistry) -> None:
    reference = registry.push("thing:v1", b"\x7fELF" + b"\0" * 100)
    config = b'{"os": "linux", "architecture": "amd64"}'
    linux = registry.push("linux:v1", b"", layer_type=fake.TAR, config_type=fake.IMAGE_CONFIG, config=config)

    async def work(modules: Modules) -> None:
        for expected in (1, 1, 2):
            with pytest.raises(NotRunnable, match="native code"):
                await modules.get(image(reference))
            assert registry.count("GET /v2/thing/blobs/") == expected
            with pytest.raises(NotRunnable, match="is a container image for linux/amd64"):
                await modules.get(image(linux))
            assert registry.count("GET /v2/linux/blobs/") == 1
            if registry.count("GET /v2/thing/manifests/") == 2:
                registry.push("thing:v1", b"\x7fELF" + b"\1" * 100)  # another one

    room.do(work)


def test_an_inline_module_that_is_no_webassembly(room: Room) -> None:
    error = fails(room, inline("#!/bin/sh\n", 'ConfigMap "tools", key "hello.wasm"'))
    assert isinstance(error, NotRunnable)
    assert error.message == (
        'ConfigMap "tools", key "hello.wasm" is not WebAssembly: it begins with \'#!/bin/sh\\n\', a script; '
        "expected a binary module (\\0asm) or its text format"
    )


def test_a_bad_reference(room: Room) -> None:
    assert isinstance(room.fail("UPPER/Case::x"), InvalidReference)


# --- the store --------------------------------------------------------------------------------------------------------


def test_damaged_code_is_made_anew_and_a_damaged_module_pulled_anew(tmp_path: Path, registry: FakeRegistry) -> None:
    room = Room(tmp_path / "modules", engine=RealEngine())
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
    blob.unlink()
    assert room.get(reference).path.read_bytes() == good, "gone without a word"
    assert isinstance(room.fail(registry.push("other:v1", OTHER), "Never"), NeverPull)


def test_a_module_that_is_lost_while_it_is_wanted_is_pulled_again(room: Room, registry: FakeRegistry) -> None:
    reference = registry.push("hello:v1", WASM)

    async def work(modules: Modules) -> None:
        module = await modules.get(image(reference))
        modules._store.blob(module.digest).unlink()
        shutil.rmtree(module.path.parent)
        assert (await modules.get(image(reference))).path.exists()

    room.do(work)
    assert registry.count("/blobs/") == 2


def test_the_quota_is_kept_and_what_runs_stays(tmp_path: Path, registry: FakeRegistry) -> None:
    in_use: list[str] = []
    limits = StoreLimits(quota_bytes=200 << 10, free_bytes=0, kept_seconds=0)
    room = Room(tmp_path / "modules", limits=limits, in_use=lambda: in_use)
    data = [WASM + bytes([number]) * (60 << 10) for number in range(5)]
    modules = [registry.push(f"m{number}:v1", data[number]) for number in range(5)]

    async def work(library: Modules) -> None:
        first = await library.get(image(modules[0]))
        in_use.append(first.digest)
        for reference in modules[1:]:
            await library.get(image(reference))
            assert library.used_bytes <= 200 << 10
            assert (await library.get(image(modules[0], "Never"))).digest == first.digest
        in_use.extend(map(sha256, data))
        with pytest.raises(ModuleError) as error:
            await library.get(image(modules[1]))
        assert error.value.reason == "ErrImagePull"
        assert error.value.message.startswith("can't store the module: no room for 61")
        assert "the runner keeps at most 204800 bytes of modules (--modules-quota-bytes)" in error.value.message
        in_use.clear()
        await library.get(image(modules[1]))

    room.do(work)


def test_a_full_disk_is_an_error_that_mends(tmp_path: Path, registry: FakeRegistry) -> None:
    """A disk of its own needs root; without it, one that can't be written to does the same."""
    reference = registry.push("hello:v1", WASM + bytes(1 << 20))
    (tmp_path / "modules").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m,mode=700", "none", tmp_path / "modules"],
        check=False,
        capture_output=True,
    )
    try:
        room = Room(tmp_path / "modules", limits=StoreLimits(free_bytes=0))
        room.do(_nothing)
        filler = room.folder / "of-others"
        if mounted.returncode == 0:
            filler.write_bytes(bytes(2 << 20))
        else:
            (room.folder / "tmp").chmod(0o500)
        error = room.fail(reference)
        assert (error.reason, error.retry) == ("ErrImagePull", True)
        assert error.message.startswith("can't store the module: ")
        filler.unlink(missing_ok=True)
        (room.folder / "tmp").chmod(0o700)
        assert room.get(reference).kind is ModuleKind.CORE
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", tmp_path / "modules"], check=True)


async def _nothing(modules: Modules) -> None:
    return
