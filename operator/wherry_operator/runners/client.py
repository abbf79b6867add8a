"""One runner, as the operator calls it: the wire of `wherry_runner.protocol` over mutual TLS."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar
from urllib.parse import quote

import aiohttp
from pydantic import TypeAdapter, ValidationError

from wherry_operator.errors import Expected, text
from wherry_operator.tls import RunnerTls
from wherry_runner.protocol import (
    HEARTBEAT_SECONDS,
    LogOptions,
    Refusal,
    RefusalReason,
    RunnerCondition,
    RunnerInfo,
    RunnerStats,
    WatchEvent,
    Wire,
    WorkloadPut,
    WorkloadStatus,
)

CONNECT_SECONDS = 5.0
"""Runners are in the same cluster: one that takes longer to accept is better tried again."""

READ_SECONDS = 30.0
"""Silence after which an answer is given up."""

MAX_ANSWER_BYTES = 16 << 20
"""Of one answer. A runner executes strangers' code: were it taken over, it must not fill the operator's
memory."""

MAX_EVENT_BYTES = 4 << 20
"""Of one line of the watch: a status of hundreds of containers has a tenth of it."""

KEPT_SECONDS = 30.0
"""An idle connection is kept for so long: a TLS handshake costs both sides more than the call that it is for."""

BUFFER_BYTES = 64 << 10
LOG_BUFFER_BYTES = 256 << 10
"""Of a log, what is read ahead of a slow client, twice at most."""

_Answer = TypeVar("_Answer", bound=Wire)
_EVENT: TypeAdapter[WatchEvent] = TypeAdapter(WatchEvent)
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)
_WATCH_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=3 * HEARTBEAT_SECONDS)
_PATIENT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
"""For what lasts as long as somebody follows a log, or types."""

_BROKEN = (aiohttp.ClientError, TimeoutError, OSError)
_HEADERS = {"Accept-Encoding": "identity"}  # compressed, a stream is held back and a small answer may grow huge
# A followed log may be silent for hours: only the kernel's probes tell a silent peer from a dead one.
_KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]


class RunnerError(Expected):
    """A call of a runner failed; also raised itself, where the answer makes no sense."""


class Refused(RunnerError):
    """The runner answered and says why it did not do it."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"{refusal.reason.value}: {refusal.message}")
        self.full = refusal.reason in (RefusalReason.TOO_LARGE, RefusalReason.NO_ROOM, RefusalReason.STOPPING)
        """The runner has no room for it now: another may have."""
        self.refusal = refusal


class RunnerUnavailable(RunnerError):
    """No answer, or it broke off: whether the runner did it is not known, and trying again may help."""


