"""What valid WebAssembly is for, told by its imports and exports: a command, or a sentence that says what else.

Sentences follow the module's name: `"registry/x:1" is a library: …`. Only what no engine of ours could run is refused here;
what one executor doesn't give (outbound HTTP, a WASI function it lacks) it says itself when a guest is started.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

RUN_EXPORT = re.compile(r"wasi:cli/run@0\.2\.\d+(-.*)?")
"""A WASI 0.2 command's."""

_MAX_NAMES = 6
"""Exports or imports that a sentence lists."""

_FOREIGN_IMPORTS = {
    "wasi_unstable": "was built for WASI preview 0; build it anew for WASI 0.1 (wasip1) or 0.2 (wasip2)",
    "gojs": "was built by Go for browsers (GOOS=js); build it with GOOS=wasip1",
    "go": "was built by Go for browsers (GOOS=js); build it with GOOS=wasip1",
    "wbg": "was built with wasm-bindgen for JavaScript; build it for wasm32-wasip1 or wasm32-wasip2",
    "__wbindgen_placeholder__": "was built for wasm-bindgen; build it for wasm32-wasip1 or wasm32-wasip2",
}


def core(exports: Iterable[str], imports: Iterable[tuple[str, str]]) -> str:
    """What a core module is, if it isn't a WASI 0.1 command; empty if it is one."""
    exports, imports = list(exports), list(imports)
    modules = {module for module, _ in imports}
    for module, sentence in _FOREIGN_IMPORTS.items():
        if module in modules:
            return sentence
    if ("wasi", "thread-spawn") in imports:
        return "needs threads (wasi-threads), which are not provided"
    if any(
        module == "env" and name.startswith(("emscripten_", "invoke_", "__cxa_", "_abort_js"))
        for module, name in imports
    ):
        return "was built by Emscripten for JavaScript; build it for WASI, for example with the WASI SDK"
    if "_start" in exports:
        return ""
    if "_initialize" in exports:
        return (
            f"is a reactor: it has no `_start` to be run, only functions to be called ({_listed(exports)}); "
            "build it as a command"
        )
    return f"is a library: it has no `_start` to be run, and exports {_listed(exports)}"


def component(exports: Iterable[str], imports: Iterable[str]) -> str:
    """What a component is, if it isn't a WASI 0.2 command; empty if it is one."""
    exports, imports = list(exports), list(imports)
    if any(RUN_EXPORT.fullmatch(name) for name in exports):
        return ""
    if any(name.startswith("wasi:http/incoming-handler@") for name in exports):
        return "is an HTTP server (it exports wasi:http/incoming-handler), which can't be served yet; commands are run"
    if any(name.startswith(("wasi:cli/run@0.3", "wasi:http/handler@0.3")) for name in exports):
        return "was built for WASI 0.3; build it for 0.2 (wasip2)"
    if not exports:
        return "is a component without exports, so there is nothing to run"
    return (
        f"is a component of another world: it exports {_listed(exports)}, and not wasi:cli/run@0.2, by which a "
        "command is run"
    )


def _listed(names: list[str]) -> str:
    if not names:
        return "nothing"
    more = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
