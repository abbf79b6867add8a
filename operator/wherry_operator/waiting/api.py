"""Calls of a waiting replica to the API server: HTTP/1.1 over TLS, with the ServiceAccount's token, one connection kept open.

A client library would be most of what such a replica takes of memory. This one knows what the API server sends and no more; what
it can't read is for who has the library.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wherry_operator.errors import text
from wherry_operator.lease import CALL_SECONDS

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a kubelet mounts token and CA."""

MAX_BODY_BYTES = 1 << 20
"""A Lease has less than one KiB."""

METADATA = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
"""To be accepted where it counts only that an object is there."""

USER_AGENT = "wherry-operator/1"


class Unanswered(Exception):
    """There was no answer, or it came too late."""


class Odd(Exception):
    """There was an answer that is not understood here."""


@dataclass(frozen=True)
class Answer:
    """The HTTP status, and the body if it was JSON."""

    status: int
    body: Any


@dataclass(frozen=True)
class Head:
    """What counts of an answer's first lines."""

    status: int
    length: int | None
    """None: chunked."""
    last: bool
    """No other answer follows on this connection."""


class Api:
    """One API server, as an environment inside of a Pod names it."""

    def __init__(self, environment: Mapping[str, str], folder: Path = SERVICE_ACCOUNT) -> None:
        self._host = environment["KUBERNETES_SERVICE_HOST"]
        self._port = int(environment.get("KUBERNETES_SERVICE_PORT") or 443)
        self._folder = folder
        self._stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, accept: str = "application/json"
    ) -> Answer:
        """One call, within CALL_SECONDS. Raises Unanswered, Odd, OSError (the ServiceAccount's files)."""
        token = (self._folder / "token").read_text().strip()  # each time: a kubelet renews it
        request = self._request(method, path, token, body, accept)
        try:
            async with asyncio.timeout(CALL_SECONDS):
                reused = self._stream is not None
                try:
                    return await self._once(request)
                except (OSError, EOFError):
                    # The API server has closed it meanwhile. What may have been written is not written twice.
                    if not reused or method != "GET":
                        raise
                return await self._once(request)
        except (OSError, EOFError, TimeoutError) as error:
            raise Unanswered(text(error)) from error
        except (ValueError, asyncio.LimitOverrunError) as error:
            raise Odd(text(error)) from error

    def close(self) -> None:
        """Close the connection."""
        if self._stream is not None:
            self._stream[1].close()
            self._stream = None

    async def _once(self, request: bytes) -> Answer:
        done = False
        try:
            if self._stream is None:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.minimum_version = ssl.TLSVersion.TLSv1_2
                context.load_verify_locations(cafile=self._folder / "ca.crt")
                self._stream = await asyncio.open_connection(self._host, self._port, ssl=context)
            reader, writer = self._stream
            writer.write(request)
            head = parse_head(await reader.readuntil(b"\r\n\r\n"))
            raw = await _body(reader, head)
            done = not head.last
            return Answer(head.status, json.loads(raw) if raw else None)
        finally:
            if not done:
                self.close()

    def _request(self, method: str, path: str, token: str, body: Mapping[str, Any] | None, accept: str) -> bytes:
        host = f"[{self._host}]" if ":" in self._host else self._host
        sent = b"" if body is None else json.dumps(body).encode()
        lines = [
            f"{method} {path} HTTP/1.1",
            f"Host: {host}:{self._port}",
            f"Authorization: Bearer {token}",
            f"Accept: {accept}",
            f"User-Agent: {USER_AGENT}",
        ]
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(sent)}"]
        return "\r\n".join((*lines, "", "")).encode() + sent


def parse_head(raw: bytes) -> Head:
    """Read an answer's lines up to the empty one. Raises ValueError: not as HTTP/1.1 has it, or too much to be read here."""
    first, *lines = raw.decode("latin-1").split("\r\n")
    version, status, *_ = first.split(" ", 2)
    if version != "HTTP/1.1" or len(status) != 3 or not status.isdecimal():
        raise ValueError(f"no answer of HTTP/1.1: {first[:80]!r}")
    fields = {
        name.strip().lower(): value.strip() for name, found, value in (each.partition(":") for each in lines) if found
    }
    last = fields.get("connection", "").lower() == "close"
    coding = fields.get("transfer-encoding", "").lower()
    if coding:
        if coding != "chunked":
            raise ValueError(f"unknown Transfer-Encoding {coding[:80]!r}")
        return Head(int(status), None, last)
    length = fields.get("content-length", "0" if status in ("204", "304") else "")
    if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
        raise ValueError(f"a body of {length[:80]!r} bytes")
    return Head(int(status), int(length), last)


async def _body(reader: asyncio.StreamReader, head: Head) -> bytes:
    if head.length is not None:
        return await reader.readexactly(head.length)
    whole = b""
    while True:
        size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
        if size < 0 or len(whole) + size > MAX_BODY_BYTES:
            raise ValueError("a body that is too long")
        whole += (await reader.readexactly(size + 2))[:-2]
        if size == 0:
            return whole
