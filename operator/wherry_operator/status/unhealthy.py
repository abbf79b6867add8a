"""Probes that fail, as Events in the kubelet's words (pkg/kubelet/prober/prober.go).

A runner tells a failure when it is another one than before, and else once a minute; so nothing here has to limit them, but for
those of many instances. What was told is remembered in this process only: the next one tells it once more.
"""

from __future__ import annotations

from collections.abc import Iterable

from wherry_operator.status.happenings import WARNING, Happening
from wherry_runner.protocol import WorkloadStatus

AT_ONCE = 3
"""Told of one object at a time, at most."""


class Unhealthy:
    """Remembers what was told."""

    def __init__(self) -> None:
        self._told: dict[str, dict[tuple[str, str, str], tuple[str, int]]] = {}
        """By the object's UID, the workload's id, the container and the probe: of which run, and how often it had failed."""

    def gone(self, uid: str) -> None:
        """The object exists no more."""
        self._told.pop(uid, None)

    def news(self, uid: str, statuses: Iterable[WorkloadStatus]) -> list[Happening]:
        """What is to be told of an object of which runners say this."""
        before = self._told.pop(uid, {})
        now: dict[tuple[str, str, str], tuple[str, int]] = {}
        found: list[Happening] = []
        for status in statuses:
            for container in (*status.init_containers, *status.containers):
                for failure in container.probe_failures:
                    key = (status.id, container.name, failure.probe)
                    now[key] = (container.container_id, failure.count)
                    message = f"{failure.probe} probe failed: {failure.message}"
                    if before.get(key) != now[key] and len(found) < AT_ONCE:
                        found.append(Happening(WARNING, "Unhealthy", message, container.name))
        if now:
            self._told[uid] = now
        return found
