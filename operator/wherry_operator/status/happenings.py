"""What happened between two statuses of a container, in the words of the kubelet's Events."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from wherry_operator.status.containers import Json

NORMAL, WARNING = "Normal", "Warning"


@dataclass(frozen=True)
class Happening:
    """One Event to be."""

    kind: str
    reason: str
    message: str
    container: str = ""


def pull_secrets_missing(complaints: Iterable[str]) -> Happening:
    """Some pull secrets gave nothing; it may be pulled without them (pkg/kubelet/kubelet_pods.go)."""
    text = "Unable to retrieve some image pull secrets; attempting to pull the image may not succeed"
    return Happening(WARNING, "FailedToRetrieveImagePullSecret", f"{text}: {'; '.join(complaints)}")


def between(before: Json, after: Json, *, owner: str) -> list[Happening]:
    """The Events of a container's way from one `v1.ContainerStatus` to another; `owner` is `NAME_NAMESPACE(UID)`."""
    name = after["name"]
    found = []

    def say(kind: str, reason: str, message: str) -> None:
        found.append(Happening(kind, reason, message, name))

    old, new = before.get("state") or {}, after["state"]
    if after.get("containerID") and after.get("containerID") != before.get("containerID"):
        say(NORMAL, "Created", "Container created")
        say(NORMAL, "Started", "Container started")
    if waiting := new.get("waiting"):
        reason, message = waiting["reason"], waiting.get("message", "")
        if waiting != old.get("waiting"):
            for item in _waiting(reason, message, name, after["image"], owner):
                say(*item)
    return found


def of_resize(before: Json, after: Json) -> list[Happening]:
    """The Events of a Pod's way from one status to another that say why its resources stay as they are: of a condition kubectl
    shows no message."""

    def pending(status: Json) -> Json:
        found: Json = next((each for each in status.get("conditions") or [] if each["type"] == "PodResizePending"), {})
        return found

    old, new = pending(before), pending(after)
    if not new or (old.get("reason"), old.get("message")) == (new["reason"], new["message"]):
        return []
    return [Happening(WARNING, f"Resize{new['reason']}", new["message"])]


def _waiting(reason: str, message: str, container: str, image: str, owner: str) -> list[tuple[str, str, str]]:
    match reason:
        case "ContainerCreating" | "PodInitializing":
            return []  # what hinders it was told by who found it
        case "ErrImagePull":
            return [
                (WARNING, "Failed", f'Failed to pull image "{image}": {message}'),
                (WARNING, "Failed", "Error: ErrImagePull"),
            ]
        case "ImagePullBackOff":
            return [
                (NORMAL, "BackOff", f'Back-off pulling image "{image}"'),
                (WARNING, "Failed", "Error: ImagePullBackOff"),
            ]
        case "InvalidImageName":
            return [(WARNING, "InspectFailed", message), (WARNING, "Failed", "Error: InvalidImageName")]
        case "ErrImageNeverPull":
            return [(WARNING, "ErrImageNeverPull", message), (WARNING, "Failed", "Error: ErrImageNeverPull")]
        case "CrashLoopBackOff":
            return [(WARNING, "BackOff", f"Back-off restarting failed container {container} in pod {owner}")]
        case _:
            return [(WARNING, "Failed", f"Error: {message}" if message else f"Error: {reason}")]


_TOLD_AT_ONCE = 5
"""Events for one write of a status at most: of a thousand instances each may have its own words."""

_LIMITS = {
    ("Failed", "BackoffLimitExceeded"),
    ("Failed", "DeadlineExceeded"),
    ("Stalled", "ProgressDeadlineExceeded"),
}


def of_workload(before: Json, after: Json, *, troubled: bool) -> list[Happening]:
    """The Events of a WasmWorkload's way from one status to another, in the words of the Deployment's and the Job's
    controllers. `troubled`: something could not be started, which was told by who found it."""
    found = _of_conditions(before, after)
    old = {item["name"]: item for item in before.get("instances") or []}
    new: list[Json] = after.get("instances") or []
    if len(new) == 1 and new[0].get("containerID") not in (None, old.get(new[0]["name"], {}).get("containerID")):
        found.append(Happening(NORMAL, "Started", f"Started on runner {new[0].get('runner')}"))
    if troubled:
        return found
    known = {(item.get("reason"), item.get("message")) for item in old.values()}
    told = set()
    for item in new:
        words = item.get("reason", ""), item.get("message", "")
        # Of many with the same trouble one is told, and only when it is new.
        if words in known or words in told or not words[1]:
            continue
        if item.get("state") == "Waiting" or item.get("exitCode"):
            told.add(words)
            found.append(Happening(WARNING, *words))
    return found[:_TOLD_AT_ONCE]


def _of_conditions(before: Json, after: Json) -> list[Happening]:
    old = {item["type"]: item["status"] for item in before.get("conditions") or []}
    said = {(item["type"], item["message"]) for item in before.get("conditions") or []}
    found = []
    for item in after.get("conditions") or []:
        reason, message = item["reason"], item["message"]
        if item["type"] == "ServiceReady" and item["status"] == "False" and (item["type"], message) not in said:
            found.append(Happening(WARNING, reason, message))
        if item["status"] != "True" or old.get(item["type"]) == "True":
            continue
        if item["type"] == "Complete":
            found.append(Happening(NORMAL, "Completed", f"Run to completion: {message}"))
        elif (item["type"], reason) in _LIMITS:
            found.append(Happening(WARNING, reason, message))
    return found
