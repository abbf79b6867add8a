"""Container states as the kubelet writes them, from what a runner says."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from wherry_operator.resolve import resize
from wherry_runner import protocol

Json = dict[str, Any]

LOST_EXIT_CODE = 137
"""Of a run that was lost with its runner: as if it had been killed, which it was."""

NEVER_RAN_EXIT_CODE = 128

NO_DEBUG = (
    "debug containers are not supported for WebAssembly workloads: a module has no processes, no files of its image and no "
    "shell that one could look at; see its output with kubectl logs"
)

CONTAINER_ID_SCHEME = "wherry://"


def rfc3339(at: datetime) -> str:
    """A `metav1.Time`: whole seconds, UTC."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def container_id(runner: str, run: str) -> str:
    """`wherry://RUNNER/RUN`: the status itself tells where a container ran, also to an operator that was born later."""
    return f"{CONTAINER_ID_SCHEME}{runner}/{run}" if run else ""


def parse_container_id(text: str) -> tuple[str, str]:
    """Runner and run of a container id; empty strings where it is none of ours."""
    if not text.startswith(CONTAINER_ID_SCHEME):
        return "", ""
    runner, _, run = text.removeprefix(CONTAINER_ID_SCHEME).partition("/")
    return (runner, run) if run else ("", "")


def state(value: protocol.ContainerState, runner: str) -> Json:
    """A `v1.ContainerState`."""
    match value:
        case protocol.Waiting(reason="Pulling" | "Compiling"):
            # No words of a kubelet's, and each would be a write: the Event `Pulling` tells of it.
            return {"waiting": {"reason": "ContainerCreating"}}
        case protocol.Waiting(reason=reason, message=message):
            return {"waiting": {"reason": reason, **({"message": message} if message else {})}}
        case protocol.Running(started_at=started_at):
            return {"running": {"startedAt": rfc3339(started_at)}}
        case protocol.Terminated():
            return {"terminated": terminated(value, runner)}


def terminated(value: protocol.Terminated, runner: str) -> Json:
    """A `v1.ContainerStateTerminated`."""
    body: Json = {"exitCode": value.exit_code, "reason": value.reason}
    if value.message:
        body["message"] = value.message
    body["startedAt"] = rfc3339(value.started_at) if value.started_at else None
    body["finishedAt"] = rfc3339(value.finished_at) if value.finished_at else None
    if value.container_id:
        body["containerID"] = container_id(runner, value.container_id)
    return body


def container_status(status: protocol.ContainerStatus, runner: str, spec: Json) -> Json:
    """A `v1.ContainerStatus` of the container with this spec."""
    began = bool(status.container_id)
    body: Json = {
        "name": status.name,
        "image": spec["image"],
        "imageID": status.image_digest or status.module_digest if began else "",
        "ready": status.ready,
        "started": isinstance(status.state, protocol.Running) and status.started is not False,
        "restartCount": status.restart_count,
        "state": state(status.state, runner),
        "lastState": {"terminated": terminated(status.last_terminated, runner)} if status.last_terminated else {},
    }
    if began:
        body["containerID"] = container_id(runner, status.container_id)
        body["resources"] = resize.of(spec)
    return body


def completed(status: Json) -> bool:
    """Whether a container's newest run has ended well."""
    return bool((status["state"].get("terminated") or {}).get("exitCode") == 0)


def waiting_status(name: str, image: str, reason: str, message: str = "") -> Json:
    """The status of a container that no runner knows of yet."""
    waiting = {"reason": reason, **({"message": message} if message else {})}
    return {
        "name": name,
        "image": image,
        "imageID": "",
        "ready": False,
        "started": False,
        "restartCount": 0,
        "state": {"waiting": waiting},
        "lastState": {},
    }


def refused_status(spec: Json) -> Json:
    """The status of an ephemeral container. Ended, for kubectl debug would wait for one that is still to come."""
    ended = {"exitCode": NEVER_RAN_EXIT_CODE, "reason": "ContainerCannotRun", "message": NO_DEBUG}
    return {**waiting_status(spec["name"], spec["image"], ""), "state": {"terminated": ended}}


