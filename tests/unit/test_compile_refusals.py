"""What is remembered of modules that can't be run, and how many compilers run at once."""

from __future__ import annotations

import pytest

from wherry_runner.modules.compile import at_once
from wherry_runner.modules.refusals import MAX_REFUSALS, Refusals

GIB = 1 << 30


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_refusal_lasts_and_a_limit_is_forgotten() -> None:
    clock = Clock()
    refusals = Refusals(clock=clock)
    refusals.remember("library", "is a library")
    refusals.remember("monster", "needs more", seconds=300)
    clock.now = 299.9
    assert (refusals.get("library"), refusals.get("monster")) == ("is a library", "needs more")
    clock.now = 300.0
    assert refusals.get("monster") is None
    clock.now = 1e9
    assert refusals.get("library") == "is a library"
    assert refusals.get("unheard of") is None


def test_what_nobody_asked_for_longest_is_forgotten_first() -> None:
    refusals = Refusals()
    for index in range(MAX_REFUSALS):
        refusals.remember(str(index), "no")
    assert refusals.get("0") == "no"
    refusals.remember("one more", "no")
    assert (refusals.get("0"), refusals.get("1"), refusals.get("2")) == ("no", None, "no")


@pytest.mark.parametrize(
    ("cores", "budget", "expected"),
    [(2, 64 * GIB, 2), (8, 5 * GIB, 2), (8, 16 * GIB, 8), (4, GIB, 1), (4, 0, 1), (1, 64 * GIB, 1)],
)
def test_as_many_compilers_as_memory_and_cores_allow(cores: int, budget: int, expected: int) -> None:
    assert at_once(cores=cores, budget_bytes=budget, memory_bytes=2 * GIB) == expected
