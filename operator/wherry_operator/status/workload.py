"""The status of a WasmWorkload, from what a runner says."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from wherry_operator.models import Object
from wherry_operator.status import containers
from wherry_operator.status.containers import Json, rfc3339
from wherry_operator.status.pod import Problem
from wherry_runner import protocol


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What the operator knows of a WasmWorkload's one instance."""

    instance: str
    runner: str = ""
    node: str = ""
    status: protocol.WorkloadStatus | None = None
    problem: Problem | None = None
    unreachable: bool = False


def steps(workload: Object, observed: Observed, *, now: datetime) -> list[Json]:
    """The statuses to write one after the other: mostly one; before it one that shows a start which is over already."""
    live = workload.get("status") or {}
    result = []
    if observed.status is not None:
        runs = {containers.parse_container_id(item.get("containerID", ""))[1] for item in live.get("instances") or []}
        earlier = containers.with_unseen_starts(observed.status.containers, runs)
        if earlier is not None:
            at_start = observed.status.model_copy(update={"containers": earlier, "phase": protocol.Phase.ACTIVE})
            first = _status(
                workload,
                live,
                Observed(instance=observed.instance, runner=observed.runner, node=observed.node, status=at_start),
                now,
            )
            result.append(first)
            live = {**live, **first}
    result.append(_status(workload, live, observed, now))
    return result


def history(live: Json) -> tuple[protocol.History, ...]:
    """What a live status knows of the instance's past, for a runner that may have lost its journal."""
    for item in live.get("instances") or []:
        run = containers.parse_container_id(item.get("containerID", ""))[1]
        if not run:
            continue
        ended = item.get("finishedAt") and item.get("state") != "Running"
        return (
            protocol.History(
                container="module",
                container_id=run,
                restart_count=item.get("restarts", 0),
                started_at=item.get("startedAt"),
                terminated=protocol.Terminated(
                    exit_code=item.get("exitCode", 0),
                    reason=item.get("reason", ""),
                    container_id=run,
                    started_at=item.get("startedAt"),
                    finished_at=item.get("finishedAt"),
                )
                if ended
                else None,
            ),
        )
    return ()


def last_runner(live: Json) -> str:
    """The runner that a live status names; empty if there is none."""
    for item in live.get("instances") or []:
        if runner := containers.parse_container_id(item.get("containerID", ""))[0] or item.get("runner", ""):
            return str(runner)
    return ""


def _status(workload: Object, live: Json, observed: Observed, now: datetime) -> Json:
    container = observed.status.containers[0] if observed.status else None
    phase, reason, message = _phase(workload, container, observed)
    ready = container is not None and container.ready and not observed.unreachable
    instance = _instance(live, observed, container, reason, message)
    conditions = _conditions(workload, live, container, observed, phase, ready, reason, message, now)
    return {
        "phase": phase,
        "ready": f"{int(ready)}/1",
        "replicas": 1,
        "readyReplicas": int(ready),
        "restarts": instance.get("restarts", 0),
        "observedGeneration": workload["metadata"].get("generation", 1),
        "moduleDigest": container.module_digest if container and container.module_digest else None,
        "instances": [instance],
        "conditions": conditions,
    }


def _phase(workload: Object, container: protocol.ContainerStatus | None, observed: Observed) -> tuple[str, str, str]:
    """Phase (for the STATUS column), and reason and message."""
    if workload["metadata"].get("deletionTimestamp"):
        return "Terminating", "Terminating", ""
    if observed.problem is not None:
        return observed.problem.reason, observed.problem.reason, observed.problem.message
    if container is None and observed.unreachable:
        return "Unknown", "RunnerUnreachable", f"runner {observed.runner} does not answer"
    if container is None:
        return "Pending", "ContainerCreating", ""
    ended = observed.status is not None and observed.status.phase is protocol.Phase.ENDED
    failure = observed.status.failure if observed.status else None
    if ended and failure is not None:
        return "Failed", failure.reason, failure.message
    match container.state:
        case protocol.Running():
            if observed.unreachable:
                return "Unknown", "RunnerUnreachable", f"runner {observed.runner} does not answer"
            return "Running", "Running", ""
        case protocol.Terminated(exit_code=code, reason=reason, message=message):
            if ended:
                return ("Succeeded" if code == 0 else "Failed"), reason, message or f"exit code {code}"
            return reason, reason, message or f"exit code {code}"
        case protocol.Waiting(reason=reason, message=message):
            return ("Pending" if reason == "ContainerCreating" else reason), reason, message


def _instance(
    live: Json, observed: Observed, container: protocol.ContainerStatus | None, reason: str, message: str
) -> Json:
    body: Json = {"name": observed.instance, "runner": observed.runner, "node": observed.node, "state": "Waiting"}
    if container is None:
        before: Json = next((item for item in live.get("instances") or [] if item.get("name") == observed.instance), {})
        # It ran: what was written stays until its runner says something newer, for it tells where it ran, and its end.
        return before if before.get("containerID") else {**body, "reason": reason, "message": message}
    last = container.state if isinstance(container.state, protocol.Terminated) else container.last_terminated
    body |= {"restarts": container.restart_count, "reason": reason, "message": message}
    if container.container_id:
        body["containerID"] = containers.container_id(observed.runner, container.container_id)
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


def _conditions(
    workload: Object,
    live: Json,
    container: protocol.ContainerStatus | None,
    observed: Observed,
    phase: str,
    ready: bool,
    reason: str,
    message: str,
    now: datetime,
) -> list[Json]:
    before = {item["type"]: item for item in live.get("conditions") or []}
    done, failed = phase == "Succeeded", phase == "Failed"
    has_module = container is not None and bool(container.module_digest)

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

    return [
        condition("Ready", ready, reason, message),
        condition(
            "Scheduled",
            bool(observed.runner),
            "Placed" if observed.runner else (observed.problem.reason if observed.problem else "Pending"),
            f"on runner {observed.runner}"
            if observed.runner
            else (observed.problem.message if observed.problem else ""),
        ),
        condition("ModuleReady", has_module, "Compiled" if has_module else reason, "" if has_module else message),
        condition("Progressing", not (ready or done or failed), reason, message),
        condition("Complete", done, reason if done else "NotComplete", message if done else ""),
        condition("Failed", failed, reason if failed else "NotFailed", message if failed else ""),
    ]
