"""WasmWorkloads: each as one instance on a runner, and its status true.

No finalizer is ever put on one: an object that is gone is stopped because nothing asks for it any more.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from datetime import UTC, datetime

from wherry_operator.events import EventRecorder
from wherry_operator.kube import Kube, NotFound
from wherry_operator.models import Object
from wherry_operator.objects import ObjectStore
from wherry_operator.placement import NoRunner
from wherry_operator.queue import Key
from wherry_operator.references import References, is_immutable
from wherry_operator.resolve import workload as resolving
from wherry_operator.resolve.objects import ResolveError
from wherry_operator.runners.client import Refused
from wherry_operator.runners.delivery import Deliveries, Place
from wherry_operator.status import happenings
from wherry_operator.status import workload as workload_status
from wherry_operator.status.happenings import Happening
from wherry_operator.status.pod import Problem, differs
from wherry_operator.status.workload import Observed
from wherry_runner.protocol import WorkloadStatus

log = logging.getLogger(__name__)

KIND = "WasmWorkload"
GROUP_VERSION = "wherry.dev/v1alpha1"

RETRY_SECONDS = 5.0
"""Until an object that waits for something outside (a ConfigMap, a runner) is looked at again."""


class WorkloadReconciler:
    """Reconciles WasmWorkloads."""

    def __init__(
        self, *, kube: Kube, store: ObjectStore, references: References, deliveries: Deliveries, events: EventRecorder
    ) -> None:
        self._kube = kube
        self._store = store
        self._references = references
        self._deliveries = deliveries
        self._events = events
        self._gone: defaultdict[Key, set[str]] = defaultdict(set)

    def gone(self, key: Key, uid: str) -> None:
        """Note that the object with this UID exists no more, or is no longer ours."""
        self._gone[key].add(uid)

    async def reconcile(self, key: Key) -> float | None:
        """Bring the object of this key, and those of the same name that are gone, to what should be."""
        for uid in list(self._gone.get(key, ())):
            if await self._deliveries.drop(uid):
                self._gone[key].discard(uid)
        again = RETRY_SECONDS if self._gone.get(key) else None
        if again is None:
            self._gone.pop(key, None)
        workload = self._store.get(key.namespace, key.name)
        if workload is None:
            return again
        if workload["metadata"].get("deletionTimestamp"):
            # Somebody else's finalizer holds it; it runs no more.
            await self._deliveries.drop(workload["metadata"]["uid"])
            await self._write(workload, Observed(instance=""))
            return None
        return await self._run(workload)

    async def _run(self, workload: Object) -> float | None:
        metadata = workload["metadata"]
        live = workload.get("status") or {}
        wanted = resolving.references(workload)
        objects = await self._references.read(metadata["namespace"], wanted)
        try:
            resolved = resolving.resolve(workload, objects)
        except ResolveError as error:
            self._references.doubt(metadata["namespace"], wanted)
            return await self._wait(workload, error.reason, error.message, error.event)

        # A changed template is another life: its runs are counted anew, and a finished one runs again.
        mark = resolved.template_hash[:10]
        workload_id, instance = f"{metadata['uid']}-{mark}", f"{metadata['name']}-{mark}"
        if not await self._drop_others(metadata["uid"], workload_id):
            return RETRY_SECONDS
        same = any(item.get("name") == instance for item in live.get("instances") or [])
        place = self._deliveries.locate(workload_id, last_runner=workload_status.last_runner(live) if same else "")
        if same and _finished(workload) and (place is None or not place.reachable):
            return None  # what is in status as ended never runs again (design §3.8)
        if place is None:
            try:
                place = self._deliveries.choose(workload_id)
            except NoRunner as error:
                return await self._wait(workload, "Pending", str(error), "FailedPlacement")
        if not place.reachable:
            await self._write(workload, self._observed(instance, place))
            return RETRY_SECONDS
        await self._deliveries.drop_copies(workload_id, keep=place.runner)
        status = place.status
        if status is None or status.content_revision != resolved.content_revision:
            if resolved.complaints:
                self._record(workload, happenings.pull_secrets_missing(resolved.complaints))
            history = workload_status.history(live) if same else ()
            try:
                status = await self._deliveries.put(workload_id, place.runner, resolved, history)
            except Refused as error:
                message = f"runner {place.runner}: {error.refusal.message}"
                if error.full:  # another may have room, or this one later
                    return await self._wait(workload, "Pending", message, "FailedPlacement")
                return await self._wait(workload, "CreateContainerError", message, "Failed")
        await self._write(workload, self._observed(instance, place, status))
        return self._references.refresh_seconds if wanted and not is_immutable(objects.values()) else None

    async def _drop_others(self, uid: str, workload_id: str) -> bool:
        """Instances of an older template end before the new one begins; True once they have."""
        done = True
        for other in self._deliveries.instances(uid) - {workload_id}:
            place = self._deliveries.locate(other)
            if place is not None and place.reachable:
                gone = await self._deliveries.delete(other, place.runner, grace_seconds=0)
                done = done and gone
                if gone:
                    self._deliveries.forget(uid, other)
        return done

    async def _wait(self, workload: Object, reason: str, message: str, event: str) -> float:
        if _finished(workload):
            return RETRY_SECONDS  # it has run with what there was: what is missing now hinders nothing
        text = message if event != "Failed" else f"Error: {message}"
        self._record(workload, Happening(happenings.WARNING, event, text))
        live = workload.get("status") or {}
        known = next((item["name"] for item in live.get("instances") or []), workload["metadata"]["name"])
        place = self._running_place(workload)
        if place is None:
            await self._write(workload, Observed(instance=known, problem=Problem(reason=reason, message=message)))
        else:
            # It runs, with what it had: a ConfigMap that vanished stops nothing.
            await self._write(workload, self._observed(known, place))
        return RETRY_SECONDS

    def _running_place(self, workload: Object) -> Place | None:
        for workload_id in self._deliveries.instances(workload["metadata"]["uid"]):
            place = self._deliveries.locate(workload_id)
            if place is not None and place.status is not None:
                return place
        return None

    def _observed(self, instance: str, place: Place, status: WorkloadStatus | None = None) -> Observed:
        return Observed(
            instance=instance,
            runner=place.runner,
            node=place.info.node if place.info else "",
            status=status or place.status,
            unreachable=not place.reachable,
        )

    async def _write(self, workload: Object, observed: Observed) -> None:
        for desired in workload_status.steps(workload, observed, now=datetime.now(UTC)):
            live = workload.get("status") or {}
            if not differs(live, desired):
                continue
            metadata = workload["metadata"]
            path = f"{path_of(metadata['namespace'], metadata['name'])}/status"
            try:
                written = await self._kube.patch(path, {"metadata": {"uid": metadata["uid"]}, "status": desired})
            except NotFound:
                self._store.seen(workload, deleted=True)
                return
            self._tell(written, live, observed)
            workload = written
            self._store.seen(written)

    def _tell(self, workload: Object, before: Object, observed: Observed) -> None:
        """Events for what the write showed first; a problem was told by who found it."""
        if observed.problem is not None:
            return
        old: Object = next(iter(before.get("instances") or []), {})
        new: Object = next(iter(workload["status"].get("instances") or []), {})
        if new.get("containerID") and new.get("containerID") != old.get("containerID"):
            self._record(workload, Happening(happenings.NORMAL, "Started", f"Started on runner {new.get('runner')}"))
        reason, message = new.get("reason", ""), new.get("message", "")
        if (reason, message) == (old.get("reason"), old.get("message")) or not message:
            return
        if new.get("state") == "Waiting" or new.get("exitCode"):
            self._record(workload, Happening(happenings.WARNING, reason, message))

    def _record(self, workload: Object, happening: Happening) -> None:
        self._events.record({**workload, "apiVersion": GROUP_VERSION, "kind": KIND}, happening)


def _finished(workload: Object) -> bool:
    """Whether the status says that this very spec has run to its end."""
    live = workload.get("status") or {}
    current = live.get("observedGeneration") == workload["metadata"].get("generation", 1)
    return current and live.get("phase") in ("Succeeded", "Failed")


def path_of(namespace: str, name: str = "") -> str:
    """The path of a namespace's WasmWorkloads, or of one."""
    base = f"/apis/{GROUP_VERSION}/namespaces/{namespace}/wasmworkloads"
    return f"{base}/{name}" if name else base
