"""The part of Kubernetes that gives nodes up which are not heard of, in less than its usual time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from tests.cluster.local import LocalCluster

_MANAGER = "kube-controller-manager"


@contextlib.contextmanager
def impatient(cluster: LocalCluster) -> Iterator[None]:
    """The controller-manager takes a node for lost soon after its Lease was due; inside."""
    cluster.stop_component(_MANAGER)
    # Longer than the 10 s between two renewals, or every node would be lost now and then.
    cluster.start_component(_MANAGER, "--node-monitor-grace-period=15s", "--node-monitor-period=1s")
    try:
        yield
    finally:
        cluster.stop_component(_MANAGER)
        cluster.start_component(_MANAGER)
