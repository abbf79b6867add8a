"""Pods that come here without being for here: bound by hand, tolerating everything, or larger than anything."""

from __future__ import annotations

import pytest

from tests.support import wat
from tests.support.kube import Json, Workspace, conditions


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


def test_a_containers_image_waits_without_churn(space: Workspace) -> None:
    """As of a DaemonSet that tolerates everything: a Pod for containers, sent to a node that has none."""
    file = space.registry.directory / "layer.tar"
    file.write_bytes(b"no webassembly" * 100)
    image = space.push_file(file, types=("application/vnd.oci.image.config.v1+json", "application/vnd.oci.image.layer.v1.tar"))
    template = {
        "metadata": {"labels": {"app": "agent"}},
        "spec": {
            "tolerations": [{"operator": "Exists"}],
            "nodeSelector": {"kubernetes.io/hostname": space.installation.node_name},
            "containers": [{"name": "agent", "image": image}],
        },
    }
    space.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": {"name": "agent"},
            "spec": {"selector": {"matchLabels": {"app": "agent"}}, "template": template},
        }
    )
