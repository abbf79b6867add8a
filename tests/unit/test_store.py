"""The store: what is under a name is complete, and no name is what a stranger chose."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from wherry_runner.modules.credentials import Credential
from wherry_runner.modules.store import (
    ANYBODY,
    MAX_ACCESS,
    CompiledFacts,
    PulledModule,
    Store,
    StoreFull,
    StoreLimits,
    Unfinished,
)

KEY = "ab" * 32
OTHER_KEY = "cd" * 32
MANIFEST = "sha256:" + "1" * 64
BLOCK = 4096


def pulled(digest: str, **more: Any) -> PulledModule:
    return PulledModule(
        **{"reference": "registry.example/x:1", "manifest_digest": MANIFEST, "layer_digest": digest} | more
    )


def facts(digest: str = MANIFEST, data: bytes = b"code") -> CompiledFacts:
    return CompiledFacts(kind="core", variant="plain", sha256=hashlib.sha256(data).hexdigest(), module_digest=digest)


def compile(store: Store, key: str, digest: str, data: bytes = b"code") -> Path:
    with store.unfinished() as file:
        file.stream.write(data)
        return store.put_compiled(key, file, facts(digest, data))


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = time.time()  # files have the real one at first

    def __call__(self) -> float:
        return self.now


def test_a_blob_is_kept_under_its_digest(tmp_path: Path) -> None:
    store = Store(tmp_path)
    digest = store.put_blob(b"bytes")
    assert digest == "sha256:" + hashlib.sha256(b"bytes").hexdigest()
    assert Store(tmp_path).blob(digest).read_bytes() == b"bytes"
    assert store.put_blob(b"bytes") == digest


def test_nobody_else_can_look_in(tmp_path: Path) -> None:
    store = Store(tmp_path / "modules")
    digest = store.put_blob(b"bytes")
    store.remember(pulled(digest))
    for path in (tmp_path / "modules").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_what_a_crash_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "half").write_bytes(b"half a module")
    Store(tmp_path)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_an_unfinished_file_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(RuntimeError), store.unfinished() as file:
        file.stream.write(b"half")
        raise RuntimeError
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_reference_is_recalled_while_its_module_is_here(tmp_path: Path) -> None:
    store = Store(tmp_path)
    digest = store.put_blob(b"bytes")
    store.remember(pulled(digest))
    assert store.recall("registry.example/x:1") == pulled(digest)
    assert store.recall("registry.example/x:2") is None
    store.remove_blob(digest)
    assert store.recall("registry.example/x:1") is None


@pytest.mark.parametrize(
    "name", ["", "x", "../../etc/passwd", "AB" * 32, "ab" * 31, "ab" * 32 + "/", "ab" * 32 + "\n", "é" * 64]
)
def test_names_are_hexadecimal_or_nothing(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path)
    with pytest.raises(ValueError, match="hexadecimal"):
        store.blob("sha256:" + name)
    with pytest.raises(ValueError, match="hexadecimal"):
        store.compiled(name)
    with pytest.raises(ValueError, match="sha256"):
        store.blob("md5:" + KEY)


def test_compiled_code_has_facts_or_is_not_there(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.compiled(KEY) is None
    path = compile(store, KEY, MANIFEST)
    assert store.compiled(KEY) == (path, facts())
    assert path.read_bytes() == b"code"
    again = compile(store, KEY, MANIFEST, b"newer code")
    assert (again, again.read_bytes()) == (path, b"newer code")
    (path.parent / "facts.json").unlink()
    assert store.compiled(KEY) is None


# --- what is found at the start ---------------------------------------------------------------------------------------


def test_everything_is_there_again_after_a_restart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    digest = store.put_blob(b"bytes")
    module = store.remember(
        pulled(digest, entrypoint_args=("a",), image_args=("b", "c"), access=(ANYBODY,), name="x.wasm")
    )
    path = compile(store, KEY, digest)
    again = Store(tmp_path)
    assert again.recall(module.reference) == module
    assert again.compiled(KEY) == (path, facts(digest))
    assert again.used_bytes == store.used_bytes == 4 * BLOCK


def test_what_belongs_to_nothing_goes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    digest = store.put_blob(b"bytes")
    store.remember(pulled(digest))
    compile(store, KEY, digest)
    (tmp_path / "compiled" / OTHER_KEY).mkdir()
    (tmp_path / "compiled" / "x").write_text("not ours")
    (tmp_path / "refs" / "y.json").write_text("not ours")
    store.blob(digest).unlink()
    again = Store(tmp_path)
    assert again.used_bytes == 0
    assert list((tmp_path / "compiled" / KEY).glob("*")) == list((tmp_path / "refs").iterdir()) == []
    assert not (tmp_path / "compiled" / OTHER_KEY).exists()


def damaged(good: bytes) -> Iterator[bytes]:
    """Ways in which it is cut off, or a bit is wrong."""
    for position in range(0, len(good), 7):
        yield good[:position]
        yield good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :]
    yield good + b"x"
    yield good * 2


def test_a_damaged_reference_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    store = Store(tmp_path)
    module = store.remember(pulled(store.put_blob(b"bytes"), access=(ANYBODY,)))
    (file,) = (tmp_path / "refs").iterdir()
    good = file.read_bytes()
    for damage in damaged(good):
        file.write_bytes(damage)
        assert Store(tmp_path).recall(module.reference) is None, damage
        assert not file.exists()
    file.write_bytes(good)
    assert Store(tmp_path).recall(module.reference) == module
    file.rename(file.with_name("00" * 32 + ".json"))
    assert Store(tmp_path).recall(module.reference) is None, "under another's name"


def test_damaged_facts_are_as_if_they_were_not_there(tmp_path: Path) -> None:
    store = Store(tmp_path)
    digest = store.put_blob(b"bytes")
    folder = compile(store, KEY, digest).parent
    good = (folder / "facts.json").read_bytes()
    for damage in damaged(good):
        (folder / "facts.json").write_bytes(damage)
        assert store.compiled(KEY) is None, damage
    assert Store(tmp_path).compiled(KEY) is None
    assert not folder.exists()


def test_another_salt_makes_strangers_of_all(tmp_path: Path) -> None:
    credential = Credential(username="ada", password=SecretStr("hunter2"))
    known = Store(tmp_path).fingerprint(credential)
    assert Store(tmp_path).fingerprint(credential) == known
    (tmp_path / "salt").write_bytes(b"short")
    assert Store(tmp_path).fingerprint(credential) != known
    assert Store(tmp_path / "another").fingerprint(credential) != known


# --- who has access ---------------------------------------------------------------------------------------------------


def test_access_adds_up_while_the_manifest_is_the_same(tmp_path: Path) -> None:
    store = Store(tmp_path)
    digest = store.put_blob(b"bytes")
    store.remember(pulled(digest, access=("a",)))
    module = store.remember(pulled(digest, access=("b",)))
    assert module.access == ("a", "b")
    assert [module.lets_in(who) for who in (("a",), ("x", "b"), ("x",), ())] == [True, True, False, False]
    assert store.remember(pulled(digest, access=("c",), manifest_digest="sha256:" + "2" * 64)).access == ("c",)
    for number in range(2 * MAX_ACCESS):
        module = store.remember(pulled(digest, access=(str(number),), manifest_digest="sha256:" + "2" * 64))
    assert len(module.access) == MAX_ACCESS
    assert module.access[-1] == str(2 * MAX_ACCESS - 1)
    assert store.remember(pulled(digest, access=(ANYBODY,))).lets_in(())


@pytest.mark.parametrize(
    ("reference", "repository"),
    [
        ("registry.example/x:1", "registry.example/x"),
        ("registry.example:5000/a/x", "registry.example:5000/a/x"),
        ("registry.example:5000/x:1@sha256:" + "0" * 64, "registry.example:5000/x"),
        ("[::1]:5000/x@sha256:" + "0" * 64, "[::1]:5000/x"),
    ],
)
def test_the_same_manifest_is_known_in_its_own_repository(tmp_path: Path, reference: str, repository: str) -> None:
    store = Store(tmp_path)
    module = store.remember(pulled(store.put_blob(b"bytes"), reference=reference))
    assert store.same_manifest(repository, MANIFEST) == module
    assert store.same_manifest("registry.example/other", MANIFEST) is None
    assert store.same_manifest(repository, "sha256:" + "2" * 64) is None
    store.remove_blob(module.layer_digest)
    assert store.same_manifest(repository, MANIFEST) is None


# --- room -------------------------------------------------------------------------------------------------------------


class Small:
    """A store for a few blocks; each blob takes two, and each compilation."""

    def __init__(self, folder: Path, *, blocks: int = 6, free_bytes: Callable[[], int] = lambda: 1 << 40) -> None:
        self.clock = Clock()
        self.in_use: list[str] = []
        self._arguments: dict[str, Any] = {
            "limits": StoreLimits(quota_bytes=blocks * BLOCK, free_bytes=1000),
            "in_use": lambda: self.in_use,
            "clock": self.clock,
            "free_bytes": free_bytes,
        }
        self.folder = folder
        self.store = Store(folder, **self._arguments)

    def put(self, name: str, *, seconds: float = 100) -> str:
        """A blob and a reference to it; and time passes."""
        digest = self.store.put_blob(name.encode())
        self.store.remember(pulled(digest, reference=f"registry.example/{name}:1"))
        self.clock.now += seconds
        return digest

    def has(self, *digests: str) -> list[bool]:
        return [self.store.blob(digest).exists() for digest in digests]

    def reopen(self) -> None:
        self.store = Store(self.folder, **self._arguments)


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return Small(tmp_path)


def test_what_was_used_longest_ago_makes_room(small: Small) -> None:
    a, b, c = small.put("a"), small.put("b"), small.put("c")
    assert small.store.recall("registry.example/a:1") is not None
    d = small.put("d")
    assert small.has(a, b, c, d) == [True, False, True, True]
    assert small.store.recall("registry.example/b:1") is None
    assert len(list((small.folder / "refs").iterdir())) == 3, "references die with their blobs"
    assert small.store.used_bytes == 6 * BLOCK


def test_the_order_survives_a_restart(small: Small) -> None:
    a, b, c = small.put("a"), small.put("b"), small.put("c")
    assert small.store.recall("registry.example/a:1") is not None
    small.clock.now += 100
    small.reopen()
    assert small.store.recall("registry.example/b:1") is not None
    small.clock.now += 100
    d = small.put("d")
    assert small.has(a, b, c, d) == [True, True, False, True]


def test_a_clock_that_was_set_back_keeps_nothing_for_ever(small: Small) -> None:
    a = small.put("a")
    os.utime(small.store.blob(a), (2**33, 2**33))
    small.reopen()
    small.clock.now += 100
    others = [small.put(name) for name in "bcd"]
    assert small.has(a, *others) == [False, True, True, True]


def test_what_is_in_use_or_was_a_moment_ago_or_is_held_stays(small: Small) -> None:
    a, b, c = small.put("a"), small.put("b"), small.put("c", seconds=0)
    small.in_use = [a]
    with small.store.holding(b), pytest.raises(StoreFull) as error:
        small.store.put_blob(b"d")
    assert str(error.value) == (
        f"no room for 1 bytes more: the runner keeps at most {6 * BLOCK} bytes of modules (--modules-quota-bytes), and "
        f"{6 * BLOCK} are there, too many of them in use"
    )
    assert small.has(a, b, c) == [True] * 3
    assert list((small.folder / "tmp").iterdir()) == []
    d = small.put("d")
    assert small.has(a, b, c, d) == [True, False, True, True]


def test_compiled_code_counts_and_goes_first(small: Small) -> None:
    a = small.put("a", seconds=0)
    compile(small.store, KEY, a)
    small.clock.now += 100
    b, c = small.put("b"), small.put("c")
    assert small.has(a, b, c) == [True] * 3
    assert small.store.compiled(KEY) is None
    assert not (small.folder / "compiled" / KEY).exists()
    compile(small.store, KEY, c)
    assert small.has(a, b, c) == [False, True, True]


def test_the_code_of_what_runs_stays_and_code_of_before_the_upgrade_goes(tmp_path: Path) -> None:
    small = Small(tmp_path, blocks=8)
    a = small.put("a")
    compile(small.store, KEY, a)
    compile(small.store, OTHER_KEY, a)
    small.clock.now += 100
    small.reopen()
    small.clock.now += 100
    assert small.store.compiled(KEY) is not None
    small.in_use = [a]
    small.clock.now += 100
    small.put("b")
    small.put("c")
    assert (small.store.compiled(KEY) is not None, small.store.compiled(OTHER_KEY)) == (True, None)


def test_what_was_used_since_in_use_was_asked_stays(small: Small) -> None:
    """A compiler works for minutes; meanwhile others start what `in_use` didn't name."""
    a, b = small.put("a"), small.put("b")
    with small.store.unfinished() as file:
        file.stream.write(b"x" * 3 * BLOCK)
        assert small.store.has_blob(a)
        small.clock.now += 1000
        small.store.put_compiled(KEY, file, facts("sha256:" + "9" * 64))
    assert small.has(a, b) == [True, False]


