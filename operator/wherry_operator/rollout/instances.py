"""The instances of a WasmWorkload as they are: by what runners say, and for the rest by what the object's status says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any

from wherry_runner import protocol

Json = dict[str, Any]

CLOCKS_APART_SECONDS = 60.0
"""Those of runners and ours, at most."""

_SUFFIX = re.compile(r"([0-9a-f]+)-(\d+)(?:\.(\d+))?")


@dataclass(frozen=True, order=True)
class Slot:
    """What an instance is: of which revision, the how-manieth, and the how-manieth try at it."""

    revision: str
    index: int
    attempt: int = 0

    def __str__(self) -> str:
        return f"{self.revision}-{self.index}" + (f".{self.attempt}" if self.attempt else "")

    def within(self, prefix: str) -> str:
        """The instance's name, below the object's name; its id on the wire, below the object's UID."""
        return f"{prefix}-{self}"

    def next(self) -> Slot:
        """The one that replaces it."""
        return Slot(self.revision, self.index, self.attempt + 1)

    @staticmethod
    def parse(text: str, prefix: str) -> Slot | None:
        """The slot of a name below the object's name, or of an id below its UID; None: it is none of ours."""
        match = _SUFFIX.fullmatch(text.removeprefix(f"{prefix}-")) if text.startswith(f"{prefix}-") else None
        return Slot(match[1], int(match[2]), int(match[3] or 0)) if match else None


class State(Enum):
    """Where an instance is in its life."""

    WAITING = "waiting"
    """For its runner, its module, or its next run."""
    RUNNING = "running"
    STOPPING = "stopping"
    SUCCEEDED = "succeeded"
    """It will not run again, as will"""
    FAILED = "failed"
    """this one."""


@dataclass(frozen=True, kw_only=True)
class Instance:
    """One instance."""

    slot: Slot
    state: State = State.WAITING
    ready_since: datetime | None = None
    """None: it is not ready."""
    on_runner: bool = True
    """A runner has it, or is known to have had it and is silent."""
    silent: bool = False
    """Its runner does not answer: what it said last may be old."""
    lost: bool = False
    """It has not answered for so long that the instance counts as gone (design §3.7)."""
    leaving: bool = False
    """It serves, its runner is about to end or a taint expels it, and another runner may have one that takes its place."""
    expelled: bool = False
    """A taint expels it, and it may wait for nothing."""
    restarts: int = 0
    ended_at: datetime | None = None
    exit_code: int = 0
    reason: str = ""
    message: str = ""

    @property
    def ready(self) -> bool:
        """Whether it does its work, as far as can be known."""
        return self.ready_since is not None and not self.silent

    @property
    def ended(self) -> bool:
        """It will not run again."""
        return self.state in (State.SUCCEEDED, State.FAILED)

    @property
    def stopping(self) -> bool:
        """It is on its way out."""
        return self.state is State.STOPPING

    def available(self, min_ready_seconds: int, now: datetime) -> bool:
        """Whether it has been ready for long enough."""
        return self.ready and self.wait_seconds(min_ready_seconds, now) <= 0

    def wait_seconds(self, min_ready_seconds: int, now: datetime) -> float:
        """How long until then, if it stays ready."""
        assert self.ready_since is not None
        return min_ready_seconds - elapsed_seconds(self.ready_since, now) if min_ready_seconds else 0.0


def keep_order(instance: Instance) -> tuple[bool, bool, bool, bool, int]:
    """Sorts those first that are kept longest when there are too many, roughly as a ReplicaSet does it
    (pkg/controller/controller_utils.go, ActivePodsWithRanks; what has ended it does not count at all); of equals those with the
    lowest index."""
    running = instance.state is State.RUNNING
    return (instance.ended, not instance.ready, not running, not instance.on_runner, instance.slot.index)


def by_runner(slot: Slot, status: protocol.WorkloadStatus, *, silent: bool = False, lost: bool = False) -> Instance:
    """An instance as its runner tells. One that was stopped has not failed, whoever is told of its end."""
    (container,) = status.containers[:1]
    last = container.state if isinstance(container.state, protocol.Terminated) else container.last_terminated
    state, ready_since = State.WAITING, None
    if status.phase is protocol.Phase.ENDED:
        good = status.failure is None and last is not None and last.exit_code == 0
        state = State.STOPPING if status.stopped else State.SUCCEEDED if good else State.FAILED
    elif status.phase is protocol.Phase.STOPPING:
        state = State.STOPPING
    elif isinstance(container.state, protocol.Running):
        state = State.RUNNING
        ready_since = container.state.started_at if container.ready else None
    reason, message = "", ""
    match container.state:
        case protocol.Waiting(reason=why, message=text) | protocol.Terminated(reason=why, message=text):
            reason, message = why, text
    if status.failure is not None:
        reason, message = status.failure.reason, status.failure.message
    return Instance(
        slot=slot,
        state=state,
        ready_since=ready_since,
        silent=silent,
        lost=lost,
        restarts=container.restart_count,
        ended_at=((last and last.finished_at) or status.accepted_at) if status.phase is protocol.Phase.ENDED else None,
        exit_code=last.exit_code if last else 0,
        reason=reason,
        message=message,
    )


def by_status(slot: Slot, entry: Json, *, silent: bool = False, lost: bool = False, sent: bool = False) -> Instance:
    """An instance of which no runner speaks, by its entry in the object's status (empty: there is none). `silent`: the
    runner that should have it does not answer. `sent`: it is on its way to one."""
    state, ready_since = State.WAITING, None
    if result := entry.get("result"):
        state = State.SUCCEEDED if result == "Succeeded" else State.FAILED
    elif entry.get("state") == "Running" and silent:
        state = State.RUNNING
        ready_since = time(entry.get("startedAt"))
    return Instance(
        slot=slot,
        state=state,
        ready_since=ready_since,
        on_runner=silent or sent,
        silent=silent,
        lost=lost,
        restarts=entry.get("restarts", 0),
        ended_at=time(entry.get("finishedAt")) if result else None,
        exit_code=entry.get("exitCode", 0),
        reason=entry.get("reason", ""),
        message=entry.get("message", ""),
    )


def serves(status: protocol.WorkloadStatus) -> bool:
    """Whether clients reach something of it: a server, or ports that a command may listen on by its own sockets."""
    return any(each.port is not None or each.ports for each in _containers(status))


def drains(status: protocol.WorkloadStatus) -> bool:
    """Whether it has a use for its grace period though its object is gone: it is a server, or was one when it was asked to stop.
    A command can't be asked, so waiting would only take its time."""
    return any(each.port is not None for each in _containers(status)) or status.phase is protocol.Phase.STOPPING


def _containers(status: protocol.WorkloadStatus) -> tuple[protocol.ContainerStatus, ...]:
    return (*status.init_containers, *status.containers)


def elapsed_seconds(since: datetime, now: datetime) -> float:
    """How long ago something was. What is further ahead than clocks may be apart was told by one that was set back since: then
    it is long enough ago for anything, for nobody would wait until that clock has caught up."""
    seconds = (now - since).total_seconds()
    return seconds if seconds >= -CLOCKS_APART_SECONDS else float("inf")


def time(text: str | None) -> datetime | None:
    """A `metav1.Time`."""
    return datetime.fromisoformat(text) if text else None
