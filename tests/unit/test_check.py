"""What a runner refuses to take, and what it says of it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from tests.support.runner_scene import container, files, init, put, sidecar
from wherry_runner.lives.check import MAX_NUMBER, Invalid, check
from wherry_runner.protocol import History, Resources, VolumeMount

MOUNT = VolumeMount(volume="v", mount_path="/v")


def with_resources(**kwargs: int) -> dict[str, Any]:
    return {"containers": (container(resources=Resources(**kwargs)),)}


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ({"containers": (container("a"), container("a"))}, "two containers have the same name"),
        ({"init": (init("a"),), "containers": (container("a"),)}, "two containers have the same name"),
        ({"init": (init("a"), sidecar("a"))}, "two containers have the same name"),
        ({"volumes": (files(), files())}, "two volumes have the same name"),
        ({"containers": (container(mounts=(MOUNT,)),)}, 'container "main": it mounts "v", which is no volume'),
        ({"init": (init("a", mounts=(MOUNT,)),)}, 'container "a": it mounts "v", which is no volume'),
        (
            {"containers": (container(mounts=(VolumeMount(volume="v", mount_path="v"),)),), "volumes": (files(),)},
            "must be absolute",
        ),
        ({"containers": (container(args=("a\0b",)),)}, "an argument has a NUL"),
        ({"init": (init("a", command=("a\0b",)),)}, 'container "a": an argument has a NUL'),
        ({"containers": (container(env={"A": "a\0b"}),)}, "variable A has a NUL"),
        ({"containers": (container(env={"A=B": "a"}),)}, "no variable name"),
        ({"containers": (container(env={"A\0": "a"}),)}, "no variable name"),
        ({"containers": (container(working_dir="a"),)}, "must be an absolute path"),
        ({"containers": (container(working_dir="/a\0"),)}, "must be an absolute path"),
        (
            with_resources(memory_request_bytes=2, memory_limit_bytes=1),
            'container "main": its memory request of 2 bytes is above its limit of 1 bytes',
        ),
        (
            with_resources(cpu_request_millicores=2, cpu_limit_millicores=1),
            "cpu request of 2m is above its limit of 1m",
        ),
        (with_resources(memory_limit_bytes=2**63), "memory must be at most"),
        (with_resources(cpu_request_millicores=10**30), "cpu must be at most"),
        ({"epoch": 2**63}, "epoch and sequence"),
        ({"sequence": 10**400}, "epoch and sequence"),
        ({"history": (History(container="main", container_id="x" * 257),)}, "history"),
        ({"history": (History(container="main", container_id="x", restart_count=-1),)}, "history"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(what: dict[str, Any], says: str) -> None:
    with pytest.raises(Invalid, match=says):
        check(put(**what))


@pytest.mark.parametrize(
    "what",
    [
        {},
        {"containers": tuple(container(f"c{number}") for number in range(200))},
        {"init": tuple(init(f"i{number}") for number in range(200))},
        {"containers": (container(mounts=(MOUNT,)),), "volumes": (files(),)},
        {"deadline": datetime(1, 1, 1)},
        {"grace": 10**400},
        with_resources(memory_request_bytes=1, memory_limit_bytes=1, fuel=2**63 - 1),
        with_resources(memory_limit_bytes=MAX_NUMBER, cpu_limit_millicores=MAX_NUMBER),
        {"epoch": MAX_NUMBER, "sequence": MAX_NUMBER},
    ],
    ids=str,
)
def test_what_is_strange_and_can_be_done_is_taken(what: dict[str, Any]) -> None:
    check(put(**what))


def test_a_variables_value_is_in_no_complaint() -> None:
    with pytest.raises(Invalid) as caught:
        check(put(containers=(container(env={"A": "hunter2\0"}),)))
    assert "hunter2" not in str(caught.value)
