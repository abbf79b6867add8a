"""Which runner gets a workload. Pure: a function of the runners' facts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RunnerFacts:
    """What placing needs to know of a runner."""

    name: str
    ready: bool
    """Connected, and its snapshot is complete."""
    workloads: int
    """On it now, and on their way to it."""
    max_workloads: int


class NoRunner(Exception):
    """None fits; the message counts the reasons as the scheduler words it."""


def choose(runners: Sequence[RunnerFacts]) -> str:
    """The least loaded runner that fits; of equals the first by name. Raises NoRunner."""
    if not runners:
        raise NoRunner("0/0 runners fit: the operator knows of no runner")
    refused: Counter[str] = Counter()
    fitting = []
    for runner in runners:
        if not runner.ready:
            refused["not ready"] += 1
        elif runner.workloads >= runner.max_workloads:
            refused["full"] += 1
        else:
            fitting.append(runner)
    if not fitting:
        reasons = ", ".join(
            f"{count} {'is' if count == 1 else 'are'} {reason}" for reason, count in sorted(refused.items())
        )
        raise NoRunner(f"0/{len(runners)} runners fit: {reasons}")
    return min(fitting, key=lambda runner: (runner.workloads / runner.max_workloads, runner.name)).name
