"""The one configuration of wasmtime for Python: the compiler's and the executor's must be the same.

wasmtime refuses native code that was compiled under other options (most of them; facts: wasmtime.md §7), and takes
silently what differs in the rest. So there is one function; the native programs have theirs in `runner/executor/src/config.rs`.
Whoever changes what code either of them makes counts up `OPTIONS` in `modules/compile.py`, which is part of the key of the
compile cache. wasmtime is imported only inside: the supervisor needs the name and must not load the library.
"""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

from wherry_runner.execution.engine import Variant

if TYPE_CHECKING:
    import wasmtime


def engine_name() -> str:
    """The python executor's name, e.g. `python/wasmtime-50.0.1`."""
    return f"python/wasmtime-{metadata.version('wasmtime')}"


def guest_engine(variant: Variant = Variant.PLAIN, *, parallel: bool) -> wasmtime.Engine:
    """An engine for guests. `parallel` compiles on all cores: never in a process that forks (it starts threads).

    No epochs, and fuel only where it is asked for: a command is stopped by killing its process, and both cost a fifth of
    the speed or more.
    """
    import wasmtime

    config = wasmtime.Config()
    config.parallel_compilation = parallel
    config.consume_fuel = variant is Variant.FUEL
    config.epoch_interruption = False
    return wasmtime.Engine(config)
