"""A guest that writes as fast as it can, and nothing lost."""

from __future__ import annotations

from bench import guests
from bench.scene import Scene, log_of
from bench.table import Report
from bench.wasmtime_cli import Run
from tests.support import wat
from wherry_runner import protocol

CASES = ((4096, 100_000, 100), (100, 1_000_000, 20))
"""Length of a line, how many, MB/s promised."""


async def measure(scene: Scene, report: Report) -> None:
    """Each case once after a round that warms the disk's cache; beside it the peer's, which writes to a plain file."""
    for length, count, promised in CASES:
        module = wat.binary(guests.lines(length, count))
        megabytes = length * count / 1e6
        # Large enough for all of it: what a rotation drops could not be counted.
        async with scene.runner("--log-file-bytes", str(1 << 30), "--log-budget-bytes", str(8 << 30)) as (process, api):
            for number in range(2):
                workload = f"log-{length}-{number}"
                await api.put(workload, module, policy="Never")
                status = await api.ended(workload)
                state = status.containers[0].state
                assert isinstance(state, protocol.Terminated) and state.exit_code == 0, state
                assert state.started_at is not None and state.finished_at is not None
                took = (state.finished_at - state.started_at).total_seconds()
                with open(log_of(process, workload), "rb") as log:
                    written = sum(1 for _ in log)
                log_of(process, workload).unlink()
            report.figure(f"log to disk, lines of {length} bytes", megabytes / took, "MB/s", at_least=promised)
            report.figure(f"of {count} lines lost", count - written, "", at_most=0)
        with open(scene.folder / "plain", "wb") as plain:
            peer = Run(scene.compiled(f"lines-{length}", module), output=plain.fileno()).end()
        (scene.folder / "plain").unlink()
        report.figure(f"the same by `wasmtime run` into a plain file, {length} bytes", megabytes / peer, "MB/s")
