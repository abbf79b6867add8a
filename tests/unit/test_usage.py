"""What is read of processes that nobody may inspect, held against real ones."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.support.family import MIB, Family
from tests.support.runner_scene import run
from wherry_runner.resources.usage import RunningContainer, Usage, folder_bytes, private_bytes, read_process


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[int, int]]:
    """An executor that has 64 MiB, and its guest that has 32 MiB more."""
    with Family(1) as family:
        yield family.parent, family.children[0]


def container(pid: int, log_folder: Path, name: str = "main") -> RunningContainer:
    return RunningContainer(
        workload="w1",
        container=name,
        container_id="1" * 64,
        started_at=datetime(2026, 1, 2, tzinfo=UTC),
        pid=pid,
        log_folder=log_folder,
    )


def test_memory_that_is_shared_with_the_executor_is_not_the_guests(pair: tuple[int, int]) -> None:
    executor, guest = pair
    found = private_bytes([guest], executor_pid=executor)[guest]
    assert 31 * MIB < found < 36 * MIB
    use = read_process(guest)
    assert use is not None
    assert use.anonymous_bytes > 96 * MIB
    assert use.cpu_nanoseconds >= 190_000_000


def test_processes_that_are_no_guests_of_this_executor_are_left_out(pair: tuple[int, int]) -> None:
    executor, guest = pair
    assert private_bytes([guest, os.getpid(), 2**22 + 1], executor_pid=executor).keys() == {guest}
    assert private_bytes([guest], executor_pid=None) == {}
    assert read_process(2**22 + 1) is None


def test_a_process_with_an_ugly_name_is_read_all_the_same() -> None:
    code = "import ctypes; ctypes.CDLL(None).prctl(15, b') R 1 (x'); print(flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    use = read_process(process.pid)
    assert use is not None
    assert use.parent == os.getpid()
    process.communicate(b"\n")


def test_one_sample_serves_all_who_ask_at_once(pair: tuple[int, int], tmp_path: Path) -> None:
    executor, guest = pair
    (tmp_path / "0.log").write_bytes(b"x" * 100)
    (tmp_path / "0.log.1").write_bytes(b"x" * 11)
    (tmp_path / "1.log").symlink_to("/proc/version")
    asked = 0

    def running() -> list[RunningContainer]:
        nonlocal asked
        asked += 1
        return [container(guest, tmp_path), container(2**22 + 1, tmp_path, "ended")]

    async def scenario() -> None:
        usage = Usage(
            running=running, executor_pid=lambda: executor, workloads=lambda: 7, requested=lambda: (250, 5 * MIB)
        )
        stats, *others = await asyncio.gather(*(usage.stats() for _ in range(10)))
        assert asked == 1
        assert all(other is stats for other in others)
        assert (stats.workloads, stats.cpu_requested_millicores, stats.memory_requested_bytes) == (7, 250, 5 * MIB)
        (one,) = stats.containers
        assert (one.workload, one.container, one.started_at.year) == ("w1", "main", 2026)
        assert 31 * MIB < one.working_set_bytes < 36 * MIB
        assert one.log_bytes == 111 + len("/proc/version")
        assert one.cpu_nanoseconds < stats.cpu_nanoseconds
        assert stats.memory_bytes > 100 * MIB

    run(scenario())


def test_a_folder_that_is_not_there_has_nothing(tmp_path: Path) -> None:
    assert folder_bytes(tmp_path / "none") == 0
