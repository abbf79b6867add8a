"""`/attach`: a client's keyboard and screen at a running container, over SPDY (API servers) or a WebSocket.

Output is the container's log, followed from now on; of a container with `stdinOnce` from its start, for what it said before
somebody could listen is part of that one conversation. Input goes to the runner as it comes. Streams, their order and the
status at the end: k8s.io/kubelet's `pkg/cri/streaming/remotecommand`.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, Protocol

from aiohttp import WSMsgType, web
from multidict import MultiMapping

from wherry_operator.kubelet.spdy import SpdyConnection, Stream, accept
from wherry_operator.models import Object
from wherry_operator.runners.client import RunnerClient, RunnerError
from wherry_runner.protocol import LogOptions

log = logging.getLogger(__name__)

OPEN_SECONDS = 30.0
"""For the client to open its streams (kubelet: DefaultStreamCreationTimeout)."""

WEBSOCKETS = ("v5.channel.k8s.io", "v4.channel.k8s.io")
SPDY = "v4.channel.k8s.io"
"""What we speak inside; older clients than Kubernetes 1.4 speak something else."""

_MAX_MESSAGE_BYTES = 1 << 20
_HEARTBEAT_SECONDS = 30.0
_STDIN, _STDOUT, _STDERR, _ERROR, _CLOSE = 0, 1, 2, 3, 255

_Stream = Literal["stdout", "stderr"]


class BadRequest(Exception):
    """Nothing that could be attached to: answer 400 with the text."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a client wants to be attached to."""

    input: bool
    outputs: tuple[_Stream, ...]
    tty: bool

    @classmethod
    def of(cls, query: MultiMapping[str]) -> Wanted:
        """A request's wishes; kubelets know these names. Raises BadRequest."""
        wants = {name: query.get(name) == "1" for name in ("input", "output", "error", "tty")}
        # A terminal has one output.
        outputs: list[_Stream] = ["stdout"] if wants["output"] else []
        if wants["error"] and not wants["tty"]:
            outputs.append("stderr")
        if not wants["input"] and not outputs:
            raise BadRequest("you must specify at least 1 of stdin, stdout, stderr")
        return cls(input=wants["input"], outputs=tuple(outputs), tty=wants["tty"])


class Channels(Protocol):
    """The client's side."""

    def input(self) -> AsyncIterator[bytes]:
        """What it types, up to its end. Raises ConnectionError."""
        ...

    async def write(self, name: _Stream, data: bytes) -> None:
        """Show it something. Raises ConnectionError."""
        ...

    async def end(self, status: Object) -> None:
        """Everything was shown: say how it ended, and close. Raises ConnectionError."""
        ...

    async def lost(self) -> None:
        """Wait until it has gone."""
        ...


async def serve(request: web.Request, pod: Object, container: str, runner: RunnerClient) -> web.StreamResponse:
    """Attach the client to a container that the Pod has. Raises BadRequest."""
    wanted = Wanted.of(request.query)
    spec = _spec(pod, container)
    kept_from = {} if spec.get("stdinOnce") else {"tail_lines": 0}
    session = _Session(runner, pod["metadata"]["uid"], container, wanted, LogOptions(follow=True, **kept_from))
    takes_input = bool(spec.get("stdin"))
    if request.headers.get("Upgrade", "").lower() == "websocket":
        return await _websocket(request, session, takes_input)
    if request.headers.get("Upgrade", "").lower() == "spdy/3.1":
        return await _spdy(request, session, takes_input)
    raise BadRequest("Upgrade request required: attach needs SPDY/3.1 or a WebSocket")


def _spec(pod: Object, container: str) -> Object:
    containers = [*(pod["spec"].get("initContainers") or []), *pod["spec"]["containers"]]
    return next((each for each in containers if each["name"] == container), {})


class _Session:
    """One client at one container."""

    def __init__(
        self, runner: RunnerClient, workload_id: str, container: str, wanted: Wanted, options: LogOptions
    ) -> None:
        self.wanted = wanted
        self._runner = runner
        self._workload_id = workload_id
        self._container = container
        self._options = options

    async def run(self, channels: Channels, *, takes_input: bool) -> None:
        """Until the container ends or the client goes."""
        talking = asyncio.create_task(self._talk(channels, takes_input=takes_input))
        leaving = asyncio.create_task(channels.lost())
        try:
            await asyncio.wait([talking, leaving], return_when=asyncio.FIRST_COMPLETED)
            if talking.done():
                talking.result()
        except ConnectionError:
            pass
        finally:
            for task in (talking, leaving):
                task.cancel()
            await asyncio.gather(talking, leaving, return_exceptions=True)

    async def _talk(self, channels: Channels, *, takes_input: bool) -> None:
        outputs = [asyncio.create_task(self._show(channels, name)) for name in self.wanted.outputs]
        typing = asyncio.create_task(self._type(channels, takes_input=takes_input)) if self.wanted.input else None
        tasks = [*outputs, *([typing] if typing else [])]
        status: Object = {"metadata": {}, "status": "Success"}
        try:
            await asyncio.gather(*(outputs or tasks))
        except RunnerError as error:
            log.warning("attach to container %s of %s broke off: %s", self._container, self._workload_id, error)
            status = {
                "metadata": {},
                "status": "Failure",
                "reason": "InternalError",
                "message": str(error),
                "code": 500,
            }
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await channels.end(status)

    async def _show(self, channels: Channels, name: _Stream) -> None:
        options = self._options.model_copy(
            update={"stream": "All" if self.wanted.tty else {"stdout": "Stdout", "stderr": "Stderr"}[name]}
        )
        async with self._runner.log(self._workload_id, self._container, options) as pieces:
            async for piece in pieces:
                await channels.write(name, piece)

    async def _type(self, channels: Channels, *, takes_input: bool) -> None:
        if takes_input:
            try:
                await self._runner.write_input(self._workload_id, self._container, channels.input())
            except RunnerError as error:
                # It has closed its input, or has ended: what it still says is shown all the same.
                log.info("input of container %s of %s: %s", self._container, self._workload_id, error)
        async for _ in channels.input():
            pass  # nobody reads it: it must not hold up what comes behind it on the same connection


