"""Which revisions of a WasmWorkload are remembered, for a way back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

DEFAULT_LIMIT = 10
"""Earlier revisions, as a Deployment's `revisionHistoryLimit`."""


@dataclass(frozen=True, order=True, slots=True)
class Remembered:
    """One revision that is written down."""

    number: int
    """The higher, the later it was in use."""
    revision: str
    name: str
    """Of the object that holds it, and its"""
    uid: str


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What is to be written down, and what to be deleted."""

    number: int | None = None
    """Under which the present revision is to be written down; None: it is, as the newest."""
    delete: tuple[Remembered, ...] = ()


def changes(known: Iterable[Remembered], revision: str, limit: int) -> Changes:
    """What makes this revision the newest one that is remembered, with at most `limit` earlier ones."""
    ordered = sorted(known)
    newest = ordered[-1] if ordered else None
    if newest is not None and newest.revision == revision:
        number, earlier = None, ordered[:-1]
    else:
        # One that came back is written down anew, under a higher number: a Deployment renumbers it too.
        number, earlier = (newest.number if newest else 0) + 1, ordered
    again = [item for item in earlier if item.revision == revision]
    others = [item for item in earlier if item.revision != revision]
    return Changes(number=number, delete=(*again, *others[: max(0, len(others) - limit)]))
