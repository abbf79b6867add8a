"""What the runner's benches work with: a runner as a process, its API, precompiled modules for the peer, and `/proc`."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

from bench import wasmtime_cli
from bench.runner_client import RunnerApi, connect
from tests.support.runner import Certificates, RunnerProcess
from wherry_runner.logs.records import Record

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


class Scene:
    """One run of the benches."""

    def __init__(self, folder: Path, *, executor: str, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self.executor = executor
        self.certificates = Certificates(folder / "pki")
        self._stack = stack
        self._runners = 0
        self._compiled: dict[str, Path] = {}

    @asynccontextmanager
    async def runner(self, *flags: str) -> AsyncIterator[tuple[RunnerProcess, RunnerApi]]:
        """A new runner with an empty state directory, gone afterwards."""
        self._runners += 1
        settings = ["--executor", self.executor, "--log-level", "WARNING", "--max-workloads", "6000", *flags]
        process = RunnerProcess(self.folder, self.certificates, f"bench-{self._runners}", settings)
        self._stack.callback(process.close)
        process.start()
        try:
            async with connect(self.certificates, process.url) as api:
                yield process, api
        finally:
            process.close()

    def compiled(self, name: str, wasm: bytes) -> Path:
        """A module precompiled for the peer."""
        if name not in self._compiled:
            source = self.folder / f"{name}.wasm"
            source.write_bytes(wasm)
            self._compiled[name] = self.folder / f"{name}.cwasm"
            wasmtime_cli.compile_module(source, self._compiled[name])
        return self._compiled[name]


def log_of(process: RunnerProcess, workload: str) -> Path:
    """The log of a workload's first run."""
    return process.state / "logs" / workload / "main" / "0.log"


async def first_record_ns(log: Path, *, look_every: float) -> int:
    """When a log's first record was written, in nanoseconds since 1970, as soon as it is there."""
    while True:
        if (written := _first_record_ns(log)) is not None:
            return written
        await asyncio.sleep(look_every)


def _first_record_ns(log: Path) -> int | None:
    try:
        with open(log, "rb") as file:
            line = file.readline()
    except FileNotFoundError:
        return None
    record = Record.parse(line.rstrip(b"\n")) if line.endswith(b"\n") else None
    return record.nanoseconds if record else None


def pss_bytes(pid: int) -> int:
    """A process's share of the memory that it has: its own pages, and of shared ones its part."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"process {pid} has no PSS")


def rss_bytes(pid: int) -> int:
    """A process's resident size."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time of processes that live, and of the children that they have reaped."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += sum(map(int, fields[11:15]))
    return total / CLOCK_TICKS


def descendants(pid: int) -> list[int]:
    """The processes below one."""
    children = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return [*children, *(below for child in children for below in descendants(child))]
