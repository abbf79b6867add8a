"""Requests per second and memory of a server, against `wasmtime serve` with the same component.

Both have one core, wrk has another. Both make an instance for each request with the on-demand allocator, and interrupt what
computes by epochs. Ours is measured once more with the pooling allocator.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import wasmtime_cli, wrk
from bench.runner_client import RunnerApi
from bench.scene import Scene, pss_bytes
from bench.table import Report, p50
from tests.guests.servers import SERVER
from tests.support import wat
from tests.support.ports import free_port
from wherry_runner import protocol

CLIENTS = {1: 0.85, 8: 1.0, 32: 1.0}
"""How many at once, and the least ratio to the peer."""

ROUNDS = 3
APPS = 1000
"""On one runner, of whose memory the middle is taken."""

PEERS = 20

WAKES = 40


async def measure(scene: Scene, report: Report) -> None:
    """In turns, the middle of some rounds each."""
    wrk.require()
    module = wat.binary(SERVER)
    file = scene.folder / "server.wasm"
    file.write_bytes(module)
    async with scene.runner() as (process, api):
        assert process.process is not None
        supervisor = process.process.pid
        await api.put("web", module, http=protocol.HttpServer())
        ours = Server(await _port(api, "web"), [_newest(supervisor)])
        with _wasmtime_serve(file) as peer:
            for each in (ours, peer):
                await each.ask_once()
                each.pin()
                await each.ask(clients=8, seconds=1)
            for clients, at_least in CLIENTS.items():
                rounds = [(await ours.ask(clients=clients), await peer.ask(clients=clients)) for _ in range(ROUNDS)]
                rates = [p50([each[side].per_second for each in rounds]) for side in (0, 1)]
                latencies = [p50([each[side].p99_ms for each in rounds]) for side in (0, 1)]
                report.ratio(f"requests per second, c={clients}", rates[0], rates[1], "/s", at_least=at_least)
                report.ratio(f"p99, c={clients}", latencies[0], latencies[1], "ms", at_most=1.1)
        await _pooled(scene, report, module)
        await _memory(scene, report, module, file)
        await _wake(scene, report, module)


async def _pooled(scene: Scene, report: Report, module: bytes) -> None:
    """The same with the pooling allocator, an option of ours that the peer was built without: nothing is promised of it."""
    async with scene.runner("--pooling-allocator") as (process, api):
        assert process.process is not None
        await api.put("web", module, http=protocol.HttpServer())
        server = Server(await _port(api, "web"), [_newest(process.process.pid)])
        await server.ask_once()
        idle = pss_bytes(server.processes[0])
        server.pin()
        await server.ask(clients=8, seconds=1)
        for clients in CLIENTS:
            rates = [(await server.ask(clients=clients)).per_second for _ in range(ROUNDS)]
            report.figure(f"requests per second, c={clients}, pooling allocator", p50(rates), "/s")
        report.figure("idle server after its first request, PSS, pooling allocator", idle / 1024, "KiB")


async def _memory(scene: Scene, report: Report, module: bytes, file: Path) -> None:
    """Of servers that have answered once, and do once more when all are there."""
    async with scene.runner() as (process, api):
        assert process.process is not None
        for number in range(APPS):
            await api.put(f"app-{number}", module, http=protocol.HttpServer())
        servers = [Server(await _port(api, f"app-{number}"), []) for number in range(APPS)]
        for each in servers:
            await each.ask_once()
        (executor,) = _children(process.process.pid)
        ours = p50([pss_bytes(pid) for pid in _children(executor)])
        for each in servers:
            await each.ask_once()
    report.figure("servers on one runner that all answer", len(servers), "", at_least=APPS)
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(_wasmtime_serve(file)) for _ in range(PEERS)]
        for each in peers:
            await each.ask_once()
        peer = p50([pss_bytes(each.processes[0]) for each in peers])
    report.ratio("idle server after its first request, PSS", ours / 1024, peer / 1024, "KiB", at_most=0.25)


async def _wake(scene: Scene, report: Report, module: bytes) -> None:
    """The first request of a server without a process, against that of a precompiled peer which is started for it."""
    compiled = scene.compiled("server", module)
    ours, peer = [], []
    async with scene.runner() as (process, api):
        assert process.process is not None
        (executor,) = _children(process.process.pid)
        await api.put("rests", module, http=protocol.HttpServer(idle_seconds=0.1))
        server = Server(await _port(api, "rests"), [])
        for _ in range(WAKES):
            # What is said of it may be older than the process that the client before had started.
            await _until(api, "rests", lambda container: container.idle and not _children(executor))
            await asyncio.sleep(0.02)
            began = time.perf_counter()
            await server.ask_once()
            ours.append((time.perf_counter() - began) * 1e3)
            began = time.perf_counter()
            with _wasmtime_serve(compiled, epochs=False) as started:
                await started.ask_once()
                peer.append((time.perf_counter() - began) * 1e3)
    report.ratio("first request of one without a process, p50", p50(ours), p50(peer), "ms", at_most=0.4)


class Server:
    """One that serves, ours or the peer."""

    def __init__(self, port: int, processes: list[int]) -> None:
        self._url = f"http://127.0.0.1:{port}/"
        self._port = port
        self.processes = processes

    def pin(self) -> None:
        """Keep all its threads on the servers' core."""
        wrk.pin(self.processes)

    async def ask(self, *, clients: int, seconds: int = wrk.SECONDS) -> wrk.Asked:
        """Let wrk make requests over so many connections. Raises RuntimeError where one fails."""
        return await wrk.ask(self._url, clients=clients, seconds=seconds)

    async def ask_once(self) -> None:
        """One request. Raises RuntimeError where the answer is none, OSError, TimeoutError."""
        async with asyncio.timeout(60):
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            answer = await reader.read()
            writer.close()
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"it answered {answer[:200]!r}")


@contextmanager
def _wasmtime_serve(file: Path, *, epochs: bool = True) -> Iterator[Server]:
    port = free_port()
    options = wasmtime_cli.serve_options(f"127.0.0.1:{port}", epochs=epochs)
    command = [str(wasmtime_cli.executable()), *options, str(file)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            words = process.stderr.readline()
            if not words.startswith("Serving HTTP"):
                raise RuntimeError(f"wasmtime serve: {words}{process.stderr.read()}")
            yield Server(port, [process.pid])
        finally:
            process.kill()


async def _port(api: RunnerApi, name: str) -> int:
    """Where it serves, once it is ready."""
    port = (await _until(api, name, lambda container: container.ready)).port
    assert port is not None
    return port


async def _until(
    api: RunnerApi, name: str, holds: Callable[[protocol.ContainerStatus], bool]
) -> protocol.ContainerStatus:
    async with asyncio.timeout(60):
        while True:
            container = (await api.status(name)).containers[0]
            if holds(container):
                return container
            await asyncio.sleep(0.02)


def _newest(supervisor: int) -> int:
    (executor,) = _children(supervisor)
    return max(_children(executor))


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