def test_the_module_that_is_compiled_stays_while_its_code_is_kept(small: Small) -> None:
    a = small.put("a")
    with pytest.raises(StoreFull):
        compile(small.store, KEY, a, b"x" * 5 * BLOCK)
    assert small.has(a) == [True]
    assert list((small.folder / "tmp").iterdir()) == []


def test_room_is_kept_for_what_is_being_fetched(small: Small) -> None:
    with small.store.unfinished(4 * BLOCK) as file:
        with pytest.raises(StoreFull), small.store.unfinished(3 * BLOCK):
            pass
        small.put("a", seconds=0)
        file.stream.write(b"x" * 3 * BLOCK)
        small.store.keep(file, "sha256:" + hashlib.sha256(b"x" * 3 * BLOCK).hexdigest())
        assert small.store.used_bytes == 6 * BLOCK
    assert small.store._reserved_bytes == 0


def test_only_the_thread_of_the_store_asks_what_is_in_use(tmp_path: Path) -> None:
    asked: list[int] = []

    def in_use() -> tuple[str, ...]:
        asked.append(threading.get_ident())
        return ()

    store = Store(tmp_path, in_use=in_use)
    store.put_blob(b"a")
    other = threading.Thread(target=lambda: store.put_blob(b"b"))
    other.start()
    other.join()
    assert asked == [threading.get_ident()]


