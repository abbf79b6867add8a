"""The status of a WasmWorkload, from what runners say of its instances.

Conditions are such that kstatus, and what is built on it (Flux, `kubectl wait`), judges right: `Ready` means that what was
asked for is so, `Stalled` that it will not become so by waiting.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

from wherry_operator.models import Object
from wherry_operator.rollout import indexes
from wherry_operator.rollout.instances import Instance, State, by_runner, time
from wherry_operator.rollout.plan import Memory, Wanted, latest
from wherry_operator.status import containers
from wherry_operator.status.containers import Json, rfc3339
from wherry_operator.status.pod import Problem
from wherry_runner import protocol

LISTED = 50
"""Instances in a status at most: an object must stay small, however many it has."""

PROGRESS_DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"
"""A Deployment's word (pkg/controller/deployment/util/deployment_util.go)."""

IDLE = "nobody asks it; the next request starts it"

_WAITS = ("Pending", "Running")


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One instance, and where it is."""

    instance: Instance
    runner: str = ""
    """Empty: it has none yet."""
    node: str = ""
    status: protocol.WorkloadStatus | None = None
    """What its runner said last, if it has it."""
    problem: Problem | None = None
    """Why it can't be started, or brought up to date."""
    address: str = ""
    """Of its runner: where its port is, if it serves."""


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """Of an object with `http`: whether its Service leads to its instances, or why not."""

    ready: bool = False
    reason: str
    message: str = ""
    url: str = ""


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What the operator knows of a WasmWorkload."""

    wanted: Wanted
    memory: Memory
    instances: tuple[Seen, ...] = ()
    exposure: Exposure | None = None
    """None: it has no Service."""

    @cached_property
    def current(self) -> list[Seen]:
        """Instances of the present spec."""
        return [item for item in self.instances if self.is_current(item)]

    @cached_property
    def alive(self) -> list[Seen]:
        """Instances that a runner has, and that have not ended."""
        return [item for item in self.instances if item.runner and not item.instance.ended]

    def is_current(self, seen: Seen) -> bool:
        """Whether it is of the present spec."""
        return seen.instance.slot.revision == self.wanted.revision


@dataclass(frozen=True)
class _Words:
    """What is said of an instance, or of all."""

    phase: str
    reason: str
    message: str


def steps(workload: Object, observed: Observed, *, now: datetime) -> list[Json]:
    """The statuses to write one after the other: mostly one; before it one that shows a start which is over already."""
    live = workload.get("status") or {}
    result = []
    first = _unseen_start(live, observed)
    if first is not None:
        result.append(_status(workload, live, first, now))
        live = {**live, **result[0]}
    result.append(_status(workload, live, observed, now))
    return result


def history(entry: Json) -> tuple[protocol.History, ...]:
    """What an instance's entry in a live status knows of its past, for a runner that may have lost its journal."""
    run = containers.parse_container_id(entry.get("containerID", ""))[1]
    if not run:
        return ()
    ended = None
    if entry.get("finishedAt") and entry.get("state") != "Running":
        ended = protocol.Terminated(
            exit_code=entry.get("exitCode", 0),
            reason=entry.get("reason", ""),
            container_id=run,
            started_at=entry.get("startedAt"),
            finished_at=entry.get("finishedAt"),
        )
    return (
        protocol.History(
            container="module",
            container_id=run,
            restart_count=entry.get("restarts", 0),
            started_at=entry.get("startedAt"),
            terminated=ended,
        ),
    )


def last_runner(entry: Json) -> str:
    """The runner that an instance's entry in a live status names; empty if there is none."""
    return containers.parse_container_id(entry.get("containerID", ""))[0] or str(entry.get("runner", ""))


def exposure_of(live: Json) -> Exposure | None:
    """What a live status says of the object's Service."""
    said = _by_type(live).get("ServiceReady")
    if said is None:
        return None
    return Exposure(
        ready=said["status"] == "True", reason=said["reason"], message=said["message"], url=live.get("url") or ""
    )


def is_ready(workload: Object) -> bool:
    """Whether its status says that its present spec is so."""
    ready = _by_type(workload.get("status") or {}).get("Ready", {})
    current = ready.get("observedGeneration") == workload["metadata"].get("generation", 1)
    return current and ready.get("status") == "True"


def has_just_begun(workload: Object, observed: Observed) -> bool:
    """Whether there is nothing to say as yet but that its one instance was sent to a runner, which has had no trouble."""
    if _by_type(workload.get("status") or {}) or workload["metadata"].get("deletionTimestamp"):
        return False
    if len(observed.instances) != 1:
        return False
    (seen,) = observed.instances
    if seen.status is None or seen.problem is not None or not observed.is_current(seen):
        return False
    state = seen.status.containers[0].state
    return isinstance(state, protocol.Waiting) and state.reason == "ContainerCreating" and seen.status.failure is None


