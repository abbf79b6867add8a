"""What valid WebAssembly is for, told by its imports and exports."""

from __future__ import annotations

import pytest

from wherry_runner.execution.engine import ModuleKind
from wherry_runner.modules import classify
from wherry_runner.modules.classify import Outline

WASI_01 = ("wasi_snapshot_preview1", "fd_write")


def core(*exports: str, imports: tuple[tuple[str, str], ...] = (), count: int | None = None) -> Outline:
    return Outline(
        kind=ModuleKind.CORE,
        imports=imports,
        exports=exports,
        export_count=len(exports) if count is None else count,
    )


def component(*exports: str, imports: tuple[str, ...] = ()) -> Outline:
    return Outline(
        kind=ModuleKind.COMPONENT,
        imports=tuple((name, "") for name in imports),
        exports=exports,
        export_count=len(exports),
    )


def server(*exports: str) -> Outline:
    return Outline(kind=ModuleKind.HTTP, exports=exports, export_count=len(exports))


@pytest.mark.parametrize(
    "outline",
    [
        core("_start"),
        core("memory", "_start", "_initialize", imports=(WASI_01, ("env", "log"))),
        component("wasi:cli/run@0.2.0"),
        component("wasi:cli/run@0.2.12", "tools:hello/world"),
        component("wasi:cli/run@0.2.0-rc-2023-12-05"),
        component("wasi:cli/run@0.3.0", "wasi:cli/run@0.2.3"),
    ],
)
def test_commands(outline: Outline) -> None:
    assert classify.refusal(outline, wasi_03=False) == ""


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.3.0-rc-2026-03-15"])
def test_a_command_of_wasi_03_is_run_where_that_is_allowed(version: str) -> None:
    command = component(f"wasi:cli/run@{version}", imports=(f"wasi:cli/stdout@{version}",))
    assert classify.refusal(command, wasi_03=True) == ""
    sentence = classify.refusal(command, wasi_03=False)
    assert sentence.startswith("was built for WASI 0.3, which this runner does not run: build it for 0.2 (wasip2), or")
    assert "--wasi-0.3" in sentence
    assert classify.wants_wasi_03(command) == sentence


def test_what_wants_03_is_told_by_all_of_its_names() -> None:
    assert classify.wants_wasi_03(component("tools:x/y", imports=("wasi:clocks/monotonic-clock@0.3.0",)))
    assert not classify.wants_wasi_03(component("wasi:cli/run@0.2.3", imports=("wasi:cli/stdout@0.2.3",)))
    assert not classify.wants_wasi_03(core("wasi:cli/run@0.3.0"))


@pytest.mark.parametrize(
    ("outline", "sentence"),
    [
        (core("add"), "is a library: it has no `_start` to be run, and exports add"),
        (core(), "is a library: it has no `_start` to be run, and exports nothing"),
        (core("_initialize", "handle"), "is a reactor: it has no `_start` to be run, only functions to be called ("),
        (core("_start", imports=(("wasi_unstable", "proc_exit"),)), "was built for WASI preview 0"),
        (core("run", imports=(("gojs", "runtime.wasmExit"),)), "was built by Go for browsers"),
        (core("run", imports=(("go", "debug"),)), "was built by Go for browsers"),
        (core("main", imports=(("wbg", "__wbg_log_1"),)), "was built with wasm-bindgen for JavaScript"),
        (core("main", imports=(("__wbindgen_placeholder__", "x"),)), "was built for wasm-bindgen"),
        (core("main", imports=(("env", "emscripten_memcpy_js"),)), "was built by Emscripten"),
        (core("_start", imports=(("env", "invoke_vi"),)), "was built by Emscripten"),
        (core("_start", imports=(("wasi", "thread-spawn"),)), "needs threads (wasi-threads)"),
        (component(), "is a component without exports"),
        (server("wasi:http/handler@0.3.0-rc-2026-03-15"), "is an HTTP server of a draft of WASI 0.3 (it exports"),
        (component("wasi:http/incoming-handler@0.3.0"), "is a component of another world"),
        (component("tools:hello/world@1.0.0"), "is a component of another world: it exports tools:hello/world@1.0.0, and"),
        (component("wasi:cli/run@0.20.0"), "is a component of another world"),
    ],
)  # fmt: skip
def test_what_else_a_module_may_be(outline: Outline, sentence: str) -> None:
    assert classify.refusal(outline, wasi_03=True).startswith(sentence)


@pytest.mark.parametrize(
    ("exports", "kind"),
    [
        (["wasi:http/incoming-handler@0.2.0"], ModuleKind.HTTP),
        (["wasi:http/incoming-handler@0.2.12", "other"], ModuleKind.HTTP),
        (["wasi:http/incoming-handler@0.2.0", "wasi:cli/run@0.2.0"], ModuleKind.COMPONENT),
        (["wasi:http/incoming-handler@0.3.0"], ModuleKind.COMPONENT),
        (["wasi:http/handler@0.3.0"], ModuleKind.HTTP),
        (["wasi:http/handler@0.3.1", "wasi:cli/run@0.3.0"], ModuleKind.COMPONENT),
        (["wasi:cli/run@0.2.0"], ModuleKind.COMPONENT),
    ],
)
def test_a_server_is_told_by_what_it_exports(exports: list[str], kind: ModuleKind) -> None:
    assert classify.component_kind(exports) is kind


def test_a_server_is_not_refused() -> None:
    assert classify.refusal(server("wasi:http/incoming-handler@0.2.0"), wasi_03=False) == ""
    assert classify.refusal(server("wasi:http/handler@0.3.0"), wasi_03=True) == ""


def test_a_server_of_wasi_03_is_told_of_the_setting() -> None:
    outline = server("wasi:http/handler@0.3.0")
    assert classify.refusal(outline, wasi_03=False) == classify.wants_wasi_03(outline) != ""


def test_a_sentence_stays_short_and_printable() -> None:
    names = ["plain", "new\nline", "\x1b[31mred", "\u202eright to left", "x" * 200, "é", "seventh"]
    sentence = classify.refusal(core(*names, count=100_001), wasi_03=False)
    assert sentence == (
        "is a library: it has no `_start` to be run, and exports plain, new\\nline, \\x1b[31mred, \\u202eright to left, "
        + "x" * 80
        + "…, é and 99995 more"
    )


def test_the_well_known_names_are_named_first() -> None:
    many = [("env", f"f{index}") for index in range(1000)]
    known = [("wasi", "thread-spawn"), ("env", "invoke_vi"), ("gojs", "x"), ("wasi:cli/run@0.3.0", ""), ("", "_start")]
    named = classify.well_known_first([*many, *known])
    assert named == [*known, *many[: classify.MAX_NAMES - len(known)]]
    assert classify.well_known_first([("m" * 300, "n" * 300)]) == [("m" * 200, "n" * 200)]
