"""The operator is away for long: what Kubernetes then does to the Pods of its node, and what is left of it when it is back.

The controller-manager waits for less time here than by default, so that a minute's outage takes seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.local import LocalCluster
from tests.support import node_monitor, wat
from tests.support.installation import Installation
from tests.support.kube import TOLERATIONS, Json, Workspace, conditions, pod

SHORT = [
    {"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}
    for key in ("not-ready", "unreachable")
]


@pytest.fixture
def impatient(cluster: LocalCluster, installation: Installation, tmp_path: Path) -> Iterator[LocalCluster]:
    """The cluster, taking a node for lost soon after its Lease was due. The operator runs again at the end."""
    # Where all nodes are lost, Kubernetes takes itself for the one that is, and evicts nobody: there has to be another node.
    other = Installation(
        cluster,
        tmp_path / "other",
        node_name="wherry-other",
        class_name="other",
        namespace="wherry-other",
        runners=["runner-o"],
        serves_logs=False,
    )
    with node_monitor.impatient(cluster):
        with other:
            yield cluster
        if installation.operator is None:
            installation.start_operator()
        cluster.kubectl("delete", "node", "wherry-other")


def test_an_outage_of_the_operator_costs_only_those_pods_that_tolerate_no_longer_one(
    impatient: LocalCluster, installation: Installation, space: Workspace
) -> None:
    image = space.push(wat.sleeps("undisturbed"))
    space.pod("patient", image)
    labels = {"app": "hasty"}
    hasty = pod("x", image, node=installation.node_name)["spec"]
    hasty |= {"tolerations": [*TOLERATIONS, *SHORT], "terminationGracePeriodSeconds": 1}
    spec = {
        "replicas": 1,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": hasty},
    }
    space.apply({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "hasty"}, "spec": spec})
    space.kubectl("rollout", "status", "deployment/hasty", "--timeout=60s")
    space.kubectl("wait", "--for=condition=Ready", "pod/patient", "--timeout=60s")
    before = space.container("patient")
    (first,) = _pods(space, "app=hasty")

    installation.kill_operator()
    node = installation.node_name

    def node_ready() -> str:
        return str(conditions(impatient.get("node", node) or {})["Ready"]["status"])

    space.wait(lambda: node_ready() == "Unknown", "the node is given up", timeout=120)
    space.wait(lambda: _ready(space, "patient") == "False", "its Pods count as not Ready")

    def leaving() -> bool:
        return bool((space.get("pod", first["metadata"]["name"]) or {})["metadata"].get("deletionTimestamp"))

    space.wait(leaving, "what tolerates it for a second is to go")
    space.wait(
        lambda: len(_pods(space, "app=hasty")) == 2, "another is made; the old one stays until somebody has seen it end"
    )
    assert all(runner.process is not None for runner in installation.runners.values())

    installation.start_operator()
    space.kubectl("wait", "--for=condition=Ready", "pod/patient", "--timeout=60s")
    after = space.container("patient")
    assert (after["containerID"], after["restartCount"]) == (before["containerID"], 0)
    assert space.logs("patient") == "undisturbed\n"
    space.wait(lambda: space.get("pod", first["metadata"]["name"]) is None, "its end is confirmed now")
    space.kubectl("rollout", "status", "deployment/hasty", "--timeout=60s")
    space.wait(
        lambda: not installation.runners["runner-a"].traces(first["metadata"]["uid"]), "nothing of the old one is left"
    )


def _pods(space: Workspace, selector: str) -> list[Json]:
    found: list[Json] = json.loads(space.kubectl("get", "pods", "-o", "json", "-l", selector))["items"]
    return found


def _ready(space: Workspace, name: str) -> str:
    return str(conditions(space.get("pod", name) or {}).get("Ready", {}).get("status"))
