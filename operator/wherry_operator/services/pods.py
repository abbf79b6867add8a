"""Pods that serve on other ports than their containers name, since those were taken on their runner.

Such a Pod has no podIP: on its runner's address its port is another's. Kubernetes' own EndpointSlices leave it out, and ours say
where each of its ports is. One whose ports are all its own has a podIP, and is none of our business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wherry_operator.models import Container, Object
from wherry_operator.resolve.container import serving_port
from wherry_operator.services.service import Service, ServicePort
from wherry_operator.services.slices import Endpoint
from wherry_runner.protocol import WorkloadStatus


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Where the containers of a Pod serve now."""

    ports: Mapping[int, int]
    """Of TCP, on its runner, by the port that the container names."""
    reached: bool
    """Whether it has any port there, of UDP too."""

    @property
    def moved(self) -> bool:
        """Whether a port is another than the one that is named."""
        return any(named != port for named, port in self.ports.items())

    @staticmethod
    def of(pod: Object, status: WorkloadStatus) -> Serving:
        """That of a Pod, by what its runner says."""
        there = {each.name: each for each in (*status.init_containers, *status.containers)}
        found: dict[int, int] = {}
        listens = False
        for each in (*(pod["spec"].get("initContainers") or ()), *pod["spec"]["containers"]):
            told = there.get(each["name"])
            if told is None:
                continue
            if told.port is not None and (named := serving_port(Container.model_validate(each))) is not None:
                found[named] = told.port
            found |= {port.named: port.port for port in told.ports if port.protocol == "TCP"}
            listens = listens or bool(told.ports)
        return Serving(ports=found, reached=bool(found) or listens)


def selects(service: Service, labels: Mapping[str, str]) -> bool:
    """Whether a Service is for a Pod with these labels."""
    return bool(service.selector) and all(labels.get(key) == value for key, value in service.selector)


def endpoint(service: Service, pod: Object, serving: Serving, *, address: str, node: str) -> Endpoint | None:
    """Where a Service has to lead for a Pod that it selects; None: nowhere of ours. By the rules of Kubernetes' own slices
    (k8s.io/endpointslice, utils.go)."""
    if not serving.moved:
        return None
    ports = tuple((each.name, port) for each in service.ports if (port := _port(each, pod, serving.ports)) is not None)
    leaving = "deletionTimestamp" in pod["metadata"]
    ready = any(
        each["type"] == "Ready" and each["status"] == "True"
        for each in (pod.get("status") or {}).get("conditions") or ()
    )
    if not ports or not (ready or service.publishes_unready):
        return None
    return Endpoint(address=address, ports=ports, node=node, leaving=leaving and not service.publishes_unready)


def _port(of: ServicePort, pod: Object, ports: Mapping[int, int]) -> int | None:
    """Where a port of a Service is with a Pod; None: the Pod does not have it."""
    if of.protocol != "TCP":
        return None
    if isinstance(of.target, int):
        return ports.get(of.target)
    for container in (*(pod["spec"].get("initContainers") or ()), *pod["spec"]["containers"]):
        for port in container.get("ports") or ():
            if port.get("name") == of.target and port.get("protocol", "TCP") == "TCP":
                return ports.get(port["containerPort"])
    return None
