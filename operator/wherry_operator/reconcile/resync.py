"""The net under the watches: a periodic, metadata-only LIST of everything that is ours.

It finds what a watch missed, and workloads on runners that no object wants. Those are dropped only after two complete LISTs in
a row agree, and a bounded number a minute: a LIST that lies must not empty a cluster (facts: peers.md, kip #107).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from functools import partial

from wherry_operator.kube import Forbidden, Kube, KubeError
from wherry_operator.models import Object
from wherry_operator.objects import ObjectStore
from wherry_operator.runners.client import RunnerError
from wherry_operator.runners.delivery import Deliveries, grace_to_end
from wherry_operator.runners.registry import RunnerRegistry

log = logging.getLogger(__name__)

RETRY_SECONDS = 3.0
"""Pause after a LIST that failed."""

DROPS_A_ROUND = 60
"""Orphans dropped after one LIST at most."""


@dataclass(frozen=True, kw_only=True)
class Collection:
    """What to LIST, and where it belongs."""

    store: ObjectStore
    paths: Mapping[str, str]
    """By namespace; all of them under `""`."""
    field_selector: str
    object_path: Callable[[str, str], str]


class Resync:
    """The periodic comparison."""

    def __init__(
        self,
        kube: Kube,
        collections: Iterable[Collection],
        *,
        registry: RunnerRegistry,
        deliveries: Deliveries,
        interval: float,
    ) -> None:
        self._kube = kube
        self._collections = tuple(collections)
        self._registry = registry
        self._deliveries = deliveries
        self._interval = interval
        self._suspects: set[tuple[str, str]] = set()
        self.completed = 0
        """LISTs of everything that succeeded so far."""
        self.completed_at: float | None = None
        self.once_complete = asyncio.Event()
        """All objects that are ours were seen at least once."""

    async def run(self) -> None:
        """Compare until cancelled."""
        while True:
            pause = self._interval
            try:
                await self.once()
            except (KubeError, RunnerError) as error:
                log.warning("resync failed: %s", error)
                pause = min(pause, RETRY_SECONDS)
            await asyncio.sleep(pause * random.uniform(0.9, 1.1))

    async def once(self) -> None:
        """One comparison. Raises KubeError where a LIST fails: then nothing is dropped. One that is refused in a namespace by its
        name says nothing of the others: what is of that namespace stays as it is."""
        wanted: set[str] = set()
        refused: set[str] = set()
        for collection in self._collections:
            listed: list[Object] = []
            for namespace, path in collection.paths.items():
                try:
                    listed += await self._kube.list_metadata(path, field_selector=collection.field_selector)
                except Forbidden as error:
                    if not namespace:
                        raise
                    log.warning("namespace %s is left as it is: %s", namespace, error)
                    refused.add(namespace)
                    listed += collection.store.within(namespace)
            wanted |= {item["metadata"]["uid"] for item in listed}
            await collection.store.compare(
                self._kube, listed, collection.object_path, partial(self._each, collection, refused)
            )
        await self._sweep(wanted, refused)
        self.completed += 1
        self.completed_at = asyncio.get_running_loop().time()
        self.once_complete.set()

    async def _each(self, collection: Collection, refused: Set[str]) -> AsyncIterator[Object]:
        for namespace, path in collection.paths.items():
            if namespace in refused:
                continue
            async for body in self._kube.each(path, field_selector=collection.field_selector):
                yield body

    async def _sweep(self, wanted: Set[str], refused: Set[str]) -> None:
        orphans = {
            (state.name, workload_id): state.statuses
            for state in self._registry.states()
            if state.synced
            for workload_id, owner in state.statuses.owners()
            if owner.uid not in wanted and owner.namespace not in refused
        }
        agreed = [place for place in orphans if place in self._suspects]
        self._suspects = set(orphans)
        for runner, workload_id in agreed[:DROPS_A_ROUND]:
            status = orphans[runner, workload_id].get(workload_id)
            if status is None:
                continue  # it has gone meanwhile
            owner = status.owner
            log.info("dropping %s of %s %s/%s: no such object", workload_id, owner.kind, owner.namespace, owner.name)
            try:
                await self._deliveries.delete(workload_id, runner, grace_seconds=grace_to_end(status))
            except RunnerError as error:
                # One runner must not stand in all others' way.
                log.warning("dropping %s failed: %s", workload_id, error)
