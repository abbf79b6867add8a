"""Leading a WasmWorkload's Service to those of its instances that serve, and away from one before it is stopped.

A proxy on a node hears later than we do that an endpoint is on its way out. So an instance that is to stop is marked as such, and
stopped a moment after that: a connection that was on its way to it is still taken (`Settings.unpublish_seconds`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from wherry_operator.clock import Clock
from wherry_operator.models import Object
from wherry_operator.queue import Key
from wherry_operator.reconcile.services import Services
from wherry_operator.rollout.instances import Slot
from wherry_operator.runners.delivery import Deliveries
from wherry_operator.services.service import PORT_NAME
from wherry_operator.services.slices import Endpoint
from wherry_operator.status.workload import Exposure, Seen

RETRY_SECONDS = 1.0
"""Until it is tried again to write what could not be written, or to know what there is."""


@dataclass(frozen=True, kw_only=True)
class Exposed:
    """One look's result."""

    exposure: Exposure | None = None
    known: bool = True
    """Without it, what was said of the Service before stays."""
    staying: frozenset[Slot] = frozenset()
    """Instances that are to stop, and must not yet."""
    again_seconds: float | None = None


class Exposing:
    """Knows since when which instance is marked."""

    def __init__(self, services: Services, deliveries: Deliveries, *, seconds: float, clock: Clock) -> None:
        """`seconds`: between an instance's mark and its end."""
        self._services = services
        self._deliveries = deliveries
        self._seconds = seconds
        self._clock = clock
        self._marked: defaultdict[str, dict[Slot, float]] = defaultdict(dict)
        """By the object's UID."""

    def gone(self, key: Key, uid: str) -> None:
        """The object exists no more."""
        self._services.gone(key)
        self._marked.pop(uid, None)

    async def look(self, key: Key, workload: Object, seen: Mapping[Slot, Seen], going: Set[Slot]) -> Exposed:
        """Have its Service lead to those that are ready. `going`: those that are to be stopped. Raises Unavailable."""
        uid = workload["metadata"]["uid"]
        if not self._services.concerns(workload):
            self._marked.pop(uid, None)
            return Exposed()
        endpoints = _endpoints(seen.values(), going)
        published = await self._services.publish(key, workload, endpoints.values(), self._deliveries.silent_hosts())
        leaving = going & endpoints.keys()
        if not published.settled:
            return Exposed(known=False, staying=frozenset(leaving), again_seconds=RETRY_SECONDS)
        now, before = self._clock.monotonic(), self._marked.pop(uid, {})
        marked = {slot: before.get(slot, now) for slot in leaving}
        if marked:
            self._marked[uid] = marked
        left = {slot: at + self._seconds - now for slot, at in marked.items()}
        staying = {slot: seconds for slot, seconds in left.items() if seconds > 0}
        return Exposed(
            exposure=published.exposure,
            staying=frozenset(staying),
            again_seconds=min(staying.values(), default=None),
        )


def _endpoints(seen: Iterable[Seen], going: Set[Slot]) -> dict[Slot, Endpoint]:
    """Those that serve."""
    found = {}
    for item in seen:
        port = item.status.containers[0].port if item.status is not None else None
        if port is not None and item.instance.ready and item.address:
            slot = item.instance.slot
            found[slot] = Endpoint(
                address=item.address, ports=((PORT_NAME, port),), node=item.node, leaving=slot in going
            )
    return found
