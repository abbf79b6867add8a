"""What happened between two statuses of a container, in the words of the kubelet's Events."""

from __future__ import annotations

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


def _waiting(reason: str, message: str, container: str, image: str, owner: str) -> list[tuple[str, str, str]]:
    match reason:
        case "ContainerCreating":
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
