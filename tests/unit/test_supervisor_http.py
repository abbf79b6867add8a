"""The ports of containers that serve: when they are open, who gets them, and what is said of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.fake_engine import FakeArmed
from tests.support.ports import free_port
from tests.support.runner_scene import (
    ALWAYS,
    AT_ONCE,
    ID,
    INFO,
    STUCK,
    TOLD,
    Runner,
    container,
    holds,
    refusal,
    run,
    told_leaving,
)
from wherry_runner.execution.engine import ModuleKind, StartRefused
from wherry_runner.http_counts import HttpCounts
from wherry_runner.lives.listeners import Listeners, PortError, PortRange
from wherry_runner.protocol import (
    HttpServer,
    RefusalReason,
    Resources,
    Terminated,
    Waiting,
    WorkloadStatus,
)

ANY_PORT = (container(http=HttpServer()),)


def serving_runner(folder: Path, **how: object) -> Runner:
    runner = Runner(folder, **how)  # type: ignore[arg-type]
    runner.modules.kind = ModuleKind.HTTP
    return runner


async def is_open(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionRefusedError:
        return False
    writer.close()
    return True


def port_of(status: WorkloadStatus) -> int:
    port = status.containers[0].port
    assert port is not None
    return port


def test_a_server_has_a_port_and_is_ready_when_it_takes_connections(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = serving_runner(tmp_path)
        runner.put(containers=ANY_PORT)
        status = await runner.running()
        port = port_of(status)
        assert 20_000 <= port <= 29_999
        assert not status.containers[0].ready
        assert await is_open(port)
        guest = await runner.engine.guest(0)
        assert guest.spec.http is not None
        guest.serve()
        assert (await runner.when(lambda status: status.containers[0].ready)).containers[0].port == port

    run(scenario())


def test_a_port_stays_open_while_one_run_follows_another(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = serving_runner(tmp_path, back_off=AT_ONCE)
        wanted = free_port()
        runner.put(containers=(container(http=HttpServer(port=wanted)),))
        await runner.running()
        first = await runner.engine.guest(0)
        first.serve()
        await runner.when(lambda status: status.containers[0].ready)
        runner.engine.free.clear()
        first.exit(1)
        await runner.when(lambda status: not status.containers[0].ready)
        assert await is_open(wanted)
        runner.engine.free.set()
        status = await runner.running(restarts=1)
        assert port_of(status) == wanted
        assert not status.containers[0].ready, "the new run does not take connections yet"

    run(scenario())


def test_a_port_is_closed_in_back_off_and_at_the_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = serving_runner(tmp_path, back_off=TOLD)
        runner.put(containers=ANY_PORT)
        port = port_of(await runner.running())
        for number in range(2):
            (await runner.engine.guest(number)).exit(1)
        status = await runner.waiting("CrashLoopBackOff")
        assert status.containers[0].port is None
        assert not await is_open(port)

        again = port_of(await runner.running(restarts=2))
        runner.delete(grace=30)
        guest = await runner.engine.guest(2)
        await holds(lambda: guest.drained)
        assert not guest.killed
        assert not await is_open(again), "ours is closed, and the guest's own is its affair"
        guest.exit(0)
        await runner.ended()

    run(scenario())


def test_a_port_that_is_taken_is_waited_for(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = serving_runner(tmp_path, back_off=TOLD)
        wanted = free_port()
        spec = (container(http=HttpServer(port=wanted)),)
        runner.put(containers=spec)
        await runner.running()
        runner.put(id="w2", containers=spec)
        status = await runner.when(
            lambda status: isinstance(status.containers[0].state, Waiting) and bool(status.containers[0].state.message),
            "w2",
        )
        state = status.containers[0].state
        assert isinstance(state, Waiting)
        assert (state.reason, state.message) == ("CreateContainerError", f"port {wanted} is taken on this runner")
        runner.delete(grace=0)
        assert port_of(await runner.running(id="w2")) == wanted

    run(scenario())


def test_where_a_port_is_taken_another_will_do_for_one_that_may_move(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = serving_runner(tmp_path)
        wanted = free_port()
        spec = (container(http=HttpServer(port=wanted, movable=True)),)
        runner.put(containers=spec)
        assert port_of(await runner.running()) == wanted
        runner.put(id="w2", containers=spec)
        moved = port_of(await runner.running(id="w2"))
        assert 20_000 <= moved <= 29_999
        assert moved != wanted
        assert await is_open(moved)

    run(scenario())


def test_another_port_is_that_of_the_next_run(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = serving_runner(tmp_path)
        one, other = free_port(), free_port()
        runner.put(containers=(container(http=HttpServer(port=one)),))
        await runner.running()
        runner.put(sequence=2, content="c2", containers=(container(http=HttpServer(port=other)),))
        (await runner.engine.guest(0)).exit(1)
        assert port_of(await runner.running(restarts=1)) == other
        assert not await is_open(one)

    run(scenario())


def test_a_server_for_which_nobody_names_a_port_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = serving_runner(tmp_path, back_off=STUCK)
        runner.put()
        state = (await runner.waiting("CreateContainerError")).containers[0].state
        assert isinstance(state, Waiting)
        assert "nothing says on which port" in state.message

    run(scenario())


def test_a_command_opens_no_port(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        wanted = free_port()
        runner.put(policy=ALWAYS, containers=(container(http=HttpServer(port=wanted)),))
        status = await runner.running()
        assert status.containers[0].ready
        assert status.containers[0].port is None
        assert not await is_open(wanted)
        assert (await runner.engine.guest(0)).spec.http is None

    run(scenario())


def test_the_range_gives_each_a_port_of_its_own_and_says_when_it_is_used_up() -> None:
    first = free_port()
    listeners = Listeners("127.0.0.1", PortRange(first=first, last=first))
    with pytest.raises(PortError, match=f"port {first} is taken"):
        opened = listeners.open(None)
        try:
            with pytest.raises(PortError, match=f"no port is free from {first} to {first}"):
                listeners.open(None)
            listeners.open(first)
        finally:
            opened.close()
    listeners.open(None).close()


@pytest.mark.parametrize("text", ["", "1", "5-4", "0-9", "1-70000", "a-b", "-"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        PortRange.parse(text)


RESTS = (container(http=HttpServer(idle_seconds=0.1)),)


async def at_rest(runner: Runner) -> int:
    """Its port, once its first process has served and gone."""
    guest = await runner.engine.guest(0)
    guest.counts = HttpCounts(answers=(0, 1, 0, 0, 0))
    guest.serve()
    await holds(lambda: guest.drained)
    guest.exit(0)
    return port_of(await runner.when(lambda status: status.containers[0].idle))


def test_what_cannot_be_started_for_a_client_is_not_ready_any_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = serving_runner(tmp_path, back_off=TOLD)
        runner.put(containers=RESTS)
        port = await at_rest(runner)
        runner.engine.refusals.append(StartRefused("no room"))
        assert await is_open(port)
        (waits,) = (await runner.waiting("CreateContainerError")).containers
        assert (waits.ready, waits.idle, waits.port) == (False, False, None)
        again = (await runner.running(restarts=1)).containers[0]
        assert again.port is not None

    run(scenario())


def test_what_is_changed_in_its_rest_is_what_the_next_process_has(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = serving_runner(tmp_path)
        runner.put(containers=RESTS)
        port = await at_rest(runner)
        changed = container(env={"WHO": "Ada"}, http=RESTS[0].http)
        runner.put(sequence=2, content="c2", containers=(changed,))
        assert len(runner.engine.guests) == 1, "nobody has asked yet"
        assert await is_open(port)
        assert (await runner.engine.guest(1)).env == {"WHO": "Ada"}

    run(scenario())


def test_one_that_dies_after_its_rest_is_run_again_as_any_other(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = serving_runner(tmp_path, back_off=AT_ONCE)
        runner.put(containers=RESTS)
        port = await at_rest(runner)
        assert await is_open(port)
        second = await runner.engine.guest(1)
        assert runner.life().status.ready, "the client waits for it"
        second.serve()
        second.exit(1)
        status = await runner.running(restarts=1)
        assert not status.containers[0].ready
        assert status.containers[0].last_terminated is not None
        assert status.containers[0].last_terminated.exit_code == 1

    run(scenario())


def test_one_that_is_stopped_in_its_rest_has_completed(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = serving_runner(tmp_path)
        runner.put(containers=RESTS)
        port = await at_rest(runner)
        counted = 'wherry_runner_container_ends_total{reason="Completed"} 1.0'
        assert counted not in runner.room.metrics.text().decode(), "a rest is no end"
        runner.delete(grace=30)
        (ended,) = (await runner.ended()).containers
        assert isinstance(ended.state, Terminated)
        assert (ended.state.exit_code, ended.idle) == (0, False)
        assert counted in runner.room.metrics.text().decode()
        assert not await is_open(port)
        assert len(runner.engine.guests) == 1

    run(scenario())


# --- an executor that waits for clients itself ------------------------------------------------------------------------


async def armed_rest(runner: Runner, number: int = 0) -> FakeArmed:
    """What was armed for it, once the first process has gone."""
    await at_rest(runner)
    await holds(lambda: len(runner.engine.armed) > number)
    return runner.engine.armed[number]


def arming_runner(folder: Path, **how: object) -> Runner:
    runner = serving_runner(folder, **how)
    runner.engine.arms = True
    return runner


def test_what_the_executor_begins_for_a_client_is_a_run_and_no_restart(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = arming_runner(tmp_path)
        runner.put(containers=RESTS)
        armed = await armed_rest(runner)
        port = runner.life().status.port
        assert port is not None
        assert await is_open(port)
        await asyncio.sleep(0.05)
        assert len(runner.engine.guests) == 1, "clients are the executor's affair"
        guest = armed.called()
        guest.counts = HttpCounts(answers=(0, 1, 0, 0, 0))
        guest.serve()
        status = await runner.when(lambda status: not status.containers[0].idle)
        (one,) = status.containers
        assert (one.container_id, one.restart_count, one.ready) == (armed.spec.guest_id, 0, True)
        assert runner.journals.open(ID).past["main"].container_id == armed.spec.guest_id
        assert runner.journals.open(ID).past["main"].terminated is None
        text = runner.room.metrics.text().decode()
        assert "wherry_runner_start_duration_seconds_count 2.0" in text
        assert "wherry_runner_container_restarts_total 0.0" in text
        await holds(lambda: guest.drained)
        guest.exit(0)
        await runner.when(lambda status: status.containers[0].idle)
        await holds(lambda: len(runner.engine.armed) == 2)
        assert runner.engine.armed[1].spec.guest_id != armed.spec.guest_id

    run(scenario())


def test_one_that_is_stopped_while_the_executor_waits_is_disarmed_first(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = arming_runner(tmp_path)
        runner.put(containers=RESTS)
        armed = await armed_rest(runner)
        runner.delete(grace=30)
        (ended,) = (await runner.ended()).containers
        assert armed.disarmed
        assert isinstance(ended.state, Terminated)
        assert (ended.state.exit_code, ended.idle) == (0, False)
        assert len(runner.engine.guests) == 1

    run(scenario())


def test_a_client_that_comes_before_it_is_disarmed_has_begun_a_run_that_is_ended(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = arming_runner(tmp_path)
        runner.put(containers=RESTS)
        armed = await armed_rest(runner)
        armed.too_late = True
        runner.delete(grace=30)
        (ended,) = (await runner.ended()).containers
        assert isinstance(ended.state, Terminated)
        assert ended.container_id == armed.spec.guest_id
        assert ended.state.exit_code == 137
        assert (await runner.engine.guest(1)).killed

    run(scenario())


def test_what_is_changed_while_the_executor_waits_is_what_the_next_process_has(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = arming_runner(tmp_path)
        runner.put(containers=RESTS)
        armed = await armed_rest(runner)
        changed = container(env={"WHO": "Ada"}, http=RESTS[0].http)
        runner.put(sequence=2, content="c2", containers=(changed,))
        assert armed.disarmed
        port = runner.life().status.port
        assert port is not None
        assert await is_open(port)
        guest = await runner.engine.guest(1)
        assert guest.env == {"WHO": "Ada"}
        assert guest.spec.guest_id != armed.spec.guest_id
        assert len(runner.engine.armed) == 1, "the supervisor has begun it"

    run(scenario())


def test_a_change_of_limits_that_comes_too_late_ends_the_run_that_has_begun(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = arming_runner(tmp_path, back_off=AT_ONCE)
        runner.put(containers=RESTS, policy=ALWAYS)
        armed = await armed_rest(runner)
        armed.too_late = True
        changed = container(http=RESTS[0].http, resources=Resources(memory_limit_bytes=64 << 20))
        runner.put(sequence=2, content="c2", containers=(changed,), policy=ALWAYS)
        begun = await runner.engine.guest(1)
        await holds(lambda: begun.killed)
        assert (await runner.engine.guest(2)).spec.limits.memory_bytes == 64 << 20

    run(scenario())


def test_where_the_executor_waits_no_more_the_supervisor_does(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = arming_runner(tmp_path)
        runner.put(containers=RESTS)
        armed = await armed_rest(runner)
        port = runner.life().status.port
        assert port is not None
        armed.lose()
        await asyncio.sleep(0.05)
        assert len(runner.engine.guests) == 1
        assert runner.life().status.idle
        assert await is_open(port)
        guest = await runner.engine.guest(1)
        assert guest.spec.guest_id != armed.spec.guest_id

    run(scenario())


def test_a_run_that_the_executor_has_begun_and_that_can_not_be_journaled_is_ended(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = arming_runner(tmp_path, back_off=TOLD)
        runner.put(containers=RESTS)
        armed = await armed_rest(runner)

        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        journal = runner.journals.open(ID)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(journal), "started", full)
            guest = armed.called()
            (waits,) = (await runner.waiting("CreateContainerError")).containers
        assert guest.killed
        assert (waits.ready, waits.idle, waits.port) == (False, False, None)
        assert (await runner.running(restarts=1)).containers[0].port is not None

    run(scenario())


# --- a runner that is about to end ------------------------------------------------------------------------------------


def test_a_runner_that_leaves_says_so_and_serves_until_its_servers_are_taken_away(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = serving_runner(tmp_path)
        runner.put(containers=ANY_PORT)
        port = port_of(await runner.running())
        guest = await runner.engine.guest(0)
        guest.serve()
        await runner.when(lambda status: status.containers[0].ready)
        watch, early = runner.supervisor.watch(INFO), asyncio.create_task(told_leaving(runner))
        await anext(watch)
        leaving = asyncio.create_task(runner.supervisor.leave(3600))
        await early
        await told_leaving(runner)
        assert refusal(lambda: runner.put(id="w2", containers=ANY_PORT)) is RefusalReason.STOPPING
        runner.put(sequence=2, content="c2", containers=ANY_PORT)
        assert await is_open(port), "it serves on, and takes changes of what it has"
        assert not guest.drained
        runner.delete()
        await holds(lambda: guest.drained)
        assert not runner.life().status.ready, "it takes no connections any more"
        await leaving

    run(scenario())


def test_a_runner_that_leaves_waits_for_nobody_where_nobody_watches_or_nothing_serves(tmp_path: Path) -> None:
    async def scenario() -> None:
        unwatched = serving_runner(tmp_path / "a")
        unwatched.put(containers=ANY_PORT)
        await unwatched.running()
        await unwatched.supervisor.leave(3600)
        idle = Runner(tmp_path / "b")
        idle.put()
        await idle.running()
        watch = idle.supervisor.watch(INFO)
        await anext(watch)
        await idle.supervisor.leave(3600)

    run(scenario())


def test_a_runner_that_leaves_waits_no_longer_than_it_may(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = serving_runner(tmp_path)
        runner.put(containers=ANY_PORT)
        await runner.running()
        watch = runner.supervisor.watch(INFO)
        await anext(watch)
        await runner.supervisor.leave(0.3)
        assert not (await runner.engine.guest(0)).drained

    run(scenario())
