"""Remembers which modules can't be run, so that what starts them again and again doesn't compile them again and again."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

MAX_REFUSALS = 1000
"""What is refused for long is rare; beyond this the longest unasked are forgotten, and compiled once more when asked for."""

LIMIT_SECONDS = 300.0
"""For so long a limit that was hit is believed to be hit again: it depends on the machine's other work too."""


@dataclass(frozen=True)
class _Refusal:
    text: str
    expires: float


class Refusals:
    """Refusals by key, for this process's life."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._refusals: OrderedDict[str, _Refusal] = OrderedDict()

    def get(self, key: str) -> str | None:
        """Why this was refused, if it was and the refusal still holds."""
        refusal = self._refusals.get(key)
        if refusal is None:
            return None
        if self._clock() >= refusal.expires:
            del self._refusals[key]
            return None
        self._refusals.move_to_end(key)
        return refusal.text

    def remember(self, key: str, text: str, *, seconds: float = float("inf")) -> None:
        """Refuse it from now on, for so long."""
        self._refusals[key] = _Refusal(text, self._clock() + seconds)
        self._refusals.move_to_end(key)
        if len(self._refusals) > MAX_REFUSALS:
            self._refusals.popitem(last=False)
