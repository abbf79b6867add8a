"""An executor's own life, on every executor: its death and loss, its guests' orphanhood, starts that are given up."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runner.conftest import Play
from tests.runner.differences import EXECUTORS
from tests.runner.harness import Bench, bench, open_descriptors, until
from tests.support import wat as simple
from wherry_runner.execution.engine import EngineLost


def test_what_it_says_of_itself(play: Play, executor: str) -> None:
    async def scenario(bench: Bench) -> None:
        assert bench.engine.name.startswith(f"{executor}/wasmtime-")
        assert {"fuel", "cpu-limit"} <= bench.engine.features
        assert bench.engine.confinement.no_new_privileges
        assert bench.engine.complaint() == ""

    play(scenario)


def test_its_death_loses_its_guests_and_the_next_start_works(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        module = await bench.compile(tool)
        guests = [await bench.start(module, "wait", stdin=True) for _ in range(5)]
        executor = bench.engine.executor_pid
        assert executor is not None
        os.kill(executor, signal.SIGKILL)
        for guest in guests:
            with pytest.raises(EngineLost, match="signal 9"):
                await guest.guest.wait()
            assert not alive(guest.pid)
            with pytest.raises(BrokenPipeError):
                await guest.guest.write(b"x")
            guest.guest.kill()  # a no-op
        assert bench.engine.executor_pid is None
        assert (await bench.run(module, "exit", "3")).exit.exit_code == 3
        assert bench.engine.executor_pid not in (None, executor)
        assert bench.engine.complaint() == "", "once is no loop"

    play(scenario)


def test_an_executor_that_is_lost_again_and_again_is_complained_of(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        module = await bench.compile(tool)
        for _ in range(3):
            guest = await bench.start(module, "wait")
            assert bench.engine.executor_pid is not None
            os.kill(bench.engine.executor_pid, signal.SIGKILL)
            with pytest.raises(EngineLost):
                await guest.guest.wait()
        assert "lost 3 executors within 60 s" in bench.engine.complaint()
        assert "signal 9" in bench.engine.complaint()
        with pytest.raises(EngineLost, match="lost 3 executors"):
            await bench.start(module, "wait")  # not one after the other without a pause

    play(scenario)


def test_starts_under_way_when_it_dies_end_with_its_loss(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        module = await bench.compile(tool)
        executor = bench.engine.executor_pid
        assert executor is not None
        starts = [asyncio.create_task(bench.start(module, "wait")) for _ in range(60)]
        await asyncio.wait(starts, return_when=asyncio.FIRST_COMPLETED)
        os.kill(executor, signal.SIGKILL)
        for start in starts:
            try:
                guest = await start
            except EngineLost:
                continue
            guest.guest.kill()
            with contextlib.suppress(EngineLost):
                await guest.guest.wait()

    play(scenario)


def test_a_start_that_is_cancelled_leaves_no_process(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        module = await bench.compile(tool)
        await bench.run(module, "exit", "0")
        starts = [asyncio.create_task(bench.start(module, "wait")) for _ in range(8)]
        for turns, start in enumerate(starts):
            for _ in range(turns):
                await asyncio.sleep(0)
            start.cancel()
        await asyncio.gather(*starts, return_exceptions=True)

    play(scenario)


def test_the_supervisor_holds_few_descriptors_for_a_guest(play: Play, executor: str) -> None:
    async def scenario(bench: Bench) -> None:
        module = await bench.compile(simple.sleeps())
        before = len(open_descriptors())
        guests = [await bench.start(module, stdin=number >= 10) for number in range(20)]
        each = EXECUTORS[executor].descriptors
        assert len(open_descriptors()) - before == 10 * each + 10 * (each + 1)
        for guest in guests[10:]:
            guest.guest.close_input()
        assert len(open_descriptors()) - before == 20 * each
        for guest in guests:
            guest.guest.kill()
            await guest.guest.wait()
        assert len(open_descriptors()) == before

    play(scenario)


def test_closing_ends_every_guest(executor: str, tmp_path: Path, store: Path) -> None:
    async def whole() -> list[int]:
        async with bench(executor, tmp_path, store) as opened:
            module = await opened.compile(simple.sleeps())
            guests = await asyncio.gather(*(opened.start(module) for _ in range(20)))
            pids = [guest.pid for guest in guests]
        assert all([(await guest.guest.wait()).exit_code == 137 for guest in guests])
        return pids

    assert not any(alive(pid) for pid in asyncio.run(whole()))


_SUPERVISOR = """
import asyncio, os, pathlib, signal, sys
from tests.runner.harness import bench
from tests.support import wat
from wherry_runner.execution import process

async def main(executor, folder, store, dies):
    process.become_subreaper()
    async with bench(executor, pathlib.Path(folder), pathlib.Path(store)) as opened:
        module = await opened.compile(wat.sleeps())
        guests = [await opened.start(module) for _ in range(3)]
        print(opened.engine.executor_pid, *(guest.pid for guest in guests), flush=True)
        if dies == "supervisor":
            await asyncio.Event().wait()
        starts = [asyncio.create_task(opened.start(module)) for _ in range(30)]
        await asyncio.wait(starts, return_when=asyncio.FIRST_COMPLETED)
        os.kill(opened.engine.executor_pid, signal.SIGKILL)
        await asyncio.gather(*(guest.guest.wait() for guest in guests), return_exceptions=True)
        await asyncio.gather(*starts, return_exceptions=True)
    me = os.getpid()
    print("children:", pathlib.Path(f"/proc/self/task/{me}/children").read_text(), flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


def test_when_the_supervisor_is_killed_all_its_processes_die(executor: str, tmp_path: Path, store: Path) -> None:
    with _supervisor(executor, tmp_path, store, dies="supervisor") as supervisor:
        assert supervisor.stdout is not None
        pids = [int(word) for word in supervisor.stdout.readline().split()]
        supervisor.kill()
    assert len(pids) == 4
    asyncio.run(until(lambda: not any(alive(pid) for pid in pids)))


def test_a_subreaper_reaps_what_a_dead_executor_leaves(executor: str, tmp_path: Path, store: Path) -> None:
    with _supervisor(executor, tmp_path, store, dies="executor") as supervisor:
        output, _ = supervisor.communicate()
    assert supervisor.returncode == 0
    assert output.splitlines()[-1] == "children: ", "no orphan, and no corpse of one"


def _supervisor(executor: str, folder: Path, store: Path, *, dies: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _SUPERVISOR, executor, str(folder), str(store), dies]
    return subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)


def alive(pid: int) -> bool:
    """Whether a process runs."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    # Without a subreaper, an orphan's corpse waits for process 1.
    return status.rpartition(")")[2].split()[0] != "Z"
