"""Events: told once, counted after that, and never a flood."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from tests.support import virtual_time
from tests.support.fake_kube import FakeKube
from tests.support.operator_fakes import settle
from tests.support.virtual_time import now
from wherry_operator.events import (
    AT_ONCE,
    BURST,
    MAX_MESSAGE,
    PATIENCE_SECONDS,
    PER_SECOND,
    PER_SECOND_WHILE_BUSY,
    QUEUE,
    REFILL_SECONDS,
    SAME_AGAIN_SECONDS,
    EventRecorder,
)
from wherry_operator.kube import Forbidden, Kube
from wherry_operator.status.containers import rfc3339
from wherry_operator.status.happenings import Happening

EVENTS = "/api/v1/namespaces/boats/events"
STARTED = Happening("Normal", "Started", "Container started", "main")


def about(uid: str = "u-1", kind: str = "Pod", name: str = "hello") -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "boats", "uid": uid, "resourceVersion": "7"},
    }


class Recorder:
    def __init__(self) -> None:
        self.kube = FakeKube()
        self.now = 0.0
        self.events = EventRecorder(cast("Kube", self.kube), component="wherry", host="node", clock=lambda: self.now)

    async def written(self) -> list[dict[str, Any]]:
        """Write what waits; all Events, in their order."""
        task = asyncio.create_task(self.events.run())
        await settle()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return list(self.kube.objects.values())


def test_an_event_says_what_happened_to_which_container() -> None:
    async def scenario() -> None:
        recorder = Recorder()
        recorder.events.record(about(), STARTED)
        recorder.events.record(about("u-2", "WasmWorkload"), Happening("Warning", "Failed", "m", "module"))
        first, second = await recorder.written()
        assert first["involvedObject"] == {
            "apiVersion": "v1",
            "kind": "Pod",
            "name": "hello",
            "namespace": "boats",
            "uid": "u-1",
            "resourceVersion": "7",
            "fieldPath": "spec.containers{main}",
        }
        assert (first["type"], first["reason"], first["message"], first["count"]) == (
            "Normal",
            "Started",
            "Container started",
            1,
        )
        assert first["source"] == {"component": "wherry", "host": "node"}
        assert first["firstTimestamp"] == first["lastTimestamp"]
        assert "fieldPath" not in second["involvedObject"]

    asyncio.run(scenario())


def test_an_event_of_an_init_container_names_it_as_one() -> None:
    async def scenario() -> None:
        recorder = Recorder()
        spec = {"initContainers": [{"name": STARTED.container}]}
        recorder.events.record({**about(), "spec": spec}, STARTED)
        (event,) = await recorder.written()
        assert event["involvedObject"]["fieldPath"] == "spec.initContainers{main}"

    asyncio.run(scenario())


def test_the_same_twice_in_a_moment_is_one_and_later_it_is_counted() -> None:
    async def scenario() -> None:
        recorder = Recorder()
        for _ in range(3):
            recorder.events.record(about(), STARTED)
            recorder.now += SAME_AGAIN_SECONDS / 3 - 0.1
        (event,) = await recorder.written()
        assert event["count"] == 1
        for expected in (2, 3):
            recorder.now += SAME_AGAIN_SECONDS
            recorder.events.record(about(), STARTED)
            (event,) = await recorder.written()
            assert event["count"] == expected

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "other",
    [
        (about("u-2"), STARTED),
        (about(), Happening("Warning", "Started", "Container started", "main")),
        (about(), Happening("Normal", "Created", "Container started", "main")),
        (about(), Happening("Normal", "Started", "Container startet", "main")),
        (about(), Happening("Normal", "Started", "Container started", "side")),
    ],
)
def test_what_differs_in_anything_is_another_event(other: tuple[dict[str, Any], Happening]) -> None:
    async def scenario() -> None:
        recorder = Recorder()
        recorder.events.record(about(), STARTED)
        recorder.events.record(*other)
        assert len(await recorder.written()) == 2

    asyncio.run(scenario())


def test_an_event_that_has_aged_away_is_told_anew() -> None:
    async def scenario() -> None:
        recorder = Recorder()
        recorder.events.record(about(), STARTED)
        (event,) = await recorder.written()
        recorder.kube.remove(f"{EVENTS}/{event['metadata']['name']}")
        recorder.now += 7200
        recorder.events.record(about(), STARTED)
        (again,) = await recorder.written()
        assert again["count"] == 1
        assert again["metadata"]["name"] != event["metadata"]["name"]

    asyncio.run(scenario())


def test_one_object_can_not_cause_a_flood_and_hinders_no_other() -> None:
    async def scenario() -> None:
        recorder = Recorder()

        def storm(number: int) -> None:
            for index in range(number):
                recorder.events.record(about(), Happening("Warning", "Failed", f"{recorder.now} {index}"))

        storm(BURST + 10)
        recorder.events.record(about("u-2"), STARTED)
        assert len(await recorder.written()) == BURST + 1
        assert recorder.events.dropped == 10
        recorder.now += REFILL_SECONDS
        storm(3)
        assert len(await recorder.written()) == BURST + 2
        recorder.now += 1000 * REFILL_SECONDS
        storm(2 * BURST)
        assert len(await recorder.written()) == 2 * BURST + 2

    asyncio.run(scenario())


def test_recording_never_waits_and_never_grows_without_bound() -> None:
    async def scenario() -> None:
        recorder = Recorder()
        for number in range(QUEUE + 100):
            recorder.events.record(about(f"u-{number}"), STARTED)
        assert recorder.events.dropped == 100

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("busy", "at_once", "per_second"), [(False, AT_ONCE, PER_SECOND), (True, 10, PER_SECOND_WHILE_BUSY)]
)
def test_a_burst_is_told_of_at_a_pace_and_slower_while_there_are_more_urgent_things(
    busy: bool, at_once: int, per_second: float
) -> None:
    async def scenario() -> None:
        kube = FakeKube()
        events = EventRecorder(cast("Kube", kube), component="wherry", host="node", clock=now, busy=lambda: busy)
        for number in range(1000):
            events.record(about(f"u-{number}", name=f"hello-{number}"), STARTED)
        task = asyncio.create_task(events.run())
        await asyncio.sleep(0.001)
        assert len(kube.objects) == at_once
        await asyncio.sleep(4)
        assert len(kube.objects) == pytest.approx(at_once + 4 * per_second, abs=1)
        task.cancel()

    virtual_time.run(scenario())


def test_what_has_waited_for_long_waits_for_nothing_more_urgent_and_is_told_with_its_own_time() -> None:
    async def scenario() -> None:
        kube = FakeKube()
        events = EventRecorder(cast("Kube", kube), component="wherry", host="node", clock=now, busy=lambda: True)
        for number in range(1000):
            events.record(about(f"u-{number}", name=f"hello-{number}"), STARTED)
        recorded = rfc3339(datetime.now(UTC))
        task = asyncio.create_task(events.run())
        await asyncio.sleep(PATIENCE_SECONDS)
        before = len(kube.objects)
        assert before == pytest.approx(10 + PATIENCE_SECONDS * PER_SECOND_WHILE_BUSY, abs=2)
        await asyncio.sleep(2)
        assert len(kube.objects) == pytest.approx(before + 2 * PER_SECOND, abs=5)
        assert all(body["firstTimestamp"] <= recorded for body in kube.objects.values())
        task.cancel()

    virtual_time.run(scenario())


def test_an_event_that_can_not_be_written_is_skipped() -> None:
    async def scenario() -> None:
        recorder = Recorder()
        recorder.kube.errors[EVENTS] = [Forbidden(403, "Forbidden", "the namespace is being terminated")]
        recorder.events.record(about("u-1"), STARTED)
        recorder.events.record(about("u-2"), STARTED)
        (event,) = await recorder.written()
        assert event["involvedObject"]["uid"] == "u-2"

    asyncio.run(scenario())


def test_long_messages_and_names_still_fit() -> None:
    async def scenario() -> None:
        recorder = Recorder()
        recorder.events.record(about(name="n" * 253), Happening("Normal", "r", "m" * 5000))
        (event,) = await recorder.written()
        assert len(event["message"]) == MAX_MESSAGE
        assert len(event["metadata"]["name"]) <= 253

    asyncio.run(scenario())
