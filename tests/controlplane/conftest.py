"""Operator and runners beside a real control plane, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.local import LocalCluster
from tests.cluster.registry import Registry
from tests.support.installation import Installation, folder_of
from tests.support.kube import Workspace

MIRRORED = "registry.example"
"""The registry's name in manifests; the runners are given a mirror for it."""


@pytest.fixture(scope="session")
def installation(request: pytest.FixtureRequest, cluster: LocalCluster, registry: Registry) -> Iterator[Installation]:
    """Operator and one runner."""
    with (
        folder_of("installation", request.session) as directory,
        Installation(
            cluster,
            directory,
            registry_mirrors={MIRRORED: registry.url, "webassembly.azurecr.io": registry.url},
            # Restarts are waited for in these tests: the kubelet's rules, in a fifth of its time.
            runner_flags=["--back-off-initial", "2"],
            # What is waited for here comes in minutes by default: LISTs that agree, a reference that is read again.
            operator_flags=["--resync-seconds", "5", "--reference-ttl-seconds", "4"],
        ) as running,
    ):
        yield running


@pytest.fixture
def space(installation: Installation, registry: Registry, namespace: str, tmp_path: Path) -> Workspace:
    """A namespace to work in, with short words for what tests do there."""
    return Workspace(installation, registry, namespace, tmp_path)
