"""What runners tell of runs, and a recorder of what is told to users: for tests of the reconcilers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from wherry_operator.events import EventRecorder
from wherry_operator.kube import Kube
from wherry_operator.status.happenings import Happening
from wherry_runner.protocol import Terminated

Json = dict[str, Any]

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
"""When everything happens."""


def end(code: int = 0, run: str = "a") -> Terminated:
    """A run's end."""
    reason = "Completed" if code == 0 else "Error"
    return Terminated(exit_code=code, reason=reason, container_id=run, started_at=START, finished_at=START)


class Recorder(EventRecorder):
    """Keeps what is to be told."""

    def __init__(self, kube: Kube, told: list[tuple[str, str]]) -> None:
        super().__init__(kube, component="wherry", host="wherry")
        self._tells = told

    def record(self, about: Json, happening: Happening) -> None:
        self._tells.append((happening.reason, happening.message))
