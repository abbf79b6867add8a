"""How the runner performs, against the `wasmtime` executable in the same run.

    make bench                          every section; exits with 1 if a promise is missed
    make bench ARGS='starts memory'     some of them
    make bench ARGS='--executor python' the python executor's figures (nothing is promised of them)

The runner is a process of its own with mutual TLS and confinement on, as it ships. Nothing here is shared with a test.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path

from bench import (
    runner_compute,
    runner_http,
    runner_logs,
    runner_memory,
    runner_modules,
    runner_outbound,
    runner_starts,
    wasmtime_cli,
)
from bench.scene import Scene
from bench.table import Report, given

SECTIONS: dict[str, Callable[[Scene, Report], Coroutine[None, None, None]]] = {
    "starts": runner_starts.measure,
    "compute": runner_compute.measure,
    "logs": runner_logs.measure,
    "modules": runner_modules.measure,
    "memory": runner_memory.measure,
    "http": runner_http.measure,
    "outbound": runner_outbound.measure,
}


def main() -> None:
    """Measure what was asked for and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.runner")
    parser.add_argument("--executor", choices=["native", "python"], default="native")
    wanted = given(parser, SECTIONS)
    wasmtime_cli.executable()
    report = Report()
    with tempfile.TemporaryDirectory(prefix="wherry-bench-") as folder, contextlib.ExitStack() as stack:
        scene = Scene(Path(folder), executor=wanted.executor, stack=stack)
        for name in wanted.sections:
            print(f"{name}:", flush=True)
            asyncio.run(SECTIONS[name](scene, report))
    setting = f"wasmtime {wasmtime_cli.VERSION}, executor {wanted.executor}"
    report.conclude(setting, binding=wanted.executor == "native")


if __name__ == "__main__":
    main()
