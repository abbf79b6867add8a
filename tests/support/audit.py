"""What was asked of the API server, counted in its audit log."""

from __future__ import annotations

import json
from collections import Counter

from tests.cluster.local import LocalCluster
from tests.support.kube import Workspace


def answers(cluster: LocalCluster, space: Workspace, verb: str, resource: str, name: str) -> list[tuple[str, int]]:
    """Subresource and status code of each answer to the virtual node about one object of the namespace, in their order."""
    found = []
    for line in cluster.audit_log.read_text().splitlines():
        record = json.loads(line)
        reference = record.get("objectRef") or {}
        if (
            record.get("stage") == "ResponseComplete"
            and record["verb"] == verb
            and [reference.get(key) for key in ("resource", "namespace", "name")] == [resource, space.namespace, name]
            and record.get("impersonatedUser", {}).get("username") == f"system:node:{space.installation.node_name}"
        ):
            found.append((reference.get("subresource", ""), record["responseStatus"]["code"]))
    return found


def pod_writes(cluster: LocalCluster, space: Workspace, name: str) -> Counter[str]:
    """By verb and subresource, of the virtual node about one Pod. Events are not counted: they are limited apart."""
    return Counter(
        f"{verb} {subresource}".strip()
        for verb in ("create", "update", "patch", "delete")
        for subresource, _ in answers(cluster, space, verb, "pods", name)
    )
