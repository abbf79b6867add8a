"""Pods that others end: by the eviction API, for a Pod of higher priority, by a taint. Each says why, and what it says stays."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.support import wat
from tests.support.kube import TOLERATIONS, Json, Workspace, conditions, pod

HOLD = "tests.wherry.dev/hold"
"""A finalizer: the Pod stays to be looked at when it has ended."""


def held(space: Workspace, name: str, **spec: object) -> None:
    image = space.push(wat.sleeps())
    body = pod(name, image, node=space.installation.node_name, spec={"terminationGracePeriodSeconds": 1, **spec})
    body["metadata"] |= {"finalizers": [HOLD], "labels": {"app": name}}
    space.apply(body)
    space.kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=60s")


def end_of(space: Workspace, name: str) -> Json:
    """How it ended; then it may go."""
    try:
        return space.wait_phase(name, "Failed")
    finally:
        space.kubectl("patch", "pod", name, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
        space.wait(lambda: space.get("pod", name) is None, f"{name} is gone")


def evict(space: Workspace, name: str) -> str:
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": space.namespace}}
    path = f"/api/v1/namespaces/{space.namespace}/pods/{name}/eviction"
    done = space.cluster.kubectl("create", "--raw", path, "-f", "-", input=json.dumps(body), check=False)
    return done.stderr


def by_eviction(space: Workspace, name: str) -> str:
    assert evict(space, name) == ""
    return "EvictionByEvictionAPI"


def by_taint(space: Workspace, name: str) -> str:
    node = space.installation.node_name
    space.cluster.kubectl("taint", "node", node, "tests.wherry.dev/away:NoExecute")
    try:
        space.wait(lambda: (space.get("pod", name) or {})["metadata"].get("deletionTimestamp"), "it has to go")
    finally:
        space.cluster.kubectl("taint", "node", node, "tests.wherry.dev/away:NoExecute-")
    return "DeletionByTaintManager"


def _most_of_the_node(space: Workspace) -> str:
    node = space.cluster.get("node", space.installation.node_name) or {}
    text = str(node["status"]["allocatable"]["cpu"])
    return f"{(int(text[:-1]) if text.endswith('m') else int(text) * 1000) * 2 // 3}m"


@pytest.mark.parametrize("end", [by_eviction, by_taint])
def test_who_ended_it_is_written_beside_how_it_ended(space: Workspace, end: Callable[[Workspace, str], str]) -> None:
    held(space, "victim")
    reason = end(space, "victim")
    body = end_of(space, "victim")
    target = conditions(body)["DisruptionTarget"]
    assert (target["status"], target["reason"]) == ("True", reason)
    assert conditions(body)["Ready"]["reason"] == "PodFailed"
    assert body["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 137


def test_a_pod_of_higher_priority_takes_the_place_of_another(space: Workspace) -> None:
    for level, value in (("low", 1), ("high", 1000)):
        name = f"{space.namespace}-{level}"
        body = {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name}}
        space.cluster.apply({**body, "value": value})
    cpu = {"requests": {"cpu": _most_of_the_node(space)}}
    image = space.push(wat.sleeps())
    low = pod("low", image, node=space.installation.node_name, resources=cpu)
    low["spec"] |= {"priorityClassName": f"{space.namespace}-low", "terminationGracePeriodSeconds": 1}
    low["metadata"]["finalizers"] = [HOLD]
    space.apply(low)
    space.kubectl("wait", "--for=condition=Ready", "pod/low", "--timeout=60s")
    high = {"priorityClassName": f"{space.namespace}-high", "terminationGracePeriodSeconds": 0}
    space.pod("high", image, spec=high, resources=cpu)
    target = conditions(end_of(space, "low"))["DisruptionTarget"]
    assert (target["status"], target["reason"]) == ("True", "PreemptionByScheduler")
    space.kubectl("wait", "--for=condition=Ready", "pod/high", "--timeout=60s")
    space.kubectl("delete", "pod", "high")
    for level in ("low", "high"):
        space.cluster.kubectl("delete", "priorityclass", f"{space.namespace}-{level}")


def test_a_disruption_budget_is_kept(space: Workspace) -> None:
    labels = {"app": "web"}
    template = pod("x", space.push(wat.sleeps()), node=space.installation.node_name)["spec"]
    spec = {
        "replicas": 1,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {**template, "terminationGracePeriodSeconds": 1}},
    }
    space.apply({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec})
    budget = {"minAvailable": 1, "selector": {"matchLabels": labels}}
    space.apply({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "web"}, "spec": budget})
    space.kubectl("rollout", "status", "deployment/web", "--timeout=60s")

    def status() -> Json:
        found: Json = (space.get("pdb", "web") or {}).get("status", {})
        return found

    def one() -> str:
        return str(json.loads(space.kubectl("get", "pods", "-o", "json"))["items"][0]["metadata"]["name"])

    space.wait(lambda: status().get("currentHealthy") == 1, "our Ready is counted")
    assert "would violate the pod's disruption budget" in evict(space, one())
    space.kubectl("scale", "deployment/web", "--replicas=2")
    space.wait(lambda: status().get("disruptionsAllowed") == 1, "one may go now")
    assert evict(space, one()) == ""


def test_a_taint_is_tolerated_as_long_as_the_pod_says(space: Workspace) -> None:
    forever = [*TOLERATIONS, {"key": "tests.wherry.dev/away", "operator": "Exists", "effect": "NoExecute"}]
    space.pod("stays", space.push(wat.sleeps()), spec={"tolerations": forever})
    space.pod("goes", space.push(wat.sleeps()), spec={"terminationGracePeriodSeconds": 1})
    for name in ("stays", "goes"):
        space.kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=60s")
    before = space.container("stays")["containerID"]
    node = space.installation.node_name
    space.cluster.kubectl("taint", "node", node, "tests.wherry.dev/away:NoExecute")
    try:
        space.wait(lambda: space.get("pod", "goes") is None, "the other had to go")
    finally:
        space.cluster.kubectl("taint", "node", node, "tests.wherry.dev/away:NoExecute-")
    assert space.container("stays")["containerID"] == before
