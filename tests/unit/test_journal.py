"""The journal: nothing that was told is ever lost, whatever the byte at which a write broke off."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.support.runner_scene import largest_file
from wherry_runner.journal.journals import NOTHING, Journal, Journals, Past
from wherry_runner.protocol import Failure, History, Terminated

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
FAILURE = Failure(reason="Evicted", message="it took too much")

Known = dict[str, tuple[tuple[int, int], dict[str, Past], Failure | None]]


def end(code: int = 0, run: str = "a") -> Terminated:
    return Terminated(
        exit_code=code,
        reason="Completed" if code == 0 else "Error",
        message='a "quoted"\nline',
        container_id=run,
        started_at=AT,
        finished_at=AT + timedelta(seconds=1),
    )


def known(journals: Journals) -> Known:
    """All that is known, without journals in which nothing was noted."""
    found = {}
    for name in journals.workloads():
        journal = journals.open(name)
        if journal.order != (0, 0) or journal.past or journal.failure:
            found[name] = (journal.order, dict(journal.past), journal.failure)
    return found


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await scenario()

    asyncio.run(bounded())


def read(directory: Path) -> Known:
    """What the next process knows."""
    found: Known = {}

    async def look() -> None:
        journals = Journals(directory)
        found.update(known(journals))
        await journals.close()

    play(look)
    return found


def write_lives(journals: Journals, note: Callable[[], None] = lambda: None) -> None:
    """Every kind of record; `note` is called after each."""
    one, two = journals.open("w1"), journals.open("w2")
    steps: list[Callable[[], None]] = [
        lambda: one.accepted(3, 7),
        lambda: one.started("main", container_id="a", restart_count=0, at=AT),
        lambda: two.accepted(3, 8),
        lambda: one.ended("main", end(1)),
        lambda: one.started("main", container_id="b", restart_count=1, at=AT),
        lambda: one.withdrawn("main", Past(container_id="a", restart_count=0, started_at=AT, terminated=end(1))),
        lambda: one.started("side", container_id="c", restart_count=0, at=AT),
        lambda: two.started("main", container_id="d", restart_count=0, at=AT),
        lambda: two.withdrawn("main", NOTHING),
        lambda: two.failed(FAILURE),
        lambda: journals.drop("w1"),
        lambda: journals.open("w1").accepted(4, 1),
    ]
    for step in steps:
        step()
        note()


def newest(directory: Path) -> Path:
    """The file that is written to."""
    return max(directory.glob("*.records"), key=lambda path: int(path.stem))


# --- what is written is read ------------------------------------------------------------------------------------------


def test_a_journal_read_again_says_the_same(tmp_path: Path) -> None:
    async def scenario() -> None:
        journals = Journals(tmp_path)
        journal = journals.open("w1")
        journal.accepted(3, 7)
        journal.started("main", container_id="a", restart_count=0, at=AT)
        journal.ended("main", end(1))
        journal.started("side", container_id="c", restart_count=2, at=AT)
        journal.failed(FAILURE)
        await journals.close()

    play(scenario)
    expected: Known = {
        "w1": (
            (3, 7),
            {
                "main": Past(container_id="a", restart_count=0, started_at=AT, terminated=end(1)),
                "side": Past(container_id="c", restart_count=2, started_at=AT),
            },
            FAILURE,
        )
    }
    assert read(tmp_path) == expected
    assert read(tmp_path) == expected, "also from a base"


def test_a_line_torn_at_any_byte_is_ignored_and_the_next_record_is_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    steps: list[tuple[int, Known]] = [(0, {})]

    async def live() -> None:
        journals = Journals(tmp_path / "whole", sync=lambda _: None)
        file = newest(tmp_path / "whole")
        write_lives(journals, lambda: steps.append((file.stat().st_size, known(journals))))
        await journals.close()

    play(live)
    whole = newest(tmp_path / "whole").read_bytes()
    assert steps[-1][0] == len(whole)

    async def cut_everywhere() -> None:
        for cut in range(len(whole) + 1):
            directory = tmp_path / f"cut-{cut}"
            directory.mkdir()
            (directory / "1.records").write_bytes(whole[:cut])
            expected = [state for size, state in steps if size <= cut][-1]
            journals = Journals(directory, sync=lambda _: None)
            assert known(journals) == expected, cut
            journals.open("w3").accepted(1, 1)
            await journals.close()
            again = Journals(directory, sync=lambda _: None)
            assert known(again) == {**expected, "w3": ((1, 1), {}, None)}, cut
            await again.close()

    play(cut_everywhere)


@pytest.mark.parametrize(
    "line",
    [
        *(b"\0\0\0\0", b"[]", b"3", b"{}", b"\xff", b'{"event":"ended"}'),
        *(b'{"workload":"w1","event":"new","x":1}', b'{"workload":"w1","event":"ended","container":"main","end":{}}'),
        b'{"workload":"w1","event":"accepted","epoch":"x","sequence":1}',
    ],
)
def test_a_record_that_makes_no_sense_costs_only_itself(tmp_path: Path, line: bytes) -> None:
    async def scenario() -> None:
        journals = Journals(tmp_path)
        journals.open("w1").accepted(1, 1)
        with open(newest(tmp_path), "ab") as file:
            file.write(line + b"\n")
        journals.open("w1").started("main", container_id="a", restart_count=0, at=AT)
        await journals.close()

    play(scenario)
    assert read(tmp_path)["w1"] == ((1, 1), {"main": Past(container_id="a", started_at=AT)}, None)


@pytest.mark.parametrize("room", [0, 1, 20])
def test_a_write_that_the_disk_takes_only_in_part_is_an_error_and_harms_no_other_record(
    tmp_path: Path, room: int
) -> None:
    async def scenario() -> None:
        journals = Journals(tmp_path)
        journal = journals.open("w1")
        journal.accepted(1, 1)
        size = newest(tmp_path).stat().st_size
        with largest_file(size + room), pytest.raises(OSError):
            journal.started("main", container_id="a", restart_count=0, at=AT)
        assert newest(tmp_path).stat().st_size == size
        assert "main" not in journal.past
        journal.started("main", container_id="b", restart_count=0, at=AT)
        await journals.close()

    play(scenario)
    assert read(tmp_path)["w1"][1]["main"].container_id == "b"


def test_a_start_that_was_withdrawn_leaves_what_ran_before(tmp_path: Path) -> None:
    before = Past(container_id="b", restart_count=0, started_at=AT, terminated=end(3, "b"))

    async def scenario() -> None:
        journals = Journals(tmp_path)
        journal = journals.open("w1")
        journal.started("main", container_id="a", restart_count=0, at=AT)
        journal.withdrawn("main", NOTHING)
        assert "main" not in journal.past
        journal.started("main", container_id="b", restart_count=0, at=AT)
        journal.ended("main", end(3, "b"))
        journal.started("main", container_id="c", restart_count=1, at=AT)
        journal.withdrawn("main", before)
        assert journal.past["main"] == before
        await journals.close()

    play(scenario)
    assert read(tmp_path)["w1"][1] == {"main": before}


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_that_has_grown_is_followed_by_the_next_and_nothing_is_lost(tmp_path: Path) -> None:
    async def scenario() -> None:
        journals = Journals(tmp_path, file_bytes=2000)
        names = set()
        for number in range(60):
            journal = journals.open(f"w{number}")
            journal.accepted(1, number)
            journal.started("main", container_id="a", restart_count=number, at=AT)
            journal.ended("main", end(number % 3))
            await journal.synced()
            names.add(newest(tmp_path).name)
            if number % 2:
                journals.drop(f"w{number}")
        assert len(names) > 5
        expected = known(journals)
        assert len(expected) == 30
        await journals.close()
        assert sorted(path.suffix for path in tmp_path.iterdir()) == [".base", ".records"]
        again = Journals(tmp_path)
        assert known(again) == expected
        await again.close()

    play(scenario)


def test_starts_alone_make_the_next_file_too(tmp_path: Path) -> None:
    async def scenario() -> None:
        journals = Journals(tmp_path, file_bytes=1000)
        for number in range(100):
            journals.open(f"w{number}").accepted(1, number)
            await asyncio.sleep(0)
        await journals.close()
        assert newest(tmp_path).name != "1.records"

    play(scenario)
    assert len(read(tmp_path)) == 100


@pytest.mark.parametrize("kept", ["none", "base.new", "base, and the files before it"])
def test_a_process_that_ends_while_it_makes_a_base_loses_nothing(tmp_path: Path, kept: str) -> None:
    async def scenario() -> None:
        journals = Journals(tmp_path)
        write_lives(journals)
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        expected = known(journals)
        await journals.close()
        again = Journals(tmp_path)  # makes a base of what was there, and removes that
        again.open("w9").accepted(1, 1)
        await again.close()
        if kept != "base, and the files before it":
            (base,) = tmp_path.glob("*.base")
            base.unlink()
            if kept == "base.new":
                (tmp_path / "base.new").write_bytes(b'{"workload":"w1","ev')
        for name, content in before.items():
            (tmp_path / name).write_bytes(content)
        third = Journals(tmp_path)
        assert known(third) == {**expected, "w9": ((1, 1), {}, None)}
        await third.close()

    play(scenario)


def test_nobody_else_can_read_a_journal(tmp_path: Path) -> None:
    async def scenario() -> None:
        journals = Journals(tmp_path / "state")
        journals.open("w1").accepted(1, 1)
        await journals.close()

    play(scenario)
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    for path in (tmp_path / "state").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600, path


# --- the disk ---------------------------------------------------------------------------------------------------------


class Disk:
    """Brings files to the disk when it is told to, and counts how often."""

    def __init__(self) -> None:
        self.syncs = 0
        self.free = threading.Event()
        self.free.set()
        self.error: OSError | None = None

    def sync(self, descriptor: int) -> None:
        assert self.free.wait(10)
        self.syncs += 1
        if self.error is not None:
            raise self.error
        os.fdatasync(descriptor)


def test_many_ends_at_once_wait_for_the_disk_together_and_the_loop_goes_on(tmp_path: Path) -> None:
    disk = Disk()

    async def scenario() -> None:
        journals = Journals(tmp_path, sync=disk.sync)
        disk.free.clear()
        before = disk.syncs
        journal = journals.open("w1")

        async def ends(number: int) -> None:
            journal.ended(f"c{number}", end())
            await journal.synced()

        waiting = [asyncio.create_task(ends(number)) for number in range(1000)]
        await asyncio.sleep(0)
        assert len(journal.past) == 1000, "the disk keeps none of them from going on"
        assert not any(task.done() for task in waiting)
        disk.free.set()
        await asyncio.gather(*waiting)
        assert disk.syncs - before <= 2
        await journals.close()

    play(scenario)
    assert len(read(tmp_path)["w1"][1]) == 1000


def test_an_end_that_comes_while_the_disk_works_waits_for_the_next_round(tmp_path: Path) -> None:
    disk = Disk()

    async def scenario() -> None:
        journals = Journals(tmp_path, sync=disk.sync)
        disk.free.clear()
        journal = journals.open("w1")
        before = disk.syncs
        first = asyncio.create_task(journal.synced())
        await asyncio.sleep(0.01)  # the thread is in its round, or about to begin it
        second = asyncio.create_task(journal.synced())
        await asyncio.sleep(0)
        disk.free.set()
        await first
        await second
        assert disk.syncs - before == 2
        await journals.close()

    play(scenario)


def test_a_disk_that_fails_is_told_to_those_who_waited_and_not_to_the_next(tmp_path: Path) -> None:
    disk = Disk()

    async def scenario() -> None:
        journals = Journals(tmp_path, sync=disk.sync)
        journal = journals.open("w1")
        disk.error = OSError(5, "Input/output error")
        with pytest.raises(OSError, match="Input/output"):
            await journal.synced()
        disk.error = None
        await journal.synced()
        await journals.close()

    play(scenario)


def test_who_gives_up_waiting_disturbs_nobody(tmp_path: Path) -> None:
    disk = Disk()

    async def scenario() -> None:
        journals = Journals(tmp_path, sync=disk.sync)
        journal = journals.open("w1")
        disk.free.clear()
        one, two = (asyncio.create_task(journal.synced()) for _ in range(2))
        await asyncio.sleep(0)
        one.cancel()
        disk.free.set()
        await two
        await journals.close()

    play(scenario)


# --- what others know -------------------------------------------------------------------------------------------------


def history(run: str = "a", restarts: int = 0, ended: Terminated | None = None) -> History:
    return History(container="main", container_id=run, restart_count=restarts, started_at=AT, terminated=ended)


@pytest.mark.parametrize(
    ("before", "told", "expected_id", "expected_code"),
    [
        pytest.param(None, history("a"), "a", None, id="a lost journal: it was seen running"),
        pytest.param(None, history("a", 2, end(1)), "a", 1, id="a lost journal: it was seen ended"),
        pytest.param(None, History(container="main"), "", None, id="nothing ran"),
        pytest.param(("b", 1, None), history("a", 0, end(1)), "b", None, id="the journal is ahead"),
        pytest.param(("b", 1, end(2, "b")), history("b", 1), "b", 2, id="the journal knows the end"),
        pytest.param(("b", 1, None), history("b", 1, end(4, "b")), "b", 4, id="the status knows the end"),
        pytest.param(("b", 1, end(2, "b")), history("c", 5, end(0, "c")), "c", 0, id="the status is ahead"),
    ],
)
def test_adopting_a_history_takes_the_newer_of_both(
    tmp_path: Path,
    before: tuple[str, int, Terminated | None] | None,
    told: History,
    expected_id: str,
    expected_code: int | None,
) -> None:
    def check(journal: Journal) -> None:
        past = journal.past.get("main", NOTHING)
        assert past.container_id == expected_id
        assert (past.terminated.exit_code if past.terminated else None) == expected_code

    async def scenario() -> None:
        journals = Journals(tmp_path)
        journal = journals.open("w1")
        if before is not None:
            journal.started("main", container_id=before[0], restart_count=before[1], at=AT)
            if before[2] is not None:
                journal.ended("main", before[2])
        journal.adopt([told])
        journal.adopt([told])
        check(journal)
        await journals.close()
        again = Journals(tmp_path)
        check(again.open("w1"))
        await again.close()

    play(scenario)


def test_the_highest_epoch_outlives_the_process(tmp_path: Path) -> None:
    async def scenario() -> None:
        for before, after in ((0, 41), (41, 42)):
            journals = Journals(tmp_path)
            assert journals.epoch == before
            journals.raise_epoch(after)
            await journals.close()
        (tmp_path / "epoch").write_text("rubbish")
        journals = Journals(tmp_path)
        assert journals.epoch == 0
        await journals.close()

    play(scenario)


def test_a_dropped_workload_is_forgotten(tmp_path: Path) -> None:
    async def scenario() -> None:
        journals = Journals(tmp_path)
        journals.open("w1").accepted(1, 1)
        assert journals.known("w1")
        journals.drop("w1")
        journals.drop("w1")
        assert not journals.known("w1")
        assert journals.open("w1").order == (0, 0)
        await journals.close()

    play(scenario)
    assert "w1" not in read(tmp_path)