def progress_seconds(wanted: Wanted, status: Json, now: datetime) -> float | None:
    """How long a status that says Progressing may stay as it is; None: for ever."""
    progressing = _by_type(status).get("Progressing", {})
    if not wanted.service or progressing.get("status") != "True":
        return None
    since = time(progressing.get("lastUpdateTime"))
    return wanted.progress_deadline_seconds - (now - since).total_seconds() if since else None


def _unseen_start(live: Json, observed: Observed) -> Observed | None:
    """Of one instance, that its run had begun: whoever waits for Ready must see it. Of many, nobody could."""
    if len(observed.instances) != 1 or observed.instances[0].status is None:
        return None
    (seen,) = observed.instances
    assert seen.status is not None
    runs = {containers.parse_container_id(item.get("containerID", ""))[1] for item in live.get("instances") or []}
    earlier = containers.with_unseen_starts(seen.status.containers, runs)
    if earlier is None:
        return None
    at_start = seen.status.model_copy(update={"containers": earlier, "phase": protocol.Phase.ACTIVE, "failure": None})
    before = Memory.of(live)
    memory = before if before.revision == observed.wanted.revision else Memory(revision=observed.wanted.revision)
    return dataclasses.replace(
        observed,
        memory=dataclasses.replace(memory, start=observed.memory.start),
        instances=(
            dataclasses.replace(seen, status=at_start, instance=by_runner(seen.instance.slot, at_start), problem=None),
        ),
    )


def _status(workload: Object, live: Json, observed: Observed, now: datetime) -> Json:
    wanted, memory = observed.wanted, observed.memory
    said = {item.instance.slot: _of_instance(workload, item) for item in observed.instances}
    alive, current = observed.alive, observed.current
    available = sum(item.instance.available(wanted.min_ready_seconds, now) for item in alive)
    counts = {
        "replicas": len(alive),
        "readyReplicas": sum(item.instance.ready for item in alive),
        "updatedReplicas": sum(observed.is_current(item) for item in alive),
        "availableReplicas": available,
    }
    ready = not workload["metadata"].get("deletionTimestamp") and _is_ready(observed, now)
    newest, _ = latest(item.instance for item in current)
    heard = [said[item.slot] for item in newest.values() if item.slot.index not in memory.completed]
    words = _of_all(workload, observed, heard, ready)
    digests = (container.module_digest for item in current if item.status for container in item.status.containers[:1])
    same = live.get("updateRevision") == wanted.revision
    digest = next((digest for digest in digests if digest), "") or (live.get("moduleDigest") if same else None)
    before = {item["name"]: item for item in live.get("instances") or []}
    name = workload["metadata"]["name"]
    listed = [
        _entry(before.get(item.instance.slot.within(name), {}), name, item, said[item.instance.slot])
        for item in _listed(observed.instances)
    ]
    counted = not wanted.service
    return {
        "phase": words.phase,
        "ready": f"{min(counts['readyReplicas'], wanted.at_once)}/{wanted.at_once}",
        **counts,
        "restarts": sum(item.instance.restarts for item in observed.instances),
        "observedGeneration": workload["metadata"].get("generation", 1),
        "selector": f"wherry.dev/workload={workload['metadata']['uid']}",
        "updateRevision": wanted.revision,
        "currentRevision": wanted.revision if ready or counted else live.get("currentRevision"),
        "moduleDigest": digest or None,
        "url": (observed.exposure and observed.exposure.url) or None,
        "succeeded": len(memory.completed) if counted else None,
        "failed": memory.failed if counted else None,
        "retried": memory.retried if counted else None,
        "completedIndexes": indexes.compact(memory.completed) if counted else None,
        "startTime": rfc3339(memory.start) if memory.start else None,
        "completionTime": rfc3339(memory.finished.at) if memory.finished else None,
        "instances": listed,
        "conditions": _conditions(workload, live, observed, words, counts, ready, bool(digest), now),
    }


def _is_ready(observed: Observed, now: datetime) -> bool:
    """Whether what was asked for is so."""
    wanted, memory = observed.wanted, observed.memory
    if memory.finished is not None:
        return memory.finished.good
    # What stands on a silent runner and is not wanted any more hinders nothing.
    others = [item for item in observed.alive if not observed.is_current(item) and not item.instance.silent]
    here = [item for item in observed.current if not item.instance.ended]
    if wanted.at_once == 0:
        return not others and not any(item.runner and not item.instance.silent for item in here)
    if wanted.service:
        available = sum(item.instance.available(wanted.min_ready_seconds, now) for item in here)
        return available >= wanted.replicas and not others
    troubled = any(not item.instance.ready for item in here) if wanted.completions == 1 else bool(_problems(observed))
    return not troubled and not others and (any(item.instance.ready for item in here) or bool(memory.completed))


