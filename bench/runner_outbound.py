"""Requests that a guest sends in a second, with its allow-list, against `wasmtime run` with the same component.

The peer has no list: it reaches everything. A second is one of CPU time, where time that others take does not count, and one
of the clock, as who answers sees it. Each request has a connection of its own on both sides. The peer finds its name in a file
(/etc/hosts), ours asks a name server whose answers hold for 30 s.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from bench import wasmtime_cli
from bench.runner_client import RunnerApi
from bench.scene import Scene, cpu_seconds
from bench.table import Report, p50
from tests.guests.requests import sends_on
from tests.support import wat
from tests.support.dns import NameServer, serving
from wherry_runner import protocol

REQUESTS = 8000
TOGETHER = (1, 8)
ROUNDS = 3

AT_LEAST = 0.95

NAME, PEERS_NAME = "outside.test", "localhost"

GUESTS_CORE, SERVERS_CORE = 0, 1

_ANSWER = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"


@dataclass
class Answering:
    """Answers requests, and counts them."""

    port: int = 0
    count: int = 0
    first: float = 0.0
    last: float = 0.0

    def asked(self) -> None:
        """Count a request."""
        self.count += 1
        self.last = time.perf_counter()
        if self.count == 1:
            self.first = self.last

    def per_second(self, cpu_seconds: float) -> tuple[float, float]:
        """Of a guest that took so much CPU time: by that, and by the clock. Raises RuntimeError where a request is missing."""
        count, self.count = self.count, 0
        if count != REQUESTS:
            raise RuntimeError(f"{count} requests came, not {REQUESTS}")
        return REQUESTS / cpu_seconds, (REQUESTS - 1) / (self.last - self.first)


class _Connection(asyncio.Protocol):
    def __init__(self, answering: Answering) -> None:
        self._answering = answering

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if not data.endswith(b"\r\n\r\n"):
            return
        self._answering.asked()
        self._transport.write(_ANSWER)
        self._transport.close()


@asynccontextmanager
async def _answering() -> AsyncIterator[Answering]:
    answering = Answering()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(answering), "127.0.0.1", 0, backlog=1024)
    answering.port = server.sockets[0].getsockname()[1]
    async with server:
        yield answering


async def measure(scene: Scene, report: Report) -> None:
    """In turns, the middle of some rounds each."""
    if (os.cpu_count() or 1) < 2:
        sys.exit("error: the guest and who answers it need a core each")
    allowed = os.sched_getaffinity(0)
    names = NameServer({NAME: itertools.repeat(["127.0.0.1"])}, seconds=30)
    async with serving(names), _answering() as answering, scene.runner("--nameserver", names.address) as (process, api):
        assert process.process is not None
        (executor,) = _children(process.process.pid)
        try:
            os.sched_setaffinity(0, {SERVERS_CORE})
            # Its children are the guests.
            os.sched_setaffinity(executor, {GUESTS_CORE})
            for together in TOGETHER:
                for ours, peer, how in (("127.0.0.1", "127.0.0.1", "an address"), (NAME, PEERS_NAME, "a name")):
                    one = wat.binary(_guest(ours, answering.port, together))
                    other = scene.compiled(
                        f"sends-{peer}-{together}", wat.binary(_guest(peer, answering.port, together))
                    )
                    rates = []
                    for number in range(ROUNDS):
                        began = cpu_seconds([executor])
                        await _ours(api, f"sends-{together}-{ours}-{number}", one, answering.port)
                        mine = answering.per_second(cpu_seconds([executor]) - began)
                        began = _reaped_seconds()
                        await _peer(str(other))
                        rates.append((mine, answering.per_second(_reaped_seconds() - began)))
                    for index, second in enumerate(("a second of CPU time", "a second")):
                        middle = [p50([each[side][index] for each in rates]) for side in (0, 1)]
                        what = f"requests to {how} in {second}, {together} at once"
                        report.ratio(what, middle[0], middle[1], "", at_least=AT_LEAST)
        finally:
            os.sched_setaffinity(0, allowed)


def _guest(host: str, port: int, together: int) -> str:
    return sends_on(f"{host}:{port}", rounds=REQUESTS // together, together=together)


async def _ours(api: RunnerApi, name: str, module: bytes, port: int) -> None:
    """Run it to its end. Raises RuntimeError where that is not a good one."""
    rules = (
        protocol.Destination(name=NAME, first_port=port, last_port=port),
        protocol.Destination(network="127.0.0.1/32", first_port=port, last_port=port),
    )
    await api.put(name, module, policy="Never", network=protocol.Network(destinations=rules))
    async with asyncio.timeout(300):
        state = (await api.ended(name)).containers[0].state
    await api.delete(name)
    if not isinstance(state, protocol.Terminated) or state.exit_code != 0:
        raise RuntimeError(f"ours ended so: {state}")


async def _peer(file: str) -> None:
    """The same."""
    command = [str(wasmtime_cli.executable()), "run", "--allow-precompiled", "-Shttp,inherit-network", file]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.DEVNULL, preexec_fn=lambda: os.sched_setaffinity(0, {GUESTS_CORE})
    )
    async with asyncio.timeout(300):
        if await process.wait() != 0:
            raise RuntimeError(f"the peer ended with {process.returncode}")


def _reaped_seconds() -> float:
    """CPU time of this process's children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]
