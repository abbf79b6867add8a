"""What has run, on disk: so that nothing that ended runs again, and a lost run is known as lost (design §3.8).

One file of JSON lines for each workload. A start is written before the guest runs: it survives the death of this process
(the page cache keeps it), and after a crash of the machine the object's own status tells the same (`protocol.History`). An
end is fsynced before anybody is told of it. A torn last line is one that nobody was told of: it is ignored.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from wherry_runner import protocol

log = logging.getLogger(__name__)

FORGET_AFTER_SECONDS = 24 * 3600.0
"""A journal that no operator asked for since: its object was deleted while this runner was away."""


@dataclass(frozen=True, kw_only=True)
class Past:
    """A container's newest run. Nothing ran yet where `container_id` is empty."""

    container_id: str = ""
    restart_count: int = 0
    started_at: datetime | None = None
    terminated: protocol.Terminated | None = None
    """None although it ran: the run was lost."""

    @property
    def ran(self) -> bool:
        """Whether there was a run."""
        return bool(self.container_id)


class Journal:
    """The journal of one workload. Not shared between tasks of different workloads; every call is short."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.order = (0, 0)
        """The newest (epoch, sequence) that was accepted."""
        self.past: dict[str, Past] = {}
        self._before: dict[str, Past] = {}
        self._read()

    def accepted(self, epoch: int, sequence: int) -> None:
        """Note the order of an accepted change."""
        self.order = (epoch, sequence)
        self._append({"event": "accepted", "epoch": epoch, "sequence": sequence})

    def started(self, container: str, *, container_id: str, restart_count: int, at: datetime) -> None:
        """Note that a run is about to begin. Raises OSError, and then nothing is noted."""
        self._append(
            {
                "event": "started",
                "container": container,
                "id": container_id,
                "restarts": restart_count,
                "at": at.isoformat(),
            }
        )
        self._begin(container, Past(container_id=container_id, restart_count=restart_count, started_at=at))

    def withdrawn(self, container: str) -> None:
        """Note that the run whose start was written last did not begin after all."""
        self._append({"event": "withdrawn", "container": container})
        self.past[container] = self._before.get(container, Past())

    def ended(self, container: str, terminated: protocol.Terminated) -> None:
        """Note a run's end, on disk when this returns."""
        self.past[container] = replace(self.past.get(container, Past()), terminated=terminated)
        self._append(
            {"event": "ended", "container": container, "end": terminated.model_dump(mode="json", by_alias=True)},
            sync=True,
        )

    def adopt(self, history: Iterable[protocol.History]) -> None:
        """Take what the object's status knows and this journal does not: it was written by a runner that is gone."""
        for item in history:
            if not item.container_id:
                continue
            known = self.past.get(item.container, Past())
            newer = (item.restart_count, item.terminated is not None) > (
                known.restart_count,
                known.terminated is not None,
            )
            if newer or not known.ran:
                self.started(
                    item.container,
                    container_id=item.container_id,
                    restart_count=item.restart_count,
                    at=item.started_at or datetime.now().astimezone(),
                )
                if item.terminated is not None:
                    self.ended(item.container, item.terminated)

    def _begin(self, container: str, run: Past) -> None:
        self._before[container] = self.past.get(container, Past())
        self.past[container] = run

    def _append(self, record: dict[str, Any], *, sync: bool = False) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if os.write(descriptor, line) != len(line):
                # A disk that is full takes a part. The next record must not continue it.
                os.ftruncate(descriptor, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _read(self) -> None:
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return
        whole, newline, torn = raw.rpartition(b"\n")
        if torn:
            # The next record must not continue the torn line.
            log.warning("journal %s: dropping a torn last record of %d bytes", self._path, len(torn))
            os.truncate(self._path, len(whole) + len(newline))
        for line in whole.splitlines():
            try:
                self._apply(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                log.warning("journal %s: ignoring a record: %s", self._path, error)

    def _apply(self, record: dict[str, Any]) -> None:
        match record["event"]:
            case "accepted":
                self.order = (record["epoch"], record["sequence"])
            case "started":
                run = Past(
                    container_id=record["id"],
                    restart_count=record["restarts"],
                    started_at=datetime.fromisoformat(record["at"]),
                )
                self._begin(record["container"], run)
            case "withdrawn":
                self.past[record["container"]] = self._before.get(record["container"], Past())
            case "ended":
                end = protocol.Terminated.model_validate(record["end"])
                self.past[record["container"]] = replace(self.past.get(record["container"], Past()), terminated=end)


class Journals:
    """All journals of a runner, and the highest epoch it has seen."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._epoch_path = directory / "epoch"
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.epoch = self._read_epoch()

    def open(self, workload_id: str) -> Journal:
        """The journal of a workload, read from disk if it is there."""
        return Journal(self._folder(workload_id) / "journal")

    def known(self, workload_id: str) -> bool:
        """Whether a workload has a journal."""
        return self._folder(workload_id).is_dir()

    def drop(self, workload_id: str) -> None:
        """Forget a workload."""
        shutil.rmtree(self._folder(workload_id), ignore_errors=True)

    def raise_epoch(self, epoch: int) -> None:
        """Note a higher epoch, on disk when this returns."""
        self.epoch = epoch
        temporary = self._epoch_path.with_suffix(".new")
        with open(temporary, "w") as file:
            file.write(str(epoch))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._epoch_path)

    def forget_old(self, *, now: float | None = None) -> None:
        """Drop journals that nobody wrote to for FORGET_AFTER_SECONDS; called once, at the start."""
        limit = (time.time() if now is None else now) - FORGET_AFTER_SECONDS
        for folder in self._directory.glob("w-*"):
            newest = max((path.stat().st_mtime for path in [folder, *folder.iterdir()]), default=0.0)
            if newest < limit:
                shutil.rmtree(folder, ignore_errors=True)

    def _folder(self, workload_id: str) -> Path:
        return self._directory / f"w-{workload_id}"

    def _read_epoch(self) -> int:
        try:
            return int(self._epoch_path.read_text())
        except (FileNotFoundError, ValueError):
            return 0
