"""WasmWorkloads: as many instances of each on runners as it asks for, and its status true.

What is to be done is decided in `rollout/`; here it is carried out. No finalizer is ever put on an object: one that is gone is
stopped because nothing asks for it any more.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from typing import TypeVar

from wherry_operator.clock import Clock
from wherry_operator.events import EventRecorder
from wherry_operator.kube import Conflict, Kube, NotFound
from wherry_operator.models import Object, WasmWorkloadSpec
from wherry_operator.objects import ObjectStore
from wherry_operator.placement import Needs, NoRunner
from wherry_operator.queue import Key
from wherry_operator.reconcile.revisions import Revisions
from wherry_operator.references import References
from wherry_operator.resolve import workload as resolving
from wherry_operator.resolve.objects import Objects, ResolveError
from wherry_operator.resolve.revision import Resolved
from wherry_operator.rollout import completion
from wherry_operator.rollout.decide import decide
from wherry_operator.rollout.instances import Instance, Slot, by_runner, by_status
from wherry_operator.rollout.plan import Memory, Plan, Soonest, Wanted
from wherry_operator.runners.client import Refused, RunnerError
from wherry_operator.runners.delivery import Deliveries, Place
from wherry_operator.status import happenings
from wherry_operator.status import workload as workload_status
from wherry_operator.status.happenings import Happening
from wherry_operator.status.pod import Problem, differs
from wherry_operator.status.workload import Observed, Seen

log = logging.getLogger(__name__)

KIND = "WasmWorkload"
GROUP_VERSION = "wherry.dev/v1alpha1"

RETRY_SECONDS = 5.0
"""Until an object that waits for something outside (a ConfigMap, a runner) is looked at again."""

WRITE_GAP_SECONDS = 0.2
"""Between two looks at an object of many instances: a thousand that start must not be a thousand writes of its status."""

BEGUN_WITHIN_SECONDS = 1.0
"""A start with a compiled module is over after this: then its first status says Running, and one write was spared. It is worth
waiting for that only where nothing is said of the object as yet."""

CALLS_AT_ONCE = 16
"""Calls of runners for one object: enough to hide their latency, few enough for others to get their turn."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


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
        clock: Clock | None = None,
    ) -> None:
        self._kube = kube
        self._store = store
        self._references = references
        self._deliveries = deliveries
        self._events = events
        self._revisions = revisions
        self._clock = clock or Clock()
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
            # Somebody else's finalizer holds it; it runs no more.
            await self._deliveries.drop(workload["metadata"]["uid"])
            memory = Memory.of(workload.get("status") or {})
            await self._write(workload, Observed(wanted=dataclasses.replace(wanted, replicas=0), memory=memory))
            return None
        if (early := self._too_early(workload, wanted)) > 0:
            return early
        try:
            return await _Round(self, workload, wanted).run()
        finally:
            if wanted.at_once > 1:
                self._looked[workload["metadata"]["uid"]] = self._clock.monotonic()

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
        self._reconciler = reconciler
        self._deliveries = reconciler._deliveries
        self._references = reconciler._references
        self._workload = workload
        self._wanted = wanted
        self._uid: str = workload["metadata"]["uid"]
        self._name: str = workload["metadata"]["name"]
        self._namespace: str = workload["metadata"]["namespace"]
        self._key = Key(KIND, self._namespace, self._name)
        self._live: Object = workload.get("status") or {}
        self._entries: dict[Slot, Object] = {
            slot: entry
            for entry in self._live.get("instances") or []
            if (slot := Slot.parse(entry["name"], self._name)) and workload_status.last_runner(entry)
        }
        self._errors: list[RunnerError] = []
        self._told: set[tuple[str, str]] = set()
        self._soonest = Soonest()
        self._full: NoRunner | None = None
        self._copied: set[Slot] = set()
        self._spec = WasmWorkloadSpec.model_validate(workload["spec"])
        self._tolerations = self._spec.tolerations or ()
        self._places: dict[Slot, Place] = {}
        self._expelled: dict[Slot, str] = {}
        """Those whose runner's node wants them gone, with the taint that says so."""

    async def run(self) -> float | None:
        """Returns after how many seconds to look again. Raises RunnerError after all else was done and written."""
        strangers, seen = self._observe()
        plan = self._decide(seen)
        if plan.expired:
            return await self._expire()
        await self._each(strangers, self._delete)
        if await self._stop(plan, seen):
            # What is gone makes room. What may be stopped because of that is seen when it was written what runs.
            plan = self._decide(seen)
        if plan.again_seconds is not None:
            self._soonest.after(plan.again_seconds)
        await self._start(plan, seen)
        observed = Observed(
            wanted=self._wanted, memory=plan.memory, instances=tuple(seen[slot] for slot in sorted(seen))
        )
        if not self._errors and (wait := self._reconciler._may_wait(self._workload, observed)) > 0:
            return wait
        written = await self._reconciler._write(self._workload, observed)
        if self._errors:
            raise self._errors[0]
        if written is None:
            return None
        if workload_status.is_ready(written):
            self._reconciler._revisions.ready(written)
        waits = workload_status.progress_seconds(
            self._wanted, written.get("status") or {}, self._reconciler._clock.now()
        )
        if waits is not None:
            self._soonest.after(waits)
        wanted = set(plan.run)
        if any(self._unsettled(item, wanted) for item in seen.values()):
            self._soonest.after(RETRY_SECONDS)
        if any(item.problem or item.instance.silent for item in seen.values()):
            self._deliveries.wait(self._key)
        if written is not self._workload:
            self._look_ahead(written, plan, seen)
        return self._soonest.seconds

    def _look_ahead(self, written: Object, done: Plan, seen: Mapping[Slot, Seen]) -> None:
        """Note what had to wait until this was written: what has its end in the status may be forgotten, and another begin in its
        place."""
        memory = Memory.of(written.get("status") or {})
        instances = [item.instance for item in seen.values()]
        plan = decide(self._wanted, instances, memory, self._reconciler._clock.now())
        new = {*plan.run, *plan.stop, *plan.forget} - {*done.run, *done.stop, *done.forget}
        if new or plan.expired:
            self._soonest.after(0.0)
        if plan.again_seconds is not None:
            self._soonest.after(plan.again_seconds)

    async def _expire(self) -> float | None:
        """Delete the object: its ttlSecondsAfterFinished are over."""
        version = self._workload["metadata"]["resourceVersion"]
        path = path_of(self._namespace, self._name)
        try:
            await self._reconciler._kube.delete(path, uid=self._uid, resource_version=version)
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

    # --- what there is ------------------------------------------------------------------------------------------------

    def _observe(self) -> tuple[list[str], dict[Slot, Seen]]:
        """Ids that are of no instance of ours, and the instances."""
        strangers, slots = [], set(self._entries)
        for workload_id in self._deliveries.instances(self._uid):
            slot = Slot.parse(workload_id, self._uid)
            if slot is None:
                strangers.append(workload_id)
            else:
                slots.add(slot)
        return strangers, {slot: self._see(slot) for slot in slots}

    def _see(self, slot: Slot) -> Seen:
        workload_id, entry = slot.within(self._uid), self._entries.get(slot, {})
        last = workload_status.last_runner(entry)
        place = self._deliveries.locate(workload_id, last_runner=last)
        if place is None:
            instance = by_status(slot, entry)
            return Seen(instance=instance, runner=last if instance.ended else "", node=entry.get("node", ""))
        self._places[slot] = place
        node = place.info.node if place.info else entry.get("node", "")
        if place.status is None:
            instance = by_status(slot, entry, silent=not place.reachable, lost=place.lost)
        else:
            instance = by_runner(slot, place.status, silent=not place.reachable, lost=place.lost)
        if place.copies:
            self._copied.add(slot)
        if place.lost_in_seconds is not None:
            self._soonest.after(place.lost_in_seconds)
        if place.reachable and place.status is not None and not instance.ended:
            taint = self._deliveries.expelled(place.runner, self._tolerations)
            if taint is not None:
                self._expelled[slot] = str(taint)
        address = place.info.address if place.info else ""
        return Seen(instance=instance, runner=place.runner, node=node, status=place.status, address=address)

    # --- what is done -------------------------------------------------------------------------------------------------

    async def _stop(self, plan: Plan, seen: dict[Slot, Seen]) -> bool:
        """Take away what is not to run; whether any is gone."""
        leaving = [slot for slot in (*plan.stop, *plan.forget) if slot in seen]

        async def end(slot: Slot) -> bool:
            instance = seen[slot].instance
            if instance.silent:
                if instance.lost:
                    # Should its runner come back, it is seen again.
                    self._deliveries.forget(self._uid, slot.within(self._uid))
                return instance.lost
            return await self._delete(slot.within(self._uid), slot, keep_ended=self._counts_end_of(instance))

        ends = await self._each(leaving, end)
        gone = [slot for slot, done in zip(leaving, ends, strict=True) if done]
        stopped = [slot.within(self._name) for slot in gone if not seen[slot].instance.ended]
        for slot in gone:
            del seen[slot]
        self._tell_of_many("SuccessfulDelete", "Deleted", stopped)
        return bool(gone)

    def _counts_end_of(self, instance: Instance) -> bool:
        """Whether its end counts, should it have come before it is stopped: nobody has heard of it yet."""
        return not self._wanted.service and not instance.ended and instance.slot.revision == self._wanted.revision

    async def _delete(self, workload_id: str, slot: Slot | None = None, *, keep_ended: bool = False) -> bool:
        # Also where only the status tells where it was: that runner may have notes of it.
        last = workload_status.last_runner(self._entries.get(slot, {})) if slot is not None else ""
        place = self._deliveries.locate(workload_id, last_runner=last)
        if place is not None and place.reachable:
            # At once: a module can't be asked to stop, so waiting would only take its time.
            if not await self._deliveries.delete(workload_id, place.runner, grace_seconds=0, keep_ended=keep_ended):
                return False
        elif place is not None:
            return False
        self._deliveries.forget(self._uid, workload_id)
        return True

    async def _start(self, plan: Plan, seen: dict[Slot, Seen]) -> None:
        """Bring what is to run onto runners, and up to date there."""
        if not plan.run:
            return
        wanted = resolving.references(self._workload)
        self._references.use(self._key, self._namespace, wanted)
        objects = await self._references.read(self._namespace, wanted)
        deadline = completion.deadline(self._wanted, plan.memory)
        new = [slot for slot in plan.run if slot not in seen]
        for slot in new:
            seen[slot] = Seen(instance=Instance(slot=slot, on_runner=False))
        try:
            shared = resolving.resolve(self._workload, objects, deadline=deadline)
        except ResolveError as error:
            self._references.doubt(self._namespace, wanted)
            self._soonest.after(RETRY_SECONDS)
            self._tell(error.event, error.message)
            problem = Problem(reason=error.reason, message=error.message)
            for slot in plan.run:
                if seen[slot].status is None and not seen[slot].instance.silent:
                    seen[slot] = dataclasses.replace(seen[slot], problem=problem)
            return
        needs = Needs.of(self._spec, shared.workload)

        async def ensure(slot: Slot) -> Seen:
            return await self._ensure(seen[slot], shared, objects, needs)

        for slot in plan.run:
            if (place := self._places.get(slot)) is not None and place.status is not None:
                self._deliveries.weigh(slot.within(self._uid), place, shared.workload)
        # Of thousands most are as they should be: they cost nothing more.
        ensured = await self._each([slot for slot in plan.run if self._differs(seen[slot], shared)], ensure)
        seen.update({item.instance.slot: item for item in ensured if item is not None})
        self._tell_of_many(
            "SuccessfulCreate", "Created", [slot.within(self._name) for slot in new if seen[slot].runner]
        )

    def _differs(self, seen: Seen, shared: Resolved) -> bool:
        slot = seen.instance.slot
        if seen.status is None or seen.instance.stopping or slot in self._copied or slot in self._expelled:
            return True
        return seen.instance.lost or seen.status.content_revision != shared.content_revision

    async def _ensure(self, seen: Seen, shared: Resolved, objects: Objects, needs: Needs) -> Seen:
        slot = seen.instance.slot
        workload_id = slot.within(self._uid)
        if seen.instance.silent and not seen.instance.lost:
            return seen
        entry = self._entries.get(slot, {})
        if (taint := self._expelled.get(slot)) is not None and not seen.instance.stopping:
            self._tell(
                "TaintManagerEviction", f"runner {seen.runner} has to be left: its node has the taint {{{taint}}}"
            )
        if seen.instance.stopping or taint is not None:
            if not await self._delete(workload_id, slot, keep_ended=self._counts_end_of(seen.instance)):
                return seen
            entry = {}  # another life begins
            seen = Seen(instance=Instance(slot=slot, on_runner=False))
        last = workload_status.last_runner(entry)
        place = None if seen.instance.lost else self._deliveries.locate(workload_id, last_runner=last)
        if place is not None and self._has_to_leave(place):
            place = None
        if place is None:
            try:
                if self._full is not None:
                    raise self._full  # where there was no room for one there is none for its like
                place = self._deliveries.choose(workload_id, shared.workload.owner, needs)
            except NoRunner as error:
                self._full = error
                self._tell("FailedPlacement", str(error))
                return dataclasses.replace(seen, problem=Problem(reason="Pending", message=str(error)))
        await self._deliveries.drop_copies(workload_id, keep=place.runner)
        status = place.status
        if status is None or status.content_revision != shared.content_revision:
            if shared.complaints:
                self._record(happenings.pull_secrets_missing(shared.complaints))
            own = self._resolved(slot, shared, objects)
            try:
                status = await self._deliveries.put(workload_id, place.runner, own, workload_status.history(entry))
            except Refused as error:
                message = f"runner {place.runner}: {error.refusal.message}"
                # Where it is full another may have room, or this one later.
                event, reason = ("FailedPlacement", "Pending") if error.full else ("Failed", "CreateContainerError")
                self._tell(event, message)
                return dataclasses.replace(seen, problem=Problem(reason=reason, message=message))
        node, address = (place.info.node, place.info.address) if place.info else ("", "")
        return Seen(instance=by_runner(slot, status), runner=place.runner, node=node, status=status, address=address)

    def _has_to_leave(self, place: Place) -> bool:
        """Whether it must not begin there, or begin again."""
        return place.reachable and self._deliveries.expelled(place.runner, self._tolerations) is not None

    def _resolved(self, slot: Slot, shared: Resolved, objects: Objects) -> Resolved:
        """What this instance gets. What sets it apart never changes, so it is no part of its revision."""
        if not resolving.is_individual(self._workload):
            return shared
        identity = resolving.Identity(name=slot.within(self._name), index=slot.index)
        own = resolving.resolve(self._workload, objects, instance=identity, deadline=shared.workload.deadline)
        return dataclasses.replace(own, content_revision=shared.content_revision)

    async def _each(self, items: Sequence[_Item], call: Callable[[_Item], Awaitable[_Result]]) -> list[_Result | None]:
        """Calls for many, some at once. A runner that fails stands in nobody else's way: its error is kept."""
        gate = asyncio.Semaphore(CALLS_AT_ONCE)

        async def one(item: _Item) -> _Result | None:
            async with gate:
                try:
                    return await call(item)
                except RunnerError as error:
                    self._errors.append(error)
                    return None

        return await asyncio.gather(*(one(item) for item in items))

    # --- what is said -------------------------------------------------------------------------------------------------

    def _tell(self, event: str, message: str) -> None:
        """A trouble, once however many have it."""
        if (event, message) not in self._told:
            self._told.add((event, message))
            text = message if event != "Failed" else f"Error: {message}"
            self._record(Happening(happenings.WARNING, event, text))

    def _tell_of_many(self, reason: str, done: str, names: Sequence[str]) -> None:
        """One Event for all; where there is only one instance, its own Events say enough."""
        if not names or (self._wanted.at_once <= 1 and len(names) == 1):
            return
        text = f"instance {names[0]}" if len(names) == 1 else f"{len(names)} instances: {names[0]} … {names[-1]}"
        self._record(Happening(happenings.NORMAL, reason, f"{done} {text}"))

    def _record(self, happening: Happening) -> None:
        self._reconciler._record(self._workload, happening)


def path_of(namespace: str, name: str = "") -> str:
    """The path of a namespace's WasmWorkloads, or of one."""
    base = f"/apis/{GROUP_VERSION}/namespaces/{namespace}/wasmworkloads"
    return f"{base}/{name}" if name else base
