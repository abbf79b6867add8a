"""Mounts: what a container sees of its volumes, and that no path leads out of one."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.volumes import (
    ID,
    container,
    empty_dir,
    folder_of,
    made,
    mount,
    opened,
    preopens,
    public_folder,
    seen,
    unprivileged,
    volume,
)
from wherry_runner.execution.engine import Preopen
from wherry_runner.protocol import (
    EmptyDirVolume,
    InitContainer,
    Owner,
    Volume,
    VolumeMount,
    Workload,
)
from wherry_runner.volumes import VolumeError, Volumes, check
from wherry_runner.volumes.mounts import MAX_MOUNTS, plan


@pytest.fixture
def volumes(tmp_path: Path) -> Iterator[Volumes]:
    with made(tmp_path) as volumes:
        yield volumes


CONFIG = volume({"app.yaml": "a: 1", "db.yaml": "b: 2", "tls/ca.crt": "ca", "tls/deep/key": "key"}, name="config")
SECRET = volume({"token": "hunter2", "dir/other": "x"}, secret=True, name="secret", mode=0o400)
DATA = empty_dir("data")
CACHE = empty_dir("cache")
ALL: list[Volume] = [CONFIG, SECRET, DATA, CACHE]


def given_mounts(volumes: Volumes, *mounts: VolumeMount) -> dict[str, Preopen]:
    volumes.write(ID, ALL)
    return preopens(volumes, mounts, ALL)


def inside(volumes: Volumes, spec: EmptyDirVolume = DATA) -> Path:
    """The folder of an emptyDir, as guests change it."""
    volumes.write(ID, ALL)
    return folder_of(volumes, spec)


# --- paths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        ("/data", "/data"),
        ("/data/", "/data"),
        ("//data", "/data"),
        ("///data//x/", "/data/x"),
        ("/./data/./x/.", "/data/x"),
        ("/", "/"),
        ("//", "/"),
        ("/...", "/..."),
        ("/a b/ü", "/a b/ü"),
    ],
)
def test_mount_paths_have_one_form(path: str, normal: str) -> None:
    (found,) = plan(container(mount("data", path)), [DATA])
    assert found.path == normal


@pytest.mark.parametrize(
    ("mounts", "says"),
    [
        ([mount("data", "data")], "mountPath 'data' must be absolute"),
        ([mount("data", "/a/../b")], "mountPath '/a/../b' must be without"),
        ([mount("data", "/..")], "must be without '..'"),
        ([mount("data", "/a\0b")], "NUL"),
        ([mount("data", "/a", "/b")], "subPath '/b' must be relative"),
        ([mount("data", "/a", "..")], "subPath '..' must be without"),
        ([mount("data", "/a", "b/../c")], "must be without"),
        ([mount("data", "/a", "b\0c")], "NUL"),
        ([mount("data", "/a"), mount("config", "/a")], 'two mounts have the same path "/a"'),
        ([mount("data", "/a"), mount("data", "//a/./")], 'the same path "/a"'),
        ([mount("data", "/"), mount("data", "/.")], 'the same path "/"'),
        ([mount("other", "/a")], 'it mounts "other", which is no volume'),
        ([mount("data", f"/{number}") for number in range(MAX_MOUNTS + 1)], "101 mounts; 100 are possible"),
    ],
)
@pytest.mark.parametrize("where", ["containers", "init"])
def test_what_can_not_be_meant_is_refused_by_name(mounts: list[VolumeMount], says: str, where: str) -> None:
    spec = container(*mounts, name="web")
    init = InitContainer.model_validate(spec.model_dump())
    workload = Workload(
        owner=Owner(kind="Pod", namespace="n", name="p", uid="u"),
        containers=(spec if where == "containers" else container(),),
        init_containers=(init,) if where == "init" else (),
        volumes=(DATA, CONFIG),
    )
    with pytest.raises(VolumeError) as raised:
        check(workload)
    assert says in str(raised.value)
    assert str(raised.value).startswith('container "web": ')


@pytest.mark.parametrize("sub_path", ["", ".", "./", "./."])
def test_a_sub_path_that_names_nothing_is_the_whole_volume(volumes: Volumes, sub_path: str) -> None:
    found = given_mounts(volumes, mount("data", "/data", sub_path))
    assert found["/data"].host_path == inside(volumes)
    assert found["/data"].beneath == ()


# --- whole volumes ----------------------------------------------------------------------------------------------------


def test_files_are_read_only_and_an_empty_dir_is_unless_it_is_not(volumes: Volumes) -> None:
    found = given_mounts(
        volumes,
        mount("config", "/etc/app"),
        mount("data", "/data"),
        mount("data", "/view", read_only=True),
        mount("cache", "/data/cache"),
        mount("secret", "/"),
    )
    assert {path for path, preopen in found.items() if preopen.writable} == {"/data", "/data/cache"}
    assert seen(found["/etc/app"]) == {
        "app.yaml": "a: 1",
        "db.yaml": "b: 2",
        "tls/ca.crt": "ca",
        "tls/deep/key": "key",
    }
    assert seen(found["/"]) == {"token": "hunter2", "dir/other": "x"}
    with opened(found["/data"]) as path:
        (path / "written").write_text("by one")
    assert seen(found["/view"]) == {"written": "by one"}
    assert seen(found["/data/cache"]) == {}


def test_two_containers_share_an_empty_dir(volumes: Volumes) -> None:
    volumes.write(ID, ALL)
    one, two = (preopens(volumes, [mount("data", f"/{name}")], ALL, name=name) for name in ("one", "two"))
    with opened(one["/one"]) as path:
        (path / "note").write_text("hello")
    assert seen(two["/two"]) == {"note": "hello"}


# --- subPath of a folder ----------------------------------------------------------------------------------------------


def test_a_folder_in_an_empty_dir_is_made_when_it_is_missing(volumes: Volumes) -> None:
    found = given_mounts(volumes, mount("data", "/a", "x/y"), mount("data", "/b", "x", read_only=True))
    with opened(found["/a"]) as path:
        assert path.stat().st_mode & 0o777 == 0o777
        (path / "file").write_text("1")
    assert seen(found["/b"]) == {"y/file": "1"}
    assert seen(inside(volumes)) == {"x/y/file": "1"}
    assert (found["/a"].writable, found["/b"].writable) == (True, False)


def test_a_link_inside_an_empty_dir_is_followed_inside_and_never_out(volumes: Volumes, tmp_path: Path) -> None:
    folder = inside(volumes)
    (tmp_path / "outside").mkdir()
    (folder / "real").mkdir()
    (folder / "real" / "file").write_text("1")
    (folder / "link").symlink_to("real")
    assert seen(given_mounts(volumes, mount("data", "/a", "link"))["/a"]) == {"file": "1"}
    for target in ("..", "../..", str(tmp_path / "outside"), "/", "/proc/self/root", "../../../files/config/folder"):
        (folder / "out").unlink(missing_ok=True)
        (folder / "out").symlink_to(target)
        for sub_path in ("out", "out/x", "out/file"):
            with pytest.raises(VolumeError, match=f'volume "data", subPath "{sub_path}": '):
                given_mounts(volumes, mount("data", "/a", sub_path))
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_link_that_is_planted_between_the_check_and_the_start_leads_nowhere(volumes: Volumes, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    folder = inside(volumes)
    found = given_mounts(volumes, mount("data", "/a", "sub"))
    (folder / "sub").rmdir()
    (folder / "sub").symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match="leads out"):
        found["/a"].open()


def test_a_folder_of_files_is_as_it_was_when_the_container_started(volumes: Volumes) -> None:
    found = given_mounts(volumes, mount("config", "/tls", "tls"), mount("secret", "/s", "dir"))
    assert seen(found["/tls"]) == {"ca.crt": "ca", "deep/key": "key"}
    assert seen(found["/s"]) == {"other": "x"}
    assert not found["/tls"].writable
    changed = volume({"tls/ca.crt": "new"}, name="config")
    volumes.write(ID, [changed])
    assert seen(found["/tls"]) == {"ca.crt": "ca", "deep/key": "key"}
    assert seen(preopens(volumes, [mount("config", "/tls", "tls")], [changed])["/tls"]) == {"ca.crt": "new"}


@pytest.mark.parametrize("sub_path", ["nothing", "app.yaml/x", "tls/other", "app", "..data", "..data/app.yaml"])
def test_what_is_not_in_a_files_volume_is_refused_by_name(volumes: Volumes, sub_path: str) -> None:
    with pytest.raises(VolumeError, match=f'volume "config": there is no "{sub_path}" in it'):
        given_mounts(volumes, mount("config", "/a", sub_path))


# --- subPath of a file ------------------------------------------------------------------------------------------------


def test_files_come_into_a_folder_at_their_parent_and_those_of_one_parent_into_one(volumes: Volumes) -> None:
    found = given_mounts(
        volumes,
        mount("config", "/etc/app/config.yaml", "app.yaml"),
        mount("config", "/etc/app/database", "db.yaml"),
        mount("secret", "/etc/app/token", "token"),
        mount("config", "/etc/ca.crt", "tls/ca.crt"),
        mount("config", "/top", "app.yaml"),
        mount("data", "/data"),
    )
    assert {path: seen(preopen) for path, preopen in found.items()} == {
        "/etc/app": {"config.yaml": "a: 1", "database": "b: 2", "token": "hunter2"},
        "/etc": {"ca.crt": "ca"},
        "/": {"top": "a: 1"},
        "/data": {},
    }
    assert [path for path, preopen in found.items() if preopen.writable] == ["/data"]
    with opened(found["/etc/app"]) as path:
        assert (path / "token").stat().st_mode & 0o777 == 0o400
        assert (path / "database").stat().st_mode & 0o777 == 0o644


def test_a_secret_that_is_mounted_by_itself_is_on_no_disk(volumes: Volumes, tmp_path: Path) -> None:
    given_mounts(
        volumes,
        mount("config", "/etc/app.yaml", "app.yaml"),
        mount("secret", "/etc/token", "token"),
        mount("secret", "/s", "dir"),
    )
    on_disk = [path for path in (tmp_path / "disk").rglob("*") if path.is_file()]
    assert on_disk
    assert not any(path.name in ("token", "other") for path in on_disk)


def test_a_file_does_not_follow_changes_until_the_next_start(volumes: Volumes) -> None:
    mounts = [mount("config", "/etc/app.yaml", "app.yaml")]
    found = given_mounts(volumes, *mounts)
    changed = volume({"app.yaml": "a: 2"}, name="config")
    volumes.write(ID, [changed])
    assert seen(found["/etc"]) == {"app.yaml": "a: 1"}
    assert seen(preopens(volumes, mounts, [changed])["/etc"]) == {"app.yaml": "a: 2"}


def test_a_file_of_an_empty_dir_is_the_file_itself(volumes: Volumes) -> None:
    folder = inside(volumes)
    (folder / "deep").mkdir()
    (folder / "deep" / "state").write_text("1")
    (folder / "link").symlink_to("deep/state")
    found = given_mounts(
        volumes,
        mount("data", "/a/state", "deep/state"),
        mount("data", "/a/same", "link"),
        mount("data", "/b/state", "deep/state", read_only=True),
    )
    assert (found["/a"].writable, found["/b"].writable) == (True, False)
    with opened(found["/a"]) as path:
        (path / "state").write_text("2")
    assert seen(found["/b"]) == {"state": "2"}
    assert seen(found["/a"]) == {"state": "2", "same": "2"}
    assert (folder / "deep" / "state").read_text() == "2"


def test_what_was_made_for_one_run_is_gone_in_the_next(volumes: Volumes, tmp_path: Path) -> None:
    (inside(volumes) / "state").write_text("1")
    mounts = [mount("data", "/a/state", "state"), mount("config", "/tls", "tls")]
    first = given_mounts(volumes, *mounts)
    with opened(first["/a"]) as path:
        (path / "beside").touch()
    second = given_mounts(volumes, *mounts)
    assert seen(second["/a"]) == {"state": "1"}
    third = given_mounts(volumes)
    assert third == {}
    assert not any(preopen.host_path.exists() for preopen in (*first.values(), *second.values()))
    assert seen(inside(volumes)) == {"state": "1"}


@pytest.mark.parametrize(
    ("mounts", "says"),
    [
        (
            [mount("config", "/etc/app/a", "app.yaml"), mount("data", "/etc/app")],
            '"/etc/app/a" is a file, and another volume is mounted at "/etc/app"',
        ),
        ([mount("config", "/a", "app.yaml"), mount("data", "/")], 'another volume is mounted at "/"'),
        (
            [mount("data", "/d/a", "state"), mount("data", "/d/b", "state", read_only=True)],
            '"/d" would hold files that are read-only and files that are not',
        ),
        ([mount("data", "/d/a", "state"), mount("config", "/d/b", "app.yaml")], "read-only and files that are not"),
        (
            [mount("data", "/d/a", "state", read_only=True), mount("config", "/d/b", "app.yaml")],
            '"/d" would hold files of an emptyDir and of another volume',
        ),
        ([mount("data", "/d/a", "state"), mount("cache", "/d/b", "state")], "of an emptyDir and of another volume"),
        ([mount("config", "/", "app.yaml")], '"app.yaml" of volume "config" is a file, which can\'t be mounted at "/"'),
    ],
)
def test_files_that_can_not_be_in_one_folder_are_refused_by_name(
    volumes: Volumes, mounts: list[VolumeMount], says: str
) -> None:
    for spec in (DATA, CACHE):
        (inside(volumes, spec) / "state").touch()
    with pytest.raises(VolumeError) as raised:
        given_mounts(volumes, *mounts)
    assert says in str(raised.value)
    assert 'container "main"' in str(raised.value)


def test_what_is_neither_a_file_nor_a_folder_is_refused_without_waiting_for_it(volumes: Volumes) -> None:
    os.mkfifo(inside(volumes) / "fifo")
    with pytest.raises(VolumeError, match='volume "data", subPath "fifo": it is neither a file nor a folder'):
        given_mounts(volumes, mount("data", "/a/fifo", "fifo"))


def test_all_of_it_works_without_root() -> None:
    mounts = [
        mount("config", "/whole"),
        mount("config", "/etc/app.yaml", "app.yaml"),
        mount("secret", "/run/token", "token"),
        mount("config", "/tls", "tls"),
        mount("data", "/sub", "made/here"),
        mount("data", "/var/state", "state"),
    ]

    def scenario() -> None:
        with made(folder) as volumes:
            (inside(volumes) / "state").write_text("1")
            for _ in range(2):
                found = given_mounts(volumes, *mounts)
                assert {path: len(seen(preopen)) for path, preopen in found.items()} == {
                    "/whole": 4, "/etc": 1, "/run": 1, "/tls": 2, "/sub": 0, "/var": 1
                }  # fmt: skip

    with public_folder() as folder:
        unprivileged(scenario)


# --- whatever the spec, and whatever guests plant ---------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "c", "..", ".", "", "out"])
PATHS = st.lists(NAMES, max_size=5).map("/".join)
TARGETS = PATHS | st.sampled_from(
    ["/", "/etc", "/proc/self/root", "/proc/self/cwd", "../../cache/folder", "../../../files/config", "../../../.."]
)


PLANTED = st.lists(
    st.tuples(st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join), st.none() | TARGETS), max_size=6
)


def plant(folder: Path, things: list[tuple[str, str | None]]) -> None:
    """Make folders, links (those with a target) and a file, as a guest could: never through a link that leads out."""
    for name, target in [*things, ("c", "file")]:
        parent = os.path.realpath((folder / name).parent)
        if not Path(parent).is_relative_to(folder):
            continue
        with suppress(OSError):
            if target == "file":
                os.close(os.open(folder / name, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW))
            elif target is None:
                (folder / name).mkdir(parents=True)
            else:
                (folder / name).symlink_to(target)


@settings(deadline=None, max_examples=60)
@given(
    things=PLANTED,
    mounts=st.lists(st.tuples(st.sampled_from(["data", "cache", "config", "secret"]), PATHS, PATHS), max_size=4),
)
def test_no_mount_leads_out_of_its_volume(
    things: list[tuple[str, str | None]], mounts: list[tuple[str, str, str]]
) -> None:
    with public_folder("/dev/shm") as top, made(top) as volumes:
        volumes.write(ID, ALL)
        data, cache = inside(volumes), inside(volumes, CACHE)
        (memory,) = (top / "memory").iterdir()
        disk_mounts, memory_mounts = (root / ID / "mounts" / "main" for root in (top / "disk", memory))
        roots = {
            "data": [data],
            "cache": [cache],
            "config": [top / "disk" / ID / "files" / "config", disk_mounts],
            "secret": [memory / ID / "files" / "secret", memory_mounts],
            "": [data.parent / "mounts", cache.parent / "mounts", disk_mounts, memory_mounts],
        }
        plant(data, things)
        files = {root: sorted(root.rglob("*")) for root in (top / "disk" / ID / "files", memory / ID / "files", top)}
        files[top] = sorted(top.iterdir())
        wanted = [mount(name, "/" + path, sub_path) for name, path, sub_path in mounts]
        whose = {"/" + "/".join(_parts(path)): name for name, path, _ in mounts}
        try:
            found = preopens(volumes, wanted, ALL)
        except VolumeError:
            found = {}
        for guest_path, preopen in found.items():
            with opened(preopen) as path:
                real = Path(os.readlink(path))
            # A folder for single files is at their parent, where nothing else is mounted.
            assert any(real.is_relative_to(root) for root in roots[whose.get(guest_path, "")])
            assert preopen.writable <= real.is_relative_to(top / "disk" / ID / "empty")
        assert sorted(top.iterdir()) == files.pop(top)
        assert all(sorted(root.rglob("*")) == before for root, before in files.items()), "made in a volume of files"


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def test_a_sub_path_that_guests_swap_all_the_time_never_leads_out(volumes: Volumes, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("secret")
    folder = inside(volumes)
    stop = threading.Event()

    def swap() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            makers: tuple[Callable[[Path], object], ...] = (
                Path.mkdir,
                lambda path: path.symlink_to(outside),
                lambda path: path.symlink_to(outside / "file"),
                lambda path: path.write_text("mine"),
            )
            for make in makers:
                # All in the volume, where guests can write: what was opened stays inside, whatever it is called now.
                new, old = folder / f"new-{number}", folder / f"old-{number}"
                make(new)
                with suppress(OSError):
                    (folder / "name").rename(old)
                with suppress(OSError):
                    new.rename(folder / "name")
                for path in (new, old):
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)

    thread = threading.Thread(target=swap)
    thread.start()
    ends = {"folder": 0, "file": 0, "refused": 0}
    try:
        while min(ends.values()) < 5:
            try:
                for path, preopen in preopens(volumes, [mount("data", "/m/x", "name")], ALL).items():
                    with opened(preopen) as place:
                        assert os.readlink(place).startswith(str(folder.parent))
                        if path == "/m":
                            assert (place / "x").read_text() == "mine"
                    ends["file" if path == "/m" else "folder"] += 1
            except (VolumeError, OSError):
                ends["refused"] += 1
    finally:
        stop.set()
        thread.join()
    assert os.listdir(outside) == ["file"]
