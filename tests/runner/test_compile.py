"""Both compilers as the runner uses them: real processes, real modules, and modules that no compiler can like."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.guests import monsters, wat
from tests.guests.servers_03 import SERVER_03
from tests.runner.conftest import children
from tests.runner.harness import open_descriptors, until
from tests.support import executors
from tests.support import wat as simple
from wherry_runner.execution import landlock, native, process
from wherry_runner.execution.engine import Variant
from wherry_runner.modules.compile import WASI_03, Compiler, CompileSettings, Damaged, Refused
from wherry_runner.modules.refusals import LIMIT_SECONDS, Refusals
from wherry_runner.modules.store import CompiledFacts, Store, sha256_of

T = TypeVar("T")

HELLO = simple.binary(simple.exits(0))
TIMELESS = monsters.tangled(300, 300)
"""5 kB that keep a compiler busy for half a minute at least."""
HUGE = monsters.tangled(1000, 1000)
"""17 kB that want gigabytes."""


@dataclass
class Maker:
    """What the compiler needs of an engine (`compile.CodeMaker`), and how often it was asked."""

    executor: str
    name: str = "test/1"
    features: frozenset[str] = frozenset()
    asked: list[Variant] = field(default_factory=list)

    def compiler(self, variant: Variant) -> tuple[str, ...]:
        self.asked.append(variant)
        if self.executor == "python":
            return (*process.PYTHON, "wherry_runner.modules.compiler")
        directory = executors.native_directory()
        assert directory is not None
        return (str(directory / native.COMPILER),)


@dataclass
class Metrics:
    results: list[str] = field(default_factory=list)

    def compiled(self, result: str, seconds: float) -> None:
        assert seconds >= 0
        self.results.append(result)


class Room:
    """A store with a compiler for it, opened for one piece of work at a time. Nothing may be left behind by any."""

    def __init__(self, folder: Path, executor: str) -> None:
        self.folder = folder
        self.maker = Maker(executor)
        self.metrics = Metrics()
        self.refusals = Refusals()

    def do(self, work: Callable[[Store, Compiler], Awaitable[T]], limits: CompileSettings | None = None) -> T:
        async def whole() -> T:
            store = Store(self.folder)
            compiler = Compiler(store, engine=self.maker, settings=limits, metrics=self.metrics, refusals=self.refusals)
            return await work(store, compiler)

        before = children(), open_descriptors()
        try:
            return asyncio.run(whole())
        finally:
            assert (children(), open_descriptors()) == before, "a process or a descriptor was left behind"
            assert list((self.folder / "tmp").iterdir()) == [], "something unfinished was left behind"

    def get(
        self, module: bytes | str, variant: Variant = Variant.PLAIN, limits: CompileSettings | None = None
    ) -> tuple[Path, CompiledFacts]:
        """As the library does it: what is there, else made."""

        async def work(store: Store, compiler: Compiler) -> tuple[Path, CompiledFacts]:
            digest = store.put_blob(module.encode() if isinstance(module, str) else module)
            return await compiler.find(digest, variant) or await compiler.compile(digest, variant)

        return self.do(work, limits)

    def refused(self, module: bytes | str, limits: CompileSettings | None = None) -> str:
        with pytest.raises(Refused) as error:
            self.get(module, limits=limits)
        assert list((self.folder / "compiled").iterdir()) == [], "nothing was kept"
        return str(error.value)


@pytest.fixture
def room(tmp_path: Path, executor: str) -> Room:
    return Room(tmp_path / "modules", executor)


def ask(executor: str, module: bytes, *flags: str, digest: str = "", output: int | None = None) -> Any:
    """A compiler's own answer, by the contract of its process."""
    digest = digest or "sha256:" + hashlib.sha256(module).hexdigest()
    with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as code:
        stdin.write(module)
        stdin.seek(0)
        number = code.fileno() if output is None else output
        limits = (str(2 << 30), "60")
        done = subprocess.run(
            [*Maker(executor).compiler(Variant.PLAIN), str(os.getpid()), *limits, digest, str(number), "plain", *flags],
            stdin=stdin,
            capture_output=True,
            pass_fds=[number],
            env={},
            check=True,
        )
        assert done.stderr == b""
        answer = json.loads(done.stdout)
        code.seek(0)
        if "sha256" in answer:
            assert hashlib.sha256(code.read()).hexdigest() == answer["sha256"]
        elif output is None:
            assert code.read() == b"", "what is refused has no code"
        return answer


# --- what is compiled -------------------------------------------------------------------------------------------------


