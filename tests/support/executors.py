"""The executors that tests run on: the python one always, the native one where it was built."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

from wherry_runner.execution.adapter import ExecutorEngine
from wherry_runner.execution.engine import EngineLost
from wherry_runner.execution.native import NativeEngine, find_native, version
from wherry_runner.execution.python import PythonEngine
from wherry_runner.logs.allowances import Allowances

EXECUTORS = ("python", "native")

_BUILT = Path(__file__).parents[2] / "runner" / "executor" / "bin"
"""Where `make executor` puts the native programs."""


def native_directory() -> Path | None:
    """The folder of the native programs; None where there are none."""
    given = os.environ.get("WHERRY_EXECUTOR_DIRECTORY")
    return find_native([Path(given)] if given else [_BUILT])


def why_not(executor: str) -> str:
    """Why tests can't run on an executor; empty if they can."""
    if executor == "native" and native_directory() is None:
        return "the native executor was not built; `make executor` does it, with cargo"
    return ""


def engine(executor: str, allowances: Allowances, *, wasi_03: bool = False) -> ExecutorEngine:
    """An engine on one of the executors; `wasi_03`: the native one, set to run WASI 0.3 too."""
    if executor == "python":
        return PythonEngine(allowances=allowances)
    directory = native_directory()
    assert directory is not None
    return NativeEngine(directory, allowances=allowances, wasi_03=wasi_03)


def runner_flags() -> list[str]:
    """What makes a runner's process use the native executor, if there is one."""
    return flags("python" if native_directory() is None else "native")


def flags(executor: str) -> list[str]:
    """What makes a runner's process use an executor."""
    return ["--executor", "python"] if executor == "python" else ["--executor-directory", str(native_directory())]


def summary() -> str:
    """Which executors tests run on here, for the end of a test run."""
    directory = native_directory()
    if directory is None:
        native = f"NOT RUN ({why_not('native')})"
    else:
        try:
            native = f"run (wasmtime {version(directory).rpartition('-')[2]})"
        except EngineLost as error:
            native = f"NOT RUN ({error})"
    return f"executors: python: run (wasmtime-py {importlib.metadata.version('wasmtime')}) · native: {native}"
