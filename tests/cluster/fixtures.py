"""The pytest fixtures. Loaded by `pytest_plugins = ["tests.cluster.fixtures"]` in the root conftest.

One cluster and one registry serve a whole session; what keeps tests apart is `namespace`.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster import build
from tests.cluster.local import LocalCluster
from tests.cluster.progress import Progress
from tests.cluster.provider import Cluster
from tests.cluster.registry import Registry

_KEPT_LOGS = pytest.StashKey[list[Path]]()


@pytest.fixture(scope="session")
def kubernetes_binaries(pytestconfig: pytest.Config) -> Path:
    """The folder of kubectl, kube-apiserver and so on; built, visibly, if they aren't yet."""
    with shown(pytestconfig):
        return build.kube(Progress())


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest, kubernetes_binaries: Path) -> Iterator[LocalCluster]:
    """A control plane for the whole session. Its logs are kept if a test failed."""
    directory = Path(tempfile.mkdtemp(prefix="wherry-cluster-"))
    running = LocalCluster(directory)
    running.up()  # cleans up after itself if it fails
    try:
        yield running
    finally:
        running.keep_logs = request.session.testsfailed > 0
        running.down()
        if running.keep_logs:
            logs_kept(request.config, running.logs)


@pytest.fixture(scope="session")
def registry(request: pytest.FixtureRequest) -> Iterator[Registry]:
    """An OCI registry for the whole session: plain HTTP, open to all. Its log is kept if a test failed."""
    with shown(request.config):
        build.registry(Progress())
    directory = Path(tempfile.mkdtemp(prefix="wherry-registry-"))
    running = Registry(directory)
    failed = True
    try:
        with running:
            yield running
        failed = request.session.testsfailed > 0
    finally:
        if failed:
            shutil.rmtree(directory / "storage", ignore_errors=True)
            logs_kept(request.config, running.log)
        else:
            shutil.rmtree(directory)


@pytest.fixture
def namespace(cluster: Cluster) -> Iterator[str]:
    """A fresh namespace, with its default service account; deleted afterwards, without waiting for it."""
    name = f"test-{secrets.token_hex(4)}"
    cluster.kubectl("create", "namespace", name)
    cluster.kubectl("wait", "--for=create", "serviceaccount/default", f"--namespace={name}", "--timeout=30s")
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")


def logs_kept(config: pytest.Config, logs: Path) -> None:
    """Have the session's summary say where logs were kept."""
    config.stash.setdefault(_KEPT_LOGS, []).append(logs)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say where logs were kept."""
    for path in config.stash.get(_KEPT_LOGS, []):
        terminalreporter.write_line(f"logs kept, since a test failed: {path}")


@contextlib.contextmanager
def shown(config: pytest.Config) -> Iterator[None]:
    """Let what is written inside reach the terminal: a build of minutes must not look like a hang."""
    capture = config.pluginmanager.getplugin("capturemanager")
    if capture is None:
        yield
        return
    with capture.global_and_fixture_disabled():
        yield
