"""What can go wrong in an executor that forks, on the native one: a test for each trap of the facts (executor.md).

What holds for every executor is in the other files here. Descriptors, threads and a guest's environment are looked at in
`test_guest_isolation.py`, sockets and the end of the supervisor in `test_confinement.py` and `test_executor_life.py`.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
from array import array
from pathlib import Path

import pytest

from tests.guests import components, wat
from tests.runner.conftest import Play
from tests.runner.harness import Bench, until
from tests.support import executors
from tests.support import wat as simple
from wherry_runner.execution import channel
from wherry_runner.execution.engine import Limits, Preopen, StartRefused, Variant
from wherry_runner.execution.native import COMPILER, EXECUTOR, NativeEngine
from wherry_runner.logs.allowances import Allowances
from wherry_runner.modules.compile import Compiler
from wherry_runner.modules.store import Store

pytestmark = pytest.mark.native_only
"""Only the native one."""

MIB = 1 << 20


# --- trap 1: a loaded module keeps its descriptor, and maps memory images from it ----------------------------------------


def test_each_instance_maps_the_memory_of_its_own_module(play: Play, tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        names = [f"module {number}" for number in range(70)]  # more than stay loaded
        modules = {name: await bench.compile(_says_from_an_image(name)) for name in names}
        mounts = tuple(Preopen(host_path=tmp_path, guest_path=f"/{number}") for number in range(5))
        for round_ in range(2):
            for name in (*names, *names[-3:], names[0]):
                # Another number of descriptors each time, so that numbers are used again for other things.
                outcome = await bench.run(modules[name], preopens=mounts[: round_ + len(name) % 3], stdin=round_ == 1)
                assert (outcome.exit.exit_code, outcome.text()) == (0, f"{name}\n" * 2)

    play(scenario)


def test_modules_that_are_no_longer_loaded_are_no_longer_open(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        for number in range(70):  # the same as above: compiled once
            await bench.run(_says_from_an_image(f"module {number}"))
        assert len(_open_modules(bench.engine.executor_pid)) == 64
        guest = await bench.start(simple.sleeps())
        await bench.said(guest, b"awake")
        assert len(_open_modules(guest.pid)) == 1, "it has let go of the others"

    play(scenario)


def test_a_component_keeps_its_own_module_too(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        for number in (1, 2, 1, 2):
            outcome = await bench.run(wat.component(says=f"component {number}\n"))
            assert outcome.text() == f"component {number}\n"

    play(scenario)


# --- trap 2: random numbers repeat across forks --------------------------------------------------------------------------


def test_a_thousand_forks_draw_distinct_random_numbers(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        module = await bench.compile(components.RANDOM)
        drawn: list[str] = []
        for _ in range(20):
            outcomes = await asyncio.gather(*(bench.run(module) for _ in range(50)))
            drawn += [number for outcome in outcomes for number in outcome.text().split()]
        # The secure one, the insecure one, and the two of the insecure seed.
        assert len(drawn) == 4000
        assert len(set(drawn)) == 4000

    play(scenario)


# --- trap 3: messages are small, what is large travels in a memfd that only the guest reads ------------------------------


def test_a_payload_of_many_megabytes_arrives_whole(play: Play, tool: bytes) -> None:
    environment = tuple((f"VARIABLE_{number}", str(number) * 200_000) for number in range(10, 60))

    async def scenario(bench: Bench) -> None:
        outcome = await bench.run(tool, "environment", env=environment)
        assert outcome.text() == "".join(f"{name}={value}\n" for name, value in environment)
        executor = Path(f"/proc/{bench.engine.executor_pid}/status").read_text()
        peak = re.search(r"^VmHWM:\s+(\d+) kB$", executor, re.MULTILINE)
        assert peak is not None and int(peak[1]) < 16 << 10, "the executor has read none of it"

    play(scenario)


def test_a_payload_that_could_still_change_is_not_read(executor: str, tmp_path: Path) -> None:
    with _Raw(tmp_path) as raw:
        payload = os.memfd_create("payload", os.MFD_ALLOW_SEALING)
        os.write(payload, b"{}")
        report = raw.start(payload)
        assert report.exit_code == 128
        assert report.message == "could not run: the payload can't be read: it is not sealed"


def test_a_broken_payload_is_not_quoted(executor: str, tmp_path: Path) -> None:
    with _Raw(tmp_path) as raw:
        report = raw.start(channel.Payload(argv=("a",), env=(("PASSWORD", 7),)).seal())  # type: ignore[arg-type]
        assert re.fullmatch(r"could not run: the payload can't be read: wrong at byte \d+", report.message)


# --- trap 4: whoever may look up names may talk to the world -------------------------------------------------------------


@pytest.mark.parametrize(
    ("component", "error"),
    [
        (components.LOOKS_UP_LOCALHOST, "permanent-resolver-failure"),
        (components.OPENS_A_SOCKET, "access-denied"),
    ],
    ids=["name", "socket"],
)
def test_names_and_sockets_are_denied(play: Play, component: str, error: str) -> None:
    async def scenario(bench: Bench) -> None:
        outcome = await bench.run(component)
        assert components.SOCKET_ERRORS[outcome.exit.exit_code] == error

    play(scenario)


# --- trap 5: what spins is stopped from outside --------------------------------------------------------------------------


def test_spinning_guests_keep_nobody_waiting(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        spinning = [await bench.start(wat.SPINS_AT_START) for _ in range(4)]
        assert (await bench.run(tool, "exit", "7")).exit.exit_code == 7
        for guest in spinning:
            guest.guest.kill()
            assert (await guest.guest.wait()).exit_code == 137

    play(scenario)


# --- trap 6: the CPU ceiling's signal comes in the middle of anything ----------------------------------------------------


def test_traps_are_told_the_same_under_a_ceiling(play: Play) -> None:
    counts = "(local.set $i (i32.add (local.get $i) (i32.const 1)))"
    again = "(br_if $more (i32.lt_u (local.get $i) (i32.const 20000000)))"
    start = '(func $start (export "_start")'

    async def scenario(bench: Bench) -> None:
        for message, module in wat.TRAPS.items():
            busy = await bench.compile(module.replace(start, f"{start} (local $i i32) (loop $more {counts} {again})"))
            free, held = await asyncio.gather(bench.run(busy), bench.run(busy, limits=Limits(cpu_millicores=100)))
            assert held.exit.exit_code == free.exit.exit_code == 134
            assert held.exit.message == free.exit.message
            assert message in held.exit.message

    play(scenario)


def test_a_guest_that_writes_all_the_time_is_not_disturbed_by_a_ceiling(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        outcome = await bench.run(tool, "lines", "20000", limits=Limits(cpu_millicores=300))
        assert outcome.text() == "".join(f"line {number}\n" for number in range(20000))

    play(scenario)


# --- trap 7: a guest outlives a killed parent ----------------------------------------------------------------------------


def test_guests_die_with_a_killed_executor(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        module = await bench.compile(tool)
        guests = [
            await bench.start(module, "wait"),
            await bench.start(module, "spin"),
            await bench.start(module, "spin", limits=Limits(cpu_millicores=10)),
            await bench.start(module, "cat", stdin=True),
        ]
        assert bench.engine.executor_pid is not None
        os.kill(bench.engine.executor_pid, signal.SIGKILL)
        await until(lambda: not any(Path(f"/proc/{guest.pid}").exists() for guest in guests))

    play(scenario)


# --- trap 9: WASI brings a runtime with a thread for every core ----------------------------------------------------------


def test_no_guest_has_a_runtime_of_many_threads(play: Play, tool: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not yet")

    async def scenario(bench: Bench) -> None:
        module = await bench.compile(tool)
        mounts = (Preopen(host_path=tmp_path, guest_path="/data"),)
        guests = [
            (await bench.start(module, "await", "/data/file", "now", preopens=mounts), b"awaiting\n"),
            (await bench.start(module, "wait"), b"waiting\n"),
            (await bench.start(module, "spin"), b"spinning\n"),
        ]
        for guest, word in guests:
            await bench.said(guest, word)
        for _ in range(100):
            for guest, _ in guests:
                tasks = list(Path(f"/proc/{guest.pid}/task").iterdir())
                assert len(tasks) <= 2, [(task / "comm").read_text() for task in tasks]
            assert len(list(Path(f"/proc/{bench.engine.executor_pid}/task").iterdir())) == 1

    play(scenario)


# --- what else is the native executor's own ------------------------------------------------------------------------------


def test_the_executor_holds_no_code_generator(executor: str) -> None:
    directory = executors.native_directory()
    assert directory is not None
    marks = (b"cranelift-codegen", b"cranelift_codegen", b"regalloc2")
    held = {name: [mark for mark in marks if mark in (directory / name).read_bytes()] for name in (EXECUTOR, COMPILER)}
    assert held[EXECUTOR] == []
    assert held[COMPILER] != [], "the search itself works"


def test_all_pieces_of_a_write_are_written_at_once(play: Play) -> None:
    # As as-wasi does it, AssemblyScript's library: it doesn't look at how much was written.
    pieces = ("one ", "", "line", "\\0a", "and ", "another\\0a")
    data, vectors, at = "", "", 1024
    for number, piece in enumerate(pieces):
        size = len(piece.replace("\\0a", "n"))
        data += f'(data (i32.const {at}) "{piece}")'
        vectors += f"(i32.store (i32.const {number * 8}) (i32.const {at}))"
        vectors += f"(i32.store (i32.const {number * 8 + 4}) (i32.const {size}))"
        at += 100
    module = f"""(module
      (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
      (memory (export "memory") 1) {data}
      (func (export "_start") {vectors}
        (drop (call $write (i32.const 9) (i32.const 0) (i32.const 2) (i32.const 512)))
        (if (i32.load (i32.const 512)) (then unreachable))
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const {len(pieces)}) (i32.const 512)))
        (call $exit (i32.load (i32.const 512)))))"""

    async def scenario(bench: Bench) -> None:
        outcome = await bench.run(module)
        assert outcome.lines == [("stdout", "one line\n"), ("stdout", "and another\n")]
        assert outcome.exit.exit_code == len("one line\nand another\n")

    play(scenario)


def test_unfinished_lines_are_in_the_log_while_a_guest_waits(play: Play, tool: bytes) -> None:
    async def scenario(bench: Bench) -> None:
        guest = await bench.start(tool, "begin", "wait")
        await bench.said(guest, b"first\nready\nbegun")
        guest.guest.kill()
        assert (await bench.end(guest)).text("stdout") == "first\nbegun"

    play(scenario)


def test_what_the_host_allocates_for_a_guest_is_bounded(play: Play, tmp_path: Path) -> None:
    long_path = """(module
      (import "wasi_snapshot_preview1" "path_unlink_file" (func $unlink (param i32 i32 i32) (result i32)))
      (memory (export "memory") 1600)
      (func (export "_start") (drop (call $unlink (i32.const 3) (i32.const 0) (i32.const 90000000)))))"""

    async def scenario(bench: Bench) -> None:
        mounts = (Preopen(host_path=tmp_path, guest_path="/data"),)
        exit_ = (await bench.run(long_path, preopens=mounts, limits=Limits(memory_bytes=110 * MIB))).exit
        assert (exit_.exit_code, exit_.reason) == (137, "OOMKilled")
        assert "the host's side of this module" in exit_.message
        exit_ = (await bench.run(components.WAITS_WITHOUT_NUMBER, limits=Limits(memory_bytes=MIB))).exit
        assert exit_.exit_code in (134, 137)
        assert exit_.peak_memory_bytes is not None and exit_.peak_memory_bytes < 128 * MIB

    play(scenario)


def test_the_heap_of_collected_objects_counts_as_memory(play: Play) -> None:
    array_of_64_mib = """(module (type $bytes (array (mut i8)))
      (global $held (mut (ref null $bytes)) (ref.null $bytes))
      (memory (export "memory") 1)
      (func (export "_start") (global.set $held (array.new_default $bytes (i32.const 67108864)))))"""

    async def scenario(bench: Bench) -> None:
        assert (await bench.run(array_of_64_mib)).exit.exit_code == 0
        refused = (await bench.run(array_of_64_mib, limits=Limits(memory_bytes=16 * MIB))).exit
        assert (refused.exit_code, refused.reason) == (137, "OOMKilled")

    play(scenario)


def test_what_a_component_lacks_is_named(play: Play) -> None:
    async def scenario(bench: Bench) -> None:
        with pytest.raises(StartRefused, match="imports acme:shop/cart"):
            await bench.run(wat.component(imports='(import "acme:shop/cart" (instance (export "f" (func))))'))

    play(scenario)


def test_wasi_03_runs_where_it_is_set(executor: str, tmp_path: Path) -> None:
    async def scenario() -> None:
        directory = executors.native_directory()
        assert directory is not None
        allowances = Allowances(slots=4, default_bytes=MIB)
        engine = NativeEngine(directory, allowances=allowances, wasi_03=True)
        try:
            await engine.open()
            assert "wasi-0.3" in engine.features
            store = Store(tmp_path / "store")
            bench = Bench(executor, engine, allowances, tmp_path, store, Compiler(store, engine=engine))
            outcome = await bench.run(components.WRITES_BY_WASI_03)
            assert (outcome.exit.exit_code, outcome.text()) == (0, "hello by a stream\n"), outcome.exit.message
            assert (await bench.run(wat.component(ends="code"))).exit.exit_code == 42, "0.2 runs beside it"
            assert (await bench.run(wat.command(""))).exit.exit_code == 0, "and 0.1"
        finally:
            await engine.close()
            allowances.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "packet",
    [b"", b"{", b"[]", b'{"type":"dance","guest":"a"}', b'{"type":"start","guest":"a"}', b'{"type":"stop"}'],
    ids=["nothing", "no-json", "no-object", "unknown", "incomplete", "nobody"],
)
def test_a_broken_message_ends_the_executor(executor: str, tmp_path: Path, packet: bytes) -> None:
    with _Raw(tmp_path) as raw:
        null = os.open(os.devnull, os.O_RDONLY)
        # Nothing at all is the end of the connection, unless a descriptor comes with it.
        raw.socket.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [null]))])
        os.close(null)
        assert raw.process.wait(timeout=30) == 1
        assert b"the supervisor broke the protocol" in raw.process.communicate()[1]


class _Raw:
    """An executor's process without an adapter: for messages that an adapter would never send."""

    def __init__(self, folder: Path) -> None:
        directory = executors.native_directory()
        assert directory is not None
        self._folder = folder
        self._allowances = Allowances(slots=2, default_bytes=MIB)
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            numbers = (theirs.fileno(), self._allowances.descriptor)
            self.process = subprocess.Popen(
                [directory / EXECUTOR, str(numbers[0]), str(os.getpid()), str(numbers[1])],
                pass_fds=numbers,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        message, _ = channel.receive(self.socket) or (None, {})
        assert isinstance(message, channel.Ready)

    def start(self, payload: int) -> channel.Report:
        """Run a module that does nothing with this payload to its end; how that was told."""
        store = Store(self._folder / "store")
        digest = store.put_blob(wat.command("").encode())
        compiler = Compiler(store, engine=executors.engine("native", self._allowances))
        module, _ = asyncio.run(compiler.compile(digest, Variant.PLAIN))
        read, write = os.pipe()
        descriptors = {
            "module": os.open(module, os.O_RDONLY),
            "payload": payload,
            "report": write,
            "log": os.open(self._folder, os.O_RDONLY),
        }
        channel.send(self.socket, channel.Start(guest="a", module_key="a", kind="core"), descriptors)
        channel.close_all(descriptors.values())
        for expected in (channel.Started, channel.Exited):
            message, received = channel.receive(self.socket) or (None, {})
            channel.close_all(received.values())
            assert isinstance(message, expected)
        with open(read, "rb") as pipe:
            report = channel.Report.decode(pipe.read())
        assert report is not None
        return report

    def __enter__(self) -> _Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self.process.wait(timeout=30)
        assert self.process.stderr is not None
        self.process.stderr.close()
        self._allowances.close()


def _says_from_an_image(text: str) -> str:
    """Prints a text twice, from two distant pages of a memory that begins as the module has it."""
    line = f"{text}\\0a"
    size = len(text) + 1
    return f"""(module
      (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
      (memory (export "memory") 4)
      (data (i32.const 70000) "{line}") (data (i32.const 200000) "{line}")
      (func $say (param $at i32)
        (i32.store (i32.const 0) (local.get $at)) (i32.store (i32.const 4) (i32.const {size}))
        (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
      (func (export "_start") (call $say (i32.const 70000)) (call $say (i32.const 200000))))"""


def _open_modules(pid: int | None) -> list[str]:
    """The compiled modules that a process has open."""
    targets = [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    return [target for target in targets if target.endswith(".cwasm")]
