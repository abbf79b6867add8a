"""Leading Services to those Pods whose ports had to be others: Kubernetes' own EndpointSlices leave them out.

A Service is looked at when it changes, or one of those Pods does. What there should be is made of the Pods as they are, each
time anew.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

from wherry_operator.models import Object
from wherry_operator.objects import ObjectStore
from wherry_operator.queue import Key
from wherry_operator.reconcile.services import Services
from wherry_operator.runners.delivery import Deliveries
from wherry_operator.services import pods
from wherry_operator.services.pods import Serving
from wherry_operator.services.service import Service
from wherry_operator.services.slices import Endpoint
from wherry_operator.status import pod as pod_status

KIND = "Service"

RETRY_SECONDS = 1.0
"""Until all Pods are known: before, a Service would be led away from those that are not."""


class MovedPods:
    """Knows which Pods are moved, and keeps the slices of Services that select them."""

    def __init__(
        self,
        *,
        services: Services,
        pods: ObjectStore,
        deliveries: Deliveries,
        complete: Callable[[], bool],
        on_change: Callable[[Key], None],
    ) -> None:
        """`complete`: whether all Pods are known. `on_change`: a Service is to be looked at."""
        self._services = services
        self._pods = pods
        self._deliveries = deliveries
        self._complete = complete
        self._on_change = on_change
        self._told: dict[str, Any] = {}
        """What counts of a moved Pod, by its UID."""
        self._namespaces: defaultdict[str, set[str]] = defaultdict(set)
        """The moved Pods of a namespace."""

    def concerns(self, key: Key) -> bool:
        """Whether a Service is worth a look: there are moved Pods that it might select, or it leads somewhere."""
        service = self._services.get(key.namespace, key.name)
        if service is None or service.owner_uid:
            return False
        return bool(service.selector and key.namespace in self._namespaces) or self._services.led(service)

    def noted(self, pod: Object) -> bool:
        """A Pod is so now. Whether it has just been moved."""
        metadata = pod["metadata"]
        uid, labels = metadata["uid"], metadata.get("labels") or {}
        serving = self._serving(pod)
        before = self._told.pop(uid, None)
        now = None
        if serving is not None and serving.moved:
            conditions = (pod.get("status") or {}).get("conditions") or ()
            ready = [each["status"] for each in conditions if each["type"] == "Ready"]
            now = (dict(serving.ports), ready, "deletionTimestamp" in metadata, labels)
            self._told[uid] = now
            self._namespaces[metadata["namespace"]].add(uid)
        elif before is not None:
            self._forget(metadata["namespace"], uid)
        if now != before:
            for service in self._services.within(metadata["namespace"]):
                if any(pods.selects(service, each[-1]) for each in (before, now) if each is not None):
                    self._on_change(Key(KIND, service.namespace, service.name))
        return now is not None and before is None

    def gone(self, namespace: str, uid: str) -> None:
        """A Pod exists no more."""
        before = self._told.pop(uid, None)
        if before is not None:
            self._forget(namespace, uid)
            for service in self._services.within(namespace):
                if pods.selects(service, before[-1]):
                    self._on_change(Key(KIND, service.namespace, service.name))

    async def reconcile(self, key: Key) -> float | None:
        """Lead a Service to those moved Pods that it selects. Raises KubeError."""
        service = self._services.get(key.namespace, key.name)
        if service is None or service.owner_uid or service.leaving:
            return None
        if not self._complete():
            return RETRY_SECONDS
        found = []
        for pod in self._pods.within(key.namespace, having=partial(pods.selects, service)):
            if not pod_status.is_terminal(pod):
                endpoint = self._endpoint(service, pod)
                if endpoint is not None:
                    found.append(endpoint)
        await self._services.lead(service, found)
        return None

    def _endpoint(self, service: Service, pod: Object) -> Endpoint | None:
        serving, place = self._serving(pod), self._deliveries.locate(pod["metadata"]["uid"])
        if serving is None or place is None or place.info is None or not place.info.address:
            return None
        return pods.endpoint(service, pod, serving, address=place.info.address, node=place.info.node)

    def _serving(self, pod: Object) -> Serving | None:
        place = self._deliveries.locate(pod["metadata"]["uid"])
        return Serving.of(pod, place.status) if place is not None and place.status is not None else None

    def _forget(self, namespace: str, uid: str) -> None:
        self._namespaces[namespace].discard(uid)
        if not self._namespaces[namespace]:
            del self._namespaces[namespace]
