"""What has run, on disk: so that nothing that ended runs again, and a lost run is known as lost (design §3.8).

A start is written before the guest runs: it survives the death of this process (the page cache keeps it), and after a crash
of the machine the object's own status tells the same (`protocol.History`). An end is fsynced before anybody is told of it:
`ended` writes it, and `synced` waits for the disk, together with all others who do. `journal_files.py` has the files.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wherry_runner import protocol
from wherry_runner.journal.files import FILE_BYTES, JournalFiles, Record

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
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


NOTHING = Past()


class Journal:
    """What is known of one workload, and the way to note more. Every call but `synced` is short."""

    __slots__ = ("_files", "_id", "failure", "order", "past", "stopped")

    def __init__(self, workload_id: str, files: JournalFiles) -> None:
        self._id = workload_id
        self._files = files
        self.order = (0, 0)
        """The newest (epoch, sequence) that was accepted."""
        self.past: dict[str, Past] = {}
        """The newest run of each container that ran."""
        self.failure: protocol.Failure | None = None
        """Why the workload was ended as a whole: it never runs again."""
        self.stopped = False
        """It was to stop before it had ended: what is noted of its runs says nothing about another life."""

    def accepted(self, epoch: int, sequence: int, *, stop: bool = False) -> None:
        """Note the order of an accepted change; `stop`: that it is to stop. Raises OSError, and then nothing is noted."""
        self._append("accepted", epoch=epoch, sequence=sequence, **({"stop": True} if stop else {}))
        self.order = (epoch, sequence)
        self.stopped = self.stopped or stop

    def started(self, container: str, *, container_id: str, restart_count: int, at: datetime) -> None:
        """Note that a run is about to begin. Raises OSError, and then nothing is noted."""
        self._append("started", container=container, id=container_id, restarts=restart_count, at=at.isoformat())
        self.past[container] = Past(container_id=container_id, restart_count=restart_count, started_at=at)

    def withdrawn(self, container: str, before: Past) -> None:
        """Note that the run whose start was written last did not begin after all: what was `before` it still is.

        Raises OSError.
        """
        self._set(container, before)
        self._append("withdrawn", container=container, before=_past_record(before))

    def ended(self, container: str, terminated: protocol.Terminated) -> None:
        """Note a run's end; it may be told once `synced` has returned. Raises OSError."""
        # In memory in any case: an end that the disk doesn't take is one nevertheless.
        self.past[container] = replace(self.past.get(container, NOTHING), terminated=terminated)
        self._append("ended", container=container, end=_wire(terminated))

    def failed(self, failure: protocol.Failure) -> None:
        """Note that the workload was ended as a whole; it may be told once `synced` has returned. Raises OSError."""
        self.failure = failure
        self._append("failed", failure=_wire(failure))

    def adopt(self, history: Iterable[protocol.History]) -> None:
        """Take what the object's status knows and this journal does not: it was written by a runner that is gone.

        Raises OSError.
        """
        for item in history:
            if not item.container_id:
                continue
            known = self.past.get(item.container, NOTHING)
            newer = (item.restart_count, item.terminated is not None) > (
                known.restart_count,
                known.terminated is not None,
            )
            if newer or not known.ran:
                self.started(
                    item.container,
                    container_id=item.container_id,
                    restart_count=item.restart_count,
                    at=item.started_at or datetime.now(UTC),
                )
                if item.terminated is not None:
                    self.ended(item.container, item.terminated)

    async def synced(self) -> None:
        """Wait until all that was noted is on disk. Raises OSError."""
        await self._files.synced()

    def replay(self, record: Record) -> None:
        """Take what a record says. Raises KeyError, TypeError, ValueError for one that makes no sense."""
        match record["event"]:
            case "accepted":
                self.order = (int(record["epoch"]), int(record["sequence"]))
                self.stopped = self.stopped or record.get("stop") is True
            case "started":
                self.past[record["container"]] = _past(record)
            case "withdrawn":
                self._set(record["container"], _past(record["before"]))
            case "ended":
                end = protocol.Terminated.model_validate(record["end"])
                self.past[record["container"]] = replace(self.past.get(record["container"], NOTHING), terminated=end)
            case "failed":
                self.failure = protocol.Failure.model_validate(record["failure"])
            case "known":
                past = {name: _past(found) for name, found in record["past"].items()}
                failure = record["failure"] and protocol.Failure.model_validate(record["failure"])
                self.order = (int(record["epoch"]), int(record["sequence"]))
                self.past, self.failure, self.stopped = past, failure or None, record.get("stop") is True

    def snapshot(self) -> Callable[[], Record]:
        """What makes one record of all that is known now, in any thread."""
        workload_id, order, past, failure = self._id, self.order, dict(self.past), self.failure
        stopped = self.stopped

        def record() -> Record:
            return {
                "workload": workload_id,
                "event": "known",
                "epoch": order[0],
                "sequence": order[1],
                "past": {name: _past_record(found) for name, found in past.items()},
                "failure": failure and _wire(failure),
                **({"stop": True} if stopped else {}),
            }

        return record

    def _append(self, event: str, **fields: Any) -> None:
        self._files.append({"workload": self._id, "event": event, **fields})

    def _set(self, container: str, past: Past) -> None:
        if past.ran:
            self.past[container] = past
        else:
            self.past.pop(container, None)


