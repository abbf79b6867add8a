"""Which runner gets a workload."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry_operator.placement import NoRunner, RunnerFacts, choose


def runner(name: str, workloads: int = 0, *, ready: bool = True, most: int = 10) -> RunnerFacts:
    return RunnerFacts(name=name, ready=ready, workloads=workloads, max_workloads=most)


@pytest.mark.parametrize(
    ("runners", "expected"),
    [
        ([runner("b"), runner("a")], "a"),
        ([runner("a", 2), runner("b", 1)], "b"),
        ([runner("a", 2, most=100), runner("b", 1, most=10)], "a"),  # by share, not by number
        ([runner("a", ready=False), runner("b", 9)], "b"),
        ([runner("a", 10), runner("b", 9)], "b"),
        ([runner("a", most=0), runner("b", 9)], "b"),
    ],
)
def test_the_least_loaded_runner_that_fits_is_chosen(runners: list[RunnerFacts], expected: str) -> None:
    assert choose(runners) == expected


@pytest.mark.parametrize(
    ("runners", "message"),
    [
        ([], "0/0 runners fit: the operator knows of no runner"),
        ([runner("a", ready=False)], "0/1 runners fit: 1 is not ready"),
        ([runner("a", 10), runner("b", 11)], "0/2 runners fit: 2 are full"),
        (
            [runner("a", 10), runner("b", ready=False), runner("c", ready=False)],
            "0/3 runners fit: 1 is full, 2 are not ready",
        ),
    ],
)
def test_where_none_fits_the_reasons_are_counted(runners: list[RunnerFacts], message: str) -> None:
    with pytest.raises(NoRunner, match=f"^{message}$"):
        choose(runners)


FACTS = st.builds(runner, st.sampled_from("abcdef"), st.integers(0, 12), ready=st.booleans(), most=st.integers(0, 12))


@given(st.lists(FACTS, min_size=1, unique_by=lambda facts: facts.name), st.randoms())
def test_whoever_is_chosen_fits_and_the_order_of_the_runners_does_not_matter(
    runners: list[RunnerFacts], random: object
) -> None:
    fitting = {facts.name for facts in runners if facts.ready and facts.workloads < facts.max_workloads}
    try:
        name = choose(runners)
    except NoRunner:
        assert not fitting
        return
    assert name in fitting
    random.shuffle(runners)  # type: ignore[attr-defined]
    assert choose(runners) == name
