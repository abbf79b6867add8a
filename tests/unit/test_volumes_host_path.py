"""Host folders: only below what the runner's settings allow, and never elsewhere by a link."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.volumes import ID, made, mount, opened, preopens, public_folder, seen, unprivileged
from wherry_runner.protocol import HostPathVolume, VolumeMount
from wherry_runner.settings import SettingsError, parse
from wherry_runner.volumes import HostPath, VolumeError, Volumes
from wherry_runner.volumes.host_path import place


def host_path(path: Path | str, kind: str = "", name: str = "host") -> HostPathVolume:
    return HostPathVolume.model_validate({"name": name, "path": str(path), "type": kind})


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """The host: two folders that are allowed, one of them for reading, and one that is not."""
    top = tmp_path / "host"
    for name in ("open/data", "fixed/data", "closed/data"):
        (top / name).mkdir(parents=True)
        (top / name / "file").write_text(name)
    return top


@pytest.fixture
def volumes(tmp_path: Path, host: Path) -> Iterator[Volumes]:
    allowed = [HostPath(prefix=str(host / "open")), HostPath(prefix=str(host / "fixed"), read_only=True)]
    with made(tmp_path, host_paths=allowed) as volumes:
        yield volumes


def mounted(volumes: Volumes, spec: HostPathVolume, *mounts: VolumeMount) -> dict[str, dict[str, str]]:
    """What a guest finds, by the paths of its mounts; those that it may write to have a `*` behind them."""
    volumes.write(ID, [spec])
    found = preopens(volumes, mounts or [mount("host", "/m")], [spec])
    return {path + "*" * preopen.writable: seen(preopen) for path, preopen in found.items()}


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("/data", HostPath(prefix="/data")),
        ("/data/", HostPath(prefix="/data")),
        ("//data//x/.", HostPath(prefix="/data/x")),
        ("/data:ro", HostPath(prefix="/data", read_only=True)),
        ("/", HostPath(prefix="/")),
    ],
)
def test_a_setting_is_a_prefix_and_perhaps_ro(text: str, means: HostPath) -> None:
    assert HostPath.parse(text) == means


@pytest.mark.parametrize("text", ["", "data", ":ro", "/data:", "/data:rw", "/data:ro:ro", "/data/../etc", "ro:/data"])
def test_another_setting_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="absolute path, alone or with :ro behind it"):
        HostPath.parse(text)


RUNNER = ["--cert", "c", "--key", "k", "--client-ca", "ca", "--name", "one", "--node", "n", "--executor", "python"]


def test_the_runners_settings_say_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOST_PATH", "VOLUMES_MEMORY_DIRECTORY"):
        monkeypatch.delenv(f"WHERRY_RUNNER_{name}", raising=False)
    assert parse(RUNNER).host_paths == ()
    two = (HostPath(prefix="/a"), HostPath(prefix="/b", read_only=True))
    assert parse([*RUNNER, "--host-path", "/a", "--host-path", "/b:ro"]).host_paths == two
    monkeypatch.setenv("WHERRY_RUNNER_HOST_PATH", "/a, /b:ro")
    assert parse(RUNNER).host_paths == two
    with pytest.raises(SettingsError, match="--host-path: it wants an absolute path"):
        parse([*RUNNER, "--host-path", "b"])
    assert parse(RUNNER).volumes_memory_directory == Path("/dev/shm")
    assert parse([*RUNNER, "--volumes-memory-directory", ""]).volumes_memory_directory is None


@pytest.mark.parametrize(
    ("path", "prefix", "beneath"),
    [
        ("/srv", "/srv", ""),
        ("/srv/", "/srv", ""),
        ("//srv/./x", "/srv", "x"),
        ("/srv/x/y", "/srv", "x/y"),
        ("/srv/fixed/x", "/srv/fixed", "x"),
        ("/srv/fixed", "/srv/fixed", ""),
        ("/srv/fixedx", "/srv", "fixedx"),
    ],
)
def test_the_closest_prefix_decides(path: str, prefix: str, beneath: str) -> None:
    found = place(host_path(path), [HostPath(prefix="/srv"), HostPath(prefix="/srv/fixed", read_only=True)])
    assert (found.allowed.prefix, found.beneath) == (prefix, beneath)


def test_the_root_as_a_prefix_allows_all() -> None:
    assert place(host_path("/etc/x"), [HostPath(prefix="/")]).beneath == "etc/x"


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/etc", '"/etc" is below no folder that this runner allows (its setting --host-path)'),
        ("/srvx", "--host-path"),
        ("/sr", "--host-path"),
        ("/", "--host-path"),
        ("srv", "must be an absolute path"),
        ("/srv/../etc", "must be an absolute path without '..'"),
        ("/srv/x\0", "must be an absolute path"),
    ],
)
def test_what_is_not_below_a_prefix_is_refused_by_name(tmp_path: Path, path: str, says: str) -> None:
    with made(tmp_path, host_paths=[HostPath(prefix="/srv")]) as volumes, pytest.raises(VolumeError) as raised:
        volumes.write(ID, [host_path(path)])
    assert says in str(raised.value)
    assert 'volume "host"' in str(raised.value)


def test_by_default_nothing_is_allowed(tmp_path: Path) -> None:
    with made(tmp_path) as volumes, pytest.raises(VolumeError, match="--host-path"):
        volumes.write(ID, [host_path("/")])


@pytest.mark.parametrize("kind", ["", "Directory", "DirectoryOrCreate"])
def test_a_folder_that_is_there_is_mounted(volumes: Volumes, host: Path, kind: str) -> None:
    assert mounted(volumes, host_path(host / "open" / "data", kind)) == {"/m*": {"file": "open/data"}}
    assert mounted(volumes, host_path(host / "open", kind)) == {"/m*": {"data/file": "open/data"}}
    read_only = mount("host", "/m", read_only=True)
    assert mounted(volumes, host_path(host / "open" / "data", kind), read_only) == {"/m": {"file": "open/data"}}


@pytest.mark.parametrize("kind", ["", "Directory", "DirectoryOrCreate"])
def test_below_a_prefix_for_reading_nobody_writes(volumes: Volumes, host: Path, kind: str) -> None:
    assert mounted(volumes, host_path(host / "fixed" / "data", kind)) == {"/m": {"file": "fixed/data"}}
    with pytest.raises(VolumeError, match="there is no folder"):
        mounted(volumes, host_path(host / "fixed" / "new", kind))
    with pytest.raises(VolumeError, match='volume "host", subPath "new": No such file'):
        mounted(volumes, host_path(host / "fixed" / "data", kind), mount("host", "/m", "new"))
    assert os.listdir(host / "fixed") == ["data"]


@pytest.mark.parametrize("kind", ["", "Directory"])
def test_a_folder_that_is_missing_is_refused(volumes: Volumes, host: Path, kind: str) -> None:
    with pytest.raises(
        VolumeError, match=f'volume "host": there is no folder "{host / "open" / "new"}" on this runner'
    ):
        mounted(volumes, host_path(host / "open" / "new", kind))
    assert os.listdir(host / "open") == ["data"]


def test_a_folder_that_is_missing_is_made_where_its_type_says_so(volumes: Volumes, host: Path) -> None:
    before = os.umask(0o077)
    try:
        spec = host_path(host / "open" / "new" / "deep", "DirectoryOrCreate")
        assert mounted(volumes, spec) == {"/m*": {}}
    finally:
        os.umask(before)
    assert [(host / "open" / name).stat().st_mode & 0o777 for name in ("new", "new/deep")] == [0o755, 0o755]
    volumes.drop(ID)
    assert (host / "open" / "new" / "deep").is_dir(), "the host's folders stay"


def test_a_prefix_that_is_not_there_is_told(tmp_path: Path) -> None:
    allowed = [HostPath(prefix=str(tmp_path / "gone"))]
    with made(tmp_path, host_paths=allowed) as volumes, pytest.raises(VolumeError, match="there is no folder"):
        mounted(volumes, host_path(tmp_path / "gone" / "x", "DirectoryOrCreate"))
    assert not (tmp_path / "gone").exists()


@pytest.mark.parametrize("kind", ["", "Directory", "DirectoryOrCreate"])
def test_a_file_is_refused_by_name(volumes: Volumes, host: Path, kind: str) -> None:
    path = host / "open" / "data" / "file"
    with pytest.raises(VolumeError, match=f"{path} is not a directory; a module sees folders, so mount the folder"):
        mounted(volumes, host_path(path, kind))
    with pytest.raises(VolumeError, match='"file" is a file of a host folder; a module sees folders, so mount'):
        mounted(volumes, host_path(host / "open" / "data", kind), mount("host", "/m", "file"))


def test_a_sub_path_is_made_when_it_is_missing(volumes: Volumes, host: Path) -> None:
    spec = host_path(host / "open" / "data")
    assert mounted(volumes, spec, mount("host", "/m", "a/b"), mount("host", "/n", "a")) == {"/m*": {}, "/n*": {}}
    assert (host / "open" / "data" / "a" / "b").is_dir()


@pytest.mark.parametrize("kind", ["", "Directory", "DirectoryOrCreate"])
@pytest.mark.parametrize("link", ["up", "far", "over", "root"])
def test_no_link_leads_out_of_the_prefix_or_the_volume(volumes: Volumes, host: Path, kind: str, link: str) -> None:
    targets = {"up": "../../closed", "far": str(host / "closed"), "over": "../../fixed/data", "root": "/"}
    (host / "open" / "data" / link).symlink_to(targets[link])
    before = sorted(host.rglob("*"))
    for path in (link, f"{link}/data", f"{link}/new"):
        with pytest.raises(VolumeError, match="leads out of the folder"):
            mounted(volumes, host_path(host / "open" / "data" / path, kind))
        with pytest.raises(VolumeError, match=f'volume "host", subPath "{path}": it leads out of the folder'):
            mounted(volumes, host_path(host / "open" / "data", kind), mount("host", "/m", path))
    assert sorted(host.rglob("*")) == before


def test_a_link_within_the_prefix_is_followed_by_a_volume_and_not_by_its_sub_paths(
    volumes: Volumes, host: Path
) -> None:
    (host / "open" / "v1").mkdir()
    (host / "open" / "v1" / "file").write_text("v1")
    (host / "open" / "data" / "current").symlink_to("../v1")
    assert mounted(volumes, host_path(host / "open" / "data" / "current")) == {"/m*": {"file": "v1"}}
    with pytest.raises(VolumeError, match="leads out"):
        mounted(volumes, host_path(host / "open" / "data"), mount("host", "/m", "current"))


def test_a_link_that_is_planted_between_the_check_and_the_start_leads_nowhere(volumes: Volumes, host: Path) -> None:
    spec = host_path(host / "open" / "data" / "sub", "DirectoryOrCreate")
    volumes.write(ID, [spec])
    found = preopens(volumes, [mount("host", "/m")], [spec])["/m"]
    with opened(found) as path:
        assert os.readlink(path) == str(host / "open" / "data" / "sub")
    (host / "open" / "data" / "sub").rmdir()
    (host / "open" / "data" / "sub").symlink_to(host / "closed")
    with pytest.raises(OSError, match="leads out"):
        found.open()


def test_what_the_runners_user_may_not_is_told_without_the_runners_own_paths() -> None:
    def scenario() -> None:
        (folder / "host" / "locked").mkdir(parents=True)
        (folder / "host" / "locked").chmod(0)
        with made(folder, host_paths=[HostPath(prefix=str(folder / "host"))]) as volumes:
            with pytest.raises(VolumeError) as raised:
                mounted(volumes, host_path(folder / "host" / "locked" / "x"))
            assert str(raised.value) == 'volume "host": Permission denied'
        (folder / "host" / "locked").chmod(0o700)

    with public_folder() as folder:
        unprivileged(scenario)
