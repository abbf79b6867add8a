"""Workloads that run to their end: each index once, some at a time, within bounds of failures and of time.

The rules are those of an indexed Job (pkg/controller/job/job_controller.go). What has completed is written into the object's
status before its runner is told to forget it: so an index that completed never runs again (design §3.8).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from itertools import islice

from wherry_operator.rollout.instances import Instance, Slot, State, elapsed_seconds, keep_order
from wherry_operator.rollout.plan import Finished, Memory, Plan, Soonest, Wanted, back_off_seconds, latest
from wherry_runner.protocol import RestartPolicy

KEPT = 200
"""Ended instances that stay on their runners, for their logs: of more the oldest are forgotten, for runners are to have room
for others."""

RUNNERS_TURN_SECONDS = 5.0
"""At the deadline runners end their instances themselves, and keep their logs; after this much more we do it."""


def plan(wanted: Wanted, instances: Sequence[Instance], memory: Memory, now: datetime) -> Plan:
    """What is to be done for a run to completion."""
    strangers = [item for item in instances if item.slot.revision != wanted.revision]
    stop = [item.slot for item in strangers]
    known = memory if memory.revision == wanted.revision else Memory(revision=wanted.revision)
    newest, older = latest(item for item in instances if item.slot.revision == wanted.revision)
    stop += [item.slot for item in older if not item.ended]
    learned = _learn(wanted, newest.values(), known, now)
    if learned.finished is not None:
        return _over(wanted, learned, newest.values(), stop, now)

    soonest = Soonest()
    unwanted: list[Instance] = []
    active: list[Instance] = []
    for item in newest.values():
        if not item.ended:
            over = item.slot.index in learned.completed or item.slot.index >= wanted.completions
            (unwanted if over else active).append(item)
    retried = sorted(
        (
            item
            for item in newest.values()
            if item.state is State.FAILED
            and item.slot.index not in learned.completed
            and item.slot.index < wanted.completions
        ),
        key=lambda item: item.slot.index,
    )
    # One that is to be tried again keeps its place: so the gaps between completed indexes are never more than replicas.
    active.sort(key=keep_order)
    fitting, surplus = active[: wanted.replicas], active[wanted.replicas :]
    stop += [item.slot for item in (*unwanted, *surplus)]
    run = [item.slot for item in fitting]
    # What ran for another spec is ended before this one begins; a silent runner's is not waited for.
    begun = not any(not item.ended and not item.silent for item in strangers)
    for item in retried[: wanted.replicas - len(fitting)]:
        due = back_off_seconds(item, now)
        if due > 0:
            soonest.after(due)
        elif begun:
            run.append(item.slot.next())
    if begun:
        room = max(0, wanted.replicas - len(fitting) - len(retried))
        fresh = (index for index in range(wanted.completions) if index not in newest and index not in learned.completed)
        run += [Slot(wanted.revision, index) for index in islice(fresh, room)]
    start = learned.start
    if wanted.suspended and not active:
        start = None
    elif start is None and run:
        start = now.replace(microsecond=0)
    if start is not None and wanted.active_deadline_seconds is not None:
        soonest.after((start - now).total_seconds() + wanted.active_deadline_seconds)
    return Plan(
        run=tuple(run),
        stop=tuple(stop),
        forget=_forgettable(newest.values(), older, known),
        memory=dataclasses.replace(learned, start=start),
        again_seconds=soonest.seconds,
    )


def deadline(wanted: Wanted, memory: Memory) -> datetime | None:
    """When the whole is ended, whatever it does."""
    if memory.start is None or wanted.active_deadline_seconds is None or wanted.service:
        return None
    return memory.start + timedelta(seconds=wanted.active_deadline_seconds)


def _learn(wanted: Wanted, newest: Collection[Instance], known: Memory, now: datetime) -> Memory:
    """What is known now: each success is counted once, in the same breath as the failures that led to it."""
    if known.finished is not None:
        return known
    instances: list[Instance] = sorted(newest, key=lambda item: item.slot)
    succeeded = [item for item in instances if item.state is State.SUCCEEDED]
    fresh = [item for item in succeeded if item.slot.index not in known.completed]
    completed = known.completed | {item.slot.index for item in fresh}
    retried = known.retried + sum(item.slot.attempt for item in fresh)
    tries = sum(
        item.slot.attempt + (item.state is State.FAILED) for item in instances if item.slot.index not in completed
    )
    # It never falls: a runner that lost its journal takes knowledge of failures with it.
    failed = max(known.failed, retried + tries)
    learned = dataclasses.replace(known, completed=completed, retried=retried, failed=failed)
    return dataclasses.replace(learned, finished=_finished(wanted, learned, instances, now))


def _finished(wanted: Wanted, memory: Memory, instances: Sequence[Instance], now: datetime) -> Finished | None:
    bad = [item for item in instances if item.state is State.FAILED and item.slot.index not in memory.completed]
    late = deadline(wanted, memory)
    if any(item.reason == "DeadlineExceeded" for item in bad) or (late is not None and now >= late):
        text = f"it was active for longer than activeDeadlineSeconds ({wanted.active_deadline_seconds} s)"
        return Finished(good=False, reason="DeadlineExceeded", message=text, at=now)
    if failure := _too_many_failures(wanted, memory, instances, bad, now):
        return failure
    if wanted.completions <= len(memory.completed) and all(
        index in memory.completed for index in range(wanted.completions)
    ):
        one = wanted.completions == 1 and instances
        message = instances[0].message or "exit code 0" if one else f"all {wanted.completions} indexes have completed"
        return Finished(good=True, reason="Completed", message=message, at=now)
    return None


def _too_many_failures(
    wanted: Wanted, memory: Memory, instances: Sequence[Instance], bad: Sequence[Instance], now: datetime
) -> Finished | None:
    limit = wanted.backoff_limit
    restarts = 0
    if wanted.policy is RestartPolicy.ON_FAILURE and limit is not None:
        restarts = sum(item.restarts for item in instances if not item.ended)
    if memory.failed + restarts <= (limit or 0):
        return None
    if bad:
        worst = bad[0]
        text = worst.message or f"exit code {worst.exit_code}"
        if limit is None and wanted.completions == 1:
            return Finished(good=False, reason=worst.reason or "Error", message=text, at=now)
        text = f"index {worst.slot.index}: {worst.reason or 'Error'}: {text}; "
    else:
        text = f"{restarts} restarts; " if restarts else ""
    return Finished(
        good=False,
        reason="BackoffLimitExceeded",
        message=f"{text}{memory.failed + restarts} failed, and backoffLimit is {limit or 0}",
        at=now,
    )


def _over(wanted: Wanted, memory: Memory, newest: Collection[Instance], stop: list[Slot], now: datetime) -> Plan:
    """Nothing starts any more."""
    assert memory.finished is not None
    soonest = Soonest()
    running: list[Instance] = [item for item in newest if not item.ended]
    patience = RUNNERS_TURN_SECONDS - elapsed_seconds(memory.finished.at, now)
    if memory.finished.reason == "DeadlineExceeded" and running and patience > 0:
        soonest.after(patience)
    else:
        stop = [*stop, *(item.slot for item in running)]
    expired = False
    if wanted.ttl_seconds is not None:
        left = (memory.finished.at - now).total_seconds() + wanted.ttl_seconds
        expired = left <= 0
        if not expired:
            soonest.after(left)
    return Plan(stop=tuple(stop), memory=memory, again_seconds=soonest.seconds, expired=expired)


def _forgettable(newest: Collection[Instance], older: Sequence[Instance], known: Memory) -> tuple[Slot, ...]:
    """Of the ended ones that nothing hangs on any more, the oldest."""
    settled = [item for item in older if item.ended]
    settled += [item for item in newest if item.ended and item.slot.index in known.completed]
    if len(settled) <= KEPT:
        return ()
    settled.sort(key=lambda item: (item.ended_at is not None and item.ended_at.timestamp()) or 0.0)
    return tuple(item.slot for item in settled[: len(settled) - KEPT])
