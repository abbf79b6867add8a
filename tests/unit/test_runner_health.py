"""What a runner says of its health, and what it says it with."""

from __future__ import annotations

from pathlib import Path

from wherry_runner.serving.health import Health, disk


def test_only_what_hinders_new_work_makes_a_runner_unready() -> None:
    said = {"executor": "", "certificate": ""}
    health = Health(ready={"executor": lambda: said["executor"]}, works={"certificate": lambda: said["certificate"]})
    assert health.unready() == ["serving: the runner is starting or stopping"]
    assert health.unwell() == []
    health.serving = True
    assert health.unready() == []
    said["certificate"] = "it has expired"
    assert health.unready() == []
    assert health.unwell() == ["certificate: it has expired"]
    said["executor"] = "lost 3 of them"
    assert health.unready() == ["executor: lost 3 of them"]
    assert health.unwell() == ["executor: lost 3 of them", "certificate: it has expired"]


def test_a_disk_that_can_be_written_to_is_no_complaint_and_nothing_stays_on_it(tmp_path: Path) -> None:
    assert disk(tmp_path)() == ""
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_can_not_be_written_to_is_named(tmp_path: Path) -> None:
    assert disk(tmp_path / "gone")() == f"{tmp_path / 'gone'} can't be written to: No such file or directory"
    full = Path("/sys/kernel")
    assert "can't be written to: " in disk(full)()


def test_the_disk_is_not_written_to_as_often_as_somebody_asks(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    asks = disk(folder, again_seconds=3600)
    assert asks() == ""
    folder.rmdir()
    assert asks() == ""
    assert "can't be written to" in disk(folder, again_seconds=3600)()
