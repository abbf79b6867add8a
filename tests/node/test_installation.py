"""A whole installation in Pods on two real nodes: runners as a DaemonSet, found by the EndpointSlices that Kubernetes keeps of
their headless Service; two operators as a Deployment. Nodes are cordoned, drained, emptied, and both are upgraded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.cluster.node import NodeCluster
from tests.cluster.processes import wait_for
from tests.cluster.progress import Progress
from tests.node.installation import HAS_RUNNER, NODE_NAME, install, rolled_out, seen
from tests.node.pods import PATIENCE, PATIENCE_SECONDS, Space
from tests.support import wat
from tests.support.kube import workload

Json = dict[str, Any]


@dataclass(frozen=True)
class Installed:
    """The installation, and a namespace of its users."""

    cluster: NodeCluster
    system: Space
    space: Space

    def service(self, name: str, replicas: int) -> None:
        """A service that is ready."""
        self.space.create(workload(name, module={"inline": wat.sleeps()}, replicas=replicas))
        self.ready(name, replicas)

    def ready(self, name: str, replicas: int) -> None:
        """Wait until so many are ready, and no other is there."""
        text = f"{replicas}/{replicas}"
        self.wait(lambda: self.status(name).get("ready") == text and self.status(name)["replicas"] == replicas, text)

    def status(self, name: str) -> Json:
        """A WasmWorkload's status."""
        body = self.cluster.get("ww", name, self.space.namespace) or {}
        found: Json = body.get("status") or {}
        return found

    def runs(self, name: str) -> dict[str, set[str]]:
        """The runs of a WasmWorkload's instances, by the node that they are on."""
        found: dict[str, set[str]] = {}
        for item in self.status(name)["instances"]:
            assert item["runner"] == item["node"], "a runner is called as its node"
            found.setdefault(item["node"], set()).add(item["containerID"])
        return found

    def counts(self, name: str) -> dict[str, int]:
        """How many of its instances each node has."""
        return {node: len(runs) for node, runs in self.runs(name).items()}

    def offers(self) -> str:
        """The CPUs of the virtual Node: the sum of what the operator's runners have."""
        return str((self.cluster.get("node", NODE_NAME) or {})["status"]["capacity"]["cpu"])

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until something is so."""
        if not wait_for(condition, timeout_seconds=PATIENCE_SECONDS):
            there = self.space.kubectl("get", "ww,events", "-o", "wide").stdout
            raise AssertionError(f"not within {PATIENCE_SECONDS:.0f} s: {what}\n{there}\n{seen(self.system)}")

    def rolled_out(self, what: str) -> None:
        """Wait until a DaemonSet or a Deployment has rolled out."""
        rolled_out(self.system, what)


@pytest.fixture(scope="module")
def system(two_nodes: NodeCluster, tmp_path_factory: pytest.TempPathFactory) -> Space:
    """The installation, as the chart will bring it."""
    return install(two_nodes, tmp_path_factory.mktemp("pki"), progress=Progress())


@pytest.fixture
def installed(system: Space, wide_space: Space) -> Iterator[Installed]:
    """The installation with a runner on each of its two nodes; they are so again at the end."""
    cluster = system.cluster
    yield Installed(cluster, system, wide_space)
    cluster.kubectl("uncordon", "node-2")
    cluster.kubectl("label", "node", "node-2", f"{HAS_RUNNER}=true", "--overwrite")
    rolled_out(system, "daemonset/runner")


def ends(status: Json) -> tuple[str, list[Json]]:
    """How a run to completion ended, and its instances."""
    return status["completedIndexes"], sorted(status["instances"], key=lambda item: item["index"])


def test_runners_are_found_by_the_slices_that_kubernetes_keeps(installed: Installed) -> None:
    found = installed.system.kubectl(
        "get", "endpointslices", "--selector=kubernetes.io/service-name=runners", "--output=json"
    )
    managers = {
        item["metadata"]["labels"]["endpointslice.kubernetes.io/managed-by"]
        for item in json.loads(found.stdout)["items"]
    }
    assert managers == {"endpointslice-controller.k8s.io"}
    installed.service("found", 4)
    assert installed.counts("found") == {"node-1": 2, "node-2": 2}


def test_a_cordoned_node_keeps_what_it_has_and_is_used_again_afterwards(installed: Installed) -> None:
    installed.service("cordoned", 2)
    before = installed.runs("cordoned")
    installed.cluster.kubectl("cordon", "node-2")
    installed.space.kubectl("scale", "ww/cordoned", "--replicas=4")
    installed.ready("cordoned", 4)
    assert installed.counts("cordoned") == {"node-1": 3, "node-2": 1}
    assert installed.runs("cordoned")["node-2"] == before["node-2"]
    installed.cluster.kubectl("uncordon", "node-2")
    installed.space.kubectl("scale", "ww/cordoned", "--replicas=6")
    installed.ready("cordoned", 6)
    assert installed.counts("cordoned") == {"node-1": 3, "node-2": 3}


def test_upgraded_runners_are_back_under_their_names_and_nothing_has_moved(installed: Installed) -> None:
    installed.service("upgraded", 4)
    once = workload("once", module={"inline": wat.exits(0)}, restartPolicy="Never", completions=3)
    installed.space.create(once)
    installed.space.wait("ww/once", "condition=Complete")
    done, before = ends(installed.status("once")), installed.runs("upgraded")
    installed.system.kubectl("set", "env", "daemonset/runner", "UPGRADED=yes")
    installed.rolled_out("daemonset/runner")

    def anew() -> bool:
        now = installed.runs("upgraded")
        return all(not now.get(node, set()) & runs for node, runs in before.items())

    installed.wait(anew, "all run again")
    installed.ready("upgraded", 4)
    assert installed.counts("upgraded") == {"node-1": 2, "node-2": 2}
    assert installed.status("upgraded")["restarts"] == 4
    assert ends(installed.status("once")) == done, "what has ended is not run again, though the runners' disks are new"


def test_upgraded_operators_leave_what_runs_alone_and_what_node_2_loses_begins_elsewhere(installed: Installed) -> None:
    """One after the other: the upgrade brings the settings by which a runner is given up soon."""
    offered = installed.offers()
    installed.service("steady", 4)
    before = installed.runs("steady")
    flag = {"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": "--runner-loss-seconds=3"}
    installed.system.kubectl("patch", "deployment/operator", "--type=json", f"--patch={json.dumps([flag])}")
    installed.rolled_out("deployment/operator")
    installed.service("after", 2)
    assert installed.runs("steady") == before
    assert installed.status("steady")["restarts"] == 0

    # Drained, then switched off for its maintenance: guests are in no Pods of the node, and stay until it is off.
    installed.cluster.kubectl(
        "drain", "node-2", "--ignore-daemonsets", "--delete-emptydir-data", f"--timeout={PATIENCE}"
    )
    installed.rolled_out("deployment/operator")
    assert installed.runs("steady") == before
    installed.cluster.kubectl("label", "node", "node-2", f"{HAS_RUNNER}-")
    installed.wait(lambda: installed.counts("steady") == {"node-1": 4}, "all are on node 1")
    installed.ready("steady", 4)
    assert before["node-1"] <= installed.runs("steady")["node-1"]

    # Back again.
    installed.cluster.kubectl("uncordon", "node-2")
    installed.cluster.kubectl("label", "node", "node-2", f"{HAS_RUNNER}=true")
    installed.rolled_out("daemonset/runner")
    installed.wait(lambda: installed.offers() == offered, "the operator has found both runners")
    installed.space.kubectl("scale", "ww/steady", "--replicas=8")
    installed.ready("steady", 8)
    assert installed.counts("steady") == {"node-1": 4, "node-2": 4}
