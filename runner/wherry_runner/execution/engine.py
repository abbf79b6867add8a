"""The engine protocol: what the supervisor asks of an executor, whichever it is.

Two layers. This file is the upper one: the types and the interface that the supervisor (`supervisor.py`) knows. The lower
one is the messages on a Unix SOCK_SEQPACKET between the supervisor's adapter and the executor's process (`channel.py`),
the same for every executor. An executor is a process of its own: single-threaded, it loads compiled modules and forks one
process per guest; it never compiles, never builds a guest's context and never reads a guest's payload, for what it read
every later guest would inherit (facts: executor.md, wasmtime.md §3).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol

TRAP_EXIT_CODE = 134
"""Of a guest that trapped: 128 + SIGABRT, as `wasmtime run` returns it."""

KILLED_EXIT_CODE = 137
"""Of a guest that was killed: 128 + SIGKILL, as a container runtime reports it."""


class ModuleKind(StrEnum):
    """What a module is, judged by its content."""

    CORE = "core"
    """A core module that exports `_start` (a WASI 0.1 command)."""
    COMPONENT = "component"
    """A component that exports `wasi:cli/run` (a WASI 0.2 command)."""


@dataclass(frozen=True, kw_only=True)
class CompiledModule:
    """A module ready to run: native code made by our own compiler, and what is known of where it came from."""

    path: Path
    """The `.cwasm`, read-only, in the store; its content was checked against the checksum written beside it."""
    digest: str
    """`sha256:…` of the WebAssembly bytes."""
    kind: ModuleKind
    name: str
    """For argv[0] and messages: the last part of the repository, or of the key's or file's name."""
    image_digest: str = ""
    """`sha256:…` of the manifest; empty for an inline module."""
    packed_by_krustlet: bool = False
    """Layer type `application/vnd.wasm.content.layer.v1+wasm`: such modules get an argv without argv[0] (design §6)."""


@dataclass(frozen=True, kw_only=True)
class Preopen:
    """A folder that the guest sees."""

    host_path: Path
    guest_path: str
    writable: bool = False


@dataclass(frozen=True, kw_only=True)
class GuestSpec:
    """All that an executor needs to run one container once."""

    guest_id: str
    """The container's id: one per run, never used again."""
    module: CompiledModule
    argv: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = field(repr=False)
    """In the order in which the guest sees it."""
    preopens: tuple[Preopen, ...] = ()
    log_path: Path
    """The CRI log file of this run; created by whoever writes it."""


@dataclass(frozen=True, kw_only=True)
class GuestExit:
    """A guest's end, as its container's status reports it."""

    exit_code: int
    """0 to 255."""
    reason: str
    """`Completed` (0), `Error`, later `OOMKilled` and others: the kubelet's words."""
    message: str = ""
    """Of a trap: what it was, and the wasm backtrace. Cut to 1,024 characters by the status."""
    finished_at: datetime
    peak_memory_bytes: int | None = None


class Guest(Protocol):
    """A running guest."""

    @property
    def pid(self) -> int:
        """Its process, for measurements."""

    @property
    def started_at(self) -> datetime:
        """When its process was forked."""

    async def wait(self) -> GuestExit:
        """Wait for its end, with its log complete on disk. Safe to call many times. Raises EngineLost."""

    def kill(self) -> None:
        """End it at once (SIGKILL); `wait` then returns exit code 137. A no-op after its end."""


class Engine(Protocol):
    """An executor, started and watched by its adapter."""

    @property
    def name(self) -> str:
        """For messages and RunnerInfo: e.g. `python/wasmtime-50.0.1`. Part of the key of the compile cache."""

    async def open(self) -> None:
        """Start the executor's process and wait until it is ready. Raises EngineLost with its last words."""

    async def run(self, spec: GuestSpec) -> Guest:
        """Start a guest. Raises StartRefused, EngineLost. After EngineLost the next call starts a new executor."""

    async def close(self) -> None:
        """Kill all guests and the executor, and wait for their ends."""


class EngineError(Exception):
    """Base of what an engine raises."""


class EngineLost(EngineError):
    """The executor's process died, and every guest with it."""

    def __init__(self, message: str, *, may_have_begun: bool = False) -> None:
        super().__init__(message)
        self.may_have_begun = may_have_begun
        """Out of `run`: the start was sent, so the guest may have run for a moment. Under Never it must not run again."""


class StartRefused(EngineError):
    """This guest can't be started; the message says why and what to do. Retrying changes nothing by itself."""
