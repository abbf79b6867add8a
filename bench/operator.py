"""How the operator performs, against the API server itself in the same run.

    make bench-operator                        every section; exits with 1 if a promise is missed
    make bench-operator ARGS='starts scale'    some of them

A control plane of its own (etcd, API server, controller manager, scheduler), the operator and its runners are processes on this
machine, as they ship: RBAC, mutual TLS, the native executor. Only `many` has runners that simulate guests.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path

from bench import operator_many, operator_pods, operator_starts
from bench.operator_scene import Scene
from bench.table import Report
from tests.cluster.local import LocalCluster

SECTIONS: dict[str, Callable[[Scene, Report], Coroutine[None, None, None]]] = {
    "starts": operator_starts.starts,
    "burst": operator_starts.burst,
    "scale": operator_starts.scale,
    "pods": operator_pods.starts,
    "pods-burst": operator_pods.burst,
    "pods-log": operator_pods.log,
    "many": operator_many.measure,
}


def main() -> None:
    """Measure what was asked for and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m bench.operator")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; default: all")
    given = parser.parse_args()
    if unknown := set(given.sections) - set(SECTIONS):
        parser.error(f"there is no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    report = Report()
    with tempfile.TemporaryDirectory(prefix="wherry-bench-") as folder, LocalCluster() as cluster:
        scene = Scene(cluster, Path(folder))
        for name in given.sections or SECTIONS:
            print(f"{name}:", flush=True)
            asyncio.run(SECTIONS[name](scene, report))
    print(f"\n{os.cpu_count()} cores, Linux {platform.release()}, the control plane on the same ones\n")
    print(report.markdown())
    if report.missed:
        sys.exit("missed:\n  " + "\n  ".join(report.missed))


if __name__ == "__main__":
    main()
