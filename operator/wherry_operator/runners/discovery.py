"""Where runners are, by the EndpointSlices of their headless Service: kept by Kubernetes as runners' Pods come and go.

A runner's name is its node's: one runner is on each, and its name must outlive its Pod, for by it objects remember where they
were (the runner's `--name` is to be the same).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from wherry_operator.kube import Kube
from wherry_operator.models import Object
from wherry_operator.settings import RunnerAddress
from wherry_operator.watching import Watched

PORT_NAME = "api"
"""Of the Service's ports the one that is the runners' API; where there is only one, its name does not matter."""

OnDiscovered = Callable[[Iterable[RunnerAddress]], None]


class Discovery:
    """Follows the slices of one Service."""

    def __init__(self, kube: Kube, *, namespace: str, service: str, on_discovered: OnDiscovered) -> None:
        self._on_discovered = on_discovered
        self._service = service
        self._slices = Watched(
            kube,
            f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices",
            label_selector=f"kubernetes.io/service-name={service}",
            keep=endpoints,
            on_change=lambda _: self._tell(),
        )
        self.synced = self._slices.synced
        """All runners that there are have been named."""

    async def run(self) -> None:
        """Follow until cancelled."""
        await self._slices.run()

    def complaint(self) -> str:
        """For a health check."""
        trouble = self._slices.complaint()
        return f"EndpointSlices of Service {self._service}: {trouble}" if trouble else ""

    def _tell(self) -> None:
        named = [endpoint for name in sorted(self._slices.items) for endpoint in self._slices.items[name]]
        # While a runner's Pod is replaced its node may have two: the one that is not on its way out counts.
        named.sort(key=lambda endpoint: not endpoint.leaving)
        self._on_discovered({endpoint.runner.name: endpoint.runner for endpoint in named}.values())


@dataclass(frozen=True)
class Endpoint:
    """A runner, as a slice names it."""

    runner: RunnerAddress
    leaving: bool = False
    """Its Pod is on its way out."""


def endpoints(endpoint_slice: Object) -> tuple[Endpoint, ...]:
    """The runners that a `discovery.k8s.io/v1` EndpointSlice names.

    Readiness does not matter: a runner that is not ready may have guests. Whether it takes new ones it says itself.
    """
    ports = endpoint_slice.get("ports") or []
    numbers = [
        port["port"] for port in ports if port.get("port") and (port.get("name") == PORT_NAME or len(ports) == 1)
    ]
    if not numbers or endpoint_slice.get("addressType") == "FQDN":
        return ()
    found = []
    for each in endpoint_slice.get("endpoints") or []:
        node = each.get("nodeName") or ""
        name = node or (each.get("targetRef") or {}).get("name", "")
        if name and each.get("addresses"):
            address = each["addresses"][0]
            host = f"[{address}]" if ":" in address else address
            runner = RunnerAddress(name=name, url=f"https://{host}:{numbers[0]}", node=node)
            found.append(Endpoint(runner, leaving=bool((each.get("conditions") or {}).get("terminating"))))
    return tuple(found)
