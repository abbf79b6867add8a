"""What came of a compilation: the compiler's answer is checked, its end is put into words."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry_runner.execution.engine import ModuleKind
from wherry_runner.modules import answer
from wherry_runner.modules.classify import MAX_NAME_CHARACTERS, MAX_NAMES, Outline

SHA256 = "ab" * 32
GOOD: dict[str, Any] = {
    "kind": "core",
    "sha256": SHA256,
    "imports": [["wasi_snapshot_preview1", "fd_write"]],
    "exports": ["_start", "memory"],
    "exportCount": 2,
}
OUTLINE = Outline(
    kind=ModuleKind.CORE,
    imports=(("wasi_snapshot_preview1", "fd_write"),),
    exports=("_start", "memory"),
    export_count=2,
)


def parse(fields: Any) -> answer.Answer:
    return answer.parse(json.dumps(fields).encode())


def test_the_three_answers() -> None:
    assert parse(GOOD) == answer.Compiled(outline=OUTLINE, sha256=SHA256)
    assert parse({"damaged": True}) == answer.Damaged()
    assert parse({"refused": "is bad:\n  very"}) == answer.NotCompiled(text="is bad: very")
    assert parse({"refused": "is bad", **GOOD}) == answer.NotCompiled(text="is bad", outline=OUTLINE)


@pytest.mark.parametrize(
    "said",
    [
        b"", b"{", b"[]", b"null", b"\xff", b'"refused"', b"{}", b"[" * 60_000,
        *(json.dumps({**GOOD, **change}).encode() for change in (
            {"sha256": "AB" * 32}, {"sha256": "../x"}, {"sha256": 1}, {"kind": "native"}, {"kind": 1}, {"imports": [["a"]]},
            {"imports": [[1, 2]]}, {"imports": ["ab"] * 3 + [1]}, {"exports": [1]}, {"exportCount": "2"}, {"exports": None},
        )),
    ],
)  # fmt: skip
def test_what_no_compiler_says_is_not_believed(said: bytes) -> None:
    with pytest.raises(answer.Nonsense):
        answer.parse(said)


@given(st.binary(max_size=200) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*GOOD, "refused", "damaged"]), inner),
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_nothing_but_an_answer_or_nonsense_comes_of_anything(said: bytes) -> None:
    try:
        parsed = answer.parse(said)
    except answer.Nonsense:
        return
    assert isinstance(parsed, answer.Compiled | answer.NotCompiled | answer.Damaged)


def test_names_are_bounded_again() -> None:
    parsed = parse({**GOOD, "imports": [["m" * 900, "n" * 900]] * 900, "exports": ["e" * 900] * 900})
    assert isinstance(parsed, answer.Compiled)
    assert parsed.outline.imports == (("m" * MAX_NAME_CHARACTERS, "n" * MAX_NAME_CHARACTERS),) * MAX_NAMES
    assert parsed.outline.exports == ("e" * MAX_NAME_CHARACTERS,) * MAX_NAMES


@pytest.mark.parametrize(
    ("code", "complaint", "text"),
    [
        (-signal.SIGXCPU, "", "takes more than 60 s of CPU time to compile"),
        (-signal.SIGABRT, "memory allocation of 2883584 bytes failed", "needs more than 64 MiB of memory to compile"),
        (1, "Traceback …\nMemoryError", "needs more than 64 MiB of memory to compile"),
        (1, "ThreadPoolBuildError: Resource temporarily unavailable", "needs more than 64 MiB of memory to compile"),
        (-signal.SIGABRT, "thread 'main' (7) has overflowed its stack", "is nested too deeply to be compiled"),
        (-signal.SIGXFSZ, "", "becomes too much native code"),
        (1, "OSError: [Errno 27] File too large", "becomes too much native code"),
        (-signal.SIGSEGV, "", "could not be compiled: its compiler ended with signal 11: without a word"),
        (1, "thread 'main' panicked at\n  x", "could not be compiled: its compiler ended with exit code 1: thread 'main' pan"),
    ],
)  # fmt: skip
def test_a_limit_is_told(code: int, complaint: str, text: str) -> None:
    ending = answer.ending(code, complaint, memory_bytes=64 << 20, cpu_seconds=60)
    assert isinstance(ending, answer.Limit)
    assert ending.text.startswith(text)
    assert ending.lasting


def test_a_kill_from_outside_may_not_happen_again() -> None:
    ending = answer.ending(-signal.SIGKILL, "", memory_bytes=1, cpu_seconds=1)
    assert isinstance(ending, answer.Limit)
    assert (ending.lasting, "its compiler was killed" in ending.text) == (False, True)


def test_a_full_disk_is_not_the_modules_fault() -> None:
    words = "writing native code: No space left on device (os error 28)"
    assert isinstance(answer.ending(1, words, memory_bytes=1, cpu_seconds=1), answer.DiskFull)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain", "plain"),
        ("failed to parse WebAssembly module: malformed section id (at offset 0x8)", "malformed section id (at offset 0x8)"),
        ("failed to parse WebAssembly module\n\nCaused by:\n    it ends (at offset 0x9)\n", "it ends (at offset 0x9)"),
        ("failed to compile: wasm[0]::function[0]\n\nCaused by:\n  0: type mismatch", "wasm[0]::function[0]: type mismatch"),
        ("a\n\nCaused by:\n    0: b\n    1: c", "a: b: c"),
        ("expected `(`\n     --> <anon>:1:16\n      |\n    1 | (mod\n      | ^", "expected `(` (line 1, column 16)"),
        ("tab\there \x1b[31m \u2028 end", "tab here \\x1b[31m end"),
        ("x" * 600, "x" * 500 + "…"),
    ],
)  # fmt: skip
def test_wasmtimes_words_become_one_line(text: str, line: str) -> None:
    assert answer.one_line(text) == line
