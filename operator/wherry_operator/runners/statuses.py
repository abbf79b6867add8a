"""What a runner said last of each of its workloads, kept small.

A status as pydantic objects takes two thousand bytes in thirty pieces, and as squeezed JSON four hundred in one: it is looked
at when something happens to its workload, and a thousand others are not.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from functools import lru_cache

from wherry_operator.packing import squeezed, unsqueezed
from wherry_runner.protocol import Owner, WorkloadStatus

AT_HAND = 64
"""Statuses that were looked at just now, and will be again: what is reconciled at once, and some more."""


class Statuses(MutableMapping[str, WorkloadStatus]):
    """By workload id. What is given back may be shared: it is immutable."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: dict[str, tuple[bytes, Owner]] = {}

    def __getitem__(self, workload_id: str) -> WorkloadStatus:
        return _unpacked(self._kept[workload_id][0])

    def __setitem__(self, workload_id: str, status: WorkloadStatus) -> None:
        self.take(workload_id, status)

    def __delitem__(self, workload_id: str) -> None:
        del self._kept[workload_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._kept)

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, workload_id: object) -> bool:
        return workload_id in self._kept

    def take(self, workload_id: str, status: WorkloadStatus) -> bool:
        """Keep what was said of a workload; whether that is news."""
        packed, before = squeezed(status.to_json()), self._kept.get(workload_id)
        if before is not None and before[0] == packed:
            return False
        owner = before[1] if before is not None and before[1] == status.owner else status.owner
        self._kept[workload_id] = packed, owner
        return True

    def owners(self) -> Iterator[tuple[str, Owner]]:
        """Each workload's id, and whose it is."""
        return ((workload_id, owner) for workload_id, (_, owner) in self._kept.items())

    def differing(self, other: Statuses) -> Iterator[str]:
        """The ids of what only one of both has, or each in another state."""
        for workload_id in self._kept.keys() | other._kept.keys():
            mine, theirs = self._kept.get(workload_id), other._kept.get(workload_id)
            if mine is None or theirs is None or mine[0] != theirs[0]:
                yield workload_id


@lru_cache(AT_HAND)
def _unpacked(packed: bytes) -> WorkloadStatus:
    return WorkloadStatus.model_validate_json(unsqueezed(packed))
