"""The one configuration of wasmtime for guests: the compiler's and the python executor's must be the same.

wasmtime refuses native code that was compiled under other options (most of them; facts: wasmtime.md §7), and takes
silently what differs in the rest. So there is one function, and `OPTIONS` names its result in the key of the compile
cache. wasmtime is imported only inside: the supervisor needs the name and must not load the library.
"""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import wasmtime

OPTIONS = "commands-1"
"""Names the options below. Count it up with every change that changes compiled code."""


def engine_name() -> str:
    """The python executor's name, e.g. `python/wasmtime-50.0.1`."""
    return f"python/wasmtime-{metadata.version('wasmtime')}"


def guest_engine(*, parallel: bool) -> wasmtime.Engine:
    """An engine for guests. `parallel` compiles on all cores: never in a process that forks (it starts threads).

    No fuel and no epochs: a command is stopped by killing its process, and both cost a fifth of the speed or more.
    """
    import wasmtime

    config = wasmtime.Config()
    config.parallel_compilation = parallel
    config.consume_fuel = False
    config.epoch_interruption = False
    return wasmtime.Engine(config)
