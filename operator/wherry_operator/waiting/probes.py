"""A waiting replica's health port: for a kubelet /livez and /readyz, for Prometheus /metrics, as `health.py` and `metrics.py`
answer them for an operator that does not lead."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from wherry_operator.doors import Door

MAX_REQUEST_BYTES = 16 << 10

REQUEST_SECONDS = 5.0
"""Within which a request must be there, and its answer be taken."""

MOST_CONNECTIONS = 32
"""At once; more are turned away."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of Prometheus' text format."""

Check = Callable[[], str]
"""Returns what is wrong, "" if nothing is."""

_STARTED = time.time()


class Probes:
    """Answers at a door until somebody else takes it."""

    def __init__(self, door: Door, *, ready: Mapping[str, Check]) -> None:
        self._door = door
        self._ready = ready
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Accept."""
        self._door.watch(self._accepted)

    async def close(self) -> None:
        """End."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accepted(self, client: socket.socket) -> None:
        if len(self._tasks) >= MOST_CONNECTIONS:
            client.close()
            return
        task = asyncio.create_task(self._serve(client), name="probe")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        request = b""
        try:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(REQUEST_SECONDS):
                    while b"\r\n\r\n" not in request and len(request) < MAX_REQUEST_BYTES:
                        more = await loop.sock_recv(client, MAX_REQUEST_BYTES)
                        if not more:
                            return
                        request += more
                    await loop.sock_sendall(client, answer(request, self._ready))
                    client.shutdown(socket.SHUT_WR)
        finally:
            client.close()


def answer(request: bytes, ready: Mapping[str, Check]) -> bytes:
    """The whole answer to a request's first bytes."""
    method, _, rest = request.partition(b"\r\n")[0].decode("latin-1").partition(" ")
    path = rest.partition(" ")[0].partition("?")[0]
    status, kind, body = "404 Not Found", "text/plain; charset=utf-8", "404: Not Found"
    if path in ("/livez", "/readyz", "/metrics"):
        if method not in ("GET", "HEAD"):
            status, body = "405 Method Not Allowed", "405: Method Not Allowed"
        elif path == "/metrics":
            status, kind, body = "200 OK", CONTENT_TYPE, metrics()
        else:
            failed, body = report(path[1:], {"loop": lambda: ""} if path == "/livez" else ready)
            status = "500 Internal Server Error" if failed else "200 OK"
    sent = body.encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(sent)}\r\nConnection: close\r\n\r\n"
    return head.encode() + (b"" if method == "HEAD" else sent)


def report(name: str, checks: Mapping[str, Check]) -> tuple[bool, str]:
    """Whether a check failed, and the text, as `health.py` has it."""
    complaints = {each: check() for each, check in checks.items()}
    lines = [f"[-]{each} failed: {text}" if text else f"[+]{each} ok" for each, text in complaints.items()]
    failed = any(complaints.values())
    lines.append(f"{name} check {'failed' if failed else 'passed'}")
    return failed, "\n".join(lines) + "\n"


def metrics() -> str:
    """What there is to be told of a replica that waits, by the names and in the words that a whole operator has for it."""
    _, resident, *_ = Path("/proc/self/statm").read_text().split()
    told = [
        (
            "process_resident_memory_bytes",
            "gauge",
            "Resident memory size in bytes.",
            int(resident) * os.sysconf("SC_PAGE_SIZE"),
        ),
        ("process_start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds.", _STARTED),
        (
            "process_cpu_seconds_total",
            "counter",
            "Total user and system CPU time spent in seconds.",
            round(time.process_time(), 3),
        ),
        ("process_open_fds", "gauge", "Number of open file descriptors.", len(os.listdir("/proc/self/fd"))),
        ("wherry_operator_leader", "gauge", "1 where this operator leads.", 0.0),
        ("wherry_operator_epoch", "gauge", "Number of this operator's term; 0 before its first.", 0.0),
    ]
    return "".join(f"# HELP {name} {text}\n# TYPE {name} {kind}\n{name} {value}\n" for name, kind, text, value in told)
