"""Workloads that run for ever: as many as wanted, and their replacement step by step when the spec has changed.

The rules are those of a Deployment (pkg/controller/deployment/rolling.go), for instances in the place of ReplicaSets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import count, islice

from wherry_operator.rollout.instances import Instance, Slot, keep_order
from wherry_operator.rollout.plan import Memory, Plan, Soonest, Wanted, back_off_seconds, latest


def plan(wanted: Wanted, instances: Sequence[Instance], memory: Memory, now: datetime) -> Plan:
    """What is to be done for a service."""
    soonest = Soonest()
    old = [item for item in instances if item.slot.revision != wanted.revision]
    positions, older = latest(item for item in instances if item.slot.revision == wanted.revision)
    stop = [item.slot for item in older if not _serves_on(item, positions[item.slot.index], wanted, now, soonest)]
    stop += [item.slot for item in old if item.ended or item.lost or item.stopping]
    old = [item for item in old if not (item.ended or item.lost)]

    kept, surplus = _fitting(positions.values(), wanted.replicas)
    stop += [item.slot for item in surplus]
    run = [item.slot for item in kept if not item.ended]
    standing = sum(not item.ended for item in positions.values())
    if wanted.recreate and old:
        stop += [item.slot for item in old if not item.stopping]
        room = 0
    else:
        stop += _replaced(wanted, old, kept, now, soonest)
        room = max(0, wanted.replicas + wanted.max_surge - len(old) - standing) if old else wanted.replicas
    if not wanted.recreate:
        # At once, whatever maxSurge says: their runner, or who tainted its node, does not wait.
        run += [item.slot.next() for item in kept if item.leaving and not item.ended]
    for item in kept:
        if not item.ended:
            continue
        # Under Always only the runner ends one for good, e.g. as Evicted.
        due = back_off_seconds(item, now)
        if due > 0:
            soonest.after(due)
        elif room > 0:
            run.append(item.slot.next())
            stop.append(item.slot)
            room -= 1
    free = (index for index in count() if index not in positions)
    run += [Slot(wanted.revision, index) for index in islice(free, min(wanted.replicas - len(kept), room))]
    for item in kept:
        if item.ready and wanted.min_ready_seconds and not item.available(wanted.min_ready_seconds, now):
            soonest.after(item.wait_seconds(wanted.min_ready_seconds, now))
    start = memory.start or (now.replace(microsecond=0) if run else None)
    remembered = dataclasses.replace(Memory(revision=wanted.revision), start=start)
    return Plan(run=tuple(run), stop=tuple(stop), memory=remembered, again_seconds=soonest.seconds)


def _serves_on(item: Instance, next_one: Instance, wanted: Wanted, now: datetime, soonest: Soonest) -> bool:
    """Whether one that has to leave its runner, or had to when another was begun, has to serve until that does."""
    if item.expelled or item.ended or not (item.leaving or item.ready):
        return False
    if next_one.available(wanted.min_ready_seconds, now):
        return False
    if next_one.ready:
        soonest.after(next_one.wait_seconds(wanted.min_ready_seconds, now))
    return True


def _fitting(positions: Iterable[Instance], replicas: int) -> tuple[list[Instance], list[Instance]]:
    ordered = sorted(positions, key=keep_order)
    return ordered[:replicas], ordered[replicas:]


def _replaced(
    wanted: Wanted, old: Sequence[Instance], kept: Sequence[Instance], now: datetime, soonest: Soonest
) -> list[Slot]:
    """Those of older revisions that can go now."""
    standing = [item for item in old if not item.stopping]
    new = [item for item in kept if not (item.ended or item.stopping)]
    needed = wanted.replicas - wanted.max_unavailable
    available_new = sum(item.available(wanted.min_ready_seconds, now) for item in new)
    available: list[Instance] = []
    unavailable: list[Instance] = []
    for item in standing:
        (available if item.available(wanted.min_ready_seconds, now) else unavailable).append(item)
    budget = len(standing) + len(new) - needed - (len(new) - available_new)
    # Those that serve nobody first. A silent one can't be stopped: it must not use up what another could.
    gone = sorted((item for item in unavailable if not item.silent), key=keep_order, reverse=True)[: max(0, budget)]
    budget = min(budget - len(gone), len(available) + available_new - needed)
    gone += sorted(available, key=keep_order, reverse=True)[: max(0, budget)]
    for item in unavailable:
        if item.ready:
            soonest.after(item.wait_seconds(wanted.min_ready_seconds, now))
    return [item.slot for item in gone]
