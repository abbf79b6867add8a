"""Since when instances have to leave their runners, for a taint of the node: so long may one serve on until another does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Set

from wherry_operator.clock import Clock
from wherry_operator.rollout.instances import Slot

REPLACED_WITHIN_SECONDS = 60.0
"""What takes its place has so long to be pulled, compiled and ready. Then the taint counts: who set it waits for a node that has
nothing left. As long as a silent runner has (design §3.7)."""


class Expulsions:
    """Of all objects; counted anew by an operator that has just begun."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since: defaultdict[str, dict[Slot, float]] = defaultdict(dict)
        """By the object's UID."""

    def seconds_left(self, uid: str, slot: Slot) -> float:
        """For how long an instance that has to leave may wait for the one that takes its place."""
        now = self._clock.monotonic()
        return self._since[uid].setdefault(slot, now) + REPLACED_WITHIN_SECONDS - now

    def keep(self, uid: str, slots: Set[Slot]) -> None:
        """Forget all but these of an object."""
        since = self._since.pop(uid, {})
        if kept := {slot: at for slot, at in since.items() if slot in slots}:
            self._since[uid] = kept

    def gone(self, uid: str) -> None:
        """The object exists no more."""
        self._since.pop(uid, None)
