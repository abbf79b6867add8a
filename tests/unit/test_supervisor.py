"""The supervisor with an engine that does as a test says: which changes count, what runs again, and who is told."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.support.fake_engine import FakeEngine, FakeModules
from tests.support.operator_fakes import settle
from wherry_runner.backoff import BackOffSettings
from wherry_runner.container import ContainerLife, Surroundings
from wherry_runner.execution.engine import EngineLost, StartRefused
from wherry_runner.journal import Journals
from wherry_runner.modules.errors import InvalidReference, NeverPull, NotRunnable, PullError
from wherry_runner.protocol import (
    Container,
    EnvironmentVariable,
    GoneEvent,
    HeartbeatEvent,
    History,
    ImageModule,
    InlineModule,
    Owner,
    Phase,
    RefusalReason,
    RestartPolicy,
    RunnerInfo,
    Running,
    StatusEvent,
    SyncedEvent,
    Terminated,
    Volume,
    VolumeFile,
    VolumeMount,
    Waiting,
    WatchEvent,
    Workload,
    WorkloadPut,
    WorkloadStatus,
)
from wherry_runner.supervisor import Refused, Supervisor
from wherry_runner.volumes import Volumes
from wherry_runner.workload import Room

OWNER = Owner(kind="Pod", namespace="boats", name="hello", uid="u-1")
INFO = RunnerInfo(
    runner="one",
    node="n",
    instance="1",
    wherry_version="0.1.0",
    engines=("fake",),
    cpu_millicores=1000,
    memory_bytes=1 << 30,
    max_workloads=3,
)
AT_ONCE = BackOffSettings(initial=0.001, maximum=0.002, settle=0, error_shown=0)
"""Everything that waits goes on at once."""

STUCK = BackOffSettings(initial=10, maximum=300, settle=0, error_shown=0)
"""What waits waits for longer than the test lives."""

ID = "w1"
ALWAYS, ON_FAILURE, NEVER = RestartPolicy.ALWAYS, RestartPolicy.ON_FAILURE, RestartPolicy.NEVER


@dataclass
class Runner:
    """A runner's supervisor, and what it works with. Another one on the same folder is the next process."""

    folder: Path
    back_off: BackOffSettings = AT_ONCE
    engine: FakeEngine = field(default_factory=FakeEngine)
    modules: FakeModules = field(default_factory=FakeModules)
    max_workloads: int = 3
    supervisor: Supervisor = field(init=False)
    volumes: Volumes = field(init=False)

    def __post_init__(self) -> None:
        (self.folder / "memory").mkdir(parents=True, exist_ok=True)
        self.volumes = Volumes(self.folder / "volumes", self.folder / "memory")
        self.volumes.clear()
        room = Room(
            engine=self.engine,
            modules=self.modules,
            volumes=self.volumes,
            logs_directory=self.folder / "logs",
            back_off=self.back_off,
        )
        self.supervisor = Supervisor(
            room=room, journals=Journals(self.folder / "journal"), max_workloads=self.max_workloads
        )

    def put(self, *, id: str = ID, **kwargs: Any) -> WorkloadStatus:
        return self.supervisor.put(id, put(**kwargs))

    def delete(self, *, sequence: int = 100, epoch: int = 1, grace: float = 30, id: str = ID) -> WorkloadStatus | None:
        return self.supervisor.delete(id, epoch=epoch, sequence=sequence, grace_seconds=grace)

    async def when(self, holds: Callable[[WorkloadStatus], bool], id: str = ID) -> WorkloadStatus:
        """The status as soon as this holds of it."""
        async for batch in self.supervisor.watch(INFO):
            for event in batch:
                if isinstance(event, StatusEvent) and event.status.id == id and holds(event.status):
                    return event.status
        raise AssertionError("the watch ended")

    async def ended(self, id: str = ID) -> WorkloadStatus:
        return await self.when(lambda status: status.phase is Phase.ENDED, id)

    async def running(self, restarts: int = 0, id: str = ID) -> WorkloadStatus:
        def holds(status: WorkloadStatus) -> bool:
            return all(isinstance(c.state, Running) and c.restart_count == restarts for c in status.containers)

        return await self.when(holds, id)

    async def waiting(self, reason: str, id: str = ID) -> WorkloadStatus:
        def holds(status: WorkloadStatus) -> bool:
            state = status.containers[0].state
            return isinstance(state, Waiting) and state.reason == reason

        return await self.when(holds, id)

    async def die(self) -> None:
        """The process ends; its guests die with it, and nobody journals their ends."""
        await self.supervisor.close()


def container(name: str = "main", **kwargs: Any) -> Container:
    env = tuple(EnvironmentVariable(name=k, value=SecretStr(v)) for k, v in kwargs.pop("env", {}).items())
    return Container(
        name=name, module=kwargs.pop("module", ImageModule(reference="r.example/hello:v1")), env=env, **kwargs
    )


