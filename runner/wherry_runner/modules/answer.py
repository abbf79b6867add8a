"""What came of a compilation, read from what the compiler's process said and how it ended. Pure.

A compiler reads strangers' bytes, so its answer is believed no further than it must be: it is bounded, of the form that
`compiler.py` describes, and its texts are made fit for one line of a message.
"""

from __future__ import annotations

import json
import re
import signal
from dataclasses import dataclass

from wherry_runner.execution.engine import ModuleKind
from wherry_runner.modules import classify

MAX_BYTES = 64 << 10
"""Of an answer, and of what a compiler complains: 64 imports and 64 exports of 200 characters fit."""

_MAX_TEXT = 500
"""Characters of a refusal."""

_SHA256 = re.compile(r"[0-9a-f]{64}")
_WAT_PLACE = re.compile(r"\s*--> <anon>:(\d+):(\d+)\s")
_BOILERPLATE = re.compile(r"WebAssembly translation error: |failed to (?:parse WebAssembly module|compile): ")

_OUT_OF_MEMORY = (
    "memory allocation",  # Rust
    "MemoryError",
    "annot allocate memory",
    "ThreadPoolBuildError",  # no room for the stacks of threads: nothing else keeps them from being made
    "failed to map segment",  # nor for wasmtime itself
    "out of memory",
)
_DISK_FULL = ("No space left on device", "Disk quota exceeded")


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """It made native code of a valid module."""

    outline: classify.Outline
    sha256: str
    """Of the native code, in hexadecimal digits."""


@dataclass(frozen=True, kw_only=True)
class NotCompiled:
    """It refused the bytes."""

    text: str
    """Why, to follow the module's name."""
    outline: classify.Outline | None = None
    """As far as it could be read."""


@dataclass(frozen=True, kw_only=True)
class Damaged:
    """The bytes don't have their digest."""


@dataclass(frozen=True, kw_only=True)
class Limit:
    """It was ended by a limit, or by itself before it had an answer."""

    text: str
    """Why, to follow the module's name."""
    lasting: bool = True
    """Whether the same would happen again soon."""


@dataclass(frozen=True, kw_only=True)
class DiskFull:
    """There was no room for the native code."""

    text: str


Answer = Compiled | NotCompiled | Damaged


class Nonsense(Exception):
    """The compiler said what no compiler says."""


def parse(said: bytes) -> Answer:
    """Read the answer of a compiler that ended well. Raises Nonsense."""
    try:
        fields = json.loads(said)
        if not isinstance(fields, dict):
            raise Nonsense("it is no object")
        if fields.get("damaged") is True:
            return Damaged()
        if isinstance(text := fields.get("refused"), str):
            return NotCompiled(text=one_line(text), outline=_outline(fields) if "kind" in fields else None)
        if not _SHA256.fullmatch(fields["sha256"]):
            raise Nonsense("it has no checksum")
        return Compiled(outline=_outline(fields), sha256=fields["sha256"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Nonsense(repr(error)[:_MAX_TEXT]) from error


def _outline(fields: dict[str, object]) -> classify.Outline:
    match fields:
        case {"kind": str(kind), "imports": list(imports), "exports": list(exports), "exportCount": int(count)}:
            return classify.Outline(
                kind=ModuleKind(kind),
                imports=tuple((_name(module), _name(name)) for module, name in imports[: classify.MAX_NAMES]),
                exports=tuple(_name(name) for name in exports[: classify.MAX_NAMES]),
                export_count=count,
            )
    raise Nonsense("it lacks kind, imports or exports")


def _name(value: object) -> str:
    if not isinstance(value, str):
        raise Nonsense("a name in it is no text")
    return value[: classify.MAX_NAME_CHARACTERS]


def ending(code: int, complaint: str, *, memory_bytes: int, cpu_seconds: int) -> Limit | DiskFull:
    """What it means that a compiler ended without an answer: its exit code (negative: a signal), and its last words."""
    if code == -signal.SIGXCPU:
        return Limit(text=f"takes more than {cpu_seconds} s of CPU time to compile")
    if any(words in complaint for words in _OUT_OF_MEMORY):
        return Limit(text=f"needs more than {memory_bytes >> 20} MiB of memory to compile")
    if "has overflowed its stack" in complaint:
        return Limit(text="is nested too deeply to be compiled")
    if any(words in complaint for words in _DISK_FULL):
        return DiskFull(text="no space is left for compiled code")
    if code == -signal.SIGXFSZ or "File too large" in complaint:
        return Limit(text="becomes too much native code")
    if code == -signal.SIGKILL:
        text = "could not be compiled: its compiler was killed, perhaps because the machine ran out of memory"
        return Limit(text=text, lasting=False)
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    words = one_line(complaint[-_MAX_TEXT:]) or "without a word"
    return Limit(text=f"could not be compiled: its compiler ended with {how}: {words}")


def one_line(text: str) -> str:
    """wasmtime's words as one readable line: causes after colons, the place in a text module by line and column.

    >>> one_line("failed to parse WebAssembly module\\n\\nCaused by:\\n    unexpected end (at offset 0x9)")
    'unexpected end (at offset 0x9)'
    """
    if match := _WAT_PLACE.search(text):
        text = f"{text[: match.start()].rstrip()} (line {match[1]}, column {match[2]})"
    text = re.sub(r"\s*\n\s*Caused by:\s*(?:\d+: )?|\s*\n\s+\d+: ", ": ", text)
    text = " ".join(text.split())
    text = _BOILERPLATE.sub("", text)
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…"