def _problems(observed: Observed) -> list[Seen]:
    return [item for item in observed.current if item.problem is not None]


def _of_instance(workload: Object, seen: Seen) -> _Words:
    """What is said of one instance."""
    instance, status = seen.instance, seen.status
    unreachable = _Words("Unknown", "RunnerUnreachable", f"runner {seen.runner} does not answer")
    if status is None:
        if seen.problem is not None:
            return _Words(seen.problem.reason, seen.problem.reason, seen.problem.message)
        if instance.ended:
            phase = "Succeeded" if instance.state is State.SUCCEEDED else "Failed"
            return _Words(phase, instance.reason, instance.message)
        return unreachable if instance.silent else _Words("Pending", "ContainerCreating", "")
    container = status.containers[0]
    if instance.ended and status.failure is not None:
        return _Words("Failed", status.failure.reason, status.failure.message)
    match container.state:
        case protocol.Running():
            if instance.silent:
                return unreachable
            return _Words("Running", "Idle", IDLE) if container.idle else _Words("Running", "Running", "")
        case protocol.Terminated(exit_code=code, reason=reason, message=message):
            phase = ("Succeeded" if code == 0 else "Failed") if instance.ended else reason
            return _Words(phase, reason, message or f"exit code {code}")
        case protocol.Waiting(reason=reason, message=message):
            return _Words("Pending" if reason == "ContainerCreating" else reason, reason, message)


def _of_all(workload: Object, observed: Observed, current: Sequence[_Words], ready: bool) -> _Words:
    """What is said of the object: where all is well, that; else the most common trouble."""
    wanted, finished = observed.wanted, observed.memory.finished
    if workload["metadata"].get("deletionTimestamp"):
        return _Words("Terminating", "Terminating", "")
    if finished is not None:
        return _Words("Succeeded" if finished.good else "Failed", finished.reason, finished.message)
    if wanted.at_once == 0:
        phase = "Suspended" if wanted.suspended or not wanted.service else "ScaledToZero"
        return _Words(phase, phase, "")
    if wanted.service and ready:
        return _Words("Running", "Running", "")
    troubles = Counter(item for item in current if item.phase not in (*_WAITS, "Succeeded"))
    if troubles:
        worst, number = troubles.most_common(1)[0]
        if worst.phase == "Failed":
            worst = dataclasses.replace(worst, phase=worst.reason or "Error")  # another attempt follows
        if len(current) > 1:
            worst = dataclasses.replace(
                worst, message=f"{worst.message or worst.reason} ({number} of {len(current)} instances)"
            )
        return worst
    if not all(observed.is_current(item) for item in observed.alive):
        return _Words("Updating", "Updating", "instances of an earlier spec are being replaced")
    if any(item.phase == "Running" for item in current):
        return _Words("Running", "Running", "")
    return next((item for item in current if item.phase == "Pending"), _Words("Pending", "ContainerCreating", ""))


def _listed(instances: Sequence[Seen]) -> list[Seen]:
    """Those that are shown: first what is not ready, then what began last."""

    def rank(seen: Seen) -> tuple[int, int, str, int]:
        instance = seen.instance
        kind = 3 if instance.state is State.SUCCEEDED else 1 if instance.ended else 2 if instance.ready else 0
        when = instance.ended_at or instance.ready_since
        # In seconds, which is what the status keeps: the order stays when a runner that knew more exactly has forgotten.
        return kind, -int(when.timestamp()) if when else 0, instance.slot.revision, instance.slot.index

    return sorted(instances, key=rank)[:LISTED]


