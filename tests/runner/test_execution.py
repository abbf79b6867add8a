"""The python executor on real wasmtime: what a guest sees, what is seen of it, and what it can't reach."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.guests import build, wat
from tests.runner.harness import Bench, bench, until
from tests.support import wat as simple
from wherry_runner.execution.engine import EngineLost, Preopen, StartRefused

Scenario = Callable[[Bench], Awaitable[None]]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all: what was compiled stays compiled."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def play(tmp_path: Path, store: Path) -> Callable[[Scenario], None]:
    """Plays a scenario on a bench of its own, and looks for what is left behind."""

    def run(scenario: Scenario) -> None:
        async def whole() -> None:
            async with bench(tmp_path, store) as opened:
                await scenario(opened)

        before = _children()
        asyncio.run(whole())
        assert _children() == before, "processes were left behind"

    return run


@pytest.fixture(scope="session")
def tool() -> bytes:
    return build.c("tool")


def test_exit_codes_are_exact(play: Callable[[Scenario], None], tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        for code in (0, 1, 3, 125, 126, 127, 255):
            outcome = await bench.run(tool, "exit", str(code))
            assert outcome.exit.exit_code == code
            assert outcome.exit.reason == ("Completed" if code == 0 else "Error")
            assert outcome.exit.message == ""
            assert [(r.stream, r.content) for r in outcome.records] == [(b"stdout", b"exiting")], "no newline is added"

    play(scenario)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("unreachable", "wasm trap: wasm `unreachable` instruction executed"),
        ("out-of-bounds", "wasm trap: out of bounds memory access (memory fault at wasm address 0xfffffff0"),
        ("overflow", "wasm trap: call stack exhausted"),
    ],
)
def test_traps_are_readable(play: Callable[[Scenario], None], tool: bytes, command: str, message: str) -> None:
    async def scenario(bench: Bench) -> None:
        outcome = await bench.run(tool, command)
        assert outcome.exit.exit_code == 134
        assert outcome.exit.message.startswith(message), outcome.exit.message
        assert "\n  at " in outcome.exit.message, outcome.exit.message

    play(scenario)


def test_stdout_and_stderr_keep_their_order(play: Callable[[Scenario], None], tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        expected = [(b"stdout" if i % 2 == 0 else b"stderr", b"%d\n" % i) for i in range(20)]
        for _ in range(30):
            guests = await asyncio.gather(*(bench.start(tool, "interleave", "20") for _ in range(10)))
            for guest in guests:
                outcome = await bench.end(guest)
                assert [(r.stream, r.content) for r in outcome.records] == expected

    play(scenario)


def test_a_large_write_comes_out_whole(play: Callable[[Scenario], None], tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        outcome = await bench.run(tool, "write", "1000000")
        assert outcome.exit.exit_code == 0
        assert outcome.text("stdout") == "x" * 1_000_000

    play(scenario)


def test_arguments_and_environment_arrive_in_order(play: Callable[[Scenario], None], tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        outcome = await bench.run(tool, "arguments", "", "two words", "späte Wörter", "-n")
        assert outcome.text() == "tool\narguments\n\ntwo words\nspäte Wörter\n-n\n"
        env = (("Z", "1"), ("A", "two words"), ("EMPTY", ""), ("EQUALS", "a=b"))
        outcome = await bench.run(tool, "environment", env=env)
        assert outcome.text() == "Z=1\nA=two words\nEMPTY=\nEQUALS=a=b\n", "and nothing else, not even PATH"

    play(scenario)


def test_a_nul_in_an_argument_is_refused(play: Callable[[Scenario], None], tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        with pytest.raises(StartRefused, match="NUL"):
            await bench.run(tool, "a\0b")

    play(scenario)


def test_folders_are_seen_and_read_only_ones_are_not_written(
    play: Callable[[Scenario], None], tool: bytes, tmp_path: Path
) -> None:
    read_only, writable, other = (tmp_path / name for name in ("config", "data", "other"))
    for folder in (read_only, writable, other):
        folder.mkdir()
    (read_only / "greeting").write_text("hello")
    (other / "secret").write_text("not yours")
    (writable / "way-out").symlink_to(other)
    preopens = (
        Preopen(host_path=read_only, guest_path="/etc/config"),
        Preopen(host_path=writable, guest_path="/data", writable=True),
    )

    async def scenario(bench: Bench) -> None:
        assert (await bench.run(tool, "read", "/etc/config/greeting", preopens=preopens)).text() == "hello"
        assert (await bench.run(tool, "create", "/data/new", "made", preopens=preopens)).exit.exit_code == 0
        assert (writable / "new").read_text() == "made"
        for command in (
            ("create", "/etc/config/greeting", "x"),
            ("create", "/etc/config/new", "x"),
            ("read", "/etc/passwd"),
            ("read", "/data/../other/secret"),
            ("read", "/data/way-out/secret"),
        ):
            outcome = await bench.run(tool, *command, preopens=preopens)
            assert outcome.exit.exit_code == 1, (command, outcome.text())
        assert sorted(os.listdir(read_only)) == ["greeting"]

    play(scenario)


def test_a_missing_folder_refuses_the_start(play: Callable[[Scenario], None], tool: bytes, tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        gone = Preopen(host_path=tmp_path / "gone", guest_path="/gone")
        with pytest.raises(StartRefused, match="gone"):
            await bench.run(tool, "arguments", preopens=(gone,))

    play(scenario)


def test_a_killed_guest_ends_with_137(play: Callable[[Scenario], None], tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        guest = await bench.start(tool, "wait")
        await bench.said(guest, b"waiting\n")
        guest.kill()
        outcome = await bench.end(guest)
        assert (outcome.exit.exit_code, outcome.exit.reason) == (137, "Error")
        assert outcome.text() == "waiting\n"
        guest.kill()  # a no-op

    play(scenario)


def test_a_spinning_start_function_is_killed(play: Callable[[Scenario], None]) -> None:
    async def scenario(bench: Bench) -> None:
        guest = await bench.start(wat.SPINS_AT_START)
        guest.kill()
        assert (await guest.wait()).exit_code == 137

    play(scenario)


def test_a_flooding_guest_is_killed_with_whole_lines_only(play: Callable[[Scenario], None], tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        guest = await bench.start(tool, "flood")
        await bench.said(guest, b"flood flood flood\n" * 1000)
        guest.kill()
        outcome = await bench.end(guest)
        assert {record.content for record in outcome.records} == {b"flood flood flood\n"}

    play(scenario)


def test_the_executors_death_loses_its_guests_and_the_next_start_works(
    play: Callable[[Scenario], None], tool: bytes
) -> None:
    async def scenario(bench: Bench) -> None:
        guests = [await bench.start(tool, "wait") for _ in range(5)]
        executor = bench.engine.executor_pid
        assert executor is not None
        os.kill(executor, signal.SIGKILL)
        for guest in guests:
            with pytest.raises(EngineLost, match="signal 9"):
                await guest.wait()
            assert not _alive(guest.pid)
        assert (await bench.run(tool, "exit", "3")).exit.exit_code == 3
        assert bench.engine.executor_pid != executor

    play(scenario)


def test_a_start_that_is_cancelled_leaves_no_process(play: Callable[[Scenario], None], tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.run(tool, "exit", "0")  # compiled, and the executor is up
        starts = [asyncio.create_task(bench.start(tool, "wait")) for _ in range(8)]
        for turns, start in enumerate(starts):
            for _ in range(turns):
                await asyncio.sleep(0)
            start.cancel()
        await asyncio.gather(*starts, return_exceptions=True)

    play(scenario)


def test_a_guest_holds_its_own_descriptors_only(play: Callable[[Scenario], None], tool: bytes, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("reads another process's descriptors: only root can, a guest being undumpable")

    async def scenario(bench: Bench) -> None:
        folder = tmp_path / "mounted"
        folder.mkdir()
        neighbours = [await bench.start(tool, "wait") for _ in range(3)]
        guest = await bench.start(tool, "wait", preopens=(Preopen(host_path=folder, guest_path="/mounted"),))
        for other in (*neighbours, guest):
            await bench.said(other, b"waiting\n")
        held = {int(n): os.readlink(f"/proc/{guest.pid}/fd/{n}") for n in os.listdir(f"/proc/{guest.pid}/fd")}
        assert held.pop(0) == "/dev/null"
        assert held.pop(1).startswith("socket:")
        assert held.pop(2).startswith("socket:")
        kinds = sorted(re.sub(r":?\[.*\]$", "", target) for target in held.values())
        module = next(target for target in held.values() if target.endswith(".cwasm"))
        # Besides the module's, the mount's and the report's, tokio makes itself an epoll and what wakes it.
        own = {module, str(folder), "pipe", "anon_inode", "socket"}
        assert set(kinds) <= own, held
        assert kinds.count("pipe") == 1 and kinds.count("socket") <= 2, held

    play(scenario)


def test_a_guests_environment_is_in_no_other_process(play: Callable[[Scenario], None], tool: bytes) -> None:
    if os.geteuid() != 0:
        pytest.skip("reads other processes' memory: only root can, guests being undumpable")
    marker = "marker-" + os.urandom(8).hex()

    async def scenario(bench: Bench) -> None:
        owner = await bench.start(tool, "wait", env=(("PASSWORD", marker),))
        other = await bench.start(tool, "wait")
        for guest in (owner, other):
            await bench.said(guest, b"waiting\n")
        executor = bench.engine.executor_pid
        assert executor is not None
        assert _memory_holds(owner.pid, marker.encode()), "the search itself works"
        assert not _memory_holds(other.pid, marker.encode())
        assert not _memory_holds(executor, marker.encode())
        for pid in (owner.pid, other.pid, executor):
            assert Path(f"/proc/{pid}/environ").read_bytes() == b""

    play(scenario)


def test_a_guests_process_has_given_up_its_rights(play: Callable[[Scenario], None], tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        guest = await bench.start(tool, "wait")
        await bench.said(guest, b"waiting\n")
        status = Path(f"/proc/{guest.pid}/status").read_text()
        assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
        limits = Path(f"/proc/{guest.pid}/limits").read_text()
        assert re.search(r"^Max core file size +0 +0 ", limits, re.MULTILINE)
        assert Path(f"/proc/{bench.engine.executor_pid}/status").read_text().count("Threads:\t1\n") == 1

    play(scenario)


def test_random_numbers_differ_between_forks(play: Callable[[Scenario], None], tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        drawn: list[str] = []
        for _ in range(20):
            guests = await asyncio.gather(*(bench.start(tool, "random") for _ in range(10)))
            drawn += [(await bench.end(guest)).text() for guest in guests]
        assert len(set(drawn)) == 200

    play(scenario)


def test_a_component_runs(play: Callable[[Scenario], None]) -> None:
    async def scenario(bench: Bench) -> None:
        outcome = await bench.run(wat.component(says="out\n", complains="err\n"))
        assert outcome.exit.exit_code == 0
        assert [(r.stream, r.content) for r in outcome.records] == [(b"stdout", b"out\n"), (b"stderr", b"err\n")]
        assert (await bench.run(wat.component(ends="err"))).exit.exit_code == 1
        assert (await bench.run(wat.component(ends="exit"))).exit.exit_code == 1
        trapped = (await bench.run(wat.component(ends="trap"))).exit
        assert trapped.exit_code == 134
        assert trapped.message.startswith("wasm trap: wasm `unreachable` instruction executed\n  at ")

    play(scenario)


def test_a_component_that_wants_http_is_told_so(play: Callable[[Scenario], None]) -> None:
    async def scenario(bench: Bench) -> None:
        with pytest.raises(StartRefused) as refusal:
            await bench.run(wat.component(imports=wat.OUTGOING_HTTP))
        assert "wants outbound HTTP (it imports wasi:http/outgoing-handler@0.2.0)" in str(refusal.value)

    play(scenario)


def test_a_component_that_only_imports_sockets_runs(play: Callable[[Scenario], None]) -> None:
    async def scenario(bench: Bench) -> None:
        outcome = await bench.run(wat.component(imports=wat.TCP_SOCKETS))
        assert (outcome.exit.exit_code, outcome.text()) == (0, "hello from a component\n")

    play(scenario)


def test_a_function_that_wasi_lacks_is_named(play: Callable[[Scenario], None]) -> None:
    async def scenario(bench: Bench) -> None:
        with pytest.raises(StartRefused, match="sock_open"):
            await bench.run(wat.UNKNOWN_IMPORT)

    play(scenario)


def test_closing_ends_every_guest(tmp_path: Path, store: Path, tool: bytes) -> None:
    async def whole() -> list[int]:
        async with bench(tmp_path, store) as opened:
            guests = await asyncio.gather(*(opened.start(simple.sleeps()) for _ in range(20)))
            pids = [guest.pid for guest in guests]
        assert all([(await guest.wait()).exit_code == 137 for guest in guests])
        return pids

    assert not any(_alive(pid) for pid in asyncio.run(whole()))


def test_when_the_supervisor_is_killed_all_its_processes_die(tmp_path: Path, store: Path) -> None:
    script = """
import asyncio, sys, pathlib
from tests.runner.harness import bench
from tests.support import wat

async def main():
    async with bench(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])) as opened:
        guests = [await opened.start(wat.sleeps()) for _ in range(3)]
        print(opened.engine.executor_pid, *(guest.pid for guest in guests), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", script, str(tmp_path), str(store)]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        pids = [int(word) for word in supervisor.stdout.readline().split()]
        supervisor.kill()
    assert len(pids) == 4
    asyncio.run(until(lambda: not any(_alive(pid) for pid in pids)))


def _alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    # Without a subreaper, an orphan's corpse waits for process 1.
    return status.rpartition(")")[2].split()[0] != "Z"


def _children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def _memory_holds(pid: int, text: bytes) -> bool:
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
