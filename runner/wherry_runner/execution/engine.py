"""The engine protocol: what the supervisor asks of an executor, whichever it is.

Two layers. This file is the upper one: the types and the interface that the supervisor (`lives/supervisor.py`) knows. The lower
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
from typing import TYPE_CHECKING, Literal, Protocol

from wherry_runner.files.beneath import open_folder
from wherry_runner.http_counts import HttpCounts
from wherry_runner.network_counts import NONE, NetworkCounts

if TYPE_CHECKING:  # executors and compilers need these types too, and not pydantic: 0.2 s at each start
    from wherry_runner import protocol

TRAP_EXIT_CODE = 134
"""Of a guest that trapped: 128 + SIGABRT, as `wasmtime run` returns it."""

KILLED_EXIT_CODE = 137
"""Of a guest that was killed: 128 + SIGKILL, as a container runtime reports it."""


NETWORK = "network"
"""The feature of an executor whose guests may have sockets and send requests."""


class ModuleKind(StrEnum):
    """What a module is, judged by its content."""

    CORE = "core"
    """A core module that exports `_start` (a WASI 0.1 command)."""
    COMPONENT = "component"
    """A component that exports `wasi:cli/run` (a WASI 0.2 command, or 0.3 where the runner is set to run those)."""
    HTTP = "http"
    """A component that exports `wasi:http/incoming-handler` 0.2, or `wasi:http/handler` 0.3 where the runner is set to run
    those, and is no command: it serves."""


class Variant(StrEnum):
    """How a module is compiled: each is native code of its own, and an entry of its own in the compile cache."""

    PLAIN = "plain"
    """A command that nothing counts: it is stopped by ending its process. The fastest."""
    FUEL = "fuel"
    """A command whose instructions are counted (a fifth to a third slower: facts wasmtime.md §6)."""


@dataclass(frozen=True, kw_only=True)
class CompiledModule:
    """A module ready to run: native code made by our own compiler, and what is known of where it came from."""

    path: Path
    """The `.cwasm`, read-only, in the store; its content was checked against the checksum written beside it."""
    digest: str
    """`sha256:…` of the WebAssembly bytes."""
    kind: ModuleKind
    variant: Variant = Variant.PLAIN
    name: str
    """For argv[0] and messages: the last part of the repository, or of the key's or file's name."""
    image_digest: str = ""
    """`sha256:…` of the manifest; empty for an inline module."""
    packed_by_krustlet: bool = False
    """Layer type `application/vnd.wasm.content.layer.v1+wasm`: such modules get an argv without argv[0] (design §6)."""
    entrypoint_args: tuple[str, ...] = ()
    """Of a container image, what follows the module in its `Entrypoint`: before `args`, unless there is a `command`."""
    image_args: tuple[str, ...] = ()
    """Of a container image, its `Cmd`: the arguments, unless there is a `command` or `args`."""


@dataclass(frozen=True, kw_only=True)
class Preopen:
    """A folder that the guest sees."""

    host_path: Path
    beneath: tuple[str, ...] = ()
    """The way from there. No step may lead out of the folder before it: guests can plant links on it."""
    guest_path: str
    writable: bool = False

    def open(self) -> int:
        """The folder itself, open; the caller closes it. What was checked is what is opened. Raises OSError."""
        return open_folder(self.host_path, self.beneath)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one run may use. None: not limited by the executor."""

    memory_bytes: int | None = None
    """Of all memories and tables of the module together; growing beyond fails. The process gets an RLIMIT_DATA that fits."""
    cpu_millicores: int | None = None
    """A ceiling, kept over periods of 100 ms."""
    cpu_weight_millicores: int | None = None
    """Its share where guests compete, by `nice`: approximate. None: the least."""
    fuel: int | None = None
    """Wants a module compiled as `Variant.FUEL`."""
    descriptors: int = 256
    """Open files at once (RLIMIT_NOFILE), those of the executor's own included."""
    file_bytes: int | None = None
    """Largest file that it may write (RLIMIT_FSIZE), also of its log, which is rotated there; so never less than 64 KiB where
    the guest writes that itself."""
    log_bytes_per_second: int | None = None
    """Of output, kept by letting the guest wait."""


@dataclass(frozen=True, kw_only=True)
class HttpBounds:
    """What a server does at once, and how patient it is."""

    max_requests: int = 100
    """Worked on at once, each in an instance that has no other; one more is answered 503."""
    max_connections: int = 1000
    """Open at once; one more waits until another is closed."""
    request_seconds: float = 60.0
    """For a request, from its head until the guest is done with it; then its instance is ended."""
    head_seconds: float = 10.0
    """For a request's head to come, from its first byte on."""
    idle_seconds: float = 75.0
    """For a connection's next request to begin, and for a client to take anything of an answer."""
    head_bytes: int = 32 << 10
    """Of a request's head, and so of each connection's buffer. At least 8 KiB."""
    instance_reuse: int = 1
    """Requests that one instance serves, one after the other; 1: each request has an instance of its own."""


@dataclass(frozen=True, kw_only=True)
class HttpServing:
    """What a server is given to serve on."""

    listener: int
    """Descriptor of the listening socket; not closed by the engine."""
    bounds: HttpBounds = HttpBounds()


@dataclass(frozen=True, kw_only=True)
class Listening:
    """A port on which a guest's own sockets may listen."""

    protocol: Literal["TCP", "UDP"]
    named: int
    """By which the guest knows it: on any address."""
    at: str
    """Where its socket is bound: `IP:PORT`."""