def test_a_disk_that_others_fill_makes_modules_go(tmp_path: Path) -> None:
    free = [1 << 40]
    small = Small(tmp_path, blocks=100, free_bytes=lambda: free[0])
    a, b = small.put("a"), small.put("b")
    free[0] = 900
    c = small.put("c")
    assert small.has(a, b, c) == [False, True, True]
    small.in_use = [b, c]
    with pytest.raises(StoreFull) as error:
        small.store.put_blob(b"d" * 50)
    assert str(error.value) == (
        "no room for 50 bytes more: the runner's disk has 900 bytes free, 1000 are left to others "
        "(--modules-free-bytes), and the modules that are there are in use"
    )


def test_many_references_to_one_module_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wherry_runner.modules.store.MAX_REFERENCES", 3)
    store = Store(tmp_path)
    digest = store.put_blob(b"bytes")
    for number in range(3):
        store.remember(pulled(digest, reference=f"registry.example/x:{number}"))
    assert store.recall("registry.example/x:0") is not None
    store.remember(pulled(digest, reference="registry.example/x:3"))
    found = [store.recall(f"registry.example/x:{number}") is not None for number in range(4)]
    assert found == [True, False, True, True]
    assert len(list((tmp_path / "refs").iterdir())) == 3


def test_many_small_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wherry_runner.modules.store.MAX_ITEMS", 2)
    small = Small(tmp_path, blocks=1000)
    digests = [small.put(name) for name in "abc"]
    assert small.has(*digests) == [False, True, True]