def test_real_modules_are_compiled_once(room: Room, tool: bytes) -> None:
    for module, kind in ((tool, "core"), (simple.exits(0), "core"), (wat.component(), "component")):
        path, facts = room.get(module)
        assert path.read_bytes().startswith(b"\x7fELF")
        assert path.stat().st_mode & 0o777 == 0o600
        data = module.encode() if isinstance(module, str) else module
        assert facts == CompiledFacts(
            kind=kind,
            variant="plain",
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            module_digest="sha256:" + hashlib.sha256(data).hexdigest(),
        )
        made = len(room.maker.asked)
        assert room.get(module) == (path, facts)
        assert len(room.maker.asked) == made, "it was there"
    assert room.metrics.results == ["ok"] * 3


def test_a_component_of_a_real_tool_chain_has_its_names(executor: str) -> None:
    answer = ask(executor, wat.component().encode())
    assert (answer["kind"], answer["exports"], answer["exportCount"]) == ("component", ["wasi:cli/run@0.2.0"], 1)
    assert ["wasi:cli/stdout@0.2.0", ""] in answer["imports"]


def test_each_variant_engine_and_option_has_code_of_its_own(room: Room) -> None:
    plain, _ = room.get(HELLO)
    fuel, facts = room.get(HELLO, Variant.FUEL)
    assert facts.variant == "fuel"
    assert plain.read_bytes() != fuel.read_bytes()
    room.maker.name = "test/2"
    newer, _ = room.get(HELLO)
    room.maker.features = frozenset({WASI_03})
    both, _ = room.get(HELLO)
    assert len({plain, fuel, newer, both}) == 4
    assert room.maker.asked == [Variant.PLAIN, Variant.FUEL, Variant.PLAIN, Variant.PLAIN]


def test_at_most_64_names_are_told_and_those_that_matter_come_first(executor: str) -> None:
    imports = "".join(f'(import "env" "f{index}" (func))' for index in range(200))
    exports = "".join(f'(func (export "e{index}"))' for index in range(200))
    long = "x" * 300
    module = f"""(module {imports} (import "gojs" "é" (func)) (import "env" "{long}" (func)) {exports}
      (func (export "{long}")) (func (export "_start")))"""
    answer = ask(executor, module.encode())
    assert answer["imports"] == [["gojs", "é"], *(["env", f"f{index}"] for index in range(63))]
    assert answer["exports"] == ["_start", *(f"e{index}" for index in range(63))]
    assert answer["exportCount"] == 202
    answer = ask(executor, f'(module (import "{long}" "{long}" (func)) (func (export "{long}")))'.encode())
    assert (answer["imports"], answer["exports"]) == ([["x" * 200, "x" * 200]], ["x" * 200])


def test_names_of_inner_modules_are_not_the_components(executor: str) -> None:
    module = """(component
      (core module (import "gojs" "x" (func)) (func (export "_start")))
      (component (import "inner" (func)) (export "wasi:cli/run@0.2.0" (func 0)))
      (import "outer" (func))
      (core module $m (func (export "f")))
      (core instance $i (instantiate $m))
      (func (export "tools") (canon lift (core func $i "f"))))"""
    answer = ask(executor, module.encode())
    assert (answer["imports"], answer["exports"]) == ([["outer", ""]], ["tools"])


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("(module (func (export", "is not valid WebAssembly: unknown operator or unexpected token (line 1, column 16)"),
        ("(module\n  (func (result i32)))", "type mismatch: expected i32 but nothing on stack"),
        ("(" * 100_000, "is not valid WebAssembly: "),
        (b"(module \xff)", "is not valid WebAssembly: "),
        (HELLO[:-1], "is not valid WebAssembly: "),
        (b"\0asm\1\0\0\0\xff", "is not valid WebAssembly: malformed section id (at offset 0x8)"),
        (b"\0asm\1", "is not valid WebAssembly: it ends after 5 bytes"),
        (b"\0asm\2\0\0\0", "is WebAssembly of a version that this runner doesn't know (02000000)"),
        (b"\x7fELF\2\1\1", "native code (ELF): precompiled modules are never taken, they would run unchecked"),
        (b"", "is not WebAssembly"),
        (b"hello", "is not WebAssembly"),
        (monsters.memories(101, 1), "is not valid WebAssembly: memories count "),
        (wat.LIBRARY, "is a library: it has no `_start` to be run, and exports add"),
        (wat.REACTOR, "is a reactor: "),
    ],
)  # fmt: skip
def test_what_can_not_be_run_is_told_in_one_line(room: Room, module: bytes | str, text: str) -> None:
    refused = room.refused(module)
    assert text in refused
    assert len(refused) < 600
    assert refused.isprintable()
    assert room.metrics.results == ["error"]


