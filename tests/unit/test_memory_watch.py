"""Who ends when the runner's memory runs out, and that somebody does."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.fake_engine import FakeGuest
from tests.support.family import Family
from tests.support.runner_scene import run
from wherry_runner.execution.engine import CompiledModule, GuestExit, GuestLog, GuestSpec, ModuleKind
from wherry_runner.network_counts import NetworkCounts
from wherry_runner.resources.cgroup import MemoryUse
from wherry_runner.resources.memory_watch import (
    FILL_BYTES_PER_SECOND,
    LONGEST_PAUSE_SECONDS,
    OVERHEAD_BYTES,
    SHORTEST_PAUSE_SECONDS,
    Candidate,
    MemoryWatch,
    Watched,
    message,
    pause,
    victim,
)

MIB = 1 << 20
BIRTH = datetime(2026, 1, 2, tzinfo=UTC)
LOW, HIGH = MemoryUse(50 * MIB, 100 * MIB), MemoryUse(96 * MIB, 100 * MIB)


@pytest.fixture(scope="module")
def family() -> Iterator[Family]:
    """Guests that have 32 MiB each."""
    with Family(3) as real:
        yield real


class Quiet:
    """A guest that is only chosen or not."""

    pid = 1

    def __init__(self, number: int) -> None:
        self.started_at = BIRTH + timedelta(seconds=number)

    async def wait(self) -> GuestExit:
        raise AssertionError

    def kill(self, *, reason: str = "", message: str = "") -> None:
        raise AssertionError

    async def serving(self) -> bool:
        raise AssertionError

    def http_counts(self) -> None:
        raise AssertionError

    def network_counts(self) -> NetworkCounts:
        raise AssertionError

    def drain(self) -> None:
        raise AssertionError

    async def write(self, data: bytes) -> None:
        raise AssertionError

    def close_input(self) -> None:
        raise AssertionError


def candidate(used: int, request: int, *, guaranteed: bool = False, number: int = 0) -> Candidate:
    watched = Watched(
        workload=f"w{number}", container="main", request_bytes=request, guaranteed=guaranteed, guest=Quiet(number)
    )
    return Candidate(watched, used)


CANDIDATES = st.lists(
    st.builds(
        candidate,
        st.integers(0, 1 << 32),
        st.integers(0, 1 << 32),
        guaranteed=st.booleans(),
        number=st.integers(0, 100),
    ),
    min_size=1,
)


@given(CANDIDATES)
def test_no_guest_within_its_request_ends_while_one_over_its_own_exists(candidates: list[Candidate]) -> None:
    chosen = victim(candidates)
    assert chosen is not None
    over = [each for each in candidates if each.over_bytes > 0]
    if over:
        assert chosen in over
        others = [each for each in over if not each.watched.guaranteed]
        assert chosen.over_bytes == max(each.over_bytes for each in others or over)
    assert victim(candidates, only_over=True) == (chosen if over else None)


@given(st.lists(st.tuples(st.integers(0, 1 << 32), st.integers(0, 1 << 32)), min_size=1), st.integers(0, 1 << 32))
def test_a_guest_whose_limit_is_its_request_is_never_before_another(others: list[tuple[int, int]], limit: int) -> None:
    guaranteed = candidate(limit + OVERHEAD_BYTES, limit, guaranteed=True, number=1000)  # all that it can reach
    chosen = victim([guaranteed, *(candidate(used, request) for used, request in others)])
    assert chosen is not None
    assert not chosen.watched.guaranteed


def test_of_equals_the_youngest_ends() -> None:
    young, old = candidate(50 * MIB, MIB, number=2), candidate(50 * MIB, MIB, number=1)
    assert victim([old, young]) is young
    assert victim([]) is None


@given(st.integers(0, 1 << 40), st.integers(1 << 20, 1 << 40))
def test_the_pause_is_shorter_than_what_is_free_can_last(used: int, limit: int) -> None:
    seconds = pause(MemoryUse(used, limit))
    assert SHORTEST_PAUSE_SECONDS <= seconds <= LONGEST_PAUSE_SECONDS
    if seconds > SHORTEST_PAUSE_SECONDS:
        assert used + seconds * FILL_BYTES_PER_SECOND <= 0.951 * limit


def test_the_message_says_whose_memory_ran_out() -> None:
    assert message(candidate(64 * MIB, 24 * MIB), HIGH) == (
        "the runner's memory ran out (96.0 MiB of 100.0 MiB in use), not the container's own limit: the container had "
        "64.0 MiB, 40.0 MiB more than it requests"
    )
    assert message(candidate(2 * MIB, 24 * MIB), HIGH).endswith(
        "2.0 MiB, which is within its request, as with all others"
    )


class Meter:
    """Says what it is told to, again and again."""

    def __init__(self, *says: MemoryUse | OSError) -> None:
        self.says = list(says)
        self.looked = asyncio.Event()

    def read(self) -> MemoryUse:
        said = self.says.pop(0) if len(self.says) > 1 else self.says[0]
        if len(self.says) == 1:
            self.looked.set()
        if isinstance(said, OSError):
            raise said
        return said


def fake_guest(number: int) -> FakeGuest:
    module = CompiledModule(path=Path("/m"), digest="sha256:" + "1" * 64, kind=ModuleKind.CORE, name="m")
    log = GuestLog(path=Path("/log"), slot=0)
    return FakeGuest(GuestSpec(guest_id=str(number), module=module, argv=(), environment=(), log=log), number)


def test_one_guest_is_killed_at_a_time_until_there_is_room(family: Family) -> None:
    kills = 0

    def count() -> None:
        nonlocal kills
        kills += 1

    async def scenario() -> None:
        guests = [fake_guest(number) for number in range(3)]
        for guest, pid in zip(guests, family.children, strict=True):
            guest.pid = pid
        requests = [64 * MIB, MIB, 2 * MIB]  # each has 32 MiB: the second and the third are over what they request

        def watched() -> list[Watched]:
            return [
                Watched(workload=f"w{n}", container="main", request_bytes=request, guaranteed=False, guest=guest)
                for n, (guest, request) in enumerate(zip(guests, requests, strict=True))
                if not guest.killed
            ]

        meter = Meter(OSError("gone"), LOW, HIGH, HIGH, LOW)
        task = asyncio.create_task(
            MemoryWatch(watched=watched, executor_pid=lambda: family.parent, on_kill=count, meter=meter).run()
        )
        first = await guests[1].wait()
        assert (first.exit_code, first.reason) == (137, "OOMKilled")
        assert "the runner's memory ran out" in first.message
        await guests[2].wait()
        await meter.looked.wait()
        assert not guests[0].killed
        task.cancel()

    run(scenario())
    assert kills == 2


def test_on_a_machine_with_others_who_is_within_its_request_stays(family: Family) -> None:

    async def scenario() -> None:
        guest = fake_guest(0)
        guest.pid = family.children[0]
        kept = Watched(workload="w", container="c", request_bytes=64 * MIB, guaranteed=False, guest=guest)
        meter = Meter(MemoryUse(99, 100, shared=True), MemoryUse(1, 100, shared=True))
        watch = MemoryWatch(
            watched=lambda: [kept], executor_pid=lambda: family.parent, on_kill=lambda: None, meter=meter
        )
        task = asyncio.create_task(watch.run())
        await meter.looked.wait()
        assert not guest.killed
        task.cancel()

    run(scenario())
