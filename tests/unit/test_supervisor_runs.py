"""What runs, what runs again, and what is said of it meanwhile."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from tests.support.operator_fakes import settle
from tests.support.runner_scene import (
    ALWAYS,
    AT_ONCE,
    ID,
    NEVER,
    ON_FAILURE,
    OWNER,
    STUCK,
    TOLD,
    Runner,
    code,
    container,
    holds,
    largest_file,
    run,
    state,
)
from wherry_runner.execution.engine import EngineLost, StartRefused
from wherry_runner.lives.backoff import BackOffSettings
from wherry_runner.lives.container import ContainerLife
from wherry_runner.modules.errors import InvalidReference, NeverPull, NotRunnable, PullError
from wherry_runner.protocol import (
    InlineModule,
    Phase,
    RegistryCredential,
    RestartPolicy,
    Terminated,
    Volume,
    Waiting,
)

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
        self._runner = Runner(folder, back_off=back_off)
        self.engine, self.modules = self._runner.engine, self._runner.modules
        self.id, self.owner, self.room = ID, OWNER, self._runner.room
        self.journal = self._runner.journals.open(ID)
        self.grace_seconds = 30.0
        self.volumes: tuple[Volume, ...] = ()
        self.credentials: tuple[RegistryCredential, ...] = ()
        self.told: list[str] = []
        self.life = ContainerLife(container(), self, restart_policy=policy)

    def on_change(self) -> None:
        told = state(self.life.status)
        if self.told[-1:] != [told]:
            self.told.append(told)

    def on_error(self) -> None:
        raise AssertionError("an error of ours")

    async def end(self) -> None:
        self.life.stop()
        self.life.kill()
        await self.life.ended()


def test_the_states_of_a_crash_loop_are_told_in_the_kubelets_order(tmp_path: Path) -> None:
    async def scenario() -> None:
        lone = Lone(tmp_path, TOLD)
        lone.life.start()
        for number in range(3):
            (await lone.engine.guest(number)).exit(1)
        await lone.engine.guest(3)
        await settle()
        assert lone.told == [
            *("Running", "Error:1"),
            *("Running|1", "Error:1|1", "CrashLoopBackOff|1"),  # the first restart is immediate
            *("Running|2", "Error:1|2", "CrashLoopBackOff|2"),
            "Running|3",
        ]
        await lone.end()

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
        lone.life.start()
        (await lone.engine.guest(0)).exit(1)
        await holds(lambda: isinstance(lone.life.status.state, Terminated))
        assert lone.life.status.last_terminated is None
        await lone.end()
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
        lone = Lone(tmp_path, TOLD)
        lone.modules.errors = [error, error]
        lone.life.start()
        await lone.engine.guest(0)
        await settle()
        states = [state for index, state in enumerate(expected * 2) if index == 0 or (expected * 2)[index - 1] != state]
        assert lone.told == [*states, "Running"]
        assert lone.life.status.restart_count == 0
        await lone.end()

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
        lone.life.start()
        guest = await lone.engine.guest(0)
        await settle()
        assert lone.told == ["CreateContainerError", "Running"]
        guest.exit(0)
        await lone.life.ended()
        assert lone.life.status.restart_count == 0

    run(scenario())


def test_a_start_that_may_have_happened_counts_as_a_run_and_under_never_as_the_last(tmp_path: Path) -> None:
    async def scenario() -> None:
        lone = Lone(tmp_path, policy=NEVER)
        lone.engine.refusals = [EngineLost("killed in the middle", may_have_begun=True)]
        lone.life.start()
        await lone.life.ended()
        assert state(lone.life.status) == "RunnerLost:137"
        assert lone.life.status.container_id

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
        with largest_file(0):  # as on a full disk
            guest.exit(3)
            assert code(await runner.ended()) == 3

    run(scenario())


def test_a_start_that_can_not_be_journaled_waits_for_better_times(tmp_path: Path) -> None:
    async def scenario() -> None:
        lone = Lone(tmp_path)
        with largest_file(0):
            lone.life.start()
            await holds(lambda: lone.told == ["CreateContainerError"])
            assert lone.engine.guests == []
        await lone.engine.guest(0)
        await lone.end()

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
            assert main.log_path == guest.spec.log.path
            assert main.previous_log_path == (runner.engine.guests[number - 1].spec.log.path if number else None)
            if number < 3:
                guest.exit(0)
        assert sorted(path.name for path in (tmp_path / "logs" / ID / "main").iterdir()) == ["2.log", "3.log"]
        await runner.die()

    run(scenario())