# --- SPDY -------------------------------------------------------------------------------------------------------------


async def _spdy(request: web.Request, session: _Session, takes_input: bool) -> web.StreamResponse:
    connection = accept(request, SPDY)
    wanted = session.wanted
    names = {"error", *wanted.outputs, *(["stdin"] if wanted.input else []), *(["resize"] if wanted.tty else [])}
    try:
        async with asyncio.timeout(OPEN_SECONDS):
            streams = await connection.streams(names)
        await session.run(_SpdyChannels(connection, streams), takes_input=takes_input)
    except (TimeoutError, ConnectionError):
        pass
    finally:
        connection.abort()
    return web.Response()  # the connection is closed: nobody gets it


class _SpdyChannels:
    def __init__(self, connection: SpdyConnection, streams: dict[str, Stream]) -> None:
        self._connection = connection
        self._streams = streams

    def input(self) -> AsyncIterator[bytes]:
        return self._connection.read(self._streams["stdin"])

    async def write(self, name: _Stream, data: bytes) -> None:
        await self._connection.write(self._streams[name], data)

    async def end(self, status: Object) -> None:
        for name in ("stdout", "stderr"):
            if name in self._streams:
                self._connection.end(self._streams[name])
        await self._connection.write(self._streams["error"], json.dumps(status).encode())
        self._connection.end(self._streams["error"])
        await self._connection.close()

    async def lost(self) -> None:
        await self._connection.lost()


# --- WebSocket --------------------------------------------------------------------------------------------------------


async def _websocket(request: web.Request, session: _Session, takes_input: bool) -> web.StreamResponse:
    response = web.WebSocketResponse(
        protocols=WEBSOCKETS, max_msg_size=_MAX_MESSAGE_BYTES, heartbeat=_HEARTBEAT_SECONDS, autoping=True
    )
    offered = [name.strip() for name in request.headers.get("Sec-WebSocket-Protocol", "").split(",")]
    if not set(offered) & set(WEBSOCKETS):
        raise BadRequest(f"the WebSocket must speak one of {', '.join(WEBSOCKETS)}")
    await response.prepare(request)
    channels = _WebSocketChannels(response, session.wanted.outputs)
    reading = asyncio.create_task(channels.read())
    try:
        await session.run(channels, takes_input=takes_input)
    finally:
        reading.cancel()
        with suppress(asyncio.CancelledError):
            await reading
    return response


class _WebSocketChannels:
    """Messages whose first byte tells the channel."""

    def __init__(self, response: web.WebSocketResponse, outputs: Sequence[_Stream]) -> None:
        self._response = response
        self._outputs = outputs
        self._input: asyncio.Queue[bytes | None] = asyncio.Queue(maxsize=8)
        self._lost = asyncio.Event()

    async def read(self) -> None:
        """Take what the client sends, as fast as its input is taken."""
        try:
            async for message in self._response:
                # The Python client sends text as such, and a kubelet takes both.
                whole = message.data.encode() if message.type is WSMsgType.TEXT else message.data
                if not isinstance(whole, bytes) or not whole:
                    continue
                channel, data = whole[0], whole[1:]
                if channel == _STDIN and data:
                    await self._input.put(data)
                elif channel == _CLOSE and data[:1] == bytes([_STDIN]):
                    await self._input.put(None)
        finally:
            self._lost.set()

    async def input(self) -> AsyncIterator[bytes]:
        while (piece := await self._input.get()) is not None:
            yield piece

    async def write(self, name: _Stream, data: bytes) -> None:
        await self._response.send_bytes(bytes([_STDOUT if name == "stdout" else _STDERR]) + data)

    async def end(self, status: Object) -> None:
        await self._response.send_bytes(bytes([_ERROR]) + json.dumps(status).encode())
        await self._response.close()

    async def lost(self) -> None:
        await self._lost.wait()
