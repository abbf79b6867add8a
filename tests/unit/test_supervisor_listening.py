"""The ports of commands whose own sockets listen: kept for them, moved where they are taken, and told."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from tests.support.ports import free_port
from tests.support.runner_scene import ALWAYS, INFO, TOLD, Runner, container, run, told_leaving
from wherry_runner.execution.engine import NETWORK, ModuleKind
from wherry_runner.lives.asking import Target
from wherry_runner.lives.probing import attempt
from wherry_runner.protocol import ListenPort, OpenPort, Phase, Probe


def listening_runner(folder: Path, **how: object) -> Runner:
    runner = Runner(folder, **how)  # type: ignore[arg-type]
    runner.modules.kind = ModuleKind.COMPONENT
    runner.engine.features = runner.engine.features | {NETWORK}
    return runner


def test_a_command_has_the_ports_that_it_names(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = listening_runner(tmp_path)
        tcp, udp = free_port(), free_port()
        listens = (ListenPort(port=tcp, movable=True), ListenPort(port=udp, protocol="UDP"), ListenPort(port=tcp))
        runner.put(containers=(container(listens=listens),))
        status = (await runner.running()).containers[0]
        assert status.ports == (OpenPort(named=tcp, port=tcp), OpenPort(named=udp, port=udp, protocol="UDP"))
        assert (status.port, status.ready) == (None, True)
        given = (await runner.engine.guest(0)).spec.listening
        assert [(each.protocol, each.named, each.at) for each in given] == [
            ("TCP", tcp, f"127.0.0.1:{tcp}"),
            ("UDP", udp, f"127.0.0.1:{udp}"),
        ]

    run(scenario())


def test_a_port_that_is_another_containers_is_moved_if_that_can_be(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = listening_runner(tmp_path, back_off=TOLD)
        port = free_port()
        first = (container(listens=(ListenPort(port=port, movable=True), ListenPort(port=port, protocol="UDP"))),)
        runner.put(containers=first)
        await runner.running()
        runner.put(id="w2", containers=(container(listens=(ListenPort(port=port, movable=True),)),))
        (moved,) = (await runner.when(lambda status: bool(status.containers[0].ports), id="w2")).containers[0].ports
        assert (moved.named, moved.port != port) == (port, True)
        runner.put(id="w3", containers=(container(listens=(ListenPort(port=port, protocol="UDP"),)),))
        waits = await runner.waiting("CreateContainerError", id="w3")
        assert f"UDP port {port} is taken on this runner" in waits.containers[0].state.message  # type: ignore[union-attr]
        runner.delete(grace=0)
        await runner.running(id="w3")

    run(scenario())


def test_the_next_run_has_them_too(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = listening_runner(tmp_path, back_off=TOLD)
        runner.put(policy=ALWAYS, containers=(container(listens=(ListenPort(port=free_port(), movable=True),)),))
        before = (await runner.running()).containers[0].ports
        (await runner.engine.guest(0)).exit(1)
        assert (await runner.running(restarts=1)).containers[0].ports == before

    run(scenario())


def test_a_runner_that_leaves_lets_a_command_listen_on_and_then_have_its_grace_period(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = listening_runner(tmp_path)
        runner.put(containers=(container(listens=(ListenPort(port=free_port(), movable=True),)),))
        await runner.running()
        guest = await runner.engine.guest(0)
        watch = runner.supervisor.watch(INFO)
        await anext(watch)
        leaving = asyncio.create_task(runner.supervisor.leave(3600))
        await told_leaving(runner)
        runner.delete(grace=3600)
        await runner.when(lambda status: status.phase is Phase.STOPPING)
        assert (leaving.done(), guest.killed) == (False, False), "who connected to it may go on with that"
        guest.exit(0)
        await leaving

    run(scenario())


def test_what_cannot_listen_is_given_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        runner.put(containers=(container(listens=(ListenPort(port=free_port()),)),))
        assert (await runner.running()).containers[0].ports == ()
        assert (await runner.engine.guest(0)).spec.listening == ()

    run(scenario())


def test_a_probe_by_tcp_connects_to_who_listens_itself() -> None:
    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as open_:
            port = open_.getsockname()[1]
            target = Target(
                address="127.0.0.1",
                port=lambda: None,
                named=lambda: None,
                serves=lambda: False,
                listens={80: port, 81: free_port()},
            )
            assert await attempt(Probe(port=80), target) == ""
            assert (await attempt(Probe(port=81), target)).endswith("connect: connection refused")
            assert await attempt(Probe(port=82), target) == "dial tcp 127.0.0.1:82: connect: connection refused"

    asyncio.run(scenario())
