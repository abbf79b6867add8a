"""Memory and idle CPU: of one idle guest, with its share at 1,000, and of the supervisor with 5,000."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from bench import guests
from bench.runner_client import RunnerApi
from bench.scene import Scene, cpu_seconds, descendants, pss_bytes, rss_bytes
from bench.table import Report, p50
from bench.wasmtime_cli import Run
from tests.support import wat
from wherry_runner import protocol

IDLE_SECONDS = 20.0


async def measure(scene: Scene, report: Report) -> None:
    """The peer first: as many of it as tell what one costs beside others."""
    module = wat.binary(guests.IDLE)
    compiled = scene.compiled("idle", module)
    runs = [Run(compiled) for _ in range(50)]
    for run in runs:
        run.first_byte()
    peer = p50([pss_bytes(run.pid) for run in runs])
    for run in runs:
        run.kill()

    async with scene.runner("--default-memory-request-bytes", str(1 << 20)) as (process, api):
        assert process.process is not None
        supervisor = process.process.pid
        await _start(api, module, 0, 1000)
        (executor,) = _children(supervisor)
        guest = p50([pss_bytes(pid) for pid in _children(executor)[:200]])
        whole = sum(pss_bytes(pid) for pid in (supervisor, executor, *_children(executor)))
        report.ratio("idle guest, PSS", guest / 1024, peer / 1024, "KiB", at_most=0.2)
        report.ratio(
            "the same with its share of the runner, of 1,000", whole / 1000 / 1024, peer / 1024, "KiB", at_most=0.3
        )

        await _start(api, module, 1000, 5000)
        everything = [supervisor, *descendants(supervisor)]
        report.figure("supervisor with 5,000 guests, resident", rss_bytes(supervisor) / (1 << 20), "MiB", at_most=150)
        report.figure("executor with 5,000 guests, resident", rss_bytes(executor) / (1 << 20), "MiB")
        await asyncio.sleep(5)
        before, began = cpu_seconds(everything), time.perf_counter()
        await asyncio.sleep(IDLE_SECONDS)
        spent = (cpu_seconds(everything) - before) / (time.perf_counter() - began)
        report.figure("idle CPU with 5,000 guests, of one core", spent * 100, "%", at_most=2)


async def _start(api: RunnerApi, module: bytes, first: int, end: int) -> None:
    wanted = {f"idle-{number}" for number in range(first, end)}
    slots = asyncio.Semaphore(16)

    async def start(name: str) -> None:
        async with slots:
            await api.put(name, module)

    await asyncio.gather(*(start(name) for name in sorted(wanted)))
    async with asyncio.timeout(300):
        async for event in api.watch():
            if isinstance(event, protocol.StatusEvent) and isinstance(
                event.status.containers[0].state, protocol.Running
            ):
                wanted.discard(event.status.id)
                if not wanted:
                    return


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
