"""The instances of one WasmWorkload on runners, as one look at the object finds them: seen, taken away, brought there."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Sequence, Set
from typing import TypeVar

from wherry_operator.models import Object, WasmWorkloadSpec
from wherry_operator.placement import Needs, NoRunner
from wherry_operator.queue import Key
from wherry_operator.reconcile.expulsions import Expulsions
from wherry_operator.references import References
from wherry_operator.resolve import workload as resolving
from wherry_operator.resolve.objects import Objects, ResolveError
from wherry_operator.resolve.revision import Resolved
from wherry_operator.rollout import completion
from wherry_operator.rollout.instances import Instance, Slot, by_runner, by_status, drains, serves
from wherry_operator.rollout.plan import Plan, Soonest, Wanted
from wherry_operator.runners.client import Refused, RunnerError
from wherry_operator.runners.delivery import Deliveries, Place
from wherry_operator.status import happenings
from wherry_operator.status import workload as workload_status
from wherry_operator.status.happenings import Happening
from wherry_operator.status.pod import Problem
from wherry_operator.status.workload import Seen

RETRY_SECONDS = 5.0
"""Until an object that waits for something outside (a ConfigMap, a runner) is looked at again."""

CALLS_AT_ONCE = 16
"""Calls of runners for one object: enough to hide their latency, few enough for others to get their turn."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Instances:
    """Those of one object, for one look at it."""

    def __init__(
        self,
        key: Key,
        workload: Object,
        wanted: Wanted,
        *,
        deliveries: Deliveries,
        references: References,
        expulsions: Expulsions,
        record: Callable[[Happening], None],
    ) -> None:
        self._deliveries = deliveries
        self._expulsions = expulsions
        self._references = references
        self._record = record
        self._key = key
        self._workload = workload
        self._wanted = wanted
        self._uid: str = workload["metadata"]["uid"]
        self._name: str = workload["metadata"]["name"]
        self._namespace: str = workload["metadata"]["namespace"]
        live: Object = workload.get("status") or {}
        self._entries: dict[Slot, Object] = {
            slot: entry
            for entry in live.get("instances") or []
            if (slot := Slot.parse(entry["name"], self._name)) and workload_status.last_runner(entry)
        }
        self._told: set[tuple[str, str]] = set()
        self._full: NoRunner | None = None
        self._copied: set[Slot] = set()
        self._spec = WasmWorkloadSpec.model_validate(workload["spec"])
        self._tolerations = self._spec.tolerations or ()
        self._places: dict[Slot, Place] = {}
        self._expelled: dict[Slot, str] = {}
        """Those whose runner's node wants them gone, with the taint that says so."""
        self._leaving: set[Slot] = set()
        """Those that serve on a runner that is about to end."""
        self.staying: Set[Slot] = frozenset()
        """Those that are to stop, and must not yet: clients are still led to them."""
        self.errors: list[RunnerError] = []
        """Of runners that failed; the others were called."""
        self.soonest = Soonest()
        """When something of this will have changed by time alone."""

    # --- what there is ------------------------------------------------------------------------------------------------

    def observe(self) -> tuple[list[str], dict[Slot, Seen]]:
        """Ids that are of no instance of ours, and the instances."""
        strangers, slots = [], set(self._entries)
        for workload_id in self._deliveries.instances(self._uid):
            slot = Slot.parse(workload_id, self._uid)
            if slot is None:
                strangers.append(workload_id)
            else:
                slots.add(slot)
        seen = {slot: self._see(slot) for slot in slots}
        self._expulsions.keep(self._uid, self._expelled.keys())
        return strangers, seen

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
            self.soonest.after(place.lost_in_seconds)
        if place.reachable and place.status is not None and not instance.ended:
            taint = self._deliveries.expelled(place.runner, self._tolerations)
            if taint is not None:
                self._expelled[slot] = str(taint)
                first = self._is_replaced_first(slot, place)
                instance = dataclasses.replace(instance, leaving=first, expelled=not first)
        if place.leaving and place.status is not None and serves(place.status) and not instance.ended:
            self._leaving.add(slot)
            others = self._deliveries.has_others(place.runner, self._tolerations)
            instance = dataclasses.replace(instance, leaving=others)
        address = place.info.address if place.info else ""
        return Seen(instance=instance, runner=place.runner, node=node, status=place.status, address=address)

    def _is_replaced_first(self, slot: Slot, place: Place) -> bool:
        """Of one that a taint expels: whether it may stay until another serves in its place. For a while, if one can."""
        left = self._expulsions.seconds_left(self._uid, slot)
        if place.status is None or not serves(place.status) or self._wanted.recreate or left <= 0:
            return False
        self.soonest.after(left)
        return self._deliveries.has_others(place.runner, self._tolerations)

    def going(self, plan: Plan) -> set[Slot]:
        """Those that are to be stopped, or to leave their runner, or whose runner leaves."""
        return {*plan.stop, *self._expelled, *self._leaving}

    # --- what is done -------------------------------------------------------------------------------------------------

    async def stop(self, plan: Plan, seen: dict[Slot, Seen]) -> bool:
        """Take away what is not to run; whether any is gone."""
        leaving = [slot for slot in (*plan.stop, *plan.forget) if slot in seen and slot not in self.staying]

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

    async def end(self, workload_ids: Sequence[str]) -> None:
        """Take away what is no instance of the object, and has its ids all the same."""
        await self._each(workload_ids, self._delete)

    async def _delete(self, workload_id: str, slot: Slot | None = None, *, keep_ended: bool = False) -> bool:
        # Also where only the status tells where it was: that runner may have notes of it.
        last = workload_status.last_runner(self._entries.get(slot, {})) if slot is not None else ""
        place = self._deliveries.locate(workload_id, last_runner=last)
        if place is not None and place.reachable:
            waits = place.status is not None and drains(place.status)
            grace = self._spec.termination_grace_period_seconds if waits else 0
            if not await self._deliveries.delete(workload_id, place.runner, grace_seconds=grace, keep_ended=keep_ended):
                return False
        elif place is not None:
            return False
        self._deliveries.forget(self._uid, workload_id)
        return True

    async def start(self, plan: Plan, seen: dict[Slot, Seen]) -> None:
        """Bring what is to run onto runners, and up to date there."""
        if not plan.run:
            return
        self._tell_of_taints(plan, seen)
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
            self.soonest.after(RETRY_SECONDS)
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
        if (seen.instance.silent and not seen.instance.lost) or slot in self.staying:
            return seen
        entry = self._entries.get(slot, {})
        expelled = slot in self._expelled
        if expelled and seen.instance.leaving:
            return seen
        if seen.instance.stopping or expelled:
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
        # What has changed comes with its next run, where its runner is about to end.
        if status is None or (status.content_revision != shared.content_revision and not place.leaving):
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
                    self.errors.append(error)
                    return None

        return await asyncio.gather(*(one(item) for item in items))

    # --- what is said -------------------------------------------------------------------------------------------------

    def _tell(self, event: str, message: str) -> None:
        """A trouble, once however many have it."""
        if (event, message) not in self._told:
            self._told.add((event, message))
            text = message if event != "Failed" else f"Error: {message}"
            self._record(Happening(happenings.WARNING, event, text))

    def _tell_of_taints(self, plan: Plan, seen: dict[Slot, Seen]) -> None:
        for slot, taint in self._expelled.items():
            item = seen.get(slot)
            if item is not None and not item.instance.stopping and (slot in plan.run or item.instance.leaving):
                message = f"runner {item.runner} has to be left: its node has the taint {{{taint}}}"
                self._tell("TaintManagerEviction", message)

    def _tell_of_many(self, reason: str, done: str, names: Sequence[str]) -> None:
        """One Event for all; where there is only one instance, its own Events say enough."""
        if not names or (self._wanted.at_once <= 1 and len(names) == 1):
            return
        text = f"instance {names[0]}" if len(names) == 1 else f"{len(names)} instances: {names[0]} … {names[-1]}"
        self._record(Happening(happenings.NORMAL, reason, f"{done} {text}"))
