"""Real nodes for the tests of this folder: root and Linux only. With CI=true what can't run fails."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import fixtures, host, kind
from tests.cluster.images import base, dockerfile
from tests.cluster.kind import KindCluster
from tests.cluster.node import NodeCluster
from tests.cluster.progress import Progress
from tests.node.pods import Space

ON_KIND = os.environ.get("WHERRY_E2E_CLUSTER") == "kind"
"""`make e2e CLUSTER=kind`: for the end-to-end tests only."""

COLD_TIMEOUT_SECONDS = 1800
"""For the first test of a session, on a machine that has nothing cached: it waits for builds of minutes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let what is built at first take its time."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(COLD_TIMEOUT_SECONDS))


@pytest.fixture(scope="session")
def nodes_possible() -> None:
    """Skip where there can be no node; fail where there must be one."""
    problem = kind.why_not() if ON_KIND else host.why_not()
    if problem is None:
        return
    if os.environ.get("CI") == "true" or ON_KIND:
        pytest.fail(f"{problem}; with CI=true, and where kind was asked for, this is not skipped")
    pytest.skip(problem)


@pytest.fixture(scope="session")
def node_cluster(request: pytest.FixtureRequest, nodes_possible: None) -> Iterator[NodeCluster]:
    """A cluster with one node for the whole session; `base:1` is in its registry. Logs are kept if a test failed."""
    yield from _cluster(request, nodes=1)


@pytest.fixture(scope="module")
def two_nodes(request: pytest.FixtureRequest, nodes_possible: None) -> Iterator[NodeCluster]:
    """A cluster with two nodes for one module."""
    yield from _cluster(request, nodes=2)


@pytest.fixture(scope="module")
def images_on_two(request: pytest.FixtureRequest, two_nodes: NodeCluster) -> dict[str, str]:
    """The references of our own images, by part, in the registry of that cluster."""
    return {part: _own_image(request, two_nodes, part) for part in ("operator", "runner")}


@pytest.fixture(scope="session")
def base_image(node_cluster: NodeCluster) -> str:
    """The reference of an image with `sh` and `python3`."""
    return f"{node_cluster.registry.address}/base:1"


@pytest.fixture(scope="session")
def runner_image(request: pytest.FixtureRequest, node_cluster: NodeCluster) -> str:
    """The reference of the image of runner/Dockerfile."""
    return _own_image(request, node_cluster, "runner")


@pytest.fixture(scope="session")
def operator_image(request: pytest.FixtureRequest, node_cluster: NodeCluster) -> str:
    """The reference of the image of operator/Dockerfile."""
    return _own_image(request, node_cluster, "operator")


@pytest.fixture
def node_space(node_cluster: NodeCluster) -> Iterator[Space]:
    """A namespace on the node, with short words for what tests do there; deleted with its Pods."""
    yield from _space(node_cluster)


@pytest.fixture
def wide_space(two_nodes: NodeCluster) -> Iterator[Space]:
    """The same on two nodes."""
    yield from _space(two_nodes)


def _cluster(request: pytest.FixtureRequest, *, nodes: int) -> Iterator[NodeCluster]:
    with fixtures.shown(request.config):
        progress = Progress()
        image = base.layout(progress)
        if ON_KIND:
            cluster: NodeCluster = KindCluster(name=f"wherry-{secrets.token_hex(4)}", progress=progress)
        else:
            cluster = NodeCluster(Path(tempfile.mkdtemp(prefix="wherry-nodes-")), nodes=nodes, progress=progress)
        cluster.up()  # cleans up after itself if it fails
    failed_before = request.session.testsfailed
    try:
        cluster.push(image, "base:1")
        yield cluster
    finally:
        cluster.keep_logs = request.session.testsfailed > failed_before
        cluster.down()
        if cluster.keep_logs:
            fixtures.logs_kept(request.config, cluster.logs)


def _own_image(request: pytest.FixtureRequest, cluster: NodeCluster, name: str) -> str:
    with fixtures.shown(request.config):
        return cluster.push(dockerfile.layout(name, Progress()), f"{name}:1")


def _space(cluster: NodeCluster) -> Iterator[Space]:
    name = f"test-{secrets.token_hex(4)}"
    cluster.kubectl("create", "namespace", name)
    cluster.kubectl("wait", "--for=create", "serviceaccount/default", f"--namespace={name}", "--timeout=30s")
    yield Space(cluster, name)
    cluster.kubectl("delete", "namespace", name, "--wait=false")
