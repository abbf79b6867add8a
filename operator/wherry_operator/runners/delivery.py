"""Brings workloads to runners and away from them: where one is, where it may go, and in which order changes count.

Nothing here is persistent: what runners say after their snapshot, and the status of the object itself, tell where a workload
is, also to an operator that was born a moment ago.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from wherry_operator import placement
from wherry_operator.leader import LeadershipLost
from wherry_operator.placement import RunnerFacts
from wherry_operator.queue import Fatal
from wherry_operator.resolve.revision import Resolved
from wherry_operator.runners.client import Refused, RunnerClient
from wherry_operator.runners.registry import RunnerRegistry, RunnerState
from wherry_runner import protocol
from wherry_runner.protocol import RefusalReason

log = logging.getLogger(__name__)

_Answer = TypeVar("_Answer")


class Deposed(Fatal):
    """A runner has heard of a newer leader: this process must not change anything any more."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a workload is, or is to be."""

    runner: str
    reachable: bool
    """The runner is connected, and its snapshot complete: what it does not have does not exist."""
    status: protocol.WorkloadStatus | None
    """What it said last; None where it has none of it."""
    info: protocol.RunnerInfo | None
    lost: bool = False
    """It has been silent for so long that what it has may be started elsewhere (design §3.7)."""
    copies: bool = False
    """Another runner has it as well."""


class Term(Protocol):
    """What of `Leadership` is used here."""

    @property
    def epoch(self) -> int:
        """The number of our term."""
        ...

    async def advance(self, beyond: int) -> int:
        """Raise it above another, if we lead. Raises LeadershipLost."""
        ...


