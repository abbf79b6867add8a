"""`/portForward`: a client's connections to a port of a Pod, each over two streams of one SPDY connection.

The streams, their headers and what is said of errors: k8s.io/kubelet's `pkg/cri/streaming/portforward`. A Pod's address is its
runner's, where other Pods and the runner itself listen too: only ports that its own containers name are connected to.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from wherry_operator.kubelet.spdy import SpdyConnection, Stream, accept
from wherry_operator.models import Object

log = logging.getLogger(__name__)

PROTOCOL = "portforward.k8s.io"

MAX_CONNECTIONS = 256
"""That one client has at a time, two streams each."""

CONNECT_SECONDS = 10.0
"""For a guest to take a connection."""

PAIR_SECONDS = 30.0
"""For the second stream of a connection to come (pkg/cri/streaming, DefaultStreamCreationTimeout)."""

_PIECE_BYTES = 32 << 10

Connect = Callable[[int], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class BadRequest(Exception):
    """No request to forward ports: answer 400 with the text."""


class NoPort(Exception):
    """The Pod does not have this port; the text goes to the client."""


async def connect(
    pod: Object, port: int, *, address: str, ports: Mapping[int, int]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a port that the Pod names. `address`: its runner's; `ports`: where those that it serves are there. Raises
    NoPort, OSError."""
    name = pod["metadata"]["name"]
    named = {each["containerPort"] for container in pod["spec"]["containers"] for each in container.get("ports") or ()}
    if port not in named:
        has = f"it has {', '.join(map(str, sorted(named)))}" if named else "no container of it names one"
        raise NoPort(f"pod {name} has no port {port}: {has}")
    if not address or port not in ports:
        raise NoPort(f"pod {name} does not serve on port {port} now")
    async with asyncio.timeout(CONNECT_SECONDS):
        return await asyncio.open_connection(address, ports[port])


async def serve(request: web.Request, pod: Object, to: Connect) -> web.StreamResponse:
    """Forward what the client opens until it goes. Raises BadRequest."""
    if request.headers.get("Upgrade", "").lower() != "spdy/3.1":
        raise BadRequest("Upgrade request required: port-forward needs SPDY/3.1")
    connection = accept(request, PROTOCOL, max_streams=2 * MAX_CONNECTIONS)
    try:
        await _Forwarding(connection, pod["metadata"], to).run()
    except ConnectionError:
        pass
    finally:
        connection.abort()
    return web.Response()  # the connection is closed: nobody gets it


class _Forwarding:
    """One client, and all that it has open."""

    def __init__(self, connection: SpdyConnection, metadata: Object, to: Connect) -> None:
        self._connection = connection
        self._who = f"pod {metadata['name']}, uid {metadata['uid']}"
        self._to = to
        self._halves: dict[str, dict[str, Stream]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        """Until the other half must have come."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until the client goes. Raises ConnectionError."""
        try:
            async for stream in self._connection.opened():
                self._take(stream)
        finally:
            for timer in self._timers.values():
                timer.cancel()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _take(self, stream: Stream) -> None:
        """A connection is two streams with the same number of a request: one for data, one for an error."""
        kind, request, port = (stream.headers.get(name, "") for name in ("streamtype", "requestid", "port"))
        pair = self._halves.get(request, {})
        if kind not in ("data", "error") or kind in pair or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            self._connection.refuse(stream)
            return
        pair[kind] = stream
        if len(pair) == 1:
            self._halves[request] = pair
            self._timers[request] = asyncio.get_running_loop().call_later(PAIR_SECONDS, self._give_up, request)
        else:
            del self._halves[request]
            self._timers.pop(request).cancel()
            task = asyncio.create_task(self._forward(int(port), pair["data"], pair["error"]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _give_up(self, request: str) -> None:
        """Half a connection is none."""
        del self._timers[request]
        for stream in self._halves.pop(request).values():
            self._connection.refuse(stream)

    async def _forward(self, port: int, data: Stream, error: Stream) -> None:
        try:
            try:
                reader, writer = await self._to(port)
            except (NoPort, OSError, TimeoutError) as problem:
                why = str(problem) or "it takes no connection"
                log.info("port-forward to port %d of %s: %s", port, self._who, why)
                text = f"error forwarding port {port} to {self._who}: {why}"
                await self._connection.write(error, text.encode())
                return
            try:
                await self._exchange(data, reader, writer)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
        except ConnectionError:
            pass  # either side has gone, in the middle of it
        finally:
            for stream in (error, data):
                self._connection.end(stream)
                self._connection.forget(stream)

    async def _exchange(self, data: Stream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Up to the end of what the guest has to say. Raises ConnectionError."""

        async def send() -> None:
            async for piece in self._connection.read(data):
                writer.write(piece)
                await writer.drain()
            writer.write_eof()

        sending = asyncio.create_task(send())
        try:
            while piece := await reader.read(_PIECE_BYTES):
                await self._connection.write(data, piece)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
