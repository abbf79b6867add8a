"""EndpointSlices of our own: which there should be for a Service, and what makes them so.

A slice has one list of ports for all its endpoints, and every server on a runner has another port. So there is a slice for each
list of ports, with at most a hundred endpoints, as Kubernetes' own have. Their names are made of what they hold: two who come to
the same result write the same.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import islice

from wherry_operator.models import Object
from wherry_operator.services.service import Service

SERVICE_LABEL = "kubernetes.io/service-name"
MANAGED_BY_LABEL = "endpointslice.kubernetes.io/managed-by"
HEADLESS_LABEL = "service.kubernetes.io/headless"

MAX_ENDPOINTS = 100
"""In a slice: the default of Kubernetes' own controller (--max-endpoints-per-slice)."""

Ports = tuple[tuple[str, int], ...]
"""The name of each port of the Service, and where it is."""


@dataclass(frozen=True, kw_only=True, order=True)
class Endpoint:
    """One that serves."""

    address: str
    ports: Ports
    node: str = ""
    ready: bool = True
    leaving: bool = False
    """It still serves, and is about to stop: taken only where there is no other."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """An EndpointSlice, as far as it is ours to say."""

    name: str
    address_type: str
    ports: Ports
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, kw_only=True)
class LiveSlice:
    """One of ours that is there."""

    namespace: str
    service: str
    owner_uid: str
    """Of its Service."""
    uid: str
    version: str
    slice: Slice


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What is to be done, in this order: who watches must never see fewer than there are."""

    create: tuple[Slice, ...] = ()
    update: tuple[tuple[LiveSlice, Slice], ...] = ()
    delete: tuple[LiveSlice, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.create or self.update or self.delete)


def managed_by(node_name: str) -> str:
    """Whose the slices of an installation are: a label's value, of at most 63 characters."""
    name = f"wherry-operator-{node_name}"
    return name if len(name) <= 63 else f"wherry-operator-{_digest(node_name)}"


def why_unfit(address: str) -> str:
    """Why an address can't be in an EndpointSlice (pkg/apis/core/validation, ValidateEndpointIP); empty: it can."""
    try:
        ip = ip_address(address)
    except ValueError:
        return "is no IP address"
    if ip.is_loopback or ip.is_unspecified or ip.is_link_local or ip.is_multicast:
        return "is loopback, link-local, multicast or none, which Kubernetes takes for no endpoint"
    return ""


def wanted(service_name: str, node_name: str, endpoints: Iterable[Endpoint]) -> list[Slice]:
    """The slices that these endpoints make."""
    groups: defaultdict[tuple[str, Ports], list[Endpoint]] = defaultdict(list)
    for endpoint in sorted(set(endpoints)):
        family = "IPv6" if ":" in endpoint.address else "IPv4"
        groups[family, endpoint.ports].append(endpoint)
    found = []
    for (family, ports), members in sorted(groups.items()):
        rest = iter(members)
        for number in range(-(-len(members) // MAX_ENDPOINTS)):
            name = f"{service_name}-{node_name}-{_digest(repr((family, ports, number)))}"
            some = tuple(islice(rest, MAX_ENDPOINTS))
            found.append(Slice(name=name, address_type=family, ports=ports, endpoints=some))
    return found


def changes(service: Service, wanted: Iterable[Slice], live: Mapping[str, LiveSlice]) -> Changes:
    """What makes of the slices that are there (by their names) those that are wanted."""
    create, update, names = [], [], set()
    for each in wanted:
        names.add(each.name)
        found = live.get(each.name)
        if found is None or found.owner_uid != service.uid:
            create.append(each)  # of a Service of the same name before this one: that one's slice is about to go
        elif found.slice != each:
            update.append((found, each))
    update.sort(key=lambda pair: _ready(pair[0].slice) >= _ready(pair[1]))  # first where more is ready than before
    return Changes(
        create=tuple(create),
        update=tuple(update),
        delete=tuple(found for name, found in sorted(live.items()) if name not in names),
    )


def _ready(of: Slice) -> int:
    return sum(each.ready and not each.leaving for each in of.endpoints)


def body(service: Service, of: Slice, managed_by: str) -> Object:
    """The EndpointSlice as it is created. It goes with its Service."""
    labels = {SERVICE_LABEL: service.name, MANAGED_BY_LABEL: managed_by}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": of.name,
            "namespace": service.namespace,
            "labels": {**labels, HEADLESS_LABEL: ""} if service.headless else labels,
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "Service", "name": service.name, "uid": service.uid, "controller": True}
            ],
        },
        "addressType": of.address_type,
        "ports": [{"name": name, "port": number, "protocol": "TCP"} for name, number in of.ports],
        "endpoints": [_endpoint(each) for each in of.endpoints],
    }


def change(live: LiveSlice, of: Slice) -> Object:
    """A merge patch of the one that is there, as it was read: else Conflict."""
    return {
        "metadata": {"uid": live.uid, "resourceVersion": live.version},
        "ports": [{"name": name, "port": number, "protocol": "TCP"} for name, number in of.ports],
        "endpoints": [_endpoint(each) for each in of.endpoints],
    }


def read(found: Object) -> LiveSlice:
    """What counts of a `discovery.k8s.io/v1` EndpointSlice."""
    metadata = found["metadata"]
    ports: Ports = tuple((each.get("name") or "", each.get("port") or 0) for each in found.get("ports") or ())
    owners = (each["uid"] for each in metadata.get("ownerReferences") or () if each["kind"] == "Service")
    return LiveSlice(
        namespace=metadata["namespace"],
        service=(metadata.get("labels") or {}).get(SERVICE_LABEL, ""),
        owner_uid=next(owners, ""),
        uid=metadata["uid"],
        version=metadata["resourceVersion"],
        slice=Slice(
            name=metadata["name"],
            address_type=found["addressType"],
            ports=ports,
            endpoints=tuple(_read_endpoint(each, ports) for each in found.get("endpoints") or ()),
        ),
    )


def _endpoint(of: Endpoint) -> Object:
    conditions = {"ready": of.ready and not of.leaving, "serving": of.ready, "terminating": of.leaving}
    return {"addresses": [of.address], "conditions": conditions, **({"nodeName": of.node} if of.node else {})}


def _read_endpoint(found: Object, ports: Ports) -> Endpoint:
    conditions = found.get("conditions") or {}
    return Endpoint(
        address=(found.get("addresses") or [""])[0],
        ports=ports,
        node=found.get("nodeName") or "",
        ready=bool(conditions.get("serving")),
        leaving=bool(conditions.get("terminating")),
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]
