"""Blocking work beside the event loop, and turns."""

from __future__ import annotations

import asyncio
import threading

import pytest

from wherry_runner.modules.threads import in_thread
from wherry_runner.modules.turns import Turns


def test_who_is_cancelled_waits_for_the_work_s_end() -> None:
    began, end = threading.Event(), threading.Event()
    ended = False

    def work() -> None:
        nonlocal ended
        began.set()
        end.wait()
        ended = True

    async def whole() -> None:
        task = asyncio.create_task(in_thread(work, on_cancel=end.set))
        await asyncio.to_thread(began.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended

    asyncio.run(whole())


def test_not_even_who_is_cancelled_twice_leaves_before() -> None:
    began, end = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        end.wait()
        raise OSError("nobody hears this")

    async def whole() -> None:
        task = asyncio.create_task(in_thread(work))
        await asyncio.to_thread(began.wait)
        for _ in range(3):
            task.cancel()
            for _ in range(5):
                await asyncio.sleep(0)
        assert not task.done()
        end.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(whole())


def test_what_work_raises_is_raised() -> None:
    def work() -> None:
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        asyncio.run(in_thread(work))


def test_turns_are_bounded_in_all_and_for_each_host() -> None:
    async def whole() -> None:
        turns = Turns(in_all=3, per_host=2)
        inside: list[str] = []
        leave = asyncio.Event()

        async def take(host: str) -> None:
            async with turns.take(host):
                inside.append(host)
                await leave.wait()

        tasks = [asyncio.create_task(take(host)) for host in ("slow", "slow", "slow", "slow", "a", "b", "c")]
        for _ in range(10):
            await asyncio.sleep(0)
        assert inside == ["slow", "slow", "a"], "the slow one's others take no place"
        tasks[2].cancel()
        leave.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert sorted(inside) == ["a", "b", "c", "slow", "slow", "slow"]
        assert turns._hosts == {}

    asyncio.run(whole())