class Deliveries:
    """The one way from reconcilers to runners."""

    def __init__(self, registry: RunnerRegistry, term: Term) -> None:
        self._registry = registry
        self._term = term
        self._sequences = itertools.count(1)
        self._assigned: dict[str, str] = {}
        self._load: Counter[str] = Counter()
        """How many are assigned to each runner: counted as they come, for a burst of thousands to be placed in no time."""
        self._instances: defaultdict[str, set[str]] = defaultdict(set)
        self._stopping: set[str] = set()

    def observe(self, owner: protocol.Owner, workload_id: str) -> None:
        """Take note that a runner spoke of a workload."""
        if self._registry.find(workload_id) or workload_id in self._assigned:
            self._instances[owner.uid].add(workload_id)
        else:
            self._drop_instance(owner.uid, workload_id)

    def instances(self, owner_uid: str) -> set[str]:
        """The workloads of an object that are on a runner, or on their way to one."""
        return set(self._instances.get(owner_uid, ()))

    def locate(self, workload_id: str, *, last_runner: str = "") -> Place | None:
        """Where the workload is: by what runners say, by what its object says, by what we sent. None: nowhere yet."""
        found = self._registry.find(workload_id)
        if found:
            # Twice only if a runner that was given up came back: the one that the object names counts.
            name, status = next((pair for pair in found if pair[0] == last_runner), found[0])
            return replace(self._place(name, status), copies=len(found) > 1)
        for name in (self._assigned.get(workload_id, ""), last_runner):
            if name and self._registry.state(name) is not None:
                return self._place(name, None)
        return None

    async def drop_copies(self, workload_id: str, *, keep: str) -> None:
        """End copies elsewhere: of a runner that was given up, and came back. Raises RunnerError, Deposed."""
        for name, _ in self._registry.find(workload_id):
            state = self._registry.state(name)
            if name != keep and state is not None and state.synced:
                log.warning("dropping a second copy of %s from runner %s: runner %s has it", workload_id, name, keep)
                await self.delete(workload_id, name, grace_seconds=0)

    def choose(self, workload_id: str) -> Place:
        """A runner for a workload that has none. Raises NoRunner."""
        facts = [self._facts(state, self._load[state.name]) for state in self._registry.states()]
        name = placement.choose(facts)
        self._assign(workload_id, name)
        return self._place(name, None)

    def client(self, runner: str) -> RunnerClient | None:
        """The client of a runner."""
        return self._registry.client(runner)

    async def put(
        self, workload_id: str, runner: str, resolved: Resolved, history: tuple[protocol.History, ...]
    ) -> protocol.WorkloadStatus:
        """Bring the workload on the runner to this. Raises RunnerError, Refused, Deposed."""
        client = self._registry.client(runner)
        assert client is not None
        self._assign(workload_id, runner)
        self._stopping.discard(workload_id)
        self._instances[resolved.workload.owner.uid].add(workload_id)

        async def send() -> protocol.WorkloadStatus:
            body = protocol.WorkloadPut(
                epoch=self._term.epoch,
                sequence=next(self._sequences),
                template_hash=resolved.template_hash,
                content_revision=resolved.content_revision,
                workload=resolved.workload,
                history=history,
            )
            return await client.put(workload_id, body)

        try:
            return await self._in_our_term(send)
        except Refused as error:
            if error.full and not self._registry.find(workload_id):
                self.forget(resolved.workload.owner.uid, workload_id)  # that one is full; another may not be
            raise

    async def delete(self, workload_id: str, runner: str, *, grace_seconds: int, keep_ended: bool = False) -> bool:
        """Stop and forget the workload on the runner; True once it is gone. `keep_ended`: one that ended by itself, perhaps
        unheard as yet, stays. Raises RunnerError, Deposed."""
        client = self._registry.client(runner)
        if client is None:
            return True

        async def send() -> protocol.WorkloadStatus | None:
            return await client.delete(
                workload_id,
                epoch=self._term.epoch,
                sequence=next(self._sequences),
                grace_seconds=grace_seconds,
                keep_ended=keep_ended,
            )

        self._stopping.add(workload_id)
        gone = await self._in_our_term(send) is None
        if gone:
            self._stopping.discard(workload_id)
        return gone

    def is_stopping(self, workload_id: str) -> bool:
        """Whether we told its runner to stop it, and it is not gone yet: how it ends then is not its own doing."""
        return workload_id in self._stopping

    async def _in_our_term(self, send: Callable[[], Awaitable[_Answer]]) -> _Answer:
        try:
            return await send()
        except Refused as error:
            if error.refusal.reason is not RefusalReason.STALE_EPOCH:
                raise
            # Either another leads, or the Lease forgot how far its count was: writing it tells which.
            try:
                await self._term.advance(error.refusal.epoch or 0)
            except LeadershipLost:
                raise Deposed(f"another operator leads: {error.refusal.message}") from error
            return await send()

    async def drop(self, owner_uid: str) -> bool:
        """Stop and forget all of an object that is gone; True once nothing is left where it can be reached."""
        left = False
        for workload_id in self.instances(owner_uid):
            runners = {name for name, _ in self._registry.find(workload_id)} | {self._assigned.get(workload_id, "")}
            for name in runners - {""}:
                state = self._registry.state(name)
                if state is None or not state.synced:
                    continue  # once it is back, it is swept
                if not await self.delete(workload_id, name, grace_seconds=0):
                    left = True
            if not left:
                self.forget(owner_uid, workload_id)
        return not left

    def forget(self, owner_uid: str, workload_id: str) -> None:
        """The workload is gone from everywhere."""
        self._assign(workload_id, "")
        self._stopping.discard(workload_id)
        self._drop_instance(owner_uid, workload_id)

    def _assign(self, workload_id: str, runner: str) -> None:
        """Note where a workload was sent; an empty name: nowhere."""
        if before := self._assigned.pop(workload_id, ""):
            self._load[before] -= 1
        if runner:
            self._assigned[workload_id] = runner
            self._load[runner] += 1

    def _drop_instance(self, owner_uid: str, workload_id: str) -> None:
        ids = self._instances.get(owner_uid)
        if ids is not None:
            ids.discard(workload_id)
            if not ids:
                del self._instances[owner_uid]

    def _place(self, name: str, status: protocol.WorkloadStatus | None) -> Place:
        state = self._registry.state(name)
        reachable = state is not None and state.synced
        return Place(runner=name, reachable=reachable, status=status, info=state.info if state else None)

    @staticmethod
    def _facts(state: RunnerState, assigned: int) -> RunnerFacts:
        info = state.info
        return RunnerFacts(
            name=state.name,
            ready=state.synced and info is not None,
            workloads=max(len(state.statuses), assigned),
            max_workloads=info.max_workloads if info else 0,
        )
