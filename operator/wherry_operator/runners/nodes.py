"""The cluster's nodes, for placing: their labels, taints and cordons, followed."""

from __future__ import annotations

from collections.abc import Callable

from wherry_operator.kube import Kube
from wherry_operator.placement import NodeFacts
from wherry_operator.watching import Watched


class ClusterNodes:
    """All of them, by name. `on_change` is called with the names of those about which something that counts has changed."""

    def __init__(self, kube: Kube, *, on_change: Callable[[set[str]], None]) -> None:
        self._nodes = Watched(kube, "/api/v1/nodes", keep=NodeFacts.of, on_change=on_change)
        self.synced = self._nodes.synced

    async def run(self) -> None:
        """Follow until cancelled."""
        await self._nodes.run()

    def complaint(self) -> str:
        """For a health check."""
        trouble = self._nodes.complaint()
        return f"Nodes: {trouble}" if trouble else ""

    def facts(self, name: str) -> NodeFacts:
        """Those of one node."""
        return self._nodes.items.get(name) or NodeFacts.unknown(name)
