"""What goes when a store is full: what was used longest ago, and nothing that is needed. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Item:
    """A module or one of its compilations."""

    name: str
    digest: str
    """Of the module."""
    compiled: bool
    bytes: int
    used_at: float
    """Seconds, by any clock."""


def victims(
    items: Iterable[Item], *, in_use: Collection[str], used_before: float, opened_at: float, bytes: int, count: int
) -> list[Item] | None:
    """What to remove so that at least `bytes` and `count` items are gone; None if so much can't go.

    Kept: what was used at `used_before` or later; the modules in `in_use` (digests) with what was compiled of them and used since
    `opened_at`. (Code of another engine's, of before an upgrade, is of no use to what runs now.) Compiled code goes before
    its module, and with it.
    """
    by_digest: dict[str, list[Item]] = {}
    ordered = sorted(items, key=lambda item: (item.used_at, not item.compiled))
    for item in ordered:
        by_digest.setdefault(item.digest, []).append(item)

    def is_kept(item: Item) -> bool:
        needed = item.digest in in_use and (not item.compiled or item.used_at >= opened_at)
        return needed or item.used_at >= used_before

    gone: dict[str, Item] = {}
    freed = 0
    for item in ordered:
        if freed >= bytes and len(gone) >= count:
            break
        parts = [item] if item.compiled else by_digest[item.digest]
        if item.name in gone or any(map(is_kept, parts)):
            continue
        for part in parts:
            if part.name not in gone:
                gone[part.name] = part
                freed += part.bytes
    return list(gone.values()) if freed >= bytes and len(gone) >= count else None
