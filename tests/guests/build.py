"""Builds guests from their sources, each once.

Kept by content under `${WHERRY_CACHE:-${XDG_CACHE_HOME:-~/.cache}/wherry}/guests`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

SOURCES = Path(__file__).parent

_JCO = "@bytecodealliance/jco@1.35.0"

_COMPONENTIZE_JS = "@bytecodealliance/componentize-js@0.23.0"

_C_FLAGS = ("-target", "wasm32-wasi", "-O2", "-Wl,--strip-debug")
"""Without the debug information of the C library, which is 1 MB."""


def c(name: str) -> bytes:
    """The WASI 0.1 module of `tests/guests/<name>.c`. The very first build takes half a minute (it builds a C library)."""
    source = SOURCES / f"{name}.c"
    command = [sys.executable, "-m", "ziglang", "cc", *_C_FLAGS, "-o", "{output}", str(source)]
    return _built(source, command, toolchain=importlib.metadata.version("ziglang"))


def server_in_c(name: str) -> bytes:
    """The WASI 0.2 component of `tests/guests/<name>.c`, an HTTP server. npm brings the tool, where it is not made yet."""
    source, script = SOURCES / f"{name}.c", SOURCES / "componentize.mjs"
    flags = ("-target", "wasm32-freestanding", "-nostdlib", "-O2", "-Wl,--no-entry", "-Wl,--strip-all")
    toolchain = (importlib.metadata.version("ziglang"), _JCO, flags)
    ingredients = [each.read_bytes() for each in (source, SOURCES / "http.h", script)]

    def make(output: Path) -> None:
        folder = output.parent
        core = folder / "core.wasm"
        subprocess.run([sys.executable, "-m", "ziglang", "cc", *flags, "-o", str(core), str(source)], check=True)
        shutil.copy(script, folder)
        _npm_install(folder, _JCO)
        subprocess.run(["node", script.name, str(core), str(output)], check=True, cwd=folder)

    return _cached(name, repr((ingredients, toolchain)), make)


def javascript_in(folder: Path, name: str, *, world: str) -> bytes:
    """The component of `<folder>/<name>.js` for a world in `<folder>/wit`, 13 MB with an engine in it; made in a minute."""
    source = folder / f"{name}.js"
    tools = (_COMPONENTIZE_JS, _JCO)
    wit = "".join(path.read_text() for path in sorted(folder.rglob("*.wit")))

    def make(output: Path) -> None:
        work = output.parent
        # Beside the tool: it names the source by where it is from here, also in what the component says of errors.
        shutil.copy(source, work)
        _npm_install(work, *tools)
        command = ["node", "node_modules/.bin/componentize-js", source.name, "--wit", str(folder / "wit")]
        subprocess.run([*command, "--world-name", world, "--out", str(output)], check=True, cwd=work)

    return _cached(name, repr((source.read_bytes(), tools, wit, world)), make)


def _npm_install(folder: Path, *tools: str) -> None:
    """Have npm bring tools into a folder. None of their scripts is run."""
    (folder / "package.json").write_text('{"private": true}')
    quiet = ("--ignore-scripts", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error")
    subprocess.run(["npm", "install", *quiet, *tools], check=True, cwd=folder)


def go(name: str) -> bytes:
    """The WASI 0.1 module of `tests/guests/<name>.go`. The very first build takes half a minute (it builds a library)."""
    source = SOURCES / f"{name}.go"
    toolchain = subprocess.run(["go", "env", "GOVERSION"], check=True, stdout=subprocess.PIPE, text=True).stdout
    command = ["go", "build", "-ldflags=-s -w", "-o", "{output}", str(source)]
    return _built(source, command, toolchain=toolchain, env={"GOOS": "wasip1", "GOARCH": "wasm", "GOFLAGS": ""})


def python(name: str) -> bytes:
    """The WASI 0.2 component of `tests/guests/python/<name>.py`, 18 MB with an interpreter in it; made in ten seconds."""
    return python_in(SOURCES / "python", name, world="program")


def python_in(folder: Path, name: str, *, world: str) -> bytes:
    """The component of `<folder>/<name>.py` for a world in `<folder>/wit`."""
    program = "import componentize_py; componentize_py.script()"
    command = [sys.executable, "-c", program, "--quiet", "-d", "wit", "-w", world]
    command += ["componentize", "-p", ".", name, "-o", "{output}"]
    toolchain = importlib.metadata.version("componentize-py") + "".join(
        path.read_text() for path in sorted(folder.rglob("*.wit"))
    )
    return _built(folder / f"{name}.py", command, toolchain=toolchain, folder=folder)


def _built(
    source: Path, command: list[str], *, toolchain: str, env: dict[str, str] | None = None, folder: Path | None = None
) -> bytes:
    """What a command makes of a source at `{output}`, from the cache if it was made before."""
    flags = [word for word in command if word not in (sys.executable, str(source))]

    def make(output: Path) -> None:
        words = [word.replace("{output}", str(output)) for word in command]
        subprocess.run(words, check=True, env={**os.environ, **(env or {})}, cwd=folder)

    return _cached(source.stem, repr((source.read_bytes(), flags, toolchain)), make)


def _cached(stem: str, key: str, make: Callable[[Path], None]) -> bytes:
    """What has this key, from the cache if it was made before; `make` is told where to, in a folder that is gone afterwards."""
    built = _cache() / f"{stem}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.wasm"
    if not built.exists():
        with tempfile.TemporaryDirectory(dir=_cache()) as temporary:
            output = Path(temporary) / "out.wasm"
            make(output)
            output.replace(built)
    return built.read_bytes()


def _cache() -> Path:
    root = os.environ.get("WHERRY_CACHE")
    if not root:
        root = str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wherry")
    folder = Path(root) / "guests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
