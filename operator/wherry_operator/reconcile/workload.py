"""WasmWorkloads: as many instances of each on runners as it asks for, and its status true.

What is to be done is decided in `rollout/`; here it is carried out. No finalizer is ever put on an object: one that is gone is
stopped because nothing asks for it any more.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import defaultdict
from collections.abc import Mapping, Set

from wherry_operator.clock import Clock
from wherry_operator.events import EventRecorder
from wherry_operator.kube import Conflict, Kube, NotFound
from wherry_operator.models import Object
from wherry_operator.objects import ObjectStore
from wherry_operator.queue import Key
from wherry_operator.reconcile.exposing import Exposing
from wherry_operator.reconcile.expulsions import Expulsions
from wherry_operator.reconcile.instances import RETRY_SECONDS, Instances
from wherry_operator.reconcile.revisions import Revisions
from wherry_operator.reconcile.services import Services
from wherry_operator.references import References
from wherry_operator.resolve import workload as resolving
from wherry_operator.rollout.decide import decide
from wherry_operator.rollout.instances import Slot
from wherry_operator.rollout.plan import Memory, Plan, Wanted
from wherry_operator.runners.delivery import Deliveries
from wherry_operator.status import happenings
from wherry_operator.status import workload as workload_status
from wherry_operator.status.happenings import Happening
from wherry_operator.status.pod import differs
from wherry_operator.status.unhealthy import Unhealthy
from wherry_operator.status.workload import Exposure, Observed, Seen

log = logging.getLogger(__name__)

KIND = "WasmWorkload"
GROUP_VERSION = "wherry.dev/v1alpha1"

WRITE_GAP_SECONDS = 0.2
"""Between two looks at an object of many instances: a thousand that start must not be a thousand writes of its status."""

BEGUN_WITHIN_SECONDS = 1.0
"""A start with a compiled module is over after this: then its first status says Running, and one write was spared. It is worth
waiting for that only where nothing is said of the object as yet."""


class WorkloadReconciler:
    """Reconciles WasmWorkloads."""

    def __init__(
        self,
        *,
        kube: Kube,
        store: ObjectStore,
        references: References,
        deliveries: Deliveries,
        events: EventRecorder,
        revisions: Revisions,
        services: Services,
        unpublish_seconds: float = 2.0,
        clock: Clock | None = None,
    ) -> None:
        """`unpublish_seconds`: between the moment when an instance's Service leads there no more, and its end."""
        self._kube = kube
        self._store = store
        self._references = references
        self._deliveries = deliveries
        self._events = events
        self._revisions = revisions
        self._clock = clock or Clock()
        self._exposing = Exposing(services, deliveries, seconds=unpublish_seconds, clock=self._clock)
        self._expulsions = Expulsions(self._clock)
        self._unhealthy = Unhealthy()
        self._gone: defaultdict[Key, set[str]] = defaultdict(set)
        self._looked: dict[str, float] = {}
        """When an object of many instances was looked at last, by its UID."""
        self._silent_since: dict[str, float] = {}
        """Since when an object of one instance has begun, and nothing was said of it: by its UID."""

    def gone(self, key: Key, uid: str) -> None:
        """Note that the object with this UID exists no more, or is no longer ours."""
        self._gone[key].add(uid)
        self._references.use(key, key.namespace, ())
        self._revisions.gone(uid)
        self._exposing.gone(key, uid)
        self._expulsions.gone(uid)
        self._unhealthy.gone(uid)
        self._looked.pop(uid, None)
        self._silent_since.pop(uid, None)

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
        wanted = Wanted.of(workload, resolving.revision_of(workload))
        if workload["metadata"].get("deletionTimestamp"):
            return await self._end(key, workload, wanted)
        if (early := self._too_early(workload, wanted)) > 0:
            return early
        try:
            return await _Round(self, workload, wanted).run()
        finally:
            if wanted.at_once > 1:
                self._looked[workload["metadata"]["uid"]] = self._clock.monotonic()

    async def _end(self, key: Key, workload: Object, wanted: Wanted) -> float | None:
        """Stop what is being deleted, and held by somebody else's finalizer: it runs no more."""
        _, seen = self._instances(key, workload, wanted).observe()
        exposed = await self._exposing.look(key, workload, seen, seen.keys())
        gone = not exposed.staying and await self._deliveries.drop(workload["metadata"]["uid"])
        memory = Memory.of(workload.get("status") or {})
        none = dataclasses.replace(wanted, replicas=0)
        await self._write(workload, Observed(wanted=none, memory=memory, exposure=exposed.exposure))
        if exposed.again_seconds is not None:
            return exposed.again_seconds
        return None if gone else RETRY_SECONDS

    def _instances(self, key: Key, workload: Object, wanted: Wanted) -> Instances:
        return Instances(
            key,
            workload,
            wanted,
            deliveries=self._deliveries,
            references=self._references,
            expulsions=self._expulsions,
            record=lambda happening: self._record(workload, happening),
        )

    def _too_early(self, workload: Object, wanted: Wanted) -> float:
        """How long until an object of many instances is looked at again."""
        uid, now = workload["metadata"]["uid"], self._clock.monotonic()
        if wanted.at_once <= 1 and len(self._deliveries.instances(uid)) <= 1:
            return 0.0
        return self._looked.get(uid, float("-inf")) + WRITE_GAP_SECONDS - now

    def _may_wait(self, workload: Object, observed: Observed) -> float:
        """For how many seconds more nothing need be said; 0: it is to be said now."""
        uid = workload["metadata"]["uid"]
        if not workload_status.has_just_begun(workload, observed):
            self._silent_since.pop(uid, None)
            return 0.0
        now = self._clock.monotonic()
        return self._silent_since.setdefault(uid, now) + BEGUN_WITHIN_SECONDS - now

    async def _write(self, workload: Object, observed: Observed) -> Object | None:
        """Make the status true; None: the object is gone."""
        for desired in workload_status.steps(workload, observed, now=self._clock.now()):
            live = workload.get("status") or {}
            if not differs(live, desired):
                continue
            metadata = workload["metadata"]
            path = f"{path_of(metadata['namespace'], metadata['name'])}/status"
            try:
                written = await self._kube.patch(path, {"metadata": {"uid": metadata["uid"]}, "status": desired})
            except NotFound:
                self._store.seen(workload, deleted=True)
                return None
            troubled = any(item.problem for item in observed.instances)
            for happening in happenings.of_workload(live, written["status"], troubled=troubled):
                self._record(written, happening)
            workload = written
            self._store.wrote(written)
        return workload

    def _record(self, workload: Object, happening: Happening) -> None:
        self._events.record({**workload, "apiVersion": GROUP_VERSION, "kind": KIND}, happening)