class _Connections:
    """An HTTP client and how many requests use it; it is closed after the last one once it is retired."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.users = 0
        self.retired = False
        # No bound on connections: each watch and each followed log holds one. No environment: a proxy that
        # someone set for the way out of the cluster must not see what operator and runner say to each other.
        connector = aiohttp.TCPConnector(
            ssl=context, limit=0, keepalive_timeout=KEPT_SECONDS, socket_factory=_kept_alive
        )
        self.http = aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False, trust_env=False
        )


def _kept_alive(address: aiohttp.AddrInfoType) -> socket.socket:
    made = socket.socket(*address[:3])
    made.setblocking(False)
    for option in _KEEPALIVE:
        made.setsockopt(*option)
    return made


class RunnerClient:
    """The calls. All raise Refused, RunnerUnavailable, or RunnerError for an answer that is not
    understood."""

    def __init__(self, name: str, url: str, tls: RunnerTls) -> None:
        self.name = name
        self.url = url
        self._tls = tls
        self._connections: _Connections | None = None

    async def close(self) -> None:
        """Close the connections, those in use too."""
        if self._connections:
            await self._connections.http.close()
            self._connections = None

    async def info(self) -> RunnerInfo:
        """Who the runner is."""
        return await self._call(RunnerInfo, "GET", "/v1/info")

    async def stats(self) -> RunnerStats:
        """What the runner and its containers use."""
        return await self._call(RunnerStats, "GET", "/v1/stats")

    async def condition(self) -> RunnerCondition:
        """What the runner is short of, and which images it has."""
        try:
            return await self._call(RunnerCondition, "GET", "/v1/condition")
        except Refused as error:
            if error.refusal.reason is RefusalReason.NOT_FOUND:
                return RunnerCondition()  # of a release before it could say
            raise

    async def put(self, workload_id: str, body: WorkloadPut) -> WorkloadStatus:
        """Bring a workload to what `body` says; one that says what is already so changes nothing."""
        return await self._call(WorkloadStatus, "PUT", _workload(workload_id), content=body.to_json())

    async def get(self, workload_id: str) -> WorkloadStatus:
        """A workload as it is. Raises Refused (NotFound) where it is not."""
        return await self._call(WorkloadStatus, "GET", _workload(workload_id))

    async def delete(
        self, workload_id: str, *, epoch: int, sequence: int, grace_seconds: int | None, keep_ended: bool = False
    ) -> WorkloadStatus | None:
        """Stop and forget a workload: its status while it is there, None when it is gone. `grace_seconds`: None for its own.
        `keep_ended`: don't forget one that ended by itself."""
        query = {"epoch": str(epoch), "sequence": str(sequence)}
        if grace_seconds is not None:
            query["grace"] = str(grace_seconds)
        if keep_ended:
            query["keepEnded"] = "true"
        try:
            async with self._open("DELETE", _workload(workload_id), query=query) as response:
                if response.status != 202:
                    return None
                return self._understand(WorkloadStatus, await self._read(response))
        except Refused as error:
            if error.refusal.reason is RefusalReason.NOT_FOUND:
                return None
            raise

    @asynccontextmanager
    async def log(self, workload_id: str, container: str, options: LogOptions) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a container's log: pieces of text as they come, up to its end or, followed, the container's.

        A break in the middle is raised out of the `async with`, as RunnerUnavailable.
        """
        timeout = _PATIENT if options.follow else _TIMEOUT
        path = f"{_container(workload_id, container)}/log"
        async with self._open(
            "GET", path, query=_as_query(options), timeout=timeout, buffer_bytes=LOG_BUFFER_BYTES
        ) as response:
            yield self._pieces(response)

    async def write_input(self, workload_id: str, container: str, pieces: AsyncIterable[bytes]) -> None:
        """Give a container its input, piece by piece, as fast as it reads. Raises Refused (NoInput) where it takes none, or no
        more."""
        # As long as the client types and the guest does not read: neither has a bound.
        path = f"{_container(workload_id, container)}/stdin"
        async with self._open("PUT", path, content=pieces, timeout=_PATIENT):
            pass

    async def watch(self) -> AsyncGenerator[WatchEvent, None]:
        """Every event as it comes; without end. Close the iterator (`contextlib.aclosing`) to leave early.

        Raises RunnerUnavailable when the stream ends or is silent for three heartbeats.
        """
        async with self._open("GET", "/v1/watch", timeout=_WATCH_TIMEOUT) as response:
            rest = b""
            async for chunk in self._pieces(response):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if line.strip():
                        yield self._event(line)
                if len(rest) > MAX_EVENT_BYTES:
                    raise RunnerError(f"{self}: an event of the watch is larger than {MAX_EVENT_BYTES} bytes")
        raise RunnerUnavailable(f"{self} has ended the watch")

    def __str__(self) -> str:
        return f'runner "{self.name}" ({self.url})'

    async def _call(self, kind: type[_Answer], method: str, path: str, *, content: bytes | None = None) -> _Answer:
        async with self._open(method, path, content=content) as response:
            return self._understand(kind, await self._read(response))

    @asynccontextmanager
    async def _open(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        content: bytes | AsyncIterable[bytes] | None = None,
        timeout: aiohttp.ClientTimeout = _TIMEOUT,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {**_HEADERS, "Content-Type": "application/json"} if isinstance(content, bytes) else _HEADERS
        async with self._borrowed() as connections:
            try:
                response = await connections.http.request(
                    method,
                    self.url + path,
                    params=query,
                    data=content,
                    headers=headers,
                    timeout=timeout,
                    allow_redirects=False,
                    server_hostname=self._tls.server_name,
                    read_bufsize=buffer_bytes,
                )
            except _BROKEN as error:
                raise self._unavailable(error) from error
            async with response:
                if response.status >= 300:
                    raise self._refused(response.status, await self._read(response))
                yield response

    @asynccontextmanager
    async def _borrowed(self) -> AsyncIterator[_Connections]:
        context = self._tls.context()
        current = self._connections
        if current is None or current.context is not context:
            self._connections = _Connections(context)
            if current:
                current.retired = True
                if not current.users:
                    await current.http.close()
            current = self._connections
        current.users += 1
        try:
            yield current
        finally:
            current.users -= 1
            if current.retired and not current.users:
                await current.http.close()

    async def _pieces(self, response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
        # Only what goes wrong here is the runner's: whoever shows the pieces has troubles of its own.
        try:
            async for piece in response.content.iter_any():
                yield piece
        except _BROKEN as error:
            raise self._unavailable(error) from error

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        async for chunk in self._pieces(response):
            body += chunk
            if len(body) > MAX_ANSWER_BYTES:
                raise RunnerError(f"{self}: an answer is larger than {MAX_ANSWER_BYTES} bytes")
        return bytes(body)

    def _event(self, line: bytes) -> WatchEvent:
        try:
            return _EVENT.validate_json(line)
        except ValidationError as error:
            raise RunnerError(f"{self}: an event of the watch is not understood: {_short(error)}") from error

    def _understand(self, kind: type[_Answer], body: bytes) -> _Answer:
        try:
            return kind.model_validate_json(body)
        except ValidationError as error:
            raise RunnerError(f"{self}: the answer is no {kind.__name__}: {_short(error)}") from error

    def _unavailable(self, error: Exception) -> RunnerUnavailable:
        return RunnerUnavailable(f"{self} does not answer: {text(error)}")

    def _refused(self, status: int, body: bytes) -> RunnerError:
        try:
            return Refused(Refusal.model_validate_json(body))
        except ValidationError:
            return RunnerError(f"{self} answered {status}: {body[:200].decode(errors='replace')}")


def _workload(workload_id: str) -> str:
    return f"/v1/workloads/{quote(workload_id, safe='')}"


def _container(workload_id: str, container: str) -> str:
    return f"{_workload(workload_id)}/containers/{quote(container, safe='')}"


def _as_query(options: LogOptions) -> dict[str, str]:
    values = options.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in values.items()}


def _short(error: ValidationError) -> str:
    # Never the input: it may hold what a log must not.
    first = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
