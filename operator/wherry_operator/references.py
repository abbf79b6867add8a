"""ConfigMaps and Secrets that objects refer to, read at most once a minute each, and never listed or watched.

A kubelet's rights end at the objects that its Pods name; so do ours. Reading them one by one on demand needs `get` alone. What
objects depend on is read again by itself once a minute, and when it has changed those objects are told, no others.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from wherry_operator.clock import Clock
from wherry_operator.kube import Forbidden, Kube, KubeError, NotFound
from wherry_operator.queue import Key
from wherry_operator.resolve.objects import Found, Kind, Missing, Reference, found

MISSING_TTL_SECONDS = 3.0
"""An object that was not there is looked for again soon: somebody is waiting for it."""

AUTHORIZER_LAG_SECONDS = (0.05, 0.2, 0.5, 1.0)
"""The Node authorizer learns of a binding a moment after we do (its graph is fed by a watch of its own)."""

MAX_CACHED = 20_000
"""Entries kept; beyond it the oldest are dropped, and read again when needed."""


READS_AT_ONCE = 8
"""Of what is read again by itself: it has time."""

LOOKS_PER_TTL = 20
"""How often it is looked what is due; so a change is never seen later than a time to live and a twentieth."""

_Place = tuple[str, Reference]
"""A namespace, and what is referred to in it."""


@dataclass(frozen=True)
class _Entry:
    value: Found | Missing
    until: float
    """How long who asks is given this."""
    read_at: float


class References:
    """A cache for one identity."""

    def __init__(
        self,
        kube: Kube,
        *,
        who: str,
        retry_forbidden: bool,
        ttl_seconds: float,
        on_change: Callable[[Key], None] = lambda _: None,
        clock: Clock | None = None,
    ) -> None:
        """`on_change` is called for an object when something has changed that it depends on (`use`)."""
        self._kube = kube
        self._on_change = on_change
        self._who = who
        self._retry_forbidden = retry_forbidden
        self._ttl = ttl_seconds
        self._clock = clock or Clock()
        self._entries: dict[_Place, _Entry] = {}
        self._reading: dict[_Place, asyncio.Task[Found | Missing]] = {}
        self._uses: dict[Key, frozenset[_Place]] = {}
        self._users: defaultdict[_Place, set[Key]] = defaultdict(set)

    async def read(self, namespace: str, references: Iterable[Reference]) -> dict[Reference, Found | Missing]:
        """The objects, each fresh by its time to live. What can't be read is Missing, with the reason."""
        wanted = sorted(references)
        values = await asyncio.gather(*(self._one(namespace, reference) for reference in wanted))
        return dict(zip(wanted, values, strict=True))

    def use(self, key: Key, namespace: str, references: Iterable[Reference]) -> None:
        """An object depends on these from now on, and on none of those before."""
        before = self._uses.pop(key, frozenset())
        places = frozenset((namespace, reference) for reference in references)
        if places:
            self._uses[key] = places
        for place in places - before:
            self._users[place].add(key)
        for place in before - places:
            self._users[place].discard(key)
            if not self._users[place]:
                del self._users[place]

    async def run(self) -> None:
        """Read again what somebody depends on, each once in a time to live, until cancelled."""
        gate = asyncio.Semaphore(READS_AT_ONCE)

        async def read(place: _Place) -> None:
            async with gate:
                await self._fetched(place)

        while True:
            await self._clock.sleep(self._ttl / LOOKS_PER_TTL)
            old = self._clock.monotonic() - self._ttl
            await asyncio.gather(*(read(place) for place in list(self._users) if self._is_due(place, old)))

    def _is_due(self, place: _Place, old: float) -> bool:
        entry = self._entries.get(place)
        return entry is None or (entry.read_at <= old and not is_immutable([entry.value]))

    def doubt(self, namespace: str, references: Iterable[Reference]) -> None:
        """Something of these is not as it was expected: somebody waits for a change, so look again soon."""
        until = self._clock.monotonic() + MISSING_TTL_SECONDS
        for reference in references:
            entry = self._entries.get((namespace, reference))
            if entry is not None and entry.until > until and not is_immutable([entry.value]):
                self._entries[namespace, reference] = replace(entry, until=until)

    async def _one(self, namespace: str, reference: Reference) -> Found | Missing:
        place = (namespace, reference)
        entry = self._entries.get(place)
        if entry is not None and entry.until > self._clock.monotonic():
            return entry.value
        return await self._fetched(place)

    async def _fetched(self, place: _Place) -> Found | Missing:
        # Many objects may want the same one at once: it is read once for all of them.
        task = self._reading.get(place)
        if task is None:
            task = self._reading[place] = asyncio.create_task(self._fetch(place))
            task.add_done_callback(lambda _: self._reading.pop(place, None))
        return await asyncio.shield(task)

    async def _fetch(self, place: _Place) -> Found | Missing:
        read_at = self._clock.monotonic()
        value = await self._read(*place)
        ttl = MISSING_TTL_SECONDS
        if isinstance(value, Found):
            ttl = float("inf") if value.immutable else self._ttl
        before = self._entries.pop(place, None)
        self._entries[place] = _Entry(value, self._clock.monotonic() + ttl, read_at)
        while len(self._entries) > MAX_CACHED:
            del self._entries[next(iter(self._entries))]
        if before is not None and before.value != value:
            for key in self._users.get(place, ()):
                self._on_change(key)
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
