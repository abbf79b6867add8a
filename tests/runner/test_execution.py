"""What a guest is given and how its end is told, on every executor with real wasmtime."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.guests import build, wat
from tests.runner.conftest import Play
from tests.runner.differences import EXECUTORS
from tests.runner.harness import Bench
from tests.support import wat as simple
from wherry_runner.execution.engine import Limits, Preopen, StartRefused
from wherry_runner.modules.compile import Refused

# --- ends -------------------------------------------------------------------------------------------------------------


def test_exit_codes_are_exact(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        module = await bench.compile(tool)
        for first in range(0, 256, 32):
            codes = range(first, first + 32)
            guests = await asyncio.gather(*(bench.start(module, "exit", str(code)) for code in codes))
            for code, guest in zip(codes, guests, strict=True):
                outcome = await bench.end(guest)
                assert (outcome.exit.exit_code, outcome.exit.message) == (code, "")
                assert outcome.exit.reason == ("Completed" if code == 0 else "Error")
                assert outcome.lines == [("stdout", "exiting")], "no newline is added"

    play(scenario)


def test_an_exit_code_above_255_is_cut_as_unix_does(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        for code, seen in ((256, 0), (257, 1), (-1, 255)):
            assert (await bench.run(simple.exits(code))).exit.exit_code == seen

    play(scenario)


def test_what_a_run_used_is_told(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        small, large, busy = [
            (await bench.run(tool, *words)).exit for words in (("exit", "0"), ("grow", "64", "0"), ("burn", "200"))
        ]
        assert small.peak_memory_bytes and large.peak_memory_bytes and small.cpu_nanoseconds and busy.cpu_nanoseconds
        assert large.peak_memory_bytes - small.peak_memory_bytes >= 60 << 20
        assert busy.cpu_nanoseconds > small.cpu_nanoseconds

    play(scenario)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("unreachable", "wasm trap: wasm `unreachable` instruction executed"),
        ("out-of-bounds", "wasm trap: out of bounds memory access (memory fault at wasm address 0xfffffff0"),
        ("overflow", "wasm trap: call stack exhausted"),
    ],
)
def test_traps_are_readable(play: Play, tool: bytes, command: str, message: str) -> None:
    async def scenario(bench: Bench) -> None:
        end = (await bench.run(tool, command)).exit
        assert (end.exit_code, end.reason) == (134, "Error")
        assert end.message.startswith(message), end.message
        assert "\n  at " in end.message, end.message
        assert len(end.message) < 4096

    play(scenario)


def test_traps_of_every_kind_are_readable(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        for words, module in wat.TRAPS.items():
            end = (await bench.run(module)).exit
            assert (end.exit_code, end.reason) == (134, "Error"), words
            assert end.message.startswith(f"wasm trap: {words}"), end.message
            assert re.search(r"\n  at \S+!_?(start|deeper)\b", end.message), "functions have their names"

    play(scenario)


def test_a_module_that_can_not_be_instantiated_says_why(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        end = (await bench.run(wat.DATA_BEYOND_MEMORY)).exit
        assert end.exit_code == 134
        assert "out of bounds memory access" in end.message

    play(scenario)


def test_a_guest_killed_from_outside_ends_with_137(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        guest = await bench.start(tool, "wait")
        await bench.said(guest, b"waiting\n")
        os.kill(guest.pid, signal.SIGKILL)
        outcome = await bench.end(guest)
        assert (outcome.exit.exit_code, outcome.exit.reason) == (137, "Error")
        assert "killed from outside" in outcome.exit.message
        assert outcome.text() == "waiting\n"

    play(scenario)


def test_a_kill_has_a_reason(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        guest = await bench.start(tool, "spin")
        await bench.said(guest, b"spinning\n")
        guest.guest.kill(reason="DeadlineExceeded", message="ran for too long")
        guest.guest.kill(reason="Error", message="later")
        outcome = await bench.end(guest)
        assert (outcome.exit.exit_code, outcome.exit.reason) == (137, "DeadlineExceeded")
        assert outcome.exit.message == "ran for too long"
        guest.guest.kill()  # a no-op

    play(scenario)


def test_an_endless_loop_in_the_start_function_is_killed(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        guest = await bench.start(wat.SPINS_AT_START)
        guest.guest.kill()
        assert (await guest.guest.wait()).exit_code == 137

    play(scenario)


# --- what it is given -------------------------------------------------------------------------------------------------


def test_arguments_and_environment_arrive_as_they_are(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        words = (
            "",
            "two words",
            "späte Wörter",
            "-n",
            "--",
            "日本語 🚣",
            "line\nbreak",
            '"quoted"',
            "\\",
            "a" * 100_000,
        )
        outcome = await bench.run(tool, "arguments", *words)
        assert outcome.text() == "".join(f"{word}\n" for word in ("tool", "arguments", *words))
        env = (("Z", "1"), ("A", "two words"), ("EMPTY", ""), ("EQUALS", "a=b"), ("Ünï", "cødé 🚣"), ("N", "a\nb"))
        outcome = await bench.run(tool, "environment", env=env)
        assert outcome.text() == "".join(f"{name}={value}\n" for name, value in env), "and nothing else, not even PATH"
        assert (await bench.run(tool, "environment")).text() == ""

    play(scenario)


def test_a_large_environment_arrives_whole(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        env = tuple((f"NAME_{number}", f"{number}" * 100) for number in range(3000))
        assert sum(len(name) + len(value) for name, value in env) > 1 << 20
        outcome = await bench.run(tool, "environment", env=env)
        assert outcome.text() == "".join(f"{name}={value}\n" for name, value in env)

    play(scenario)


@pytest.mark.parametrize("words", [{"argv": "a\0b"}, {"name": "a\0b"}, {"value": "a\0b"}, {"value": "\ud800"}], ids=str)
def test_what_can_not_be_passed_on_is_refused(play: Play, tool: bytes, words: dict[str, str]) -> None:
    async def scenario(bench: Bench) -> None:
        argv = [words["argv"]] if "argv" in words else []
        env = ((words.get("name", "N"), words.get("value", "V")),)
        with pytest.raises(StartRefused, match=r"NUL|surrogates"):
            await bench.run(tool, *argv, env=env)

    play(scenario)


def test_clocks_random_numbers_and_sleep(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        before = int(time.time())
        now, slept = (await bench.run(tool, "clocks")).text().split()
        assert before <= int(now) <= time.time()
        assert slept == "1"
        drawn = [(await bench.run(tool, "random")).text() for _ in range(2)]
        assert drawn[0] != drawn[1]

    play(scenario)


def test_random_numbers_differ_between_forks(play: Play, tool: bytes, executor: str) -> None:
    rounds = 20 if executor == "native" else 4  # the python executor takes ten times as long for each

    async def scenario(bench: Bench) -> None:
        module = await bench.compile(tool)
        drawn: list[str] = []
        for _ in range(rounds):
            guests = await asyncio.gather(*(bench.start(module, "random") for _ in range(50)))
            drawn += [(await bench.end(guest)).text() for guest in guests]
        assert len(set(drawn)) == rounds * 50

    play(scenario)


def test_without_an_input_the_guest_reads_the_end_of_a_file(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        guest = await bench.start(tool, "cat")
        assert (await bench.end(guest)).text() == "end\n"
        with pytest.raises(BrokenPipeError):
            await guest.guest.write(b"x")
        guest.guest.close_input()  # a no-op

    play(scenario)


def test_input_arrives_in_order_and_its_end_too(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        guest = await bench.start(tool, "cat", stdin=True)
        await guest.guest.write(b"one\n")
        await bench.said(guest, b"one\n")
        large = b"".join(b"%d\n" % number for number in range(100_000))
        await asyncio.gather(*(guest.guest.write(data) for data in (b"two\n", large, b"three\n", b"")))
        guest.guest.close_input()
        guest.guest.close_input()
        outcome = await bench.end(guest)
        assert outcome.text() == f"one\ntwo\n{large.decode()}three\nend\n"
        with pytest.raises(BrokenPipeError):
            await guest.guest.write(b"x")

    play(scenario)


def test_a_guest_that_reads_no_input_makes_its_writer_wait_and_nobody_else(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        deaf = await bench.start(tool, "wait", stdin=True)
        writing = asyncio.create_task(deaf.guest.write(b"x" * (1 << 20)))
        closed = await bench.start(tool, "wait", stdin=True)
        given_up = asyncio.create_task(closed.guest.write(b"x" * (1 << 20)))
        assert (await bench.run(tool, "exit", "3")).exit.exit_code == 3
        assert not writing.done() and not given_up.done()
        closed.guest.close_input()
        deaf.guest.kill()
        for task in (writing, given_up):
            with pytest.raises(BrokenPipeError):
                await task
        assert (await deaf.guest.wait()).exit_code == 137

    play(scenario)


def test_a_working_directory_of_a_wasi_01_module_is_refused_by_name(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        with pytest.raises(StartRefused, match='working directory "/data"'):
            await bench.run(tool, "arguments", working_dir="/data")
        assert (await bench.run(tool, "arguments", working_dir="/")).exit.exit_code == 0

    play(scenario)


def test_a_working_directory_of_a_component_is_set_or_refused_by_name(play: Play, executor: str) -> None:
    async def scenario(bench: Bench) -> None:
        if not EXECUTORS[executor].sets_working_dir:
            with pytest.raises(StartRefused, match='working directory "/data"'):
                await bench.run(wat.component(), working_dir="/data")
            return
        outcome = await bench.run(wat.COMPONENT_THAT_SAYS_WHERE_IT_IS, working_dir="/data")
        assert outcome.text() == "/data"

    play(scenario)


# --- components -------------------------------------------------------------------------------------------------------


def test_a_component_runs(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        outcome = await bench.run(wat.component(says="out\n", complains="err\n"))
        assert outcome.exit.exit_code == 0
        assert outcome.lines == [("stdout", "out\n"), ("stderr", "err\n")]

    play(scenario)


@pytest.mark.parametrize(("ends", "code"), [("ok", 0), ("err", 1), ("exit", 1), ("code", 42)])
def test_a_components_end(play: Play, ends: str, code: int) -> None:
    async def scenario(bench: Bench) -> None:
        end = (await bench.run(wat.component(ends=ends))).exit
        assert (end.exit_code, end.message) == (code, "")

    play(scenario)


def test_a_components_trap_is_readable(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        end = (await bench.run(wat.component(ends="trap"))).exit
        assert end.exit_code == 134
        assert end.message.startswith("wasm trap: wasm `unreachable` instruction executed\n  at ")

    play(scenario)


def test_a_component_that_only_imports_http_runs_where_there_is_some(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        component = wat.component(imports=wat.OUTGOING_HTTP)
        if bench.executor == "native":
            outcome = await bench.run(component)
            assert (outcome.exit.exit_code, outcome.text()) == (0, "hello from a component\n")
            return
        with pytest.raises(StartRefused) as refusal:
            await bench.run(component)
        assert "wants outbound HTTP (it imports wasi:http/types@0.2.0)" in str(refusal.value)

    play(scenario)


def test_a_component_that_only_imports_sockets_runs(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        outcome = await bench.run(wat.component(imports=wat.TCP_SOCKETS))
        assert (outcome.exit.exit_code, outcome.text()) == (0, "hello from a component\n")

    play(scenario)


def test_a_function_that_wasi_lacks_is_named(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        with pytest.raises((StartRefused, Refused), match="sock_open"):
            await bench.run(wat.UNKNOWN_IMPORT)

    play(scenario)


def test_a_reactor_or_library_never_gets_as_far_as_an_executor(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        for module in (wat.REACTOR, wat.LIBRARY):
            with pytest.raises(Refused, match="_start"):
                await bench.run(module)

    play(scenario)


# --- many -------------------------------------------------------------------------------------------------------------


def test_two_hundred_starts_at_once_each_have_their_own_result(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        module = await bench.compile(tool)

        async def run(number: int) -> None:
            if number % 3 == 0:
                outcome = await bench.run(module, "exit", str(number))
                assert (outcome.exit.exit_code, outcome.text()) == (number, "exiting")
            elif number % 3 == 1:
                outcome = await bench.run(module, "arguments", f"I am {number}")
                assert outcome.text() == f"tool\narguments\nI am {number}\n"
            else:
                outcome = await bench.run(module, "environment", env=(("NUMBER", str(number)),))
                assert outcome.text() == f"NUMBER={number}\n"

        await asyncio.gather(*(run(number) for number in range(200)))

    play(scenario)


def test_many_modules_at_once(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        modules = [await bench.compile(simple.exits(number, says=f"module {number}")) for number in range(8)]
        for _ in range(3):
            outcomes = await asyncio.gather(*(bench.run(module) for module in modules))
            for number, outcome in enumerate(outcomes):
                assert (outcome.exit.exit_code, outcome.text()) == (number, f"module {number}\n")

    play(scenario)


def test_mounts_without_number_are_refused_politely(play: Play, tool: bytes, tmp_path: Path) -> None:
    mounts = tuple(Preopen(host_path=tmp_path, guest_path=f"/mount/{number}") for number in range(300))

    async def scenario(bench: Bench) -> None:
        with pytest.raises(StartRefused, match=r"300 mounts; at most \d+ are possible"):
            await bench.run(tool, "exit", "0", preopens=mounts)
        limits = Limits(descriptors=64)
        with pytest.raises(StartRefused, match=r"at most 32 are possible with 64 open files"):
            await bench.run(tool, "exit", "0", preopens=mounts[:40], limits=limits)
        outcome = await bench.run(tool, "list", "/mount/199", preopens=mounts[:200])
        assert outcome.exit.exit_code == 0, outcome.text()

    play(scenario)


# --- other languages --------------------------------------------------------------------------------------------------


def test_a_program_in_go(play: Play, tmp_path: Path) -> None:
    program = build.go("program")

    async def scenario(bench: Bench) -> None:
        module = await bench.compile(program)
        (tmp_path / "file").write_text("from a file\n")
        outcome = await bench.run(
            module,
            "200",
            "/data/file",
            env=(("NAME", "Wert"),),
            preopens=(Preopen(host_path=tmp_path, guest_path="/data"),),
        )
        assert outcome.lines == [
            ("stdout", "args [200 /data/file]\n"),
            ("stdout", "env [NAME=Wert]\n"),
            ("stdout", "file from a file\n"),
            ("stdout", "goroutines 4950\n"),
            ("stderr", "slept\n"),
        ]
        assert outcome.exit.exit_code == 200
        panicked = await bench.run(module, "panic")
        assert panicked.exit.exit_code == 2
        assert "panic: as asked" in panicked.text("stderr")

    play(scenario)


def test_a_program_in_python(play: Play, tmp_path: Path) -> None:
    if importlib.util.find_spec("componentize_py") is None:
        pytest.skip("componentize-py is not installed")
    program = build.python("program")
    (tmp_path / "file").write_text("from a file")
    given: dict[str, Any] = {
        "env": (("NAME", "Wert"),),
        "preopens": (Preopen(host_path=tmp_path, guest_path="/data"),),
        "limits": Limits(memory_bytes=256 << 20),
    }
    said = [
        "args ['/data/file'{}]",
        "env [('NAME', 'Wert')]",
        "input ''",
        "file from a file",
        "random 100",
        "slept",
    ]

    async def scenario(bench: Bench) -> None:
        module = await bench.compile(program)
        outcome = await bench.run(module, "/data/file", **given)
        assert outcome.text().splitlines() == [line.format("") for line in said]
        assert outcome.exit.exit_code == 0, outcome.exit
        raised = await bench.run(module, "/data/file", "panic", **given)
        assert raised.text().splitlines()[: len(said)] == [line.format(", 'panic'") for line in said]
        assert "ValueError: as asked" in raised.text("stderr")
        assert raised.exit.exit_code == 134
        assert "libc.so!abort" in raised.exit.message

    play(scenario)
