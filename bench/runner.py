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
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path

from bench import runner_compute, runner_logs, runner_memory, runner_modules, runner_starts, wasmtime_cli
from bench.scene import Scene
from bench.table import Report

SECTIONS: dict[str, Callable[[Scene, Report], Coroutine[None, None, None]]] = {
    "starts": runner_starts.measure,
    "compute": runner_compute.measure,
    "logs": runner_logs.measure,
    "modules": runner_modules.measure,
    "memory": runner_memory.measure,
}


def main() -> None:
    """Measure what was asked for and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.runner")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; default: all")
    parser.add_argument("--executor", choices=["native", "python"], default="native")
    given = parser.parse_args()
    if unknown := set(given.sections) - set(SECTIONS):
        parser.error(f"there is no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    wasmtime_cli.executable()
    report = Report()
    with tempfile.TemporaryDirectory(prefix="wherry-bench-") as folder, contextlib.ExitStack() as stack:
        scene = Scene(Path(folder), executor=given.executor, stack=stack)
        for name in given.sections or SECTIONS:
            print(f"{name}:", flush=True)
            asyncio.run(SECTIONS[name](scene, report))
    print(
        f"\n{os.cpu_count()} cores, Linux {platform.release()}, wasmtime {wasmtime_cli.VERSION}, executor {given.executor}\n"
    )
    print(report.markdown())
    if report.missed and given.executor == "native":
        sys.exit("missed:\n  " + "\n  ".join(report.missed))


if __name__ == "__main__":
    main()
