"""Probes and hooks that fail, as Events in the kubelet's words (pkg/kubelet/prober/prober.go, kuberuntime_container.go).

A runner tells a failure when it is another one than before, and else once a minute; so nothing here has to limit them, but for
those of many instances. What was told is remembered in this process only: the next one tells it once more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from wherry_operator.status.happenings import WARNING, Happening
from wherry_runner.protocol import ContainerStatus, WorkloadStatus

AT_ONCE = 3
"""Told of one object at a time, at most."""


class Unhealthy:
    """Remembers what was told."""

    def __init__(self) -> None:
        self._told: dict[str, dict[tuple[str, str, str], tuple[str, int]]] = {}
        """By the object's UID, the workload's id, the container and the probe or hook: of which run, and how often it had
        failed."""

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
                for what, count, reason, message in _failures(container):
                    key = (status.id, container.name, what)
                    now[key] = (container.container_id, count)
                    if before.get(key) != now[key] and len(found) < AT_ONCE:
                        found.append(Happening(WARNING, reason, message, container.name))
        if now:
            self._told[uid] = now
        return found


def _failures(container: ContainerStatus) -> Iterator[tuple[str, int, str, str]]:
    """Of what, the how-manieth, and reason and message of its Event."""
    for probe in container.probe_failures:
        yield probe.probe, probe.count, "Unhealthy", f"{probe.probe} probe failed: {probe.message}"
    for hook in container.hook_failures:
        # Without its message, which may tell what the server answered.
        yield hook.hook, 1, f"Failed{hook.hook}Hook", f"{hook.hook}Hook failed"
