"""The operator's HTTPS ports: what they have in common as servers, and the trust that is read again and again."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from wherry_operator.clock import Clock
from wherry_operator.doors import Door
from wherry_operator.kube import KubeError
from wherry_operator.tls import ServerTls, TlsError

log = logging.getLogger(__name__)
_requests = log.getChild("requests")

TRUST_SECONDS = 300.0
"""Between two reads of the CA that a port's clients are known by."""

TRUST_RETRY_SECONDS = 10.0
"""After a read that failed: until one succeeds, the API server is a stranger."""

KEEPALIVE_SECONDS = 120.0
"""An idle connection is closed then: the API server keeps its own for 90 s."""

MAX_HEADER_BYTES = 16 << 10
"""One header: a token with many claims fits."""

MAX_HEADERS = 64

STOP_SECONDS = 5.0
"""What followed logs get at the end, before their connections are closed."""


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether an error is not just a stranger's nonsense: anybody who reaches a port could fill the log with that."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


_requests.addFilter(_is_ours)


class HttpsServer:
    """An application on a port of its own, from `start` to `close`."""

    def __init__(self, app: web.Application) -> None:
        app.on_response_prepare.append(_hide_server)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            logger=_requests,
            handler_cancellation=True,  # a client that has gone ends the stream from the runner
            keepalive_timeout=KEEPALIVE_SECONDS,
            shutdown_timeout=STOP_SECONDS,
            max_field_size=MAX_HEADER_BYTES,
            max_headers=MAX_HEADERS,
        )

    async def start(self, host: str, port: int, tls: ServerTls, door: Door | None = None) -> int:
        """Listen, or take over the port that is listened on. Raises OSError.

        :return: the bound port.
        """
        return await serve(self._runner, host, port, door, context=tls.context)

    async def close(self) -> None:
        """Stop listening; streams get STOP_SECONDS."""
        await self._runner.cleanup()


async def serve(
    runner: web.AppRunner, host: str, port: int, door: Door | None, *, context: ssl.SSLContext | None = None
) -> int:
    """Serve an application at a port that is opened, or at a door that is open already, with whoever waits there. Raises OSError.

    :return: the bound port.
    """
    await runner.setup()
    if door is None:
        await web.TCPSite(runner, host, port, ssl_context=context).start()
    else:
        adopting: set[asyncio.Task[None]] = set()

        def adopt(connection: socket.socket) -> None:
            task = asyncio.create_task(_adopt(runner, connection, context))
            adopting.add(task)
            task.add_done_callback(adopting.discard)

        for listener in door.take(adopt):
            await web.SockSite(runner, listener, ssl_context=context).start()
    return int(runner.addresses[0][1])


async def _adopt(runner: web.AppRunner, connection: socket.socket, context: ssl.SSLContext | None) -> None:
    if runner.server is None:  # closed meanwhile
        connection.close()
        return
    with suppress(OSError):  # of a handshake: the client's affair
        await asyncio.get_running_loop().connect_accepted_socket(runner.server, connection, ssl=context)


class KeptTrust:
    """Has `read` take the clients' CA from the cluster, now and then again.

    A CA that can't be read is logged and tried again, and the one before stays in use.

    :param what: what can't be done without it, for the complaint.
    """

    def __init__(self, read: Callable[[], Awaitable[None]], *, what: str, clock: Clock) -> None:
        self._read = read
        self._what = what
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self.complaint = ""
        """Why the API server's certificate can't be verified, "" if it can."""

    async def start(self) -> None:
        """Read it once, and keep it from then on."""
        await self._once()
        self._task = asyncio.create_task(self._keep(), name=f"client CA ({self._what})")

    async def close(self) -> None:
        """Read no more."""
        if self._task:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _keep(self) -> None:
        while True:
            await self._clock.sleep(TRUST_RETRY_SECONDS if self.complaint else TRUST_SECONDS)
            await self._once()

    async def _once(self) -> None:
        try:
            await self._read()
            self.complaint = ""
        except (KubeError, TlsError) as error:
            self.complaint = f"the cluster's client CA can't be read, so that {self._what} may fail: {error}"
            log.error("%s", self.complaint)


async def _hide_server(_request: web.Request, response: web.StreamResponse) -> None:
    response.headers.pop("Server", None)
