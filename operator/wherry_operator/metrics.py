"""What Prometheus is told of an operator: counted as it happens, or read when it asks.

No label has a value that users choose: no names of objects, namespaces or images, so the number of series is bounded by this
file, by the number of runners' states and by the kinds of objects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST

Result = Literal["ok", "again", "error"]

RESULTS: tuple[Result, ...] = ("ok", "again", "error")
"""Of a reconcile: nothing is left to do; it is looked at again later; it failed and is tried again."""

KINDS = ("Pod", "WasmWorkload")

PHASES = ("Pending", "Running", "Succeeded", "Failed", "Suspended", "ScaledToZero", "Unknown")
"""Phases that are counted one by one; all others are reasons for waiting."""

WAITING = "Waiting"

RUNNER_STATES = ("ready", "syncing", "silent", "lost")
"""Of a runner: its snapshot is complete; it answers; it does not; and for so long that what it has is started elsewhere."""

_QUEUE_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_WORK_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

# Each counter would come with the time at which it was made: as many series again, and nobody reads them.
disable_created_metrics()


@dataclass(frozen=True, kw_only=True)
class State:
    """What is read when Prometheus asks."""

    queue_depth: int = 0
    """Keys that wait for their turn now; those that wait for a time to come are not among them."""
    queue_delayed: int = 0
    """Keys that are looked at at a certain time."""
    workloads: Mapping[str, int] = field(default_factory=dict)
    """WasmWorkloads by phase."""
    pods: Mapping[str, int] = field(default_factory=dict)
    runners: Mapping[str, int] = field(default_factory=dict)
    """By state."""
    instances: int = 0
    """Workloads that ready runners have."""
    leader: bool = False
    epoch: int = 0
    resync_age_seconds: float | None = None
    """Since the last complete LIST of everything; None: there was none."""


class Metrics:
    """A registry of its own, so that two in one process (tests) never meet."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._waits = Histogram(
            "wherry_operator_queue_wait_seconds",
            "Time that keys waited in the work queue until their turn.",
            buckets=_QUEUE_SECONDS,
            registry=self._registry,
        )
        self._reconciles = Histogram(
            "wherry_operator_reconcile_duration_seconds",
            "Reconciles, by kind of object and result.",
            ["kind", "result"],
            buckets=_WORK_SECONDS,
            registry=self._registry,
        )
        self._retries = Counter(
            "wherry_operator_reconcile_retries",
            "Reconciles that failed and are tried again, by kind of object.",
            ["kind"],
            registry=self._registry,
        )
        # From the start with 0: a rate over a series that appears with its first event misses that event.
        for kind in KINDS:
            self._retries.labels(kind)
            for result in RESULTS:
                self._reconciles.labels(kind, result)

    def waited(self, seconds: float) -> None:
        """A key has come to its turn."""
        self._waits.observe(seconds)

    def reconciled(self, kind: str, result: Result, seconds: float) -> None:
        """A reconcile is over."""
        self._reconciles.labels(kind, result).observe(seconds)
        if result == "error":
            self._retries.labels(kind).inc()

    def follow(self, state: Callable[[], State]) -> None:
        """Ask for the rest when Prometheus does. Called once; `state` must be quick: it runs on the event loop."""
        self._registry.register(_StateCollector(state))

    def text(self) -> bytes:
        """All of it, in Prometheus' text format (`CONTENT_TYPE`)."""
        return generate_latest(self._registry)


def by_phase(phases: Mapping[str, int]) -> dict[str, int]:
    """Phases that are no word of a fixed list are reasons for waiting, such as CrashLoopBackOff."""
    found = dict.fromkeys((*PHASES, WAITING), 0)
    for phase, count in phases.items():
        found[phase if phase in found else WAITING] += count
    return found


class _StateCollector(Collector):
    def __init__(self, state: Callable[[], State]) -> None:
        self._state = state

    def describe(self) -> list[Metric]:
        """Nothing: what is to come is not asked for before there is a state."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The state as it is now."""
        state = self._state()
        for name, documentation, label, values in (
            ("workloads", "WasmWorkloads, by phase.", "phase", by_phase(state.workloads)),
            ("pods", "Pods bound to the virtual node, by phase.", "phase", by_phase(state.pods)),
            ("runners", "Runners, by state.", "state", {each: state.runners.get(each, 0) for each in RUNNER_STATES}),
        ):
            family = GaugeMetricFamily(f"wherry_operator_{name}", documentation, labels=[label])
            for value, count in values.items():
                family.add_metric([value], count)
            yield family
        for name, documentation, number in (
            ("queue_depth", "Keys that wait for their turn in the work queue.", state.queue_depth),
            ("queue_delayed", "Keys that are looked at again at a time to come.", state.queue_delayed),
            ("instances", "Workloads that ready runners have.", state.instances),
            ("leader", "1 where this operator leads.", int(state.leader)),
            ("epoch", "Number of this operator's term; 0 before its first.", state.epoch),
        ):
            yield GaugeMetricFamily(f"wherry_operator_{name}", documentation, number)
        if state.resync_age_seconds is not None:
            yield GaugeMetricFamily(
                "wherry_operator_resync_age_seconds",
                "Since the last complete LIST of everything.",
                state.resync_age_seconds,
            )
