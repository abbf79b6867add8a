"""A small collection of the API server, followed: a LIST, then a WATCH from there, and again from the start after any error.

kopf watches what users make; it watches the whole cluster or nothing, and not before we lead. This is for what is ours to know
besides: the nodes, and where runners are. Of each object only what is asked of it is kept.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Generic, TypeVar

from wherry_operator.clock import Clock
from wherry_operator.kube import Kube, KubeError
from wherry_operator.models import Object

log = logging.getLogger(__name__)

FIRST_BACKOFF_SECONDS = 0.5
LAST_BACKOFF_SECONDS = 30.0

SHORT_SECONDS = 1.0
"""A stream that ends sooner is ended by something between us and the API server, and so will be the next."""

_Kept = TypeVar("_Kept")


class Watched(Generic[_Kept]):
    """Objects by their names, which are unique: of one namespace, or of none.

    `keep` says what is remembered of an object; `on_change` is called with the names for which that has changed, on the event
    loop, and must not block.
    """

    def __init__(
        self,
        kube: Kube,
        path: str,
        *,
        keep: Callable[[Object], _Kept],
        on_change: Callable[[set[str]], None],
        label_selector: str = "",
        clock: Clock | None = None,
    ) -> None:
        self._kube = kube
        self._path = path
        self._keep = keep
        self._on_change = on_change
        self._labels = label_selector
        self._clock = clock or Clock()
        self._trouble = "not read yet"
        self.items: dict[str, _Kept] = {}
        """As they are now; while there is trouble, as they were last."""
        self.synced = asyncio.Event()
        """They were read completely at least once."""

    def complaint(self) -> str:
        """For a health check: why what is known may be old, "" if it is not."""
        return self._trouble

    async def run(self) -> None:
        """Follow until cancelled."""
        delay = FIRST_BACKOFF_SECONDS
        while True:
            try:
                version = await self._list()
                while True:
                    began = self._clock.monotonic()
                    version = await self._follow(version)
                    delay = FIRST_BACKOFF_SECONDS
                    if self._clock.monotonic() - began < SHORT_SECONDS:
                        await self._clock.sleep(FIRST_BACKOFF_SECONDS)
            except KubeError as error:
                # 410 is how the API server says that it has forgotten what came after our version.
                if error.status != 410:
                    if error.message != self._trouble:
                        log.warning("can't follow %s: %s", self._path, error.message)
                    self._trouble = error.message
            except Exception as error:
                log.exception("following %s failed; it begins again", self._path)
                self._trouble = type(error).__name__
            await self._clock.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(2 * delay, LAST_BACKOFF_SECONDS)

    async def _list(self) -> str:
        bodies, version = await self._kube.list_objects(self._path, label_selector=self._labels)
        found = {body["metadata"]["name"]: self._keep(body) for body in bodies}
        changed = {name for name in found.keys() | self.items.keys() if found.get(name) != self.items.get(name)}
        first = not self.synced.is_set()
        self.items = found
        self._trouble = ""
        self.synced.set()
        if changed or first:
            self._on_change(changed)
        return version

    async def _follow(self, version: str) -> str:
        """One stream, to its end; the version up to which everything is known."""
        async for kind, body in self._kube.watch(self._path, version, label_selector=self._labels):
            version = body["metadata"]["resourceVersion"]
            if kind == "BOOKMARK":
                continue
            name = body["metadata"]["name"]
            before = self.items.get(name)
            if kind == "DELETED":
                self.items.pop(name, None)
            else:
                self.items[name] = self._keep(body)
            if self.items.get(name) != before:
                self._on_change({name})
        return version
