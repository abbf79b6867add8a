"""Claims: only those that the runner's settings offer, by the names in which objects refer to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.volumes import ID, made, mount, preopens, seen
from wherry_runner.protocol import ClaimVolume, HostPathVolume, VolumeMount
from wherry_runner.settings import SettingsError, parse
from wherry_runner.volumes import Claim, HostPath, VolumeError, Volumes

RUNNER = ["--cert", "c", "--key", "k", "--client-ca", "ca", "--name", "one", "--node", "n", "--executor", "python"]


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """What two claims hold, and a way out of the first."""
    for name in ("open", "fixed"):
        (tmp_path / name / "data").mkdir(parents=True)
        (tmp_path / name / "data" / "file").write_text(name)
    (tmp_path / "open" / "out").symlink_to(tmp_path / "fixed")
    return tmp_path


@pytest.fixture
def volumes(folders: Path) -> Iterator[Volumes]:
    claims = [
        Claim(name="team-a/open", folder=HostPath(prefix=str(folders / "open"))),
        Claim(name="team-a/fixed", folder=HostPath(prefix=str(folders / "fixed"), read_only=True)),
    ]
    with made(folders, claims=claims) as volumes:
        yield volumes


def mounted(volumes: Volumes, claim: str, *mounts: VolumeMount, read_only: bool = False) -> dict[str, dict[str, str]]:
    """What a guest finds, by the paths of its mounts; those that it may write to have a `*` behind them."""
    spec = ClaimVolume(name="v", claim=claim, read_only=read_only)
    volumes.write(ID, [spec])
    found = preopens(volumes, mounts or [mount("v", "/m")], [spec])
    return {path + "*" * preopen.writable: seen(preopen) for path, preopen in found.items()}


def test_a_claim_is_mounted_as_its_setting_the_volume_and_the_mount_allow(volumes: Volumes) -> None:
    one = mount("v", "/m", sub_path="data")
    assert mounted(volumes, "team-a/open", one) == {"/m*": {"file": "open"}}
    assert mounted(volumes, "team-a/fixed", one) == {"/m": {"file": "fixed"}}
    assert mounted(volumes, "team-a/open", one, read_only=True) == {"/m": {"file": "open"}}
    reading = mount("v", "/m", sub_path="data", read_only=True)
    assert mounted(volumes, "team-a/open", reading) == {"/m": {"file": "open"}}


def test_a_sub_path_is_made_where_the_claim_can_be_written_to(volumes: Volumes, folders: Path) -> None:
    assert mounted(volumes, "team-a/open", mount("v", "/m", sub_path="new")) == {"/m*": {}}
    assert (folders / "open" / "new").is_dir()
    for claim, read_only in (("team-a/fixed", False), ("team-a/open", True)):
        with pytest.raises(VolumeError, match="No such file"):
            mounted(volumes, claim, mount("v", "/m", sub_path="newer"), read_only=read_only)


@pytest.mark.parametrize("claim", ["team-b/open", "team-a/other", "open/team-a", "/open", "team-a/../open"])
def test_any_other_claim_is_refused_by_name(volumes: Volumes, claim: str) -> None:
    with pytest.raises(VolumeError, match=f'volume "v": the claim "{claim}" is not mounted into this runner'):
        volumes.write(ID, [ClaimVolume(name="v", claim=claim)])


def test_no_way_leads_out_of_a_claim_and_none_but_the_claim_leads_in(volumes: Volumes, folders: Path) -> None:
    with pytest.raises(VolumeError):
        mounted(volumes, "team-a/open", mount("v", "/m", sub_path="out/data"))
    with pytest.raises(VolumeError, match="--host-path"):
        volumes.write(ID, [HostPathVolume(name="v", path=str(folders / "open"))])


def test_the_runners_settings_say_what_is_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WHERRY_RUNNER_CLAIM", raising=False)
    assert parse(RUNNER).claims == ()
    two = (
        Claim(name="a/b", folder=HostPath(prefix="/c")),
        Claim(name="d/e.f", folder=HostPath(prefix="/g", read_only=True)),
    )
    assert parse([*RUNNER, "--claim", "a/b=/c", "--claim", "d/e.f=/g:ro"]).claims == two
    for text in ("a=/c", "a/b", "a/b=c", "a/b/c=/c", "/b=/c", "A/b=/c"):
        with pytest.raises(SettingsError, match="--claim: it wants"):
            parse([*RUNNER, "--claim", text])
