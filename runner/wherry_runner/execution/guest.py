"""What a forked child does: it becomes the guest's process, runs the module once, says how it ended, and is gone.

It begins as a copy of the executor (`zygote.py`), so the first thing is to let go of all that isn't this guest's: signal
handlers, descriptors, environment. It leaves by `os._exit`: an ordinary end would run the executor's clean-up and race
wasmtime's worker threads. No network of any kind: nothing is inherited, nothing of wasi:http is linked, and the sockets of
WASI 0.2 are linked to wasmtime's denials.

The guest's descriptors while it runs: 0 (its input, or /dev/null), 1 and 2 (output), the report pipe, the compiled
module's (wasmtime maps memory images from it: facts executor.md, trap 1), its preopened folders, and what tokio makes for
itself.

**Memory.** wasmtime-py limits each memory by itself and says nothing of a growth that it refused. So RLIMIT_DATA bounds the
sum of all memories, some megabytes above the limit; and it is known that memory was refused only when a module could not
even be instantiated. What a running module makes of a refusal, mostly a trap or an exit code of its own, is reported as just
that. (The native executor knows better.)
"""

from __future__ import annotations

import os
import re
import resource
import signal
from dataclasses import dataclass
from typing import NoReturn

import wasmtime
from wasmtime import component
from wasmtime.component import Linker as ComponentLinker

from wherry_runner.execution import process, sandbox, trap_text
from wherry_runner.execution.channel import Payload, Report
from wherry_runner.execution.engine import TRAP_EXIT_CODE

FAILED_EXIT_CODE = 128
"""Of a module that could not be run at all: the kubelet's code of a container that could not be started."""

RUN_EXPORT = re.compile(r"wasi:cli/run@0\.2\.\d+")
"""The export by which a WASI 0.2 command is run. wasmtime links any 0.2.x."""

MAX_INSTANCES = 1000
MAX_MEMORIES = 100
MAX_TABLES = 1000
"""Of one guest: a component of many parts has dozens. Each memory reserves address space, of which there is no end otherwise."""

DATA_OVERHEAD_BYTES = 32 << 20
"""What a guest's process may use beside its module's memories: instances, threads' stacks, the C library's heap."""

_MEMORY_REFUSED = re.compile(r"exceeds (memory|table) limits|[Cc]annot allocate memory")
"""What wasmtime says when a module's first memories are too large for its limits."""

_OUT_OF_FUEL = "all fuel consumed"

_DESCRIPTORS_END = os.sysconf("SC_OPEN_MAX")
"""No descriptor has this number or a higher one."""


class ProcExit(BaseException):
    """Raised by the `proc_exit` that shadows wasmtime's, which loses codes above 125 (facts: wasmtime.md §5)."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code & 0xFF


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A compiled module in the executor's memory."""

    engine: wasmtime.Engine
    descriptors: tuple[int, ...]
    """Those that wasmtime keeps for it: they must stay open, under these numbers, wherever it runs."""
    command: wasmtime.InstancePre | None = None
    """Of a core module."""
    component: component.Component | None = None
    linker: ComponentLinker | None = None
    """Of a component."""


def run(loaded: Loaded, descriptors: dict[str, int], *, parent_pid: int, confinement: sandbox.Confinement) -> NoReturn:
    """Be the guest. Never returns and never raises."""
    report = Report(outcome="failed", exit_code=FAILED_EXIT_CODE)
    try:
        try:
            preopens = [number for name, number in descriptors.items() if name.startswith("preopen:")]
            _let_go(loaded, descriptors, parent_pid=parent_pid)
            payload = Payload.unseal(descriptors["payload"])
            os.close(descriptors["payload"])
            confined = _sandbox(confinement, payload, preopens)
            wasi = _wasi(payload, preopens, stdin="stdin" in descriptors)
            _limit(payload)
            confined.enter()  # the last thing before the module
            report = _run(loaded, payload, wasi)
        except sandbox.NotConfined as error:
            report = Report(outcome="failed", exit_code=FAILED_EXIT_CODE, message=str(error))
        except BaseException as error:
            report = Report(outcome="failed", exit_code=FAILED_EXIT_CODE, message=f"could not run: {error!r}")
        os.write(descriptors["report"], report.encode())
    finally:
        os._exit(report.exit_code)


def _let_go(loaded: Loaded, descriptors: dict[str, int], *, parent_pid: int) -> None:
    """Give up what the executor had. Before anything of the guest is read."""
    process.die_with_parent(parent_pid)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)  # not SIGSEGV and its like: by those wasmtime notices traps

    stdin = descriptors.get("stdin")
    if stdin is None:
        stdin = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((stdin, 0), (descriptors["stdout"], 1), (descriptors["stderr"], 2)):
        os.dup2(source, target)
    kept = [0, 1, 2, descriptors["payload"], descriptors["report"], *loaded.descriptors]
    kept += [number for name, number in descriptors.items() if name.startswith("preopen:")]
    kept.sort()
    for below, above in zip(kept, [*kept[1:], _DESCRIPTORS_END], strict=True):
        os.closerange(below + 1, above)

    process.forbid_core_dumps()
    process.forbid_inspection()
    os.environ.clear()
    # Read by wasmtime-wasi's runtime: two threads for a guest instead of one more than there are cores.
    os.environ["TOKIO_WORKER_THREADS"] = "1"


