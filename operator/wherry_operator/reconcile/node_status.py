"""The virtual Node's status: pure functions from settings and the fleet of runners to what the API server should hold.

Names and reasons are the kubelet's (`pkg/kubelet/nodestatus/setters.go`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from wherry_operator.clock import second_time
from wherry_operator.models import Object
from wherry_operator.reconcile.node_object import ARCH
from wherry_operator.runners.ledger import Reserved
from wherry_operator.runners.registry import RunnerState
from wherry_operator.settings import Settings
from wherry_runner.protocol import Image, RunnerCondition

KUBELET_LEVEL = "1.35.0"
"""The kubelet whose behaviour towards Pods is followed and tested against."""

HEARTBEAT = timedelta(minutes=5)
"""A status that does not change is written this often, as a kubelet does (nodeStatusReportFrequency)."""


MAX_IMAGES = 50
"""Those that a kubelet lists (nodeStatusMaxImages), the largest first."""

MAX_NAMES = 5
"""Of one image (kubelet: MaxNamesPerImageInNodeStatus)."""

MAX_NAME = 512
"""Characters of one: what a runner says is bounded here, for a Node that is too large could not be written."""

MAX_TOLD = 3
"""Runners whose troubles stand in a condition's message."""

MAX_TROUBLE = 200
"""Characters of each."""


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """What the Node stands for."""

    states: Sequence[RunnerState]
    conditions: Mapping[str, RunnerCondition] = field(default_factory=dict)
    """What runners said last of themselves, by their names."""
    reserved: Mapping[str, Reserved] = field(default_factory=dict)
    """What of each runner WasmWorkloads have."""


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
    fleet: Fleet,
    live: Object,
    now: datetime,
    wherry_version: str,
) -> Object:
    """The status that the Node should have, complete; times taken over from the live one where nothing
    changed.

    :param port: where the kubelet endpoint listens.
    :param live: the Node as the API server has it.
    """
    engines = [engine for state in fleet.states if state.connected and state.info for engine in state.info.engines]
    capacity, allocatable = _resources(fleet)
    return {
        "addresses": [
            {"type": "InternalIP", "address": settings.kubelet.address},
            {"type": "Hostname", "address": settings.node_name},
        ],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        "capacity": capacity.quantities(settings.max_pods),
        "allocatable": allocatable.quantities(settings.max_pods),
        "nodeInfo": _node_info(live, engines, wherry_version),
        "images": _images(fleet),
        "conditions": [_dated(each, live, now) for each in _conditions(fleet)],
    }


@dataclass(frozen=True)
class _Amounts:
    millicores: int = 0
    memory_bytes: int = 0
    workloads: int = 0

    def quantities(self, max_pods: int) -> dict[str, str]:
        return {
            "cpu": _decimal(max(0, self.millicores)),
            "memory": _binary(max(0, self.memory_bytes)),
            "pods": _decimal(max(0, min(max_pods, self.workloads)) * 1000),
        }


def _resources(fleet: Fleet) -> tuple[_Amounts, _Amounts]:
    """What the connected runners offer, and what of it WasmWorkloads leave to Pods."""
    offered = left = _Amounts()
    for state in fleet.states:
        info = state.info
        if not state.connected or info is None:
            continue
        taken = fleet.reserved.get(state.name, Reserved())
        memory = taken.demand.memory_bytes + taken.demand.defaults * info.default_memory_request_bytes
        mine = _Amounts(info.cpu_millicores, info.memory_bytes, info.max_workloads)
        # A runner that has more than it offers, as after its settings were changed, takes nothing from the others.
        rest = _Amounts(
            max(0, mine.millicores - taken.demand.cpu_millicores),
            max(0, mine.memory_bytes - memory),
            max(0, mine.workloads - taken.instances),
        )
        offered, left = _sum(offered, mine), _sum(left, rest)
    return offered, left


def _sum(one: _Amounts, other: _Amounts) -> _Amounts:
    return _Amounts(
        one.millicores + other.millicores, one.memory_bytes + other.memory_bytes, one.workloads + other.workloads
    )


def _images(fleet: Fleet) -> list[Object]:
    """Of all connected runners, each image once."""
    found: dict[str, Image] = {}
    for state in fleet.states:
        condition = fleet.conditions.get(state.name) if state.connected else None
        for image in condition.images if condition else ():
            names = [name for name in image.names if len(name) <= MAX_NAME]
            if names:
                known = found[names[0]].names if names[0] in found else ()
                all_names = sorted({*known, *names}, key=lambda name: ("@" not in name, name))[:MAX_NAMES]
                found[names[0]] = Image(names=tuple(all_names), size_bytes=image.size_bytes)
    largest = sorted(found.values(), key=lambda image: (-image.size_bytes, image.names))[:MAX_IMAGES]
    return [{"names": list(image.names), "sizeBytes": image.size_bytes} for image in largest]


def must_write(live: Object, wanted: Object, now: datetime) -> bool:
    """Whether the live Node's status differs, or has had no heartbeat for long (`HEARTBEAT`)."""
    status = live.get("status") or {}
    if any(not _holds(status.get(key), value) for key, value in wanted.items() if key not in ("conditions", "images")):
        return True
    if (status.get("images") or []) != wanted["images"]:
        return True
    for condition in wanted["conditions"]:
        found = _condition(live, condition["type"])
        if any(found.get(key) != condition[key] for key in ("status", "reason", "message")):
            return True
        beat = _moment(found.get("lastHeartbeatTime"))
        # One that lies ahead is from before the clock was set back.
        if beat is None or not timedelta(0) <= now - beat < HEARTBEAT:
            return True
    return False


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


def _conditions(fleet: Fleet) -> list[Object]:
    states = fleet.states
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
        _pressure(
            fleet, "MemoryPressure", lambda said: said.memory_pressure,
            ("KubeletHasInsufficientMemory", "KubeletHasSufficientMemory"),
        ),
        _pressure(
            fleet, "DiskPressure", lambda said: said.disk_pressure, ("KubeletHasDiskPressure", "KubeletHasNoDiskPressure")
        ),
        _pressure(
            fleet, "PIDPressure", lambda said: said.pid_pressure,
            ("KubeletHasInsufficientPID", "KubeletHasSufficientPID"),
        ),
    ]  # fmt: skip


def _pressure(fleet: Fleet, kind: str, of: Callable[[RunnerCondition], str], reasons: tuple[str, str]) -> Object:
    """Where every runner is short of something, the node is: else a Pod may still go to another."""
    connected = [state.name for state in fleet.states if state.connected]
    if not connected:
        return _a_condition(kind, "Unknown", "NoRunner", "no runner is connected")
    said = {name: text for name in connected if (text := of(fleet.conditions.get(name, RunnerCondition())))}
    told = "; ".join(f"{name}: {text[:MAX_TROUBLE]}" for name, text in list(said.items())[:MAX_TOLD])
    message = f"{len(said)} of {len(connected)} runners are short{': ' if told else ''}{told}"
    under = len(said) == len(connected)
    return _a_condition(kind, "True" if under else "False", reasons[0 if under else 1], message)


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
