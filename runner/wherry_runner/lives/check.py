"""What a request must hold beyond what the types of the wire say. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from wherry_runner import protocol
from wherry_runner.volumes import VolumeError
from wherry_runner.volumes import check as check_mounts

MAX_NUMBER = 2**63 - 1
"""What 64 bits hold: beyond it no kernel and no other language follows."""

MAX_ID_CHARACTERS = 256
"""Of a run's id in a history; ours have 64."""


class Invalid(Exception):
    """A request makes no sense; the message says what of it."""


def check(put: protocol.WorkloadPut) -> None:
    """Raises Invalid."""
    workload = put.workload
    containers = (*workload.init_containers, *workload.containers)
    _no_two("containers", (container.name for container in containers))
    _no_two("volumes", (volume.name for volume in workload.volumes))
    for container in containers:
        if complaint := _container(container) or _resources(container.resources):
            raise Invalid(f'container "{container.name}": {complaint}')
    try:
        check_mounts(workload)
    except VolumeError as error:
        raise Invalid(str(error)) from error
    check_order(put.epoch, put.sequence)
    for item in put.history:
        if len(item.container_id) > MAX_ID_CHARACTERS or not 0 <= item.restart_count <= MAX_NUMBER:
            raise Invalid(f'the history of container "{item.container}" names no run of ours')


def check_order(epoch: int, sequence: int) -> None:
    """Raises Invalid."""
    if max(epoch, sequence) > MAX_NUMBER or min(epoch, sequence) < 0:
        raise Invalid(f"epoch and sequence must be between 0 and {MAX_NUMBER}")


def _no_two(what: str, names: Iterable[str]) -> None:
    seen = set()
    for name in names:
        if name in seen:
            raise Invalid(f'two {what} have the same name, "{name}"')
        seen.add(name)


def _container(container: protocol.Container) -> str:
    """What is wrong with it; empty: nothing."""
    if any("\0" in text for text in (*container.command, *container.args)):
        return "an argument has a NUL byte"
    for variable in container.env:
        if "=" in variable.name or "\0" in variable.name:
            return f"{variable.name!r} is no variable name"
        if "\0" in variable.value.get_secret_value():
            return f"variable {variable.name} has a NUL byte"
    if container.working_dir and (not container.working_dir.startswith("/") or "\0" in container.working_dir):
        return f"workingDir {container.working_dir!r} must be an absolute path"
    return ""


def _resources(resources: protocol.Resources) -> str:
    """What is wrong with them; empty: nothing."""
    for what, unit, request, limit in (
        ("memory", " bytes", resources.memory_request_bytes, resources.memory_limit_bytes),
        ("cpu", "m", resources.cpu_request_millicores, resources.cpu_limit_millicores),
    ):
        for amount in (request, limit):
            if amount is not None and amount > MAX_NUMBER:
                return f"{what} must be at most {MAX_NUMBER}{unit}"
        if request is not None and limit is not None and request > limit:
            return f"its {what} request of {request}{unit} is above its limit of {limit}{unit}"
    return ""