def put(
    *,
    epoch: int = 1,
    sequence: int = 1,
    template: str = "t1",
    content: str = "c1",
    policy: RestartPolicy = ALWAYS,
    containers: tuple[Container, ...] = (),
    volumes: tuple[Volume, ...] = (),
    history: tuple[History, ...] = (),
    grace: int = 30,
) -> WorkloadPut:
    return WorkloadPut(
        epoch=epoch,
        sequence=sequence,
        template_hash=template,
        content_revision=content,
        workload=Workload(
            owner=OWNER,
            containers=containers or (container(),),
            volumes=volumes,
            restart_policy=policy,
            termination_grace_period_seconds=grace,
        ),
        history=history,
    )


def files(**contents: str) -> Volume:
    return Volume(
        name="v",
        files=tuple(VolumeFile(path=path, data=base64.b64encode(text.encode())) for path, text in contents.items()),
    )


def run(scenario: Awaitable[None]) -> None:
    """Play a scenario; what it waits for in vain fails it soon."""

    async def bounded() -> None:
        async with asyncio.timeout(10):
            await scenario

    asyncio.run(bounded())


async def holds(condition: Callable[[], bool]) -> None:
    """Wait, a step of the event loop after the other: what is waited for is over soon."""
    while not condition():
        await asyncio.sleep(0)


def refusal(call: Callable[[], object]) -> RefusalReason:
    with pytest.raises(Refused) as caught:
        call()
    return caught.value.refusal.reason


def code(status: WorkloadStatus) -> int:
    state = status.containers[0].state
    assert isinstance(state, Terminated), state
    return state.exit_code


# --- order ------------------------------------------------------------------------------------------------------------


def test_an_older_epoch_and_an_older_sequence_are_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(epoch=5, sequence=7)
        with pytest.raises(Refused) as caught:
            runner.put(epoch=4, sequence=99, template="t2")
        assert (caught.value.refusal.reason, caught.value.refusal.epoch) == (RefusalReason.STALE_EPOCH, 5)
        assert refusal(lambda: runner.delete(epoch=4, sequence=99)) is RefusalReason.STALE_EPOCH
        assert refusal(lambda: runner.put(epoch=5, sequence=6, template="t2")) is RefusalReason.STALE_SEQUENCE
        assert refusal(lambda: runner.delete(epoch=5, sequence=6)) is RefusalReason.STALE_SEQUENCE
        status = runner.put(epoch=6, sequence=1)  # a new leader counts anew
        assert (status.epoch, status.sequence, status.template_hash) == (6, 1, "t1")
        await runner.die()

    run(scenario())


