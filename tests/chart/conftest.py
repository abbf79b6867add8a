"""Helm, built as the rest of the tests' programs; and a control plane that no other test shares."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chart.helm import Helm
from tests.cluster import build, fixtures
from tests.cluster.local import LocalCluster
from tests.cluster.progress import Progress

COLD_TIMEOUT_SECONDS = 1800
"""For the first test of a session, on a machine that has nothing cached: it waits for builds of minutes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let what is built at first take its time."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(COLD_TIMEOUT_SECONDS))


@pytest.fixture(scope="session")
def helm(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Helm:
    """Helm without a cluster."""
    with fixtures.shown(pytestconfig):
        return Helm(build.helm(Progress()), tmp_path_factory.mktemp("helm"))


@pytest.fixture(scope="session")
def chart_cluster(request: pytest.FixtureRequest, kubernetes_binaries: Path) -> Iterator[LocalCluster]:
    """A control plane of the chart's own: it brings the CRD and an API that nobody serves, which would be in others' way."""
    running = LocalCluster(Path(tempfile.mkdtemp(prefix="wherry-chart-")))
    running.up()  # cleans up after itself if it fails
    failed_before = request.session.testsfailed
    try:
        yield running
    finally:
        running.keep_logs = request.session.testsfailed > failed_before
        running.down()
        if running.keep_logs:
            fixtures.logs_kept(request.config, running.logs)


@pytest.fixture(scope="session")
def cluster_helm(helm: Helm, chart_cluster: LocalCluster) -> Helm:
    """Helm as that cluster's administrator."""
    return Helm(helm.program, helm.home, chart_cluster.kubeconfig)
