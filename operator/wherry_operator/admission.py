"""Whether the node takes a Pod at all. The scheduler has looked at it before; a Pod that was bound by hand nobody has.

The rules and words of a kubelet (pkg/kubelet/lifecycle/predicate.go). It rejects for ever, and whoever made the Pod makes
another: so only what waiting can't change rejects. A Pod that fits the node, but no single runner as things are, waits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wherry_operator.models import Object
from wherry_operator.placement import Demand


@dataclass(frozen=True)
class Rejection:
    """Why the Pod has failed before it began."""

    reason: str
    message: str


NOT_MATCHED = Rejection(
    "NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"
)


def matches(spec: Object, name: str, labels: Mapping[str, str]) -> bool:
    """Whether a node of this name and with these labels is one that a `PodSpec` asks for: its node selector and its required
    node affinity (component-helpers/scheduling/corev1/nodeaffinity)."""
    if any(labels.get(key) != value for key, value in (spec.get("nodeSelector") or {}).items()):
        return False
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if required is None:
        return True
    return any(_term_matches(term, name, labels) for term in required.get("nodeSelectorTerms") or ())


def resources(demand: Demand, *, kept: Demand, offered: Demand) -> Rejection | None:
    """What a Pod asks for against what all runners together offer, and what of that is kept for others."""
    for name, wanted, used, capacity in (
        ("cpu", demand.cpu_millicores, kept.cpu_millicores, offered.cpu_millicores),
        ("memory", demand.memory_bytes, kept.memory_bytes, offered.memory_bytes),
    ):
        if wanted > capacity:
            sums = f"requested: {wanted}, used: {used}, capacity: {capacity}"
            return Rejection(f"OutOf{name}", f"Node didn't have enough resource: {name}, {sums}")
    return None


def _term_matches(term: Object, name: str, labels: Mapping[str, str]) -> bool:
    expressions, fields = term.get("matchExpressions") or (), term.get("matchFields") or ()
    if not expressions and not fields:
        return False  # an empty term is no node's
    return all(_holds(each, labels) for each in expressions) and all(
        _holds(each, {"metadata.name": name}) for each in fields
    )


def _holds(requirement: Object, labels: Mapping[str, str]) -> bool:
    found = labels.get(requirement["key"])
    values: list[str] = requirement.get("values") or []
    match requirement["operator"]:
        case "In":
            return found in values
        case "NotIn":
            return found not in values
        case "Exists":
            return found is not None
        case "DoesNotExist":
            return found is None
        case "Gt" | "Lt" as operator:
            try:
                number, bound = int(found or ""), int(values[0])
            except ValueError:
                return False
            return number > bound if operator == "Gt" else number < bound
    return False