class _Round:
    """One look at one object: what there is, what is to be done, doing it, and saying so."""

    def __init__(self, reconciler: WorkloadReconciler, workload: Object, wanted: Wanted) -> None:
        metadata = workload["metadata"]
        self._reconciler = reconciler
        self._workload = workload
        self._wanted = wanted
        self._live: Object = workload.get("status") or {}
        self._key = Key(KIND, metadata["namespace"], metadata["name"])
        self._instances = reconciler._instances(self._key, workload, wanted)

    async def run(self) -> float | None:
        """Returns after how many seconds to look again. Raises RunnerError after all else was done and written."""
        strangers, seen = self._instances.observe()
        self._tell_unhealthy(seen)
        plan = self._decide(seen)
        if plan.expired:
            return await self._expire()
        await self._instances.end(strangers)
        exposure = await self._expose(seen, self._instances.going(plan))
        if await self._instances.stop(plan, seen):
            # What is gone makes room. What may be stopped because of that is seen when it was written what runs.
            plan = self._decide(seen)
        if plan.again_seconds is not None:
            self._instances.soonest.after(plan.again_seconds)
        before = {slot: item.status for slot, item in seen.items()}
        ended = {slot for slot, item in seen.items() if item.instance.ended}
        await self._instances.start(plan, seen)
        if any(item.instance.ended and slot not in ended for slot, item in seen.items()):
            # The answer to a PUT told its end already: the plan does not count it, and no watch will tell of it again.
            self._instances.soonest.after(0.0)
        if any(item.status is not before.get(slot) for slot, item in seen.items()):
            # The answer to a PUT may have said all that will be said of a start: nobody else has its Service lead there.
            exposure = await self._expose(seen, self._instances.going(plan))
        observed = Observed(
            wanted=self._wanted,
            memory=plan.memory,
            instances=tuple(seen[slot] for slot in sorted(seen)),
            exposure=exposure,
        )
        if not self._instances.errors and (wait := self._reconciler._may_wait(self._workload, observed)) > 0:
            return wait
        written = await self._reconciler._write(self._workload, observed)
        if self._instances.errors:
            raise self._instances.errors[0]
        if written is None:
            return None
        if workload_status.is_ready(written):
            self._reconciler._revisions.ready(written)
        waits = workload_status.progress_seconds(
            self._wanted, written.get("status") or {}, self._reconciler._clock.now()
        )
        if waits is not None:
            self._instances.soonest.after(waits)
        wanted = set(plan.run)
        if any(self._unsettled(item, wanted) for item in seen.values()):
            self._instances.soonest.after(RETRY_SECONDS)
        if any(item.problem or item.instance.silent for item in seen.values()):
            self._reconciler._deliveries.wait(self._key)
        if written is not self._workload:
            self._look_ahead(written, plan, seen)
        return self._instances.soonest.seconds

    def _tell_unhealthy(self, seen: Mapping[Slot, Seen]) -> None:
        statuses = (seen[slot].status for slot in sorted(seen))
        uid = self._workload["metadata"]["uid"]
        for happening in self._reconciler._unhealthy.news(uid, (each for each in statuses if each is not None)):
            self._reconciler._record(self._workload, happening)

    async def _expose(self, seen: Mapping[Slot, Seen], going: Set[Slot]) -> Exposure | None:
        """Have the object's Service lead to what serves; what is said of that. Raises Unavailable."""
        exposed = await self._reconciler._exposing.look(self._key, self._workload, seen, going)
        self._instances.staying = exposed.staying
        if exposed.again_seconds is not None:
            self._instances.soonest.after(exposed.again_seconds)
        if not exposed.known:
            return workload_status.exposure_of(self._live)
        if exposed.exposure is not None and not exposed.exposure.ready:
            self._instances.soonest.after(RETRY_SECONDS)
        return exposed.exposure

    def _look_ahead(self, written: Object, done: Plan, seen: Mapping[Slot, Seen]) -> None:
        """Note what had to wait until this was written: what has its end in the status may be forgotten, and another begin in its
        place."""
        memory = Memory.of(written.get("status") or {})
        instances = [item.instance for item in seen.values()]
        plan = decide(self._wanted, instances, memory, self._reconciler._clock.now())
        new = {*plan.run, *plan.stop, *plan.forget} - {*done.run, *done.stop, *done.forget}
        if new or plan.expired:
            self._instances.soonest.after(0.0)
        if plan.again_seconds is not None:
            self._instances.soonest.after(plan.again_seconds)

    async def _expire(self) -> float | None:
        """Delete the object: its ttlSecondsAfterFinished are over."""
        metadata = self._workload["metadata"]
        path = path_of(self._key.namespace, self._key.name)
        try:
            await self._reconciler._kube.delete(path, uid=metadata["uid"], resource_version=metadata["resourceVersion"])
        except Conflict:
            return RETRY_SECONDS  # somebody changed it: it may be to stay longer
        return None

    def _decide(self, seen: Mapping[Slot, Seen]) -> Plan:
        instances = [item.instance for item in seen.values()]
        return decide(self._wanted, instances, Memory.of(self._live), self._reconciler._clock.now())

    def _unsettled(self, seen: Seen, wanted: Set[Slot]) -> bool:
        """Whether something is still to be done about it, or heard of it."""
        instance = seen.instance
        if instance.ended:
            return False
        return seen.problem is not None or instance.stopping or instance.slot not in wanted


def path_of(namespace: str, name: str = "") -> str:
    """The path of a namespace's WasmWorkloads, or of one."""
    base = f"/apis/{GROUP_VERSION}/namespaces/{namespace}/wasmworkloads"
    return f"{base}/{name}" if name else base
