"""The native executor: `runner/executor/`, two programs in one folder, where `make executor` or the image has put them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

from wherry_runner.execution.adapter import ExecutorEngine
from wherry_runner.execution.engine import EngineLost
from wherry_runner.logs.allowances import Allowances

EXECUTOR = "wherry-executor"
COMPILER = "wherry-compiler"

VERSION_SECONDS = 30.0
"""For the executor to say its version: a millisecond, and the reading of 5 MB from a disk that may be busy."""

WASI_03 = "--wasi-0.3"
"""Flag of both programs: WASI 0.3 too. The engine's code then differs, and so does its name."""

POOLING_ALLOCATOR = "--pooling-allocator"
"""Flag of the executor: servers' instances take their memory from a pool. Their code is the same."""

_NAME = re.compile(r"native/wasmtime-[0-9]+\.[0-9]+\.[0-9]+")


class NativeEngine(ExecutorEngine):
    """Implements `engine.Engine`."""

    def __init__(
        self, directory: Path, *, allowances: Allowances, wasi_03: bool = False, pooling_allocator: bool = False
    ) -> None:
        """Asks the executor in `directory` for its version. Raises EngineLost if it can't be run."""
        super().__init__(
            "native",
            name=version(directory) + ("+wasi-0.3" if wasi_03 else ""),
            program=(str(directory / EXECUTOR),),
            options=(*((WASI_03,) if wasi_03 else ()), *((POOLING_ALLOCATOR,) if pooling_allocator else ())),
            compiler=(str(directory / COMPILER),),
            allowances=allowances,
        )


def find_native(directories: Iterable[Path]) -> Path | None:
    """The first folder that holds both programs; None where there is none."""
    for directory in directories:
        if all(os.access(directory / name, os.X_OK) for name in (EXECUTOR, COMPILER)):
            return directory.absolute()
    return None


def version(directory: Path) -> str:
    """The executor's name with its version, e.g. `native/wasmtime-48.0.8`. Raises EngineLost."""
    program = directory / EXECUTOR
    try:
        done = subprocess.run(
            [str(program), "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={},
            text=True,
            errors="replace",
            timeout=VERSION_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineLost(f"the native executor can't be run: {error}") from error
    name = done.stdout.strip()
    if done.returncode != 0 or not _NAME.fullmatch(name):
        raise EngineLost(f"{program} is no native executor: asked for its version it says {name!r:.200}")
    return name
