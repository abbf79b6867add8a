"""The messages between the supervisor and an executor's process, the same for every executor.

**Transport.** A Unix SOCK_SEQPACKET pair; the executor inherits its end as a descriptor whose number is its first argument.
Its second argument is the supervisor's process id, its third the descriptor of the table of log allowances
(`logs/allowances.py`). Each packet is one message: a JSON object in UTF-8 of at most `MAX_HEADER_BYTES`, and descriptors
(SCM_RIGHTS). The field `type` says which message it is, `descriptors` names the descriptors that came with it, in their order.
Unknown fields are ignored. A message that breaks these rules ends the connection. The end of the connection is the end of the
executor and, by PR_SET_PDEATHSIG, of all its guests.

**Supervisor → executor**

`start {guest, moduleKey, kind, variant, descriptors}`
    Fork a process that runs a module once. `guest` is an id never used before, `kind` is an `engine.ModuleKind`, `variant`
    is how it was compiled (`engine.Variant`). `moduleKey` names the compiled code: the same key is the same code, so an
    executor may keep it loaded.
    Descriptors, in this order:
      `module`     the compiled module, open for reading.
      `payload`    a sealed memfd (`Payload`), at its beginning, that **only the guest's own process** may read or map:
                   what the executor reads, every later guest would inherit.
      `report`     write end of a pipe: the guest's last word (`Report`), read by the supervisor only.
      `log`        the open folder of the guest's log, where an executor writes logs itself (`ready`), else
      `stdout`, `stderr`   the guest's output. Each write(2) on them is one record; order across both is kept.
      `stdin`      read end of a pipe; not there: the guest reads the end of a file.
      `preopen:0` … `preopen:N`   open folders, in the order of the payload's `preopens`.
    And for a server (`kind` is `http`), which has the payload's `http` too:
      `listener`   the listening socket that it takes connections from; it makes none itself.
      `ready`      write end of a pipe: one byte when it takes connections.
    And for a component:
      `counts`     a memfd that it writes what it counts to (`http_counts.py`, `network_counts.py`).
    The executor closes all of them, in itself, as soon as it has forked or refused.
`arm {guest, moduleKey, kind, variant, descriptors}`
    A start of a server that is to follow when its `listener` is readable, so when a client waits there: a client is not kept
    waiting for the supervisor. The executor loads the module now, and keeps the descriptors until then. It reads nothing of them.
`disarm {guest}`
    Forget an armed start. It is answered by `disarmed`, unless its `started` or `refused` was sent before.
`drain {guest}`
    SIGTERM: a server takes no more connections, finishes the requests that it has, and ends with exit code 0.
`stop {guest}`
    SIGKILL. For a guest that has ended or is unknown: nothing.

**Executor → supervisor**

`ready {engine, protocol, features, writesLogs, noNewPrivileges, landlockAbi, seccomp}`
    Once, first: the executor can start guests. `protocol` is `PROTOCOL`. `features`, as far as it has them: `fuel`;
    `arm` (else the supervisor waits for clients itself); `cpu-limit` (else the supervisor keeps a guest's CPU ceiling);
    `http` (it serves); `network` (a guest can be granted one); `working-dir` (of components);
    `wasi-0.3`. The last three say what every guest is confined by (tried on this kernel, not assumed): a guest for which
    one of them then fails is not run.
`started {guest, pid, tookNanoseconds, descriptors: [pidfd]}`
    The process was forked, so long after the executor was asked, or noticed the client. Always before its `exited`.
`disarmed {guest}`
    It waits for no client any more, and no process was made; all its descriptors are closed here. Ends this guest.
`refused {guest, message}`
    No process was made; `message` says why, for the user. Ends this guest.
`exited {guest, exitCode | signal, maxRssBytes, cpuNanoseconds}`
    The process has ended and was reaped: all its writes are done. Ends this guest. The last two are wait4(2)'s.
"""

from __future__ import annotations

import array
import dataclasses
import fcntl
import json
import mmap
import os
import socket
from dataclasses import dataclass, field
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

PROTOCOL = 6

MAX_HEADER_BYTES = 64 << 10
"""Far below what a SOCK_SEQPACKET message may hold by default (212,992 bytes): anything large travels in a memfd."""

MAX_DESCRIPTORS = 250
"""The kernel takes 253 with one message (SCM_MAX_FD)."""

MAX_PAYLOAD_BYTES = 64 << 20
"""As large as the largest request that could have brought it (`protocol.MAX_BODY_BYTES`)."""

MAX_REPORT_BYTES = 4096
"""PIPE_BUF: a report is written at once or not at all, and never blocks."""

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class ChannelError(Exception):
    """The other side broke the protocol."""


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(word.capitalize() for word in rest)


class Message:
    """Base of the messages. Field names are camelCase on the wire."""

    type: ClassVar[str]


