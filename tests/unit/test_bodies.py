"""Many bodies at once in bounded memory; who stalls holds up nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.support.runner_scene import holds, run
from wherry_runner.serving.bodies import Bodies, BodyTooLarge, BodyTooSlow


class Sender:
    """A body whose pieces are sent by a test."""

    def __init__(self, *pieces: bytes, ends: bool = True) -> None:
        self.pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.taken = 0
        for piece in (*pieces, *([None] if ends else [])):
            self.pieces.put_nowait(piece)

    async def iter_any(self) -> AsyncIterator[bytes]:
        while (piece := await self.pieces.get()) is not None:
            self.taken += 1
            yield piece


async def read(bodies: Bodies, sender: Sender, announced: int | None = None) -> bytes:
    return await bodies.read(sender, announced_bytes=announced, max_bytes=100)


def test_a_body_is_what_was_sent() -> None:
    async def scenario() -> None:
        bodies = Bodies()
        assert await read(bodies, Sender(b"ab", b"", b"cd")) == b"abcd"
        assert await read(bodies, Sender()) == b""

    run(scenario())


def test_what_is_too_large_is_refused_before_or_while_it_comes() -> None:
    async def scenario() -> None:
        bodies = Bodies()
        announced = Sender(b"x")
        with pytest.raises(BodyTooLarge):
            await read(bodies, announced, announced=101)
        assert announced.taken == 0
        with pytest.raises(BodyTooLarge):
            await read(bodies, Sender(b"x" * 60, b"x" * 41))
        assert await read(bodies, Sender(b"x" * 100), announced=100) == b"x" * 100

    run(scenario())


def test_who_stalls_is_given_up() -> None:
    async def scenario() -> None:
        with pytest.raises(BodyTooSlow):
            await read(Bodies(seconds=0.01), Sender(b"x", ends=False))

    run(scenario())


def test_over_the_budget_only_the_oldest_is_read_on_and_all_get_through() -> None:
    async def scenario() -> None:
        bodies = Bodies(budget_bytes=50)
        senders = [Sender(b"x" * 30, b"y" * 30, ends=False) for _ in range(4)]
        tasks = [asyncio.create_task(read(bodies, sender)) for sender in senders]
        await holds(lambda: senders[0].taken == 2 and all(sender.taken for sender in senders))
        for _ in range(20):
            await asyncio.sleep(0)
        assert [sender.taken for sender in senders] == [2, 1, 1, 1]
        for sender in senders:
            sender.pieces.put_nowait(None)
        assert {len(body) for body in await asyncio.gather(*tasks)} == {60}

    run(scenario())


def test_a_client_that_goes_away_lets_the_others_on() -> None:
    async def scenario() -> None:
        bodies = Bodies(budget_bytes=50)
        stalled, other = Sender(b"x" * 60, ends=False), Sender(b"y" * 30, b"z" * 30)
        first = asyncio.create_task(read(bodies, stalled))
        await holds(lambda: stalled.taken == 1)
        second = asyncio.create_task(read(bodies, other))
        await holds(lambda: other.taken == 1)
        assert not second.done()
        first.cancel()
        assert await second == b"y" * 30 + b"z" * 30

    run(scenario())
