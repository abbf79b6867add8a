"""Services: what counts of one that is there, and the one that a WasmWorkload with `http` is to have.

It has no selector, so Kubernetes leaves its EndpointSlices to us. Whether one is a WasmWorkload's own its owner reference says,
never its name or a label: a Service of that name that somebody else made is not touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wherry_operator.models import Object, WorkloadHttp, WorkloadService

PORT_NAME = "http"

DEFAULT_PORT = 80

ANNOTATIONS = "wherry.dev/annotations"
"""The names of those annotations that the spec has asked for: what it asks for no more is taken away, and others' stay."""

MANAGED = {"app.kubernetes.io/managed-by": "wherry-operator"}


@dataclass(frozen=True, kw_only=True)
class ServicePort:
    """A port of a Service."""

    name: str
    port: int
    target: int | str
    protocol: str = "TCP"


@dataclass(frozen=True, kw_only=True)
class Service:
    """What counts of a Service."""

    namespace: str
    name: str
    uid: str
    version: str
    """Its resourceVersion."""
    type: str
    ports: tuple[ServicePort, ...] = ()
    selector: tuple[tuple[str, str], ...] = ()
    headless: bool = False
    publishes_unready: bool = False
    owner_uid: str = ""
    """The WasmWorkload whose own it is."""
    annotations: tuple[tuple[str, str], ...] = ()
    """Of a WasmWorkload's own; of others they don't matter."""
    leaving: bool = False
    """It is being deleted."""

    @staticmethod
    def of(body: Object) -> Service:
        """That of a `v1.Service`."""
        metadata, spec = body["metadata"], body["spec"]
        owner = next(
            (
                each["uid"]
                for each in metadata.get("ownerReferences") or ()
                if each["kind"] == "WasmWorkload" and each["apiVersion"].startswith("wherry.dev/")
            ),
            "",
        )
        return Service(
            namespace=metadata["namespace"],
            name=metadata["name"],
            uid=metadata["uid"],
            version=metadata["resourceVersion"],
            type=spec.get("type") or "ClusterIP",
            ports=tuple(
                ServicePort(
                    name=each.get("name") or "",
                    port=each["port"],
                    target=each.get("targetPort") or each["port"],
                    protocol=each.get("protocol") or "TCP",
                )
                for each in spec.get("ports") or ()
            ),
            selector=tuple(sorted((spec.get("selector") or {}).items())),
            headless=spec.get("clusterIP") == "None",
            publishes_unready=bool(spec.get("publishNotReadyAddresses")),
            owner_uid=owner,
            annotations=tuple(sorted((metadata.get("annotations") or {}).items())) if owner else (),
            leaving="deletionTimestamp" in metadata,
        )


def name_of(workload: Object) -> str:
    """The name of the Service that a WasmWorkload is to have; empty: it is to have none."""
    http = _http(workload)
    return "" if http is None else (http.service and http.service.name) or str(workload["metadata"]["name"])


def url_of(workload: Object) -> str:
    """Where that Service is reached within the cluster."""
    http = _http(workload)
    port = (http and http.port) or DEFAULT_PORT
    host = f"http://{name_of(workload)}.{workload['metadata']['namespace']}.svc"
    return host if port == DEFAULT_PORT else f"{host}:{port}"


def desired(workload: Object) -> Object:
    """The Service that a WasmWorkload with `http` is to have."""
    metadata = workload["metadata"]
    http = _http(workload) or WorkloadHttp()
    wanted = http.service or WorkloadService()
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name_of(workload),
            "namespace": metadata["namespace"],
            "labels": MANAGED,
            "annotations": _annotations(wanted.annotations or {}),
            "ownerReferences": [
                {
                    "apiVersion": "wherry.dev/v1alpha1",
                    "kind": "WasmWorkload",
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                    "controller": True,
                }
            ],
        },
        "spec": {
            "type": wanted.type or "ClusterIP",
            "ports": [
                {
                    "name": PORT_NAME,
                    "port": http.port or DEFAULT_PORT,
                    "targetPort": PORT_NAME,
                    "protocol": "TCP",
                }
            ],
        },
    }


def change(live: Service, workload: Object) -> Object | None:
    """A merge patch that makes of its Service what it is to be; None: it is so."""
    wanted = desired(workload)
    spec, had = wanted["spec"], dict(live.annotations)
    asked_before = set(filter(None, had.get(ANNOTATIONS, "").split(",")))
    annotations: dict[str, str | None] = dict(wanted["metadata"]["annotations"])
    annotations |= dict.fromkeys(asked_before - annotations.keys())
    if ANNOTATIONS in had:
        annotations.setdefault(ANNOTATIONS, None)
    body: Object = {}
    if any(had.get(key) != value for key, value in annotations.items()):
        body["annotations"] = annotations
    (port,) = spec["ports"]
    ports = (ServicePort(name=port["name"], port=port["port"], target=port["targetPort"]),)
    if (live.type, live.ports, live.selector) == (spec["type"], ports, ()):
        spec = {}
    if not body and not spec:
        return None
    # Of this very Service, as it was read: else Conflict.
    precondition = {"uid": live.uid, "resourceVersion": live.version}
    return {
        "metadata": {**precondition, **body},
        **({"spec": {**spec, "selector": None}} if spec else {}),
    }


def _annotations(wanted: Mapping[str, str]) -> dict[str, str]:
    return {**wanted, ANNOTATIONS: ",".join(sorted(wanted))} if wanted else {}


def _http(workload: Object) -> WorkloadHttp | None:
    # Of thousands most serve nothing, and are asked this at each look.
    http = workload["spec"].get("http")
    return None if http is None else WorkloadHttp.model_validate(http)
