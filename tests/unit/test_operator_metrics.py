"""What Prometheus is told of an operator."""

from __future__ import annotations

import asyncio
import contextlib

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from wherry_operator.health import HealthServer
from wherry_operator.metrics import Metrics, State
from wherry_operator.queue import Key, WorkQueue


def values(text: bytes) -> dict[tuple[str, ...], float]:
    """Each sample by its name and its labels' values."""
    return {
        (sample.name.removeprefix("wherry_operator_"), *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_every_reconcile_is_counted_by_its_result_and_every_wait_measured() -> None:
    async def run() -> dict[tuple[str, ...], float]:
        metrics = Metrics()
        done = asyncio.Event()

        async def reconcile(key: Key) -> float | None:
            match key.name:
                case "bad":
                    raise RuntimeError
                case "later":
                    return 1000.0
            done.set()
            return None

        queue = WorkQueue(reconcile, workers=1, metrics=metrics)
        metrics.follow(lambda: State(queue_depth=len(queue), queue_delayed=queue.delayed))
        queue.add(Key("Pod", "n", "bad"))
        queue.add(Key("WasmWorkload", "n", "later"))
        queue.add(Key("WasmWorkload", "n", "good"))
        assert values(metrics.text())["queue_depth",] == 3
        task = asyncio.create_task(queue.run())
        await done.wait()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return values(metrics.text())

    found = asyncio.run(run())
    assert found["reconcile_duration_seconds_count", "Pod", "error"] == 1
    assert found["reconcile_duration_seconds_count", "Pod", "ok"] == 0
    assert found["reconcile_duration_seconds_count", "WasmWorkload", "again"] == 1
    assert found["reconcile_duration_seconds_count", "WasmWorkload", "ok"] == 1
    assert (found["reconcile_retries_total", "Pod"], found["reconcile_retries_total", "WasmWorkload"]) == (1, 0)
    assert found["queue_wait_seconds_count",] == 3
    assert (found["queue_depth",], found["queue_delayed",]) == (0, 2)


def test_the_state_is_read_when_it_is_asked_for_and_no_label_is_a_users() -> None:
    metrics = Metrics()
    state = State()
    metrics.follow(lambda: state)
    found = values(metrics.text())
    assert (found["leader",], found["epoch",], found["workloads", "Running"]) == (0, 0, 0)
    assert ("resync_age_seconds",) not in found
    state = State(
        workloads={"Running": 3, "CrashLoopBackOff": 1, "ErrImagePull": 2},
        pods={"Pending": 1},
        runners={"ready": 2, "lost": 1},
        instances=7,
        leader=True,
        epoch=4,
        resync_age_seconds=1.5,
    )
    found = values(metrics.text())
    assert (found["workloads", "Running"], found["workloads", "Waiting"]) == (3, 3)
    assert (found["pods", "Pending"], found["runners", "ready"], found["runners", "lost"]) == (1, 2, 1)
    assert (found["instances",], found["leader",], found["epoch",], found["resync_age_seconds",]) == (7, 1, 4, 1.5)
    assert not any("CrashLoopBackOff" in name for name in found)


def test_they_are_served_beside_the_health_checks() -> None:
    async def run() -> None:
        server = HealthServer("127.0.0.1", 0, live={}, ready={}, metrics=Metrics())
        port = await server.start()
        async with (
            aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
            session.get("/metrics") as response,
        ):
            assert response.headers["Content-Type"].startswith("text/plain")
            assert ("queue_wait_seconds_count",) in values(await response.read())
        await server.close()

    asyncio.run(run())
