"""The messages between supervisor and executor, over a real socket."""

from __future__ import annotations

import array
import fcntl
import json
import os
import socket
from collections.abc import Iterator

import pytest

from wherry_runner.execution import channel
from wherry_runner.execution.channel import (
    Arm,
    Disarm,
    Disarmed,
    Drain,
    Exited,
    Payload,
    Ready,
    Refused,
    Report,
    Start,
    Started,
    Stop,
)

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        other.settimeout(10)
        yield one, other


@pytest.mark.parametrize(
    ("message", "fields"),
    [
        (
            Ready(engine="python/wasmtime-1", features=["fuel"], landlock_abi=7, seccomp=True),
            {
                "type": "ready",
                "engine": "python/wasmtime-1",
                "protocol": channel.PROTOCOL,
                "features": ["fuel"],
                "writesLogs": False,
                "noNewPrivileges": False,
                "landlockAbi": 7,
                "seccomp": True,
            },
        ),
        (
            Start(guest="g", module_key="k", kind="core", variant="fuel"),
            {"type": "start", "guest": "g", "moduleKey": "k", "kind": "core", "variant": "fuel"},
        ),
        (Drain(guest="g"), {"type": "drain", "guest": "g"}),
        (Stop(guest="g"), {"type": "stop", "guest": "g"}),
        (
            Arm(guest="g", module_key="k", kind="http"),
            {"type": "arm", "guest": "g", "moduleKey": "k", "kind": "http", "variant": "plain"},
        ),
        (Disarm(guest="g"), {"type": "disarm", "guest": "g"}),
        (
            Started(guest="g", pid=7, took_nanoseconds=1000),
            {"type": "started", "guest": "g", "pid": 7, "tookNanoseconds": 1000},
        ),
        (Disarmed(guest="g"), {"type": "disarmed", "guest": "g"}),
        (Refused(guest="g", message="no"), {"type": "refused", "guest": "g", "message": "no"}),
        (
            Exited(guest="g", exit_code=3, max_rss_bytes=4096, cpu_nanoseconds=1_000_000),
            {
                "type": "exited",
                "guest": "g",
                "exitCode": 3,
                "signal": None,
                "maxRssBytes": 4096,
                "cpuNanoseconds": 1_000_000,
            },
        ),
    ],
)
def test_messages_on_the_wire(pair: Pair, message: channel.Message, fields: dict[str, object]) -> None:
    channel.send(pair[0], message)
    assert json.loads(pair[1].recv(channel.MAX_HEADER_BYTES)) == fields
    channel.send(pair[0], message)
    assert channel.receive(pair[1]) == (message, {})


def test_unknown_fields_are_ignored(pair: Pair) -> None:
    pair[0].send(b'{"type": "stop", "guest": "g", "colour": "red"}')
    assert channel.receive(pair[1]) == (Stop(guest="g"), {})


def test_descriptors_arrive_under_their_names(pair: Pair) -> None:
    reader, writer = os.pipe()
    channel.send(pair[0], Started(guest="g", pid=1), {"pidfd": reader, "other": writer})
    os.close(reader)
    os.close(writer)
    received = channel.receive(pair[1])
    assert received is not None
    _, descriptors = received
    assert list(descriptors) == ["pidfd", "other"]
    os.write(descriptors["other"], b"x")
    assert os.read(descriptors["pidfd"], 1) == b"x"
    assert not any(os.get_inheritable(number) for number in descriptors.values())
    channel.close_all(descriptors.values())


def test_the_end_of_the_connection(pair: Pair) -> None:
    pair[0].close()
    assert channel.receive(pair[1]) is None


@pytest.mark.parametrize(
    "packet",
    [
        b"x",
        b"[]",
        b"{}",
        b'{"type": "hello"}',
        b'{"type": "stop"}',
        b'{"type": "stop", "guest": "g", "descriptors": []}',
        b'{"type": "stop", "guest": "g", "descriptors": ["a", "b"]}',
        b'{"type": "stop", "guest": "g", "descriptors": "a"}',
        b'{"type": "stop", "guest": ["g"], "descriptors": ["a"]}',
        b'{"type": "started", "guest": "g", "pid": true, "descriptors": ["a"]}',
        b'{"type": "exited", "guest": "g", "exitCode": "0", "descriptors": ["a"]}',
        b'{"type": "ready", "engine": "e", "features": ["a", 1], "descriptors": ["a"]}',
        b"[" * 10_000,
        b"{" + b" " * channel.MAX_HEADER_BYTES + b"}",
    ],
)
def test_broken_messages_leave_no_descriptor_open(pair: Pair, packet: bytes) -> None:
    reader, writer = os.pipe()
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [writer]))
    pair[0].sendmsg([packet], [rights])
    os.close(writer)
    with pytest.raises(channel.ChannelError):
        channel.receive(pair[1])
    assert os.read(reader, 1) == b"", "the last writing end is closed"
    os.close(reader)


def test_too_much_is_not_sent(pair: Pair) -> None:
    with pytest.raises(channel.ChannelError):
        channel.send(pair[0], Refused(guest="g", message="x" * channel.MAX_HEADER_BYTES))
    with pytest.raises(channel.ChannelError):
        channel.send(pair[0], Stop(guest="g"), {str(n): 0 for n in range(channel.MAX_DESCRIPTORS + 1)})


def test_a_payload_is_sealed_and_comes_back_as_it_was() -> None:
    payload = Payload(
        argv=("a", "ä\n"),
        env=(("B", "2"), ("A", '"')),
        preopens=(("/data", True),),
        working_dir="/data",
        log_name="0.log",
        log_slot=7,
        memory_bytes=1 << 26,
        nice=19,
        fuel=2**63 - 1,
        file_bytes=5,
    )
    descriptor = payload.seal()
    assert Payload.unseal(descriptor) == payload
    with pytest.raises(OSError, match="not permitted"):
        os.pwrite(descriptor, b"x", 0)
    assert "env" not in repr(payload), "values stay out of tracebacks"
    os.close(descriptor)


def test_an_unsealed_payload_is_refused() -> None:
    descriptor = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.write(descriptor, b'{"argv": [], "env": [], "preopens": []}')
    with pytest.raises(channel.ChannelError, match="sealed"):
        Payload.unseal(descriptor)
    seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    os.ftruncate(descriptor, 5)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    with pytest.raises(channel.ChannelError, match="JSON"):
        Payload.unseal(descriptor)
    os.close(descriptor)


@pytest.mark.parametrize("message", ["", "trap", "ä" * 5000, '"\n\0' * 5000, "\ud800"])
def test_a_report_fits_a_pipe(message: str) -> None:
    data = Report(outcome="trapped", exit_code=134, message=message).encode()
    assert len(data) <= channel.MAX_REPORT_BYTES
    report = Report.decode(data)
    assert report is not None
    assert (report.outcome, report.exit_code) == ("trapped", 134)
    assert message.replace("\0", "").startswith(report.message) or message == "\ud800"


def test_a_reports_message_can_harm_no_terminal() -> None:
    data = (
        b'{"outcome": "trapped", "exitCode": 134, "message": "a\\u001b[2Jb\\n\\tc\\ud800d\\u202e", "memoryRefused": 1}'
    )
    report = Report.decode(data)
    assert report is not None
    assert (report.message, report.memory_refused) == ("a[2Jb\n\tc?d", False)


@pytest.mark.parametrize("data", [b"", b"{}", b"[1]", b'{"outcome": 1, "exitCode": 0, "message": ""}', b"\xff"])
def test_anything_else_is_no_report(data: bytes) -> None:
    assert Report.decode(data) is None
