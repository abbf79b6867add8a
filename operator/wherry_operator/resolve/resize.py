"""Resizing a Pod that runs (its `resize` subresource): which resources count, those of its spec or those that it has.

What a container has stands in its status, where a kubelet writes it too. A running module's limits can't be changed: others come
with a new run where the container allows that (`resizePolicy`), and not at all otherwise. Requests just follow. As on a kubelet,
all containers get what is asked for, or none (KEP-1287).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wherry_operator.models import Object

KINDS = ("limits", "requests")


@dataclass(frozen=True, kw_only=True)
class Resize:
    """What a Pod is to run with."""

    pod: Object
    """The Pod, its spec with the resources that count."""
    wanted: bool = False
    """Its spec asks for others than its containers have."""
    refusal: str = ""
    """Why it can't have them; `pod` has those of before."""


def decide(pod: Object) -> Resize:
    """Compare a Pod's spec with what its containers have. Without a difference it is the same Pod."""
    found = _changed(pod)
    if not found:
        return Resize(pod=pod)
    refusals = [text for container, had in found for text in _refusals(container, had)]
    if not refusals:
        return Resize(pod=pod, wanted=True)
    before = {container["name"]: had for container, had in found}
    return Resize(pod=_with(pod, before), wanted=True, refusal="; ".join(refusals))


def unchanged(pod: Object) -> Object:
    """The Pod with the resources that its containers have."""
    return _with(pod, {container["name"]: had for container, had in _changed(pod)})


def of(container: Object) -> Object:
    """A container's resources as its status has them."""
    wanted = container.get("resources") or {}
    return {kind: wanted[kind] for kind in KINDS if wanted.get(kind)}


def limits_differ(one: Object, other: Object) -> bool:
    """Whether a run with the one is not good enough for the other."""
    return bool((one.get("limits") or {}) != (other.get("limits") or {}))


def _changed(pod: Object) -> list[tuple[Object, Object]]:
    """Containers that ask for others than they have, and what they have."""
    status = pod.get("status") or {}
    had = {
        each["name"]: each["resources"]
        for each in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ()))
        if each.get("containerID") and "resources" in each
    }
    spec = pod["spec"]
    return [
        (container, had[container["name"]])
        for container in (*(spec.get("initContainers") or ()), *spec["containers"])
        if container["name"] in had and of(container) != had[container["name"]]
    ]


def _refusals(container: Object, had: Object) -> list[str]:
    policies = {each["resourceName"]: each["restartPolicy"] for each in container.get("resizePolicy") or ()}
    before, after = (resources.get("limits") or {} for resources in (had, of(container)))
    return [
        f"container {container['name']}: the {name} limit of a running module can't be changed; with the resizePolicy "
        f"RestartContainer for {name} it would be run again with the new one"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name) and policies.get(name) != "RestartContainer"
    ]


def _with(pod: Object, resources: dict[str, Object]) -> Object:
    def containers(kind: str) -> dict[str, Any]:
        found = pod["spec"].get(kind)
        if not found:
            return {}
        return {kind: [{**each, "resources": resources.get(each["name"], each.get("resources"))} for each in found]}

    return (
        {**pod, "spec": {**pod["spec"], **containers("initContainers"), **containers("containers")}}
        if resources
        else pod
    )