@dataclass(frozen=True, kw_only=True)
class Destination:
    """Something that a guest may reach. One of the first two is set."""

    name: str = ""
    """Of a host, in lower case; with `*.` before it: any name below it."""
    network: str = ""
    """`10.0.0.0/8`, `2001:db8::1/128`."""
    ports: tuple[int, int]
    """The first and the last."""


@dataclass(frozen=True, kw_only=True)
class ProtectedNetwork:
    """Addresses that only a destination within them opens: no name, and no network that is wider."""

    network: str
    port: int | None = None
    """None: all."""
    what: str
    """For messages: `this is …`."""


@dataclass(frozen=True, kw_only=True)
class NetworkGrant:
    """What a guest may reach; anything else is refused."""

    destinations: tuple[Destination, ...]
    lookups: bool = True
    """Whether the guest itself may look up the names that destinations cover; requests by HTTP look them up anyway."""
    nameservers: tuple[str, ...] = ()
    """`IP:PORT`."""
    protected: tuple[ProtectedNetwork, ...] = ()
    """Beside loopback, link-local and others that are so everywhere."""
    certificates: str = field(default="", repr=False)
    """Of authorities that outbound HTTPS believes beside the well-known ones, in PEM."""


@dataclass(frozen=True, kw_only=True)
class NetworkFields:
    """Where a user says what a guest may reach, for messages."""

    allowed_hosts: str = "spec.network.allowedHosts"
    allow_dns: str = "spec.network.allowDNS"


@dataclass(frozen=True, kw_only=True)
class GuestLog:
    """Where a run's output goes: CRI records in `path`, moved to `path` + `.1` when the file is full."""

    path: Path
    slot: int
    """Index into the table of allowances (`logs/allowances.py`), which says how large each of the two files may be now."""


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
    working_dir: str = ""
    """Absolute. A component's initial one; a core module with any but `/` is refused by name."""
    stdin: bool = False
    """Give it an input that `Guest.stdin` writes to; without, it reads the end of a file at once."""
    log: GuestLog
    limits: Limits = Limits()
    http: HttpServing | None = None
    """For a module of kind `http`, and for no other."""
    listening: tuple[Listening, ...] = ()
    """For a command that is a component."""
    network: NetworkGrant | None = None
    """None: it reaches nothing."""
    network_fields: NetworkFields = NetworkFields()


@dataclass(frozen=True, kw_only=True)
class GuestExit:
    """A guest's end, as its container's status reports it."""

    exit_code: int
    """0 to 255."""
    reason: str
    """`Completed` (0), `Error`, `OOMKilled` (ended badly after growing was refused, or `kill` said so), `OutOfFuel`."""
    message: str = ""
    """Of a trap: what it was, and the wasm backtrace. Cut to 1,024 characters by the status."""
    finished_at: datetime
    http: HttpCounts | None = None
    """Of a server: all that it counted."""
    refused: NetworkCounts = NONE
    """What the network refused to it."""
    peak_memory_bytes: int | None = None
    """Largest resident size of its process."""
    cpu_nanoseconds: int | None = None
    """Of its process, user and system."""


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

    async def serving(self) -> bool:
        """Of a server: wait until it takes connections. False if it ended before."""

    def http_counts(self) -> HttpCounts | None:
        """Of a server that runs: what it has counted so far."""

    def network_counts(self) -> NetworkCounts:
        """What the network refused to it so far."""

    def drain(self) -> None:
        """Let a server finish the requests that it has, and end with exit code 0. For others a no-op."""

    def kill(self, *, reason: str = "Error", message: str = "") -> None:
        """End it at once (SIGKILL); `wait` then returns exit code 137 with this reason. A no-op after its end."""

    async def write(self, data: bytes) -> None:
        """Give it input; waits while it reads none. Raises BrokenPipeError (it ended, or its input is closed or none)."""

    def close_input(self) -> None:
        """Let it read the end of its input. Safe to call again."""


class Armed(Protocol):
    """A server that is started when a client comes, which nobody has to notice but the executor."""

    async def begun(self) -> Guest | None:
        """Wait until its process was forked. None: it never will be, for whatever reason; clients are the affair of whoever holds
        the listening socket then. Safe to call many times."""

    @property
    def took_seconds(self) -> float:
        """Of one that has begun: from when its client was noticed."""

    def disarm(self) -> None:
        """Have nothing started any more; `begun` then tells whether it was too late for that. Safe to call again."""


class Engine(Protocol):
    """An executor, started and watched by its adapter."""

    @property
    def name(self) -> str:
        """For messages and RunnerInfo: e.g. `python/wasmtime-50.0.1`. Part of the key of the compile cache."""

    @property
    def features(self) -> frozenset[str]:
        """What it can do beyond plain commands: `protocol.RunnerInfo.features`."""

    @property
    def confinement(self) -> protocol.Confinement:
        """What is in force for its guests on this kernel; known after `open`."""

    @property
    def executor_pid(self) -> int | None:
        """The executor's process, for measurements; None while there is none."""

    def complaint(self) -> str:
        """Why this engine is not fit to be given work now, for the health endpoint; empty if it is."""

    def compiler(self, variant: Variant) -> tuple[str, ...]:
        """Program and first arguments of the compiler whose code this engine loads (`modules/compile.py` adds the rest)."""

    async def open(self) -> None:
        """Start the executor's process and wait until it is ready. Raises EngineLost with its last words."""

    async def run(self, spec: GuestSpec) -> Guest:
        """Start a guest. Raises StartRefused, EngineLost. After EngineLost the next call starts a new executor."""

    async def arm(self, spec: GuestSpec) -> Armed | None:
        """Have a server started when a client comes. None: this executor can't now, and `run` is the way. What it was armed with
        may be disarmed without being asked to be: others want their place, or the executor is lost."""

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
