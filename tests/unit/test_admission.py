"""What fits on a runner: Kubernetes' sum of requests, and what is said of what does not fit."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.runner_scene import OWNER
from wherry_runner.protocol import (
    Container,
    EmptyDirVolume,
    ImageModule,
    InitContainer,
    Resources,
    Volume,
    Workload,
)
from wherry_runner.resources.admission import (
    DESCRIPTORS_PER_GUEST,
    PROCESSES_PER_GUEST,
    Admission,
    Amounts,
    NoRoom,
    needs,
)
from wherry_runner.volumes import memory_bytes

MIB = 1 << 20
MODULE = ImageModule(reference="r.example/hello:v1")
PLENTY = Amounts(
    memory_bytes=1 << 40, millicores=10**6, workloads=10**6, processes=10**6, descriptors=10**6, logs=10**6
)


def main(name: str = "main", **resources: int) -> Container:
    return Container(name=name, module=MODULE, resources=Resources(**resources))


def init(name: str, **resources: int) -> InitContainer:
    return InitContainer(name=name, module=MODULE, resources=Resources(**resources))


def sidecar(name: str, **resources: int) -> InitContainer:
    return InitContainer(name=name, module=MODULE, resources=Resources(**resources), restart_policy="Always")


def workload(
    *containers: Container, inits: tuple[InitContainer, ...] = (), volumes: tuple[Volume, ...] = ()
) -> Workload:
    return Workload(owner=OWNER, containers=containers or (main(),), init_containers=inits, volumes=volumes)


def sum_of(subject: Workload, volume_bytes: int = 0) -> Amounts:
    return needs(subject, default_memory_request_bytes=MIB, volume_bytes=volume_bytes)


def volume_bytes(subject: Workload) -> int:
    return memory_bytes(subject, default_limit_bytes=256 * MIB)


def admission(**offered: int) -> Admission:
    return Admission(
        Amounts(**{**vars(PLENTY), **offered}), default_memory_request_bytes=MIB, volume_bytes=volume_bytes
    )


def refused(subject: Admission, id: str, wanted: Workload) -> NoRoom:
    with pytest.raises(NoRoom) as caught:
        subject.admit(id, wanted)
    return caught.value


@pytest.mark.parametrize(
    ("resources", "memory", "cpu"),
    [
        ({}, MIB, 0),
        ({"memory_request_bytes": 7}, 7, 0),
        ({"memory_request_bytes": 7, "memory_limit_bytes": 9}, 7, 0),
        ({"memory_limit_bytes": 9}, 9, 0),
        ({"memory_request_bytes": 0}, 0, 0),
        ({"cpu_request_millicores": 5, "cpu_limit_millicores": 9}, MIB, 5),
        ({"cpu_limit_millicores": 9}, MIB, 9),
        ({"cpu_request_millicores": 0, "cpu_limit_millicores": 9}, MIB, 0),
    ],
)
def test_a_request_counts_else_the_own_limit_else_the_default(resources: dict[str, int], memory: int, cpu: int) -> None:
    container = Container(name="main", module=MODULE, resources=Resources(**resources))
    found = sum_of(workload(container))
    assert (found.memory_bytes, found.millicores) == (memory, cpu)


def of(*amounts: int) -> list[dict[str, int]]:
    return [{"memory_request_bytes": amount} for amount in amounts]


@pytest.mark.parametrize(
    ("inits", "mains", "expected", "at_once"),
    [
        # The table of KEP-753 in words: what runs at once is summed, and the largest moment counts.
        ((), of(10, 20), 30, 2),
        ((init("a", memory_request_bytes=50),), of(10, 20), 50, 2),
        ((init("a", memory_request_bytes=5), init("b", memory_request_bytes=6)), of(10, 20), 30, 2),
        ((sidecar("a", memory_request_bytes=5),), of(10, 20), 35, 3),
        ((sidecar("a", memory_request_bytes=5), init("b", memory_request_bytes=40)), of(10, 20), 45, 3),
        ((init("b", memory_request_bytes=40), sidecar("a", memory_request_bytes=5)), of(10, 20), 40, 3),
        ((sidecar("a", memory_request_bytes=1), sidecar("b", memory_request_bytes=2), init("c")), of(MIB), MIB + 3, 3),
    ],
)  # fmt: skip
def test_init_containers_count_as_in_kubernetes(
    inits: tuple[InitContainer, ...], mains: list[dict[str, int]], expected: int, at_once: int
) -> None:
    containers = [
        main(f"m{number}").model_copy(update={"resources": Resources(**resources)})
        for number, resources in enumerate(mains)
    ]
    found = sum_of(workload(*containers, inits=inits))
    assert found.memory_bytes == expected
    assert found.processes == at_once * PROCESSES_PER_GUEST
    assert found.descriptors == at_once * DESCRIPTORS_PER_GUEST
    assert (found.workloads, found.logs) == (1, len(inits) + len(mains))


def test_descriptors_are_those_of_the_executor_and_one_for_an_input() -> None:
    talker = main("talker").model_copy(update={"stdin": True})
    found = needs(workload(main(), talker), default_memory_request_bytes=0, descriptors_per_guest=4, volume_bytes=0)
    assert found.descriptors == 4 + 5


def test_each_thing_has_its_own_largest_moment() -> None:
    found = sum_of(
        workload(
            main(memory_request_bytes=100, cpu_request_millicores=1),
            inits=(init("a", memory_request_bytes=1, cpu_request_millicores=200),),
        )
    )
    assert (found.memory_bytes, found.millicores) == (100, 200)


def test_volumes_in_memory_are_charged_beside_the_containers() -> None:
    subject = admission(memory_bytes=100 * MIB)
    cache = EmptyDirVolume(name="cache", medium="Memory", size_limit_bytes=70 * MIB)
    subject.admit("a", workload(main(memory_request_bytes=30 * MIB), volumes=(cache,)))
    assert subject.requested_bytes == 100 * MIB
    assert not refused(subject, "b", workload()).never


def test_the_message_counts_what_is_wanted_and_what_is_free() -> None:
    subject = admission(memory_bytes=1 << 30, millicores=2000)
    subject.admit("a", workload(main(memory_request_bytes=(1 << 30) - int(12.3 * MIB), cpu_request_millicores=1900)))
    error = refused(subject, "b", workload(main(memory_request_bytes=64 * MIB, cpu_request_millicores=200)))
    assert str(error) == (
        "memory: 64.0 MiB requested, 12.3 MiB free of 1.0 GiB; cpu: 200m requested, 100m free of 2000m"
    )
    assert not error.never


def test_what_could_never_fit_is_told_so() -> None:
    error = refused(admission(memory_bytes=1 << 30), "a", workload(main(memory_request_bytes=2 << 30)))
    assert str(error) == "it can never fit here: memory: 2.0 GiB requested, and this runner has 1.0 GiB in all"
    assert error.never


@pytest.mark.parametrize(
    ("offered", "says"),
    [
        ({"workloads": 1}, "workloads: 1 requested, 0 free of 1"),
        ({"logs": 1}, "container logs: 1 requested, 0 free of 1"),
        ({"processes": 3}, "processes: 2 requested, 1 free of 3"),
        ({"descriptors": 3}, "descriptors: 3 requested, 0 free of 3"),
        ({"memory_bytes": MIB + 1023}, "memory: 1.0 MiB requested, 1023 B free of 1.0 MiB"),
    ],
)
def test_everything_that_can_run_out_is_counted(offered: dict[str, int], says: str) -> None:
    subject = admission(**offered)
    subject.admit("a", workload())
    assert str(refused(subject, "b", workload())) == says
    subject.release("a")
    subject.admit("b", workload())


def test_a_change_in_place_is_let_in_by_what_it_adds() -> None:
    subject = admission(memory_bytes=100)
    subject.admit("a", workload(main(memory_request_bytes=60)))
    subject.admit("b", workload(main(memory_request_bytes=30)))
    subject.admit("a", workload(main(memory_request_bytes=70)))
    assert "71 B requested, 70 B free of 100 B" in str(refused(subject, "a", workload(main(memory_request_bytes=71))))
    assert subject.requested_bytes == 100  # a refused change changes nothing
    subject.admit("a", workload(main(memory_request_bytes=10)))
    assert subject.requested_bytes == 40


def test_what_has_ended_keeps_its_place_and_its_logs_only() -> None:
    subject = admission(memory_bytes=100, workloads=2, logs=2)
    subject.admit("a", workload(main(memory_request_bytes=100, cpu_request_millicores=5)))
    subject.ended("a")
    assert (subject.requested_bytes, subject.requested_millicores) == (0, 0)
    subject.admit("b", workload(main(memory_request_bytes=100)))
    assert str(refused(subject, "c", workload(main(memory_request_bytes=0)))) == (
        "workloads: 1 requested, 0 free of 2; container logs: 1 requested, 0 free of 2"
    )
    subject.ended("unknown")
    subject.release("unknown")
    subject.release("a")
    subject.release("a")
    subject.admit("c", workload(main(memory_request_bytes=0)))


@given(
    st.lists(
        st.tuples(st.sampled_from(["admit", "ended", "release"]), st.sampled_from("abcde"), st.integers(0, 60)),
        max_size=60,
    )
)
def test_never_more_is_let_in_than_is_offered(steps: list[tuple[str, str, int]]) -> None:
    subject = admission(memory_bytes=100, workloads=3)
    inside: dict[str, int] = {}
    for step, id, size in steps:
        match step:
            case "admit":
                try:
                    subject.admit(id, workload(main(memory_request_bytes=size)))
                except NoRoom:
                    fits = sum(inside.values()) - inside.get(id, 0) + size <= 100
                    assert not (fits and (id in inside or len(inside) < 3))
                else:
                    inside[id] = size
            case "ended":
                subject.ended(id)
                inside.update({id: 0} if id in inside else {})
            case _:
                subject.release(id)
                inside.pop(id, None)
        assert subject.requested_bytes == sum(inside.values()) <= 100
        assert len(inside) <= 3
