"""Guests of WASI 0.3 whose own sockets listen: by the same rules as those of 0.2 (`test_listening.py`)."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tests.guests.sockets_03 import BIND_FAILED, LISTEN_FAILED, echoes, echoes_datagrams
from tests.runner.conftest import Play
from tests.runner.harness import Bench
from tests.runner.test_listening import TCP, UDP, at, complaints, datagrams_at, exchange
from tests.support.ports import free_port
from wherry_runner.network_counts import REFUSALS

pytestmark = pytest.mark.native_only
"""The only one that runs WASI 0.3."""


@pytest.fixture
def wasi_03() -> bool:
    return True


async def exchanged(port: int, data: bytes) -> bytes:
    """What comes back by TCP, of a guest that says nothing when it listens."""
    while True:
        try:
            return await exchange(port, data)
        except ConnectionRefusedError:
            await asyncio.sleep(0.01)


def test_a_guest_serves_tcp_where_its_runner_keeps_its_port(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        port = free_port()
        for place in ("0.0.0.0", "127.0.0.1"):
            running = await opened.start(echoes(place, TCP), listening=at(port))
            for number in range(3):
                assert await exchanged(port, b"ping %d" % number) == b"ping %d" % number
            large = bytes(1 << 20)
            assert await exchange(port, large) == large
            running.guest.kill()
            ended = await opened.end(running)
            assert not complaints(ended)

    play(scenario)


def test_a_guest_serves_udp_and_answers_who_asked(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        port = free_port()
        running = await opened.start(echoes_datagrams("0.0.0.0", UDP), listening=datagrams_at(port))
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            client.connect(("127.0.0.1", port))
            # Until it has bound its port nobody takes a datagram.
            answer = None
            while answer is None:
                try:
                    await loop.sock_sendall(client, b"ping")
                    answer = await asyncio.wait_for(loop.sock_recv(client, 100), timeout=0.1)
                except (ConnectionRefusedError, TimeoutError):
                    await asyncio.sleep(0.01)
            assert answer == b"ping"
        running.guest.kill()
        await opened.end(running)

    play(scenario)


def test_nothing_but_the_named_ports_can_be_had(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        port = free_port()
        unnamed = TCP + 1
        nowhere = "only a port that its container names can be had"
        wrong = {
            (echoes("0.0.0.0", unnamed), BIND_FAILED): f"binding 0.0.0.0:{unnamed} by TCP is refused: "
            f"its container names no TCP port {unnamed}",
            (echoes("127.0.0.2", TCP), BIND_FAILED): f"binding 127.0.0.2:{TCP} by TCP is refused: "
            "its own ports are on 0.0.0.0, or 127.0.0.1",
            (echoes("0.0.0.0", 0), BIND_FAILED): f"binding 0.0.0.0:0 by TCP is refused: {nowhere}",
            (echoes("0.0.0.0", TCP, binds=False), LISTEN_FAILED): f"binding 0.0.0.0:0 by TCP is refused: {nowhere}",
            (echoes_datagrams("0.0.0.0", UDP), 0): "a UDP socket is refused: spec.network.allowedHosts grants nothing",
        }
        for (guest, code), why in wrong.items():
            ended = await opened.run(guest, listening=at(port))
            assert (ended.exit.exit_code, complaints(ended)) == (code, [why])
            assert dict(zip(REFUSALS, ended.exit.refused, strict=True))["socket"] == 1
        for port in (UDP + 1, 0):
            ended = await opened.run(echoes_datagrams("0.0.0.0", port), listening=datagrams_at(free_port()))
            assert ended.exit.exit_code == BIND_FAILED

    play(scenario)
