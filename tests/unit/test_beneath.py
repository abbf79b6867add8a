"""Paths that strangers may have a hand in: opened below a folder, never outside of it."""

from __future__ import annotations

import errno
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from wherry_runner.files.beneath import FOLDER, make_folder, open_beneath, open_folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with links of all kinds in it, and something beside it that is not to be reached."""
    (tmp_path / "outside" / "deep").mkdir(parents=True)
    (tmp_path / "outside" / "secret").write_text("secret")
    top = tmp_path / "top"
    (top / "a" / "b").mkdir(parents=True)
    (top / "a" / "file").write_text("mine")
    for name, target in {
        "inside": "a/b",
        "a/up": "../a/b",
        "out": "../outside",
        "a/out": "../../outside/deep",
        "absolute": str(tmp_path / "outside"),
        "absolutely-inside": str(top / "a"),
        "root": "/",
        "process": "/proc/self/root",
        "loop": "loop",
        "dangling": "nowhere",
        "chain": "out/deep",
    }.items():
        (top / name).symlink_to(target)
    return top


@contextmanager
def folder(path: Path) -> Iterator[int]:
    number = os.open(path, FOLDER)
    try:
        yield number
    finally:
        os.close(number)


def reached(number: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    finally:
        os.close(number)


@pytest.mark.parametrize(
    ("path", "leads"),
    [
        ("a", "a"),
        ("a/b", "a/b"),
        ("inside", "a/b"),
        ("a/up", "a/b"),
        ("a/../a/b", "a/b"),
        (".", ""),
        ("a/file", "a/file"),
    ],
)
def test_what_is_below_is_opened_through_links_too(tree: Path, path: str, leads: str) -> None:
    with folder(tree) as top:
        assert reached(open_beneath(top, path, os.O_PATH)) == str(tree / leads)


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("..", errno.EXDEV),
        ("../outside", errno.EXDEV),
        ("a/../../outside/secret", errno.EXDEV),
        ("/", errno.EXDEV),
        ("/etc", errno.EXDEV),
        ("out", errno.EXDEV),
        ("out/secret", errno.EXDEV),
        ("a/out", errno.EXDEV),
        ("absolute", errno.EXDEV),
        ("absolutely-inside", errno.EXDEV),
        ("root/etc", errno.EXDEV),
        ("process/etc", errno.EXDEV),
        ("chain", errno.EXDEV),
        ("loop", errno.ELOOP),
        ("dangling", errno.ENOENT),
        ("a\0b", errno.EINVAL),
        ("x" * 5000, errno.ENAMETOOLONG),
        ("", errno.ENOENT),
    ],
)
def test_what_is_outside_is_not(tree: Path, path: str, error: int) -> None:
    with folder(tree) as top, pytest.raises(OSError) as raised:
        open_beneath(top, path, os.O_PATH)
    assert raised.value.errno == error


def test_no_way_leads_through_the_links_of_proc() -> None:
    with folder(Path("/proc/self")) as top, pytest.raises(OSError) as raised:
        open_beneath(top, "root/etc", os.O_PATH)
    assert raised.value.errno in (errno.ELOOP, errno.EXDEV)


def test_descriptors_are_not_inherited(tree: Path) -> None:
    for number in (open_folder(tree), open_folder(tree, ("a", "b"))):
        assert not os.get_inheritable(number)
        os.close(number)


def test_each_step_stays_below_the_one_before(tree: Path) -> None:
    (tree / "a" / "sibling").symlink_to("../other")
    (tree / "other").mkdir()
    assert reached(open_folder(tree, ("a/sibling",))) == str(tree / "other")
    with pytest.raises(OSError, match="leads out of the folder"):
        open_folder(tree, ("a", "sibling"))


def test_missing_folders_are_made_below_with_their_mode(tree: Path) -> None:
    before = os.umask(0o077)
    try:
        with folder(tree) as top:
            assert reached(make_folder(top, "inside/x/y/z", mode=0o777)) == str(tree / "a/b/x/y/z")
            assert reached(make_folder(top, "inside/x/y/z", mode=0o700)) == str(tree / "a/b/x/y/z")
    finally:
        os.umask(before)
    for name in ("x", "x/y", "x/y/z"):
        assert (tree / "a/b" / name).stat().st_mode & 0o777 == 0o777


@pytest.mark.parametrize(
    "path", ["out/new", "absolute/new", "chain/new", "dangling/new", "dangling", "a/file/new", "loop/x"]
)
def test_nothing_is_made_elsewhere(tree: Path, path: str) -> None:
    before = sorted(tree.parent.rglob("*"))
    with folder(tree) as top, pytest.raises(OSError):
        make_folder(top, path, mode=0o777)
    assert sorted(tree.parent.rglob("*")) == before


def test_no_descriptor_is_left(tree: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for path in ("out/new", "dangling", "a/file/new"):
        with folder(tree) as top, pytest.raises(OSError):
            make_folder(top, path, mode=0o777)
        with pytest.raises(OSError):
            open_folder(tree, (path,))
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_name_that_changes_between_folder_and_link_never_leads_out(tmp_path: Path) -> None:
    """What no check before the open could promise: somebody swaps a folder for a link, over and over."""
    top, outside = tmp_path / "top", tmp_path / "outside"
    for path in (top / "name", outside / "sub"):
        path.mkdir(parents=True)
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            away = top / secrets.token_hex(8)
            for change in (
                partial(os.rename, top / "name", away),
                partial(os.symlink, outside, top / "name"),
                partial(os.unlink, top / "name"),
                partial(os.rename, away, top / "name"),
            ):
                with suppress(OSError):  # a folder may have been made in its place
                    change()

    thread = threading.Thread(target=swap)
    thread.start()
    ends = {"opened": 0, "refused": 0}

    def note(open_it: Callable[[], int]) -> None:
        try:
            assert reached(open_it()).startswith(str(top))
            ends["opened"] += 1
        except OSError:
            ends["refused"] += 1

    try:
        with folder(top) as number:
            while min(ends.values()) < 20:
                note(partial(open_beneath, number, "name", FOLDER))
                note(partial(make_folder, number, "name/sub", mode=0o777))
    finally:
        stop.set()
        thread.join()
    assert os.listdir(outside) == ["sub"]
    assert os.listdir(outside / "sub") == []
