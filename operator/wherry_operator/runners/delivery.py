"""Brings workloads to runners and away from them: where one is, where it may go, and in which order changes count.

Nothing here is persistent: what runners say after their snapshot, and the status of the object itself, tell where a workload
is, also to an operator that was born a moment ago.
"""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeVar

from wherry_operator import placement
from wherry_operator.clock import Clock
from wherry_operator.leader import LeadershipLost
from wherry_operator.models import Toleration
from wherry_operator.placement import Demand, Needs, NodeFacts, RunnerFacts, Taint
from wherry_operator.queue import Fatal, Key
from wherry_operator.resolve.revision import Resolved
from wherry_operator.rollout.instances import drains
from wherry_operator.runners.client import Refused, RunnerClient
from wherry_operator.runners.ledger import Ledger, Reserved, kind_of
from wherry_operator.runners.registry import RunnerRegistry, RunnerState
from wherry_runner import protocol
from wherry_runner.protocol import RefusalReason

log = logging.getLogger(__name__)

LOSS_SECONDS = 60.0
"""Silence after which what a runner has is started elsewhere (design §3.7)."""

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
    lost_in_seconds: float | None = None
    """When it will be lost, if it stays silent; None: it is not silent, or lost already."""
    copies: bool = False
    """Another runner that can be reached has it as well."""
    leaving: bool = False
    """The runner can be reached, and is about to end."""


class Term(Protocol):
    """What of `Leadership` is used here."""

    @property
    def epoch(self) -> int:
        """The number of our term."""
        ...

    async def advance(self, beyond: int) -> int:
        """Raise it above another, if we lead. Raises LeadershipLost."""
        ...


class Nodes(Protocol):
    """What is known of the cluster's nodes."""

    def facts(self, name: str) -> NodeFacts:
        """Those of one node."""
        ...


class NoNodes:
    """Runners outside of any cluster."""

    def facts(self, name: str) -> NodeFacts:
        """Nothing but its name."""
        return NodeFacts.unknown(name)


