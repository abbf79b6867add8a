"""What fits on a runner: the sum of what its workloads request, against what the runner offers.

Summed are *requests*, as the scheduler of Kubernetes sums them: containers may be allowed more than they request, and then
the runner's memory can run out though each is within its limit. `memory_watch.py` says what happens then.

`needs` decides nothing and remembers nothing; `Admission` remembers who was let in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from wherry_runner import protocol

PROCESSES_PER_GUEST = 2
"""Threads, which a cgroup's pids limit counts like processes: the guest's own, and one that reads files (facts: executor.md)."""

DESCRIPTORS_PER_GUEST = 3
"""That the supervisor holds for each: its pidfd, its report and its page of counts. And one for the input, where there is one."""

DESCRIPTORS_PER_SERVER = 2
"""For one that may serve: its listening socket, and the pipe by which it says that it is ready."""

DESCRIPTORS_PER_LOG = 2
"""For an executor that writes no logs: the receiver of a guest's output, and the log."""

RESERVED_PROCESSES = 128
"""For the runner itself: its threads, the executor, compilers."""

RESERVED_DESCRIPTORS = 1000
"""For the runner itself: connections, starts and pulls that are under way, followed logs."""


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """An amount of each thing that can run out."""

    memory_bytes: int = 0
    millicores: int = 0
    workloads: int = 0
    processes: int = 0
    descriptors: int = 0
    """Of the supervisor's process."""
    logs: int = 0
    """Containers that have one: how many the log budget serves (`logs/budget.py`)."""

    def __add__(self, other: Amounts) -> Amounts:
        return Amounts(**{name: getattr(self, name) + getattr(other, name) for name in _NAMES})

    def __sub__(self, other: Amounts) -> Amounts:
        return Amounts(**{name: getattr(self, name) - getattr(other, name) for name in _NAMES})

    def at_least(self, other: Amounts) -> Amounts:
        """The larger amount of each."""
        return Amounts(**{name: max(getattr(self, name), getattr(other, name)) for name in _NAMES})


_NAMES = tuple(field.name for field in dataclasses.fields(Amounts))


class NoRoom(Exception):
    """A workload does not fit; the message counts what is wanted and what is free."""

    def __init__(self, message: str, *, never: bool) -> None:
        super().__init__(message)
        self.never = never
        """It would not fit if nothing else were here."""


class Admission:
    """Who was let in, and what is left. One event loop; every method is quick, whatever the number of workloads."""

    def __init__(
        self,
        offered: Amounts,
        *,
        default_memory_request_bytes: int,
        descriptors_per_guest: int = DESCRIPTORS_PER_GUEST,
        volume_bytes: Callable[[protocol.Workload], int],
    ) -> None:
        """`volume_bytes`: what a workload's volumes in memory add to its request (`volumes.memory_bytes`)."""
        self._offered = offered
        self._default_memory_request_bytes = default_memory_request_bytes
        self._descriptors_per_guest = descriptors_per_guest
        self._volume_bytes = volume_bytes
        self._admitted: dict[str, Amounts] = {}
        self._sum = Amounts()

    @property
    def requested_bytes(self) -> int:
        """Memory that all who were let in request."""
        return self._sum.memory_bytes

    @property
    def requested_millicores(self) -> int:
        """CPU that all who were let in request."""
        return self._sum.millicores

    def complaint(self) -> str:
        """Why no process can be started for another container; "" if one can: for a health check."""
        if self._sum.processes + PROCESSES_PER_GUEST <= self._offered.processes:
            return ""
        return f"{self._sum.processes} of {self._offered.processes} processes are kept for workloads"

    def admit(self, workload_id: str, workload: protocol.Workload) -> None:
        """Let a workload in; if it is in already, with what it needs now. Raises NoRoom, and then nothing has changed."""
        wanted = needs(
            workload,
            default_memory_request_bytes=self._default_memory_request_bytes,
            descriptors_per_guest=self._descriptors_per_guest,
            volume_bytes=self._volume_bytes(workload),
        )
        others = self._sum - self._admitted.get(workload_id, Amounts())
        short = [
            name for name in _NAMES if getattr(others, name) + getattr(wanted, name) > getattr(self._offered, name)
        ]
        # What it already has, it keeps, also where less is offered than before: a smaller request is never refused.
        before = self._admitted.get(workload_id, Amounts())
        short = [name for name in short if getattr(wanted, name) > getattr(before, name)]
        if short:
            raise self._no_room(short, wanted, others)
        self._admitted[workload_id] = wanted
        self._sum = others + wanted

    def ended(self, workload_id: str) -> None:
        """Nothing of it will run again: it keeps its place and its logs, and nothing else. Unknown ids are ignored."""
        if (had := self._admitted.get(workload_id)) is not None:
            kept = Amounts(workloads=had.workloads, logs=had.logs)
            self._admitted[workload_id] = kept
            self._sum = self._sum - had + kept

    def release(self, workload_id: str) -> None:
        """It is gone. Unknown ids are ignored."""
        self._sum -= self._admitted.pop(workload_id, Amounts())

    def _no_room(self, short: list[str], wanted: Amounts, others: Amounts) -> NoRoom:
        never = [name for name in short if getattr(wanted, name) > getattr(self._offered, name)]
        parts = []
        for name in never or short:
            want, offer, used = (getattr(amounts, name) for amounts in (wanted, self._offered, others))
            what, show = _SHOWN[name]
            if never:
                parts.append(f"{what}: {show(want)} requested, and this runner has {show(offer)} in all")
            else:
                parts.append(f"{what}: {show(want)} requested, {show(max(0, offer - used))} free of {show(offer)}")
        return NoRoom(("it can never fit here: " if never else "") + "; ".join(parts), never=bool(never))


