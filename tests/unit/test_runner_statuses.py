"""What runners said, as it is kept: like any mapping, and small."""

from __future__ import annotations

import sys
from datetime import UTC, datetime

import pytest

from wherry_operator.runners.statuses import AT_HAND, Statuses
from wherry_runner.protocol import ContainerStatus, Owner, Phase, Running, WorkloadStatus

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def status(workload_id: str = "w", *, sequence: int = 1, owner: str = "u-1") -> WorkloadStatus:
    return WorkloadStatus(
        id=workload_id,
        owner=Owner(kind="Pod", namespace="boats", name="hello", uid=owner),
        phase=Phase.ACTIVE,
        epoch=3,
        sequence=sequence,
        template_hash="t",
        accepted_at=AT,
        containers=(ContainerStatus(name="main", state=Running(started_at=AT), ready=True, image="a"),),
    )


def test_they_are_what_was_put_in() -> None:
    kept = Statuses()
    kept["a"], kept["b"] = status("a"), status("b")
    assert kept == {"a": status("a"), "b": status("b")}
    assert ("a" in kept, "c" in kept, len(kept), list(kept)) == (True, False, 2, ["a", "b"])
    assert kept.get("c") is None
    assert kept.pop("a") == status("a")
    del kept["b"]
    assert kept == {}
    with pytest.raises(KeyError):
        kept["b"]


def test_only_what_differs_is_news() -> None:
    kept = Statuses()
    assert [kept.take("w", each) for each in (status(), status(), status(sequence=2))] == [True, False, True]
    assert kept["w"].sequence == 2


def test_owners_are_known_without_a_look_at_the_statuses_and_one_for_all_words() -> None:
    kept = Statuses()
    kept.take("w", status())
    ((_, first),) = kept.owners()
    kept.take("w", status(sequence=2))
    assert [(workload_id, owner is first) for workload_id, owner in kept.owners()] == [("w", True)]
    kept.take("w", status(owner="u-2"))
    assert [owner.uid for _, owner in kept.owners()] == ["u-2"]


def test_what_differs_between_two_snapshots() -> None:
    before, after = Statuses(), Statuses()
    for name in ("same", "changed", "gone"):
        before[name] = status(name)
    after["same"], after["changed"], after["new"] = status("same"), status("changed", sequence=2), status("new")
    assert set(before.differing(after)) == {"changed", "gone", "new"}


def test_each_is_one_piece_of_some_hundred_bytes() -> None:
    kept = Statuses()
    for number in range(2 * AT_HAND):
        kept[f"w-{number}"] = status(f"w-{number}")
    packed = [sys.getsizeof(value) for value, _ in kept._kept.values()]
    assert max(packed) < 1_000
    assert kept["w-0"] is kept["w-0"], "what is looked at again and again is made once"