# --- a full disk ------------------------------------------------------------------------------------------------------


class _FullStream:
    """Writes as far as the disk has room, like the real one."""

    def __init__(self, stream: Any, room: int) -> None:
        self._stream = stream
        self._room = room

    def write(self, data: bytes) -> int:
        if len(data) > self._room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._room -= len(data)
        return int(self._stream.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _FullStore(Store):
    """On a disk with room for so many bytes."""

    room = 1000

    @contextlib.contextmanager
    def unfinished(self, bytes: int = 0) -> Iterator[Unfinished]:
        with super().unfinished(bytes) as file:
            file.stream = _FullStream(file.stream, self.room)  # type: ignore[assignment]
            yield file


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A disk of its own, where root may make one."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def check_full(store: Store, mend: Callable[[], None]) -> None:
    with pytest.raises(OSError, match="No space left on device") as error:
        store.put_blob(b"x" * (1 << 20))
    assert error.value.errno == errno.ENOSPC
    assert store.used_bytes == 0
    assert store._reserved_bytes == 0
    mend()
    assert store.blob(store.put_blob(b"x" * (1 << 20))).stat().st_size == 1 << 20


def test_a_full_disk_is_an_error_that_mends(tmp_path: Path) -> None:
    full = _FullStore(tmp_path / "fake")
    check_full(full, lambda: setattr(full, "room", 1 << 30))
    if os.geteuid() == 0:
        with small_disk(tmp_path / "real", 2 << 20):
            (tmp_path / "real" / "of-others").write_bytes(b"x" * (1536 << 10))
            store = Store(tmp_path / "real" / "modules", limits=StoreLimits(free_bytes=0), free_bytes=lambda: 1 << 40)
            check_full(store, (tmp_path / "real" / "of-others").unlink)
            assert list((tmp_path / "real" / "modules" / "tmp").iterdir()) == []