@dataclass(frozen=True, kw_only=True)
class Ready(Message):
    """The executor can start guests."""

    type: ClassVar[str] = "ready"
    engine: str
    protocol: int = PROTOCOL
    features: list[str] = field(default_factory=list)
    writes_logs: bool = False
    no_new_privileges: bool = False
    landlock_abi: int = 0
    seccomp: bool = False


@dataclass(frozen=True, kw_only=True)
class Start(Message):
    """Fork a process that runs a module once."""

    type: ClassVar[str] = "start"
    guest: str
    module_key: str
    kind: str
    variant: str = "plain"


@dataclass(frozen=True, kw_only=True)
class Arm(Start):
    """Fork such a process once a client has come."""

    type: ClassVar[str] = "arm"


@dataclass(frozen=True, kw_only=True)
class Disarm(Message):
    """Wait for no client."""

    type: ClassVar[str] = "disarm"
    guest: str


@dataclass(frozen=True, kw_only=True)
class Drain(Message):
    """Let a server finish what it has begun, and end."""

    type: ClassVar[str] = "drain"
    guest: str


@dataclass(frozen=True, kw_only=True)
class Stop(Message):
    """Kill a guest."""

    type: ClassVar[str] = "stop"
    guest: str


@dataclass(frozen=True, kw_only=True)
class Started(Message):
    """A guest's process was forked."""

    type: ClassVar[str] = "started"
    guest: str
    pid: int
    took_nanoseconds: int = 0


@dataclass(frozen=True, kw_only=True)
class Disarmed(Message):
    """A guest will not be started for a client."""

    type: ClassVar[str] = "disarmed"
    guest: str


@dataclass(frozen=True, kw_only=True)
class Refused(Message):
    """A guest can't be started."""

    type: ClassVar[str] = "refused"
    guest: str
    message: str


@dataclass(frozen=True, kw_only=True)
class Exited(Message):
    """A guest's process has ended: by itself (`exit_code`) or by a `signal`."""

    type: ClassVar[str] = "exited"
    guest: str
    exit_code: int | None = None
    signal: int | None = None
    max_rss_bytes: int = 0
    cpu_nanoseconds: int = 0


_MESSAGES: dict[str, type[Message]] = {
    m.type: m for m in (Ready, Start, Arm, Disarm, Drain, Stop, Started, Disarmed, Refused, Exited)
}
_FIELDS = {
    m: {f.name: (_camel(f.name), get_type_hints(m)[f.name]) for f in dataclasses.fields(m)}  # type: ignore[arg-type]
    for m in _MESSAGES.values()
}
"""Of each message the fields: their names on the wire, and their types."""


