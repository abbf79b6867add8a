"""One budget for all logs: never dealt out twice, dealt seldom, and what became too large is removed without a trap."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.runner_scene import holds, run
from wherry_runner.logs.allowances import Allowances
from wherry_runner.logs.budget import (
    FILES_PER_CONTAINER,
    LEAST_FILE_BYTES,
    LogBudget,
    TooManyLogs,
    allowance,
    deal_for,
    max_containers,
    trim,
)

KIB, MIB = 1 << 10, 1 << 20
FOLDER = Path("/nowhere")


@pytest.fixture
def allowances() -> Iterator[Allowances]:
    table = Allowances(slots=10_000, default_bytes=LEAST_FILE_BYTES)
    yield table
    table.close()


@given(budget=st.integers(LEAST_FILE_BYTES * FILES_PER_CONTAINER, 1 << 36), steps=st.lists(st.booleans(), max_size=200))
def test_the_allowances_never_sum_to_more_than_the_budget(budget: int, steps: list[bool]) -> None:
    table = Allowances(slots=300, default_bytes=LEAST_FILE_BYTES)
    subject = LogBudget(table, budget_bytes=budget, file_bytes=10 * MIB)
    slots: list[int] = []
    for comes in steps:
        if comes:
            try:
                slots.append(subject.take(FOLDER))
            except TooManyLogs:
                assert len(slots) == subject.max_containers
        elif slots:
            subject.give_back(slots.pop(len(slots) // 2))
        dealt = [table[slot] for slot in slots]
        assert sum(dealt) * FILES_PER_CONTAINER == subject.allowed_bytes <= budget
        assert all(LEAST_FILE_BYTES <= each <= 10 * MIB for each in dealt)
    table.close()


@given(
    containers=st.integers(1, 10_000),
    budget=st.integers(1 << 30, 1 << 36),
    file_bytes=st.integers(LEAST_FILE_BYTES, 1 << 30),
)
def test_little_of_the_budget_is_left_where_it_is_needed(containers: int, budget: int, file_bytes: int) -> None:
    if containers > max_containers(budget):
        return
    dealt_for = deal_for(containers, 1, most=max_containers(budget))
    given_bytes = allowance(dealt_for, budget_bytes=budget, file_bytes=file_bytes)
    fair = min(file_bytes, budget // FILES_PER_CONTAINER // containers)
    assert given_bytes >= min(fair, max(LEAST_FILE_BYTES, int(fair / 1.5)))


def test_a_few_containers_get_what_a_file_may_have_at_most(allowances: Allowances) -> None:
    subject = LogBudget(allowances, budget_bytes=10 << 30, file_bytes=10 * MIB)
    slots = [subject.take(FOLDER) for _ in range(100)]
    assert {allowances[slot] for slot in slots} == {10 * MIB}
    assert subject.allowed_bytes == 100 * 4 * 10 * MIB


def test_starts_and_ends_cost_a_few_writes_each_whatever_the_number(allowances: Allowances) -> None:
    writes = 0

    class Counted(Allowances):
        def __setitem__(self, slot: int, file_bytes: int) -> None:
            nonlocal writes
            writes += 1
            super().__setitem__(slot, file_bytes)

    table = Counted(slots=6000, default_bytes=LEAST_FILE_BYTES)
    subject = LogBudget(table, budget_bytes=2 << 30, file_bytes=10 * MIB)
    slots = [subject.take(FOLDER) for _ in range(5000)]
    assert writes < 5000 * 6
    writes = 0
    for _ in range(1000):  # one goes, one comes: at no size of the crowd is that a new deal each time
        subject.give_back(slots.pop())
        slots.append(subject.take(FOLDER))
    assert writes == 1000
    writes = 0
    while slots:
        subject.give_back(slots.pop())
    assert writes < 5000 * 6
    table.close()


def test_too_many_are_refused_and_one_that_goes_makes_room(allowances: Allowances) -> None:
    subject = LogBudget(allowances, budget_bytes=3 * FILES_PER_CONTAINER * LEAST_FILE_BYTES, file_bytes=10 * MIB)
    slots = [subject.take(FOLDER) for _ in range(3)]
    with pytest.raises(TooManyLogs, match="serves 3 containers"):
        subject.take(FOLDER)
    subject.give_back(slots[0])
    subject.take(FOLDER)


def write(folder: Path, **sizes: int) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    for name, size in sizes.items():
        (folder / name.replace("_", ".").removeprefix("n")).write_bytes(b"x" * size)


def left(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_what_nobody_writes_to_is_removed_where_it_is_too_large(tmp_path: Path) -> None:
    write(tmp_path, n3_log=50, n3_log_1=200, n2_log=200, n2_log_1=50)
    assert trim(tmp_path, 100) is False
    assert left(tmp_path) == {"3.log", "2.log.1"}


def test_the_log_that_is_written_to_stays_and_is_looked_at_again(tmp_path: Path) -> None:
    write(tmp_path, n10_log=200, n9_log=200)
    assert trim(tmp_path, 100) is True
    assert left(tmp_path) == {"10.log"}


def test_no_link_leads_the_removal_out_of_the_folder(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    write(outside, n1_log=500, n1_log_1=500)
    folder = tmp_path / "logs"
    write(folder, n2_log=1)
    (folder / "1.log.1").symlink_to(outside / "1.log.1")
    (folder / "0.log").symlink_to(outside)
    (folder / "0.log.1").mkdir()
    (folder / "notes.txt").write_bytes(b"x" * 500)
    assert trim(folder, 5) is False
    assert left(outside) == {"1.log", "1.log.1"}
    assert "notes.txt" in left(folder)

    linked = tmp_path / "linked"
    linked.symlink_to(outside)
    assert trim(linked, 5) is False
    assert left(outside) == {"1.log", "1.log.1"}
    assert trim(tmp_path / "never made", 5) is False


def test_a_smaller_deal_removes_what_is_too_large_for_it(tmp_path: Path, allowances: Allowances) -> None:
    async def scenario() -> None:
        subject = LogBudget(allowances, budget_bytes=1600 * KIB, file_bytes=200 * KIB)
        keeping = asyncio.create_task(subject.keep())
        first = subject.take(tmp_path / "first")
        write(tmp_path / "first", n1_log=1, n1_log_1=150 * KIB, n0_log=60 * KIB)
        for number in range(5):
            subject.take(tmp_path / str(number))
        assert allowances[first] < 150 * KIB
        await holds(lambda: left(tmp_path / "first") == {"1.log", "0.log"})
        keeping.cancel()

    run(scenario())
    assert len(os.listdir(tmp_path)) == 1