class Journals:
    """All journals of a runner, and the highest epoch it has seen. One event loop."""

    def __init__(
        self, directory: Path, *, file_bytes: int = FILE_BYTES, sync: Callable[[int], None] = os.fdatasync
    ) -> None:
        """Read what is there, and begin a new file. `sync` brings a file to the disk. Raises OSError."""
        self._epoch_path = directory / "epoch"
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.epoch = self._read_epoch()
        self._journals: dict[str, Journal] = {}
        self._files = JournalFiles(directory, self._snapshot, file_bytes=file_bytes, sync=sync)
        for record in self._files.read():
            self._replay(record)
        self._files.begin()

    def open(self, workload_id: str) -> Journal:
        """The journal of a workload. Whoever opens one that isn't `known` and notes nothing in it has to drop it."""
        if (journal := self._journals.get(workload_id)) is None:
            journal = self._journals[workload_id] = Journal(workload_id, self._files)
        return journal

    def known(self, workload_id: str) -> bool:
        """Whether there is a journal of a workload."""
        return workload_id in self._journals

    def workloads(self) -> list[str]:
        """All that have one."""
        return list(self._journals)

    def drop(self, workload_id: str) -> None:
        """Forget a workload."""
        if self._journals.pop(workload_id, None) is None:
            return
        try:
            self._files.append({"workload": workload_id, "event": "dropped"})
        except OSError as error:
            log.error("journal: it is not noted that workload %s is gone: %s", workload_id, error)

    def raise_epoch(self, epoch: int) -> None:
        """Note a higher epoch, on disk when this returns: that is once for each term of an operator. Raises OSError."""
        temporary = self._epoch_path.with_suffix(".new")
        with open(temporary, "w") as file:
            file.write(str(epoch))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self._epoch_path)
        self.epoch = epoch

    async def close(self) -> None:
        """Wait for what is on its way to the disk, and close the file."""
        await self._files.close()

    def _replay(self, record: Record) -> None:
        try:
            workload_id = record["workload"]
            if record["event"] == "dropped":
                self._journals.pop(workload_id, None)
            else:
                self.open(workload_id).replay(record)
        except (KeyError, TypeError, ValueError) as error:
            log.warning("journal: ignoring a record: %r", error)

    def _snapshot(self) -> list[Callable[[], Record]]:
        return [journal.snapshot() for journal in self._journals.values()]

    def _read_epoch(self) -> int:
        try:
            return int(self._epoch_path.read_text())
        except (FileNotFoundError, ValueError):
            return 0


def _wire(value: protocol.Wire) -> Record:
    return value.model_dump(mode="json", by_alias=True, exclude_none=True)


def _past_record(past: Past) -> Record:
    return {
        "id": past.container_id,
        "restarts": past.restart_count,
        "at": past.started_at and past.started_at.isoformat(),
        "end": past.terminated and _wire(past.terminated),
    }


def _past(record: Record) -> Past:
    """Raises KeyError, TypeError, ValueError."""
    end = record.get("end")
    return Past(
        container_id=record["id"],
        restart_count=int(record["restarts"]),
        started_at=datetime.fromisoformat(record["at"]) if record["at"] else None,
        terminated=protocol.Terminated.model_validate(end) if end else None,
    )