def test_an_epoch_that_any_request_told_of_counts_for_every_workload_and_the_next_process(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        assert runner.delete(epoch=9, id="unknown") is None
        assert refusal(lambda: runner.put(epoch=8)) is RefusalReason.STALE_EPOCH
        assert refusal(lambda: Runner(tmp_path).put(epoch=8)) is RefusalReason.STALE_EPOCH

    run(scenario())


@pytest.mark.parametrize("sequence", [1, 2])
def test_the_same_put_again_changes_nothing(tmp_path: Path, sequence: int) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put()
        before = await runner.running()
        after = runner.put(sequence=sequence)
        assert after == before.model_copy(update={"sequence": sequence})
        await settle()
        assert len(runner.engine.guests) == 1
        await runner.die()

    run(scenario())


def test_the_order_of_what_was_accepted_outlives_the_process_also_that_of_a_delete(tmp_path: Path) -> None:
    async def scenario() -> None:
        first = Runner(tmp_path)
        first.put(sequence=5)
        await first.running()
        assert first.delete(sequence=8, grace=3600) is not None
        await first.die()
        second = Runner(tmp_path)
        assert refusal(lambda: second.put(sequence=7)) is RefusalReason.STALE_SEQUENCE
        second.put(sequence=9)
        await second.die()

    run(scenario())


# --- changes ----------------------------------------------------------------------------------------------------------


def test_another_template_ends_the_containers_and_begins_them_with_the_next_restart_count(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(grace=0)
        await runner.running()
        runner.put(sequence=2, template="t2", grace=0, containers=(container(args=("new",)),))
        status = await runner.running(restarts=1)
        old, new = runner.engine.guests
        assert old.killed
        assert new.spec.argv == ("hello", "new")
        found = status.containers[0]
        assert found.container_id == new.spec.guest_id
        assert found.last_terminated is not None
        assert (found.last_terminated.container_id, found.last_terminated.exit_code) == (old.spec.guest_id, 137)
        await runner.die()

    run(scenario())


@pytest.mark.parametrize("policy", list(RestartPolicy))
def test_another_template_restarts_what_runs_whatever_the_policy_and_nothing_that_has_ended(
    tmp_path: Path, policy: RestartPolicy
) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(policy=policy, grace=0, containers=(container("a"), container("b")))
        await runner.running()
        if policy is not ALWAYS:
            runner.engine.guests[0].exit(0)
            await runner.when(lambda status: isinstance(status.containers[0].state, Terminated))
        runner.put(sequence=2, template="t2", policy=policy, grace=0, containers=(container("a"), container("b")))
        status = await runner.when(
            lambda status: isinstance(status.containers[1].state, Running) and status.containers[1].restart_count == 1
        )
        expected = (1, 1) if policy is ALWAYS else (0, 1)
        assert tuple(item.restart_count for item in status.containers) == expected
        await runner.die()

    run(scenario())


def test_of_several_templates_that_come_while_the_old_one_ends_only_the_newest_runs_and_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(grace=3600)
        await runner.running()
        for sequence in (2, 3, 4):
            runner.put(
                sequence=sequence, template=f"t{sequence}", grace=3600, containers=(container(args=(str(sequence),)),)
            )
            await settle()
        runner.engine.guests[0].exit(0)
        await runner.running(restarts=1)
        await settle()
        assert [guest.spec.argv for guest in runner.engine.guests] == [("hello",), ("hello", "4")]
        await runner.die()

    run(scenario())


def test_a_delete_while_a_template_is_replaced_need_not_wait_for_the_old_ones_grace_period(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(grace=3600)
        await runner.running()
        runner.put(sequence=2, template="t2", grace=3600)
        await settle()
        runner.delete(sequence=3, grace=0)
        assert code(await runner.ended()) == 137
        assert len(runner.engine.guests) == 1

    run(scenario())


def test_another_content_swaps_the_files_without_a_restart_and_reaches_the_next_run(tmp_path: Path) -> None:
    def content(value: str) -> dict[str, Any]:
        spec = container(env={"COLOUR": value}, args=(value,), mounts=(VolumeMount(volume="v", mount_path="/etc/v"),))
        return {"content": value, "containers": (spec,), "volumes": (files(colour=value),)}

    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(**content("red"))
        await runner.running()
        (guest,) = runner.engine.guests
        assert guest.env == {"COLOUR": "red"}
        (mount,) = guest.spec.preopens
        assert (mount.guest_path, mount.writable) == ("/etc/v", False)
        assert (mount.host_path / "colour").read_text() == "red"

        status = runner.put(sequence=2, **content("blue"))
        assert status.content_revision == "blue"
        assert (mount.host_path / "colour").read_text() == "blue"
        await settle()
        assert len(runner.engine.guests) == 1

        guest.exit(1)
        await runner.running(restarts=1)
        after = runner.engine.guests[1]
        assert (after.env, after.spec.argv) == ({"COLOUR": "blue"}, ("hello", "blue"))
        await runner.die()

    run(scenario())


def test_a_content_that_can_not_be_written_is_refused_and_the_old_one_stays(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(volumes=(files(a="old"),))
        bad = Volume(name="v", files=(VolumeFile(path="../x", data=b"eA=="),))
        assert refusal(lambda: runner.put(sequence=2, content="c2", volumes=(bad,))) is RefusalReason.INVALID
        status = runner.supervisor.status(ID)
        assert (status.sequence, status.content_revision) == (1, "c1")
        assert (runner.volumes.path(ID, bad) / "a").read_text() == "old"
        assert refusal(lambda: runner.put(id="w2", volumes=(files(a="x"), bad.model_copy(update={"name": "u"})))) is (
            RefusalReason.INVALID
        )
        assert refusal(lambda: runner.supervisor.status("w2")) is RefusalReason.NOT_FOUND
        assert not (tmp_path / "volumes" / "w2").exists()
        await runner.die()

    run(scenario())


MOUNT = VolumeMount(volume="v", mount_path="/v")


@pytest.mark.parametrize(
    ("containers", "volumes", "says"),
    [
        ((container("a"), container("a")), (), "same name"),
        ((container(),), (files(), files()), "two volumes"),
        ((container(mounts=(MOUNT,)),), (), '"v", which is no volume'),
        ((container(mounts=(MOUNT, VolumeMount(volume="v", mount_path="/v/"))),), (files(),), "same path"),
        ((container(mounts=(VolumeMount(volume="v", mount_path="/v", sub_path="a"),)),), (files(),), "subPath"),
        ((container(mounts=(VolumeMount(volume="v", mount_path="v"),)),), (files(),), "absolute"),
        ((container(args=("a\0b",)),), (), "NUL"),
        ((container(env={"A": "a\0b"}),), (), "NUL"),
        ((container(env={"A=B": "a"}),), (), "no variable name"),
    ],
)
@pytest.mark.parametrize("known", [False, True], ids=["new", "changed"])
def test_what_makes_no_sense_is_refused_and_harms_nothing_that_runs(
    tmp_path: Path, containers: tuple[Container, ...], volumes: tuple[Volume, ...], says: str, known: bool
) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        if known:
            runner.put()
            await runner.running()
        with pytest.raises(Refused, match=says) as caught:
            runner.put(sequence=2, template="t2", containers=containers, volumes=volumes)
        assert caught.value.refusal.reason is RefusalReason.INVALID
        await settle()
        if known:
            assert isinstance(runner.supervisor.status(ID).containers[0].state, Running)
        await runner.die()

    run(scenario())


def test_a_runner_takes_no_more_than_its_maximum_and_room_comes_with_a_delete(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path, max_workloads=2)
        for name in ("a", "b"):
            runner.put(id=name)
            await runner.running(id=name)
        assert refusal(lambda: runner.put(id="c")) is RefusalReason.TOO_LARGE
        runner.put(id="b", sequence=2)  # what is there may change
        runner.delete(id="a", grace=0)
        await runner.ended("a")
        runner.delete(id="a", sequence=101, grace=0)
        runner.put(id="c")
        await runner.die()

    run(scenario())


def test_a_runner_that_stops_takes_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        await runner.die()
        assert refusal(runner.put) is RefusalReason.STOPPING

    run(scenario())


# --- restart policies -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "exit_code", "runs_again"),
    [
        (ALWAYS, 0, True),
        (ALWAYS, 1, True),
        (ALWAYS, 137, True),
        (ON_FAILURE, 0, False),
        (ON_FAILURE, 1, True),
        (ON_FAILURE, 134, True),
        (NEVER, 0, False),
        (NEVER, 1, False),
        (NEVER, 137, False),
    ],
)
def test_what_runs_again_after_its_end(tmp_path: Path, policy: RestartPolicy, exit_code: int, runs_again: bool) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(policy=policy)
        (await runner.engine.guest(0)).exit(exit_code)
        if runs_again:
            status = await runner.running(restarts=1)
            last = status.containers[0].last_terminated
            assert last is not None
            assert last.exit_code == exit_code
            await runner.die()
        else:
            status = await runner.ended()
            assert code(status) == exit_code
            assert status.containers[0].restart_count == 0
            assert len(runner.engine.guests) == 1

    run(scenario())


def test_a_workload_has_ended_when_its_last_container_has(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(policy=NEVER, containers=(container("a"), container("b")))
        a, b = await runner.engine.guest(0), await runner.engine.guest(1)
        a.exit(0)
        status = await runner.when(lambda status: isinstance(status.containers[0].state, Terminated))
        assert (status.phase, status.containers[1].ready) == (Phase.ACTIVE, True)
        b.exit(2)
        status = await runner.ended()
        assert [item.state.exit_code for item in status.containers if isinstance(item.state, Terminated)] == [0, 2]

    run(scenario())


class Lone:
    """One container, and every state that it was told to be in."""

    def __init__(self, folder: Path, back_off: BackOffSettings = AT_ONCE, policy: RestartPolicy = ALWAYS) -> None:
        self.engine, self.modules = FakeEngine(), FakeModules()
        self.told: list[str] = []
        self.life = ContainerLife(
            container(),
            Surroundings(
                engine=self.engine,
                modules=self.modules,
                journal=Journals(folder / "journal").open(ID),
                back_off=back_off,
                owner=OWNER,
                restart_policy=policy,
                log_folder=folder / "logs",
                mounts=(),
                on_change=self._note,
            ),
        )

    def _note(self) -> None:
        state = self.life.status.state
        match state:
            case Waiting():
                text = state.reason
            case Running():
                text = f"Running {self.life.status.restart_count}"
            case Terminated():
                text = f"{state.reason} {state.exit_code}"
        if self.told[-1:] != [text]:
            self.told.append(text)


def test_the_states_of_a_crash_loop_are_told_in_the_kubelets_order(tmp_path: Path) -> None:
    async def scenario() -> None:
        # Long enough that no scheduling hides a wait.
        lone = Lone(tmp_path, BackOffSettings(initial=0.2, maximum=0.2, settle=0))
        task = asyncio.create_task(lone.life.run())
        for number in range(3):
            (await lone.engine.guest(number)).exit(1)
        await lone.engine.guest(3)
        await settle()
        assert lone.told == [
            *("Running 0", "Error 1"),
            *("Running 1", "Error 1", "CrashLoopBackOff"),  # the first restart is immediate
            *("Running 2", "Error 1", "CrashLoopBackOff"),
            "Running 3",
        ]
        lone.life.stop()
        lone.life.kill()
        await task

    run(scenario())


def test_a_crash_loop_says_how_long_it_waits_as_a_kubelet_says_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path, back_off=STUCK)
        runner.put()
        for number in (0, 1):
            (await runner.engine.guest(number)).exit(1)
        status = await runner.waiting("CrashLoopBackOff")
        (found,) = status.containers
        assert isinstance(found.state, Waiting)
        assert found.state.message == "back-off 10s restarting failed container=main pod=hello_boats(u-1)"
        second = runner.engine.guests[1].spec.guest_id
        assert (found.container_id, found.restart_count, found.ready) == (second, 1, False)
        assert found.last_terminated is not None
        assert found.last_terminated.container_id == second
        runner.delete(grace=3600)
        assert (await runner.ended()).containers[0].restart_count == 1
        assert len(runner.engine.guests) == 2

    run(scenario())


def test_a_state_never_names_one_run_as_both_the_newest_and_the_last(tmp_path: Path) -> None:
    async def scenario() -> None:
        lone = Lone(tmp_path, BackOffSettings(initial=0.001, maximum=0.001, settle=3600))
        task = asyncio.create_task(lone.life.run())
        (await lone.engine.guest(0)).exit(1)
        await settle()
        status = lone.life.status
        assert isinstance(status.state, Terminated)
        assert status.last_terminated is None
        lone.life.stop()
        await task
        assert lone.life.status.last_terminated is None

    run(scenario())


# --- modules ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PullError("refused"), ["ErrImagePull", "ImagePullBackOff"]),
        (InvalidReference("no"), ["InvalidImageName"]),
        (NeverPull("no"), ["ErrImageNeverPull"]),
        (NotRunnable("no", inline=True), ["CreateContainerConfigError"]),
    ],
    ids=lambda value: getattr(value, "reason", ""),
)
def test_a_module_that_can_not_be_had_is_tried_again_and_says_why(
    tmp_path: Path, error: Exception, expected: list[str]
) -> None:
    async def scenario() -> None:
        lone = Lone(tmp_path)
        lone.modules.errors = [error, error]
        task = asyncio.create_task(lone.life.run())
        await lone.engine.guest(0)
        await settle()
        states = [state for index, state in enumerate(expected * 2) if index == 0 or (expected * 2)[index - 1] != state]
        assert lone.told == [*states, "Running 0"]
        assert lone.life.status.restart_count == 0
        lone.life.stop()
        lone.life.kill()
        await task

    run(scenario())


def test_the_words_of_a_failing_pull_are_the_kubelets(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path, back_off=STUCK)
        runner.modules.errors = [PullError("dial tcp: connection refused")]
        runner.put()
        status = await runner.waiting("ImagePullBackOff")
        state = status.containers[0].state
        assert isinstance(state, Waiting)
        assert (
            state.message == 'Back-off pulling image "r.example/hello:v1": ErrImagePull: dial tcp: connection refused'
        )
        assert (status.phase, status.containers[0].container_id) == (Phase.ACTIVE, "")
        await runner.die()

    run(scenario())


def test_a_message_is_cut_so_that_a_status_fits_its_object(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path, back_off=STUCK)
        runner.modules.errors = [PullError("x" * 5000)]
        runner.put()
        state = (await runner.waiting("ImagePullBackOff")).containers[0].state
        assert isinstance(state, Waiting)
        assert len(state.message) == 1024
        assert state.message.endswith("…")
        await runner.die()

    run(scenario())


def test_what_is_known_of_a_module_is_told_once_it_is_there(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.modules.free.clear()
        waiting = runner.put().containers[0]
        assert waiting.state == Waiting(reason="ContainerCreating")
        assert (waiting.image, waiting.module_digest, waiting.image_digest) == ("r.example/hello:v1", "", "")
        runner.modules.free.set()
        found = (await runner.running()).containers[0]
        assert (found.module_digest[:8], found.image_digest[:8]) == ("sha256:1", "sha256:2")
        inline = InlineModule(data=base64.b64encode(b"(module)"), source='ConfigMap "m", key "k"')
        status = runner.put(id="w2", containers=(container(module=inline),))
        assert status.containers[0].image == 'ConfigMap "m", key "k"'
        await runner.die()

    run(scenario())


@pytest.mark.parametrize("held", [True, False], ids=["while it is pulled", "in the back-off"])
def test_a_delete_waits_for_no_module(tmp_path: Path, held: bool) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path, back_off=STUCK)
        if held:
            runner.modules.free.clear()
        else:
            runner.modules.errors = [PullError("no")]
        runner.put()
        await settle()
        runner.delete(grace=3600)
        await runner.ended()
        assert runner.engine.guests == []

    run(scenario())


# --- the engine -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [StartRefused("it imports wasi:nn"), EngineLost("the executor died"), OSError("disk full")]
)
def test_a_start_that_did_not_happen_is_tried_again_and_counts_as_none(tmp_path: Path, error: Exception) -> None:
    async def scenario() -> None:
        lone = Lone(tmp_path, policy=NEVER)
        lone.engine.refusals = [error]
        task = asyncio.create_task(lone.life.run())
        guest = await lone.engine.guest(0)
        await settle()
        assert lone.told == ["CreateContainerError", "Running 0"]
        guest.exit(0)
        await task
        assert lone.life.status.restart_count == 0

    run(scenario())


