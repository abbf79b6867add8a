"""PodStatus, as a kubelet v1.35 writes it (recorded lives: the facts' podstatus/; rules: pkg/kubelet/status/generate.go and
pkg/kubelet/kubelet_pods.go)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from wherry_operator.admission import Rejection
from wherry_operator.models import Object
from wherry_operator.resolve import resize as resizing
from wherry_operator.resolve.resize import Resize
from wherry_operator.services.pods import Serving
from wherry_operator.status import containers
from wherry_operator.status.containers import Json, rfc3339
from wherry_operator.status.phase import FAILED, SUCCEEDED, initialized, is_sidecar, pod_phase
from wherry_runner import protocol

_ON_RUNNER = "on runner "

_BEGUN = "PodReadyToStartContainers"

_OURS = frozenset(
    (_BEGUN, "Initialized", "Ready", "ContainersReady", "PodScheduled", "PodResizePending", "PodResizeInProgress")
)

BEGUN_WITHIN = timedelta(seconds=2)
"""For so long the condition of that name may be late."""

UNSUPPORTED = "UnsupportedField"
"""`status.reason` of a Pod whose spec has a field that is refused."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why a Pod waits that no runner has yet, or that can't be brought up to date."""

    reason: str
    message: str
    pod_reason: str = ""
    """Of the Pod as a whole, beside that of its containers."""


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What the operator knows of a Pod."""

    runner: str = ""
    host_ip: str = ""
    status: protocol.WorkloadStatus | None = None
    problem: Problem | None = None
    unreachable: bool = False
    """Its runner is silent: what it said last may be old."""
    leaving: bool = False
    """Its runner is about to end."""
    deferred: str = ""
    """Why the resources that it asks for have to wait."""


def steps(pod: Object, observed: Observed, *, now: datetime) -> list[Json]:
    """The statuses to write one after the other: mostly one; before it one that shows a start which is over already."""
    live = pod.get("status") or {}
    resize = resizing.decide(pod)
    pod = resizing.unchanged(pod) if observed.deferred else resize.pod
    result = []
    if observed.status is not None:
        shown = containers.shown_runs(live.get("containerStatuses") or [])
        earlier = containers.with_unseen_starts(observed.status.containers, shown)
        if earlier is not None:
            at_start = observed.status.model_copy(update={"containers": earlier, "phase": protocol.Phase.ACTIVE})
            first = _status(pod, live, Observed(runner=observed.runner, host_ip=observed.host_ip, status=at_start), now)
            result.append(first)
            live = {**live, **first}
    last = _status(pod, live, observed, now)
    last["conditions"] += _of_resize(pod, last, resize, observed.deferred, now)
    return [*result, last]


def rejected(pod: Object, rejection: Rejection, *, now: datetime) -> Json:
    """The status of a Pod that is not taken: it fails, and nothing else is said of it."""
    return {
        "observedGeneration": pod["metadata"].get("generation", 1),
        "phase": FAILED,
        "reason": rejection.reason,
        "message": f"Pod was rejected: {rejection.message}",
        "startTime": rfc3339(now),
    }


def differs(live: Json, desired: Json) -> bool:
    """Whether writing `desired` would change `live`. What others wrote beside it (conditions, fields) does not count."""
    for key, value in desired.items():
        if key == "conditions":
            by_type = {condition["type"]: condition for condition in live.get("conditions") or []}
            if any(differs(by_type.get(condition["type"], {}), condition) for condition in value):
                return True
        elif isinstance(value, dict):
            # Written as a whole: a message that is no longer said must not stay.
            if _without_nulls(live.get(key)) != _without_nulls(value):
                return True
        elif isinstance(value, list):
            there = live.get(key) or []
            if len(there) != len(value) or any(
                differs(a, b) if isinstance(b, dict) else a != b for a, b in zip(there, value, strict=True)
            ):
                return True
        elif live.get(key) != value:
            return True
    return False


def may_wait(pod: Object, observed: Observed, *, now: datetime) -> bool:
    """Whether the status would only say that a runner has begun, a moment after it said that the Pod was taken.

    Nobody waits for that; a start is mostly over before, and then both are one write instead of two.
    """
    live = pod.get("status") or {}
    started = live.get("startTime")
    # A time that lies ahead is from before the clock was set back.
    if started is None or not timedelta(0) <= now - datetime.fromisoformat(started) < BEGUN_WITHIN:
        return False
    desired = steps(pod, observed, now=now)[-1]
    rest = [item for item in desired["conditions"] if item["type"] != _BEGUN]
    return differs(live, desired) and not differs(live, {**desired, "conditions": rest})


def of_others(live: Json) -> dict[str, str]:
    """The conditions that others keep, as a readiness gate's: each type's status."""
    return {item["type"]: item["status"] for item in live.get("conditions") or () if item["type"] not in _OURS}


def patch(desired: Json) -> Json:
    """`desired` as a strategic merge patch. Addresses would be merged with those that are there: they are replaced."""
    addresses: Json = {key: [*desired[key], {"$patch": "replace"}] for key in ("hostIPs", "podIPs") if key in desired}
    return {**desired, **addresses}


def is_terminal(pod: Object) -> bool:
    """Succeeded or Failed: no container of it will ever run again."""
    return (pod.get("status") or {}).get("phase") in (SUCCEEDED, FAILED)


def container_statuses(live: Json) -> list[Json]:
    """Those of the init containers and of the containers."""
    return [*(live.get("initContainerStatuses") or []), *(live.get("containerStatuses") or [])]


def runner_of(live: Json) -> str:
    """The runner that a live status names: of the newest run or, before the first, the one that was chosen."""
    if runner := containers.last_runner(container_statuses(live)):
        return runner
    for item in live.get("conditions") or []:
        if item["type"] == _BEGUN and item.get("message", "").startswith(_ON_RUNNER):
            return str(item["message"].removeprefix(_ON_RUNNER))
    return ""


def _placement(statuses: list[Json], runner: str) -> str:
    """Where the Pod is to run, until a container's id tells it: written before it is sent there, so that an operator born
    in between sends it nowhere else."""
    return f"{_ON_RUNNER}{runner}" if runner and not any(status.get("containerID") for status in statuses) else ""


def _status(pod: Object, live: Json, observed: Observed, now: datetime) -> Json:
    spec = pod["spec"]
    status = observed.status
    init_specs = spec.get("initContainers") or []
    init = _container_statuses(
        init_specs, live.get("initContainerStatuses"), status.init_containers if status else (), observed, now, spec
    )
    main = _container_statuses(
        spec["containers"], live.get("containerStatuses"), status.containers if status else (), observed, now, spec
    )
    main.sort(key=lambda item: str(item["name"]))
    phase = pod_phase(spec, init, main, status)
    if is_terminal(pod):
        phase = live["phase"]  # a terminal phase never changes (pkg/kubelet/status/status_manager.go)
    body: Json = {
        "observedGeneration": pod["metadata"].get("generation", 1),
        "phase": phase,
        "startTime": live.get("startTime") or rfc3339(now),
        "containerStatuses": main,
        "conditions": _conditions(pod, live, init, main, phase, observed, now),
    }
    if init:
        body["initContainerStatuses"] = init
    if debugging := spec.get("ephemeralContainers"):
        body["ephemeralContainerStatuses"] = [containers.refused_status(each) for each in debugging]
    if status is not None and status.failure is not None and not is_terminal(pod):
        body |= {"reason": status.failure.reason, "message": status.failure.message}
    elif observed.problem is not None and observed.problem.pod_reason and not is_terminal(pod):
        body |= {"reason": observed.problem.pod_reason, "message": observed.problem.message}
    elif live.get("reason") == UNSUPPORTED:
        body |= {"reason": None, "message": None}  # this release supports what the one before did not
    # Without a runner it is the operator's own address: good enough until a runner's is known, never in its place.
    host_ip = observed.host_ip if observed.runner else live.get("hostIP") or observed.host_ip
    if host_ip:
        body["hostIP"] = host_ip
        body["hostIPs"] = [{"ip": host_ip}]
    if pod_ip := _pod_ip(pod, live, observed):
        body["podIP"] = pod_ip
        body["podIPs"] = [{"ip": pod_ip}]
    elif live.get("podIP"):
        body |= {"podIP": None, "podIPs": []}
    return body


def _pod_ip(pod: Object, live: Json, observed: Observed) -> str:
    """Of a Pod that serves: its runner's address, where the port is that its container names. It keeps it while it stays
    there, whether it serves at this moment or not; a Pod that serves nothing has none, and so is in no Service's way, nor has
    one whose port had to be another (`services/pods.py`)."""
    had = str(live.get("podIP") or "")
    if observed.status is None or not observed.runner:
        return had
    serving = Serving.of(pod, observed.status)
    if not serving.reached:
        return had
    return "" if serving.moved else observed.host_ip


def _of_resize(pod: Object, desired: Json, resize: Resize, deferred: str, now: datetime) -> list[Json]:
    """The conditions of a resize, as a kubelet has them: they are there only while there is something to say."""
    before = {item["type"]: item for item in (pod.get("status") or {}).get("conditions") or []}
    spec = pod["spec"]
    asked = {each["name"]: resizing.of(each) for each in (*(spec.get("initContainers") or ()), *spec["containers"])}
    statuses = [*desired.get("initContainerStatuses", ()), *desired["containerStatuses"]]
    terminal = desired["phase"] in (SUCCEEDED, FAILED)
    behind = any("resources" in each and each["resources"] != asked[each["name"]] for each in statuses)
    wanted = {
        "PodResizePending": ("Infeasible", resize.refusal)
        if resize.refusal
        else ("Deferred", deferred)
        if deferred
        else None,
        "PodResizeInProgress": (None, None) if behind else None,
    }
    found = []
    for kind, why in wanted.items():
        old = before.get(kind)
        if why is not None and not terminal:
            since = old["lastTransitionTime"] if old else rfc3339(now)
            generation = pod["metadata"].get("generation", 1)
            found.append(
                {
                    "type": kind,
                    "status": "True",
                    "observedGeneration": generation,
                    "lastProbeTime": None,
                    "lastTransitionTime": since,
                    "reason": why[0],
                    "message": why[1],
                }
            )
        elif old is not None:
            found.append({"type": kind, "$patch": "delete"})
    return found


def _container_statuses(
    specs: list[Json],
    live: list[Json] | None,
    runs: tuple[protocol.ContainerStatus, ...],
    observed: Observed,
    now: datetime,
    pod_spec: Json,
) -> list[Json]:
    known = {status.name: status for status in runs}
    before = {status["name"]: status for status in live or []}
    # The kubelet's word for a container that waits for its turn, where there are init containers.
    waiting = "PodInitializing" if pod_spec.get("initContainers") else "ContainerCreating"
    init = specs is not pod_spec["containers"]
    problem = observed.problem
    result = []
    for container in specs:
        name, image = container["name"], container["image"]
        if name in known:
            status = containers.container_status(known[name], observed.runner, container)
            had = before.get(name, {})
            same_run = "resources" in had and had.get("containerID") == status.get("containerID")
            if same_run and resizing.limits_differ(had["resources"], status["resources"]):
                status["resources"] = had["resources"]  # they come with the next run
            if init and not is_sidecar(container):
                status["ready"] = containers.completed(status)
        elif name in before and before[name].get("containerID"):
            # It ran: what was written stays until its runner says something newer, or until it can't be run again.
            status = before[name]
            if problem is not None:
                status = containers.lost_and_waiting(status, problem.reason, problem.message, now)
        elif problem is not None and problem.reason != "ContainerCreating":
            status = containers.waiting_status(name, image, problem.reason, problem.message)
        else:
            status = containers.waiting_status(name, image, waiting, problem.message if problem else "")
        if observed.unreachable:
            status = {**status, "ready": False}
        result.append(status)
    return result


def _conditions(
    pod: Object, live: Json, init: list[Json], main: list[Json], phase: str, observed: Observed, now: datetime
) -> list[Json]:
    spec = pod["spec"]
    statuses = [*init, *main]
    before = {condition["type"]: condition for condition in live.get("conditions") or []}
    terminal = phase in (SUCCEEDED, FAILED)
    begun = (
        observed.status is not None
        or any(status.get("containerID") for status in statuses)
        or (observed.problem is not None and observed.problem.reason != "ContainerCreating")
    )
    finished_reason = {SUCCEEDED: "PodCompleted", FAILED: "PodFailed"}.get(phase, "")
    sidecars = {container["name"] for container in spec.get("initContainers") or () if is_sidecar(container)}
    counted = [*(status for status in init if status["name"] in sidecars), *main]
    unready = [status["name"] for status in counted if not status["ready"]]
    missing = initialized(spec, init)

    def condition(kind: str, holds: bool, reason: str = "", message: str = "") -> Json:
        old = before.get(kind, {})
        status = "True" if holds else "False"
        body: Json = {
            "type": kind,
            "status": status,
            "observedGeneration": pod["metadata"].get("generation", 1),
            "lastProbeTime": None,
            "lastTransitionTime": old.get("lastTransitionTime") if old.get("status") == status else None,
            # Null removes what stood there before: a strategic merge keeps what is not named.
            "reason": reason or None,
            "message": message or None,
        }
        body["lastTransitionTime"] = body["lastTransitionTime"] or rfc3339(now)
        return body

    if terminal:
        ready = (False, finished_reason, "")
    elif unready and observed.unreachable:
        ready = (False, "RunnerUnreachable", f"runner {observed.runner} does not answer")
    elif unready:
        ready = (False, "ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]")
    else:
        ready = (True, "", "")
    # What can't move serves on for a moment; its Services are to lead elsewhere.
    led = (False, "RunnerLeaving", f"runner {observed.runner} is about to end") if observed.leaving else (True, "", "")
    result = [
        condition(_BEGUN, begun and not terminal, "", _placement(statuses, observed.runner)),
        condition("Initialized", not missing, *_initialized_reason(phase, missing)),
        condition("Ready", *(_with_gates(pod, before, ready) if not ready[0] or led[0] else led)),
        condition("ContainersReady", *ready),
    ]
    scheduled = before.get("PodScheduled")
    result.append(condition("PodScheduled", True) if scheduled is None else scheduled)
    return result


def _initialized_reason(phase: str, missing: list[str]) -> tuple[str, str]:
    if missing:
        return "ContainersNotInitialized", f"containers with incomplete status: [{' '.join(missing)}]"
    return ("PodCompleted" if phase == SUCCEEDED else ""), ""


def _with_gates(pod: Object, conditions: dict[str, Any], ready: tuple[bool, str, str]) -> tuple[bool, str, str]:
    if not ready[0]:
        return ready
    complaints = []
    for gate in pod["spec"].get("readinessGates") or ():
        kind = gate["conditionType"]
        condition = conditions.get(kind)
        if condition is None:
            complaints.append(f'corresponding condition of pod readiness gate "{kind}" does not exist.')
        elif condition["status"] != "True":
            complaints.append(f'the status of pod readiness gate "{kind}" is not "True", but {condition["status"]}')
    return (False, "ReadinessGatesNotReady", ", ".join(complaints)) if complaints else ready


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value