def lost_and_waiting(before: Json, reason: str, message: str, now: datetime) -> Json:
    """A container whose runner knows nothing of it any more, and that can't be run again as things are."""
    state = before.get("state") or {}
    ended = state.get("terminated") or (before.get("lastState") or {}).get("terminated")
    if "running" in state:
        ended = {
            "exitCode": LOST_EXIT_CODE,
            "reason": "RunnerLost",
            "message": "the runner ended while the container ran, and the container with it",
            "startedAt": state["running"].get("startedAt"),
            "finishedAt": rfc3339(now),
            "containerID": before["containerID"],
        }
    waiting = {"reason": reason, **({"message": message} if message else {})}
    return {
        **before,
        "ready": False,
        "started": False,
        "state": {"waiting": waiting},
        "lastState": {"terminated": ended} if ended else {},
    }


def with_unseen_starts(
    containers: tuple[protocol.ContainerStatus, ...], shown: set[str]
) -> tuple[protocol.ContainerStatus, ...] | None:
    """The containers as they were when runs that ended too fast to be seen had just begun; None if there were none.

    A client that waits for Ready must see it, however short the run (facts: podstatus/ends-within-milliseconds-*).
    """
    unseen = False
    earlier = []
    for status in containers:
        ended = _ended_run(status)
        if ended is None or ended.started_at is None or ended.container_id in shown:
            earlier.append(status)
            continue
        unseen = True
        last = status.last_terminated if isinstance(status.state, protocol.Terminated) else None
        earlier.append(
            status.model_copy(
                update={
                    "state": protocol.Running(started_at=ended.started_at),
                    "ready": True,
                    "last_terminated": last if last is not None and last.container_id != ended.container_id else None,
                }
            )
        )
    return tuple(earlier) if unseen else None


def _ended_run(status: protocol.ContainerStatus) -> protocol.Terminated | None:
    """The newest run, if it has ended."""
    newest = status.last_terminated if isinstance(status.state, protocol.Waiting) else status.state
    if not isinstance(newest, protocol.Terminated):
        return None
    return newest if newest.container_id == status.container_id else None


def shown_runs(container_statuses: list[Json]) -> set[str]:
    """The runs that a live status already tells of."""
    shown = set()
    for status in container_statuses:
        ended = [(status.get(which) or {}).get("terminated") or {} for which in ("state", "lastState")]
        shown |= {parse_container_id(body.get("containerID", ""))[1] for body in (status, *ended)}
    return shown - {""}


def history(container_statuses: list[Json]) -> tuple[protocol.History, ...]:
    """What a live status knows of the containers' pasts, for a runner that may have lost its journal."""
    found = []
    for status in container_statuses:
        run = parse_container_id(status.get("containerID", ""))[1]
        if not run:
            continue
        current = status.get("state") or {}
        last = status.get("lastState") or {}
        ended = current.get("terminated") or (last.get("terminated") if "running" not in current else None)
        found.append(
            protocol.History(
                container=status["name"],
                container_id=run,
                restart_count=status.get("restartCount", 0),
                started_at=(current.get("running") or ended or {}).get("startedAt"),
                terminated=_terminated_from(ended, run) if ended else None,
            )
        )
    return tuple(found)


def _terminated_from(body: Json, run: str) -> protocol.Terminated:
    return protocol.Terminated(
        exit_code=body.get("exitCode", 0),
        reason=body.get("reason", ""),
        message=body.get("message", ""),
        container_id=parse_container_id(body.get("containerID", ""))[1] or run,
        started_at=body.get("startedAt"),
        finished_at=body.get("finishedAt"),
    )


def last_runner(container_statuses: list[Json]) -> str:
    """The runner that a live status names; empty if no run has been shown."""
    for status in container_statuses:
        if runner := parse_container_id(status.get("containerID", ""))[0]:
            return runner
    return ""
