"""The compiler's process: `python -m wherry_runner.modules.compiler PARENT MEMORY CPU_SECONDS DIGEST OUTPUT_FD`.

A process of its own, because a compiler reads strangers' bytes and may need any amount of memory and time. It takes
WebAssembly (binary or text) on standard input, writes native code to OUTPUT_FD, and says on standard output what came
of it, one JSON object:

    {"kind": "core"|"component", "sha256": "<of the native code>"}
    {"refused": "<what it is instead, to follow its name>"}
    {"damaged": true}                      the input doesn't have the digest that it should have

It ends with exit code 0 after each of these. Anything else is a crash or a limit, which `compile.py` puts into words.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
from typing import Any

from wherry_runner.execution import process
from wherry_runner.modules import classify, sniff

MAX_OUTPUT_BYTES = 2 << 30
"""Native code is two to four times the size of a large module; this only stops what runs away."""


def main(arguments: list[str]) -> None:
    """Compile once."""
    parent_pid, memory_bytes, cpu_seconds, digest, output = arguments
    process.die_with_parent(int(parent_pid))
    process.forbid_core_dumps()
    process.forbid_new_privileges()
    # Not RLIMIT_AS: an engine reserves address space that it never uses.
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory_bytes), int(memory_bytes)))
    resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_seconds), int(cpu_seconds)))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_OUTPUT_BYTES, MAX_OUTPUT_BYTES))
    data = sys.stdin.buffer.read()
    if "sha256:" + hashlib.sha256(data).hexdigest() != digest:
        answer: dict[str, Any] = {"damaged": True}
    else:
        answer = compile_module(data, int(output))
    json.dump(answer, sys.stdout)


def compile_module(data: bytes, output: int) -> dict[str, Any]:
    """Compile one module to a descriptor; the answer that is printed."""
    import wasmtime
    from wasmtime import component

    from wherry_runner.execution.wasmtime_config import guest_engine

    try:
        if sniff.sniff(data[: sniff.HEAD_BYTES]) is sniff.Form.TEXT:
            data = bytes(wasmtime.wat2wasm(data))
        engine = guest_engine(parallel=True)
        form = sniff.sniff(data[: sniff.HEAD_BYTES])
        if form is sniff.Form.COMPONENT:
            compiled = component.Component(engine, data)
            kind = "component"
            refusal = classify.component(compiled.type.exports(engine), compiled.type.imports(engine))
            code = compiled.serialize() if not refusal else b""
        else:
            module = wasmtime.Module(engine, data)
            kind = "core"
            imports = [(item.module, item.name or "") for item in module.imports]
            refusal = classify.core([item.name for item in module.exports], imports)
            code = module.serialize() if not refusal else b""
    except (wasmtime.WasmtimeError, UnicodeDecodeError) as error:
        return {"refused": f"is not valid WebAssembly: {error}"}
    if refusal:
        return {"refused": refusal}
    with open(output, "wb", closefd=False) as file:
        file.write(code)
    return {"kind": kind, "sha256": hashlib.sha256(code).hexdigest()}


if __name__ == "__main__":
    main(sys.argv[1:])
