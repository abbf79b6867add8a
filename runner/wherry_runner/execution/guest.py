"""What a forked child does: it becomes the guest's process, runs the module once, says how it ended, and is gone.

It begins as a copy of the executor (`zygote.py`), so the first thing is to let go of all that isn't this guest's: signal
handlers, descriptors, environment. It leaves by `os._exit`: an ordinary end would run the executor's clean-up and race
wasmtime's worker threads. No network of any kind: nothing is inherited, nothing of wasi:http is linked, and the sockets of
WASI 0.2 are linked to wasmtime's denials.

The guest's descriptors while it runs: 0 (/dev/null), 1 and 2 (output), the report pipe, the compiled module's (wasmtime
maps memory images from it: facts executor.md, trap 1), its preopened folders, and what tokio makes for itself.
"""

from __future__ import annotations

import os
import re
import signal
from dataclasses import dataclass
from typing import NoReturn

import wasmtime
from wasmtime import component
from wasmtime.component import Linker as ComponentLinker

from wherry_runner.execution import process, trap_text
from wherry_runner.execution.channel import Payload, Report
from wherry_runner.execution.engine import TRAP_EXIT_CODE

FAILED_EXIT_CODE = 128
"""Of a module that could not be run at all: the kubelet's code of a container that could not be started."""

RUN_EXPORT = re.compile(r"wasi:cli/run@0\.2\.\d+")
"""The export by which a WASI 0.2 command is run. wasmtime links any 0.2.x."""

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

    descriptors: tuple[int, ...]
    """Those that wasmtime keeps for it: they must stay open, under these numbers, wherever it runs."""
    command: wasmtime.InstancePre | None = None
    """Of a core module."""
    component: component.Component | None = None
    linker: ComponentLinker | None = None
    """Of a component."""


def run(loaded: Loaded, descriptors: dict[str, int], *, engine: wasmtime.Engine, parent_pid: int) -> NoReturn:
    """Be the guest. Never returns and never raises."""
    report = Report(outcome="failed", exit_code=FAILED_EXIT_CODE)
    try:
        try:
            preopens = [number for name, number in descriptors.items() if name.startswith("preopen:")]
            _let_go(loaded, descriptors, parent_pid=parent_pid)
            report = _run(loaded, descriptors["payload"], preopens, engine)
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

    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (descriptors["stdout"], 1), (descriptors["stderr"], 2)):
        os.dup2(source, target)
    kept = [0, 1, 2, descriptors["payload"], descriptors["report"], *loaded.descriptors]
    kept += [number for name, number in descriptors.items() if name.startswith("preopen:")]
    kept.sort()
    for below, above in zip(kept, [*kept[1:], _DESCRIPTORS_END], strict=True):
        os.closerange(below + 1, above)

    process.forbid_core_dumps()
    process.forbid_new_privileges()
    process.forbid_inspection()
    os.environ.clear()
    # Read by wasmtime-wasi's runtime: two threads for a guest instead of one more than there are cores.
    os.environ["TOKIO_WORKER_THREADS"] = "1"


def _run(loaded: Loaded, payload_descriptor: int, preopens: list[int], engine: wasmtime.Engine) -> Report:
    """Run the module and tell how it ended."""
    try:
        store = wasmtime.Store(engine)
        store.set_wasi(_wasi(payload_descriptor, preopens))
        code = _call_core(loaded, store) if loaded.command else _call_component(loaded, store, engine)
    except ProcExit as exit_:
        return Report(outcome="exited", exit_code=exit_.code)
    except wasmtime.ExitTrap as exit_:  # of a component: wasi:cli/exit
        return Report(outcome="exited", exit_code=exit_.code & 0xFF)
    except wasmtime.Trap as trap:
        return Report(outcome="trapped", exit_code=TRAP_EXIT_CODE, message=trap_text.readable(str(trap)))
    except wasmtime.WasmtimeError as error:
        if trap_text.is_trap(str(error)):
            return Report(outcome="trapped", exit_code=TRAP_EXIT_CODE, message=trap_text.readable(str(error)))
        return Report(outcome="failed", exit_code=FAILED_EXIT_CODE, message=f"could not run the module: {error}")
    except Exception as error:
        return Report(outcome="failed", exit_code=FAILED_EXIT_CODE, message=f"could not run the module: {error!r}")
    return Report(outcome="exited", exit_code=code)


def _wasi(payload_descriptor: int, preopens: list[int]) -> wasmtime.WasiConfig:
    payload = Payload.unseal(payload_descriptor)
    os.close(payload_descriptor)
    wasi = wasmtime.WasiConfig()
    wasi.argv = list(payload.argv)
    wasi.env = list(payload.env)
    for number, (guest_path, writable) in zip(preopens, payload.preopens, strict=True):
        wasi.preopen_dir(f"/proc/self/fd/{number}", guest_path, writable)  # opens it anew
        os.close(number)
    wasi.inherit_stdout()
    wasi.inherit_stderr()
    return wasi


def _call_core(loaded: Loaded, store: wasmtime.Store) -> int:
    assert loaded.command is not None
    start = loaded.command.instantiate(store).exports(store)["_start"]
    assert isinstance(start, wasmtime.Func)
    start(store)
    return 0


def _call_component(loaded: Loaded, store: wasmtime.Store, engine: wasmtime.Engine) -> int:
    assert loaded.component is not None and loaded.linker is not None
    interface = next(name for name in loaded.component.type.exports(engine) if RUN_EXPORT.fullmatch(name))
    instance = loaded.linker.instantiate(store, loaded.component)
    index = loaded.component.get_export_index("run", loaded.component.get_export_index(interface))
    assert index is not None
    run_function = instance.get_func(store, index)
    assert run_function is not None
    result = run_function(store)
    # `result` without payloads: ok is 0 and err is 1, as `wasmtime run` has it.
    return 1 if getattr(result, "tag", None) == "err" else 0
