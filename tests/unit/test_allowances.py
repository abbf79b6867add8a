"""The table of log allowances: what the supervisor writes others read, and can't change."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

import pytest

from wherry_runner.logs.allowances import SLOT_BYTES, Allowances


@pytest.fixture
def allowances() -> Iterator[Allowances]:
    table = Allowances(slots=4, default_bytes=1000)
    yield table
    table.close()


def seen(descriptor: int, slot: int) -> int:
    """A slot as an executor reads it."""
    with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as view:
        (value,) = struct.unpack_from("=Q", view, slot * SLOT_BYTES)
    return int(value)


def test_a_change_is_seen_by_who_has_the_descriptor(allowances: Allowances) -> None:
    slot = allowances.take()
    assert seen(allowances.descriptor, slot) == allowances[slot] == 1000
    allowances[slot] = 1 << 40
    assert seen(allowances.descriptor, slot) == 1 << 40
    assert seen(allowances.descriptor, 0) == 1000, "the slot of logs that have none"


def test_nobody_else_can_write_to_it(allowances: Allowances) -> None:
    with pytest.raises(OSError, match="not permitted"):
        os.pwrite(allowances.descriptor, b"x", 0)
    with pytest.raises(PermissionError):
        mmap.mmap(allowances.descriptor, 0)
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(allowances.descriptor, 1)
    assert not os.get_inheritable(allowances.descriptor)


def test_slots_are_given_once_and_again_when_they_came_back(allowances: Allowances) -> None:
    taken = [allowances.take() for _ in range(3)]
    assert taken == [1, 2, 3]
    with pytest.raises(OverflowError, match="3 log slots"):
        allowances.take()
    allowances[2] = 5
    allowances.give_back(2)
    assert allowances.take() == 2
    assert allowances[2] == 1000, "not what another container had"
