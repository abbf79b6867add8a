"""What a guest may use, on every executor: memory, instructions, CPU time."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest

from tests.guests import wat
from tests.runner.conftest import Play
from tests.runner.differences import EXECUTORS
from tests.runner.harness import Bench
from tests.support import wat as simple
from wherry_runner.execution.engine import Limits, StartRefused, Variant

MIB = 1 << 20
OUT_OF_MEMORY = "wanted more memory than its limit, 64Mi"


def test_memory_within_the_limit_is_given(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        outcome = await bench.run(tool, "grow", "40", "0", limits=Limits(memory_bytes=64 * MIB))
        assert (outcome.exit.exit_code, outcome.exit.reason, outcome.text()) == (0, "Completed", "all\n")

    play(scenario)


def test_a_refused_growth_is_the_guests_to_bear(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        outcome = await bench.run(tool, "grow", "100", "0", limits=Limits(memory_bytes=64 * MIB))
        assert (outcome.exit.exit_code, outcome.exit.reason, outcome.text()) == (0, "Completed", "refused\n")
        assert outcome.exit.peak_memory_bytes is not None
        assert outcome.exit.peak_memory_bytes < 110 * MIB

    play(scenario)


def test_who_ends_badly_after_a_refused_growth_was_out_of_memory(play: Play, tool: bytes, executor: str) -> None:
    async def scenario(bench: Bench) -> None:
        outcome = await bench.run(tool, "grow", "100", "3", limits=Limits(memory_bytes=64 * MIB))
        assert outcome.text() == "refused\n"
        if EXECUTORS[executor].sees_refused_growth:
            end = (outcome.exit.exit_code, outcome.exit.reason, outcome.exit.message)
            assert end == (137, "OOMKilled", OUT_OF_MEMORY)
        else:
            assert (outcome.exit.exit_code, outcome.exit.reason) == (3, "Error")

    play(scenario)


def test_a_module_too_large_from_the_start_was_out_of_memory(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        # One that is too large alone, and twenty that are too large together.
        for module in (wat.memories(1, pages=1025), wat.memories(20, pages=512)):
            end = (await bench.run(module, limits=Limits(memory_bytes=64 * MIB))).exit
            assert (end.exit_code, end.reason) == (137, "OOMKilled")
            assert end.message.startswith(OUT_OF_MEMORY)
        end = (await bench.run(wat.memories(1, pages=1024), limits=Limits(memory_bytes=64 * MIB))).exit
        assert end.exit_code == 0, end

    play(scenario)


def test_the_memories_of_a_module_are_bounded_together(play: Play, executor: str) -> None:
    async def scenario(bench: Bench) -> None:
        end = (await bench.run(wat.growing_memories(20, pages=512), limits=Limits(memory_bytes=64 * MIB))).exit
        if EXECUTORS[executor].sums_memories:
            assert (end.exit_code, end.reason) == (137, "OOMKilled"), "two of 32 MiB, and 18 refusals"
        else:
            assert end.exit_code in (2, 3)

    play(scenario)


def test_tables_count_as_memory(play: Play, executor: str) -> None:
    async def scenario(bench: Bench) -> None:
        limits = Limits(memory_bytes=64 * MIB)
        assert (await bench.run(wat.growing_table(1 << 20), limits=limits)).exit.exit_code == 0
        end = (await bench.run(wat.growing_table(9 << 20), limits=limits)).exit
        assert end.exit_code == (137 if EXECUTORS[executor].sees_refused_growth else 1)

    play(scenario)


def test_without_a_limit_memory_is_given(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        assert (await bench.run(tool, "grow", "200", "0")).text() == "all\n"

    play(scenario)


def test_fuel_is_enough_or_not(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        outcome = await bench.run(tool, "exit", "5", limits=Limits(fuel=10_000_000))
        assert (outcome.exit.exit_code, outcome.exit.reason) == (5, "Error")
        outcome = await bench.run(tool, "spin", limits=Limits(fuel=10_000_000))
        assert (outcome.exit.exit_code, outcome.exit.reason) == (134, "OutOfFuel")
        assert outcome.exit.message.startswith("used up its fuel, 10000000\nwasm trap: all fuel consumed")
        assert outcome.text() == "spinning\n"
        assert (await bench.run(wat.SPINS_AT_START, limits=Limits(fuel=1000))).exit.reason == "OutOfFuel"

    play(scenario)


def test_fuel_of_a_component(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        assert (await bench.run(wat.component(), limits=Limits(fuel=1_000_000))).exit.exit_code == 0
        end = (await bench.run(wat.component(), limits=Limits(fuel=1))).exit
        assert (end.exit_code, end.reason) == (134, "OutOfFuel")

    play(scenario)


def test_fuel_wants_code_that_counts_it(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        plain, counting = await bench.compile(tool), await bench.compile(tool, Variant.FUEL)
        assert plain.path != counting.path
        with pytest.raises(StartRefused, match="fuel"):
            await bench.run(plain, "exit", "0", limits=Limits(fuel=1000))
        with pytest.raises(StartRefused, match="fuel"):
            await bench.run(counting, "exit", "0")
        mislabelled = dataclasses.replace(plain, variant=Variant.FUEL)
        with pytest.raises(StartRefused, match="fuel"):
            await bench.run(mislabelled, "exit", "0", limits=Limits(fuel=1000))

    play(scenario)


def test_a_ceiling_on_cpu_time_is_kept(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        assert "cpu-limit" in bench.engine.features
        module = await bench.compile(tool)
        burning = [await bench.start(module, "burn", "1500", limits=Limits(cpu_millicores=200)) for _ in range(2)]
        spinning = await bench.start(module, "spin", limits=Limits(cpu_millicores=100))
        await bench.said(spinning, b"spinning")
        for guest in burning:
            end = (await bench.end(guest)).exit
            assert end.exit_code == 0
            assert end.cpu_nanoseconds is not None
            # 300 ms and a start; without the ceiling it would take what the machine gives, up to 1,500.
            assert end.cpu_nanoseconds < 900_000_000
        spinning.guest.kill()
        assert (await spinning.guest.wait()).exit_code == 137, "also while it is held down"

    play(scenario)


def test_a_ceiling_disturbs_no_guest_below_it(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        limits = Limits(cpu_millicores=500)
        outcome = await bench.run(tool, "interleave", "200", limits=limits)
        assert outcome.lines == [("stdout" if i % 2 == 0 else "stderr", f"{i}\n") for i in range(200)]
        assert (await bench.run(tool, "clocks", limits=limits)).text().endswith(" 1\n"), "sleep isn't cut short"

    play(scenario)


def test_weight_is_niceness_on_top_of_the_runners_own(play: Play) -> None:
    """Which nobody without a privilege can go below: so guests run also where the runner itself was started with `nice`."""
    own = os.getpriority(os.PRIO_PROCESS, 0)

    async def scenario(bench: Bench) -> None:
        nice = []
        for weight in (None, 100, 500, 1000, 4000):
            guest = await bench.start(simple.sleeps(), limits=Limits(cpu_weight_millicores=weight))
            await bench.said(guest, b"awake")
            nice.append(os.getpriority(os.PRIO_PROCESS, guest.pid))
            guest.guest.kill()
        assert nice == [min(19, own + each) for each in (19, 10, 3, 0, 0)]

    play(scenario)


def test_limits_are_in_force_in_its_process(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        given = Limits(memory_bytes=64 * MIB, descriptors=100, file_bytes=5 * MIB)
        guest = await bench.start(tool, "wait", limits=given)
        await bench.said(guest, b"waiting")
        limits = Path(f"/proc/{guest.pid}/limits").read_text()
        found = dict(re.findall(r"^Max (.+?)  +\S+ +(\S+)", limits, re.MULTILINE))
        assert found["open files"] == "100"
        assert found["file size"] == str(5 * MIB)
        assert found["core file size"] == "0"
        assert 64 * MIB < int(found["data size"]) < 200 * MIB
        status = Path(f"/proc/{guest.pid}/status").read_text()
        threads = re.search(r"^Threads:\t(\d+)$", status, re.MULTILINE)
        assert threads is not None and int(threads[1]) <= 2

    play(scenario)
