"""Several logs as one: their order, and what of them is held."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry_operator.aggregated.merge import MAX_HELD_BYTES, MAX_PIECE_BYTES, SPLIT_PIECES, TAKEN_BYTES, Merge, Shown


def at(second: int) -> bytes:
    return b"2026-01-02T03:04:%02d.%09dZ" % (second // 1000 % 60, second)


def line(moment: int, text: bytes) -> bytes:
    return at(moment) + b" " + text + b"\n"


def shown(
    merge: Merge, now: float = 0.0, *, logs: int = 2, timestamps: bool = False, limit: int | None = None
) -> bytes:
    prefixes = [b"[%d] " % number for number in range(logs)]
    return Shown(prefixes, timestamps=timestamps, limit_bytes=limit).text(merge.take(now))


# --- order ------------------------------------------------------------------------------------------------------------

texts = st.binary(max_size=40).map(lambda raw: raw.replace(b"\n", b"~"))
logs_of_lines = st.lists(
    st.lists(st.tuples(st.integers(0, 999), texts), max_size=8).map(sorted), min_size=1, max_size=5
)


@settings(deadline=None)
@given(logs_of_lines, st.data())
def test_logs_with_an_end_are_one_log_in_the_order_of_time(
    logs: list[list[tuple[int, bytes]]], data: st.DataObject
) -> None:
    merge = Merge(len(logs), hold_seconds=None)
    rests = [b"".join(line(moment, text) for moment, text in lines) for lines in logs]
    taken = []
    while not merge.done:
        open_ones = [number for number, rest in enumerate(rests) if rest is not None]
        if open_ones:
            number = data.draw(st.sampled_from(open_ones))
            size = data.draw(st.integers(1, 64))
            merge.feed(number, rests[number][:size], 0.0)
            rests[number] = rests[number][size:]
            if not rests[number]:
                merge.end(number, 0.0)
                rests[number] = None  # type: ignore[call-overload]
        taken += merge.take(0.0)
    times = [piece.time for piece in taken]
    assert times == sorted(times)
    for number, lines in enumerate(logs):
        assert [(piece.time, piece.content) for piece in taken if piece.log == number] == [
            (at(moment), text + b"\n") for moment, text in lines
        ]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 999), st.floats(0, 1)), max_size=30))
def test_followed_logs_lose_nothing_and_each_stays_in_its_order(steps: list[tuple[int, int, float]]) -> None:
    merge = Merge(3, hold_seconds=0.2)
    fed: list[list[bytes]] = [[], [], []]
    taken, now = [], 0.0
    for index, (number, moment, later) in enumerate(steps):
        now += later
        fed[number].append(b"%d\n" % index)
        merge.feed(number, line(moment, b"%d" % index), now)
        taken += merge.take(now)
    # Nobody ends, and nobody has to: what is held comes out after the hold.
    assert (wait := merge.wait_seconds(now)) is None or wait <= 0.2 + 1e-9
    taken += merge.take(now + 0.3)
    assert merge.wait_seconds(now + 0.3) is None
    assert [[piece.content for piece in taken if piece.log == number] for number in range(3)] == fed


def test_a_line_waits_for_logs_that_are_silent_and_not_for_ever() -> None:
    merge = Merge(2, hold_seconds=0.2)
    merge.feed(0, line(5, b"later"), 10.0)
    assert merge.take(10.1) == [] and merge.wait_seconds(10.1) == pytest.approx(0.1)
    merge.feed(1, line(3, b"sooner"), 10.15)
    assert shown(merge, 10.15) == b"[1] sooner\n"
    assert merge.take(10.19) == []
    assert shown(merge, 10.21) == b"[0] later\n"


def test_a_clock_that_is_behind_holds_up_nobody() -> None:
    merge = Merge(2, hold_seconds=0.2)
    merge.feed(0, line(900, b"now"), 0.0)
    for tenth in range(1, 5):
        merge.feed(1, line(tenth, b"past"), tenth / 10)
    assert shown(merge, 0.4) == b"[1] past\n" * 4 + b"[0] now\n"


# --- lines ------------------------------------------------------------------------------------------------------------


def test_a_long_line_is_taken_in_pieces_and_shown_whole() -> None:
    long = b"x" * (3 * MAX_PIECE_BYTES)
    merge = Merge(1, hold_seconds=None)
    merge.feed(0, line(1, long), 0.0)
    merge.end(0, 0.0)
    assert shown(merge, logs=1, timestamps=True) == b"[0] " + at(1) + b" " + long + b"\n"


def test_a_line_without_an_end_is_ended_where_another_follows() -> None:
    merge = Merge(2, hold_seconds=None)
    merge.feed(0, line(1, b"asks")[:-1], 0.0)
    merge.feed(1, line(2, b"says"), 0.0)
    for number in (0, 1):
        merge.end(number, 0.0)
    assert shown(merge) == b"[0] asks\n[1] says\n"
    alone = Merge(1, hold_seconds=None)
    alone.feed(0, line(1, b"asks")[:-1], 0.0)
    alone.end(0, 0.0)
    assert shown(alone, logs=1) == b"[0] asks"


def test_a_line_whose_beginning_is_not_there_counts_as_of_the_time_before() -> None:
    merge = Merge(1, hold_seconds=None)
    merge.feed(0, b"the rest of one\n" + line(2, b"whole"), 0.0)
    merge.end(0, 0.0)
    assert shown(merge, logs=1) == b"[0] the rest of one\n[0] whole\n"


def test_the_limit_is_of_what_is_shown() -> None:
    merge = Merge(1, hold_seconds=None)
    merge.feed(0, line(1, b"a line"), 0.0)
    merge.end(0, 0.0)
    output = Shown([b""], timestamps=False, limit_bytes=3)
    assert output.text(merge.take(0.0)) == b"a l" and output.full


# --- memory -----------------------------------------------------------------------------------------------------------


def test_a_log_that_waits_for_another_is_not_read_on() -> None:
    merge = Merge(2, hold_seconds=None)
    fed = 0
    while not merge.full(0):
        merge.feed(0, line(1, b"y" * 1000), 0.0)
        fed += 1
    assert fed * 1001 <= MAX_HELD_BYTES + 2 * 1001
    merge.end(1, 0.0)
    assert merge.take(0.0) and not merge.full(0)


def test_short_lines_are_not_all_made_objects_at_once() -> None:
    merge = Merge(2, hold_seconds=None)
    merge.feed(0, line(1, b"") * 2000, 0.0)
    assert merge.full(0) is False and len(merge._logs[0].held) == SPLIT_PIECES
    for number in (0, 1):
        merge.end(number, 0.0)
    assert shown(merge) == b"[0] \n" * 2000 and merge.done


def test_nothing_is_kept_of_what_was_taken() -> None:
    merge = Merge(1, hold_seconds=0.2)
    for moment in range(100):
        merge.feed(0, line(moment, b"talks"), float(moment))
        assert len(merge.take(float(moment))) == 1
    assert not merge._arrivals and not merge._heads


def test_no_more_is_taken_at_once_than_others_can_wait_for() -> None:
    merge = Merge(1, hold_seconds=None)
    merge.feed(0, line(1, b"y" * 1000) * 200, 0.0)
    merge.end(0, 0.0)
    counts = []
    while not merge.done:
        counts.append(len(merge.take(0.0)))
    assert sum(counts) == 200 and max(counts) <= TAKEN_BYTES // 1001 + 1


def test_a_log_of_which_no_line_is_whole_is_never_full() -> None:
    merge = Merge(2, hold_seconds=None)
    merge.feed(0, b"z" * (MAX_PIECE_BYTES - 1), 0.0)
    assert not merge.full(0) and merge.take(0.0) == []
