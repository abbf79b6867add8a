"""ConfigMaps and Secrets that objects refer to, read at most once a minute each, and never listed or watched.

A kubelet's rights end at the objects that its Pods name; so do ours. Reading them one by one on demand needs `get` alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from wherry_operator.clock import Clock
from wherry_operator.kube import Forbidden, Kube, KubeError, NotFound
from wherry_operator.resolve.objects import Found, Kind, Missing, Reference, found

MISSING_TTL_SECONDS = 3.0
"""An object that was not there is looked for again soon: somebody is waiting for it."""

AUTHORIZER_LAG_SECONDS = (0.05, 0.2, 0.5, 1.0)
"""The Node authorizer learns of a binding a moment after we do (its graph is fed by a watch of its own)."""

MAX_CACHED = 20_000
"""Entries kept; beyond it the oldest are dropped, and read again when needed."""


@dataclass(frozen=True)
class _Entry:
    value: Found | Missing
    until: float


class References:
    """A cache for one identity."""

    def __init__(
        self, kube: Kube, *, who: str, retry_forbidden: bool, ttl_seconds: float, clock: Clock | None = None
    ) -> None:
        self._kube = kube
        self._who = who
        self._retry_forbidden = retry_forbidden
        self._ttl = ttl_seconds
        self._clock = clock or Clock()
        self._entries: dict[tuple[str, Reference], _Entry] = {}
        self._reading: dict[tuple[str, Reference], asyncio.Task[Found | Missing]] = {}

    async def read(self, namespace: str, references: Iterable[Reference]) -> dict[Reference, Found | Missing]:
        """The objects, each fresh by its time to live. What can't be read is Missing, with the reason."""
        wanted = sorted(references)
        values = await asyncio.gather(*(self._one(namespace, reference) for reference in wanted))
        return dict(zip(wanted, values, strict=True))

    @property
    def refresh_seconds(self) -> float:
        """When somebody who uses objects looks again: twice in a time to live, so that a change is never seen later than
        one and a half of it (design §3.2: within 90 s)."""
        return self._ttl / 2

    def doubt(self, namespace: str, references: Iterable[Reference]) -> None:
        """Something of these is not as it was expected: somebody waits for a change, so look again soon."""
        until = self._clock.monotonic() + MISSING_TTL_SECONDS
        for reference in references:
            entry = self._entries.get((namespace, reference))
            if entry is not None and entry.until > until and not is_immutable([entry.value]):
                self._entries[namespace, reference] = _Entry(entry.value, until)

    async def _one(self, namespace: str, reference: Reference) -> Found | Missing:
        key = (namespace, reference)
        entry = self._entries.get(key)
        if entry is not None and entry.until > self._clock.monotonic():
            return entry.value
        # Many objects may want the same one at once: it is read once for all of them.
        task = self._reading.get(key)
        if task is None:
            task = self._reading[key] = asyncio.create_task(self._fetch(namespace, reference))
            task.add_done_callback(lambda _: self._reading.pop(key, None))
        return await asyncio.shield(task)

    async def _fetch(self, namespace: str, reference: Reference) -> Found | Missing:
        value = await self._read(namespace, reference)
        ttl = MISSING_TTL_SECONDS
        if isinstance(value, Found):
            ttl = float("inf") if value.immutable else self._ttl
        self._entries.pop((namespace, reference), None)
        self._entries[namespace, reference] = _Entry(value, self._clock.monotonic() + ttl)
        while len(self._entries) > MAX_CACHED:
            del self._entries[next(iter(self._entries))]
        return value

    async def _read(self, namespace: str, reference: Reference) -> Found | Missing:
        path = f"/api/v1/namespaces/{namespace}/{reference.kind.plural}/{reference.name}"
        waits = iter(AUTHORIZER_LAG_SECONDS if self._retry_forbidden else ())
        while True:
            try:
                return found(reference.kind, await self._kube.get(path))
            except NotFound:
                return Missing(f'{reference.kind.value} "{reference.name}" not found')
            except Forbidden:
                wait = next(waits, None)
                if wait is None:
                    return Missing(
                        f'{reference.kind.value} "{reference.name}" can\'t be read: {self._who} has no right to get '
                        f'{reference.kind.plural} in namespace "{namespace}"; see docs/security.md for the grant',
                        absent=False,
                    )
                await self._clock.sleep(wait)
            except KubeError as error:
                return Missing(
                    f'failed to get {reference.kind.value} "{reference.name}": {error.message}', absent=False
                )


def is_immutable(values: Iterable[Found | Missing]) -> bool:
    """Whether nothing of this can change."""
    return all(isinstance(value, Found) and value.immutable for value in values)


__all__ = ["Kind", "References", "is_immutable"]
