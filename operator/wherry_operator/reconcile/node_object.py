"""The virtual Node as an object, all but its status: pure functions from settings to what the API server should hold.

Labels and taints are Krustlet's: manifests written for it apply unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from wherry_operator.clock import micro_time
from wherry_operator.models import Object
from wherry_operator.reconcile import release
from wherry_operator.settings import NODE_LEASE_DURATION_SECONDS, Settings

ARCH = "wasm32-wasi"
"""Both kubernetes.io/arch and kubernetes.io/os, as Krustlet ≥ 0.6.0 has them."""

TAINT_KEY = "kubernetes.io/arch"
TAINT_EFFECTS = ("NoSchedule", "NoExecute")

_TICK = timedelta(microseconds=1)
"""The least by which two times of a Lease can differ."""


def node_object(settings: Settings, owner: Object | None = None) -> Object:
    """The Node as it is created.

    Everything in it is admitted when the node itself creates it (NodeRestriction): later it may change its
    labels, but neither taints nor ownerReferences.

    :param owner: the live ClusterRole that is to be its owner: uninstalling then removes the Node even with a dead
    operator (design §3.6).
    """
    metadata: Object = {"name": settings.node_name, "labels": labels(settings)}
    if owner:
        metadata["ownerReferences"] = [release.reference(owner)]
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"taints": taints(settings)}}


def correction(live: Object, settings: Settings, owner: Object | None) -> Object | None:
    """The merge patch that brings taints and owner of a Node that exists to the settings; None: they are as they should be.

    What others have put there stays. It holds for this version of the Node only: a list is replaced as a whole.
    """
    metadata, change = live["metadata"], {}
    have_taints: list[Object] = (live.get("spec") or {}).get("taints") or []
    others = [each for each in have_taints if (each["key"], each["effect"]) not in _ours()]
    mine = [each for each in have_taints if (each["key"], each["effect"]) in _ours()]
    if _by_effect(mine) != _by_effect(taints(settings)):
        change["spec"] = {"taints": [*others, *taints(settings)]}
    if owner is not None:
        have: list[Object] = metadata.get("ownerReferences") or []
        wanted = [*(each for each in have if each["kind"] != release.OWNER_KIND), release.reference(owner)]
        if [each["uid"] for each in wanted] != [each["uid"] for each in have]:
            change["metadata"] = {"ownerReferences": wanted}
    if not change:
        return None
    versioned = {**change.get("metadata", {}), "resourceVersion": metadata.get("resourceVersion")}
    return {**change, "metadata": versioned}


def _ours() -> set[tuple[str, str]]:
    return {(TAINT_KEY, effect) for effect in TAINT_EFFECTS}


def _by_effect(found: Iterable[Object]) -> dict[str, str]:
    return {each["effect"]: each.get("value") or "" for each in found}


def labels(settings: Settings) -> dict[str, str]:
    """The Node's labels. NodeRestriction lets a node set all of them
    (`kubelet/pkg/apis/well_known_labels.go`)."""
    return {
        "kubernetes.io/arch": ARCH,
        "kubernetes.io/os": ARCH,
        "beta.kubernetes.io/arch": ARCH,
        "beta.kubernetes.io/os": ARCH,
        "kubernetes.io/hostname": settings.node_name,
        "type": "virtual-kubelet",
        # A cloud's load balancer would send clients to node ports that nobody here opens.
        "node.kubernetes.io/exclude-from-external-load-balancers": "",
    }


def taints(settings: Settings) -> list[Object]:
    """Only Pods that ask for WebAssembly come here, and no others stay."""
    return [{"key": TAINT_KEY, "value": settings.taint_value, "effect": effect} for effect in TAINT_EFFECTS]


def lease_object(settings: Settings, node_uid: str, now: datetime, last: str | None = None) -> Object:
    """The Node's heartbeat, as a kubelet writes it: while it is renewed, the Node is not Unknown.

    :param last: its `renewTime` so far. A renewal counts only if it is later (node_lifecycle_controller.go,
    tryUpdateNodeHealth), so it is later also by a clock that was set back: else the Node would be lost until it has caught up.
    """
    owner = {"apiVersion": "v1", "kind": "Node", "name": settings.node_name, "uid": node_uid}
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": settings.node_name, "ownerReferences": [owner]},
        "spec": {
            "holderIdentity": settings.node_name,
            "leaseDurationSeconds": NODE_LEASE_DURATION_SECONDS,
            "renewTime": micro_time(max(now, datetime.fromisoformat(last) + _TICK) if last else now),
        },
    }
