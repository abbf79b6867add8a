"""Who is there: every runner's newest state, kept by a watch of each that is opened again whenever it breaks.

A silent runner is not a dead one (design §3.7): its last statuses stay known, with `connected` false.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field

from wherry_operator.clock import Clock
from wherry_operator.packing import alike
from wherry_operator.runners.client import RunnerClient, RunnerError
from wherry_operator.runners.statuses import Statuses
from wherry_operator.settings import RunnerAddress
from wherry_operator.tls import RunnerTls
from wherry_runner.protocol import (
    API_VERSION,
    GoneEvent,
    HeartbeatEvent,
    Owner,
    RunnerCondition,
    RunnerInfo,
    StatusEvent,
    SyncedEvent,
    WorkloadStatus,
)

log = logging.getLogger(__name__)

FIRST_BACKOFF_SECONDS = 0.2
"""A runner that restarts listens again within a second."""

LAST_BACKOFF_SECONDS = 10.0
"""One that is away for long is tried often enough for a node that comes back."""

LEFT_BACKOFF_SECONDS = 1.0
"""The same for one that said it would end: most are back soon, and the next one to be upgraded waits for no operator."""

OnChange = Callable[[Owner | None, str, str], None]
"""Owner (None where unknown), workload id, runner's name."""

OnRunnerChange = Callable[[str], None]
"""Runner's name."""


class RunnerRejected(RunnerError):
    """What answers is not the runner that was configured, or speaks another version of the wire."""


@dataclass(kw_only=True)
class RunnerState:
    """One runner as it was last heard of. Read it, never write it: only the registry does."""

    name: str
    url: str
    node: str = ""
    """Where discovery says it is; `info.node` is what it says itself."""
    info: RunnerInfo | None = None
    """None until it answered for the first time."""
    condition: RunnerCondition | None = None
    """What it said last of how it is; None: nothing yet."""
    connected: bool = False
    """Its watch is open, and it is the runner that it should be."""
    synced: bool = False
    """Connected, and `statuses` is all that it has: what is not there does not exist."""
    last_seen: float | None = None
    """When it was last heard, in seconds of the registry's monotonic clock; None: never."""
    silent_since: float | None = None
    """Since when nothing was heard of it, by the same clock: since we look for it, if it was never heard. None: it is synced."""
    leaving: bool = False
    """It said that it is about to end: it takes nothing new, and what serves there won't for long."""
    departed: bool = False
    """Discovery does not name it any more."""
    statuses: Statuses = field(default_factory=Statuses)
    """By workload id; while not synced, as last known."""


