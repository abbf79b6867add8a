"""Kubernetes Events: what happened, for `kubectl describe`. Deduplicated, limited, and never in anybody's way.

The same happening is counted on the Event that told of it first, as client-go's recorder does, and one object can't cause a
flood (client-go's spam filter: a burst of 25, then one in five minutes).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from wherry_operator.kube import Kube, KubeError, NotFound
from wherry_operator.models import Object
from wherry_operator.status.containers import rfc3339
from wherry_operator.status.happenings import Happening

log = logging.getLogger(__name__)

BURST = 25
REFILL_SECONDS = 300.0
QUEUE = 5_000
PER_SECOND = 50.0
AT_ONCE = 100
"""As many as a kubelet writes (eventRecordQPS, eventBurst)."""

PER_SECOND_WHILE_BUSY = 10.0
"""A burst of starts must not wait for what is told of it: an Event costs the API server as much as a status."""

PATIENCE_SECONDS = 10.0
"""An Event that has waited for so long is as urgent as anything."""

REMEMBERED = 5_000
SAME_AGAIN_SECONDS = 4.0
"""The same happening within this time is the same one seen twice: a reconcile may run again at any moment."""

MAX_MESSAGE = 1024
"""The API server refuses longer notes."""


@dataclass(frozen=True, slots=True)
class _Recorded:
    key: str
    about: Object
    happening: Happening
    at: datetime
    since: float


@dataclass(slots=True)
class _Told:
    name: str
    count: int


class EventRecorder:
    """Writes Events as one identity; `record` never waits."""

    def __init__(
        self,
        kube: Kube,
        *,
        component: str,
        host: str,
        clock: Callable[[], float] = time.monotonic,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        """`busy`: whether there are more urgent things to be written."""
        self._busy = busy
        self._kube = kube
        self._source = {"component": component, "host": host}
        self._clock = clock
        self._queue: asyncio.Queue[_Recorded] = asyncio.Queue(QUEUE)
        self._recent: OrderedDict[str, float] = OrderedDict()
        """What was told of lately, and when; the oldest first."""
        self._told: OrderedDict[str, _Told] = OrderedDict()
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self.dropped = 0

    def record(self, about: Object, happening: Happening) -> None:
        """Tell of something that happened to an object. Dropped, and counted, where there is too much to tell."""
        uid = about["metadata"]["uid"]
        identity = "\0".join((uid, happening.kind, happening.reason, happening.container, happening.message))
        key = hashlib.sha256(identity.encode()).hexdigest()[:20]
        now = self._clock()
        if now - self._recent.get(key, float("-inf")) < SAME_AGAIN_SECONDS:
            return
        self._recent.pop(key, None)
        self._recent[key] = now
        while now - next(iter(self._recent.values())) >= SAME_AGAIN_SECONDS:
            self._recent.popitem(last=False)
        _bound(self._recent)
        if not self._allowed(uid):
            self.dropped += 1
            return
        try:
            # Not the object itself: thousands may wait here, each as it once was.
            reference = _reference(about, happening)
            self._queue.put_nowait(_Recorded(key, reference, happening, at=datetime.now(UTC), since=now))
        except asyncio.QueueFull:
            self.dropped += 1

    async def run(self) -> None:
        """Write until cancelled."""
        tokens, at = float(AT_ONCE), self._clock()
        while True:
            recorded = await self._queue.get()
            now = self._clock()
            waits = self._busy() and now - recorded.since < PATIENCE_SECONDS
            pace, most = (PER_SECOND_WHILE_BUSY, PER_SECOND_WHILE_BUSY) if waits else (PER_SECOND, float(AT_ONCE))
            tokens, at = min(most, tokens + (now - at) * pace), now
            if tokens < 1:
                await asyncio.sleep((1 - tokens) / pace)
            tokens -= 1
            try:
                await self._write(recorded.key, recorded.about, recorded.happening, rfc3339(recorded.at))
            except KubeError as error:
                # Of a namespace that is being deleted, or of an API server in trouble: nothing hangs on an Event.
                log.debug("event %s not written: %s", recorded.happening.reason, error)

    async def _write(self, key: str, reference: Object, happening: Happening, at: str) -> None:
        namespace = reference["namespace"]
        message = happening.message[:MAX_MESSAGE]
        told = self._told.get(key)
        if told is not None:
            told.count += 1
            self._told.move_to_end(key)
            path = f"/api/v1/namespaces/{namespace}/events/{told.name}"
            try:
                await self._kube.patch(path, {"count": told.count, "lastTimestamp": at})
                return
            except NotFound:
                del self._told[key]  # it aged away (an hour, by default)
        name = f"{reference['name'][:200]}.{time.time_ns():x}"
        await self._kube.create(
            f"/api/v1/namespaces/{namespace}/events",
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": name, "namespace": namespace},
                "involvedObject": reference,
                "type": happening.kind,
                "reason": happening.reason,
                "message": message,
                "source": self._source,
                "reportingComponent": self._source["component"],
                "reportingInstance": self._source["host"],
                "firstTimestamp": at,
                "lastTimestamp": at,
                "count": 1,
            },
        )
        self._told[key] = _Told(name, 1)
        _bound(self._told)

    def _allowed(self, uid: str) -> bool:
        now = self._clock()
        tokens, at = self._buckets.pop(uid, (float(BURST), now))
        tokens = min(float(BURST), tokens + (now - at) / REFILL_SECONDS)
        allowed = tokens >= 1
        self._buckets[uid] = (tokens - 1 if allowed else tokens, now)
        _bound(self._buckets)
        return allowed


def _reference(about: Object, happening: Happening) -> Object:
    """Which object, and which part of it, an Event is about."""
    metadata = about["metadata"]
    reference = {
        "apiVersion": about["apiVersion"],
        "kind": about["kind"],
        "name": metadata["name"],
        "namespace": metadata["namespace"],
        "uid": metadata["uid"],
        "resourceVersion": metadata.get("resourceVersion", ""),
    }
    if happening.container and about["kind"] == "Pod":
        first = {each["name"] for each in (about.get("spec") or {}).get("initContainers") or ()}
        kind = "initContainers" if happening.container in first else "containers"
        reference["fieldPath"] = f"spec.{kind}{{{happening.container}}}"
    return reference


def _bound(remembered: OrderedDict[str, Any]) -> None:
    while len(remembered) > REMEMBERED:
        remembered.popitem(last=False)
