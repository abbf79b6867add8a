"""What the node, its Pods and their containers use: asked of the runners, told as metrics and as a summary.

The series are those of a kubelet's `/metrics/resource` (pkg/kubelet/metrics/collectors/resource_metrics.go), which metrics-server
reads; the summary is `stats/v1alpha1` (k8s.io/kubelet/pkg/apis/stats/v1alpha1/types.go), as far as a module has what it counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from wherry_operator.clock import Clock, second_time
from wherry_operator.models import Object
from wherry_operator.runners.survey import Runners, survey
from wherry_runner.protocol import ContainerStats, RunnerStats

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

LEAST_CPU_NANOSECONDS = 1_000
LEAST_BYTES = 1
"""metrics-server drops a whole Pod if one of its containers has used nothing: the kernel's clock ticks only every 10 ms."""


@dataclass(frozen=True, kw_only=True)
class ContainerUse:
    """A container of a Pod and what it has used."""

    name: str
    stats: ContainerStats
    time: datetime

    @property
    def cpu_nanoseconds(self) -> int:
        """Never 0."""
        return max(LEAST_CPU_NANOSECONDS, self.stats.cpu_nanoseconds)

    @property
    def memory_bytes(self) -> int:
        """Never 0."""
        return max(LEAST_BYTES, self.stats.working_set_bytes)


@dataclass(frozen=True, kw_only=True)
class PodUse:
    """A Pod and its containers that run."""

    pod: Object
    containers: tuple[ContainerUse, ...]

    @property
    def cpu_nanoseconds(self) -> int:
        """Of all of them."""
        return sum(each.cpu_nanoseconds for each in self.containers)

    @property
    def memory_bytes(self) -> int:
        """Of all of them."""
        return sum(each.memory_bytes for each in self.containers)

    @property
    def time(self) -> datetime:
        """When it was measured."""
        return max(each.time for each in self.containers)


@dataclass(frozen=True, kw_only=True)
class NodeUse:
    """The whole node: every runner with all its guests, those of WasmWorkloads too."""

    time: datetime
    cpu_nanoseconds: int
    memory_bytes: int
    pods: tuple[PodUse, ...]
    complete: bool
    """Every connected runner has answered."""


class UsageReader:
    """Asks the runners. Remembers what a counter that may not fall, and a rate, need."""

    def __init__(self, runners: Runners, *, clock: Clock | None = None) -> None:
        self._runners = runners
        self._clock = clock or Clock()
        self._node_cpu = Counter()

    async def read(self, pods: Iterable[Object]) -> NodeUse:
        """What is used now. A runner that does not answer in time is left out, and that is said (`complete`)."""
        answers = await survey(self._runners, "what it uses", lambda client: client.stats())
        known = {name: stats for name, stats in answers.items() if stats is not None}
        return NodeUse(
            time=self._clock.now(),
            cpu_nanoseconds=self._node_cpu.total({name: stats.cpu_nanoseconds for name, stats in known.items()}),
            memory_bytes=sum(stats.memory_bytes for stats in known.values()),
            pods=of_pods(pods, known.values()),
            complete=len(known) == len(answers),
        )


@dataclass
class Counter:
    """The sum of counters that begin again at 0 when their process does, and that may be away for a while.

    The sum never falls, and what comes back adds only what is new: a reader makes a rate of it.
    """

    _last: dict[str, int] = field(default_factory=dict)
    _ended: int = 0

    def total(self, values: dict[str, int]) -> int:
        """The sum, with these newest values."""
        for name, value in values.items():
            if value < self._last.get(name, 0):
                self._ended += self._last[name]
            self._last[name] = value
        return self._ended + sum(self._last.values())


def of_pods(pods: Iterable[Object], answers: Iterable[RunnerStats]) -> tuple[PodUse, ...]:
    """The Pods of which something runs, with what that uses. Guests that are no Pod's are left out."""
    by_uid: defaultdict[str, list[ContainerUse]] = defaultdict(list)
    for stats in answers:
        for each in stats.containers:
            by_uid[each.workload].append(ContainerUse(name=each.container, stats=each, time=stats.time))
    found = [(pod, by_uid.get(pod["metadata"]["uid"])) for pod in pods]
    return tuple(PodUse(pod=pod, containers=tuple(containers)) for pod, containers in found if containers)


# --- /metrics/resource ------------------------------------------------------------------------------------------------


