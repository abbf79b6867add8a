"""Volumes of files: swapped as a whole, and never a file outside of them."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.volumes import ID, folder_of, made, seen, volume
from wherry_runner.protocol import FilesVolume, VolumeFile
from wherry_runner.volumes import VolumeError, Volumes
from wherry_runner.volumes.files import MAX_DEPTH


@pytest.fixture
def volumes(tmp_path: Path) -> Iterator[Volumes]:
    with made(tmp_path) as volumes:
        yield volumes


def revisions(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if entry.name.startswith("..") and not entry.is_symlink()]


def test_files_appear_with_their_content_also_in_folders(volumes: Volumes) -> None:
    item = volume({"a": "1", "deep/er/b": "2", "deep/c": "3", ".hidden": "4", "empty": ""})
    volumes.write(ID, [item])
    assert seen(folder_of(volumes, item)) == {"a": "1", "deep/er/b": "2", "deep/c": "3", ".hidden": "4", "empty": ""}


def test_a_change_replaces_adds_and_removes(volumes: Volumes) -> None:
    folder = folder_of(volumes, volume({}))
    for files in ({"a": "1", "b": "1", "d/x": "1"}, {"b": "2", "c": "2", "d/y": "2"}, {"d": "3"}, {}, {"a": "4"}):
        volumes.write(ID, [volume({**files})])
        assert seen(folder) == files
        assert {entry.name for entry in folder.iterdir() if not entry.name.startswith("..")} == {
            name.partition("/")[0] for name in files
        }
        assert len(revisions(folder)) == 1, "old revisions are removed"


@pytest.mark.parametrize("mode", [0o400, 0o444, 0o600, 0o644, 0o755, 0o777, 0o000])
def test_files_have_their_mode_whatever_the_umask(volumes: Volumes, mode: int) -> None:
    before = os.umask(0o077)
    try:
        item = volume({"a": "1"}, mode=mode)
        volumes.write(ID, [item])
    finally:
        os.umask(before)
    assert (folder_of(volumes, item) / "a").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "..",
        "../x",
        "a/../../x",
        "a/..",
        "..data",
        "..data/x",
        "..new-1",
        ".",
        "./",
        "//",
        "a\0b",
        "d/../../v/x",
    ],
)
def test_a_path_that_would_leave_the_volume_is_refused_and_nothing_is_written(
    volumes: Volumes, tmp_path: Path, path: str
) -> None:
    volumes.write(ID, [volume({"a": "old"})])
    with pytest.raises(VolumeError, match=r'volume "v": '):
        volumes.write(ID, [volume({"a": "new", path: "x"})])
    assert seen(folder_of(volumes, volume({}))) == {"a": "old"}
    assert {entry.name for entry in tmp_path.iterdir()} == {"disk", "memory", "ram"}


@pytest.mark.parametrize("files", [("a", "a"), ("a", "./a"), ("d/x", "d//x"), ("d", "d/x"), ("d/x/y", "d/x")])
def test_two_files_of_one_name_and_a_file_that_is_a_folder_are_refused(
    volumes: Volumes, files: tuple[str, str]
) -> None:
    item = FilesVolume(name="v", files=tuple(VolumeFile(path=path, data=b"eA==") for path in files))
    with pytest.raises(VolumeError, match=r'volume "v": '):
        volumes.write(ID, [item])


def test_a_path_that_is_too_deep_to_be_handled_is_refused(volumes: Volumes) -> None:
    deep = "/".join(["d"] * (MAX_DEPTH - 1))
    item = volume({f"{deep}/a": "1"})
    volumes.write(ID, [item])
    assert seen(folder_of(volumes, item)) == {f"{deep}/a": "1"}
    with pytest.raises(VolumeError, match="more than 64 folders"):
        volumes.write(ID, [volume({f"{deep}/{deep}/a": "1"})])


def test_when_one_volume_can_not_be_had_none_changes(volumes: Volumes) -> None:
    item = volume({"a": "old"})
    volumes.write(ID, [item])
    with pytest.raises(VolumeError, match='volume "bad"'):
        volumes.write(ID, [volume({"a": "new"}), volume({"../x": ""}, name="bad")])
    assert seen(folder_of(volumes, item)) == {"a": "old"}


def test_a_name_that_the_file_system_refuses_is_an_error_that_names_the_volume_and_leaves_nothing(
    volumes: Volumes,
) -> None:
    volumes.write(ID, [volume({"a": "old"})])
    for _ in range(3):
        with pytest.raises(VolumeError, match=r'volume "v": File name too long'):
            volumes.write(ID, [volume({"a": "new", "x" * 300: "y"})])
    folder = folder_of(volumes, volume({}))
    assert seen(folder) == {"a": "old"}
    assert len(revisions(folder)) == 1


def test_secrets_are_on_no_disk(volumes: Volumes, tmp_path: Path) -> None:
    volumes.write(ID, [volume({"password": "hunter2"}, secret=True, name="s"), volume({"a": "1"})])
    on_disk = [path for path in (tmp_path / "disk").rglob("*") if path.is_file()]
    assert on_disk
    assert not any(b"hunter2" in path.read_bytes() for path in on_disk)
    assert seen(folder_of(volumes, volume({}, secret=True, name="s"))) == {"password": "hunter2"}
    assert all(
        (entry.stat().st_mode & 0o077) == 0 for entry in (*(tmp_path / "memory").iterdir(), tmp_path / "disk")
    ), "the guests' folders are reached through folders that only the runner can enter"


def test_dropping_a_workload_removes_its_volumes_and_no_others(volumes: Volumes, tmp_path: Path) -> None:
    both = [volume({"a": "1"}), volume({"b": "2"}, secret=True, name="s")]
    for workload in (ID, "other"):
        volumes.write(workload, both)
    mine = [folder_of(volumes, item) for item in both]
    volumes.drop(ID)
    assert not any(folder.exists() for folder in mine), "at once, before it is removed"
    volumes.drop(ID)
    assert seen(folder_of(volumes, both[0], id="other")) == {"a": "1"}
    volumes.close()
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["memory", "ram"]
    volumes.drop("other")  # late, and no matter


def test_the_next_process_finds_nothing_and_another_runner_keeps_its_own(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    first, second = (Volumes(tmp_path / name, tmp_path / "memory") for name in ("one", "two"))
    item = volume({"a": "1"}, secret=True)
    for runner in (first, second):
        runner.clear()
        runner.write(ID, [item])
    again = Volumes(tmp_path / "one", tmp_path / "memory")
    again.clear()
    assert not folder_of(first, item).exists()
    assert seen(folder_of(second, item)) == {"a": "1"}
    second.close()
    assert not folder_of(second, item).exists()
    again.close()
    assert [entry.name for entry in tmp_path.rglob("*")] == ["memory"]


def test_a_folder_in_memory_that_somebody_else_made_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    volumes = Volumes(tmp_path / "disk", tmp_path / "memory")
    item = volume({"a": "1"}, secret=True)
    volumes.clear()
    volumes.write(ID, [item])
    (theirs,) = (tmp_path / "memory").iterdir()
    volumes.close()
    volumes = Volumes(tmp_path / "disk", tmp_path / "memory")
    volumes.clear()
    theirs.mkdir()
    with pytest.raises(VolumeError, match='volume "v": File exists'):
        volumes.write(ID, [item])
    assert not list(theirs.iterdir())
    volumes.close()


def test_a_link_in_the_place_of_a_folder_in_memory_is_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "kept").touch()
    volumes = Volumes(tmp_path / "disk", tmp_path / "memory")
    volumes.clear()
    volumes.write(ID, [volume({"a": "1"}, secret=True)])
    (place,) = (tmp_path / "memory").iterdir()
    volumes.close()
    place.symlink_to(tmp_path / "theirs")
    volumes.clear()
    assert not place.is_symlink()
    assert (tmp_path / "theirs" / "kept").exists()
    volumes.close()


@contextmanager
def reading(folder: Path) -> Iterator[list[tuple[bytes, bytes]]]:
    """A guest beside us: it reads two files of the same revision, over and over."""
    pairs: list[tuple[bytes, bytes]] = []
    wrong: list[BaseException] = []
    stop, first = threading.Event(), threading.Event()

    @contextmanager
    def data_folder() -> Iterator[int]:
        data = os.open(folder / "..data", os.O_PATH | os.O_DIRECTORY)
        try:
            yield data
        finally:
            os.close(data)

    def read(name: str, folder_descriptor: int) -> bytes:
        descriptor = os.open(name, os.O_RDONLY, dir_fd=folder_descriptor)
        with open(descriptor, "rb") as file:
            return file.read()

    def loop() -> None:
        try:
            while not stop.is_set():
                # The revision may go while it is read, also between the link and what it names: never half of one, but
                # possibly none.
                with suppress(FileNotFoundError), data_folder() as data:
                    pairs.append((read("a", data), read("b", data)))
                    first.set()
        except BaseException as error:
            wrong.append(error)
            first.set()

    thread = threading.Thread(target=loop)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # else each system call of the writer waits 5 ms for the reader
    thread.start()
    try:
        first.wait()
        yield pairs
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert not wrong


def test_a_concurrent_reader_sees_whole_revisions_only(volumes: Volumes) -> None:
    def content(number: int) -> bytes:
        return b"%d" % number * 20_000

    volumes.write(ID, [volume({"a": content(0), "b": content(0)})])
    folder = folder_of(volumes, volume({}))
    with reading(folder) as pairs:
        for number in range(1, 25):
            volumes.write(ID, [volume({"a": content(number), "b": content(number)})])
    for a, b in pairs:
        assert a == b
        assert a in {content(number) for number in range(25)}


def test_a_file_that_a_guest_has_open_keeps_its_old_content(volumes: Volumes) -> None:
    volumes.write(ID, [volume({"a": "old"})])
    with open(folder_of(volumes, volume({})) / "a") as file:
        volumes.write(ID, [volume({"a": "new"})])
        assert file.read() == "old"
