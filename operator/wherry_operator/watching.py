"""A small collection of the API server, followed: a LIST, then a WATCH from there, and again from the start after any error.

kopf watches what users make; it watches the whole cluster or nothing, and not before we lead. This is for what is ours to know
besides: the nodes, where runners are, and Services. Of each object only what is asked of it is kept.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from wherry_operator.clock import Clock
from wherry_operator.kube import Forbidden, Kube, KubeError
from wherry_operator.models import Object, resource_version

log = logging.getLogger(__name__)

FIRST_BACKOFF_SECONDS = 0.5
LAST_BACKOFF_SECONDS = 30.0

SHORT_SECONDS = 1.0
"""A stream that ends sooner is ended by something between us and the API server, and so will be the next."""

_Kept = TypeVar("_Kept")


def name_of(body: Object) -> str:
    """The name of an object; unique in a collection of one namespace, or of objects without one."""
    return str(body["metadata"]["name"])


def path_of(body: Object) -> str:
    """`NAMESPACE/NAME`, for collections of all namespaces."""
    return f"{body['metadata']['namespace']}/{body['metadata']['name']}"


class Watched(Generic[_Kept]):
    """Objects by their names.

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
        name: Callable[[Object], str] = name_of,
        may_be_refused: bool = False,
        clock: Clock | None = None,
    ) -> None:
        """`may_be_refused`: others are followed too, and go on where this one is forbidden to us; then it counts as read."""
        self._kube = kube
        self._name = name
        self._path = path
        self._keep = keep
        self._on_change = on_change
        self._labels = label_selector
        self._clock = clock or Clock()
        self._may_be_refused = may_be_refused
        self._refused = False
        self._trouble = "not read yet"
        self._written: dict[str, int] = {}
        """The version of what we wrote ourselves, until the watch has it as well."""
        self.items: dict[str, _Kept] = {}
        """As they are now; while there is trouble, as they were last."""
        self.synced = asyncio.Event()
        """They were read completely at least once."""

    def complaint(self) -> str:
        """For a health check: why what is known may be old, "" if it is not."""
        return "" if self._refused else self._trouble

    def wrote(self, body: Object) -> None:
        """Take the answer to a write of ours: what the watch brings later may be older."""
        name = self._name(body)
        self._written[name] = resource_version(body)
        self.items[name] = self._keep(body)

    def removed(self, name: str) -> None:
        """Take note of a deletion of ours."""
        self.items.pop(name, None)

    async def load(self) -> str:
        """Read all of them; the version that they have together. Raises KubeError."""
        bodies, version = await self._kube.list_objects(self._path, label_selector=self._labels)
        found = {self._name(body): self._keep(body) for body in bodies}
        changed = {name for name in found.keys() | self.items.keys() if found.get(name) != self.items.get(name)}
        first = not self.synced.is_set()
        self.items = found
        self._written.clear()
        self._trouble, self._refused = "", False
        self.synced.set()
        if changed or first:
            self._on_change(changed)
        return version

    async def run(self) -> None:
        """Follow until cancelled."""
        delay = FIRST_BACKOFF_SECONDS
        while True:
            try:
                version = await self.load()
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
                self._refused = self._may_be_refused and isinstance(error, Forbidden)
                if self._refused:
                    self.synced.set()
            except Exception as error:
                log.exception("following %s failed; it begins again", self._path)
                self._trouble = type(error).__name__
            await self._clock.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(2 * delay, LAST_BACKOFF_SECONDS)

    async def _follow(self, version: str) -> str:
        """One stream, to its end; the version up to which everything is known."""
        async for kind, body in self._kube.watch(self._path, version, label_selector=self._labels):
            version = body["metadata"]["resourceVersion"]
            if kind == "BOOKMARK":
                continue
            name = self._name(body)
            if resource_version(body) < self._written.get(name, 0):
                continue
            self._written.pop(name, None)
            before = self.items.get(name)
            if kind == "DELETED":
                self.items.pop(name, None)
            else:
                self.items[name] = self._keep(body)
            if self.items.get(name) != before:
                self._on_change({name})
        return version


class WatchedIn(Generic[_Kept]):
    """The same kind in several namespaces, each followed by itself, as one. Their names are `NAMESPACE/NAME`."""

    def __init__(self, parts: Mapping[str, Watched[_Kept]]) -> None:
        """By namespace; one for all of them under `""`."""
        self._parts = dict(parts)

    @property
    def items(self) -> Mapping[str, _Kept]:
        """As they are now."""
        parts = [part.items for part in self._parts.values()]
        return parts[0] if len(parts) == 1 else ChainMap(*parts)

    @property
    def synced(self) -> bool:
        """Whether all were read completely at least once."""
        return all(part.synced.is_set() for part in self._parts.values())

    async def wait_synced(self) -> None:
        """Until they are."""
        for part in self._parts.values():
            await part.synced.wait()

    def complaint(self) -> str:
        """For a health check: the first trouble there is."""
        return next((trouble for part in self._parts.values() if (trouble := part.complaint())), "")

    def wrote(self, body: Object) -> None:
        """Take the answer to a write of ours."""
        self._part(body["metadata"]["namespace"]).wrote(body)

    def removed(self, name: str) -> None:
        """Take note of a deletion of ours."""
        self._part(name.partition("/")[0]).removed(name)

    def _part(self, namespace: str) -> Watched[_Kept]:
        return self._parts[namespace if namespace in self._parts else ""]

    async def load(self) -> None:
        """Read all of them. Raises KubeError."""
        for part in self._parts.values():
            await part.load()

    async def run(self) -> None:
        """Follow until cancelled."""
        await asyncio.gather(*(part.run() for part in self._parts.values()))
