"""A Pod of a module against a Pod of a container: from POST to Running, on a real node, through the real scheduler.

    make bench-node                exits with 1 if the promise is missed

A cluster with one real node (`tests.cluster.node`, so root). Operators and a runner are Pods on that node, from our own images.
Pods of either kind are started in turns, each when nothing is left of the one before. No image is pulled and no module
compiled while the clock runs.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.container_pods import TIMEOUT_SECONDS, Api, Running, make_namespace, start
from bench.container_pods import pod as container_pod
from bench.table import Report, p50
from tests.cluster import cgroups
from tests.cluster.errors import ClusterError
from tests.cluster.images import base
from tests.cluster.node import ENVIRONMENT, NodeCluster
from tests.cluster.processes import wait_for
from tests.cluster.progress import Progress
from tests.node.installation import NODE_NAME, install
from tests.support import kube, wat

ROUNDS = 20
WARM_UP_ROUNDS = 3

RELIST_SECONDS = 1.0
"""So often a kubelet looks at its containers (pkg/kubelet/kubelet.go, genericPlegRelistPeriod). A bench that is in
step with it measures one moment of that second: so each start, of either kind, comes at a random one."""

LOG_QUERY = "follow=true&insecureSkipTLSVerifyBackend=true"
"""The address of the Pod that leads is not known when its certificate is made."""


def push_module(cluster: NodeCluster, folder: Path) -> str:
    """Push the module that is measured, as users do; its name in manifests."""
    module = wat.write(wat.sleeps("ready"), folder / "module.wasm")
    reference = f"{cluster.registry.address}/module:1"
    push = (sys.executable, "-m", "wherry_cli", "push", "--insecure", module, reference)
    done = subprocess.run(cluster.in_network(*push), env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(f"the module could not be pushed: {done.stderr}")
    return reference


def wasm_pod(name: str, image: str) -> dict[str, Any]:
    """Return the Pod of a module: it does what the container's does."""
    alike = ("terminationGracePeriodSeconds", "automountServiceAccountToken")
    spec = container_pod(name, image)["spec"]
    return kube.pod(name, image, node=NODE_NAME, spec={field: spec[field] for field in alike})


def wait_settled(cluster: NodeCluster, processes: int) -> None:
    """Wait until the node's Pods have no more processes than that: a deleted Pod's may end after it is gone from the API."""
    group = f"{cluster.cgroup}/node-1"
    if not wait_for(lambda: len(cgroups.processes(group)) <= processes, timeout_seconds=TIMEOUT_SECONDS):
        raise ClusterError(f"a deleted Pod's processes did not end in {TIMEOUT_SECONDS:.0f} s")


def measure(cluster: NodeCluster, folder: Path, report: Report, progress: Progress) -> None:
    """Start Pods of both kinds in turns, and report what a module's takes in relation to a container's."""
    container_image, wasm_image = cluster.push(base.layout(progress), "base:1"), push_module(cluster, folder)
    flags = (f"--insecure-registry={cluster.registry.address}",)
    install(cluster, folder / "pki", runner_flags=flags, progress=progress)
    cluster.kubectl("wait", "--for=condition=Ready", f"node/{NODE_NAME}", f"--timeout={TIMEOUT_SECONDS:.0f}s")
    make_namespace(cluster)
    api = Api(cluster)
    running = Running(api)
    idle = len(cgroups.processes(f"{cluster.cgroup}/node-1"))
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


def main() -> None:
    """Run the bench."""
    argparse.ArgumentParser(prog="python -m bench.node_pods", description=(__doc__ or "").split("\n")[0]).parse_args()
    report, progress = Report(), Progress()
    loads = [os.getloadavg()[0]]
    try:
        with (
            tempfile.TemporaryDirectory(prefix="wherry-bench-") as folder,
            NodeCluster(Path(folder) / "cluster", progress=progress) as cluster,
        ):
            measure(cluster, Path(folder), report, progress)
            loads.append(os.getloadavg()[0])
    except ClusterError as error:
        sys.exit(f"error: {error}")
    load = " to ".join(f"{each:.1f}" for each in loads)
    print(f"\n{os.cpu_count()} cores, load {load}, Linux {platform.release()}, the control plane on the same ones\n")
    print(report.markdown())
    if report.missed:
        sys.exit("missed:\n  " + "\n  ".join(report.missed))


if __name__ == "__main__":
    main()
