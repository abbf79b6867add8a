"""The virtual Node as an object: pure functions from settings and runners to what the API server should hold.

Names and reasons are the kubelet's (`pkg/kubelet/nodestatus/setters.go`) and Krustlet's (labels and taints:
manifests written for it apply unchanged).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from wherry_operator.clock import micro_time, second_time
from wherry_operator.models import Object
from wherry_operator.runners.registry import RunnerState
from wherry_operator.settings import NODE_LEASE_DURATION_SECONDS, Settings

ARCH = "wasm32-wasi"
"""Both kubernetes.io/arch and kubernetes.io/os, as Krustlet ≥ 0.6.0 has them."""

KUBELET_LEVEL = "1.35.0"
"""The kubelet whose behaviour towards Pods is followed and tested against."""

HEARTBEAT = timedelta(minutes=5)
"""A status that does not change is written this often, as a kubelet does (nodeStatusReportFrequency)."""


def node_object(settings: Settings, owner: Object | None = None) -> Object:
    """The Node as it is created.

    Everything in it is admitted when the node itself creates it (NodeRestriction): later it may change its
    labels, but neither taints nor ownerReferences.

    :param owner: an ownerReference; uninstalling then removes the Node even with a dead operator (design
    §3.6).
    """
    metadata: Object = {"name": settings.node_name, "labels": labels(settings)}
    if owner:
        metadata["ownerReferences"] = [owner]
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {"taints": taints()}}


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


def taints() -> list[Object]:
    """Only Pods that ask for WebAssembly come here, and no others stay."""
    return [{"key": "kubernetes.io/arch", "value": ARCH, "effect": effect} for effect in ("NoSchedule", "NoExecute")]


def kubelet_version(wherry_version: str) -> str:
    """`v1.35.0+wherry.0.1.0`.

    kubeadm and others parse it as a semantic version and compare its minor with the control plane's, so it
    has to be a Kubernetes version. Ours is build metadata, as k3s has it, not a pre-release: comparisons
    ignore the first and rank the second below v1.35.0, so that a constraint such as `>= 1.35` would fail.
    """
    return f"v{KUBELET_LEVEL}+wherry.{wherry_version}"


def node_status(
    settings: Settings,
    port: int,
    states: Sequence[RunnerState],
    live: Object,
    now: datetime,
    wherry_version: str,
) -> Object:
    """The status that the Node should have, complete; times taken over from the live one where nothing
    changed.

    :param port: where the kubelet endpoint listens.
    :param live: the Node as the API server has it.
    """
    connected = [state for state in states if state.connected]
    infos = [state.info for state in connected if state.info]
    resources = {
        "cpu": _decimal(sum(info.cpu_millicores for info in infos)),
        "memory": _binary(sum(info.memory_bytes for info in infos)),
        "pods": _decimal(settings.max_pods * 1000),
    }
    return {
        "addresses": [
            {"type": "InternalIP", "address": settings.kubelet.address},
            {"type": "Hostname", "address": settings.node_name},
        ],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        "capacity": resources,
        "allocatable": dict(resources),
        "nodeInfo": _node_info(live, (engine for info in infos for engine in info.engines), wherry_version),
        "conditions": [_dated(each, live, now) for each in _conditions(states)],
    }


def must_write(live: Object, wanted: Object, now: datetime) -> bool:
    """Whether the live Node's status differs, or has had no heartbeat for long (`HEARTBEAT`)."""
    status = live.get("status") or {}
    if any(not _holds(status.get(key), value) for key, value in wanted.items() if key != "conditions"):
        return True
    for condition in wanted["conditions"]:
        found = _condition(live, condition["type"])
        if any(found.get(key) != condition[key] for key in ("status", "reason", "message")):
            return True
        beat = _moment(found.get("lastHeartbeatTime"))
        if beat is None or now - beat >= HEARTBEAT:
            return True
    return False


