"""The supervisor against a small model of what it promises, over random requests, ends and deaths.

WHERRY_SOAK=1 plays a hundred times as many lives (`make soak`).
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.support.fake_engine import FakeGuest
from tests.support.operator_fakes import settle
from tests.support.runner_scene import INFO, Runner, container, files, init, run, sidecar
from wherry_runner.execution.engine import EngineLost, StartRefused
from wherry_runner.lives.backoff import BackOffSettings
from wherry_runner.lives.supervisor import Refused
from wherry_runner.modules.errors import PullError
from wherry_runner.protocol import (
    ContainerStatus,
    GoneEvent,
    Phase,
    RefusalReason,
    RestartPolicy,
    Running,
    StatusEvent,
    Terminated,
    VolumeMount,
    WorkloadStatus,
)

LIVES = 40 * (100 if os.environ.get("WHERRY_SOAK") else 1)
NO_PAUSE = BackOffSettings(initial=0, maximum=0, settle=0, error_shown=0)
IDS = ("a", "b")


# --- what can happen --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Put:
    id: str
    epoch: int
    step: int
    """Of the sequence, against the newest: 0 repeats it, less is too old."""
    template: int
    content: int
    policy: RestartPolicy
    shape: str
    """The containers, by their first letters (`order.Role`)."""
    grace: int


@dataclass(frozen=True)
class Delete:
    id: str
    epoch: int
    step: int
    grace: int
    keep_ended: bool = False


@dataclass(frozen=True)
class End:
    """A guest ends, or is lost with the executor."""

    which: int
    code: int | None


@dataclass(frozen=True)
class Evict:
    id: str


@dataclass(frozen=True)
class Spoil:
    """The next start or pull goes wrong."""

    how: str


@dataclass(frozen=True)
class Die:
    """The runner's process ends, and the next one begins. Gently: its guests end by themselves before."""

    gently: bool
    code: int
    forgotten: bool
    """The operator does not come back: nothing is asked for again."""


Step = Put | Delete | End | Evict | Spoil | Die

ids = st.sampled_from(("a", "a", "a", "b"))
graces = st.sampled_from((0, 3600))
puts = st.builds(
    Put,
    id=ids,
    epoch=st.sampled_from((0, 0, 0, 0, 0, 0, 1, -1)),
    step=st.sampled_from((1, 1, 1, 1, 1, 1, 0, -1)),
    template=st.sampled_from((1, 1, 1, 2)),
    content=st.integers(1, 2),
    policy=st.sampled_from(RestartPolicy),
    shape=st.sampled_from(("m", "mm", "im", "sm", "sim", "ism", "iim")),
    grace=graces,
)
ends = st.builds(End, which=st.integers(0, 7), code=st.sampled_from((0, 0, 0, 1, 3, None)))
deaths = st.builds(
    Die, gently=st.booleans(), code=st.sampled_from((0, 1)), forgotten=st.sampled_from((False, False, False, True))
)
deletes = st.builds(
    Delete,
    id=ids,
    epoch=st.sampled_from((0, 0, 0, 0, 1, -1)),
    step=st.sampled_from((1, 1, 1, 0, -1)),
    grace=graces,
    keep_ended=st.booleans(),
)
spoils = st.builds(Spoil, how=st.sampled_from(("pull", "refused", "lost", "perhaps begun")))
steps: st.SearchStrategy[Step] = st.one_of(
    *(puts, puts, puts), *(ends, ends, ends, ends), *(deaths, deaths), deletes, spoils, st.builds(Evict, id=ids)
)


# --- what must hold ---------------------------------------------------------------------------------------------------


class Orders:
    """Which changes a runner takes, by the rules of `protocol.py`."""

    def __init__(self) -> None:
        self._epoch = 0
        self._sequence = 1
        self._here: dict[str, tuple[int, int]] = {}
        self._deleted: dict[str, tuple[int, int]] = {}
        self._journaled: dict[str, tuple[int, int]] = {}

    def next(self, step: Put | Delete) -> tuple[int, int]:
        """Epoch and sequence of a request."""
        return max(0, self._epoch + step.epoch), max(0, self._sequence + step.step)

    def refusal(self, step: Put | Delete, order: tuple[int, int]) -> RefusalReason | None:
        """What must be said to it; a higher epoch counts in any case."""
        if order[0] < self._epoch:
            return RefusalReason.STALE_EPOCH
        self._epoch = order[0]
        newest = self._here.get(step.id) or self._deleted.get(step.id, (0, 0))
        stale = order < newest
        if isinstance(step, Put) and step.id not in self._here:
            stale = stale or self._deleted.get(step.id) == order or order < self._journaled.get(step.id, (0, 0))
        return RefusalReason.STALE_SEQUENCE if stale else None

    def newer(self, step: Put, order: tuple[int, int]) -> bool:
        """Whether it changes anything."""
        return order > self._here.get(step.id, (-1, -1))

    def accept(self, workload: str, order: tuple[int, int]) -> None:
        """It was taken."""
        self._here[workload] = order
        self._sequence = max(self._sequence, order[1])

    def delete(self, workload: str, order: tuple[int, int]) -> None:
        """It is gone."""
        for orders in (self._here, self._journaled):
            orders.pop(workload, None)
        self._deleted[workload] = order
        self._sequence = max(self._sequence, order[1])

    def die(self) -> None:
        """What was here is in the journal; who was deleted is forgotten."""
        self._journaled |= self._here
        self._here, self._deleted = {}, {}


