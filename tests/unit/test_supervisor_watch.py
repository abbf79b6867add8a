"""Who is told of what."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.operator_fakes import settle
from tests.support.runner_scene import (
    ID,
    INFO,
    Runner,
    container,
    holds,
    put,
    run,
    summary,
)
from wherry_runner.lives.supervisor import Refused
from wherry_runner.modules.progress import Pulling
from wherry_runner.protocol import (
    GoneEvent,
    HeartbeatEvent,
    Phase,
    Running,
    StatusEvent,
    SyncedEvent,
    WatchEvent,
)

# --- the watch --------------------------------------------------------------------------------------------------------


def test_the_watch_begins_with_a_snapshot_and_says_when_it_is_complete(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        for name in ("a", "b"):
            runner.put(id=name)
            await runner.running(id=name)
        events: list[WatchEvent] = []
        async for batch in runner.supervisor.watch(INFO):
            events += batch
            if isinstance(events[-1], SyncedEvent):
                break
        assert [event.status.id if isinstance(event, StatusEvent) else event for event in events] == [
            "a",
            "b",
            SyncedEvent(info=INFO),
        ]
        await runner.die()

    run(scenario())


def test_the_first_answer_tells_what_came_of_it_and_the_watch_is_never_ahead_of_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        watch = runner.supervisor.watch(INFO)
        await anext(watch)
        told = asyncio.ensure_future(anext(watch))

        runner.engine.free.clear()
        asked = asyncio.ensure_future(runner.supervisor.begin(ID, put()))
        await settle()
        assert summary(runner.supervisor.status(ID)) == "main=ContainerCreating"
        assert not asked.done()
        assert not told.done()
        runner.engine.free.set()
        answer = await asked
        assert summary(answer) == "main=Running"
        assert await told == [StatusEvent(status=answer)]

        again = await runner.supervisor.begin(ID, put(sequence=2))
        assert summary(again) == "main=Running", "of one that is there nothing is waited for"
        await runner.die()

    run(scenario())


def test_the_first_answer_waits_for_nothing_that_takes_long(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.modules.free.clear()
        asked = asyncio.ensure_future(runner.supervisor.begin("pulled", put()))
        await settle()
        runner.modules.on_progress[0](Pulling(done_bytes=0, total_bytes=0))
        assert summary(await asked) == "main=Pulling"

        answer = await runner.supervisor.begin("silent", put())
        assert summary(answer) == "main=ContainerCreating", "it said nothing for a while"
        assert summary(await runner.when(lambda _: True, "silent")) == "main=ContainerCreating", "now all may know"

        given_up = asyncio.ensure_future(runner.supervisor.begin("given-up", put()))
        await settle()
        given_up.cancel()
        await asyncio.gather(given_up, return_exceptions=True)
        assert summary(await runner.when(lambda _: True, "given-up")) == "main=ContainerCreating"

        watch = runner.supervisor.watch(INFO, heartbeat=0.001)
        while not isinstance((await anext(watch))[-1], HeartbeatEvent):
            pass
        with pytest.raises(Refused):
            await runner.supervisor.begin("too-many", put())
        assert await anext(watch) == [HeartbeatEvent()], "nobody has heard of it, so nobody hears that it is gone"
        await runner.die()

    run(scenario())


def test_a_slow_reader_gets_the_newest_state_only(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        watch = runner.supervisor.watch(INFO)
        assert await anext(watch) == [SyncedEvent(info=INFO)]
        runner.put()
        for number in range(5):
            (await runner.engine.guest(number)).exit(1)
        await runner.engine.guest(5)
        await settle()
        (event,) = await anext(watch)
        assert isinstance(event, StatusEvent)
        assert event.status == runner.supervisor.status(ID)
        assert event.status.containers[0].restart_count == 5
        runner.delete(grace=0)
        await holds(lambda: runner.supervisor.status(ID).phase is Phase.ENDED)
        runner.delete(sequence=101)
        assert await anext(watch) == [GoneEvent(id=ID)], "what came between is skipped"
        await runner.die()

    run(scenario())


def test_readers_do_not_wait_for_each_other(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        slow, fast = runner.supervisor.watch(INFO), runner.supervisor.watch(INFO)
        await anext(slow)
        await anext(fast)
        for number in range(3):
            runner.put(sequence=number + 1, content=f"c{number}")
            (event,) = await anext(fast)
            assert isinstance(event, StatusEvent)
            assert event.status.content_revision == f"c{number}"
        await runner.die()

    run(scenario())


def test_silence_is_filled_with_heartbeats_and_the_watch_ends_with_the_runner(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        watch = runner.supervisor.watch(INFO, heartbeat=0.001)
        await anext(watch)
        assert await anext(watch) == [HeartbeatEvent()]
        assert await anext(watch) == [HeartbeatEvent()]
        quiet = runner.supervisor.watch(INFO, heartbeat=3600)
        await anext(quiet)
        reading = asyncio.ensure_future(anext(quiet, None))
        await settle()
        await runner.die()
        assert await reading is None

    run(scenario())


def test_a_failed_life_takes_no_other_one_along(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A bug of ours: here, an engine that raises what it must not."""

    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(id="good")
        await runner.running(id="good")
        runner.engine.refusals = [RuntimeError("a bug")]
        runner.put(id="bad", containers=(container("a"), container("b")))
        await runner.ended("bad")
        assert all(guest.killed for guest in runner.engine.guests[1:])
        assert isinstance(runner.supervisor.status("good").containers[0].state, Running)
        assert "ended by an error of ours" in caplog.text
        await runner.die()

    run(scenario())


def test_nothing_of_a_secret_reaches_a_representation() -> None:
    assert "hunter2" not in repr(put(containers=(container(env={"PASSWORD": "hunter2"}),)))
