"""Pure computing: the code is the same compiler's, so the time should be."""

from __future__ import annotations

from bench import guests
from bench.scene import Scene
from bench.table import Report
from bench.wasmtime_cli import Run
from tests.support import wat
from wherry_runner import protocol

ROUNDS = 9


async def measure(scene: Scene, report: Report) -> None:
    """The best of some rounds each, alternating: what disturbs only ever adds."""
    module = wat.binary(guests.COMPUTE)
    compiled = scene.compiled("compute", module)
    ours, peer = [], []
    async with scene.runner() as (_, api):
        for number in range(ROUNDS):
            await api.put(f"compute-{number}", module, policy="Never")
            status = await api.ended(f"compute-{number}")
            state = status.containers[0].state
            assert isinstance(state, protocol.Terminated) and state.exit_code == 0, state
            assert state.started_at is not None and state.finished_at is not None
            ours.append((state.finished_at - state.started_at).total_seconds())
            peer.append(Run(compiled).end())
    # Speed, not time: more is better.
    report.ratio("computing, speed", 1 / min(ours), 1 / min(peer), "/s", at_least=0.98)
