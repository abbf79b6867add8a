"""The work queue, in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import virtual_time
from tests.support.operator_fakes import settle
from tests.support.virtual_time import now
from wherry_operator.queue import BUSY, BUSY_PER_SECOND, FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS, Fatal, Key, WorkQueue

A, B = Key("Pod", "boats", "a"), Key("Pod", "boats", "b")


class Work:
    """What was reconciled when; `held` keys wait for their release."""

    def __init__(self, do: Callable[[Key], float | None] | None = None) -> None:
        self.done: list[tuple[float, Key]] = []
        self.active: list[Key] = []
        self.held: dict[Key, asyncio.Event] = {}
        self._do = do or (lambda _: None)

    async def __call__(self, key: Key) -> float | None:
        assert key not in self.active, "two reconciles of one key at once"
        self.active.append(key)
        try:
            if key in self.held:
                await self.held[key].wait()
            self.done.append((now(), key))
            return self._do(key)
        finally:
            self.active.remove(key)

    def times(self, key: Key = A) -> list[float]:
        return [at for at, done in self.done if done == key]


@contextlib.asynccontextmanager
async def working(work: Callable[[Key], Awaitable[float | None]], workers: int = 4) -> AsyncIterator[WorkQueue]:
    queue = WorkQueue(work, workers=workers)
    task = asyncio.create_task(queue.run())
    try:
        yield queue
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def test_a_key_that_is_added_many_times_is_worked_on_once() -> None:
    async def scenario() -> None:
        work = Work()
        async with working(work) as queue:
            for _ in range(5):
                queue.add(A)
            queue.add(B)
            assert len(queue) == 2
            await settle()
            assert [key for _, key in work.done] == [A, B]

    virtual_time.run(scenario())


def test_one_key_is_worked_on_once_at_a_time_and_once_more_if_it_was_added_meanwhile() -> None:
    async def scenario() -> None:
        work = Work()
        work.held[A] = asyncio.Event()
        async with working(work) as queue:
            queue.add(A)
            await settle()
            for _ in range(5):
                queue.add(A)
            queue.add(B)
            await settle()
            assert (work.active, [key for _, key in work.done]) == ([A], [B])
            work.held[A].set()
            await settle()
            assert len(work.times(A)) == 2

    virtual_time.run(scenario())


def test_no_more_keys_are_worked_on_at_once_than_there_are_workers() -> None:
    async def scenario() -> None:
        keys = [Key("Pod", "boats", str(number)) for number in range(10)]
        work = Work()
        gate = asyncio.Event()
        work.held = dict.fromkeys(keys, gate)
        async with working(work, workers=3) as queue:
            for key in keys:
                queue.add(key)
            await settle()
            assert work.active == keys[:3]
            gate.set()
            await settle()
            assert {key for _, key in work.done} == set(keys)

    virtual_time.run(scenario())


def test_a_reconcile_says_when_to_look_again() -> None:
    async def scenario() -> None:
        answers = iter([10.0, 20.0, None])
        work = Work(lambda _: next(answers))
        async with working(work) as queue:
            queue.add(A)
            await asyncio.sleep(1000)
            assert work.times() == [0, 10, 30]

    virtual_time.run(scenario())


@pytest.mark.parametrize(("waits", "expected"), [((10, 5), [5]), ((5, 10), [5]), ((7, 7), [7]), ((0, 5), [0])])
def test_of_several_delays_the_earliest_wins(waits: tuple[float, ...], expected: list[float]) -> None:
    async def scenario() -> None:
        work = Work()
        async with working(work) as queue:
            for seconds in waits:
                queue.add_after(A, seconds)
            await asyncio.sleep(1000)
            assert work.times() == expected

    virtual_time.run(scenario())


def test_a_reconcile_before_a_delay_is_over_makes_that_delay_void() -> None:
    async def scenario() -> None:
        work = Work()
        async with working(work) as queue:
            queue.add_after(A, 10)
            await asyncio.sleep(1)
            queue.add(A)
            await asyncio.sleep(2)
            queue.add_after(A, 20)
            await asyncio.sleep(1000)
            assert work.times() == [1, 23]

    virtual_time.run(scenario())


def test_failures_are_tried_again_with_a_growing_back_off_that_a_success_ends(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    failing = True

    def do(_: Key) -> float | None:
        if failing:
            raise OSError("no")
        return None

    async def scenario() -> None:
        nonlocal failing
        work = Work(do)
        async with working(work) as queue:
            queue.add(A)
            await asyncio.sleep(600)
            times = work.times()
            pauses = [after - before for before, after in itertools.pairwise(times)]
            for number, pause in enumerate(pauses):
                base = min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2**number)
                assert 0.8 * base <= pause <= 1.2 * base + 0.001
            failing = False
            await asyncio.sleep(100)
            failing, work.done = True, []
            queue.add(A)
            await asyncio.sleep(1.3 * FIRST_RETRY_SECONDS)
            assert len(work.times()) == 2, "after a success the back-off begins anew"

    virtual_time.run(scenario())
    assert caplog.records[0].exc_info
    assert not caplog.records[1].exc_info, "the traceback is told once"


def test_one_failing_key_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    def do(key: Key) -> float | None:
        if key == A:
            raise TimeoutError
        return None

    async def scenario() -> None:
        work = Work(do)
        async with working(work, workers=1) as queue:
            queue.add(A)
            queue.add(B)
            await asyncio.sleep(1)
            assert work.times(B) == [0]

    virtual_time.run(scenario())
    assert "Pod boats/a: TimeoutError; again in" in caplog.text


def test_a_fatal_error_ends_the_queue_as_itself() -> None:
    class Deposed(Fatal):
        pass

    async def work(_: Key) -> float | None:
        raise Deposed("another leads")

    async def scenario() -> None:
        queue = WorkQueue(work)
        queue.add(A)
        with pytest.raises(Deposed, match="another leads"):
            await queue.run()

    virtual_time.run(scenario())


KEYS = st.sampled_from([A, B, Key("WasmWorkload", "boats", "a")])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), KEYS, st.just(0)),
        st.tuples(st.just("after"), KEYS, st.integers(0, 20)),
        st.tuples(st.just("sleep"), KEYS, st.integers(0, 15)),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(STEPS, st.integers(1, 3), st.integers(0, 5))
def test_no_wish_is_ever_forgotten(steps: list[tuple[str, Key, int]], workers: int, lasts: int) -> None:
    """Whatever is added is reconciled from beginning to end after it was added, or when it was due."""

    async def scenario() -> None:
        begun: list[tuple[float, Key]] = []
        active: set[Key] = set()

        async def work(key: Key) -> float | None:
            assert key not in active
            active.add(key)
            begun.append((now(), key))
            await asyncio.sleep(lasts)
            active.discard(key)
            return None

        wishes: list[tuple[float, Key]] = []
        async with working(work, workers=workers) as queue:
            for step, key, seconds in steps:
                match step:
                    case "add":
                        queue.add(key)
                        wishes.append((now(), key))
                    case "after":
                        queue.add_after(key, seconds)
                        wishes.append((now(), key))  # at the latest: an earlier reconcile decides anew
                    case _:
                        await asyncio.sleep(seconds)
            await asyncio.sleep(1000)
        for at, key in wishes:
            assert any(start >= at and of == key for start, of in begun), (at, key, begun)
        assert len(begun) <= len(wishes)

    virtual_time.run(scenario())


def test_a_key_says_what_it_is() -> None:
    assert str(A) == "Pod boats/a"


def test_it_is_busy_while_many_keys_are_worked_on_or_were_within_the_last_second() -> None:
    async def scenario() -> None:
        work = Work()
        work.held[A] = asyncio.Event()
        async with working(work) as queue:
            for number in range(BUSY - 1):
                queue.add(Key("Pod", "boats", f"held-{number}"))
                work.held[Key("Pod", "boats", f"held-{number}")] = work.held[A]
            await settle()
            assert not queue.busy_lately
            queue.add(A)
            assert queue.busy
            work.held[A].set()
            await asyncio.sleep(1.1)
            assert not queue.busy_lately

            for number in range(BUSY_PER_SECOND):
                assert not queue.busy_lately, number
                queue.add(B)
                await asyncio.sleep(0.9 / BUSY_PER_SECOND)
            assert not work.active
            assert queue.busy_lately
            assert not queue.busy
            await asyncio.sleep(0.2)
            assert not queue.busy_lately

    virtual_time.run(scenario())