class Deliveries:
    """The one way from reconcilers to runners."""

    def __init__(
        self,
        registry: RunnerRegistry,
        term: Term,
        *,
        nodes: Nodes | None = None,
        loss_seconds: float = LOSS_SECONDS,
        clock: Clock | None = None,
    ) -> None:
        """`loss_seconds`: how long a runner is silent before what it has may be started elsewhere."""
        self._registry = registry
        self._term = term
        self._nodes = nodes or NoNodes()
        self._loss_seconds = loss_seconds
        self._clock = clock or Clock()
        self._sequences = itertools.count(1)
        self._assigned: dict[str, str] = {}
        self._asked: dict[tuple[str, str], bool] = {}
        """PUTs under way, by workload and runner; whether the watch told of the workload meanwhile."""
        self._ledger = Ledger()
        self._instances: defaultdict[str, set[str]] = defaultdict(set)
        self._waiting: dict[Key, None] = {}

    def observe(self, owner: protocol.Owner, workload_id: str) -> None:
        """Take note that a runner spoke of a workload."""
        found = self._registry.find(workload_id)
        for name, status in found:
            ended = status.phase is protocol.Phase.ENDED  # its runner keeps nothing for it but its place
            self._ledger.note(workload_id, name, owner, Demand() if ended else None, _ports_of(status))
            for container in status.containers[:1]:
                if container.module_digest:
                    self._ledger.compiled(name, container.image)
        there = {name for name, _ in found} | {self._assigned.get(workload_id, "")}
        for name in self._ledger.runners(workload_id) - there:
            self._ledger.release(workload_id, name)
        if found or workload_id in self._assigned:
            self._instances[owner.uid].add(workload_id)
        else:
            self._drop_instance(owner.uid, workload_id)

    def heard(self, workload_id: str, runner: str) -> bool:
        """Take note that a runner's watch told of a workload; whether that is news to nobody: whoever waits for the answer to a
        PUT takes the newest that is known then."""
        if (workload_id, runner) not in self._asked:
            return False
        self._asked[workload_id, runner] = True
        return True

    def concerned(self, runner: str) -> set[Key]:
        """The objects that are to be looked at because something has changed about a runner: those of which it has something,
        and those that wait for any runner. They wait no more."""
        state = self._registry.state(runner)
        if state is None:
            owners = self._ledger.owners(runner)
            self._ledger.close(runner)
        else:
            # Also what did not change while it was away may have been given up meanwhile.
            for workload_id, owner in list(state.statuses.owners()):
                self.observe(owner, workload_id)
            owners = self._ledger.owners(runner)
        keys = {Key(owner.kind, owner.namespace, owner.name) for owner in owners} | self._waiting.keys()
        self._waiting.clear()
        return keys

    def wait(self, key: Key) -> None:
        """An object has nowhere to go, or stands on a runner that is silent: it is looked at when that may have changed."""
        self._waiting[key] = None

    def weigh(self, workload_id: str, place: Place, workload: protocol.Workload) -> None:
        """Take note of what is kept for a workload that was there before us."""
        ended = place.status is not None and place.status.phase is protocol.Phase.ENDED
        demand = Demand() if ended else Demand.of(workload)
        had = None if place.status is None else _ports_of(place.status)
        self._ledger.note(
            workload_id, place.runner, workload.owner, demand, placement.ports_of(workload) if had is None else had
        )

    def instances(self, owner_uid: str) -> set[str]:
        """The workloads of an object that are on a runner, or on their way to one."""
        return set(self._instances.get(owner_uid, ()))

    def locate(self, workload_id: str, *, last_runner: str = "") -> Place | None:
        """Where the workload is: by what runners say, by what its object says, by what we sent. None: nowhere yet."""
        assigned = self._assigned.get(workload_id, "")
        found = [(name, status) for name, status in self._registry.find(workload_id) if not self._is_gone(name)]
        places = [self._place(name, status) for name, status in found]
        if any(not place.lost for place in places) or (places and not self._is_there(assigned, besides=places)):
            # Twice only if a runner that was given up came back: the one that the object names counts.
            best = min(places, key=lambda place: (place.lost, place.runner != last_runner))
            copies = any(place.reachable for place in places if place.runner != best.runner)
            return replace(best, copies=copies)
        for name in (assigned, last_runner):
            if name and self._registry.state(name) is not None and not self._is_gone(name):
                return self._place(name, None)
        return None

    def _is_there(self, runner: str, *, besides: Sequence[Place]) -> bool:
        """Whether it was sent to another runner since, that is not lost too."""
        if not runner or self._registry.state(runner) is None or any(place.runner == runner for place in besides):
            return False
        return not self._is_gone(runner) and not self._place(runner, None).lost

    def expelled(self, runner: str, tolerations: Sequence[Toleration]) -> Taint | None:
        """The taint of its node for which what is on the runner has to leave."""
        return self._node(runner).expels(tolerations)

    async def drop_copies(self, workload_id: str, *, keep: str) -> None:
        """End copies elsewhere: of a runner that was given up, and came back. Raises RunnerError, Deposed."""
        for name, _ in self._registry.find(workload_id):
            state = self._registry.state(name)
            if name != keep and state is not None and state.synced:
                log.warning("dropping a second copy of %s from runner %s: runner %s has it", workload_id, name, keep)
                await self.delete(workload_id, name, grace_seconds=0)

    def choose(self, workload_id: str, owner: protocol.Owner, needs: Needs) -> Place:
        """A runner for a workload that has none. Raises NoRunner."""
        kind = kind_of(owner, workload_id)
        name = placement.choose([self._facts(state, kind, needs.module) for state in self._registry.states()], needs)
        self._assign(workload_id, name)
        self._ledger.note(workload_id, name, owner, needs.demand, needs.ports)
        return self._place(name, None)

    def has_others(self, runner: str, tolerations: Sequence[Toleration]) -> bool:
        """Whether there is another runner that takes something new, and from which no taint would expel it."""
        return any(
            each.synced and not each.leaving and self.expelled(each.name, tolerations) is None
            for each in self._registry.states()
            if each.name != runner
        )

    def silent_hosts(self) -> frozenset[str]:
        """Names, nodes and addresses of runners that are silent, and not lost: what they had may go on well. One that said it
        would end has ended."""
        states = [
            state
            for state in self._registry.states()
            if not state.synced and not state.leaving and self._left(state) > 0
        ]
        known = {(state.info.node, state.info.address) for state in states if state.info is not None}
        return frozenset({*(state.name for state in states), *(state.node for state in states), *sum(known, ())} - {""})

    def reserved(self, runner: str) -> Reserved:
        """What of a runner WasmWorkloads have."""
        return self._ledger.reserved(runner)

    def offer(self) -> tuple[Demand, Demand] | None:
        """What all runners together offer, and what of it is kept; None before each has told what it offers."""
        states = self._registry.states()
        infos = [state.info for state in states if state.info is not None]
        if not infos or len(infos) < len(states):
            return None
        offered = (Demand(info.memory_bytes, 0, info.cpu_millicores) for info in infos)
        kept = (self._ledger.kept(state.name) for state in states)
        return sum(offered, Demand()), sum(kept, Demand())

    def client(self, runner: str) -> RunnerClient | None:
        """The client of a runner."""
        return self._registry.client(runner)

    async def put(
        self, workload_id: str, runner: str, resolved: Resolved, history: tuple[protocol.History, ...]
    ) -> protocol.WorkloadStatus:
        """Bring the workload on the runner to this; what is known of it then. Raises RunnerError, Refused, Deposed."""
        client = self._registry.client(runner)
        assert client is not None
        owner = resolved.workload.owner
        self._assign(workload_id, runner)
        self._ledger.note(workload_id, runner, owner, Demand.of(resolved.workload))
        self._instances[owner.uid].add(workload_id)

        async def send() -> protocol.WorkloadStatus:
            body = protocol.WorkloadPut(
                epoch=self._term.epoch,
                sequence=next(self._sequences),
                template_hash=resolved.template_hash,
                content_revision=resolved.content_revision,
                workload=resolved.workload,
                history=history,
            )
            instance = self._registry.instance(runner)
            return self._registry.answered(runner, instance, await client.put(workload_id, body))

        asked = workload_id, runner
        self._asked[asked] = False
        try:
            return await self._in_our_term(send)
        except BaseException as error:
            if self._asked.pop(asked, False):
                self._registry.tell(runner, workload_id)
            if isinstance(error, Refused) and error.full and not self._registry.find(workload_id):
                self.forget(owner.uid, workload_id)  # that one is full; another may not be
            raise
        finally:
            self._asked.pop(asked, None)

    async def delete(
        self, workload_id: str, runner: str, *, grace_seconds: int | None, keep_ended: bool = False
    ) -> bool:
        """Stop and forget the workload on the runner; True once it is gone. `grace_seconds`: None for its own. `keep_ended`: one
        that ended by itself, perhaps unheard as yet, stays. Raises RunnerError, Deposed."""
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

        return await self._in_our_term(send) is None

    async def _in_our_term(self, send: Callable[[], Awaitable[_Answer]]) -> _Answer:
        try:
            return await send()
        except Refused as error:
            if error.refusal.reason is not RefusalReason.STALE_EPOCH:
                raise
            log.warning("refused by a runner: %s", error.refusal.message)
            # Either another leads, or the Lease forgot how far its count was: writing it tells which.
            try:
                await self._term.advance(error.refusal.epoch or 0)
            except LeadershipLost:
                raise Deposed(f"another operator leads: {error.refusal.message}") from error
            return await send()

    async def drop(self, owner_uid: str) -> bool:
        """Stop and forget all of an object that is gone; True once nothing is left where it can be reached. What serves has its
        grace period to finish what it has."""
        left = False
        for workload_id in self.instances(owner_uid):
            stays = False
            runners = {name for name, _ in self._registry.find(workload_id)} | {self._assigned.get(workload_id, "")}
            for name in runners - {""}:
                state = self._registry.state(name)
                if state is None or not state.synced:
                    continue  # once it is back, it is swept
                status = state.statuses.get(workload_id)
                if not await self.delete(workload_id, name, grace_seconds=grace_to_end(status)):
                    stays = True
            if stays:
                left = True
            else:
                self.forget(owner_uid, workload_id)
        return not left

    def forget(self, owner_uid: str, workload_id: str) -> None:
        """The workload is gone from everywhere."""
        self._assign(workload_id, "")
        for name in self._ledger.runners(workload_id):
            self._ledger.release(workload_id, name)
        self._drop_instance(owner_uid, workload_id)

    def _assign(self, workload_id: str, runner: str) -> None:
        """Note where a workload was sent; an empty name: nowhere."""
        before = self._assigned.pop(workload_id, "")
        if before and before != runner:
            self._ledger.release(workload_id, before)
        if runner:
            self._assigned[workload_id] = runner

    def _drop_instance(self, owner_uid: str, workload_id: str) -> None:
        ids = self._instances.get(owner_uid)
        if ids is not None:
            ids.discard(workload_id)
            if not ids:
                del self._instances[owner_uid]

    def _place(self, name: str, status: protocol.WorkloadStatus | None) -> Place:
        state = self._registry.state(name)
        reachable = state is not None and state.synced
        left = None if reachable or state is None else self._left(state)
        return Place(
            runner=name,
            reachable=reachable,
            status=status,
            info=state.info if state else None,
            lost=left is not None and left <= 0,
            lost_in_seconds=left if left is not None and left > 0 else None,
            leaving=reachable and state is not None and state.leaving,
        )

    def state_of(self, state: RunnerState) -> Literal["ready", "syncing", "silent", "lost"]:
        """A runner's state in a word."""
        if state.synced:
            return "ready"
        if self._left(state) <= 0:
            return "lost"
        return "syncing" if state.connected else "silent"

    def _left(self, state: RunnerState) -> float:
        """How long until a silent runner is lost, in seconds."""
        now = self._clock.monotonic()
        since = now if state.silent_since is None else state.silent_since
        return since + self._loss_seconds - now

    def _is_gone(self, runner: str) -> bool:
        """Whether it is known that nothing of it runs any more: it is silent, and its node is said to be off."""
        state = self._registry.state(runner)
        return state is not None and not state.connected and self._node(runner).out_of_service

    def _node(self, runner: str) -> NodeFacts:
        state = self._registry.state(runner)
        if state is None:
            return NodeFacts()
        return self._nodes.facts(state.info.node if state.info is not None else state.node)

    def _facts(self, state: RunnerState, kind: str, module: str) -> RunnerFacts:
        info = state.info
        if info is None:
            return RunnerFacts(name=state.name, ready=False, workloads=0, max_workloads=0)
        return RunnerFacts(
            name=state.name,
            ready=state.synced,
            leaving=state.leaving,
            workloads=max(len(state.statuses), self._ledger.count(state.name)),
            max_workloads=info.max_workloads,
            kept=self._ledger.kept(state.name),
            memory_bytes=info.memory_bytes,
            cpu_millicores=info.cpu_millicores,
            default_memory_bytes=info.default_memory_request_bytes,
            short_of=state.condition.short_of if state.condition is not None else frozenset(),
            node=self._nodes.facts(info.node),
            alike=self._ledger.alike(kind, state.name) if kind else 0,
            ports=self._ledger.ports(state.name),
            has_module=bool(module) and self._ledger.has_module(state.name, module),
        )


def grace_to_end(status: protocol.WorkloadStatus | None) -> int | None:
    """The grace period of what nobody asks for any more: its own, if it has a use for it."""
    return None if status is not None and drains(status) else 0


def _ports_of(status: protocol.WorkloadStatus) -> frozenset[int] | None:
    """The ports that a workload has on its runner; None as long as it is not known what it will have, for a container that
    waits may be a server or not."""
    if status.phase is protocol.Phase.ENDED:
        return frozenset()
    containers = (*status.init_containers, *status.containers)
    if any(isinstance(each.state, protocol.Waiting) for each in containers):
        return None
    serving = (each.port for each in containers if each.port is not None)
    return frozenset((*serving, *(port.port for each in containers for port in each.ports)))
