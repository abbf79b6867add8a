"""Container logs: written as containerd writes them, read as a kubelet reads them."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry_runner.logs import records as logs
from wherry_runner.logs.records import LogWriter, Record
from wherry_runner.protocol import LogOptions

SECOND = 1_000_000_000
NOON = 1_767_268_800 * SECOND  # 2026-01-01T12:00:00Z


def clock() -> Callable[[], int]:
    """One second later at each look."""
    now = NOON - SECOND

    def look() -> int:
        nonlocal now
        now += SECOND
        return now

    return look


def write(path: Path, *writes: tuple[str, bytes], **settings: Any) -> None:
    writer = LogWriter(path, clock_ns=clock(), **settings)
    for stream, data in writes:
        writer.write(stream.encode(), data)
        writer.flush()
    writer.close()


def show(path: Path, **options: Any) -> bytes:
    async def whole() -> bytes:
        pieces = [piece async for piece in logs.read(path, LogOptions(**options), ended=lambda: True)]
        return b"".join(pieces)

    return asyncio.run(whole())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "0.log"


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("writes", "expected"),
    [
        ([("stdout", b"a\nb\n")], ["00 stdout F a", "00 stdout F b"]),
        ([("stdout", b"a"), ("stderr", b"e\n"), ("stdout", b"b\n")], ["01 stderr F e", "02 stdout F ab"]),
        ([("stdout", b"no end")], ["01 stdout P no end"]),
        ([("stdout", b"\n\n")], ["00 stdout F ", "00 stdout F "]),
        ([("stdout", b"x" * 16384 + b"\n")], ["00 stdout F " + "x" * 16384]),
        ([("stdout", b"x" * 16385 + b"\n")], ["00 stdout P " + "x" * 16384, "00 stdout F x"]),
        ([("stdout", b"x" * 40000)], ["00 stdout P " + "x" * 16384] * 2 + ["01 stdout P " + "x" * 7232]),
        ([("stderr", b"\xff\xfe\n")], ["00 stderr F \xff\xfe"]),
    ],
)
def test_records(path: Path, writes: list[tuple[str, bytes]], expected: list[str]) -> None:
    write(path, *writes)
    lines = path.read_bytes().decode("latin-1").removesuffix("\n").split("\n")
    assert lines == [f"2026-01-01T12:00:{line[:2]}.000000000Z{line[2:]}" for line in expected]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["stdout", "stderr"]),
            st.one_of(st.binary(max_size=50), st.sampled_from([b"\n", b"a" * 16384, b"b" * 40000])),
        ),
        max_size=8,
    )
)
def test_what_was_written_comes_out_byte_for_byte(writes: list[tuple[str, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "0.log"
        write(path, *writes)
        for stream in ("stdout", "stderr"):
            written = b"".join(data for name, data in writes if name == stream)
            assert show(path, stream=stream.capitalize()) == written


def test_a_log_is_rotated_and_one_older_file_kept(path: Path) -> None:
    write(path, *[("stdout", b"line %d\n" % n) for n in range(100)], max_bytes=lambda: 1000)
    assert path.stat().st_size <= 1000
    older = show(logs.rotated(path))
    assert (older + show(path)).endswith(b"line 98\nline 99\n")
    assert sorted(p.name for p in path.parent.iterdir()) == ["0.log", "0.log.1"]


def test_a_batch_larger_than_a_file_is_divided(path: Path) -> None:
    allowed = 1000
    writer = LogWriter(path, max_bytes=lambda: allowed)
    writer.write(b"stdout", b"".join(b"line %d\n" % n for n in range(100)))
    writer.flush()
    assert (show(logs.rotated(path)) + show(path)).endswith(b"line 98\nline 99\n")
    assert max(path.stat().st_size, logs.rotated(path).stat().st_size) <= 1000
    allowed = 200
    for n in range(100, 110):
        writer.write(b"stdout", b"line %d\n" % n)
        writer.flush()
    writer.close()
    assert max(path.stat().st_size, logs.rotated(path).stat().st_size) <= 200, "the allowance has become less"
    assert show(path).endswith(b"line 109\n")


def test_a_full_disk_makes_a_gap_and_no_error(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match="symbolic"):
        LogWriter(path)  # a log is never a link that somebody laid
    path.unlink()
    writer = LogWriter(path)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, writer._descriptor)
    os.close(full)
    writer.write(b"stdout", b"lost\n")
    writer.flush()
    writer.write(b"stdout", b"lost too\n")
    writer.close()
    assert len(caplog.records) == 1
    assert "has a gap" in caplog.text


# --- reading ----------------------------------------------------------------------------------------------------------

LINES = [("stdout", b"zero\n"), ("stderr", b"one\n"), ("stdout", b"two\n"), ("stdout", b"three")]
STAMPS = [f"2026-01-01T12:00:0{n}.000000000Z ".encode() for n in range(6)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, b"zero\none\ntwo\nthree"),
        ({"tail_lines": 0}, b""),
        ({"tail_lines": 2}, b"two\nthree"),
        ({"tail_lines": 99}, b"zero\none\ntwo\nthree"),
        ({"stream": "Stderr"}, b"one\n"),
        ({"since_time": datetime.fromtimestamp(NOON // SECOND + 1, UTC)}, b"one\ntwo\nthree"),
        ({"since_time": datetime.fromtimestamp(NOON // SECOND + 1, UTC) + timedelta(microseconds=1)}, b"two\nthree"),
        ({"since_seconds": 1}, b""),
        ({"since_seconds": 2**70, "tail_lines": 2**70, "limit_bytes": 2**70}, b"zero\none\ntwo\nthree"),
        ({"timestamps": True, "tail_lines": 3}, STAMPS[1] + b"one\n" + STAMPS[2] + b"two\n" + STAMPS[4] + b"three"),
        ({"limit_bytes": 7}, b"zero\non"),
        ({"limit_bytes": 5}, b"zero\n"),
        ({"limit_bytes": 35, "timestamps": True}, STAMPS[0] + b"zero"),
        # The tail is taken first: its one record is older than `since`.
        ({"tail_lines": 3, "since_time": datetime.fromtimestamp(NOON // SECOND + 2, UTC)}, b"two\nthree"),
        ({"follow": True, "tail_lines": 1}, b"three"),
    ],
)
def test_options(path: Path, options: dict[str, Any], expected: bytes) -> None:
    write(path, *LINES)
    assert show(path, **options) == expected


def test_timestamps_stand_only_where_a_line_begins(path: Path) -> None:
    write(path, ("stdout", b"x" * 16385 + b"\nnext\n"))
    assert show(path, timestamps=True) == STAMPS[0] + b"x" * 16385 + b"\n" + STAMPS[0] + b"next\n"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"x",
        b"2026-01-01T12:00:00Z stdout F",
        b"2026-01-01T12:00:00Z stdin F x",
        b"noon stdout F x",
        b"2026-13-01T12:00:00Z stdout F x",
    ],
)
def test_damaged_records_are_skipped(path: Path, line: bytes) -> None:
    path.write_bytes(b"2026-01-01T12:00:00Z stdout F a\n" + line + b"\n2026-01-01T12:00:00Z stdout F b\n")
    assert show(path) == b"a\nb\n"


def test_other_writers_times_are_understood() -> None:
    record = Record.parse(b"2026-01-01T13:00:00.5+01:00 stderr P:more x")
    assert record == Record(b"stderr", b"2026-01-01T13:00:00.500000000+01:00", NOON + SECOND // 2, b"x")


def test_the_tail_of_a_large_log_is_found_from_its_end(path: Path) -> None:
    writer = LogWriter(path, max_bytes=lambda: 1 << 30)
    for number in range(20_000):
        writer.write(b"stdout", b"line %d\n" % number)
    writer.close()
    for count in (1, 5, 1000, 5000):
        expected = b"".join(b"line %d\n" % number for number in range(20_000 - count, 20_000))
        assert show(path, tail_lines=count) == expected


def test_no_file_is_an_error_for_the_caller(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        show(path)


def test_who_stops_following_in_the_middle_of_a_rotation_leaves_nothing_open(path: Path) -> None:
    async def whole() -> None:
        writer = LogWriter(path, max_bytes=lambda: 200)
        writer.write(b"stdout", b"first\n")
        writer.flush()
        pieces = logs.read(path, LogOptions(follow=True), ended=lambda: False)
        await anext(pieces)
        for number in range(20):
            writer.write(b"stdout", b"line %d\n" % number)
            writer.flush()
        await anext(pieces)  # the rest of the old file, with the new one found already
        await pieces.aclose()
        writer.close()
        opened = (Path(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd"))
        assert not [file for file in opened if os.path.lexists(file) and "0.log" in os.readlink(file)]

    asyncio.run(whole())


def test_following_sees_everything_through_rotations_until_the_end(path: Path) -> None:
    async def whole() -> bytes:
        writer = LogWriter(path, max_bytes=lambda: 2000)
        ended = False
        seen = b""

        async def follow() -> None:
            nonlocal seen
            async for piece in logs.read(path, LogOptions(follow=True), ended=lambda: ended):
                seen += piece

        follower = asyncio.create_task(follow())
        for number in range(500):
            writer.write(b"stdout", b"line %d\n" % number)
            writer.flush()
            while not seen.endswith(b"line %d\n" % number):
                await asyncio.sleep(0)
        writer.write(b"stdout", b"last")
        writer.close()
        ended = True
        await follower
        return seen

    assert asyncio.run(whole()) == b"".join(b"line %d\n" % number for number in range(500)) + b"last"


def test_following_sees_what_another_process_writes(path: Path) -> None:
    async def whole() -> bytes:
        path.touch()
        reading = logs.read(path, LogOptions(follow=True), ended=lambda: False)
        first = asyncio.ensure_future(anext(reading))
        await asyncio.sleep(0)
        with open(path, "ab") as file:  # not by a LogWriter: nothing wakes the reader but its poll
            file.write(b"2026-01-01T12:00:00Z stdout F hello\n")
        piece = await first
        await reading.aclose()
        return piece

    assert asyncio.run(whole()) == b"hello\n"


def test_a_half_written_record_is_shown_when_it_is_whole(path: Path) -> None:
    async def whole() -> list[bytes]:
        path.write_bytes(b"2026-01-01T12:00:00Z stdout F a\n2026-01-01T12:00:00Z std")
        pieces: list[bytes] = []
        async for piece in logs.read(path, LogOptions(follow=True), ended=lambda: len(pieces) == 2):
            pieces.append(piece)
            if len(pieces) == 1:
                with open(path, "ab") as file:
                    file.write(b"out F b\n")
        return pieces

    assert asyncio.run(whole()) == [b"a\n", b"b\n"]


def test_a_log_in_the_middle_of_its_rotation_is_read_when_it_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "0.log"

    async def scenario() -> None:
        logs.rotated(path).write_bytes(b"2026-01-02T03:04:05.000000000Z stdout F old\n")
        reading = asyncio.create_task(_all(path))
        await asyncio.sleep(0)
        path.write_bytes(b"2026-01-02T03:04:05.000000000Z stdout F new\n")
        assert await reading == b"new\n"

    asyncio.run(scenario())


def test_a_log_whose_writer_died_in_the_middle_of_its_rotation_is_what_was_rotated(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    logs.rotated(path).write_bytes(b"2026-01-02T03:04:05.000000000Z stdout F old\n")
    assert asyncio.run(_all(path)) == b"old\n"


def test_a_log_is_a_file_and_no_link_to_one(tmp_path: Path) -> None:
    """A guest's process writes to the folder: what it puts in the log's place must not be read for it."""
    secret = tmp_path / "tls.key"
    secret.write_bytes(b"2026-01-02T03:04:05.000000000Z stdout F secret\n")
    link, pipe, folder = (tmp_path / f"{number}.log" for number in range(3))
    link.symlink_to(secret)
    os.mkfifo(pipe)
    folder.mkdir()
    for path in (link, pipe, folder):
        with pytest.raises(OSError):
            asyncio.run(_all(path))


async def _all(path: Path) -> bytes:
    return b"".join([piece async for piece in logs.read(path, LogOptions(), ended=lambda: True)])
