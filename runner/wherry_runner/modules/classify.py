"""What valid WebAssembly is for, told by its imports and exports: a command, a server, or a sentence that says what else. Pure.

Sentences follow the module's name: `"registry/x:1" is a library: …`. Only what no engine of ours could run is refused here;
what one executor doesn't give (outbound HTTP, a WASI function it lacks) it says itself when a guest is started.

The names come from a stranger's module: in a sentence they are cut, and what can't be printed is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from wherry_runner.execution.engine import ModuleKind

MAX_NAMES = 64
"""Imports, and exports, that a compiler names: the well-known ones first (`well_known_first`)."""

MAX_NAME_CHARACTERS = 200
"""As much as it tells of each."""

_RUN_02 = re.compile(r"wasi:cli/run@0\.2\.\d+(-.*)?")
_RUN_03 = re.compile(r"wasi:cli/run@0\.3\.\d+(-.*)?")
_SERVES_02 = re.compile(r"wasi:http/incoming-handler@0\.2\.\d+(-.*)?")
_SERVES_03 = re.compile(r"wasi:http/handler@0\.3\.\d+(?P<draft>-.*)?")
_WASI_03 = re.compile(r"wasi:[a-z-]+/[a-z-]+@0\.3\.")

_LISTED = 6
"""Exports or imports that a sentence lists."""

_LISTED_CHARACTERS = 80
"""As much as it shows of each."""

_FOREIGN_IMPORTS = {
    "wasi_unstable": "was built for WASI preview 0; build it anew for WASI 0.1 (wasip1) or 0.2 (wasip2)",
    "gojs": "was built by Go for browsers (GOOS=js); build it with GOOS=wasip1",
    "go": "was built by Go for browsers (GOOS=js); build it with GOOS=wasip1",
    "wbg": "was built with wasm-bindgen for JavaScript; build it for wasm32-wasip1 or wasm32-wasip2",
    "__wbindgen_placeholder__": "was built for wasm-bindgen; build it for wasm32-wasip1 or wasm32-wasip2",
}

_EMSCRIPTEN = ("emscripten_", "invoke_", "__cxa_", "_abort_js")


@dataclass(frozen=True, kw_only=True)
class Outline:
    """What a compiler tells of a module."""

    kind: ModuleKind
    imports: tuple[tuple[str, str], ...] = ()
    """(module, name), at most MAX_NAMES; of a component (name, "")."""
    exports: tuple[str, ...] = ()
    """At most MAX_NAMES."""
    export_count: int = 0
    """How many it really has."""


def component_kind(exports: Iterable[str]) -> ModuleKind:
    """What a component that exports these is: what can be run as a command is one, whatever else it exports."""
    names = list(exports)
    serves = any(_SERVES_02.fullmatch(name) or _SERVES_03.fullmatch(name) for name in names)
    runs = any(name.startswith("wasi:cli/run@") for name in names)
    return ModuleKind.HTTP if serves and not runs else ModuleKind.COMPONENT


def well_known_first(names: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The imports or exports (as ("", name)) that a compiler names: those by which a module is judged come first."""
    ordered = sorted(names, key=lambda pair: not _is_well_known(*pair))
    return [(module[:MAX_NAME_CHARACTERS], name[:MAX_NAME_CHARACTERS]) for module, name in ordered[:MAX_NAMES]]


def _is_well_known(module: str, name: str) -> bool:
    if module in _FOREIGN_IMPORTS or (module, name) == ("wasi", "thread-spawn"):
        return True
    if module.startswith("wasi:") or name.startswith("wasi:"):
        return True
    return name in ("_start", "_initialize") or (module == "env" and name.startswith(_EMSCRIPTEN))


def refusal(outline: Outline, *, wasi_03: bool) -> str:
    """What a module is, if it is neither a command nor a server that can run here; empty if it is one.

    `wasi_03`: whether the runner runs WASI 0.3.
    """
    if outline.kind is not ModuleKind.CORE:
        return _component(outline, wasi_03=wasi_03)
    return _core(outline)


def wants_wasi_03(outline: Outline) -> str:
    """The sentence for a component that was built for WASI 0.3, or empty.

    A compiler that isn't set for 0.3 finds such a component invalid: this is then what is told of it.
    """
    names = [name for name, _ in outline.imports] + list(outline.exports)
    if outline.kind is ModuleKind.CORE or not any(_WASI_03.match(name) for name in names):
        return ""
    return (
        "was built for WASI 0.3, which this runner does not run: build it for 0.2 (wasip2), or allow 0.3 with the "
        "runner's setting --wasi-0.3 (native executor)"
    )


def _core(outline: Outline) -> str:
    modules = {module for module, _ in outline.imports}
    for module, sentence in _FOREIGN_IMPORTS.items():
        if module in modules:
            return sentence
    if ("wasi", "thread-spawn") in outline.imports:
        return "needs threads (wasi-threads), which are not provided"
    if any(module == "env" and name.startswith(_EMSCRIPTEN) for module, name in outline.imports):
        return "was built by Emscripten for JavaScript; build it for WASI, for example with the WASI SDK"
    if "_start" in outline.exports:
        return ""
    exports = _listed(outline.exports, outline.export_count)
    if "_initialize" in outline.exports:
        return f"is a reactor: it has no `_start` to be run, only functions to be called ({exports}); build it as a command"
    return f"is a library: it has no `_start` to be run, and exports {exports}"


def _component(outline: Outline, *, wasi_03: bool) -> str:
    if any(_RUN_02.fullmatch(name) for name in outline.exports):
        return ""
    if any(_RUN_03.fullmatch(name) for name in outline.exports):
        return "" if wasi_03 else wants_wasi_03(outline)
    if outline.kind is ModuleKind.HTTP:
        return _server(outline, wasi_03=wasi_03)
    if not outline.exports:
        return "is a component without exports, so there is nothing to run"
    return (
        f"is a component of another world: it exports {_listed(outline.exports, outline.export_count)}, and not "
        "wasi:cli/run@0.2, by which a command is run"
    )


def _server(outline: Outline, *, wasi_03: bool) -> str:
    if any(_SERVES_02.fullmatch(name) for name in outline.exports):
        return ""
    if not wasi_03:
        return wants_wasi_03(outline)
    for name in outline.exports:
        if (serves := _SERVES_03.fullmatch(name)) and serves["draft"]:
            return f"is an HTTP server of a draft of WASI 0.3 (it exports {_shown(name)}): build it for 0.3.0 or later"
    return ""


def _listed(names: Sequence[str], count: int) -> str:
    if not names:
        return "nothing"
    more = max(count, len(names)) - _LISTED
    return ", ".join(map(_shown, names[:_LISTED])) + (f" and {more} more" if more > 0 else "")


def _shown(name: str) -> str:
    printable = name if name.isprintable() else repr(name)[1:-1]
    return printable if len(printable) <= _LISTED_CHARACTERS else printable[:_LISTED_CHARACTERS] + "…"
