"""Plain HTTP: for the kubelet's probes of our own pod /livez and /readyz, each check by its name; for Prometheus /metrics."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from wherry_operator.doors import Door
from wherry_operator.https import serve
from wherry_operator.metrics import CONTENT_TYPE, Metrics

log = logging.getLogger(__name__)

Check = Callable[[], str]
"""Returns what is wrong, "" if nothing is. Must not block."""


class HealthServer:
    """Answers 200 when every check passes, else 500; the text says which, as the API server's own
    /readyz?verbose."""

    def __init__(
        self,
        listen: str,
        port: int,
        *,
        live: Mapping[str, Check],
        ready: Mapping[str, Check],
        metrics: Metrics | None = None,
    ) -> None:
        self._listen = listen
        self._port = port
        app = web.Application()
        app.router.add_get("/livez", _handler("livez", live))
        app.router.add_get("/readyz", _handler("readyz", ready))
        if metrics is not None:
            app.router.add_get("/metrics", _exposition(metrics))
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False)

    async def start(self, door: Door | None = None) -> int:
        """Listen, or take over the port that is listened on. Raises OSError.

        :return: the bound port.
        """
        return await serve(self._runner, self._listen, self._port, door)

    async def close(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()


def _handler(name: str, checks: Mapping[str, Check]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(_request: web.Request) -> web.Response:
        return _answer(name, checks)

    return answer


def _exposition(metrics: Metrics) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    return answer


def _answer(name: str, checks: Mapping[str, Check]) -> web.Response:
    complaints = {each: _run(each, check) for each, check in checks.items()}
    lines = [f"[-]{each} failed: {text}" if text else f"[+]{each} ok" for each, text in complaints.items()]
    failed = any(complaints.values())
    lines.append(f"{name} check {'failed' if failed else 'passed'}")
    return web.Response(status=500 if failed else 200, text="\n".join(lines) + "\n")


def _run(name: str, check: Check) -> str:
    try:
        return check()
    except Exception as error:
        log.exception("health check %s failed", name)
        return type(error).__name__