@dataclass
class Known:
    """What was promised of a workload."""

    policy: RestartPolicy
    shape: str
    template: int = 0
    deleted: bool = False
    """It was ended by a DELETE: should the next process be asked for it again, it may run again."""
    ended: WorkloadStatus | None = None
    """Once it has ended, this is final."""
    statuses: dict[str, ContainerStatus] = field(default_factory=dict)
    starts: Counter[tuple[str, int]] = field(default_factory=Counter)
    """By container and template."""
    changed: bool = False
    """It had another template before."""
    done: set[str] = field(default_factory=set)
    """Containers that ended well by themselves under OnFailure: never again."""

    def begin_anew(self) -> None:
        """Asked for again after a DELETE and the runner's death: another life, unless the first had ended by itself."""
        self.deleted = False
        if self.ended is not None and (self.ended.failure is not None or not self.ended.stopped):
            return
        self.ended, self.changed, self.template = None, False, 0
        for forgotten in (self.statuses, self.starts, self.done):
            forgotten.clear()


class Play:
    """A runner, one process after the other, and what is known of its workloads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._orders = Orders()
        self._known: dict[str, Known] = {}
        self._broken: list[str] = []
        self._begin()

    def _begin(self) -> None:
        self.runner = Runner(self._folder, back_off=NO_PAUSE, max_workloads=10, sync=lambda _: None)
        self.runner.engine.on_start = self._started
        self.seen: dict[str, WorkloadStatus] = {}
        self._reader = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        async for batch in self.runner.supervisor.watch(INFO, heartbeat=3600):
            for each in batch:
                if isinstance(each, StatusEvent):
                    self.seen[each.status.id] = each.status
                elif isinstance(each, GoneEvent):
                    self.seen.pop(each.id, None)

    def _started(self, guest: FakeGuest) -> None:
        """Called by the engine, whose caller takes any error for one of its own: so it is noted, and told later."""
        whose = workload, name = _whose(guest)
        known = self._known[workload]
        run = (name, known.template)
        known.starts[run] += 1
        if [_whose(each) for each in self._alive()].count(whose) > 1:
            self._broken.append(f"two runs of {whose} at once")
        if known.ended is not None:
            self._broken.append(f"{whose} runs, though its workload had ended")
        if name in known.done:
            self._broken.append(f"{whose} ran again, though it had ended well under OnFailure")
        if known.policy is RestartPolicy.NEVER and known.starts[run] > 1 and not name.startswith("s"):
            self._broken.append(f"{whose} ran twice under Never")

    def _alive(self) -> list[FakeGuest]:
        return [guest for guest in self.runner.engine.guests if not guest.ended]

    async def settle(self) -> None:
        """Until nothing happens any more by itself: no round, to the disk and back, changes anything."""
        before: dict[str, WorkloadStatus] | None = None
        while before != self.seen:
            before = dict(self.seen)
            await settle()
            await self.runner.journals.open(IDS[0]).synced()
            await settle()
        for name in IDS:
            if name not in self._known:
                self.runner.journals.drop(name)

    async def play(self, step: Step) -> None:
        match step:
            case Put():
                self._put(step)
            case Delete():
                self._delete(step)
            case End(which=which, code=code):
                if alive := self._alive():
                    guest = alive[which % len(alive)]
                    guest.lose() if code is None else guest.exit(code)
            case Evict(id=workload):
                self.runner.supervisor.evict(workload, "it took too much")
            case Spoil(how=how):
                self._spoil(how)
            case Die():
                await self._die(step)
        await self.settle()
        self.check()

    def _put(self, step: Put) -> None:
        order = self._orders.next(step)
        refusal = self._orders.refusal(step, order)
        known = self._known.get(step.id)
        if known is None:
            known = Known(step.policy, step.shape)  # a Pod can change its images, and neither of these
        if refusal is None and self._orders.newer(step, order):
            if known.deleted and step.id not in self.seen:
                known.begin_anew()
            self._known[step.id] = known
            if known.ended is None:
                known.changed = known.changed or known.template not in (0, step.template)
                known.template = step.template
        names = [f"{letter}{index}" for index, letter in enumerate(known.shape)]
        mounts = (VolumeMount(volume="v", mount_path="/v"),)
        try:
            status = self.runner.put(
                id=step.id,
                epoch=order[0],
                sequence=order[1],
                template=f"t{step.template}",
                content=f"c{step.content}",
                policy=known.policy,
                init=tuple(sidecar(name) if name[0] == "s" else init(name) for name in names if name[0] != "m"),
                containers=tuple(container(name, mounts=mounts) for name in names if name[0] == "m"),
                volumes=(files(file=str(step.content)),),
                grace=step.grace,
            )
        except Refused as error:
            assert error.refusal.reason is refusal, error
        else:
            assert refusal is None
            assert (status.epoch, status.sequence) == order
            self._orders.accept(step.id, order)

    def _delete(self, step: Delete) -> None:
        order = self._orders.next(step)
        refusal = self._orders.refusal(step, order)
        try:
            status = self.runner.delete(
                id=step.id, epoch=order[0], sequence=order[1], grace=step.grace, keep_ended=step.keep_ended
            )
        except Refused as error:
            assert error.refusal.reason is refusal, error
            return
        assert refusal is None
        if status is not None and status.phase is Phase.ENDED:
            assert step.keep_ended
            assert not status.stopped
        elif status is not None:
            self._orders.accept(step.id, order)
            self._known[step.id].deleted = True
        elif step.keep_ended and self.runner.journals.known(step.id):
            assert step.id not in self.seen, "it ended with the last process, and its end is still to be told"
        else:
            self._orders.delete(step.id, order)
            self._known.pop(step.id, None)

    def _spoil(self, how: str) -> None:
        match how:
            case "pull":
                self.runner.modules.errors.append(PullError("no route to host"))
            case "refused":
                self.runner.engine.refusals.append(StartRefused("no"))
            case "lost":
                self.runner.engine.refusals.append(EngineLost("gone"))
            case "perhaps begun":
                self.runner.engine.refusals.append(EngineLost("gone", may_have_begun=True))

    async def _die(self, step: Die) -> None:
        dying = asyncio.ensure_future(self.runner.die(grace=3600 if step.gently else 0))
        if step.gently:
            await settle()
            for guest in self._alive():
                guest.exit(step.code)
        await dying
        await self._reader
        self._orders.die()
        self._begin()
        for name, known in [] if step.forgotten else list(self._known.items()):
            again = Put(name, 0, 1, known.template, 1, known.policy, known.shape, 0)
            self._put(again)

    def check(self) -> None:
        """What must be so whenever nothing happens."""
        assert self._broken == []
        for name in IDS:
            try:
                status = self.runner.supervisor.status(name)
            except Refused:
                assert name not in self.seen
                continue
            # A DELETE that is repeated is no news: told, it would be sent again by who hears of it.
            order = {"epoch": status.epoch, "sequence": status.sequence}
            assert self.seen[name].model_copy(update=order) == status, "what is told last is what is"
            self._check_status(self._known[name], status)

    def _check_status(self, known: Known, status: WorkloadStatus) -> None:
        alive = {guest.spec.guest_id for guest in self._alive()}
        everything = (*status.init_containers, *status.containers)
        for each in everything:
            assert isinstance(each.state, Running) == (each.container_id in alive), each
            before = known.statuses.get(each.name)
            if before is not None:
                assert each.restart_count >= before.restart_count
                same = each.container_id == before.container_id
                assert same == (each.restart_count == before.restart_count) or not before.container_id
            ends = [end for end in (each.state, each.last_terminated) if isinstance(end, Terminated)]
            assert len({end.container_id for end in ends}) == len(ends), "each run ends once"
            known.statuses[each.name] = each
            once = known.policy is RestartPolicy.ON_FAILURE and each.name.startswith("m") and not known.changed
            if once and isinstance(each.state, Terminated) and each.state.exit_code == 0:
                known.done.add(each.name)
        if status.phase is Phase.ENDED:
            assert not any(isinstance(each.state, Running) for each in everything)
            if known.ended is None:
                known.ended = status
                event(f"ended: {known.shape} {known.policy}")
            assert [each.state for each in status.containers] == [each.state for each in known.ended.containers]
            assert status.failure == known.ended.failure
        else:
            assert known.ended is None, "what has ended stays so"

    async def finish(self) -> None:
        """Everything is deleted: nothing is left anywhere."""
        for _ in range(2):
            for name in IDS:
                self._delete(Delete(id=name, epoch=0, step=1, grace=0))
                await self.settle()
        assert self._alive() == []
        assert self.seen == {}
        assert self.runner.log_budget.allowed_bytes == 0
        assert (self.runner.admission.requested_bytes, self.runner.admission.requested_millicores) == (0, 0)
        assert self.runner.journals.workloads() == []
        assert list((self._folder / "logs").iterdir()) == []
        assert [path for path in (self._folder / "volumes").iterdir() if not path.name.startswith(".")] == []
        await self.runner.die()
        await self._reader


def _whose(guest: FakeGuest) -> tuple[str, str]:
    """Workload and container that a guest is a run of."""
    workload, name = guest.spec.log.path.parts[-3:-1]
    return workload, name


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


@settings(max_examples=LIVES, deadline=None, suppress_health_check=list(HealthCheck))
@given(first=puts, then=st.lists(steps, min_size=10, max_size=40))
def test_whatever_happens_the_supervisor_keeps_its_promises(folders: Path, first: Put, then: list[Step]) -> None:
    folder = folders / str(sum(1 for _ in folders.iterdir()))

    async def scenario() -> None:
        play = Play(folder)
        for step in (first, *then):
            await play.play(step)
        await play.finish()

    run(scenario(), seconds=60)
