"""Pods that come here without being for here: bound by hand, tolerating everything, or larger than anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cluster.local import LocalCluster
from tests.support import wat
from tests.support.audit import pod_writes
from tests.support.kube import Json, Workspace, pod


@pytest.mark.parametrize(
    ("wanted", "reason", "words"),
    [
        ({"nodeSelector": {"no": "such"}}, "NodeAffinity", "Predicate NodeAffinity failed"),
        ({}, "OutOfcpu", "Node didn't have enough resource: cpu, requested: 4000000"),
    ],
)
def test_what_was_bound_by_hand_and_does_not_belong_here_is_rejected_in_a_kubelets_words(
    space: Workspace, wanted: Json, reason: str, words: str
) -> None:
    resources = {"requests": {"cpu": "4000"}} if not wanted else {}
    spec = {"nodeName": space.installation.node_name, **wanted}
    space.pod("stray", space.push(wat.exits(0)), spec=spec, resources=resources)
    status = space.wait_phase("stray", "Failed")["status"]
    assert status["reason"] == reason and status["message"].startswith(f"Pod was rejected: {words}")
    assert "containerStatuses" not in status
    space.wait(lambda: reason in dict(space.events("stray")), "the Event")
    assert reason in space.kubectl("get", "pod", "stray")
    space.kubectl("delete", "pod", "stray", "--timeout=60s")


def test_a_containers_image_of_a_daemon_set_that_tolerates_everything_waits_without_churn(
    cluster: LocalCluster, space: Workspace, tmp_path: Path
) -> None:
    layer = tmp_path / "layer.tar"
    layer.write_bytes(b"a file system " * 100)
    types = ("application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.config.v1+json")
    template = {
        "metadata": {"labels": {"app": "agent"}},
        "spec": {
            "tolerations": [{"operator": "Exists"}],
            "nodeSelector": {"kubernetes.io/hostname": space.installation.node_name},
            "containers": [{"name": "agent", "image": space.push_file(layer, types=types)}],
        },
    }
    spec = {"selector": {"matchLabels": {"app": "agent"}}, "template": template}
    space.apply({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "agent"}, "spec": spec})

    def pods() -> list[Json]:
        found: list[Json] = json.loads(space.kubectl("get", "pods", "-o", "json"))["items"]
        return found

    def tries() -> int:
        events = json.loads(space.kubectl("get", "events", "-o", "json"))["items"]
        return sum(event.get("count") or 1 for event in events if event["message"].startswith("Failed to pull image"))

    space.wait(lambda: tries() >= 3, "it was tried several times")
    (only,) = pods()
    waiting = only["status"]["containerStatuses"][0]["state"]["waiting"]
    assert only["status"]["phase"] == "Pending" and waiting["reason"] in ("ErrImagePull", "ImagePullBackOff")
    assert "WebAssembly" in waiting["message"]
    writes = pod_writes(cluster, space, only["metadata"]["name"])
    # Taken, and for each try that it failed and that it waits; a try may have begun since.
    assert set(writes) == {"patch status"} and writes["patch status"] <= 2 + 2 * (tries() + 1)
    events = json.loads(space.kubectl("get", "events", "-o", "json"))["items"]
    assert len([event for event in events if event["involvedObject"]["kind"] == "Pod"]) <= 8, (
        "more of the same are counted"
    )


def test_a_pod_for_containers_with_what_a_module_cannot_have_stays_and_is_not_made_again(space: Workspace) -> None:
    """As kube-proxy's: a DaemonSet makes it here once, and there it waits."""
    template = {
        "metadata": {"labels": {"app": "proxy"}},
        "spec": {
            "hostNetwork": True,
            "tolerations": [{"operator": "Exists"}],
            "nodeSelector": {"kubernetes.io/hostname": space.installation.node_name},
            "containers": [{"name": "proxy", "image": "registry.example/proxy:v1"}],
        },
    }
    spec = {"selector": {"matchLabels": {"app": "proxy"}}, "template": template}
    space.apply({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "proxy"}, "spec": spec})

    def pods() -> list[Json]:
        found: list[Json] = json.loads(space.kubectl("get", "pods", "-o", "json"))["items"]
        return found

    space.wait(
        lambda: any(each["status"].get("reason") == "UnsupportedField" for each in pods()), "it is refused by name"
    )
    (only,) = pods()
    assert only["status"]["phase"] == "Pending" and "spec.hostNetwork" in only["status"]["message"]


def test_two_hundred_containers_in_one_pod(space: Workspace) -> None:
    image = space.push(wat.exits(0))
    body = pod("crowd", image, node=space.installation.node_name, spec={"restartPolicy": "Never"})
    body["spec"]["containers"] = [{"name": f"c{number}", "image": image} for number in range(200)]
    space.apply(body)
    status = space.wait_phase("crowd", "Succeeded")["status"]
    assert len(status["containerStatuses"]) == 200
    assert {each["state"]["terminated"]["exitCode"] for each in status["containerStatuses"]} == {0}
