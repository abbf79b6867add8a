"""Servers that the executor starts by itself when a client comes: begun, disarmed, lost, and refused."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.guests.servers import SERVER
from tests.runner.conftest import children
from tests.runner.harness import Bench, bench, until
from tests.support import executors
from wherry_runner.execution import adapter, armed
from wherry_runner.execution.armed import ArmedStart
from wherry_runner.execution.engine import EngineLost, GuestSpec, HttpServing, Limits

GREETING = b"hello over HTTP\n"

Scenario = Callable[[Bench], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path, store: Path) -> Iterator[Callable[[Scenario], None]]:
    """Plays a scenario on the native executor; afterwards no process of it is left."""
    if reason := executors.why_not("native"):
        pytest.skip(reason)

    def run(scenario: Scenario) -> None:
        async def whole() -> None:
            async with asyncio.timeout(60), bench("native", tmp_path, store) as opened:
                await scenario(opened)

        before = children()
        asyncio.run(whole())
        assert children() == before

    yield run


class Resting:
    """A server without a process, and its port. Like the supervisor's, its socket is held here as well."""

    def __init__(self, opened: Bench, spec: GuestSpec, armed_start: ArmedStart, port: int) -> None:
        self._opened = opened
        self.spec = spec
        self.armed = armed_start
        self.port = port

    async def get(self, path: str = "/") -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            return await reader.read()
        finally:
            writer.close()

    def guests(self) -> list[int]:
        """Processes of guests."""
        pid = self._opened.engine.executor_pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@asynccontextmanager