def lease_object(settings: Settings, node_uid: str, now: datetime) -> Object:
    """The Node's heartbeat, as a kubelet writes it: while it is renewed, the Node is not Unknown."""
    owner = {"apiVersion": "v1", "kind": "Node", "name": settings.node_name, "uid": node_uid}
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": settings.node_name, "ownerReferences": [owner]},
        "spec": {
            "holderIdentity": settings.node_name,
            "leaseDurationSeconds": NODE_LEASE_DURATION_SECONDS,
            "renewTime": micro_time(now),
        },
    }


def _node_info(live: Object, engines: Iterable[str], wherry_version: str) -> Object:
    # No machine is behind the Node; what wants these to be unique and stable gets the object's own identity.
    uid = (live.get("metadata") or {}).get("uid") or ""
    return {
        "architecture": ARCH,
        "operatingSystem": ARCH,
        "kubeletVersion": kubelet_version(wherry_version),
        "containerRuntimeVersion": _runtime_version(engines),
        "osImage": f"Wherry {wherry_version}",
        "kernelVersion": "",
        "machineID": uid.replace("-", ""),
        "systemUUID": uid,
        "bootID": uid,
    }


def _runtime_version(engines: Iterable[str]) -> str:
    # Readers split it at "://"; runners in the middle of an upgrade differ, so there may be several.
    found = sorted({match.group() for engine in engines if (match := re.search(r"\d+(\.\d+)+[\w.+-]*", engine))})
    return f"wasmtime://{','.join(found) or 'unknown'}"


def _conditions(states: Sequence[RunnerState]) -> list[Object]:
    ready = [state.name for state in states if state.connected and state.synced]
    if ready:
        text = f"{len(ready)} of {len(states)} runners are connected"
        first = _a_condition("Ready", "True", "KubeletReady", text)
    else:
        known = ", ".join(state.name for state in states) or "none"
        text = (
            f"no runner is connected (known: {known}): see that the runners run and that the operator "
            f"reaches them; the operator's log says of each why it is not connected"
        )
        first = _a_condition("Ready", "False", "NoRunner", text)
    return [
        first,
        _a_condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "each runner keeps to its own limit"),
        _a_condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "each runner keeps to its own limit"),
        _a_condition("PIDPressure", "False", "KubeletHasSufficientPID", "each runner keeps to its own limit"),
    ]


def _a_condition(kind: str, status: str, reason: str, message: str) -> Object:
    return {"type": kind, "status": status, "reason": reason, "message": message}


def _dated(condition: Object, live: Object, now: datetime) -> Object:
    found = _condition(live, condition["type"])
    same = found.get("status") == condition["status"] and found.get("lastTransitionTime")
    moved = found["lastTransitionTime"] if same else second_time(now)
    return {**condition, "lastHeartbeatTime": second_time(now), "lastTransitionTime": moved}


def _condition(node: Object, kind: str) -> Object:
    conditions: list[Object] = (node.get("status") or {}).get("conditions") or []
    return next((each for each in conditions if each.get("type") == kind), {})


def _holds(found: object, wanted: object) -> bool:
    # What a merge can't take away (another's resource or address) must not make us write for ever.
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(_holds(found.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return isinstance(found, list) and all(each in found for each in wanted)
    return (found or "") == (wanted or "")  # an empty string may be left out


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


# Quantities in the API server's canonical form (apimachinery's Quantity.CanonicalizeBytes): in any other,
# what was written would never equal what is read, and the status would be written for ever.


def _decimal(thousandths: int) -> str:
    if thousandths % 1000:
        return f"{thousandths}m"
    value = thousandths // 1000
    for suffix in ("", "k", "M", "G"):
        if value == 0 or value % 1000:
            return f"{value}{suffix}"
        value //= 1000
    return f"{value}T"


def _binary(value: int) -> str:
    value //= 1024  # whole KiB: a remainder would change the canonical form to decimal
    for suffix in ("Ki", "Mi", "Gi", "Ti"):
        if value == 0:
            return "0"
        if value % 1024:
            return f"{value}{suffix}"
        value //= 1024
    return f"{value}Pi"
