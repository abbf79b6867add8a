"""An HTTP server that no client can hold up: who is slow is cut off, and connections have an end."""

from __future__ import annotations

import asyncio
import socket
import ssl

from wherry_runner.serving.aio import web

HANDSHAKE_SECONDS = 10.0
"""For a TLS handshake: whoever has not shown a certificate by then holds a descriptor no longer."""

IDLE_SECONDS = 60.0
"""For the headers of a request, from the connection's beginning or the end of the request before."""

BACKLOG = 1024
"""Connections that wait to be accepted: an operator that comes back has a thousand workloads to send."""


SEND_BYTES = 64 << 10
"""Of what was sent and not acknowledged, for each connection (the kernel doubles it). Left to itself, the kernel takes 4 MiB,
which a reader who stalls has the runner fill with log lines that nobody reads."""


class Server:
    """An application that is served."""

    def __init__(self, runner: web.AppRunner, listening: asyncio.Server) -> None:
        self._runner = runner
        self._listening = listening

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listening.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Accept no more, and break off what is under way."""
        self._listening.close()
        await self._runner.cleanup()


async def serve(
    app: web.Application,
    host: str,
    port: int,
    context: ssl.SSLContext | None = None,
    *,
    handshake_seconds: float = HANDSHAKE_SECONDS,
    idle_seconds: float = IDLE_SECONDS,
) -> Server:
    """Serve an application; port 0 picks a free one. Raises OSError."""
    runner = web.AppRunner(
        app,
        access_log=None,  # would be a line for each status change of every workload
        handle_signals=False,
        handler_cancellation=True,  # who no longer follows a log must not be waited for
        keepalive_timeout=idle_seconds,
        shutdown_timeout=1.0,
    )
    await runner.setup()
    assert runner.server is not None
    try:
        # Not aiohttp's own TCPSite: it leaves a handshake the whole minute that asyncio gives it.
        listening = await asyncio.get_running_loop().create_server(
            runner.server,
            host,
            port,
            ssl=context,
            backlog=BACKLOG,
            ssl_handshake_timeout=handshake_seconds if context else None,
        )
    except OSError:
        await runner.cleanup()
        raise
    for sock in listening.sockets:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BYTES)  # connections inherit it
    return Server(runner, listening)
