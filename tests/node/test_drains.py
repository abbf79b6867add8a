"""The chart on two nodes, and requests all the while: its runners are replaced one after the other, and so are instances."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.cluster.node import NodeCluster
from tests.guests.servers import SERVER
from tests.node.load import Asking
from tests.node.pods import Space
from tests.node.pods import pod as container_pod
from tests.node.release import PULL_PATIENCE, SYSTEM, Release, installed
from tests.support.kube import workload

REQUESTS = 10_000
"""In all, at least, of which none may fail."""


@pytest.fixture(scope="module")
def release(
    two_nodes: NodeCluster, images_on_two: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Release]:
    """With more time than is needed elsewhere: both nodes, their proxies and all else share one machine."""
    values = {
        "operator": {"extraArgs": ["--unpublish-seconds=10"]},
        "runner": {"leaveSeconds": 60, "terminationGraceSeconds": 30},
    }
    with installed(two_nodes, images_on_two, tmp_path_factory.mktemp("helm"), values) as running:
        yield running


def test_of_ten_thousand_requests_none_fails_while_runners_and_instances_are_replaced(
    release: Release, wide_space: Space
) -> None:
    asks = container_pod("asks", f"{release.cluster.registry.address}/base:1", ["sleep", "3600"])
    wide_space.create(workload("web", module={"inline": SERVER}, replicas=4, http={"port": 8080}), asks)
    wide_space.wait("wasmworkload/web", "condition=Ready", "condition=ServiceReady")
    wide_space.wait("pod/asks", "condition=Ready")
    host = f"web.{wide_space.namespace}.svc"
    script = f"import urllib.request; urllib.request.urlopen('http://{host}:8080/', timeout=5).read()"
    wide_space.eventually("asks", "python3", "-c", script)
    with Asking(wide_space, "asks", (host, 8080), at_least=REQUESTS) as asking:
        release.cluster.kubectl("rollout", "restart", "daemonset/wherry-runner", "-n", SYSTEM)
        status = ["rollout", "status", "daemonset/wherry-runner", "-n", SYSTEM, f"--timeout={PULL_PATIENCE}"]
        release.cluster.kubectl(*status, timeout=320)
        wide_space.wait("wasmworkload/web", "condition=Ready")
        wide_space.kubectl("patch", "ww", "web", "--type=merge", "-p", json.dumps({"spec": {"args": ["another"]}}))
        generation = wide_space.kubectl("get", "ww", "web", "-o", "jsonpath={.metadata.generation}").stdout
        wide_space.wait("wasmworkload/web", f"jsonpath={{.status.observedGeneration}}={generation}", "condition=Ready")
        wide_space.kubectl("scale", "ww", "web", "--replicas=2")
        wide_space.wait("wasmworkload/web", "jsonpath={.status.replicas}=2")
    assert asking.failed == []
    assert asking.answered >= REQUESTS
    assert asking.kept > 0
