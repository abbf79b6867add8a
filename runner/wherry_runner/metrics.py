"""What Prometheus is told of a runner: counted as it happens, or read when it asks.

No label has a value that users choose: no names of workloads, images or registries, so the number of series is bounded by
this file. Reasons are our own words; one that is not listed here counts as `Other`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from wherry_runner.http_counts import BUCKETS_SECONDS, CLASSES, HttpCounts
from wherry_runner.network_counts import NONE, REFUSALS, NetworkCounts, add
from wherry_runner.protocol import Phase, RefusalReason

CONTENT_TYPE = CONTENT_TYPE_LATEST

RESULTS = ("ok", "error")
"""Of pulls and compilations."""

END_REASONS = (
    "Completed",
    "Error",
    "OOMKilled",
    "OutOfFuel",
    "DeadlineExceeded",
    "Evicted",
    "RunnerLost",
)
"""Of containers' ends: `reason` of a terminated container."""

OTHER = "Other"

_PULL_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_COMPILE_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_START_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

# Each counter would come with the time at which it was made: as many series again, and nobody reads them.
disable_created_metrics()


@dataclass(frozen=True, kw_only=True)
class State:
    """What is read when Prometheus asks."""

    running: int = 0
    """Containers."""
    workloads: Mapping[Phase, int] = field(default_factory=dict)
    executor_losses: int = 0
    """Since the start."""
    module_store_bytes: int = 0
    log_budget_bytes: int = 0
    log_allowed_bytes: int = 0
    """What all containers' logs together may have now."""
    memory_offered_bytes: int = 0
    memory_requested_bytes: int = 0
    cpu_offered_millicores: int = 0
    cpu_requested_millicores: int = 0
    http: HttpCounts = field(default_factory=HttpCounts)
    """Of all servers that run."""
    network_refused: NetworkCounts = NONE
    """To all guests that run."""


class Metrics:
    """A registry of its own, so that two in one process (tests) never meet. Its methods may be called by any thread."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._pulls = self._histogram("pull_duration_seconds", "Pulls of modules, by result.", _PULL_SECONDS, "result")
        self._pull_bytes = self._counter("pull_bytes", "Bytes that pulls brought.")
        self._compiles = self._histogram(
            "compile_duration_seconds", "Compilations of modules, by result.", _COMPILE_SECONDS, "result"
        )
        self._starts = self._histogram(
            "start_duration_seconds",
            "Starts of containers, from the request to the executor, or from when it noticed a client, to the fork.",
            _START_SECONDS,
        )
        self._ends = self._counter("container_ends", "Ends of containers, by reason.", "reason")
        self._restarts = self._counter("container_restarts", "Runs of a container after its first.")
        self._refusals = self._counter("refusals", "Requests that were refused, by reason.", "reason")
        self._memory_kills = self._counter("memory_kills", "Containers killed because the runner's memory ran out.")
        self._http_over = HttpCounts()
        """Of all servers that have ended."""
        self._network_refused = NONE
        """To all guests that have ended."""
        self._watch_readers = Gauge(
            "wherry_runner_watch_readers", "Operators that follow the watch.", registry=self._registry
        )
        # From the start with 0: a rate over a series that appears with its first event misses that event.
        for result in RESULTS:
            self._pulls.labels(result)
            self._compiles.labels(result)
        for reason in (*END_REASONS, OTHER):
            self._ends.labels(reason)
        for refusal in RefusalReason:
            self._refusals.labels(refusal.value)

    def pulled(self, result: str, seconds: float, bytes: int = 0) -> None:
        """A pull is over: `ok` or `error`, how long it took, and how many bytes it brought."""
        self._pulls.labels(_known(result, RESULTS, otherwise="error")).observe(seconds)
        self._pull_bytes.inc(bytes)

    def compiled(self, result: str, seconds: float) -> None:
        """A compilation is over: `ok` or `error`, and how long it took."""
        self._compiles.labels(_known(result, RESULTS, otherwise="error")).observe(seconds)

    def started(self, seconds: float) -> None:
        """A container's process was started; so long did the executor take."""
        self._starts.observe(seconds)

    def ended(self, reason: str) -> None:
        """A container's run has ended."""
        self._ends.labels(_known(reason, END_REASONS, otherwise=OTHER)).inc()

    def served(self, counts: HttpCounts) -> None:
        """A server has ended that counted this."""
        self._http_over += counts

    def network_refused(self, counts: NetworkCounts) -> None:
        """A guest has ended to which the network refused this."""
        self._network_refused = add(self._network_refused, counts)

    def restarted(self) -> None:
        """A container runs again."""
        self._restarts.inc()

    def refused(self, reason: RefusalReason) -> None:
        """A request was refused."""
        self._refusals.labels(reason.value).inc()

    def memory_killed(self) -> None:
        """A container was killed because the runner's memory ran out (`resources/memory_watch.py`)."""
        self._memory_kills.inc()

    def watching(self) -> AbstractContextManager[object]:
        """Somebody follows the watch, for as long as this context lasts."""
        return self._watch_readers.track_inprogress()

    def follow(self, state: Callable[[], State]) -> None:
        """Ask for the rest when Prometheus does. Called once; `state` must be quick: it runs on the event loop."""
        self._registry.register(_StateCollector(state, lambda: self._http_over, lambda: self._network_refused))

    def text(self) -> bytes:
        """All of it, in Prometheus' text format (`CONTENT_TYPE`)."""
        return generate_latest(self._registry)

    def _counter(self, name: str, documentation: str, *labels: str) -> Counter:
        return Counter(f"wherry_runner_{name}", documentation, labels, registry=self._registry)

    def _histogram(self, name: str, documentation: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"wherry_runner_{name}", documentation, labels, buckets=buckets, registry=self._registry)


