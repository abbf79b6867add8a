"""Whatever guests left is removed, and nothing else."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from tests.support.volumes import make_deep, public_folder, unprivileged
from wherry_runner.files.removal import remove_tree


def test_a_tree_of_everything_goes_and_what_links_lead_to_stays(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "kept").write_text("kept")
    tree = tmp_path / "tree"
    for name in ("a/b/c", "a/empty", "d", "..data"):
        (tree / name).mkdir(parents=True)
    for name in ("a/b/c/file", "a/file", "file", "a/b/\udcff"):
        (tree / name).touch()
    (tree / "a" / "link").symlink_to(tmp_path / "other")
    (tree / "link").symlink_to("../other")
    (tree / "d" / "dangling").symlink_to("nowhere")
    os.mkfifo(tree / "d" / "fifo")
    os.link(tmp_path / "other" / "kept", tree / "a" / "hard")
    remove_tree(tree)
    assert [path.name for path in tmp_path.rglob("*")] == ["other", "kept"]
    assert (tmp_path / "other" / "kept").read_text() == "kept"


@pytest.mark.parametrize("what", ["nothing", "file", "link"])
def test_what_is_no_folder_goes_too(tmp_path: Path, what: str) -> None:
    (tmp_path / "other").mkdir()
    path = tmp_path / "path"
    if what == "file":
        path.touch()
    elif what == "link":
        path.symlink_to(tmp_path / "other")
    remove_tree(path)
    assert os.listdir(tmp_path) == ["other"]


def test_a_tree_deeper_than_any_path_and_any_recursion_goes() -> None:
    with public_folder("/dev/shm") as folder:  # a disk may take seconds for this
        (folder / "tree").mkdir()
        make_deep(folder / "tree", levels=3000)
        remove_tree(folder / "tree")
        assert os.listdir(folder) == []


def test_a_wide_tree_goes(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / "tree" / f"d{number}" / "sub").mkdir(parents=True)
        (tmp_path / "tree" / f"d{number}" / "sub" / "file").touch()
    remove_tree(tmp_path / "tree")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("mode", [0o000, 0o100, 0o400, 0o500, 0o555, 0o600])
def test_modes_that_forbid_it_do_not_keep_a_tree_from_going(mode: int) -> None:
    def scenario() -> None:
        tree = folder / "tree"
        for name in ("locked/inner/deep", "locked/other"):
            (tree / name).mkdir(parents=True)
        for name in ("locked/file", "locked/inner/file", "locked/inner/deep/file"):
            (tree / name).touch(mode=0)
        for name in ("locked/inner/deep", "locked/inner", "locked", "."):
            (tree / name).chmod(mode)
        remove_tree(tree)
        assert not tree.exists()

    with public_folder() as folder:
        unprivileged(scenario)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make what belongs to somebody else")
def test_what_can_not_be_removed_is_told_after_all_else_is_gone() -> None:
    def scenario() -> None:
        with pytest.raises(PermissionError):
            remove_tree(folder / "tree")

    with public_folder() as folder:
        for name in ("a", "theirs", "z"):
            (folder / "tree" / name / "sub").mkdir(parents=True)
            (folder / "tree" / name / "sub" / "file").touch()
        for path in (folder, folder / "tree", *(folder / "tree").rglob("*")):
            if "theirs" not in path.parts:
                os.chown(path, 65534, 65534)
        unprivileged(scenario)
        left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert left == {"tree/theirs/sub/file"}


def test_a_tree_that_is_written_to_meanwhile_ends_in_an_error_or_is_gone(tmp_path: Path) -> None:
    """No guest writes any more when its volumes are removed. If one did: no endless loop, and no step outside."""
    tree = tmp_path / "tree"
    tree.mkdir()
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set() and number < 300:
            number += 1
            try:
                (tree / f"{number}").mkdir()
                (tree / f"{number}" / "file").touch()
            except OSError:
                return

    thread = threading.Thread(target=write)
    thread.start()
    try:
        remove_tree(tree)
    except OSError:
        pass
    finally:
        stop.set()
        thread.join()
    remove_tree(tree)
    assert os.listdir(tmp_path) == []


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    (tmp_path / "tree" / "a" / "b").mkdir(parents=True)
    (tmp_path / "tree" / "a" / "c").touch()
    remove_tree(tmp_path / "tree")
    assert sorted(os.listdir("/proc/self/fd")) == before
