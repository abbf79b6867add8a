"""The python executor's compiler, a process: `python -m wherry_runner.modules.compiler PARENT_PID MEMORY_BYTES CPU_SECONDS
DIGEST OUTPUT_FD VARIANT [--wasi-0.3]`. The native one (`runner/executor/src/bin/compiler.rs`) takes and says the same.

A process of its own, because a compiler reads strangers' bytes and may need any amount of memory and time. It takes
WebAssembly (binary or text) on standard input, writes native code to OUTPUT_FD, and says on standard output what came
of it, one JSON object:

    {"kind": "core"|"component"|"http", "sha256": "<of the native code>",
     "imports": [["<module>", "<name>"], …], "exports": ["<name>", …], "exportCount": <how many it has>}
    {"refused": "<what it is instead, to follow its name>"}     with the other fields too, as far as they are known
    {"damaged": true}                      the input doesn't have the digest that it should have

At most 64 imports and exports are named, the well-known ones first (`classify.py`, which judges them); an import of a
component is `["<name>", ""]`. It ends with exit code 0 after each of these. Anything else is a crash or a limit, which
`answer.py` puts into words.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
from collections.abc import Iterable
from typing import Any

import wasmtime
from wasmtime import component

from wherry_runner.execution import landlock, process, sandbox
from wherry_runner.execution.engine import ModuleKind, Variant
from wherry_runner.execution.wasmtime_config import guest_engine
from wherry_runner.modules import classify, sniff

MAX_OUTPUT_BYTES = 2 << 30
"""Native code is two to four times the size of a large module; this only stops what runs away."""

STACK_BYTES = 8 << 20
"""Of the first thread, which grows by use and is not counted as data."""

_HEADER_BYTES = 8
"""Of any module: the magic and a version."""

_MAX_REASON = 2000
"""Characters of what wasmtime says: it quotes a text module's line, which may be any length."""


def main(arguments: list[str]) -> None:
    """Compile once."""
    # wasmtime-py takes components of WASI 0.3 as valid, so a runner is told of them with or without the flag.
    parent_pid, memory_bytes, cpu_seconds, digest, output, variant, *_ = arguments
    process.die_with_parent(int(parent_pid))
    process.forbid_core_dumps()
    # Not RLIMIT_AS: an engine reserves address space that it never uses.
    _limit(resource.RLIMIT_DATA, int(memory_bytes))
    # At the soft limit comes SIGXCPU, which tells it from a kill; at the hard one SIGKILL.
    _limit(resource.RLIMIT_CPU, int(cpu_seconds), beyond=1)
    _limit(resource.RLIMIT_FSIZE, MAX_OUTPUT_BYTES)
    _limit(resource.RLIMIT_STACK, STACK_BYTES)
    # No seccomp: wasmtime-py can't make native code without loading it, which wants executable memory.
    sandbox.Sandbox(sandbox.Confinement(no_new_privileges=True, landlock_abi=landlock.abi())).enter()
    data = sys.stdin.buffer.read()
    if "sha256:" + hashlib.sha256(data).hexdigest() != digest:
        answer: dict[str, Any] = {"damaged": True}
    else:
        answer = compile_module(data, int(output), Variant(variant))
    json.dump(answer, sys.stdout)


def _limit(which: int, value: int, *, beyond: int = 0) -> None:
    """Set a soft limit and, so much beyond, the hard one; where the runner's own is lower, that stays."""
    _, hard = resource.getrlimit(which)
    highest = value + beyond if hard == resource.RLIM_INFINITY else min(value + beyond, hard)
    resource.setrlimit(which, (min(value, highest), highest))


def compile_module(data: bytes, output: int, variant: Variant) -> dict[str, Any]:
    """Compile one module to a descriptor; the answer that is printed. Raises MemoryError, OSError."""
    try:
        if sniff.sniff(data[: sniff.HEAD_BYTES]) is sniff.Form.TEXT:
            data = bytes(wasmtime.wat2wasm(data))
        head = data[: sniff.HEAD_BYTES]
        form = sniff.sniff(head)
        if form is sniff.Form.NONE:
            return {"refused": f"is not WebAssembly: {sniff.beginning(head)}"}
        if len(head) < _HEADER_BYTES:
            return {"refused": f"is not valid WebAssembly: it ends after {len(head)} bytes"}
        if form is sniff.Form.UNKNOWN_VERSION:
            return {"refused": f"is WebAssembly of a version that this runner doesn't know ({head[4:8].hex()})"}
        engine = guest_engine(variant, parallel=True)
        compiled: wasmtime.Module | component.Component
        if form is sniff.Form.COMPONENT:
            compiled = component.Component(engine, data)
            imports = [(name, "") for name in compiled.type.imports(engine)]
            exports = list(compiled.type.exports(engine))
            kind = classify.component_kind(exports)
        else:
            compiled = wasmtime.Module(engine, data)
            kind = ModuleKind.CORE
            imports = [(item.module, item.name or "") for item in compiled.imports]
            exports = [item.name for item in compiled.exports]
        code = compiled.serialize()
    except (wasmtime.WasmtimeError, UnicodeDecodeError) as error:
        if "annot allocate memory" in str(error):
            raise MemoryError(str(error)) from error
        return {"refused": f"is not valid WebAssembly: {str(error)[:_MAX_REASON]}"}
    with open(output, "wb", closefd=False) as file:
        file.write(code)
    return {
        "kind": kind,
        "sha256": hashlib.sha256(code).hexdigest(),
        "imports": classify.well_known_first(imports),
        "exports": _named(exports),
        "exportCount": len(exports),
    }


def _named(exports: Iterable[str]) -> list[str]:
    return [name for _, name in classify.well_known_first(("", name) for name in exports)]


if __name__ == "__main__":
    main(sys.argv[1:])
