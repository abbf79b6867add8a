"""How the operator performs, against the API server itself in the same run.

    make bench-operator                        every section; exits with 1 if a promise is missed
    make bench-operator ARGS='starts scale'    some of them

A control plane of its own (etcd, API server, controller manager, scheduler), the operator and its runners are processes on this
machine, as they ship: RBAC, mutual TLS, the native executor. Only `many` has runners that simulate guests.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path

from bench import operator_many, operator_pods, operator_starts
from bench.operator_scene import Scene
from bench.table import Report, given
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


ENVIRONMENT = {"GOGC": "400"}
"""Of the control plane, which is minutes old: its heap is small, and would be collected far more often than one in use."""

FLAGS = {"kube-apiserver": ("--audit-log-mode=batch", "--audit-log-batch-max-wait=1s")}
"""Nothing here reads what was just asked: no request waits for the audit log."""


def main() -> None:
    """Measure what was asked for and print the tables."""
    wanted = given(argparse.ArgumentParser(prog="python -m bench.operator"), SECTIONS)
    report = Report()
    with (
        tempfile.TemporaryDirectory(prefix="wherry-bench-") as folder,
        LocalCluster(flags=FLAGS, environment=ENVIRONMENT) as cluster,
    ):
        scene = Scene(cluster, Path(folder))
        for name in wanted.sections:
            print(f"{name}:", flush=True)
            asyncio.run(SECTIONS[name](scene, report))
    report.conclude("the control plane on the same ones")


if __name__ == "__main__":
    main()
