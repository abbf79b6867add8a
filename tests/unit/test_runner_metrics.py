"""What Prometheus gets: base units, bounded labels, every series from the start."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from wherry_runner.metrics import Metrics, State
from wherry_runner.protocol import Phase, RefusalReason


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name.removeprefix("wherry_runner_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def test_what_happens_is_counted() -> None:
    metrics = Metrics()
    metrics.pulled("ok", 0.3, 1000)
    metrics.pulled("error", 400)
    metrics.compiled("ok", 0.02)
    metrics.started(0.0007)
    metrics.ended("OOMKilled")
    metrics.ended("OOMKilled")
    metrics.restarted()
    metrics.refused(RefusalReason.NO_ROOM)
    metrics.memory_killed()
    found = samples(metrics)
    assert found["pull_duration_seconds_count", (("result", "ok"),)] == 1
    assert found["pull_duration_seconds_sum", (("result", "error"),)] == 400
    assert found["pull_bytes_total", ()] == 1000
    assert found["compile_duration_seconds_bucket", (("le", "0.025"), ("result", "ok"))] == 1
    assert found["start_duration_seconds_bucket", (("le", "0.0005"),)] == 0
    assert found["start_duration_seconds_bucket", (("le", "0.001"),)] == 1
    assert found["container_ends_total", (("reason", "OOMKilled"),)] == 2
    assert found["container_restarts_total", ()] == 1
    assert found["refusals_total", (("reason", "NoRoom"),)] == 1
    assert found["memory_kills_total", ()] == 1


def test_a_word_that_nobody_foresaw_makes_no_new_series() -> None:
    metrics = Metrics()
    before = samples(metrics).keys()
    metrics.ended("SomethingNew")
    metrics.pulled("half", 1)
    metrics.refused(RefusalReason.STOPPING)
    assert samples(metrics).keys() == before
    assert samples(metrics)["container_ends_total", (("reason", "Other"),)] == 1


def test_the_state_is_read_when_it_is_asked_for() -> None:
    metrics = Metrics()
    state = State(
        running=3,
        executor_losses=4,
        workloads={Phase.ACTIVE: 2},
        cpu_offered_millicores=1500,
        memory_offered_bytes=7,
        log_budget_bytes=9,
    )
    metrics.follow(lambda: state)
    with metrics.watching(), metrics.watching():
        found = samples(metrics)
    assert found["watch_readers", ()] == 2
    assert samples(metrics)["watch_readers", ()] == 0
    assert (found["containers_running", ()], found["executor_losses_total", ()]) == (3, 4)
    assert found["workloads", (("phase", "Active"),)] == 2
    assert found["workloads", (("phase", "Ended"),)] == 0
    assert found["cpu_offered_cores", ()] == 1.5
    assert (found["memory_offered_bytes", ()], found["log_budget_bytes", ()]) == (7, 9)


def test_two_runners_in_one_process_count_apart() -> None:
    one, two = Metrics(), Metrics()
    one.restarted()
    assert samples(two)["container_restarts_total", ()] == 0


def test_names_have_base_units_and_our_prefix() -> None:
    metrics = Metrics()
    metrics.follow(State)
    for family in text_string_to_metric_families(metrics.text().decode()):
        assert family.name.startswith(("wherry_runner_", "process_")), family.name
        assert not any(word in family.name for word in ("milli", "mib", "_ms", "nano")), family.name
        assert family.documentation.endswith("."), family.name