def test_a_refusal_is_not_worked_out_twice(room: Room) -> None:
    for _ in range(3):
        room.refused(wat.LIBRARY)
        room.refused("(module")
    assert len(room.maker.asked) == 2
    room.maker.name = "test/2"
    room.refused(wat.LIBRARY)
    assert len(room.maker.asked) == 3, "another engine may think otherwise"


def test_wasi_03_is_refused_with_what_to_do_unless_it_is_allowed(room: Room) -> None:
    assert "--wasi-0.3" in room.refused(wat.COMMAND_03)
    assert "--wasi-0.3" in room.refused(SERVER_03)
    room.maker.features = frozenset({WASI_03})
    _, facts = room.get(wat.COMMAND_03)
    assert facts.kind == "component"
    _, facts = room.get(SERVER_03)
    assert facts.kind == "http"


def test_other_bytes_than_the_digest_says_are_damage(room: Room, executor: str) -> None:
    assert ask(executor, HELLO, digest="sha256:" + "0" * 64) == {"damaged": True}

    async def work(store: Store, compiler: Compiler) -> None:
        digest = store.put_blob(HELLO)
        store.blob(digest).write_bytes(HELLO[:-1])
        with pytest.raises(Damaged):
            await compiler.compile(digest)
        store.blob(digest).unlink()
        with pytest.raises(FileNotFoundError):
            await compiler.compile(digest)

    room.do(work)
    assert room.metrics.results == ["error", "error"]


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_damaged_code_is_made_anew(room: Room) -> None:
    path, facts = room.get(HELLO)
    good = path.read_bytes()
    for damage in (good[:-1], good[:1000] + b"\xff" + good[1001:], b""):
        path.write_bytes(damage)
        path, facts = room.get(HELLO)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == facts.sha256
    path.unlink()
    assert room.get(HELLO)[0].exists()