def needs(
    workload: protocol.Workload,
    *,
    default_memory_request_bytes: int,
    descriptors_per_guest: int = DESCRIPTORS_PER_GUEST,
    volume_bytes: int,
) -> Amounts:
    """What a workload needs at its largest moment, as Kubernetes sums it.

    Containers and sidecars run at once. An init container runs beside the sidecars before it (KEP-753), so of all these
    moments the largest counts, for each thing by itself. https://kubernetes.io/docs/concepts/workloads/pods/sidecar-containers/
    """

    def needs_of(container: protocol.Container) -> Amounts:
        resources = container.resources
        return Amounts(
            memory_bytes=memory_request(resources, default_bytes=default_memory_request_bytes),
            millicores=cpu_request(resources),
            processes=PROCESSES_PER_GUEST,
            descriptors=descriptors_per_guest
            + container.stdin
            + (DESCRIPTORS_PER_SERVER if container.http is not None else 0),
        )

    beside = Amounts()
    largest = Amounts()
    for container in workload.init_containers:
        moment = beside + needs_of(container)
        largest = largest.at_least(moment)
        if container.restart_policy == "Always":
            beside = moment
    for each in workload.containers:
        beside += needs_of(each)
    return largest.at_least(beside) + Amounts(
        memory_bytes=volume_bytes, workloads=1, logs=len(workload.init_containers) + len(workload.containers)
    )


def after_reserve(granted: int, *, reserve: int) -> int:
    """What is left for guests of what the runner was granted: it keeps a reserve for itself, a quarter at most."""
    return granted - min(reserve, granted // 4)


def memory_request(resources: protocol.Resources, *, default_bytes: int) -> int:
    """What is kept for a container, in bytes: its request, else its own limit, else the default."""
    for given in (resources.memory_request_bytes, resources.memory_limit_bytes):
        if given is not None:
            return given
    return default_bytes


def cpu_request(resources: protocol.Resources) -> int:
    """What is kept for a container, in millicores: its request, else its own limit, else nothing."""
    for given in (resources.cpu_request_millicores, resources.cpu_limit_millicores):
        if given is not None:
            return given
    return 0


def _binary(size: int) -> str:
    """Bytes as people read them: 12.3 MiB."""
    value, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


_SHOWN: dict[str, tuple[str, Callable[[int], str]]] = {
    "memory_bytes": ("memory", _binary),
    "millicores": ("cpu", lambda value: f"{value}m"),
    "workloads": ("workloads", str),
    "processes": ("processes", str),
    "descriptors": ("descriptors", str),
    "logs": ("container logs", str),
}
