"""What was asked of the API server, counted in its audit log."""

from __future__ import annotations

import json
from collections import Counter

from tests.cluster.local import LocalCluster
from tests.support.kube import Workspace


def pod_writes(cluster: LocalCluster, space: Workspace, name: str) -> Counter[str]:
    """By verb and subresource, of the virtual node about one Pod. Events are not counted: they are limited apart."""
    found: Counter[str] = Counter()
    for line in cluster.audit_log.read_text().splitlines():
        record = json.loads(line)
        reference = record.get("objectRef") or {}
        if (
            record.get("stage") == "ResponseComplete"
            and record["verb"] in ("create", "update", "patch", "delete")
            and (reference.get("resource"), reference.get("namespace")) == ("pods", space.namespace)
            and reference.get("name") == name
            and record.get("impersonatedUser", {}).get("username") == f"system:node:{space.installation.node_name}"
        ):
            found[f"{record['verb']} {reference.get('subresource', '')}".strip()] += 1
    return found
