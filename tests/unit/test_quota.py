"""What goes when a store is full."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from wherry_runner.modules.quota import Item, victims

NOW = 1000.0


def blob(digest: str, used_at: float, bytes: int = 10) -> Item:
    return Item(name=digest, digest=digest, compiled=False, bytes=bytes, used_at=used_at)


def code(digest: str, used_at: float, bytes: int = 30, name: str = "") -> Item:
    return Item(name=name or f"code-{digest}", digest=digest, compiled=True, bytes=bytes, used_at=used_at)


def gone(
    *items: Item, bytes: int = 1, count: int = 0, in_use: tuple[str, ...] = (), opened_at: float = 0.0
) -> list[str] | None:
    found = victims(items, in_use=in_use, used_before=NOW, opened_at=opened_at, bytes=bytes, count=count)
    return None if found is None else [item.name for item in found]


def test_what_was_used_longest_ago_goes_first_and_no_more_than_is_needed() -> None:
    items = [blob("b", 2), blob("a", 1), blob("c", 3)]
    assert gone(*items, bytes=10) == ["a"]
    assert gone(*items, bytes=11) == ["a", "b"]
    assert gone(*items, bytes=0, count=2) == ["a", "b"]
    assert gone(*items, bytes=0) == []


def test_code_goes_before_its_module_and_with_it() -> None:
    assert gone(blob("a", 5), code("a", 5), bytes=20) == ["code-a"]
    assert gone(blob("a", 5), code("a", 5), bytes=31) == ["code-a", "a"]
    assert set(gone(blob("a", 1), code("a", 5), blob("b", 2), bytes=5) or []) == {"a", "code-a"}


def test_what_is_needed_stays() -> None:
    assert gone(blob("a", 1), blob("b", 2), in_use=("a",)) == ["b"]
    assert gone(blob("a", 1), code("a", 1), in_use=("a",)) is None
    assert gone(blob("a", NOW)) is None, "used just now"
    assert gone(blob("a", 1), code("a", NOW), blob("b", 2)) == ["b"], "its code was used just now"


def test_code_of_another_engine_doesn_t_stay_with_a_module_that_runs() -> None:
    items = [blob("a", 900), code("a", 900), code("a", 100, name="of-before-the-upgrade")]
    assert gone(*items, in_use=("a",), opened_at=500) == ["of-before-the-upgrade"]
    assert gone(*items, in_use=("a",), opened_at=500, bytes=31) is None


def test_nothing_goes_in_vain() -> None:
    assert gone(blob("a", 1), blob("b", 2), bytes=21) is None
    assert gone(bytes=1) is None


_ITEMS = st.lists(
    st.builds(
        lambda digest, compiled, bytes, used_at, number: Item(
            name=f"{digest}{number if compiled else ''}", digest=digest, compiled=compiled, bytes=bytes, used_at=used_at
        ),
        st.sampled_from("abcd"),
        st.booleans(),
        st.integers(0, 50),
        st.sampled_from([1.0, 2.0, 3.0, NOW, NOW + 1]),
        st.integers(0, 3),
    ),
    unique_by=lambda item: item.name,
)


@given(_ITEMS, st.sets(st.sampled_from("abcd")), st.integers(0, 200), st.integers(0, 5))
def test_whatever_is_there(items: list[Item], in_use: set[str], bytes: int, count: int) -> None:
    found = victims(items, in_use=in_use, used_before=NOW, opened_at=0.0, bytes=bytes, count=count)
    free = [item for item in items if item.digest not in in_use and item.used_at < NOW]
    if found is None:
        kept_with_code = {item.digest for item in items if item.compiled and item.used_at >= NOW}
        could = [item for item in free if item.compiled or item.digest not in kept_with_code]
        assert sum(item.bytes for item in could) < bytes or len(could) < count
        return
    assert sum(item.bytes for item in found) >= bytes
    assert len(found) >= count
    assert {item.name for item in found} <= {item.name for item in free}
    blobs = {item.digest for item in found if not item.compiled}
    assert all(item in found for item in items if item.compiled and item.digest in blobs), "code dies with its module"
