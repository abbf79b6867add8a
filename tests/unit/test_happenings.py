"""The Events of a container's way, in the kubelet's words (recorded in the facts' podstatus/)."""

from __future__ import annotations

from typing import Any

import pytest

from wherry_operator.status.happenings import Happening, between

OWNER = "p_rec(u-1)"


def status(run: str = "", waiting: tuple[str, str] | None = None, **more: Any) -> dict[str, Any]:
    state: dict[str, Any] = {"running": {}}
    if waiting is not None:
        state = {"waiting": {"reason": waiting[0], **({"message": waiting[1]} if waiting[1] else {})}}
    return {"name": "main", "image": "i", "state": state, **({"containerID": run} if run else {}), **more}


CREATING = status(waiting=("ContainerCreating", ""))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        pytest.param({}, CREATING, [], id="the first word"),
        pytest.param({}, status(waiting=("PodInitializing", "")), [], id="it waits for init containers"),
        pytest.param(
            CREATING,
            status("a"),
            [("Normal", "Created", "Container created"), ("Normal", "Started", "Container started")],
            id="a start",
        ),
        pytest.param(status("a"), status("a"), [], id="nothing"),
        pytest.param(
            status("a"),
            status("b"),
            [("Normal", "Created", "Container created"), ("Normal", "Started", "Container started")],
            id="a restart",
        ),
        pytest.param(
            CREATING,
            status(waiting=("ErrImagePull", "refused")),
            [("Warning", "Failed", 'Failed to pull image "i": refused'), ("Warning", "Failed", "Error: ErrImagePull")],
            id="ErrImagePull",
        ),
        pytest.param(
            status(waiting=("ErrImagePull", "refused")),
            status(waiting=("ImagePullBackOff", "Back-off pulling…")),
            [("Normal", "BackOff", 'Back-off pulling image "i"'), ("Warning", "Failed", "Error: ImagePullBackOff")],
            id="ImagePullBackOff",
        ),
        pytest.param(
            CREATING,
            status(waiting=("InvalidImageName", "Failed to apply")),
            [("Warning", "InspectFailed", "Failed to apply"), ("Warning", "Failed", "Error: InvalidImageName")],
            id="InvalidImageName",
        ),
        pytest.param(
            CREATING,
            status(waiting=("ErrImageNeverPull", "not present")),
            [("Warning", "ErrImageNeverPull", "not present"), ("Warning", "Failed", "Error: ErrImageNeverPull")],
            id="ErrImageNeverPull",
        ),
        pytest.param(
            status("a"),
            status("a", waiting=("CrashLoopBackOff", "back-off 10s…")),
            [("Warning", "BackOff", "Back-off restarting failed container main in pod p_rec(u-1)")],
            id="CrashLoopBackOff",
        ),
        pytest.param(
            CREATING,
            status(waiting=("CreateContainerConfigError", 'configmap "nope" not found')),
            [("Warning", "Failed", 'Error: configmap "nope" not found')],
            id="CreateContainerConfigError",
        ),
        pytest.param(
            status(waiting=("CreateContainerError", "m")),
            status(waiting=("CreateContainerError", "m")),
            [],
            id="the same again",
        ),
        pytest.param(
            CREATING, status(waiting=("Odd", "")), [("Warning", "Failed", "Error: Odd")], id="without a message"
        ),
        pytest.param(CREATING, status(waiting=("ContainerCreating", "a mount")), [], id="told by who found it"),
        pytest.param(
            status("a"),
            status("b", waiting=("CrashLoopBackOff", "m")),
            [
                ("Normal", "Created", "Container created"),
                ("Normal", "Started", "Container started"),
                ("Warning", "BackOff", "Back-off restarting failed container main in pod p_rec(u-1)"),
            ],
            id="a start and its end at once",
        ),
    ],
)
def test_what_is_told_between_two_statuses(
    before: dict[str, Any], after: dict[str, Any], expected: list[tuple[str, str, str]]
) -> None:
    assert between(before, after, owner=OWNER) == [Happening(*words, container="main") for words in expected]
