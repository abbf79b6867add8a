"""What is used, as `/metrics/resource` and `/stats/summary` tell it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from wherry_operator.kubelet.usage import Counter, NodeUse, Summary, metrics, of_pods
from wherry_operator.models import Object
from wherry_runner.protocol import ContainerStats, RunnerStats

NOW = datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
MILLISECONDS = 1767323045678


def pod(uid: str, name: str) -> Object:
    return {
        "metadata": {"namespace": "default", "name": name, "uid": uid},
        "status": {"startTime": "2026-01-02T03:00:00Z"},
    }


def runner(*containers: tuple[str, str, int, int], at: datetime = NOW) -> RunnerStats:
    return RunnerStats(
        time=at,
        cpu_nanoseconds=5_000_000_000,
        memory_bytes=1000,
        cpu_requested_millicores=0,
        memory_requested_bytes=0,
        workloads=1,
        containers=tuple(
            ContainerStats(
                workload=workload, container=name, container_id=f"run-{workload}-{name}", started_at=at - timedelta(minutes=1),
                cpu_nanoseconds=cpu, working_set_bytes=memory, log_bytes=7,
            )
            for workload, name, cpu, memory in containers
        ),
    )  # fmt: skip


def use(*answers: RunnerStats, at: datetime = NOW, cpu: int = 10_000_000_000, complete: bool = True) -> NodeUse:
    pods = of_pods([pod("u1", "hello"), pod("u2", "idle")], answers)
    return NodeUse(time=at, cpu_nanoseconds=cpu, memory_bytes=3000, pods=pods, complete=complete)


def test_metrics_are_those_that_metrics_server_reads() -> None:
    text = metrics(use(runner(("u1", "main", 1_500_000_000, 4096), ("other", "module", 9, 9))))
    values = [line for line in text.splitlines() if not line.startswith("#")]
    labels = '{container="main",namespace="default",pod="hello"}'
    assert values == [
        f"container_cpu_usage_seconds_total{labels} 1.5 {MILLISECONDS}",
        f"container_memory_working_set_bytes{labels} 4096 {MILLISECONDS}",
        f"container_start_time_seconds{labels} 1767322985.678 {MILLISECONDS}",
        f"node_cpu_usage_seconds_total 10.0 {MILLISECONDS}",
        f"node_memory_working_set_bytes 3000 {MILLISECONDS}",
        f'pod_cpu_usage_seconds_total{{namespace="default",pod="hello"}} 1.5 {MILLISECONDS}',
        f'pod_memory_working_set_bytes{{namespace="default",pod="hello"}} 4096 {MILLISECONDS}',
        "resource_scrape_error 0",
    ]
    assert "# TYPE container_cpu_usage_seconds_total counter\n" in text


def test_nothing_is_ever_zero() -> None:
    """metrics-server would drop the Pod, or the node."""
    text = metrics(use(runner(("u1", "main", 0, 0)), cpu=0, complete=False))
    assert "container_cpu_usage_seconds_total{" in text and " 1e-06 " in text
    assert "container_memory_working_set_bytes{" in text and " 1 " in text
    assert "node_" not in text
    assert "resource_scrape_error 1\n" in text


def test_the_nodes_counter_never_falls() -> None:
    counter = Counter()
    assert counter.total({"a": 5, "b": 7}) == 12
    assert counter.total({"b": 8}) == 13  # a is silent
    assert counter.total({"a": 6, "b": 8}) == 14
    assert counter.total({"a": 1, "b": 8}) == 15  # a was restarted


def test_the_summary_counts_a_rate_since_the_request_before() -> None:
    summary = Summary("wherry", NOW)
    first = summary.make(use(runner(("u1", "main", 1_000_000_000, 4096))))
    assert first["node"]["nodeName"] == "wherry"
    assert "usageNanoCores" not in first["pods"][0]["cpu"]
    later = NOW + timedelta(seconds=2)
    stats = runner(("u1", "main", 2_000_000_000, 4096), at=later)
    second = summary.make(use(stats, at=later, cpu=14_000_000_000))
    found = second["pods"][0]
    assert found["podRef"] == {"name": "hello", "namespace": "default", "uid": "u1"}
    assert found["startTime"] == "2026-01-02T03:00:00Z"
    assert found["containers"] == [
        {
            "name": "main",
            "startTime": "2026-01-02T03:03:07Z",
            "cpu": {
                "time": "2026-01-02T03:04:07Z",
                "usageCoreNanoSeconds": 2_000_000_000,
                "usageNanoCores": 500_000_000,
            },
            "memory": {"time": "2026-01-02T03:04:07Z", "usageBytes": 4096, "workingSetBytes": 4096, "rssBytes": 4096},
            "logs": {"time": "2026-01-02T03:04:07Z", "usedBytes": 7},
        }
    ]
    assert second["node"]["cpu"]["usageNanoCores"] == 2_000_000_000
    assert "logs" not in summary.make(use(stats, at=later), only_cpu_and_memory=True)["pods"][0]["containers"][0]
