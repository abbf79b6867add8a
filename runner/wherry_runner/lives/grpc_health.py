"""The gRPC health check as a probe: `grpc.health.v1.Health/Check` over HTTP/2 with prior knowledge, in the kubelet's words
(k8s.io/kubernetes/pkg/probe/grpc/grpc.go; https://grpc.github.io/grpc/core/md_doc_health-checking.html).

Its two messages have a field each, so they are written and read here by hand.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from urllib.parse import unquote

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions

from wherry_runner.lives.words import go_duration

READ_BYTES = 16 << 10

MAX_ANSWER_BYTES = 4 << 10
"""Of an answer to a check, which has some seven: who sends more is not waited for."""

_CODES = (
    "OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists", "PermissionDenied",
    "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented", "Internal", "Unavailable",
    "DataLoss", "Unauthenticated",
)  # fmt: skip
"""As grpc-go names them, by their numbers."""

_SERVING = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
"""`HealthCheckResponse.ServingStatus`, by their numbers."""


@dataclass(frozen=True)
class _Answer:
    code: str
    message: str
    status: int
    """The number of the serving status; of no account unless the code is OK."""


class _Broken(Exception):
    """The server does not speak as it should; the message says how."""


def refused(host: str, timeout_seconds: float) -> str:
    """What is said where nobody takes connections: a kubelet tries until its time is over."""
    within = go_duration(timeout_seconds)
    return f'timeout: failed to connect service "{host}" within {within}: context deadline exceeded'


async def check(address: str, port: int, *, host: str, service: str, timeout_seconds: float) -> str:
    """Why the check has failed; empty: it has not."""
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(timeout_seconds):
            reader, writer = await asyncio.open_connection(address, port, limit=READ_BYTES)
            answer = await _ask(reader, writer, host, service)
    except TimeoutError:
        if writer is None:
            return refused(host, timeout_seconds)
        return f"timeout: health rpc did not complete within {go_duration(timeout_seconds)}"
    except ConnectionRefusedError:
        return refused(host, timeout_seconds)
    except (OSError, _Broken) as error:
        answer = _Answer("Unavailable", str(error), 0)
    finally:
        if writer is not None:
            writer.transport.abort()
    if answer.code == "Unimplemented":
        why = "this server does not implement the grpc health protocol (grpc.health.v1.Health)"
        return f"error: {why}: {answer.message}"
    if answer.code == "DeadlineExceeded":
        return f"timeout: health rpc did not complete within {go_duration(timeout_seconds)}"
    if answer.code != "OK":
        return f"error: health rpc probe failed: rpc error: code = {answer.code} desc = {answer.message}"
    if answer.status == _SERVING.index("SERVING"):
        return ""
    name = _SERVING[answer.status] if answer.status < len(_SERVING) else str(answer.status)
    return f'service unhealthy (responded with "{name}")'


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, service: str) -> _Answer:
    """Raises OSError, _Broken."""
    config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
    connection = h2.connection.H2Connection(config)
    connection.initiate_connection()
    stream = connection.get_next_available_stream_id()
    headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/grpc.health.v1.Health/Check"),
        (":authority", host),
        ("content-type", "application/grpc"),
        ("user-agent", "kube-probe/wherry"),
        ("te", "trailers"),
    ]
    connection.send_headers(stream, headers)
    connection.send_data(stream, _framed(_request(service)), end_stream=True)
    writer.write(connection.data_to_send())
    head: dict[str, str] = {}
    body = b""
    while data := await reader.read(READ_BYTES):
        try:
            events = connection.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            raise _Broken(f"connection error: {error or 'it speaks no HTTP/2'}") from error
        for event in events:
            match event:
                case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                    head |= {str(name): str(value) for name, value in event.headers or ()}
                case h2.events.DataReceived():
                    body += event.data or b""
                    if len(body) > MAX_ANSWER_BYTES:
                        raise _Broken("received message larger than max")
                    connection.acknowledge_received_data(event.flow_controlled_length or 0, stream)
                case h2.events.StreamEnded():
                    return _answer(head, body)
                case h2.events.StreamReset():
                    raise _Broken(f"stream terminated by RST_STREAM with error code: {_name(event.error_code)}")
                case h2.events.ConnectionTerminated():
                    raise _Broken(f"the connection is draining: {_name(event.error_code)}")
        writer.write(connection.data_to_send())
    raise _Broken("error reading from server: EOF")


def _answer(head: dict[str, str], body: bytes) -> _Answer:
    """Raises _Broken."""
    if head.get(":status") != "200":
        # As grpc-go says it of a server that is none of gRPC's.
        code = "Unimplemented" if head.get(":status") == "404" else "Unknown"
        return _Answer(code, f"unexpected HTTP status code received from server: {head.get(':status')}", 0)
    number = head.get("grpc-status", "")
    if not number.isdecimal():
        raise _Broken("server closed the stream without sending trailers")
    code = _CODES[int(number)] if int(number) < len(_CODES) else f"Code({number})"
    if code != "OK":
        return _Answer(code, unquote(head.get("grpc-message", "")), 0)
    return _Answer(code, "", _status(_unframed(body)))


def _request(service: str) -> bytes:
    """`HealthCheckRequest`: field 1, a string."""
    name = service.encode()
    return b"\x0a" + _varint(len(name)) + name if name else b""


def _status(message: bytes) -> int:
    """Field 1 of `HealthCheckResponse`, an enumeration; absent: 0. Raises _Broken."""
    if not message:
        return 0
    if message[0] != 0x08:
        raise _Broken("failed to unmarshal the received message")
    value = shift = 0
    for byte in message[1:]:
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value
    raise _Broken("failed to unmarshal the received message")


def _varint(number: int) -> bytes:
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def _framed(message: bytes) -> bytes:
    """As gRPC puts a message into a body: uncompressed, and with its length before it."""
    return b"\x00" + len(message).to_bytes(4, "big") + message


def _unframed(body: bytes) -> bytes:
    """Raises _Broken."""
    if len(body) < 5 or body[0] != 0 or len(body) != 5 + int.from_bytes(body[1:5], "big"):
        raise _Broken("failed to unmarshal the received message")
    return body[5:]


def _name(code: h2.errors.ErrorCodes | int | None) -> str:
    return code.name if isinstance(code, h2.errors.ErrorCodes) else str(code)