def metrics(use: NodeUse) -> str:
    """The text of `/metrics/resource`. Order and names of labels matter: metrics-server searches for them."""
    lines = _Lines()
    at = _milliseconds(use.time)
    containers = [
        (f'container="{each.name}",{_of_pod(pod.pod)}', each, _milliseconds(each.time))
        for pod in use.pods
        for each in pod.containers
    ]
    pods = [(_of_pod(pod.pod), pod, _milliseconds(pod.time)) for pod in use.pods]
    # None at all rather than a false one: metrics-server takes a 0 for a broken node.
    known = [use] if use.cpu_nanoseconds and use.memory_bytes else []
    lines.add(
        "container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the container in core-seconds",
        ((labels, each.cpu_nanoseconds / 1e9, time) for labels, each, time in containers),
    )  # fmt: skip
    lines.add(
        "container_memory_working_set_bytes", "gauge", "Current working set of the container in bytes",
        ((labels, each.memory_bytes, time) for labels, each, time in containers),
    )  # fmt: skip
    lines.add(
        "container_start_time_seconds", "gauge", "Start time of the container since unix epoch in seconds",
        ((labels, each.stats.started_at.timestamp(), time) for labels, each, time in containers),
    )  # fmt: skip
    lines.add(
        "node_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the node in core-seconds",
        (("", each.cpu_nanoseconds / 1e9, at) for each in known),
    )  # fmt: skip
    lines.add(
        "node_memory_working_set_bytes", "gauge", "Current working set of the node in bytes",
        (("", each.memory_bytes, at) for each in known),
    )  # fmt: skip
    lines.add(
        "pod_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed by the pod in core-seconds",
        ((labels, each.cpu_nanoseconds / 1e9, time) for labels, each, time in pods),
    )  # fmt: skip
    lines.add(
        "pod_memory_working_set_bytes", "gauge", "Current working set of the pod in bytes",
        ((labels, each.memory_bytes, time) for labels, each, time in pods),
    )  # fmt: skip
    lines.add(
        "resource_scrape_error", "gauge", "1 if there was an error while getting container metrics, 0 otherwise",
        [("", 0 if use.complete else 1, None)],
    )  # fmt: skip
    return lines.text()


class _Lines:
    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, name: str, kind: str, help_text: str, values: Iterable[tuple[str, float, int | None]]) -> None:
        """A family: labels, value and, in milliseconds, time of each. One without values is left out."""
        found = [
            f"{name}{f'{{{labels}}}' if labels else ''} {value!r}{'' if time is None else f' {time}'}"
            for labels, value, time in values
        ]
        if found:
            self._lines += [f"# HELP {name} [STABLE] {help_text}", f"# TYPE {name} {kind}", *found]

    def text(self) -> str:
        return "".join(line + "\n" for line in self._lines)


def _of_pod(pod: Object) -> str:
    # Names of Kubernetes have nothing in them that would need an escape.
    metadata = pod["metadata"]
    return f'namespace="{metadata["namespace"]}",pod="{metadata["name"]}"'


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


# --- /stats/summary ---------------------------------------------------------------------------------------------------


class Summary:
    """Makes `/stats/summary`. What is used per second is counted since the request before."""

    def __init__(self, node_name: str, started_at: datetime) -> None:
        """`started_at`: of the node, which has no boot of its own: of this process."""
        self._node_name = node_name
        self._started_at = started_at
        self._before: dict[str, tuple[datetime, int]] = {}

    def make(self, use: NodeUse, *, only_cpu_and_memory: bool = False) -> Object:
        """The answer."""
        before, self._before = self._before, {}
        node: Object = {
            "nodeName": self._node_name,
            "startTime": second_time(self._started_at),
            "cpu": self._cpu(before, "", use.time, use.cpu_nanoseconds),
            "memory": _memory(use.time, use.memory_bytes),
        }
        pods = [self._pod(before, pod, only_cpu_and_memory) for pod in use.pods]
        return {"node": node, "pods": pods}

    def _pod(self, before: dict[str, tuple[datetime, int]], use: PodUse, only_cpu_and_memory: bool) -> Object:
        metadata = use.pod["metadata"]
        containers = []
        for each in use.containers:
            item: Object = {
                "name": each.name,
                "startTime": second_time(each.stats.started_at),
                "cpu": self._cpu(before, each.stats.container_id, each.time, each.cpu_nanoseconds),
                "memory": _memory(each.time, each.memory_bytes),
            }
            if not only_cpu_and_memory:
                item["logs"] = {"time": second_time(each.time), "usedBytes": each.stats.log_bytes}
            containers.append(item)
        return {
            "podRef": {key: metadata[key] for key in ("name", "namespace", "uid")},
            "startTime": (use.pod.get("status") or {}).get("startTime"),
            "containers": containers,
            "cpu": self._cpu(before, metadata["uid"], use.time, use.cpu_nanoseconds),
            "memory": _memory(use.time, use.memory_bytes),
        }

    def _cpu(self, before: dict[str, tuple[datetime, int]], key: str, at: datetime, nanoseconds: int) -> Object:
        body: Object = {"time": second_time(at), "usageCoreNanoSeconds": nanoseconds}
        then, used = before.get(key, (at, 0))
        seconds = (at - then).total_seconds()
        if seconds > 0 and nanoseconds >= used:
            body["usageNanoCores"] = int((nanoseconds - used) / seconds)
        self._before[key] = (at, nanoseconds) if seconds > 0 or key not in before else before[key]
        return body


def _memory(at: datetime, working_set: int) -> Object:
    return {"time": second_time(at), "usageBytes": working_set, "workingSetBytes": working_set, "rssBytes": working_set}
