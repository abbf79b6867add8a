"""Where the native executor is found, and what it must say to be taken for one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from wherry_runner.execution.engine import EngineLost, Variant
from wherry_runner.execution.native import NativeEngine, find_native, version
from wherry_runner.logs.allowances import Allowances


def programs(folder: Path, *, says: str = "native/wasmtime-48.0.8", code: int = 0) -> Path:
    """A folder with two programs of the right names."""
    folder.mkdir()
    for name in ("wherry-executor", "wherry-compiler"):
        (folder / name).write_text(f"#!/bin/sh\necho '{says}'\nexit {code}\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def allowances() -> Iterator[Allowances]:
    table = Allowances(slots=2, default_bytes=1)
    yield table
    table.close()


def test_the_first_folder_with_both_programs_is_taken(tmp_path: Path) -> None:
    first, second, half, other = (tmp_path / name for name in ("first", "second", "half", "other"))
    programs(first)
    programs(second)
    (programs(half) / "wherry-compiler").unlink()
    (programs(other) / "wherry-executor").chmod(0o644)
    assert find_native([tmp_path / "gone", half, other, first, second]) == first
    assert find_native([half, other]) is None
    assert find_native([]) is None


def test_its_name_is_part_of_the_compile_cache_and_its_programs_are_called_by_path(
    tmp_path: Path, allowances: Allowances
) -> None:
    folder = programs(tmp_path / "bin")
    engine = NativeEngine(folder, allowances=allowances)
    assert engine.name == "native/wasmtime-48.0.8"
    assert engine.compiler(Variant.FUEL) == (str(folder / "wherry-compiler"),)
    assert NativeEngine(folder, allowances=allowances, wasi_03=True).name == "native/wasmtime-48.0.8+wasi-0.3"
    assert (engine.executor_pid, engine.features, engine.complaint()) == (None, frozenset(), "")


@pytest.mark.parametrize(
    ("says", "code"), [("hello", 0), ("", 0), ("native/wasmtime-48.0.8", 1), ("native/wasmtime-48.0.8 and more", 0)]
)
def test_what_says_something_else_is_no_executor(tmp_path: Path, says: str, code: int) -> None:
    with pytest.raises(EngineLost, match="is no native executor"):
        version(programs(tmp_path / "bin", says=says, code=code))


def test_what_can_not_be_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(EngineLost, match="can't be run"):
        version(tmp_path)
