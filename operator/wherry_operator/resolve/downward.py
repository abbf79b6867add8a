"""The downward API: what a container can be told of its own object (pkg/fieldpath, pkg/kubelet/kubelet_pods.go)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from wherry_operator.models import Container, Object, PodSpec, ResourceSelector
from wherry_operator.resolve import quantity
from wherry_operator.resolve.objects import ResolveError

_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")


@dataclass(frozen=True, kw_only=True)
class Host:
    """What a Pod is told of where it runs."""

    address: str = ""
    cpu_millicores: int = 0
    """Told as the limit of a container that has none."""
    memory_bytes: int = 0
    """The same of memory."""


@dataclass(frozen=True, kw_only=True)
class Downward:
    """How a spec's references to its own object are answered. Both raise ResolveError."""

    field: Callable[[str], str]
    """By the path of a fieldRef."""
    resource: Callable[[ResourceSelector, str], str]
    """By a resourceFieldRef and the container that has it (empty: a volume)."""


def of_pod(pod: Object, spec: PodSpec, host: Host) -> Downward:
    """A Pod's."""
    containers = {container.name: container for container in (*(spec.init_containers or ()), *spec.containers)}

    def resource(selector: ResourceSelector, container: str) -> str:
        name = selector.container_name or container
        if name not in containers:
            raise ResolveError(f"resourceFieldRef {selector.resource}: there is no container {name!r}")
        return pod_resource(selector, containers[name], host)

    return Downward(field=lambda path: pod_field(pod, path, host), resource=resource)


def pod_field(pod: Object, path: str, host: Host) -> str:
    """The value of a fieldRef. Raises ResolveError."""
    metadata = pod["metadata"]
    if match := _SUBSCRIPT.fullmatch(path):
        return str((metadata.get(match[1]) or {}).get(match[2], ""))
    match path:
        case "metadata.name" | "metadata.namespace" | "metadata.uid":
            return str(metadata[path.removeprefix("metadata.")])
        case "metadata.labels" | "metadata.annotations":
            pairs = metadata.get(path.removeprefix("metadata.")) or {}
            return "\n".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in sorted(pairs.items()))
        case "spec.nodeName":
            return str(pod["spec"].get("nodeName", ""))
        case "spec.serviceAccountName":
            return str(pod["spec"].get("serviceAccountName", ""))
        case "status.hostIP" | "status.hostIPs":
            return host.address
        case "status.podIP" | "status.podIPs":
            return ""
    raise field_error(path)


def pod_resource(selector: ResourceSelector, container: Container, host: Host) -> str:
    """The value of a resourceFieldRef, in units of its divisor, rounded up; where there is no limit, what the node has
    (pkg/api/v1/resource/helpers.go). Raises ResolveError."""
    which, _, name = selector.resource.partition(".")
    if which not in ("limits", "requests") or name not in ("cpu", "memory"):
        raise ResolveError(
            f"resourceFieldRef {selector.resource} is not supported for WebAssembly workloads; limits and requests of cpu "
            "and memory are"
        )
    wanted = container.resources
    amounts = (wanted.limits if which == "limits" else wanted.requests) if wanted else None
    default = Decimal(0)
    if which == "limits":
        default = Decimal(host.cpu_millicores) / 1000 if name == "cpu" else Decimal(host.memory_bytes)
    try:
        value = quantity.parse((amounts or {})[name]) if name in (amounts or {}) else default
        divisor = quantity.parse(selector.divisor) if selector.divisor is not None else Decimal(0)
    except ValueError as error:
        raise ResolveError(f"resourceFieldRef {selector.resource}: {error}") from None
    return str(quantity.ceiling(value / (divisor or 1)))


def field_error(path: str) -> ResolveError:
    """A fieldRef that no module has."""
    return ResolveError(f"fieldRef {path} is not supported for WebAssembly workloads")
