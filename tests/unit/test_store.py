"""The store: what is under a name is complete, and no name is what a stranger chose."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from wherry_runner.modules.store import CompiledFacts, PulledModule, Store

KEY = "ab" * 32


def pulled(digest: str) -> PulledModule:
    return PulledModule(
        reference="registry.example/x:1",
        manifest_digest="sha256:" + "1" * 64,
        layer_digest=digest,
        packed_by_krustlet=False,
    )


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


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"reference": 1}', b"\xff"])
def test_a_damaged_reference_is_as_if_it_were_not_there(tmp_path: Path, damage: bytes) -> None:
    store = Store(tmp_path)
    store.remember(pulled(store.put_blob(b"bytes")))
    (file,) = (tmp_path / "refs").iterdir()
    file.write_bytes(damage)
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
    facts = CompiledFacts(kind="core", sha256="00" * 32, module_digest="sha256:" + "1" * 64)
    with store.unfinished() as file:
        file.stream.write(b"code")
        path = store.put_compiled(KEY, file, facts)
    assert store.compiled(KEY) == (path, facts)
    assert path.read_bytes() == b"code"
    (path.parent / "facts.json").unlink()  # a crash between the two files
    assert store.compiled(KEY) is None