def test_code_is_checked_when_first_found_and_when_its_file_is_another(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = room.get(HELLO)
    checked: list[Path] = []

    def counted(path: Path) -> str:
        checked.append(path)
        return sha256_of(path)

    monkeypatch.setattr("wherry_runner.modules.compile.sha256_of", counted)

    async def work(store: Store, compiler: Compiler) -> None:
        digest = store.put_blob(HELLO)
        assert await compiler.find(digest) and await compiler.find(digest)
        assert checked == [path]
        os.utime(path, (1, 1))
        assert await compiler.find(digest)
        assert checked == [path, path]
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")
        assert await compiler.find(digest) is None
        made, _ = await compiler.compile(digest)
        assert await compiler.find(digest)
        assert checked == [path] * 3, "what was just made is known to be good"
        assert made == path

    room.do(work)


# --- limits -----------------------------------------------------------------------------------------------------------


def test_a_hundred_thousand_functions(room: Room) -> None:
    _, facts = room.get(monsters.many_functions(100_000))
    assert facts.kind == "core"


@pytest.mark.parametrize(
    "module",
    [
        monsters.memories(20, 512),
        monsters.memories(100, 65_536),
        monsters.table(10_000_000),
        monsters.table(2**32 - 1),
        monsters.nested(20_000),
        monsters.nested(20_000, opened_by=b"\x03\x40"),
        monsters.nested(20_000, opened_by=b"\x41\x00\x04\x40"),
    ],
    ids=["20 memories", "400 GiB of memory", "large table", "largest table", "blocks", "loops", "ifs"],
)
def test_sizes_that_only_running_would_cost_are_compiled(room: Room, module: bytes) -> None:
    assert room.get(module)[1].kind == "core"


def test_types_inside_types_inside_types_are_refused(room: Room) -> None:
    # One of wasmtime's releases has a limit for this, the other only that of its stack.
    assert "nest" in room.refused(monsters.nested_types(100_000))


@pytest.mark.parametrize(
    ("module", "limits", "text"),
    [
        (HUGE, CompileSettings(memory_bytes=96 << 20), "needs more than 96 MiB of memory to compile"),
        (b"(module)" + b" " * (70 << 20), CompileSettings(memory_bytes=64 << 20), "needs more than 64 MiB of memory"),
        (TIMELESS, CompileSettings(wall_seconds=0.4), "takes more than 0.4 s to compile"),
        (TIMELESS, CompileSettings(cpu_seconds=1, wall_seconds=3600), "takes more than 1 s of CPU time to compile"),
    ],
    ids=["memory", "input", "clock", "CPU"],
)
def test_a_limit_is_told_and_remembered(room: Room, module: bytes, limits: CompileSettings, text: str) -> None:
    for _ in range(2):
        assert room.refused(module, limits).startswith(text)
    assert len(room.maker.asked) == 1


def test_a_limit_is_tried_again_after_a_while(room: Room) -> None:
    now = [0.0]
    room.refusals = Refusals(clock=lambda: now[0])
    assert room.refused(HELLO, CompileSettings(wall_seconds=0.0)).startswith("takes more than 0 s to compile")
    with pytest.raises(Refused):
        room.get(HELLO)
    now[0] = LIMIT_SECONDS
    room.get(HELLO)


def test_a_compiler_that_hardly_has_memory_says_so(room: Room) -> None:
    assert room.refused(HELLO, CompileSettings(memory_bytes=1 << 20)).startswith("needs more than 1 MiB of memory")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
def test_a_compiler_that_is_killed_leaves_nothing(room: Room, number: signal.Signals) -> None:
    async def work(store: Store, compiler: Compiler) -> None:
        digest = store.put_blob(TIMELESS)
        before = children()
        task = asyncio.create_task(compiler.compile(digest))
        await until(lambda: len(children()) > len(before))
        os.kill(int((children() - before).pop()), number)
        words = "its compiler was killed" if number is signal.SIGKILL else "its compiler ended with signal 6"
        with pytest.raises(Refused, match=words):
            await task
        if number is signal.SIGKILL:
            assert await compiler.find(digest) is None, "that is forgotten at once"
        else:
            with pytest.raises(Refused):
                await compiler.find(digest)

    room.do(work)


def test_kills_at_random_moments_give_a_message_or_good_code(room: Room) -> None:
    seed = random.randrange(2**32)
    moments = random.Random(seed)

    async def once(compiler: Compiler, digest: str) -> None:
        before = children()
        task = asyncio.create_task(compiler.compile(digest))
        await until(lambda: task.done() or children() != before)
        for pid in children() - before:
            pidfd = os.pidfd_open(int(pid))
            for _ in range(moments.randrange(300)):
                await asyncio.sleep(0)
            process.kill(pidfd)
            os.close(pidfd)
        try:
            path, facts = await task
        except Refused as error:
            assert "its compiler was killed" in str(error), f"seed {seed}"
        else:
            assert hashlib.sha256(path.read_bytes()).hexdigest() == facts.sha256, f"seed {seed}"

    async def work(store: Store, compiler: Compiler) -> None:
        digest = store.put_blob(HELLO)
        for _ in range(6):
            await once(compiler, digest)

    room.do(work)
    room.get(HELLO)


def test_a_compiler_that_is_not_there_is_not_the_modules_fault(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Maker, "compiler", lambda self, variant: ("/nonexistent",))
    assert room.refused(HELLO).startswith("could not be compiled: its compiler can't be started: ")
    monkeypatch.undo()
    room.get(HELLO)


def test_who_is_cancelled_leaves_no_process(room: Room) -> None:
    async def work(store: Store, compiler: Compiler) -> None:
        digest = store.put_blob(TIMELESS)
        before = children()
        task = asyncio.create_task(compiler.compile(digest))
        await until(lambda: children() != before)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    room.do(work)


def test_no_more_run_at_once_than_the_settings_say(room: Room) -> None:
    async def work(store: Store, compiler: Compiler) -> None:
        before = children()
        most = 0
        modules = [store.put_blob(simple.exits(code).encode()) for code in range(3)]
        tasks = [asyncio.create_task(compiler.compile(digest)) for digest in modules]
        while not all(task.done() for task in tasks):
            most = max(most, len(children()) - len(before))
            await asyncio.sleep(0)
        assert most <= 2
        await asyncio.gather(*tasks)

    room.do(work, CompileSettings(at_once=2))


# --- the process ------------------------------------------------------------------------------------------------------


def test_a_compiler_dies_with_its_runner(executor: str, tmp_path: Path) -> None:
    """The parent is a shell's child here, and is killed in the middle of a compilation."""
    module = tmp_path / "module.wasm"
    module.write_bytes(TIMELESS)
    digest = "sha256:" + hashlib.sha256(TIMELESS).hexdigest()
    command = [*Maker(executor).compiler(Variant.PLAIN), "%d", str(2 << 30), "60", digest, "1", "plain"]
    program = f"""
import os, subprocess, sys
command = [word if word != "%d" else str(os.getpid()) for word in {command!r}]
child = subprocess.Popen(command, stdin=open({str(module)!r}, "rb"), stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
child.wait()
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pidfd = os.pidfd_open(int(parent.stdout.readline()))
    try:
        parent.kill()
        parent.wait()
        parent.stdout.close()
        asyncio.run(asyncio.wait_for(process.readable(pidfd), 30))
    finally:
        os.close(pidfd)


def test_a_compiler_whose_parent_is_not_who_it_should_be_ends(executor: str) -> None:
    command = [*Maker(executor).compiler(Variant.PLAIN), "1", str(2 << 30), "60", "sha256:0", "1", "plain"]
    assert subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 1


def test_a_compiler_has_nothing_but_what_it_was_given(executor: str) -> None:
    """Looked at while it waits for the module's bytes: limits, privileges, environment, descriptors."""
    ends = os.pipe()
    with open(ends[1], "wb") as writer, tempfile.TemporaryFile() as code:
        numbers = (str(1 << 30), "77", "sha256:0", str(code.fileno()))
        compiler = process.spawn(
            [*Maker(executor).compiler(Variant.PLAIN), str(os.getpid()), *numbers, "plain"],
            stdin=ends[0],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[code.fileno()],
        )
        os.close(ends[0])
        folder = Path(f"/proc/{compiler.pid}")
        try:
            # In read(2) on descriptor 0.
            asyncio.run(asyncio.wait_for(until(lambda: (folder / "syscall").read_text().startswith("0 0x0 ")), 30))
            limits = (folder / "limits").read_text()
            assert f"Max data size             {1 << 30}           {1 << 30}" in limits
            assert "Max cpu time              77                   78" in limits
            assert "Max core file size        0                    0" in limits
            assert "Max stack size            8388608              8388608" in limits
            status = dict(line.split(":\t", 1) for line in (folder / "status").read_text().splitlines())
            assert status["NoNewPrivs"] == "1"
            assert (folder / "environ").read_bytes() in (b"", b"LC_CTYPE=C.UTF-8\0")
            assert os.readlink(folder / "cwd") == "/"
            assert {number for number in os.listdir(folder / "fd") if int(number) > 2} == {str(code.fileno())}
            if executor == "native":
                assert status["Seccomp"] == "2"
        finally:
            writer.close()
            assert compiler.wait() == 0


@pytest.mark.skipif(landlock.abi() == 0, reason="this kernel has no Landlock")
def test_the_python_compiler_reaches_no_file() -> None:
    """(The native one has the sandbox of the native executor's guests, which has tests of its own.)"""
    program = """
import os
from wherry_runner.modules import compiler
def attempts(*_):
    said = []
    for attempt in (lambda: open("/etc/passwd"), lambda: os.listdir("/"), lambda: open(f"/tmp/wherry-{os.getpid()}", "w")):
        try:
            attempt()
        except OSError as error:
            said.append(type(error).__name__)
    return {"refused": " ".join(said)}
compiler.compile_module = attempts
compiler.main([str(os.getppid()), str(1 << 30), "60", "sha256:" + "%s", "2", "plain"])
"""
    digest = hashlib.sha256(b"").hexdigest()
    done = subprocess.run(
        [sys.executable, "-I", "-c", program % digest], stdin=subprocess.DEVNULL, capture_output=True, check=True
    )
    assert json.loads(done.stdout) == {"refused": " ".join(["PermissionError"] * 3)}


# --- bytes of any kind ------------------------------------------------------------------------------------------------


def _damaged(data: bytes, flips: list[tuple[int, int]], cut: int) -> bytes:
    damaged = bytearray(data)
    for place, bit in flips:
        damaged[place % len(data)] ^= 1 << bit
    return bytes(damaged[: len(data) - cut])


_FLIPS = st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 7)), min_size=0, max_size=4)
_CUT = st.just(0) | st.integers(0, 4000)
_EXAMPLES = {"python": 5, "native": 30}


@pytest.mark.parametrize("kind", ["core", "component"])
def test_flipped_bits_and_missing_ends_are_always_answered(executor: str, kind: str, tool: bytes) -> None:
    import wasmtime

    whole = tool if kind == "core" else bytes(wasmtime.wat2wasm(wat.component()))

    @settings(max_examples=_EXAMPLES[executor], deadline=None, suppress_health_check=list(HealthCheck))
    @given(_FLIPS, _CUT)
    def check(flips: list[tuple[int, int]], cut: int) -> None:
        answer = ask(executor, _damaged(whole, flips, min(cut, len(whole))))
        assert ("sha256" in answer) != ("refused" in answer)

    check()