class _StateCollector(Collector):
    def __init__(
        self,
        state: Callable[[], State],
        http_over: Callable[[], HttpCounts],
        network_refused: Callable[[], NetworkCounts],
    ) -> None:
        self._state = state
        self._http_over = http_over
        self._network_refused = network_refused

    def describe(self) -> list[Metric]:
        """Nothing: what is to come is not asked for before there is a state."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The state as it is now."""
        state = self._state()
        workloads = GaugeMetricFamily("wherry_runner_workloads", "Workloads, by phase.", labels=["phase"])
        for phase in Phase:
            workloads.add_metric([phase.value], state.workloads.get(phase, 0))
        yield workloads
        yield CounterMetricFamily(
            "wherry_runner_executor_losses", "Executors that died, with all their containers.", state.executor_losses
        )
        for name, documentation, value in (
            ("containers_running", "Containers that run now.", state.running),
            ("module_store_bytes", "Disk space of modules and compiled code.", state.module_store_bytes),
            ("log_budget_bytes", "Disk space that all logs together may take.", state.log_budget_bytes),
            ("log_allowed_bytes", "Disk space that is dealt to containers' logs.", state.log_allowed_bytes),
            ("memory_offered_bytes", "Memory offered to containers.", state.memory_offered_bytes),
            ("memory_requested_bytes", "Memory that containers request.", state.memory_requested_bytes),
            ("cpu_offered_cores", "CPU offered to containers.", state.cpu_offered_millicores / 1000),
            ("cpu_requested_cores", "CPU that containers request.", state.cpu_requested_millicores / 1000),
        ):
            yield GaugeMetricFamily(f"wherry_runner_{name}", documentation, value)
        yield from _http(state.http + self._http_over())
        refused = CounterMetricFamily(
            "wherry_runner_network_refused", "What the network refused to guests.", labels=["what"]
        )
        for what, count in zip(REFUSALS, add(state.network_refused, self._network_refused()), strict=True):
            refused.add_metric([what], count)
        yield refused


def _http(counts: HttpCounts) -> Iterator[Metric]:
    answers = CounterMetricFamily("wherry_runner_http_answers", "Answers of servers, by status.", labels=["status"])
    for status, count in zip(CLASSES, counts.answers, strict=True):
        answers.add_metric([status], count)
    yield answers
    took = HistogramMetricFamily(
        "wherry_runner_http_duration_seconds", "Answers of servers, from a request's head to the answer's end."
    )
    ends = [*map(str, BUCKETS_SECONDS), "+Inf"]
    took.add_metric([], list(zip(ends, itertools.accumulate(counts.buckets), strict=True)), counts.seconds)
    yield took
    for name, documentation, value in (
        ("http_refused", "Requests answered 503, for there were too many at once.", counts.refused),
        ("http_failed", "Requests whose guest trapped or gave no answer.", counts.failed),
        ("http_overdue", "Requests that were not done in time.", counts.overdue),
    ):
        yield CounterMetricFamily(f"wherry_runner_{name}", documentation, value)
    yield GaugeMetricFamily("wherry_runner_http_requests", "Requests that servers work on now.", counts.requests)
    yield GaugeMetricFamily("wherry_runner_http_connections", "Connections of servers.", counts.connections)


def _known(word: str, words: tuple[str, ...], *, otherwise: str) -> str:
    return word if word in words else otherwise
