"""Guests whose own sockets listen: on the ports that they were given, and on no other."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tests.guests import build
from tests.runner.conftest import Play
from tests.runner.harness import Bench, Outcome, Running
from tests.support.ports import free_port
from wherry_runner.execution.engine import Destination, Limits, Listening, NetworkGrant
from wherry_runner.network_counts import REFUSALS

pytestmark = pytest.mark.native_only
"""The only one that has sockets to give."""

TCP, UDP = 8080, 5353
"""By which guests know their ports."""


@pytest.fixture(scope="session")
def serve() -> bytes:
    """The guest that its arguments have listen (`tests/guests/python/serve.py`)."""
    return build.python("serve")


def at(port: int, *, named: int = TCP) -> tuple[Listening, ...]:
    return (Listening(protocol="TCP", named=named, at=f"127.0.0.1:{port}"),)


def datagrams_at(port: int) -> tuple[Listening, ...]:
    return (Listening(protocol="UDP", named=UDP, at=f"127.0.0.1:{port}"),)


async def start(
    opened: Bench, module: bytes, *deeds: str, listening: tuple[Listening, ...], **how: NetworkGrant
) -> Running:
    limits = Limits(memory_bytes=256 << 20)
    return await opened.start(module, *deeds, listening=listening, limits=limits, **how)


async def until_said(running: Running, text: str) -> None:
    while text not in running.log_path.read_text():
        await asyncio.sleep(0.01)


async def exchange(port: int, data: bytes) -> bytes:
    """What comes back by TCP."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


def complaints(ended: Outcome) -> list[str]:
    lines = ended.text("stderr").splitlines()
    return [line.removeprefix("wherry: network: ") for line in lines if line.startswith("wherry: network: ")]


def test_a_guest_serves_tcp_where_its_runner_keeps_its_port(play: Play, serve: bytes) -> None:
    async def scenario(opened: Bench) -> None:
        port = free_port()
        running = await start(opened, serve, f"tcp:0.0.0.0:{TCP}", listening=at(port))
        await until_said(running, ": listens")
        for number in range(3):
            assert await exchange(port, b"ping %d" % number) == b"ping %d" % number
        running.guest.kill()
        await opened.end(running)
        with pytest.raises(ConnectionRefusedError):
            await exchange(port, b"")
        again = await start(opened, serve, f"tcp:127.0.0.1:{TCP}", listening=at(port))
        await until_said(again, ": listens")
        assert await exchange(port, b"again") == b"again", "the port is free for the next run at once"
        again.guest.kill()
        await opened.end(again)

    play(scenario)


def test_a_guest_serves_udp_and_answers_who_asked(play: Play, serve: bytes) -> None:
    async def scenario(opened: Bench) -> None:
        port = free_port()
        running = await start(opened, serve, f"udp:0.0.0.0:{UDP}", listening=datagrams_at(port))
        await until_said(running, ": listens")
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            client.bind(("127.0.0.1", 0))
            await loop.sock_sendto(client, b"ping", ("127.0.0.1", port))
            assert await loop.sock_recvfrom(client, 100) == (b"ping", ("127.0.0.1", port))
        running.guest.kill()
        await opened.end(running)

    play(scenario)


def test_nothing_but_the_named_ports_can_be_had(play: Play, serve: bytes) -> None:
    async def scenario(opened: Bench) -> None:
        port = free_port()
        unnamed = TCP + 1
        why = {
            f"tcp:0.0.0.0:{unnamed}": f"its container names no TCP port {unnamed}",
            f"tcp:127.0.0.2:{TCP}": "its own ports are on 0.0.0.0, or 127.0.0.1",
            f"tcp:[::]:{TCP}": "the runner's address is 127.0.0.1",
        }
        wrong = {
            f"try:{what}": f"binding {what.removeprefix('tcp:')} by TCP is refused: {words}"
            for what, words in why.items()
        }
        wrong[f"try:udp:0.0.0.0:{TCP}"] = "a UDP socket is refused: spec.network.allowedHosts grants nothing"
        ended = await opened.end(
            await start(opened, serve, *wrong, "try:tcp:0.0.0.0:0", f"try:tcp:0.0.0.0:{TCP}", listening=at(port))
        )
        said = dict(line.rsplit(": ", 1) for line in ended.text("stdout").splitlines())
        assert said.pop(f"try:tcp:0.0.0.0:{TCP}") == "done"
        assert all("rror " in words for words in said.values()), said
        nowhere = "binding 0.0.0.0:0 by TCP is refused: only a port that its container names can be had"
        assert complaints(ended) == [*wrong.values(), nowhere]
        counted = dict(zip(REFUSALS, ended.exit.refused, strict=True))
        assert counted["socket"] == 5

    play(scenario)


def test_who_listens_reaches_nobody(play: Play, serve: bytes) -> None:
    async def scenario(opened: Bench) -> None:
        listening = (*at(free_port()), *datagrams_at(free_port()))
        ended = await opened.end(
            await start(opened, serve, "send:127.0.0.1:9", "try:udp:0.0.0.0:0", listening=listening)
        )
        assert all("rror " in line for line in ended.text("stdout").splitlines()), ended.text()
        assert (
            complaints(ended)
            == ["binding 0.0.0.0:0 by UDP is refused: only a port that its container names can be had"] * 2
        )
        reach = build.python("reach")
        with socket.create_server(("127.0.0.1", 0)) as somebody:
            port = somebody.getsockname()[1]
            ended = await opened.end(await start(opened, reach, f"tcp:127.0.0.1:{port}", listening=listening))
            assert "rror " in ended.text("stdout")
            assert complaints(ended) == [
                f"TCP to 127.0.0.1:{port} is refused: spec.network.allowedHosts grants nothing"
            ]

    play(scenario)


def test_a_grant_and_a_port_stand_beside_each_other(play: Play, serve: bytes) -> None:
    async def scenario(opened: Bench) -> None:
        port = free_port()
        network = NetworkGrant(destinations=(Destination(network="127.0.0.1/32", ports=(1, 65_535)),))
        running = await start(opened, serve, f"tcp:0.0.0.0:{TCP}", listening=at(port), network=network)
        await until_said(running, ": listens")
        assert await exchange(port, b"ping") == b"ping"
        running.guest.kill()
        await opened.end(running)
        with socket.create_server(("127.0.0.1", 0)) as somebody:
            asked = f"tcp:127.0.0.1:{somebody.getsockname()[1]}"
            running = await start(opened, build.python("reach"), asked, listening=at(port), network=network)
            connection, _ = await asyncio.to_thread(somebody.accept)
            with connection:
                connection.sendall(b"hello")
        assert (await opened.end(running)).text("stdout") == f"{asked}: hello\n"

    play(scenario)
