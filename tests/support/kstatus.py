"""kstatus' verdict on an object, as Flux and `kubectl wait` users see it.

The rules for kinds that it does not know (fluxcd/cli-utils, pkg/kstatus/status: generic.go, util.go, README.md): deletion first,
then the generation, then the conditions Reconciling and Stalled, then Ready.
"""

from __future__ import annotations

from typing import Any


def verdict(body: dict[str, Any]) -> str:
    """InProgress, Current, Failed or Terminating."""
    metadata, status = body["metadata"], body.get("status") or {}
    if metadata.get("deletionTimestamp"):
        return "Terminating"
    if "observedGeneration" in status and status["observedGeneration"] != metadata.get("generation"):
        return "InProgress"
    conditions = {item["type"]: item["status"] for item in status.get("conditions") or ()}
    if conditions.get("Reconciling") == "True":
        return "InProgress"
    if conditions.get("Stalled") == "True":
        return "Failed"
    return "InProgress" if conditions.get("Ready", "True") != "True" else "Current"