def _limit(payload: Payload) -> None:
    """Bound what the process may use. Raises OSError, ValueError."""
    os.nice(payload.nice)
    _set_limit(resource.RLIMIT_NOFILE, payload.descriptors)
    if payload.file_bytes is not None:
        _set_limit(resource.RLIMIT_FSIZE, payload.file_bytes)
    if payload.memory_bytes is not None:
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[5]) * resource.getpagesize()
        _set_limit(resource.RLIMIT_DATA, used + payload.memory_bytes + DATA_OVERHEAD_BYTES)


def _sandbox(confinement: sandbox.Confinement, payload: Payload, preopens: list[int]) -> sandbox.Sandbox:
    """What leaves the guest its folders. Raises NotConfined."""
    folders = [(number, writable) for number, (_, writable) in zip(preopens, payload.preopens, strict=True)]
    return sandbox.Sandbox(
        confinement,
        readable=[number for number, writable in folders if not writable],
        writable=[number for number, writable in folders if writable],
    )


def _set_limit(limit: int, value: int) -> None:
    _, hard = resource.getrlimit(limit)
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(limit, (value, value))


def _run(loaded: Loaded, payload: Payload, wasi: wasmtime.WasiConfig) -> Report:
    """Run the module and tell how it ended."""
    try:
        store = wasmtime.Store(loaded.engine)
        if payload.memory_bytes is not None:
            # A function reference in a table takes 8 bytes.
            store.set_limits(
                memory_size=payload.memory_bytes,
                table_elements=payload.memory_bytes // 8,
                instances=MAX_INSTANCES,
                tables=MAX_TABLES,
                memories=MAX_MEMORIES,
            )
        if payload.fuel is not None:
            store.set_fuel(payload.fuel)
        store.set_wasi(wasi)
        code = _call_core(loaded, store) if loaded.command else _call_component(loaded, store)
    except ProcExit as exit_:
        return Report(outcome="exited", exit_code=exit_.code)
    except wasmtime.ExitTrap as exit_:  # of a component: wasi:cli/exit
        return Report(outcome="exited", exit_code=exit_.code & 0xFF)
    except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
        return _failure(str(error), trapped=isinstance(error, wasmtime.Trap))
    except Exception as error:
        return Report(outcome="failed", exit_code=FAILED_EXIT_CODE, message=f"could not run the module: {error!r}")
    return Report(outcome="exited", exit_code=code)


def _failure(text: str, *, trapped: bool) -> Report:
    """What wasmtime says of a module that ended otherwise than by its own will."""
    if not trapped and not trap_text.is_trap(text):
        refused = _MEMORY_REFUSED.search(text) is not None
        message = f"could not run the module: {text}"
        return Report(outcome="failed", exit_code=FAILED_EXIT_CODE, message=message, memory_refused=refused)
    outcome = "outOfFuel" if _OUT_OF_FUEL in text else "trapped"
    return Report(outcome=outcome, exit_code=TRAP_EXIT_CODE, message=trap_text.readable(text))


def _wasi(payload: Payload, preopens: list[int], *, stdin: bool) -> wasmtime.WasiConfig:
    wasi = wasmtime.WasiConfig()
    wasi.argv = list(payload.argv)
    wasi.env = list(payload.env)
    for number, (guest_path, writable) in zip(preopens, payload.preopens, strict=True):
        wasi.preopen_dir(f"/proc/self/fd/{number}", guest_path, writable)  # opens it anew
        os.close(number)
    if stdin:
        wasi.inherit_stdin()
    wasi.inherit_stdout()
    wasi.inherit_stderr()
    return wasi


def _call_core(loaded: Loaded, store: wasmtime.Store) -> int:
    assert loaded.command is not None
    start = loaded.command.instantiate(store).exports(store)["_start"]
    assert isinstance(start, wasmtime.Func)
    start(store)
    return 0


def _call_component(loaded: Loaded, store: wasmtime.Store) -> int:
    assert loaded.component is not None and loaded.linker is not None
    interface = next(name for name in loaded.component.type.exports(loaded.engine) if RUN_EXPORT.fullmatch(name))
    instance = loaded.linker.instantiate(store, loaded.component)
    index = loaded.component.get_export_index("run", loaded.component.get_export_index(interface))
    assert index is not None
    run_function = instance.get_func(store, index)
    assert run_function is not None
    result = run_function(store)
    # `result` without payloads: ok is 0 and err is 1, as `wasmtime run` has it.
    return 1 if getattr(result, "tag", None) == "err" else 0