class RunnerRegistry:
    """The runners of this installation.

    `on_change` is called for every workload that changed or went, `on_runner_change` when a runner connects,
    is synced, disconnects, was restarted or is forgotten; both right after the state shows it, on the event loop,
    and they must not block.
    """

    def __init__(
        self,
        runners: Iterable[RunnerAddress],
        tls: RunnerTls,
        *,
        on_change: OnChange,
        on_runner_change: OnRunnerChange,
        loss_seconds: float = 60.0,
        clock: Clock | None = None,
    ) -> None:
        """`loss_seconds`: how long a runner that has departed must be silent until it is forgotten."""
        self._configured = tuple(runners)
        self._loss_seconds = loss_seconds
        self._tls = tls
        self._on_change = on_change
        self._on_runner_change = on_runner_change
        self._clock = clock or Clock()
        self._states: dict[str, RunnerState] = {}
        self._having: dict[str, tuple[str, ...]] = {}
        """The runners that have a workload, by its id: looking through all of them for each of thousands takes too long."""
        self._clients: dict[str, RunnerClient] = {}
        self._first_sync: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Begin to watch every runner; returns at once."""
        for runner in self._configured:
            self._add(runner)

    async def close(self) -> None:
        """Stop watching and close the connections. States stay readable."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()
        for client in self._clients.values():
            await client.close()

    def states(self) -> tuple[RunnerState, ...]:
        """All runners, in the order in which they were configured."""
        return tuple(self._states.values())

    def state(self, name: str) -> RunnerState | None:
        """One runner, None if there is none of that name."""
        return self._states.get(name)

    def instance(self, name: str) -> str:
        """Which start of a runner's process it is; empty before it has said so."""
        state = self._states.get(name)
        return state.info.instance if state is not None and state.info is not None else ""

    def client(self, name: str) -> RunnerClient | None:
        """How to call it, None if there is none of that name. It is there whether the runner is connected or
        not."""
        return self._clients.get(name)

    def find(self, workload_id: str) -> list[tuple[str, WorkloadStatus]]:
        """Where a workload is, with its newest known status: on silent runners too (see their
        `connected`)."""
        return [(name, self._states[name].statuses[workload_id]) for name in self._having.get(workload_id, ())]

    def describes(self, name: str, condition: RunnerCondition) -> None:
        """Note how a runner says that it is; told on if it is short of other things than before."""
        state = self._states.get(name)
        if state is None:
            return
        before, state.condition = state.condition or RunnerCondition(), condition
        if before.short_of != condition.short_of:
            self._tell_runner(name)

    def answered(self, name: str, instance: str, status: WorkloadStatus) -> WorkloadStatus:
        """Take the answer to a PUT, without telling who asked for it; what is known of the workload then.

        The watch brings the same, but later; what it has brought since stays. `instance`: the runner's when it was asked; of
        another it says nothing.
        """
        state = self._states.get(name)
        if state is None or not state.synced or state.info is None or state.info.instance != instance:
            return status
        known = state.statuses.get(status.id)
        if known is not None and (known.epoch, known.sequence) >= (status.epoch, status.sequence):
            return known
        state.statuses[status.id] = status
        self._has(name, status.id)
        return status

    def tell(self, name: str, workload_id: str) -> None:
        """Tell of a workload once more, if there is anything to tell."""
        state = self._states.get(name)
        if state is not None:
            self._tell(name, workload_id, state.statuses.get(workload_id))

    def discovered(self, runners: Iterable[RunnerAddress]) -> None:
        """These are all that there are now. One that is not named any more is kept while it answers, and until it was silent
        for `loss_seconds`: neither a Service that somebody deletes nor an upgrade of a runner must move what runs there."""
        named = {runner.name: runner for runner in runners}
        for runner in named.values():
            state = self._states.get(runner.name)
            if state is None:
                log.info('runner "%s" was found at %s', runner.name, runner.url)
                self._add(runner)
                continue
            state.departed, state.node = False, runner.node or state.node
            if state.url != runner.url:
                log.info('runner "%s" has moved to %s', runner.name, runner.url)
                state.url = runner.url
                self._follow_anew(runner.name)
        for name, state in self._states.items():
            if name not in named and not state.departed:
                log.info('runner "%s" is no longer named; it is forgotten once it is silent', name)
                state.departed = True

    async def wait_first_sync(self, timeout_seconds: float) -> bool:
        """Wait until each runner was synced once; for none longer than it had since we look for it: who has followed a leader
        has listened all the while, and a runner that is away must not hold up the fail-over. False: not all were in time;
        `states()` says which."""
        for name, event in tuple(self._first_sync.items()):
            since = self._states[name].silent_since if name in self._states else None
            left = 0.0 if since is None else since + timeout_seconds - self._clock.monotonic()
            try:
                async with asyncio.timeout(max(0.0, left)):
                    await event.wait()
            except TimeoutError:
                return False
        return True

    def _add(self, runner: RunnerAddress) -> None:
        self._states[runner.name] = RunnerState(
            name=runner.name, url=runner.url, node=runner.node, silent_since=self._clock.monotonic()
        )
        self._first_sync[runner.name] = asyncio.Event()
        self._follow_anew(runner.name)

    def _follow_anew(self, name: str) -> None:
        before, client = self._tasks.pop(name, None), self._clients.pop(name, None)
        if before is not None:
            before.cancel()
        self._clients[name] = RunnerClient(name, self._states[name].url, self._tls)
        self._tasks[name] = asyncio.create_task(self._keep(name, before, client), name=f"watch of runner {name}")

    def _forget(self, name: str) -> None:
        """Nothing of it is left."""
        state = self._states.pop(name)
        for workload_id in state.statuses:
            self._has_not(name, workload_id)
        self._first_sync.pop(name).set()
        del self._tasks[name]
        log.warning('runner "%s" is gone: what it had may be started elsewhere', name)
        self._tell_runner(name)
        for workload_id, status in state.statuses.items():
            self._tell(name, workload_id, status)

    async def _keep(self, name: str, before: asyncio.Task[None] | None, old: RunnerClient | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        if old is not None:
            await old.close()
        state, client = self._states[name], self._clients[name]
        delay, told = FIRST_BACKOFF_SECONDS, ""
        while True:
            was_synced = False
            try:
                await self._follow(state, client)
            except RunnerError as error:
                was_synced = state.synced
                # Each new reason once: a runner that is away for a day would fill the log.
                log.log(logging.DEBUG if str(error) == told else logging.WARNING, "%s", error)
                told = str(error)
            except Exception:
                log.exception("watch of runner %s failed; it is opened again", name)
            finally:
                self._disconnected(state)
            if was_synced:
                delay, told = FIRST_BACKOFF_SECONDS, ""
            assert state.silent_since is not None
            if state.departed and self._clock.monotonic() - state.silent_since >= self._loss_seconds:
                self._forget(name)
                await self._clients.pop(name).close()
                return
            await self._clock.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(2 * delay, LEFT_BACKOFF_SECONDS if state.leaving else LAST_BACKOFF_SECONDS)

    async def _follow(self, state: RunnerState, client: RunnerClient) -> None:
        self._connected(state, await client.info(), client)
        snapshot = Statuses()
        async with aclosing(client.watch()) as events:
            async for event in events:
                state.last_seen = self._clock.monotonic()
                match event:
                    case StatusEvent() if state.synced:
                        self._changed(state, event.status)
                    case StatusEvent():
                        snapshot[event.status.id] = event.status
                    case GoneEvent() if state.synced:
                        self._gone(state, event.id)
                    case GoneEvent():
                        snapshot.pop(event.id, None)
                    case SyncedEvent():
                        self._connected(state, event.info, client)
                        self._synced(state, snapshot)
                        snapshot = Statuses()
                    case HeartbeatEvent():
                        self._leaves(state, event.leaving)

    def _connected(self, state: RunnerState, info: RunnerInfo, client: RunnerClient) -> None:
        if info.runner != state.name:
            raise RunnerRejected(
                f'{client} calls itself "{info.runner}": the address belongs to another runner, or --runner '
                f"has a wrong name; it gets no workloads"
            )
        if info.api_version != API_VERSION:
            raise RunnerRejected(
                f"{client} speaks {info.api_version} (Wherry {info.wherry_version}), this operator "
                f"{API_VERSION}: bring both to the same release; it gets no workloads"
            )
        restarted = state.info is not None and state.info.instance != info.instance
        changed = not state.connected or restarted
        if restarted:
            log.warning("%s was restarted: its guests are gone", client)
        if not state.connected:
            log.info("%s is connected (node %s, Wherry %s)", client, info.node or "none", info.wherry_version)
        state.info, state.connected, state.last_seen = info, True, self._clock.monotonic()
        if not self._leaves(state, info.leaving) and changed:
            self._tell_runner(state.name)

    def _leaves(self, state: RunnerState, leaving: bool) -> bool:
        """Take note of whether it is about to end; whether that was told on."""
        if state.leaving == leaving:
            return False
        state.leaving = leaving
        if leaving:
            log.info('runner "%s" is about to end', state.name)
        self._tell_runner(state.name)
        return True

    def _synced(self, state: RunnerState, snapshot: Statuses) -> None:
        before, state.statuses = state.statuses, snapshot
        for workload_id in before.keys() - snapshot.keys():
            self._has_not(state.name, workload_id)
        for workload_id in snapshot:
            self._has(state.name, workload_id)
        state.synced, state.silent_since = True, None
        self._first_sync[state.name].set()
        for workload_id in list(before.differing(snapshot)):
            self._tell(state.name, workload_id, snapshot.get(workload_id) or before.get(workload_id))
        self._tell_runner(state.name)

    def _changed(self, state: RunnerState, status: WorkloadStatus) -> None:
        if state.statuses.take(status.id, status):
            self._has(state.name, status.id)
            self._tell(state.name, status.id, status)

    def _gone(self, state: RunnerState, workload_id: str) -> None:
        if old := state.statuses.pop(workload_id, None):
            self._has_not(state.name, workload_id)
            self._tell(state.name, workload_id, old)

    def _has(self, name: str, workload_id: str) -> None:
        having = self._having.get(workload_id, ())
        if name not in having:
            self._having[workload_id] = alike((*having, name))

    def _has_not(self, name: str, workload_id: str) -> None:
        left = tuple(each for each in self._having.get(workload_id, ()) if each != name)
        if left:
            self._having[workload_id] = alike(left)
        else:
            self._having.pop(workload_id, None)

    def _disconnected(self, state: RunnerState) -> None:
        was_connected, state.connected, state.synced = state.connected, False, False
        if state.silent_since is None:
            state.silent_since = state.last_seen
        if was_connected:
            self._tell_runner(state.name)

    def _tell(self, name: str, workload_id: str, status: WorkloadStatus | None) -> None:
        try:
            self._on_change(status.owner if status else None, workload_id, name)
        except Exception:  # a listener's bug must not cost the connection
            log.exception("change of workload %s on runner %s was not taken", workload_id, name)

    def _tell_runner(self, name: str) -> None:
        try:
            self._on_runner_change(name)
        except Exception:
            log.exception("change of runner %s was not taken", name)