@dataclass(frozen=True, kw_only=True)
class Payload:
    """What only the guest's own process reads: a JSON object of these fields (their names as here), null for None."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = field(repr=False)
    preopens: tuple[tuple[str, bool], ...] = ()
    """(guest path, writable), one for each descriptor `preopen:N`."""
    working_dir: str = ""
    log_name: str = ""
    """File name in the folder `log`; the rotated one has `.1` behind it. Empty where the executor writes no logs."""
    log_slot: int = 0
    memory_bytes: int | None = None
    cpu_millicores: int | None = None
    nice: int = 0
    fuel: int | None = None
    descriptors: int = 256
    file_bytes: int | None = None
    log_bytes_per_second: int | None = None
    http: dict[str, float] | None = None
    """Of a server: the fields of `engine.HttpBounds`."""
    network: dict[str, Any] | None = None
    """What it may reach, by the fields of `engine.NetworkGrant`, with `destinations` as `{host: {name | below | network: …},
    ports}` and `protected` as `{block, port, what}`. None: nothing."""
    network_fields: dict[str, str] = field(default_factory=dict)
    """The fields of `engine.NetworkFields`."""
    listening: list[dict[str, Any]] = field(default_factory=list)
    """The fields of `engine.Listening`, each."""

    def seal(self) -> int:
        """A sealed memfd with the payload; the caller closes it. Raises OSError, UnicodeEncodeError, ValueError."""
        data = json.dumps(vars(self), ensure_ascii=False).encode()
        if len(data) > MAX_PAYLOAD_BYTES:
            raise ValueError(
                f"arguments and environment are {len(data)} bytes; at most {MAX_PAYLOAD_BYTES} are allowed"
            )
        descriptor = os.memfd_create("payload", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            written = 0
            while written < len(data):
                # The position stays at the beginning, for whoever reads from it.
                written += os.pwrite(descriptor, data[written:], written)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    @classmethod
    def unseal(cls, descriptor: int) -> Payload:
        """Read a payload. Raises ChannelError if it isn't sealed or can't be read."""
        if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            # Unsealed, it could still change while it is read.
            raise ChannelError("the payload is not sealed")
        with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as view:
            fields = _json_object(view[:])
        try:
            fields["argv"] = tuple(fields["argv"])
            fields["env"] = tuple((name, value) for name, value in fields["env"])
            fields["preopens"] = tuple((path, writable) for path, writable in fields["preopens"])
            return cls(**{f.name: fields[f.name] for f in dataclasses.fields(cls)})
        except (KeyError, TypeError, ValueError) as error:
            raise ChannelError(f"bad payload: {error!r}") from None


@dataclass(frozen=True, kw_only=True)
class Report:
    """A guest's last word, one JSON object on the report pipe. Written by the guest's process: not to be trusted."""

    outcome: str
    """`exited`; `trapped`: the module did what WebAssembly forbids; `outOfFuel`; `failed`: it could not be run at all."""
    exit_code: int
    """What the process is about to end with; only the process's own end counts."""
    message: str = ""
    memory_refused: bool = False
    """Growing a memory or a table was refused for the limit at least once."""

    def encode(self) -> bytes:
        """The report as it is written, its message cut so that it fits MAX_REPORT_BYTES."""
        message = self.message.encode(errors="replace")[: MAX_REPORT_BYTES // 2].decode(errors="ignore")
        while True:
            fields = {
                "outcome": self.outcome,
                "exitCode": self.exit_code,
                "message": message,
                "memoryRefused": self.memory_refused,
            }
            data = json.dumps(fields, ensure_ascii=False).encode()
            if len(data) <= MAX_REPORT_BYTES:
                return data
            message = message[: len(message) // 2]  # full of characters that JSON escapes

    @classmethod
    def decode(cls, data: bytes) -> Report | None:
        """The report; None for anything that isn't one, e.g. because the guest was killed before it could speak."""
        try:
            fields = _json_object(data)
        except ChannelError:
            return None
        match fields:
            case {"outcome": str(outcome), "exitCode": int(exit_code), "message": str(message)}:
                refused = fields.get("memoryRefused") is True
                return cls(outcome=outcome, exit_code=exit_code, message=_printable(message), memory_refused=refused)
            case _:
                return None


def send(sock: socket.socket, message: Message, descriptors: dict[str, int] | None = None) -> None:
    """Send one message; the descriptors stay open here. Raises OSError (BlockingIOError: no room now), ChannelError."""
    descriptors = descriptors or {}
    fields: dict[str, Any] = {"type": message.type}
    fields |= {wire_name: getattr(message, name) for name, (wire_name, _) in _FIELDS[type(message)].items()}
    if descriptors:
        fields["descriptors"] = list(descriptors)
    header = json.dumps(fields).encode()
    if len(header) > MAX_HEADER_BYTES or len(descriptors) > MAX_DESCRIPTORS:
        raise ChannelError(f"a message of {len(header)} bytes and {len(descriptors)} descriptors is too large")
    ancillary = []
    if descriptors:
        ancillary.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors.values())))
    sock.sendmsg([header], ancillary, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> tuple[Message, dict[str, int]] | None:
    """Receive one message and its descriptors, which the caller closes; None at the end of the connection.

    Raises ChannelError (all descriptors closed), OSError (BlockingIOError on a non-blocking socket that is empty).
    """
    room = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
    data, ancillary, flags, _ = sock.recvmsg(MAX_HEADER_BYTES, room, socket.MSG_CMSG_CLOEXEC)
    numbers = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
    if not data and not numbers:
        return None
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ChannelError("a message was cut: too large, or too many descriptors are open")
        return _decode(data, list(numbers))
    except ChannelError:
        close_all(numbers)
        raise


def close_all(descriptors: Any) -> None:
    """Close descriptors; those closed already are no matter."""
    for descriptor in descriptors:
        try:
            os.close(descriptor)
        except OSError:
            continue


def _decode(data: bytes, numbers: list[int]) -> tuple[Message, dict[str, int]]:
    fields = _json_object(data)
    message_type = _MESSAGES.get(str(fields.get("type")))
    names = fields.get("descriptors", [])
    if message_type is None:
        raise ChannelError(f"unknown message {fields.get('type')!r}")
    if not isinstance(names, list) or len(names) != len(numbers) or len(set(map(str, names))) != len(names):
        raise ChannelError(f"{message_type.type}: {len(numbers)} descriptors came, named {names!r}")
    values = {}
    for name, (wire_name, hint) in _FIELDS[message_type].items():
        if wire_name in fields:
            values[name] = fields[wire_name]
            if not _fits(values[name], hint):
                raise ChannelError(f"{message_type.type}: {wire_name} is {values[name]!r:.80}")
    try:
        return message_type(**values), dict(zip(map(str, names), numbers, strict=True))
    except TypeError as error:
        raise ChannelError(f"{message_type.type}: {error}") from None


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value of JSON has a field's type: str, int, bool, one of these or None, or list[str]."""
    if get_origin(hint) is list:
        return type(value) is list and all(type(item) is str for item in value)
    return type(value) in (get_args(hint) or (hint,))


def _printable(text: str) -> str:
    """Without what would harm whoever shows it: control characters, halves of surrogate pairs."""
    return "".join(c for c in text.encode(errors="replace").decode() if c in "\n\t" or c.isprintable())


def _json_object(data: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ChannelError(f"not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ChannelError("not a JSON object")
    return fields
