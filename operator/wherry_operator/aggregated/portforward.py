"""A connection to an instance of a WasmWorkload: over a WebSocket, one for each.

Binary messages are what either side says. A text message of the client is the end of what it has to say; what the instance has
to say ends with the WebSocket. Only the port that the instance serves on is connected to, never another of its runner, and by
what the runner itself says: an object's status could be somebody else's word, who would have us connect to anything.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from aiohttp import WSMsgType, web

from wherry_operator.aggregated.logs import Instances, LogError, named
from wherry_operator.models import Object

DEFAULT_PORT = 80
"""Of a Service (`services/service.py`)."""

PROTOCOL = "portforward.wherry.dev"

CONNECT_SECONDS = 10.0
"""For an instance to take a connection."""

MAX_CONNECTIONS = 1000
"""At a time, of all clients together."""

_PIECE_BYTES = 32 << 10


@dataclass(frozen=True)
class Target:
    """Where an instance is reached."""

    host: str
    port: int


def target(workload: Object, known: Instances, port: str, instance: str) -> Target:
    """Where to connect to. Raises LogError.

    :param port: as the client gives it: the one that the object's Service has.
    :param instance: an instance's name, or the end of it after a dash; "": any that is ready.
    """
    name, http = workload["metadata"]["name"], workload["spec"].get("http")
    if http is None:
        raise LogError(400, "BadRequest", f'wasmworkload "{name}" serves nothing: its spec has no http')
    serves = http.get("port") or DEFAULT_PORT
    if port != str(serves):
        raise LogError(400, "BadRequest", f'wasmworkload "{name}" has no port {port}: it has {serves}')
    for _, workload_id in sorted(named(workload, known, instance).items()):
        place = known.locate(workload_id)
        if place is None or place.info is None or place.status is None:
            continue
        container = place.status.containers[0]
        if container.port is not None and (instance or container.ready):
            return Target(place.info.address, container.port)
    such = "such " if instance else ""
    raise LogError(503, "ServiceUnavailable", f'no {such}instance of wasmworkload "{name}" serves now')


async def serve(request: web.Request, to: Target) -> web.StreamResponse:
    """Forward one connection until either side goes. Raises LogError."""
    answer = web.WebSocketResponse(heartbeat=30.0, protocols=(PROTOCOL,))
    if not answer.can_prepare(request).ok:
        raise LogError(400, "BadRequest", "Upgrade request required: port-forward is a WebSocket")
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            reader, writer = await asyncio.open_connection(to.host, to.port)
    except (OSError, TimeoutError) as error:
        raise LogError(503, "ServiceUnavailable", f"the instance takes no connection: {error or 'in time'}") from None
    try:
        await answer.prepare(request)
        hearing = asyncio.create_task(_hear(answer, writer))
        try:
            while piece := await reader.read(_PIECE_BYTES):
                await answer.send_bytes(piece)
        except ConnectionError:
            pass  # either side has gone, in the middle of it
        finally:
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    await answer.close()
    return answer


async def _hear(client: web.WebSocketResponse, writer: asyncio.StreamWriter) -> None:
    """What the client says; the connection ends when it goes."""
    async for message in client:
        if message.type is WSMsgType.BINARY:
            writer.write(message.data)
            await writer.drain()
        elif message.type is WSMsgType.TEXT:
            writer.write_eof()
    writer.transport.abort()
