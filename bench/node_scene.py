"""What the benches on a real node share: the cluster with Wherry's operators and a runner as Pods, and its watches."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.container_pods import NAMESPACE, TIMEOUT_SECONDS, Account, Api, Running, make_namespace, mem_available
from bench.container_pods import pod as container_pod
from tests.cluster import cgroups
from tests.cluster.errors import ClusterError
from tests.cluster.images import base
from tests.cluster.node import ENVIRONMENT, NodeCluster
from tests.cluster.nodeparts import CONTAINERD_SOCKET
from tests.cluster.processes import wait_for
from tests.cluster.progress import Progress
from tests.node.installation import NAMESPACE as NAMESPACE_OF_WHERRY
from tests.node.installation import NODE_NAME, install
from tests.support import kube, wat

WORKLOADS = f"/apis/wherry.dev/v1alpha1/namespaces/{NAMESPACE}/wasmworkloads"

REMOVED_TIMEOUT_SECONDS = 300.0
"""For a kubelet's clean-up, which comes once a minute."""

MOST_WORKLOADS = 7_000
"""Of the runner: more than any section wants."""

MOST_PODS = 2_000
"""Of the virtual node, likewise."""


@dataclass(frozen=True)
class NodeScene:
    """A cluster with one real node, which also has Wherry.

    Attributes:
        empty: `taken` before Wherry was installed.
        installed: the same when it was.
    """

    cluster: NodeCluster
    api: Api
    pods: Running
    workloads: Running
    account: Account
    container_image: str
    wasm_image: str
    progress: Progress
    empty: dict[str, float] = field(default_factory=dict)
    installed: dict[str, float] = field(default_factory=dict)

    @classmethod
    def make(cls, cluster: NodeCluster, folder: Path, progress: Progress) -> NodeScene:
        """Install Wherry on a cluster, and wait until its node is there."""
        container_image = cluster.push(base.layout(progress), "base:1")
        wasm_image = push_module(cluster, wat.write(wat.sleeps("ready"), folder / "module.wasm"))
        empty = taken(Account(cluster))
        flags = (f"--insecure-registry={cluster.registry.address}", f"--max-workloads={MOST_WORKLOADS}")
        install(cluster, folder / "pki", runner_flags=flags, max_pods=MOST_PODS, progress=progress)
        cluster.kubectl("wait", "--for=condition=Ready", f"node/{NODE_NAME}", f"--timeout={TIMEOUT_SECONDS:.0f}s")
        make_namespace(cluster)
        api = Api(cluster)
        pods, workloads = Running(api), Running(api, WORKLOADS)
        account = Account(cluster)
        installed = taken(account)
        return cls(cluster, api, pods, workloads, account, container_image, wasm_image, progress, empty, installed)

    def ready_after(self) -> float:
        """Between the moment when Wherry's own Pods were Ready, and the one when its node was; in whole seconds, as Kubernetes
        notes them."""
        node = json.loads(self.cluster.kubectl("get", "node", NODE_NAME, "-o", "json").stdout)
        pods = json.loads(self.cluster.kubectl("get", "pods", "-n", NAMESPACE_OF_WHERRY, "-o", "json").stdout)["items"]
        return max(0.0, _ready_since(node) - max(map(_ready_since, pods)))

    def processes(self) -> int:
        """How many processes the node's Pods have, guests included."""
        return len(cgroups.processes(f"{self.cluster.cgroup}/node-1"))

    def idle(self) -> tuple[int, int]:
        """What there is now, for `wait_idle`: processes of the node's Pods, and containers that containerd knows."""
        return self.processes(), _containers(self.cluster)

    def wait_idle(self, idle: tuple[int, int]) -> None:
        """Wait until there is no more than that. A kubelet removes what is left of deleted Pods once a minute, which takes
        both cores for seconds: what is measured next is not to pay for it."""
        processes, containers = idle
        wait_settled(self.cluster, processes)
        if not wait_for(lambda: _containers(self.cluster) <= containers, timeout_seconds=REMOVED_TIMEOUT_SECONDS):
            raise ClusterError(f"deleted Pods' containers were not removed in {REMOVED_TIMEOUT_SECONDS:.0f} s")


def taken(account: Account) -> dict[str, float]:
    """What is taken of memory, in bytes: by the node's Pods with their shims (PSS of all processes), and of what the kernel calls
    available, counted from zero down."""
    return {"PSS": sum(account.memory().values()), "MemAvailable": -mem_available()}


def _containers(cluster: NodeCluster) -> int:
    """How many containerd has, ended ones included."""
    (machine,) = cluster.machines.values()
    ctr = ("ctr", f"--address={CONTAINERD_SOCKET}", "--namespace=k8s.io")
    return len(machine.run(*ctr, "containers", "list", "--quiet").split())


def _ready_since(body: dict[str, Any]) -> float:
    """In seconds of the clock."""
    (ready,) = (each for each in body["status"]["conditions"] if each["type"] == "Ready")
    return datetime.fromisoformat(ready["lastTransitionTime"]).timestamp()


def push_module(cluster: NodeCluster, module: Path) -> str:
    """Push a module, as users do; its name in manifests."""
    reference = f"{cluster.registry.address}/{module.stem}:1"
    push = (sys.executable, "-m", "wherry_cli", "push", "--insecure", module, reference)
    done = subprocess.run(cluster.in_network(*push), env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(f"the module could not be pushed: {done.stderr}")
    return reference


def wasm_pod(name: str, image: str, **container: Any) -> dict[str, Any]:
    """Return the Pod of a module: it does what the container's does."""
    alike = ("terminationGracePeriodSeconds", "automountServiceAccountToken")
    spec = container_pod(name, image)["spec"]
    return kube.pod(name, image, node=NODE_NAME, spec={field: spec[field] for field in alike}, **container)


def wait_settled(cluster: NodeCluster, processes: int) -> None:
    """Wait until the node's Pods have no more processes than that: a deleted Pod's may end after it is gone from the API."""
    group = f"{cluster.cgroup}/node-1"
    if not wait_for(lambda: len(cgroups.processes(group)) <= processes, timeout_seconds=TIMEOUT_SECONDS):
        raise ClusterError(f"a deleted Pod's processes did not end in {TIMEOUT_SECONDS:.0f} s")
