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
    version = importlib.metadata.version("ziglang")
    key = hashlib.sha256(repr((source.read_bytes(), _C_FLAGS, version)).encode()).hexdigest()
    built = _cache() / f"{name}-{key[:24]}.wasm"
    if not built.exists():
        with tempfile.TemporaryDirectory(dir=_cache()) as folder:
            output = Path(folder) / "out.wasm"
            command = [sys.executable, "-m", "ziglang", "cc", *_C_FLAGS, "-o", str(output), str(source)]
            subprocess.run(command, check=True)
            output.replace(built)
    return built.read_bytes()


def _cache() -> Path:
    root = os.environ.get("WHERRY_CACHE")
    if not root:
        root = str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wherry")
    folder = Path(root) / "guests"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
