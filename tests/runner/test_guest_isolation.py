"""What a guest's process holds, and what of it is nowhere else, on every executor."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.runner.conftest import Play
from tests.runner.differences import EXECUTORS
from tests.runner.harness import Bench, until
from wherry_runner.execution.engine import Preopen

needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="looks into other processes: only root can, guests being undumpable"
)


@needs_root
def test_a_guest_holds_its_own_descriptors_only(play: Play, tool: bytes, executor: str, tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        folder = tmp_path / "mounted"
        folder.mkdir()
        module = await bench.compile(tool)
        neighbours = [await bench.start(module, "wait", stdin=True) for _ in range(3)]
        guest = await bench.start(
            module, "wait", preopens=(Preopen(host_path=folder, guest_path="/mounted"),), stdin=True
        )
        for other in (*neighbours, guest):
            await bench.said(other, b"waiting\n")
        held = sorted(os.readlink(f"/proc/{guest.pid}/fd/{n}") for n in os.listdir(f"/proc/{guest.pid}/fd"))
        kinds = [re.sub(r":?\[.*\]$", "", target) for target in held]
        ours = {
            # Its input and its report; the module's file, from which wasmtime maps memory images; its folder.
            "pipe": 2,
            str(module.path): 1,
            str(folder): 1,
        }
        if executor == "native":
            ours |= {str(guest.log_path): 1, str(guest.log_path.parent): 1}
        else:
            ours |= {"socket": 2}
        for kind, number in ours.items():
            assert kinds.count(kind) == number, (kind, held)
        # What tokio makes itself: an epoll, and what wakes it. And where a guest's standard streams would lead.
        others = {kind for kind in kinds if kind not in ours}
        assert others <= {"anon_inode", "anon_inode:[eventpoll]", "anon_inode:[eventfd]", "/dev/null", "socket"}, held

    play(scenario)


@needs_root
def test_the_executor_keeps_nothing_of_a_guest_open(play: Play, tool: bytes, tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        module = await bench.compile(tool)
        await bench.run(module, "exit", "0", stdin=True)
        executor = bench.engine.executor_pid
        before = sorted(os.listdir(f"/proc/{executor}/fd"))
        folder = Preopen(host_path=tmp_path, guest_path="/mounted")
        guests = [await bench.start(module, "wait", preopens=(folder,), stdin=True) for _ in range(5)]
        for guest in guests:
            await bench.said(guest, b"waiting\n")
        # At most a pidfd for each. A guest may speak before the executor has let go of the last one's.
        await until(lambda: len(os.listdir(f"/proc/{executor}/fd")) - len(before) in (0, len(guests)))
        for guest in guests:
            guest.guest.kill()
            await bench.end(guest)
        assert sorted(os.listdir(f"/proc/{executor}/fd")) == before

    play(scenario)


@needs_root
def test_a_guests_environment_is_in_no_other_process(play: Play, tool: bytes) -> None:
    marker = "marker-" + os.urandom(8).hex()

    async def scenario(bench: Bench) -> None:
        module = await bench.compile(tool)
        owner = await bench.start(module, "wait", env=(("PASSWORD", marker),))
        other = await bench.start(module, "wait")
        for guest in (owner, other):
            await bench.said(guest, b"waiting\n")
        executor = bench.engine.executor_pid
        assert executor is not None
        assert memory_holds(owner.pid, marker.encode()), "the search itself works"
        assert not memory_holds(other.pid, marker.encode())
        assert not memory_holds(executor, marker.encode())
        for pid in (owner.pid, other.pid, executor):
            assert Path(f"/proc/{pid}/environ").read_bytes() == b""

    play(scenario)


def test_a_guests_process_has_given_up_its_rights(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        guest = await bench.start(tool, "wait")
        await bench.said(guest, b"waiting\n")
        status = Path(f"/proc/{guest.pid}/status").read_text()
        assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
        limits = Path(f"/proc/{guest.pid}/limits").read_text()
        assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)
        assert Path(f"/proc/{guest.pid}").stat().st_uid == 0, "undumpable: its files in /proc are root's"
        assert Path(f"/proc/{bench.engine.executor_pid}/status").read_text().count("Threads:\t1\n") == 1

    play(scenario)


def test_a_guest_that_reads_files_has_few_threads(play: Play, tool: bytes, executor: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("still the old one")

    async def scenario(bench: Bench) -> None:
        mounts = (Preopen(host_path=tmp_path, guest_path="/data"),)
        guest = await bench.start(tool, "await", "/data/file", "new", preopens=mounts)
        await bench.said(guest, b"awaiting\n")
        seen = {len(os.listdir(f"/proc/{guest.pid}/task")) for _ in range(200)}
        assert max(seen) <= EXECUTORS[executor].threads, seen

    play(scenario)


def memory_holds(pid: int, text: bytes) -> bool:
    """Whether a text stands anywhere in a process's memory."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            span, rights = line.split()[:2]
            start, end = (int(number, 16) for number in span.split("-"))
            if "r" not in rights or end - start > 1 << 30 or start >= 1 << 63:
                continue
            try:
                memory.seek(start)
                if text in memory.read(end - start):
                    return True
            except OSError:
                continue
    return False
