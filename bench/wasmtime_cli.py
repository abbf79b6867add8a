"""The peer of the runner's benches: the `wasmtime` executable of the release that the native executor is built on.

Built once by cargo, from the crates that it is published as, into Wherry's cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

VERSION = "48.0.8"

_FEATURES = (
    "run,compile,serve,cranelift,component-model,component-model-async,gc,gc-drc,gc-null,threads,stack-switching,"
    "parallel-compilation"
)


def executable() -> Path:
    """The peer, built if it isn't there yet (ten minutes on 2 cores)."""
    cache = (
        os.environ.get("WHERRY_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wherry"
    )
    root = Path(cache) / "bench" / f"wasmtime-{VERSION}"
    built = root / "bin" / "wasmtime"
    if not built.exists():
        if shutil.which("cargo") is None:
            sys.exit("error: cargo is missing; the benches' peer, the wasmtime executable, is built with it")
        print(f"building the peer, wasmtime {VERSION} (once: about ten minutes)", flush=True)
        command = ["cargo", "install", "wasmtime-cli", "--version", VERSION, "--locked", "--no-default-features"]
        subprocess.run([*command, "--features", _FEATURES, "--root", str(root)], check=True)
    return built


def compile_module(wasm: Path, output: Path) -> float:
    """`wasmtime compile`; the seconds it took."""
    began = time.perf_counter()
    subprocess.run([executable(), "compile", "-o", output, wasm], check=True)
    return time.perf_counter() - began


def serve_options(address: str, *, epochs: bool = True) -> list[str]:
    """Of `wasmtime serve`: the on-demand allocator, and what computes interrupted as ours is, unless told otherwise."""
    timeout = ["-Wtimeout=60s"] if epochs else []
    return ["serve", f"--addr={address}", *timeout, "-Opooling-allocator=n", "-Scli", "--allow-precompiled"]


class Run:
    """`wasmtime run` of a precompiled module, begun when it is made, with its output in a pipe."""

    def __init__(self, cwasm: Path, *arguments: str, output: int | None = None) -> None:
        reader, writer = os.pipe()
        target = writer if output is None else output
        program = str(executable())
        null = os.open(os.devnull, os.O_RDWR)
        self.began_ns = time.time_ns()
        self.pid = os.posix_spawn(
            program,
            [program, "run", "--allow-precompiled", str(cwasm), *arguments],
            {},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, null, 0),
                (os.POSIX_SPAWN_DUP2, target, 1),
                (os.POSIX_SPAWN_DUP2, null, 2),
            ],
        )
        for number in (writer, null):
            os.close(number)
        self._output = reader

    def first_byte(self) -> float:
        """Wait for the first byte of output; the seconds from the spawn to it."""
        if not os.read(self._output, 1):
            raise RuntimeError("wasmtime ended without a word")
        return (time.time_ns() - self.began_ns) / 1e9

    def end(self) -> float:
        """Wait for its end; the seconds from the spawn to it."""
        os.waitpid(self.pid, 0)
        os.close(self._output)
        return (time.time_ns() - self.began_ns) / 1e9

    def kill(self) -> None:
        """End it."""
        os.kill(self.pid, 9)
        self.end()
