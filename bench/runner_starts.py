"""From a request to the first byte of output, one at a time and a thousand at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench import guests
from bench.scene import Scene, cpu_seconds, descendants, first_record_ns, log_of
from bench.table import Report, p50, p99
from bench.wasmtime_cli import Run
from tests.runner import harness
from tests.support import wat
from wherry_runner import protocol
from wherry_runner.execution import channel
from wherry_runner.execution.link import Executor

ROUNDS = 200
BURST = 1000


async def measure(scene: Scene, report: Report) -> None:
    """Starts, alternating with the peer's."""
    await _fork(scene, report)
    await _put(scene, report)


async def _fork(scene: Scene, report: Report) -> None:
    """Without a runner around it: from the message that has the executor fork to the record in the log.

    What comes before the message (a module, a payload, a log to open) is the supervisor's, and part of the next figures.
    """
    module = wat.binary(guests.IDLE)
    compiled = scene.compiled("idle", module)
    from_message, from_call, peer = [], [], []
    folder = scene.folder / "engine"
    async with harness.bench(scene.executor, folder, folder / "store") as engine:
        ready = await engine.compile(module)
        with _messages() as sent:
            for number in range(ROUNDS + 10):
                spec = await engine.prepare(ready)
                called = time.time_ns()
                guest = await engine.engine.run(spec)
                written = await first_record_ns(spec.log.path, look_every=0.001)
                guest.kill()
                await guest.wait()
                other = Run(compiled)
                seconds = other.first_byte()
                other.kill()
                if number >= 10:
                    from_message.append((written - sent[-1]) / 1e9)
                    from_call.append((written - called) / 1e9)
                    peer.append(seconds)
    report.ratio("fork to first output byte, p50", p50(from_message) * 1e3, p50(peer) * 1e3, "ms", at_most=0.3)
    report.figure("the same from the call of the supervisor's engine, p50", p50(from_call) * 1e3, "ms")


@contextmanager
def _messages() -> Iterator[list[int]]:
    """When each start was sent to an executor, in nanoseconds since 1970."""
    sent = []
    send = Executor.send

    async def noted(self: Executor, message: channel.Message, descriptors: dict[str, int] | None = None) -> None:
        if isinstance(message, channel.Start):
            sent.append(time.time_ns())
        await send(self, message, descriptors)

    Executor.send = noted  # type: ignore[method-assign]
    try:
        yield sent
    finally:
        Executor.send = send  # type: ignore[method-assign]


async def _put(scene: Scene, report: Report) -> None:
    module = wat.binary(guests.IDLE)
    compiled = scene.compiled("idle", module)
    async with scene.runner() as (process, api):
        assert process.process is not None
        from_put, peer = [], []
        for number in range(ROUNDS + 10):
            workload = f"one-{number}"
            body = api.body(workload, module)
            began = time.time_ns()
            await api.send(workload, body)
            written = await first_record_ns(log_of(process, workload), look_every=0.001)
            other = Run(compiled)
            seconds = other.first_byte()
            other.kill()
            await api.delete(workload)
            if number < 10:
                continue  # the first of each warm caches, here and there
            peer.append(seconds)
            from_put.append((written - began) / 1e9)
        report.ratio(
            "PUT over mutual TLS to first output byte, p50", p50(from_put) * 1e3, p50(peer) * 1e3, "ms", at_most=1.0
        )
        report.figure("PUT to first output byte, p99", p99(from_put) * 1e3, "ms")

        running: set[str] = set()
        done = asyncio.Event()

        async def follow() -> None:
            async for event in api.watch():
                if not isinstance(event, protocol.StatusEvent) or not event.status.id.startswith("burst-"):
                    continue
                if isinstance(event.status.containers[0].state, protocol.Running):
                    running.add(event.status.id)
                    if len(running) == BURST:
                        done.set()
                        return

        follower = asyncio.create_task(follow())
        pid = process.process.pid
        before = cpu_seconds([pid, *descendants(pid)])
        own = time.process_time()
        begun = time.perf_counter()
        slots = asyncio.Semaphore(32)

        async def start(number: int) -> None:
            async with slots:
                await api.put(f"burst-{number}", module)

        await asyncio.gather(*(start(number) for number in range(BURST)))
        await asyncio.wait_for(done.wait(), 120)
        took = time.perf_counter() - begun
        spent = cpu_seconds([pid, *descendants(pid)]) - before
        follower.cancel()
        report.figure(f"{BURST} PUTs at once, started per second", BURST / took, "/s", at_least=300)
        report.figure("CPU for each of them, runner and guest", spent / BURST * 1e3, "ms")
        report.figure("CPU for each of them, this client", (time.process_time() - own) / BURST * 1e3, "ms")
        report.figure("of them lost", BURST - len(running), "", at_most=0)