def test_a_refused_start_says_why(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path, back_off=STUCK)
        runner.engine.refusals = [StartRefused("it imports wasi:nn")]
        runner.put()
        status = await runner.waiting("CreateContainerError")
        assert status.containers[0].state == Waiting(reason="CreateContainerError", message="it imports wasi:nn")
        await runner.die()

    run(scenario())


@pytest.mark.parametrize(("policy", "again"), [(ALWAYS, True), (ON_FAILURE, True), (NEVER, False)])
def test_the_executors_death_ends_its_guests_with_137_and_the_policy_decides(
    tmp_path: Path, policy: RestartPolicy, again: bool
) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(policy=policy)
        (await runner.engine.guest(0)).lose()
        if again:
            status = await runner.running(restarts=1)
            end = status.containers[0].last_terminated
        else:
            state = (await runner.ended()).containers[0].state
            assert isinstance(state, Terminated)
            end = state
        assert end is not None
        assert (end.exit_code, end.reason) == (137, "RunnerLost")
        await runner.die()

    run(scenario())


def test_an_end_that_the_disk_does_not_take_is_told_nevertheless(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(policy=NEVER)
        guest = await runner.engine.guest(0)
        await runner.running()
        journal = tmp_path / "journal" / f"w-{ID}" / "journal"
        journal.unlink()
        journal.mkdir()  # whoever writes to it gets an OSError
        guest.exit(3)
        assert code(await runner.ended()) == 3

    run(scenario())


def test_a_start_that_can_not_be_journaled_waits_for_better_times(tmp_path: Path) -> None:
    async def scenario() -> None:
        lone = Lone(tmp_path)
        journal = tmp_path / "journal" / f"w-{ID}" / "journal"
        journal.mkdir(parents=True)
        task = asyncio.create_task(lone.life.run())
        await holds(lambda: lone.told == ["CreateContainerError"])
        assert lone.engine.guests == []
        journal.rmdir()
        await lone.engine.guest(0)
        lone.life.stop()
        lone.life.kill()
        await task

    run(scenario())


@pytest.mark.parametrize(
    ("command", "args", "argv0", "expected"),
    [
        ((), (), None, ("hello",)),
        ((), ("a",), None, ("hello", "a")),
        (("cmd", "x"), ("a",), None, ("cmd", "x", "a")),
        ((), ("a",), "none", ("a",)),
        ((), ("a",), "auto", ("hello", "a")),
        (("cmd",), ("a",), "none", ("cmd", "a")),
    ],
)
def test_what_a_guest_gets_as_argv(
    tmp_path: Path, command: tuple[str, ...], args: tuple[str, ...], argv0: Any, expected: tuple[str, ...]
) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(containers=(container(command=command, args=args, argv0=argv0),))
        assert (await runner.engine.guest(0)).spec.argv == expected
        await runner.die()

    run(scenario())


def test_the_logs_of_the_newest_run_and_of_the_one_before_are_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put()
        main = runner.supervisor.container(ID, "main")
        assert (main.log_path, main.previous_log_path) == (None, None)
        for number in range(4):
            guest = await runner.engine.guest(number)
            await runner.running(restarts=number)
            assert main.log_path == guest.spec.log_path
            assert main.previous_log_path == (runner.engine.guests[number - 1].spec.log_path if number else None)
            if number < 3:
                guest.exit(0)
        assert sorted(path.name for path in (tmp_path / "logs" / ID / "main").iterdir()) == ["2.log", "3.log"]
        await runner.die()

    run(scenario())


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_a_guest_that_ends_within_the_grace_period_is_not_killed(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put()
        guest = await runner.engine.guest(0)
        status = runner.delete(grace=3600)
        assert status is not None
        assert status.phase is Phase.STOPPING
        await settle()
        assert not guest.killed
        guest.exit(0)
        assert code(await runner.ended()) == 0
        assert len(runner.engine.guests) == 1, "nothing runs again, though the policy is Always"

    run(scenario())


def test_after_the_grace_period_it_is_killed(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(containers=(container("a"), container("b")))
        await runner.running()
        runner.delete(grace=0.01)
        status = await runner.ended()
        assert all(guest.killed for guest in runner.engine.guests)
        assert code(status) == 137

    run(scenario())


@pytest.mark.parametrize(("first", "second", "killed"), [(3600, 0, True), (3600, 3600, False), (1800, 3600, False)])
def test_of_two_grace_periods_the_shorter_counts(tmp_path: Path, first: float, second: float, killed: bool) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put()
        guest = await runner.engine.guest(0)
        runner.delete(grace=first)
        await settle()
        runner.delete(grace=second, sequence=101)
        await settle()
        assert guest.killed is killed
        guest.exit(0)
        await runner.ended()

    run(scenario())


def test_asking_again_does_not_prolong_the_grace_period(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put()
        guest = await runner.engine.guest(0)
        sequence = 100
        runner.delete(grace=0.2)
        while not guest.killed:  # a reconcile that comes over and over
            sequence += 1
            runner.delete(grace=0.2, sequence=sequence)
            await asyncio.sleep(0.01)
        await runner.ended()

    run(scenario())


def test_a_guest_that_is_just_being_started_when_the_delete_comes_does_not_outlive_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put()
        await holds((tmp_path / "logs" / ID / "main").is_dir)
        assert runner.engine.guests == []
        runner.delete(grace=0)
        await runner.ended()
        assert [guest.killed for guest in runner.engine.guests] == [True]

    run(scenario())


def test_a_second_delete_forgets_what_has_ended_and_a_third_finds_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(volumes=(files(a="1"),))
        await runner.running()
        runner.delete(grace=0)
        await runner.ended()
        assert runner.supervisor.status(ID).phase is Phase.ENDED, "until the operator has seen its end"
        assert runner.delete(sequence=101) is None
        assert refusal(lambda: runner.supervisor.status(ID)) is RefusalReason.NOT_FOUND
        assert refusal(lambda: runner.supervisor.container(ID, "main")) is RefusalReason.NOT_FOUND
        assert runner.delete(sequence=101) is None, "a repeated request"
        assert runner.delete(sequence=102) is None
        for folder in ("volumes", "logs", "journal"):
            assert not list((tmp_path / folder).glob(f"*{ID}*"))

    run(scenario())


@pytest.mark.parametrize("sequence", [1, 50, 100])
def test_a_delayed_put_brings_nothing_back(tmp_path: Path, sequence: int) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put()
        runner.delete(sequence=99, grace=0)
        await runner.ended()
        runner.delete(sequence=100)
        assert refusal(lambda: runner.put(sequence=sequence)) is RefusalReason.STALE_SEQUENCE
        assert runner.delete(id="never-seen", sequence=100) is None
        assert refusal(lambda: runner.put(id="never-seen", sequence=sequence)) is RefusalReason.STALE_SEQUENCE
        runner.put(sequence=101)
        await runner.die()

    run(scenario())


def test_a_put_while_it_stops_does_not_start_it_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put()
        guest = await runner.engine.guest(0)
        runner.delete(grace=3600)
        runner.put(sequence=101, template="t2")
        await settle()
        guest.exit(0)
        await runner.ended()
        assert len(runner.engine.guests) == 1

    run(scenario())


# --- the next process -------------------------------------------------------------------------------------------------


def shown(status: WorkloadStatus) -> tuple[History, ...]:
    """What an operator that saw this status tells a runner that lost its journal."""
    return tuple(
        History(
            container=item.name,
            container_id=item.container_id,
            restart_count=item.restart_count,
            started_at=item.state.started_at if isinstance(item.state, Running) else None,
            terminated=item.state if isinstance(item.state, Terminated) else item.last_terminated,
        )
        for item in status.containers
    )


@pytest.mark.parametrize("lost", [False, True], ids=["journal", "status alone"])
@pytest.mark.parametrize(
    ("policy", "exit_code", "again"),
    [
        pytest.param(NEVER, 0, False, id="Never, ended"),
        pytest.param(NEVER, 3, False, id="Never, failed"),
        pytest.param(NEVER, None, False, id="Never, lost"),
        pytest.param(ON_FAILURE, 0, False, id="OnFailure, ended"),
        pytest.param(ON_FAILURE, None, True, id="OnFailure, lost"),
        pytest.param(ALWAYS, None, True, id="Always, lost"),
    ],
)
def test_what_the_next_process_runs_again(
    tmp_path: Path, policy: RestartPolicy, exit_code: int | None, again: bool, lost: bool
) -> None:
    async def scenario() -> None:
        first = Runner(tmp_path / "1")
        first.put(policy=policy)
        guest = await first.engine.guest(0)
        if exit_code is None:
            status = await first.running()
        else:
            guest.exit(exit_code)
            status = await first.ended()
        await first.die()

        second = Runner(tmp_path / ("2" if lost else "1"))
        second.put(epoch=2, policy=policy, history=shown(status))
        if again:
            found = (await second.running(restarts=1)).containers[0]
            assert found.container_id != guest.spec.guest_id
            end = found.last_terminated
        else:
            ended = await second.ended()
            found = ended.containers[0]
            assert isinstance(found.state, Terminated)
            assert (found.container_id, found.restart_count) == (guest.spec.guest_id, 0)
            end = found.state
            await settle()
            assert second.engine.guests == []
        assert end is not None
        assert end.container_id == guest.spec.guest_id
        assert (end.exit_code, end.reason == "RunnerLost") == (
            (exit_code, False) if exit_code is not None else (137, True)
        )
        await second.die()

    run(scenario())


def test_a_lost_run_under_never_says_that_it_is_not_run_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        first = Runner(tmp_path)
        first.put(policy=NEVER)
        await first.running()
        await first.die()
        second = Runner(tmp_path)
        second.put(policy=NEVER)
        state = (await second.ended()).containers[0].state
        assert isinstance(state, Terminated)
        assert "not run again" in state.message
        third = Runner(tmp_path)
        third.put(policy=NEVER)
        assert (await third.ended()).containers[0].state == state, "it is journaled as lost, once"

    run(scenario())


def test_a_start_that_broke_off_with_the_process_counts_as_a_run(tmp_path: Path) -> None:
    async def scenario() -> None:
        first = Runner(tmp_path)
        first.put(policy=NEVER)
        journal = tmp_path / "journal" / f"w-{ID}" / "journal"
        await holds(lambda: b'"started"' in journal.read_bytes())
        assert first.engine.guests == []
        await first.die()
        second = Runner(tmp_path)
        second.put(policy=NEVER)
        assert code(await second.ended()) == 137
        assert second.engine.guests == []

    run(scenario())


def test_of_two_containers_only_the_lost_one_runs_again(tmp_path: Path) -> None:
    both = (container("a"), container("b"))

    async def scenario() -> None:
        first = Runner(tmp_path)
        first.put(policy=ON_FAILURE, containers=both)
        await first.running()
        first.engine.guests[0].exit(0)
        await first.when(lambda status: isinstance(status.containers[0].state, Terminated))
        await first.die()
        second = Runner(tmp_path)
        second.put(policy=ON_FAILURE, containers=both)
        await second.when(lambda status: isinstance(status.containers[1].state, Running))
        await settle()
        assert [guest.spec.log_path.parent.name for guest in second.engine.guests] == ["b"]
        await second.die()

    run(scenario())


def test_a_delete_of_what_only_the_journal_knows_forgets_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        first = Runner(tmp_path)
        first.put()
        await first.running()
        await first.die()
        second = Runner(tmp_path)
        assert second.delete() is None
        assert not Journals(tmp_path / "journal").known(ID)

    run(scenario())


# --- the watch --------------------------------------------------------------------------------------------------------


def test_the_watch_begins_with_a_snapshot_and_says_when_it_is_complete(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        for name in ("a", "b"):
            runner.put(id=name)
            await runner.running(id=name)
        events: list[WatchEvent] = []
        async for batch in runner.supervisor.watch(INFO):
            events += batch
            if isinstance(events[-1], SyncedEvent):
                break
        assert [event.status.id if isinstance(event, StatusEvent) else event for event in events] == [
            "a",
            "b",
            SyncedEvent(info=INFO),
        ]
        await runner.die()

    run(scenario())


def test_a_slow_reader_gets_the_newest_state_only(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        watch = runner.supervisor.watch(INFO)
        assert await anext(watch) == [SyncedEvent(info=INFO)]
        runner.put()
        for number in range(5):
            (await runner.engine.guest(number)).exit(1)
        await runner.engine.guest(5)
        await settle()
        (event,) = await anext(watch)
        assert isinstance(event, StatusEvent)
        assert event.status == runner.supervisor.status(ID)
        assert event.status.containers[0].restart_count == 5
        runner.delete(grace=0)
        await settle()
        runner.delete(sequence=101)
        assert await anext(watch) == [GoneEvent(id=ID)], "what came between is skipped"
        await runner.die()

    run(scenario())


def test_readers_do_not_wait_for_each_other(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        slow, fast = runner.supervisor.watch(INFO), runner.supervisor.watch(INFO)
        await anext(slow)
        await anext(fast)
        for number in range(3):
            runner.put(sequence=number + 1, content=f"c{number}")
            (event,) = await anext(fast)
            assert isinstance(event, StatusEvent)
            assert event.status.content_revision == f"c{number}"
        await runner.die()

    run(scenario())


def test_silence_is_filled_with_heartbeats_and_the_watch_ends_with_the_runner(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        watch = runner.supervisor.watch(INFO, heartbeat=0.001)
        await anext(watch)
        assert await anext(watch) == [HeartbeatEvent()]
        assert await anext(watch) == [HeartbeatEvent()]
        quiet = runner.supervisor.watch(INFO, heartbeat=3600)
        await anext(quiet)
        reading = asyncio.ensure_future(anext(quiet, None))
        await settle()
        await runner.die()
        assert await reading is None

    run(scenario())


def test_a_failed_life_takes_no_other_one_along(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A bug of ours: here, an engine that raises what it must not."""

    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(id="good")
        await runner.running(id="good")
        runner.engine.refusals = [RuntimeError("a bug")]
        runner.put(id="bad", containers=(container("a"), container("b")))
        await runner.ended("bad")
        assert all(guest.killed for guest in runner.engine.guests[1:])
        assert isinstance(runner.supervisor.status("good").containers[0].state, Running)
        assert "ended by an error of ours" in caplog.text
        await runner.die()

    run(scenario())


def test_nothing_of_a_secret_reaches_a_representation() -> None:
    assert "hunter2" not in repr(put(containers=(container(env={"PASSWORD": "hunter2"}),)))
