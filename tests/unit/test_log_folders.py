"""Where logs are, and how they go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from wherry_runner.logs import folders as log_folders
from wherry_runner.logs.folders import LogFolders


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[LogFolders]:
    found = LogFolders(tmp_path / "logs")
    yield found
    found.close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(folder: Path, *files: str) -> None:
    log_folders.make(folder)
    log_folders.make(folder)  # it is there already
    for name in files:
        (folder / name).touch()


def test_the_logs_of_the_newest_run_and_of_the_one_before_are_found_and_kept(logs: LogFolders) -> None:
    folder = logs.of("w", "main")
    assert log_folders.newest(folder) is None
    write(folder, "8.log", "9.log", "9.log.1", "10.log", "10.log.1", "11.log", "notes.log")
    assert log_folders.newest(folder) == folder / "11.log", "by number, not by name"
    assert log_folders.newest(folder, back=1) == folder / "10.log"
    log_folders.drop_old(folder, newest=11)
    assert names(folder) == ["10.log", "10.log.1", "11.log", "notes.log"]


def test_what_is_retired_is_out_of_sight_at_once_and_gone_soon(tmp_path: Path, logs: LogFolders) -> None:
    for workload in ("a", "b"):
        for container in ("main", "side"):
            write(logs.of(workload, container), "0.log")
    logs.retire("a", "side")
    assert names(tmp_path / "logs" / "a") == ["main"]
    logs.retire("a")
    logs.retire("a")
    logs.retire("never-seen")
    assert names(tmp_path / "logs") == ["b"]
    logs.close()
    assert names(tmp_path / "logs.retired") == []


def test_what_a_killed_process_had_retired_goes_with_the_next_one(tmp_path: Path) -> None:
    write(tmp_path / "logs.retired" / "left" / "main", "0.log")
    write(tmp_path / "logs" / "known" / "main", "0.log")
    write(tmp_path / "logs" / "unknown" / "main", "0.log")
    logs = LogFolders(tmp_path / "logs")
    logs.retire_unless(lambda name: name == "known")
    assert names(tmp_path / "logs") == ["known"]
    logs.close()
    assert names(tmp_path / "logs.retired") == []


def test_nobody_else_can_read_a_log(tmp_path: Path, logs: LogFolders) -> None:
    write(logs.of("w", "main"), "0.log")
    for folder in (tmp_path / "logs", tmp_path / "logs" / "w", tmp_path / "logs" / "w" / "main"):
        assert folder.stat().st_mode & 0o777 == 0o700, folder
