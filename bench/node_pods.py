"""Modules against containers on a real node, through the real scheduler: starts, a burst, memory, requests, very many.

    make bench-node                         exits with 1 if a promise is missed
    make bench-node ARGS='starts burst'     some sections
    make bench-node ARGS=--record           writes bench/node_pods.json

A cluster with one real node (`tests.cluster.node`, so root), beside its control plane. Operators and a runner are Pods on that
node, from our own images. No image is pulled and no module compiled while the clock runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import node_many, node_service
from bench.container_pods import pod as container_pod
from bench.container_pods import start
from bench.node_scene import NodeScene, wait_settled, wasm_pod
from bench.operator import ENVIRONMENT, FLAGS
from bench.table import Report, given, p50
from tests.cluster import build
from tests.cluster.errors import ClusterError
from tests.cluster.node import NodeCluster
from tests.cluster.progress import Progress

RECORD = Path(__file__).with_suffix(".json")

ROUNDS = 20
WARM_UP_ROUNDS = 3

RELIST_SECONDS = 1.0
"""So often a kubelet looks at its containers (pkg/kubelet/kubelet.go, genericPlegRelistPeriod). A bench that is in
step with it measures one moment of that second: so each start, of either kind, comes at a random one."""

USUAL = {"GOGC": "100"}
"""Of a control plane whose memory is measured: what Go has by default, and so nearly all clusters. More is memory for speed."""

LOG_QUERY = "follow=true&insecureSkipTLSVerifyBackend=true"
"""The address of the Pod that leads is not known when its certificate is made."""


def starts(scene: NodeScene, report: Report, _: argparse.Namespace) -> None:
    """Start Pods of both kinds in turns, and report what a module's takes in relation to a container's."""
    cluster, api, running, progress = scene.cluster, scene.api, scene.pods, scene.progress
    container_image, wasm_image = scene.container_image, scene.wasm_image
    idle = scene.processes()
    containers, modules = [], []
    for number in range(WARM_UP_ROUNDS + ROUNDS):
        if number in (0, WARM_UP_ROUNDS):
            progress.step(f"{ROUNDS} Pods of each kind, in turns" if number else "pulling the images, warming up")
        time.sleep(random.uniform(0, RELIST_SECONDS))
        containers.append(
            start(api, running, container_pod(f"container-{number}", container_image), log_query=LOG_QUERY)
        )
        wait_settled(cluster, idle)
        time.sleep(random.uniform(0, RELIST_SECONDS))
        modules.append(start(api, running, wasm_pod(f"module-{number}", wasm_image), log_query=LOG_QUERY))
        wait_settled(cluster, idle)
    del containers[:WARM_UP_ROUNDS], modules[:WARM_UP_ROUNDS]
    for index, (what, limit) in enumerate({"Running seen by a watch": {"at_most": 0.1}, "first log line": {}}.items()):
        ours, peer = ([taken[index] * 1e3 for taken in kind] for kind in (modules, containers))
        report.ratio(f"Pod, POST to {what}, p50", p50(ours), p50(peer), "ms", **limit)
        report.figure(f"Pod of a module, POST to {what}, slowest of {ROUNDS}", max(ours), "ms")
        report.figure(f"Pod of a container, POST to {what}, slowest of {ROUNDS}", max(peer), "ms")


Section = Callable[[NodeScene, Report, argparse.Namespace], None]

SECTIONS: dict[str, Section] = {
    "starts": starts,
    "burst": lambda scene, report, options: node_many.burst(scene, report, options.burst),
    "memory": lambda scene, report, options: node_many.memory(scene, report, options.burst, options.workloads),
    "service": lambda scene, report, _: node_service.measure(scene, report),
    "many": lambda scene, report, options: node_many.many(scene, report, options.pods, options.objects),
}


def machine() -> dict[str, Any]:
    """What it was measured on."""
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30), 1),
        "kernel": platform.release(),
        "kubernetes": build.KUBERNETES_VERSION,
    }


def _by_environment(sections: list[str]) -> list[tuple[dict[str, str], list[str]]]:
    """Which sections share a cluster, and its control plane's variables."""
    speed = [name for name in sections if name != "memory"]
    memory = [name for name in sections if name == "memory"]
    return [(environment, names) for environment, names in ((ENVIRONMENT, speed), (USUAL, memory)) if names]


def _run(names: list[str], environment: dict[str, str], report: Report, options: argparse.Namespace) -> None:
    """Some sections on a cluster of their own. Raises ClusterError."""
    progress = Progress()
    with (
        tempfile.TemporaryDirectory(prefix="wherry-bench-") as folder,
        NodeCluster(Path(folder) / "cluster", progress=progress, flags=FLAGS, environment=environment) as cluster,
    ):
        scene = NodeScene.make(cluster, Path(folder), progress)
        report.figure("node Ready after the Pods of Wherry's own", scene.ready_after(), "s", at_most=30)
        for name in names:
            progress.step(f"section {name}")
            SECTIONS[name](scene, report, options)


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(prog="python -m bench.node_pods", description=(__doc__ or "").split("\n")[0])
    sizes = {"burst": 50, "workloads": 1_000, "pods": 1_000, "objects": 5_000}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help="default: %(default)s")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name}")
    options = given(parser, SECTIONS)
    report = Report()
    loads = [os.getloadavg()[0]]
    try:
        for environment, names in _by_environment(options.sections):
            _run(names, environment, report, options)
            loads.append(os.getloadavg()[0])
    except ClusterError as error:
        sys.exit(f"error: {error}")
    load = " to ".join(f"{each:.1f}" for each in loads)
    where = f"{os.cpu_count()} cores, load {load}, Linux {platform.release()}, Python {platform.python_version()}"
    print(f"\n{where}, the control plane on the same ones\n")
    print(report.markdown())
    if options.record:
        asked = {name: getattr(options, name) for name in sizes}
        made = {
            "machine": {**machine(), "load": loads},
            "sections": options.sections,
            "asked": asked,
            **report.record(),
        }
        RECORD.write_text(json.dumps(made, indent=2) + "\n")
    if report.missed:
        sys.exit("missed:\n  " + "\n  ".join(report.missed))


if __name__ == "__main__":
    main()
