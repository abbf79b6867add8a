"""The journal: nothing that was told is ever lost, whatever the byte at which a write broke off."""

from __future__ import annotations

import logging
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from wherry_runner.journal import FORGET_AFTER_SECONDS, Journal, Journals, Past
from wherry_runner.protocol import History, Terminated

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def end(code: int = 0, run: str = "a") -> Terminated:
    return Terminated(
        exit_code=code,
        reason="Completed" if code == 0 else "Error",
        message='a "quoted"\nline',
        container_id=run,
        started_at=AT,
        finished_at=AT + timedelta(seconds=1),
    )


def state(journal: Journal) -> tuple[tuple[int, int], dict[str, Past]]:
    """Without the containers of which nothing ran: a withdrawn start leaves one."""
    return journal.order, {name: past for name, past in journal.past.items() if past.ran}


def write_a_life(path: Path) -> list[tuple[int, tuple[tuple[int, int], dict[str, Past]]]]:
    """Every kind of record; after each of them the file's size and what is known."""
    journal = Journal(path)
    found = [(0, state(journal))]

    def note() -> None:
        found.append((path.stat().st_size, (journal.order, dict(state(journal)[1]))))

    journal.accepted(3, 7)
    note()
    journal.started("main", container_id="a", restart_count=0, at=AT)
    note()
    journal.ended("main", end(1))
    note()
    journal.started("main", container_id="b", restart_count=1, at=AT)
    note()
    journal.withdrawn("main")
    note()
    journal.started("side", container_id="c", restart_count=0, at=AT)
    note()
    return found


def test_a_journal_read_again_says_the_same(tmp_path: Path) -> None:
    *_, (_, last) = write_a_life(tmp_path / "journal")
    assert state(Journal(tmp_path / "journal")) == last
    order, past = last
    assert order == (3, 7)
    assert past["main"] == Past(container_id="a", restart_count=0, started_at=AT, terminated=end(1))
    assert past["side"].terminated is None


def test_a_line_torn_at_any_byte_is_ignored_and_the_next_record_is_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    steps = write_a_life(tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    for cut in range(len(whole) + 1):
        path = tmp_path / "torn"
        path.write_bytes(whole[:cut])
        expected = [known for size, known in steps if size <= cut][-1]
        journal = Journal(path)
        assert state(journal) == expected, cut
        journal.ended("main", end(5))
        assert Journal(path).past["main"].terminated == end(5), cut


@pytest.mark.parametrize(
    "line", [b"\0\0\0\0", b"[]", b"3", b"{}", b'{"event":"ended"}', b'{"event":"new","x":1}', b"\xff"]
)
def test_a_record_that_makes_no_sense_costs_only_itself(tmp_path: Path, line: bytes) -> None:
    journal = Journal(tmp_path / "journal")
    journal.accepted(1, 1)
    with open(tmp_path / "journal", "ab") as file:
        file.write(line + b"\n")
    journal.started("main", container_id="a", restart_count=0, at=AT)
    again = Journal(tmp_path / "journal")
    assert (again.order, again.past["main"].container_id) == ((1, 1), "a")


def test_a_withdrawn_start_leaves_what_ran_before(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    journal.started("main", container_id="a", restart_count=0, at=AT)
    journal.withdrawn("main")
    assert not journal.past["main"].ran
    assert not Journal(tmp_path / "journal").past["main"].ran
    journal.started("main", container_id="b", restart_count=0, at=AT)
    journal.ended("main", end(3, "b"))
    journal.started("main", container_id="c", restart_count=1, at=AT)
    journal.withdrawn("main")
    for known in (journal, Journal(tmp_path / "journal")):
        assert known.past["main"] == Past(container_id="b", restart_count=0, started_at=AT, terminated=end(3, "b"))


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """As on a full disk: a write that goes beyond takes a part, the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 1, 20])
def test_a_write_that_the_disk_takes_only_in_part_is_an_error_and_harms_no_other_record(
    tmp_path: Path, room: int
) -> None:
    path = tmp_path / "journal"
    journal = Journal(path)
    journal.accepted(1, 1)
    size = path.stat().st_size
    with largest_file(size + room), pytest.raises(OSError):
        journal.started("main", container_id="a", restart_count=0, at=AT)
    assert path.stat().st_size == size
    assert "main" not in journal.past
    journal.started("main", container_id="b", restart_count=0, at=AT)
    assert Journal(path).past["main"].container_id == "b"


def history(run: str = "a", restarts: int = 0, ended: Terminated | None = None) -> History:
    return History(container="main", container_id=run, restart_count=restarts, started_at=AT, terminated=ended)


@pytest.mark.parametrize(
    ("known", "told", "expected_id", "expected_code"),
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
    known: tuple[str, int, Terminated | None] | None,
    told: History,
    expected_id: str,
    expected_code: int | None,
) -> None:
    journal = Journal(tmp_path / "journal")
    if known is not None:
        journal.started("main", container_id=known[0], restart_count=known[1], at=AT)
        if known[2] is not None:
            journal.ended("main", known[2])
    journal.adopt([told])
    journal.adopt([told])
    for found in (journal, Journal(tmp_path / "journal")):
        past = found.past.get("main", Past())
        assert past.container_id == expected_id
        assert (past.terminated.exit_code if past.terminated else None) == expected_code


def test_the_highest_epoch_outlives_the_process(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    assert journals.epoch == 0
    journals.raise_epoch(41)
    journals.raise_epoch(42)
    assert Journals(tmp_path).epoch == 42
    (tmp_path / "epoch").write_text("rubbish")
    assert Journals(tmp_path).epoch == 0


def test_a_dropped_workload_is_forgotten(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    journals.open("w1").accepted(1, 1)
    assert journals.known("w1")
    journals.drop("w1")
    journals.drop("w1")
    assert not journals.known("w1")
    assert journals.open("w1").order == (0, 0)


def test_only_journals_that_nobody_wrote_to_for_a_day_are_forgotten_at_the_start(tmp_path: Path) -> None:
    journals = Journals(tmp_path)
    journals.raise_epoch(7)
    for name in ("old", "new"):
        journals.open(name).accepted(1, 1)
    long_ago = time.time() - FORGET_AFTER_SECONDS - 60
    for path in (tmp_path / "w-old", tmp_path / "w-old" / "journal"):
        os.utime(path, (long_ago, long_ago))
    journals.forget_old()
    assert [journals.known(name) for name in ("old", "new")] == [False, True]
    assert Journals(tmp_path).epoch == 7


def test_nobody_else_can_read_a_journal(tmp_path: Path) -> None:
    Journals(tmp_path / "state").open("w1").accepted(1, 1)
    for path, mode in ((tmp_path / "state", 0o700), (tmp_path / "state/w-w1/journal", 0o600)):
        assert path.stat().st_mode & 0o777 == mode
