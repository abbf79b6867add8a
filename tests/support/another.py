"""A second installation beside the one that tests share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.installation import Installation
from tests.support.kube import MIRRORED, Workspace


@contextlib.contextmanager
def another(space: Workspace, folder: Path, name: str, *runners: str, **settings: Any) -> Iterator[Workspace]:
    """The same namespace on an installation of its own, which is gone afterwards with all that is cluster-wide."""
    made = Installation(
        space.cluster,
        folder / name,
        node_name=name,
        class_name=name,
        namespace=f"{name}-system",
        runners=runners,
        registry_mirrors={MIRRORED: space.registry.url},
        runner_flags=["--cpu-millicores", "2000", "--memory-bytes", str(512 << 20)],
        serves_logs=False,
        **settings,
    )
    try:
        with made:
            yield Workspace(made, space.registry, space.namespace, folder)
    finally:
        space.cluster.kubectl("delete", "namespace", made.namespace, "--wait=false")
        made.remove_cluster_wide()
