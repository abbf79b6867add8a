"""The back-off against the kubelet's: a port of client-go's `flowcontrol.Backoff` is the judge."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry_runner.lives.backoff import BackOff, BackOffSettings

SETTINGS = BackOffSettings(initial=10.0, maximum=300.0)


def delays(*, ends_after: float, restarts: int) -> list[float]:
    """How long each restart of a container waits that always ends so many seconds after it began."""
    back_off, now, found = BackOff(SETTINGS), 0.0, []
    for _ in range(restarts):
        failed_at = now + ends_after
        found.append(back_off.remaining(failed_at, failed_at))
        now = failed_at + found[-1]
        back_off.advance(failed_at, now)
    return found


def test_the_first_restart_is_immediate_then_10_s_doubling_to_5_min() -> None:
    assert delays(ends_after=1, restarts=9) == [0, 10, 20, 40, 80, 160, 300, 300, 300]


@pytest.mark.parametrize(
    ("ends_after", "expected"),
    [
        (600.0, [0, 10, 20, 40]),  # exactly twice the maximum is not yet "held"
        (600.1, [0, 0, 0, 0]),
    ],
)
def test_what_held_for_more_than_twice_the_maximum_is_forgiven(ends_after: float, expected: list[float]) -> None:
    assert delays(ends_after=ends_after, restarts=4) == expected


def test_the_wait_counts_from_the_failure_not_from_when_it_is_asked_about() -> None:
    back_off = BackOff(SETTINGS)
    back_off.advance(0, 0)
    assert [back_off.remaining(5, now) for now in (5, 8, 15, 99)] == [10, 7, 0, 0]


def test_a_failed_pull_waits_from_its_first_failure() -> None:
    back_off = BackOff(SETTINGS)
    back_off.advance(0, 0)
    assert back_off.remaining(0, 0) == 10


@dataclass
class Client:
    """client-go: util/flowcontrol/backoff.go, one key."""

    delay: float = 0.0
    updated: float | None = None

    def next(self, event: float, now: float) -> None:
        if self.updated is None or event - self.updated > 2 * SETTINGS.maximum:
            self.delay = SETTINGS.initial
        else:
            self.delay = min(2 * self.delay, SETTINGS.maximum)
        self.updated = now

    def blocked(self, event: float, now: float) -> bool:
        if self.updated is None or event - self.updated > 2 * SETTINGS.maximum:
            return False
        return now - event < self.delay


@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 400)), max_size=20))
def test_it_allows_and_forbids_exactly_when_client_go_does(lives: list[tuple[int, int]]) -> None:
    ours, theirs, now = BackOff(SETTINGS), Client(), 0
    for ran, waited in lives:
        failed_at = now + ran
        now = failed_at + waited
        assert (ours.remaining(failed_at, now) > 0) == theirs.blocked(failed_at, now)
        if not theirs.blocked(failed_at, now):
            ours.advance(failed_at, now)
            theirs.next(failed_at, now)
            assert ours.delay == theirs.delay