async def resting(opened: Bench, **how: Any) -> AsyncIterator[Resting]:
    """An armed server, whatever becomes of it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        spec = await opened.prepare(SERVER, http=HttpServing(listener=listener.fileno()), **how)
        armed_start = await opened.engine.arm(spec)
        assert armed_start is not None
        server = Resting(opened, spec, armed_start, listener.getsockname()[1])
        try:
            yield server
        finally:
            armed_start.disarm()
            if (guest := await armed_start.begun()) is not None:
                guest.kill()
                with contextlib.suppress(EngineLost):
                    await guest.wait()


def test_the_first_client_has_its_process_started_and_is_answered(play: Callable[[Scenario], None]) -> None:
    async def scenario(opened: Bench) -> None:
        async with resting(opened) as server:
            assert await opened.run('(module (func (export "_start")))'), "others are started meanwhile"
            assert server.guests() == []
            answers = await asyncio.gather(*(server.get() for _ in range(5)))
            assert all(answer.startswith(b"HTTP/1.1 200 OK") and GREETING in answer for answer in answers)
            guest = await server.armed.begun()
            assert guest is not None
            assert server.guests() == [guest.pid]
            assert 0 < server.armed.took_seconds < 60
            assert await guest.serving()
            counts = guest.http_counts()
            assert counts is not None
            assert sum(counts.answers) == 5
            guest.drain()
            assert (await guest.wait()).exit_code == 0

    play(scenario)


def test_what_was_disarmed_starts_nothing_and_its_port_is_closed(play: Callable[[Scenario], None]) -> None:
    async def scenario(opened: Bench) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        server = await opened.engine.arm(await opened.prepare(SERVER, http=HttpServing(listener=listener.fileno())))
        assert server is not None
        listener.close()
        _, writer = await asyncio.open_connection("127.0.0.1", port)  # the executor's own is open still
        begun = await server.begun()
        assert begun is not None
        writer.close()
        begun.drain()
        assert (await begun.wait()).exit_code == 0

        async with resting(opened) as other:
            other.armed.disarm()
            other.armed.disarm()
            assert await other.armed.begun() is None
            assert other.guests() == []
            client = asyncio.create_task(other.get())
            again = await opened.engine.run(other.spec)
            assert GREETING in await client
            again.kill()
            await again.wait()
        with pytest.raises(ConnectionRefusedError):
            await other.get()

    play(scenario)


def test_a_disarm_and_a_client_at_once_have_one_outcome_that_is_told(play: Callable[[Scenario], None]) -> None:
    async def scenario(opened: Bench) -> None:
        outcomes = set()
        for number in range(40):
            async with resting(opened) as server:
                client = socket.create_connection(("127.0.0.1", server.port)) if number % 2 else None
                server.armed.disarm()
                client = client or socket.create_connection(("127.0.0.1", server.port))
                with client:
                    client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                    guest = await server.armed.begun()
                    outcomes.add(guest is None)
                    if guest is None:
                        assert server.guests() == []
                        guest = await opened.engine.run(server.spec)
                    client.setblocking(False)
                    answer = b""
                    while piece := await asyncio.get_running_loop().sock_recv(client, 4096):
                        answer += piece
                    assert GREETING in answer, "whoever started it, the client is answered"
                    guest.drain()
                    assert (await guest.wait()).exit_code == 0
        assert outcomes, "both are possible, and each was told"

    play(scenario)


def test_with_more_than_may_wait_the_one_that_waited_longest_makes_room(
    play: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(armed, "MOST", 2)

    async def scenario(opened: Bench) -> None:
        async with resting(opened) as first, resting(opened) as second, resting(opened) as third:
            assert await first.armed.begun() is None
            assert GREETING in await second.get()
            assert GREETING in await third.get()

    play(scenario)


def test_the_executors_death_disarms_and_the_next_start_works(play: Callable[[Scenario], None]) -> None:
    async def scenario(opened: Bench) -> None:
        async with resting(opened) as server:
            pid = opened.engine.executor_pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
            assert await server.armed.begun() is None
            client = asyncio.create_task(server.get())
            guest = await opened.engine.run(server.spec)
            assert GREETING in await client
            guest.kill()
            await guest.wait()

    play(scenario)


def test_what_cannot_be_loaded_or_served_is_not_armed(play: Callable[[Scenario], None], tmp_path: Path) -> None:
    async def scenario(opened: Bench) -> None:
        assert await opened.engine.arm(await opened.prepare('(module (func (export "_start")))')) is None
        async with resting(opened) as server:
            broken = tmp_path / "broken.cwasm"
            broken.write_bytes(b"no native code")
            module = dataclasses.replace(server.spec.module, path=broken, digest="sha256:broken")
            spec = dataclasses.replace(server.spec, module=module, guest_id="broken")
            refused = await opened.engine.arm(spec)
            assert refused is not None
            assert await refused.begun() is None
            assert GREETING in await server.get(), "the executor and what else is armed there go on"

    play(scenario)


def test_a_server_that_can_not_live_says_so_as_any_other(play: Callable[[Scenario], None]) -> None:
    async def scenario(opened: Bench) -> None:
        async with resting(opened, limits=Limits(memory_bytes=65536)) as server:
            client = asyncio.create_task(server.get())
            guest = await server.armed.begun()
            assert guest is not None
            assert not await guest.serving()
            end = await guest.wait()
            assert (end.exit_code, end.reason) == (128, "Error")
            assert "its memories and tables begin with" in end.message
            client.cancel()
            await asyncio.wait([client])

    play(scenario)


def test_an_executor_that_answers_no_client_is_replaced(
    play: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(armed, "LOOK_SECONDS", 0.2)

    async def scenario(opened: Bench) -> None:
        async with resting(opened) as server:
            pid = opened.engine.executor_pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            client = asyncio.create_task(server.get())
            assert await server.armed.begun() is None
            assert opened.engine.losses == 1
            guest = await opened.engine.run(server.spec)
            assert GREETING in await client
            guest.kill()
            await guest.wait()

    play(scenario)


def test_an_executor_that_does_not_say_what_came_of_a_disarm_is_replaced(
    play: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "START_SECONDS", 0.2)

    async def scenario(opened: Bench) -> None:
        async with resting(opened) as server:
            pid = opened.engine.executor_pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            server.armed.disarm()
            assert await server.armed.begun() is None
            assert opened.engine.losses == 1

    play(scenario)


def test_an_engine_is_closed_with_what_is_armed(
    play: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "CLOSE_SECONDS", 3600)  # nothing is waited for

    async def scenario(opened: Bench) -> None:
        async with resting(opened) as server:
            await opened.engine.close()
            assert await server.armed.begun() is None

    play(scenario)


@pytest.mark.parametrize("path", ["/", "/spin"])
def test_it_has_its_own_weight_once_its_first_client_had_its_turn(play: Callable[[Scenario], None], path: str) -> None:
    wanted = min(19, os.getpriority(os.PRIO_PROCESS, 0) + 10)

    async def scenario(opened: Bench) -> None:
        async with resting(opened, limits=Limits(cpu_weight_millicores=100)) as server:
            client = asyncio.create_task(server.get(path))
            guest = await server.armed.begun()
            assert guest is not None
            assert await guest.serving()
            assert os.getpriority(os.PRIO_PROCESS, guest.pid) == wanted
            guest.kill()
            await asyncio.wait([client])

    play(scenario)


def test_one_that_is_armed_takes_nothing_from_those_that_run(play: Callable[[Scenario], None]) -> None:
    async def scenario(opened: Bench) -> None:
        async with resting(opened), resting(opened) as runs:
            await runs.get()
            guest = await runs.armed.begun()
            assert guest is not None
            await until(lambda: guest.http_counts() is not None)
            links = [os.readlink(path) for path in Path(f"/proc/{guest.pid}/fd").iterdir()]
            assert sum("payload" in link for link in links) == 0
            assert sum(link.startswith("socket:") for link in links) == 1, "its own listening socket, and no other's"

    play(scenario)