def _entry(before: Json, name: str, seen: Seen, said: _Words) -> Json:
    instance, slot = seen.instance, seen.instance.slot
    body: Json = {
        "name": slot.within(name),
        "index": slot.index,
        "revision": slot.revision,
        "runner": seen.runner,
        "node": seen.node,
        "ready": instance.ready,
        "state": "Waiting",
        "reason": said.reason,
        "message": said.message,
    }
    if instance.ended:
        body["result"] = "Succeeded" if instance.state is State.SUCCEEDED else "Failed"
    if seen.status is None:
        # It ran: what was written stays until its runner says something newer, for it tells where it ran, and its end.
        return {**before, "ready": instance.ready} if before.get("containerID") else body
    container = seen.status.containers[0]
    last = container.state if isinstance(container.state, protocol.Terminated) else container.last_terminated
    body["restarts"] = container.restart_count
    if container.container_id:
        body["containerID"] = containers.container_id(seen.runner, container.container_id)
    if container.port is not None and seen.address:
        host = f"[{seen.address}]" if ":" in seen.address else seen.address
        body["address"] = f"{host}:{container.port}"
    if last is not None:
        body["exitCode"] = last.exit_code
        if last.finished_at:
            body["finishedAt"] = rfc3339(last.finished_at)
        if last.started_at:
            body["startedAt"] = rfc3339(last.started_at)
    match container.state:
        case protocol.Running(started_at=started_at):
            body |= {"state": "Running", "startedAt": rfc3339(started_at)}
        case protocol.Terminated():
            body["state"] = "Terminated"
    return body


def _by_type(live: Json) -> dict[str, Json]:
    return {item["type"]: item for item in live.get("conditions") or []}


def _conditions(
    workload: Object,
    live: Json,
    observed: Observed,
    words: _Words,
    counts: dict[str, int],
    ready: bool,
    has_module: bool,
    now: datetime,
) -> list[Json]:
    before = _by_type(live)
    finished, exposed = observed.memory.finished, observed.exposure
    reason, message = words.reason, words.message
    done, failed = finished is not None and finished.good, finished is not None and not finished.good

    def condition(kind: str, holds: bool, why: str, text: str) -> Json:
        old = before.get(kind, {})
        status = "True" if holds else "False"
        same = old.get("status") == status
        return {
            "type": kind,
            "status": status,
            "reason": why or "Unknown",
            "message": text,
            "observedGeneration": workload["metadata"].get("generation", 1),
            "lastTransitionTime": old["lastTransitionTime"] if same else rfc3339(now),
        }

    wanted_none = observed.wanted.at_once == 0 or finished is not None
    unplaced = [item for item in observed.current if not item.runner and not item.instance.ended]
    runners = sorted({item.runner for item in observed.instances if item.runner})
    placed = not unplaced and (bool(runners) or wanted_none)
    problem = next((item.problem for item in unplaced if item.problem), None)
    where = f"on runner {runners[0]}" if len(runners) == 1 else f"on {len(runners)} runners" if runners else ""
    moving = not (ready or finished)
    since = _progress_since(live, observed, counts, moving, now)
    late = (
        moving
        and observed.wanted.service
        and (now - since).total_seconds() >= (observed.wanted.progress_deadline_seconds)
    )
    progressing = condition(
        "Progressing",
        moving and not late,
        PROGRESS_DEADLINE_EXCEEDED if late else reason,
        f"no progress for {observed.wanted.progress_deadline_seconds} s: {message or reason}" if late else message,
    )
    return [
        condition("Ready", ready, reason, message),
        condition(
            "Scheduled",
            placed,
            "Placed" if placed else (problem.reason if problem else "Pending"),
            where if placed else (problem.message if problem else ""),
        ),
        condition("ModuleReady", has_module, "Compiled" if has_module else reason, "" if has_module else message),
        *([condition("ServiceReady", exposed.ready, exposed.reason, exposed.message)] if exposed else []),
        {**progressing, "lastUpdateTime": rfc3339(since)},
        # As a Job's: ends, and what is abnormal, are there when they are true, and cost nothing until then.
        *([condition("Complete", True, reason, message)] if done else []),
        *([condition("Failed", True, reason, message)] if failed else []),
        *(
            [condition("Stalled", True, PROGRESS_DEADLINE_EXCEEDED if late else reason, message)]
            if late or failed
            else []
        ),
    ]


def _progress_since(live: Json, observed: Observed, counts: dict[str, int], moving: bool, now: datetime) -> datetime:
    """When there was progress last, as a Deployment's controller sees it (DeploymentProgressing)."""
    old = _by_type(live).get("Progressing", {})
    since = time(old.get("lastUpdateTime"))
    was_moving = old.get("status") == "True" or old.get("reason") == PROGRESS_DEADLINE_EXCEEDED
    if since is None or live.get("updateRevision") != observed.wanted.revision or (moving and not was_moving):
        return now.replace(microsecond=0)
    more = any(counts[key] > live.get(key, 0) for key in ("updatedReplicas", "readyReplicas", "availableReplicas"))
    older = live.get("replicas", 0) - live.get("updatedReplicas", 0)
    fewer = counts["replicas"] - counts["updatedReplicas"] < older
    return now.replace(microsecond=0) if moving and (more or fewer) else since
