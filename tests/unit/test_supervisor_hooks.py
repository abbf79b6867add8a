"""Hooks: when they run, what waits for them, and what comes of one that fails."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.support.fake_engine import FakeGuest
from tests.support.operator_fakes import settle
from tests.support.runner_scene import AT_ONCE, NEVER, STUCK, Runner, code, container, holds, run
from wherry_runner.execution.engine import ModuleKind
from wherry_runner.protocol import Hook, HttpServer, Probe, Running, Terminated, Waiting

LONG = Hook(sleep_seconds=3600)
AT_ALL = Hook(sleep_seconds=0)


def serving_runner(folder: Path) -> Runner:
    runner = Runner(folder, back_off=STUCK)
    runner.modules.kind = ModuleKind.HTTP
    return runner


@asynccontextmanager
async def answering(guest: FakeGuest, answer: bytes) -> AsyncIterator[list[bytes]]:
    """Take the guest's connections; the heads of the requests."""
    assert guest.spec.http is not None
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, sock=socket.socket(fileno=os.dup(guest.spec.http.listener)))
    try:
        yield asked
    finally:
        server.close()
        await server.wait_closed()


def test_a_container_waits_until_its_post_start_hook_has_been_answered_and_so_do_its_probes(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = serving_runner(tmp_path)
        hook, probe = Hook(path="/warm"), Probe(period_seconds=1, path="/probe")
        runner.put(containers=(container(http=HttpServer(), post_start=hook, readiness_probe=probe),))
        guest = await runner.engine.guest(0)
        guest.serve()
        await settle()
        (status,) = runner.supervisor.status("w1").containers
        assert (status.state, status.ready, status.started) == (Waiting(reason="ContainerCreating"), False, False)
        # Whatever it answers, as for a kubelet.
        async with answering(guest, b"HTTP/1.1 500 Internal Server Error\r\n\r\n") as asked:
            await runner.running()
            await holds(lambda: len(asked) == 2)
        assert [head.split(b" ")[1] for head in asked] == [b"/warm", b"/probe"]
        assert b"\r\nUser-Agent: kube-lifecycle/" in asked[0]

    run(scenario())


def test_one_whose_post_start_hook_fails_is_ended_and_run_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = serving_runner(tmp_path)
        runner.put(containers=(container(http=HttpServer(port=None), post_start=Hook(port=9, path="/x")),))
        status = (await runner.waiting("CrashLoopBackOff")).containers[0]
        assert [each.hook for each in status.hook_failures] == ["PostStart"]
        last = status.last_terminated
        assert last is not None
        assert (last.exit_code, last.reason) == (137, "Error")
        assert last.message == (
            'HTTP lifecycle hook (/x) for Container "main" in Pod "hello_boats(u-1)" failed - '
            'error: Get "http://127.0.0.1:9/x": dial tcp 127.0.0.1:9: connect: connection refused'
        )

    run(scenario())


def test_what_answers_no_http_fails_a_hook(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = serving_runner(tmp_path)
        runner.put(policy=NEVER, containers=(container(http=HttpServer(), post_start=Hook(path="/")),))
        async with answering(await runner.engine.guest(0), b"no\r\n\r\n"):
            status = await runner.ended()
        state = status.containers[0].state
        assert isinstance(state, Terminated)
        assert state.message.endswith(": malformed HTTP response")

    run(scenario())


def test_a_post_start_hook_runs_with_each_start(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path, back_off=AT_ONCE)
        runner.put(containers=(container(post_start=AT_ALL),))
        await runner.running()
        (await runner.engine.guest(0)).exit(1)
        await runner.running(restarts=1)

    run(scenario())


def test_a_server_serves_on_while_its_pre_stop_hook_runs(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = serving_runner(tmp_path)
        runner.put(containers=(container(http=HttpServer(), pre_stop=Hook(path="/bye")),))
        guest = await runner.engine.guest(0)
        guest.serve()
        await runner.when(lambda status: status.containers[0].ready)
        runner.delete(grace=3600)
        await settle()
        runner.delete(grace=3600, sequence=101)
        await settle()
        (status,) = runner.supervisor.status("w1").containers
        assert (status.ready, guest.drained, status.port is None) == (True, False, False)
        async with answering(guest, b"HTTP/1.1 200 OK\r\n\r\nbye") as asked:
            await holds(lambda: guest.drained)
        assert len(asked) == 1, "once is enough"
        assert runner.supervisor.status("w1").containers[0].port is None
        guest.exit(0)
        status = (await runner.ended()).containers[0]
        assert status.hook_failures == ()

    run(scenario())


def test_one_whose_pre_stop_hook_fails_ends_all_the_same(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = serving_runner(tmp_path)
        runner.put(containers=(container(http=HttpServer(), pre_stop=Hook(port=9, path="/")),))
        guest = await runner.engine.guest(0)
        guest.serve()
        await runner.running()
        runner.delete(grace=3600)
        await holds(lambda: guest.drained)
        guest.exit(0)
        status = (await runner.ended()).containers[0]
        assert [each.hook for each in status.hook_failures] == ["PreStop"], "it can still be told"

    run(scenario())


def test_a_pre_stop_hook_that_takes_all_of_the_grace_period_leaves_a_moment_to_end(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = serving_runner(tmp_path)
        runner.put(containers=(container(http=HttpServer(), pre_stop=LONG),))
        guest = await runner.engine.guest(0)
        guest.serve()
        await runner.running()
        runner.delete(grace=0.01)
        await holds(lambda: guest.drained)
        assert not guest.killed
        assert code(await runner.ended()) == 137

    run(scenario())


@pytest.mark.parametrize("grace", [0, 3600])
def test_without_a_grace_period_no_hook_runs_and_one_that_ends_by_itself_ends_its_hook(
    tmp_path: Path, grace: float
) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(containers=(container(pre_stop=LONG),))
        guest = await runner.engine.guest(0)
        await runner.running()
        runner.delete(grace=grace)
        await settle()
        assert guest.killed is (grace == 0)
        if grace:
            guest.exit(0)
        await runner.ended()

    run(scenario())


def test_a_failed_liveness_probe_runs_the_pre_stop_hook_first_and_keeps_the_port(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = serving_runner(tmp_path)
        every = {"period_seconds": 1, "failure_threshold": 1}
        spec = container(http=HttpServer(), pre_stop=Hook(path="/bye"), liveness_probe=Probe(port=9, **every))
        runner.put(containers=(spec,))
        guest = await runner.engine.guest(0)
        guest.serve()
        async with answering(guest, b"HTTP/1.1 200 OK\r\n\r\n") as asked:
            await holds(lambda: guest.drained)
        assert len(asked) == 1
        (status,) = runner.supervisor.status("w1").containers
        assert isinstance(status.state, Running)
        assert status.port is not None
        guest.exit(0)
        await runner.waiting("CrashLoopBackOff")

    run(scenario())


def test_one_that_drains_since_its_probe_failed_is_not_cut_short_when_it_is_stopped(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = serving_runner(tmp_path)
        every = {"period_seconds": 1, "failure_threshold": 1}
        runner.put(containers=(container(http=HttpServer(), liveness_probe=Probe(port=9, **every)),))
        guest = await runner.engine.guest(0)
        guest.serve()
        await holds(lambda: guest.drained)
        for sequence in (100, 101):
            runner.delete(grace=3600, sequence=sequence)
            await settle()
        assert runner.supervisor.status("w1").containers[0].port is None
        assert not guest.killed
        guest.exit(0)
        await runner.ended()

    run(scenario())


def test_a_runner_that_ends_runs_the_pre_stop_hooks(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = serving_runner(tmp_path)
        runner.put(containers=(container(http=HttpServer(), pre_stop=Hook(path="/bye")),))
        guest = await runner.engine.guest(0)
        guest.serve()
        await runner.running()
        async with answering(guest, b"HTTP/1.1 200 OK\r\n\r\n") as asked:
            dying = asyncio.create_task(runner.die(3600))
            await holds(lambda: guest.drained)
        assert len(asked) == 1
        guest.exit(0)
        await dying

    run(scenario())
