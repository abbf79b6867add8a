"""Sets of indexes as text, `0-3,7`, as a Job's `completedIndexes` has them."""

from __future__ import annotations

from collections.abc import Iterable

LAST = 1_000_000
"""No index is beyond this, whatever a status says."""


def parse(text: str) -> frozenset[int]:
    """The indexes of a text; what is no index there is passed over."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            found.update(range(int(first), min(int(last or first), LAST) + 1))
    return frozenset(found)


def compact(indexes: Iterable[int]) -> str:
    """The shortest text for some indexes: as long as there are gaps in them, however many they are."""
    ranges: list[tuple[int, int]] = []
    for index in sorted(indexes):
        if ranges and ranges[-1][1] == index - 1:
            ranges[-1] = (ranges[-1][0], index)
        else:
            ranges.append((index, index))
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
