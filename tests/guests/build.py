"""Builds guests from their sources, each once.

Kept by content under `${WHERRY_CACHE:-${XDG_CACHE_HOME:-~/.cache}/wherry}/guests`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent

_C_FLAGS = ("-target", "wasm32-wasi", "-O2", "-Wl,--strip-debug")
"""Without the debug information of the C library, which is 1 MB."""


def c(name: str) -> bytes:
    """The WASI 0.1 module of `tests/guests/<name>.c`. The very first build takes half a minute (it builds a C library)."""
    source = SOURCES / f"{name}.c"
    command = [sys.executable, "-m", "ziglang", "cc", *_C_FLAGS, "-o", "{output}", str(source)]
    return _built(source, command, toolchain=importlib.metadata.version("ziglang"))


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
    key = hashlib.sha256(repr((source.read_bytes(), flags, toolchain)).encode()).hexdigest()
    built = _cache() / f"{source.stem}-{key[:24]}.wasm"
    if not built.exists():
        with tempfile.TemporaryDirectory(dir=_cache()) as temporary:
            output = Path(temporary) / "out.wasm"
            words = [word.replace("{output}", str(output)) for word in command]
            subprocess.run(words, check=True, env={**os.environ, **(env or {})}, cwd=folder)
            output.replace(built)
    return built.read_bytes()


def _cache() -> Path:
    root = os.environ.get("WHERRY_CACHE")
    if not root:
        root = str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wherry")
    folder = Path(root) / "guests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
