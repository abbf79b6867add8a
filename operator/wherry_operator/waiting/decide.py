"""What a waiting replica does after a look at the Lease: nothing, take it, or become a whole operator. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wherry_operator.lease import DUE_SECONDS, Reachable, Sight, reachable_of
from wherry_operator.settings import LEASE_DURATION_SECONDS

PASSING = frozenset({408, 429})
"""Statuses, beside those from 500 on, after which the same call may succeed."""


@dataclass(frozen=True)
class Stay:
    """Another leads, or nothing is known; look again in a while."""

    looked: bool = False
    """Whether the Lease was read now."""
    leader: Reachable | None = None
    """Where its holder is reached, if it says so."""


@dataclass(frozen=True)
class Claim:
    """Nobody holds the Lease: write it, so that of those who wait only one becomes a whole operator."""

    lease: Mapping[str, Any] | None
    """As it was read; None: there is none."""


@dataclass(frozen=True)
class Grow:
    """Become a whole operator."""

    why: str
    leads: bool = False
    """Whether it is to lead soon."""


Decision = Stay | Claim | Grow


def after_look(status: int, body: Any, sight: Sight, identity: str, *, moment: float, since: float) -> Decision:
    """From the answer to a GET of the Lease.

    :param status: HTTP's; 0 where there was no answer.
    :param sight: what was seen before; it takes note of this look.
    :param moment: now; `since`: when this replica began to wait; both by the monotonic clock.
    """
    if status == 200:
        if not isinstance(body, dict) or not isinstance(body.get("spec"), dict):
            return Grow("the Lease is none that can be read here")
        spec = body["spec"]
        sight.observe(spec, moment)
        if sight.holder == identity:
            return Grow("the Lease is ours", leads=True)
        if not sight.holder:
            return Claim(body)
        return _overdue(sight, moment, since) or Stay(looked=True, leader=reachable_of(body))
    if status == 404:
        # Deleted under its holder, who may not know yet: what was seen of it still has to run out.
        return _overdue(sight, moment, since) or Stay() if sight.holder else Claim(None)
    if status == 0 or status >= 500 or status in PASSING:
        return _overdue(sight, moment, since) or Stay()
    return Grow(f"the API server answers {status} when asked for the Lease")


def after_claim(status: int, body: Any, sight: Sight, *, moment: float) -> Decision:
    """From the answer to writing it."""
    if status in (200, 201) and isinstance(body, dict) and isinstance(body.get("spec"), dict):
        sight.observe(body["spec"], moment)
        return Grow("nobody held the Lease", leads=True)
    if status == 409 or status == 0 or status >= 500 or status in PASSING:
        return Stay()  # another was faster, or the next look tells
    return Grow(f"the API server answers {status} when the Lease is taken")


def is_claim(body: Any, identity: str, epoch: int) -> bool:
    """Whether the Lease is still as it was claimed: who leads by it has raised the epoch."""
    spec = body.get("spec") if isinstance(body, dict) else None
    return isinstance(spec, dict) and (spec.get("holderIdentity"), spec.get("leaseTransitions")) == (identity, epoch)


def after_question(status: int, what: str, fine: frozenset[int]) -> Decision | None:
    """From the answer to a question of which only a whole operator can deal with any answer but the usual; None: it is that."""
    if status in fine:
        return None
    if status == 0 or status >= 500 or status in PASSING:
        return Stay()
    return Grow(f"the API server answers {status} when asked for {what}")


def _overdue(sight: Sight, moment: float, since: float) -> Grow | None:
    if sight.due(moment):
        return Grow(f"{sight.holder} has not renewed the Lease", leads=True)
    if not sight.seen and moment - since > LEASE_DURATION_SECONDS - DUE_SECONDS:
        return Grow("the Lease can't be read")
    return None
