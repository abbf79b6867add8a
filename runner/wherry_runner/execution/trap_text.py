"""From wasmtime's error text to a message that a user can read: what happened first, then the wasm backtrace."""

from __future__ import annotations

import re

MAX_FRAMES = 12
"""A stack overflow has twenty, all alike; the status cuts a message at 1,024 characters anyway."""

_FRAME = re.compile(r"^\s*\d+:\s+0x[0-9a-f]+ - (?P<place>.+)$")
_TRAP = re.compile(r"^\s*(?:\d+: )?wasm trap: (?P<what>.+)$")
_FAULT = re.compile(r"^\s*(?:\d+: )?(?P<fault>memory fault at .+)$")


_IN_GUEST = "error while executing at wasm backtrace"


def is_trap(text: str) -> bool:
    """Whether an error's text speaks of a trap: of a component's there is no other mark (wasmtime-py: a plain error).

    A host call that the guest made with nonsense (a misaligned pointer) ends it just as a trap does, with a backtrace.
    """
    return text.startswith(_IN_GUEST) or any(_TRAP.match(line) for line in text.splitlines())


def readable(text: str) -> str:
    """E.g. ``wasm trap: wasm `unreachable` instruction executed`` and, below, `  at hello.wasm!main`.

    Text in another form than wasmtime's is returned as it is, stripped.
    """
    what = fault = cause = ""
    frames = []
    for line in text.splitlines():
        if match := _TRAP.match(line):
            what = match["what"]
        elif match := _FAULT.match(line):
            fault = match["fault"]
        elif match := _FRAME.match(line):
            frames.append(match["place"])
        elif frames and line.strip() and line.strip() != "Caused by:":
            cause = cause or line.strip()
    if what:
        lines = [f"wasm trap: {what}" + (f" ({fault})" if fault else "")]
    elif frames and cause:
        lines = [f"a host call failed: {cause}"]
    else:
        return text.strip()
    lines += [f"  at {frame}" for frame in frames[:MAX_FRAMES]]
    if len(frames) > MAX_FRAMES:
        lines.append(f"  and {len(frames) - MAX_FRAMES} more")
    return "\n".join(lines)
