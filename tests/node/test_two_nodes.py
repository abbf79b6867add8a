"""Two nodes: Pods on both, Services across, and one node drained."""

from __future__ import annotations

import json
from typing import Any

from tests.cluster.node import NodeCluster
from tests.node.pods import PATIENCE, Space, pod

LABELS = {"app": "each"}


def workload(cluster: NodeCluster, kind: str, name: str, **spec: Any) -> dict[str, Any]:
    """A DaemonSet or Deployment of Pods that serve their node's name."""
    image = f"{cluster.registry.address}/base:1"
    script = 'mkdir /tmp/w && cd /tmp/w && printf %s "$NODE" > node && exec python3 -m http.server 8080'
    template = pod(name, image, ["sh", "-c", script])["spec"]
    template["containers"][0]["env"] = [{"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}]
    template["containers"][0]["readinessProbe"] = {"httpGet": {"path": "/node", "port": 8080}, "periodSeconds": 1}
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": template},
            **spec,
        },
    }


def nodes_of(space: Space, app: str) -> list[str]:
    pods = json.loads(space.kubectl("get", "pods", f"--selector=app={app}", "--output=json").stdout)["items"]
    return sorted(each["spec"]["nodeName"] for each in pods if "deletionTimestamp" not in each["metadata"])


def test_a_daemon_set_runs_on_both_and_is_reached_from_either(wide_space: Space) -> None:
    wide_space.create(
        workload(wide_space.cluster, "DaemonSet", "each"),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "each"},
            "spec": {"selector": LABELS, "ports": [{"port": 80, "targetPort": 8080}]},
        },
    )
    wide_space.kubectl("rollout", "status", "daemonset/each", f"--timeout={PATIENCE}")
    assert nodes_of(wide_space, "each") == ["node-1", "node-2"]
    pods = json.loads(wide_space.kubectl("get", "pods", "--output=json").stdout)["items"]
    # Each Pod goes through the Service until it met both: every path, within a node and across, is taken.
    script = (
        "import urllib.request as u\nmet = set()\n"
        "while len(met) < 2: met.add(u.urlopen('http://each/node', timeout=5).read().decode())\n"
        "print(sorted(met))"
    )
    for each in pods:
        assert wide_space.eventually(each["metadata"]["name"], "python3", "-c", script) == "['node-1', 'node-2']\n"


def test_a_drained_node_gives_its_pods_to_the_other(wide_space: Space) -> None:
    wide_space.create(workload(wide_space.cluster, "Deployment", "moves", replicas=2))
    wide_space.kubectl("rollout", "status", "deployment/moves", f"--timeout={PATIENCE}")
    assert nodes_of(wide_space, "moves") == ["node-1", "node-2"]
    drain = ["--ignore-daemonsets", "--delete-emptydir-data", f"--timeout={PATIENCE}"]
    wide_space.kubectl("drain", "node-2", *drain)
    try:
        wide_space.kubectl("rollout", "status", "deployment/moves", f"--timeout={PATIENCE}")
        assert nodes_of(wide_space, "moves") == ["node-1", "node-1"]
    finally:
        wide_space.kubectl("uncordon", "node-2")
