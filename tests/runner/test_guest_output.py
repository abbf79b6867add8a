"""A guest's output and its log, on every executor: order, size, rotation, and what happens to a flood."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

from tests.guests import wat
from tests.runner.conftest import Play
from tests.runner.differences import EXECUTORS
from tests.runner.harness import Bench, until
from wherry_runner.execution.engine import Limits
from wherry_runner.logs import records as logs


def test_stdout_and_stderr_keep_their_order(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        module = await bench.compile(tool)
        expected = [("stdout" if i % 2 == 0 else "stderr", f"{i}\n") for i in range(20)]
        for _ in range(30):
            guests = await asyncio.gather(*(bench.start(module, "interleave", "20") for _ in range(10)))
            for guest in guests:
                assert (await bench.end(guest)).lines == expected

    play(scenario)


def test_times_never_go_back(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        records = (await bench.run(tool, "interleave", "2000")).records
        times = [record.nanoseconds for record in records]
        assert times == sorted(times)
        assert len(times) == 2000

    play(scenario)


def test_a_large_write_comes_out_whole(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        outcome = await bench.run(tool, "write", "1000000")
        assert outcome.exit.exit_code == 0
        assert outcome.text("stdout") == "x" * 1_000_000
        assert {len(record.content) for record in outcome.records[:-1]} == {logs.MAX_LINE_BYTES}

    play(scenario)


def test_a_hundred_thousand_lines_are_all_there(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        outcome = await bench.run(tool, "lines", "100000")
        assert outcome.text() == "".join(f"line {number}\n" for number in range(100_000))

    play(scenario)


def test_a_component_writes_as_much_as_it_may(play: Play, executor: str) -> None:
    async def scenario(bench: Bench) -> None:
        # Whether a socket takes a megabyte at once is the machine's setting: what every one takes is tried there.
        size = 1_000_000 if EXECUTORS[executor].takes_any_write_of_components else 100_000
        outcome = await bench.run(wat.component_that_writes(size, flushes=True))
        assert outcome.exit.exit_code == 0
        assert outcome.text() == "x" * size

    play(scenario)


def test_a_components_last_words_without_a_flush(play: Play, executor: str) -> None:
    async def scenario(bench: Bench) -> None:
        outcome = await bench.run(wat.component_that_writes(10, flushes=False))
        assert outcome.exit.exit_code == 0
        if EXECUTORS[executor].keeps_unflushed_output:
            assert outcome.text() == "x" * 10
        else:
            assert outcome.text() in ("", "x" * 10)

    play(scenario)


def test_a_flooding_guest_is_killed_and_its_records_are_whole(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        guest = await bench.start(tool, "flood")
        await bench.said(guest, b"flood flood flood\n" * 1000)
        guest.guest.kill()
        outcome = await bench.end(guest)
        assert {record.content for record in outcome.records} == {b"flood flood flood\n"}

    play(scenario)


def test_the_beginning_of_a_line_is_kept(play: Play, tool: bytes, executor: str) -> None:
    async def scenario(bench: Bench) -> None:
        module = await bench.compile(tool)
        assert (await bench.run(module, "begin", "exit")).text("stdout") == "first\nbegun"
        for then in ("wait", "spin"):
            guest = await bench.start(module, "begin", then)
            await bench.said(guest, b"ready\n")
            if then == "wait":
                await until(partial(asleep, guest.pid))
            guest.guest.kill()
            said = (await bench.end(guest)).text("stdout")
            if then == "wait" or EXECUTORS[executor].keeps_unfinished_lines_of_the_killed:
                assert said == "first\nbegun"
            else:
                assert said in ("first\n", "first\nbegun")

    play(scenario)


def test_a_log_is_there_from_the_start_to_the_end(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        module = await bench.compile(wat.SPINS_AT_START)
        for _ in range(20):
            guest = await bench.start(module)
            assert guest.log_path.exists()
            guest.guest.kill()
            assert (await bench.end(guest)).lines == []

    play(scenario)


def test_endless_output_without_a_newline_is_written_in_pieces(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        guest = await bench.start(tool, "endless")
        await bench.said(guest, b"x" * (10 * logs.MAX_LINE_BYTES))
        guest.guest.kill()
        outcome = await bench.end(guest)
        assert set(outcome.text()) == {"x"}
        assert max(len(record.content) for record in outcome.records) == logs.MAX_LINE_BYTES

    play(scenario)


def test_a_log_stays_within_its_allowance_also_when_that_shrinks(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        bench.allowances[bench.slot] = 200_000
        guest = await bench.start(tool, "flood")
        older = logs.rotated(guest.log_path)
        while not older.exists():
            await bench.said(guest, b"flood")
        assert older.stat().st_size <= 200_000
        bench.allowances[bench.slot] = 100_000
        while older.stat().st_size > 100_000:
            await bench.said(guest, b"flood")
        guest.guest.kill()
        outcome = await bench.end(guest)
        assert guest.log_path.stat().st_size <= 100_000, "it is there, also if the guest was killed in a rotation"
        assert older.stat().st_size <= 100_000
        assert {record.content for record in outcome.records} == {b"flood flood flood\n"}
        assert sorted(path.name for path in guest.log_path.parent.iterdir()) == ["0.log", "0.log.1"]

    play(scenario)


def test_of_a_long_log_the_newest_part_is_kept(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        bench.allowances[bench.slot] = 100_000
        outcome = await bench.run(tool, "lines", "10000")
        numbers = [int(record.content.split()[1]) for record in outcome.records]
        assert numbers == list(range(numbers[0], 10_000))
        assert numbers[0] > 0

    play(scenario)


def test_output_above_its_rate_waits_and_nothing_is_lost(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        limits = Limits(log_bytes_per_second=200_000)
        guest = await bench.start(tool, "lines", "40000", limits=limits)  # 430 kB: two seconds' worth
        quick = await bench.run(tool, "lines", "100")
        assert quick.text().endswith("line 99\n"), "one that waits keeps nobody waiting"
        outcome = await bench.end(guest)
        assert outcome.text() == "".join(f"line {number}\n" for number in range(40_000))
        first, last = outcome.records[0].nanoseconds, outcome.records[-1].nanoseconds
        assert last - first > 500_000_000, "at full speed it takes a few hundredths of that"

    play(scenario)


def asleep(pid: int) -> bool:
    """Whether a process waits for something."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"
