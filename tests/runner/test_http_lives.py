"""Servers on a whole runner: their ports, their restarts, and their ends, seen by clients."""

from __future__ import annotations

import asyncio
import base64
import os
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import aiohttp
import httpx
import pytest

from tests.guests.servers import SERVER
from tests.guests.servers_03 import SERVER_03
from tests.support import executors
from tests.support.runner import Certificates, RunnerProcess
from tests.support.talk import talk
from wherry_operator.runners.client import RunnerClient
from wherry_runner import protocol
from wherry_runner.protocol import Phase, RestartPolicy, WorkloadStatus

GREETING = "hello over HTTP\n"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if reason := executors.why_not("native"):
        pytest.skip(reason)
    return Certificates(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module")
def runner(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunnerProcess]:
    flags = ("--back-off-initial", "0.2", "--termination-grace-seconds", "30")
    process = RunnerProcess(tmp_path_factory.mktemp("runner"), certificates, "runner-h", flags)
    process.start()
    yield process
    process.kill()
    process.close()


def put(
    *,
    sequence: int = 1,
    http: protocol.HttpServer | None = None,
    policy: RestartPolicy = RestartPolicy.ALWAYS,
    module: str = SERVER,
) -> protocol.WorkloadPut:
    return protocol.WorkloadPut(
        epoch=1,
        sequence=sequence,
        template_hash="t1",
        workload=protocol.Workload(
            owner=protocol.Owner(kind="Pod", namespace="default", name="web", uid="u"),
            restart_policy=policy,
            containers=(
                protocol.Container(
                    name="main",
                    module=protocol.InlineModule(data=base64.b64encode(module.encode())),
                    http=http or protocol.HttpServer(),
                ),
            ),
            termination_grace_period_seconds=30,
        ),
    )


async def until(client: RunnerClient, holds: Callable[[WorkloadStatus], bool], workload_id: str) -> WorkloadStatus:
    while not holds(status := await client.get(workload_id)):
        await asyncio.sleep(0.02)
    return status


async def ready(client: RunnerClient, workload_id: str) -> int:
    """Its port, once it serves."""
    status = await until(client, lambda status: status.containers[0].ready, workload_id)
    port = status.containers[0].port
    assert port is not None
    return port


def guest_pid(runner: RunnerProcess, port: int) -> int:
    """The process that has a port open beside the runner: the server's own."""
    assert runner.process is not None
    wanted = f"socket:[{_inode(port)}]"
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            links = {str(link.readlink()) for link in (folder / "fd").iterdir()}
        except (PermissionError, FileNotFoundError, ProcessLookupError):
            continue
        if wanted in links and int(folder.name) != runner.process.pid:
            return int(folder.name)
    raise AssertionError(f"no guest listens on {port}")


async def metrics(runner: RunnerProcess, certificates: Certificates) -> str:
    context = ssl.create_default_context(cafile=certificates.ca.cert_file)
    context.check_hostname = False
    context.load_cert_chain(certificates.operator.cert, certificates.operator.key)
    async with httpx.AsyncClient(verify=context) as http:
        return (await http.get(f"{runner.url}/metrics")).text


def _inode(port: int) -> str:
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(f":{port:04X}") and fields[3] == "0A":
            return fields[9]
    raise AssertionError(f"nobody listens on {port}")


def test_a_server_is_ready_answers_and_drains(runner: RunnerProcess, certificates: Certificates) -> None:
    async def work(client: RunnerClient) -> None:
        await client.put("web", put())
        port = await ready(client, "web")
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            answers = await asyncio.gather(*(http.get("/log") for _ in range(20)))
            assert {(answer.status_code, answer.text) for answer in answers} == {(200, GREETING)}
            waiting = asyncio.create_task(http.get("/wait"))
            while "wherry_runner_http_requests 1.0" not in await metrics(runner, certificates):
                await asyncio.sleep(0.01)
            await client.delete("web", epoch=1, sequence=2, grace_seconds=30)
            assert (await waiting).text == GREETING
        ended = await until(client, lambda status: status.phase is Phase.ENDED, "web")
        state = ended.containers[0].state
        assert isinstance(state, protocol.Terminated)
        assert (state.exit_code, state.reason) == (0, "Completed")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        text = await metrics(runner, certificates)
        assert 'wherry_runner_http_answers_total{status="2xx"} 21.0' in text
        assert "wherry_runner_http_duration_seconds_count 21.0" in text

    talk(runner, certificates, work)


def test_a_server_that_dies_is_replaced_without_a_refused_connection(
    runner: RunnerProcess, certificates: Certificates
) -> None:
    async def work(client: RunnerClient) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            wanted = free.getsockname()[1]
        await client.put("dies", put(http=protocol.HttpServer(port=wanted)))
        assert await ready(client, "dies") == wanted
        os.kill(guest_pid(runner, wanted), signal.SIGKILL)
        async with aiohttp.ClientSession() as http, http.get(f"http://127.0.0.1:{wanted}/") as answer:
            assert await answer.text() == GREETING
        status = await until(client, lambda status: status.containers[0].ready, "dies")
        assert status.containers[0].restart_count == 1
        await client.delete("dies", epoch=1, sequence=2, grace_seconds=0)

    talk(runner, certificates, work)


def test_a_server_that_nobody_asks_has_no_process_until_somebody_does(
    runner: RunnerProcess, certificates: Certificates
) -> None:
    async def work(client: RunnerClient) -> None:
        await client.put("rests", put(http=protocol.HttpServer(idle_seconds=0.3)))
        port = await ready(client, "rests")
        async with aiohttp.ClientSession() as http:
            for _ in range(3):
                status = await until(client, lambda status: status.containers[0].idle, "rests")
                container = status.containers[0]
                assert (container.ready, container.port, container.restart_count) == (True, port, 0)
                assert isinstance(container.state, protocol.Running)
                assert not guests(runner)
                # Several at once, of which one process answers each.
                answers = await asyncio.gather(*(_get(http, f"http://127.0.0.1:{port}/log") for _ in range(5)))
                assert set(answers) == {GREETING}
        async with client.log("rests", "main", protocol.LogOptions()) as pieces:
            log = b"".join([piece async for piece in pieces])
        assert log.count(b"asked") == 15, "one log of all its processes"
        await until(client, lambda status: status.containers[0].idle, "rests")
        await client.delete("rests", epoch=1, sequence=2, grace_seconds=30)
        ended = await until(client, lambda status: status.phase is Phase.ENDED, "rests")
        state = ended.containers[0].state
        assert isinstance(state, protocol.Terminated)
        assert (state.exit_code, state.reason) == (0, "Completed")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)

    talk(runner, certificates, work)


def test_a_client_of_a_server_at_rest_is_answered_before_the_supervisor_has_heard_of_it(
    runner: RunnerProcess, certificates: Certificates
) -> None:
    async def work(client: RunnerClient) -> None:
        await client.put("sleeps", put(http=protocol.HttpServer(idle_seconds=0.3)))
        port = await ready(client, "sleeps")
        before = (await until(client, lambda status: status.containers[0].idle, "sleeps")).containers[0]
        assert runner.process is not None
        async with aiohttp.ClientSession() as http:
            await holds_armed(runner, port)
            os.kill(runner.process.pid, signal.SIGSTOP)
            try:
                assert await _get(http, f"http://127.0.0.1:{port}/log") == GREETING
                assert len(guests(runner)) == 1
            finally:
                os.kill(runner.process.pid, signal.SIGCONT)

        def is_at_rest_again(status: WorkloadStatus) -> bool:
            container = status.containers[0]
            return container.idle and container.container_id != before.container_id

        after = (await until(client, is_at_rest_again, "sleeps")).containers[0]
        assert (after.ready, after.port, after.restart_count) == (True, port, 0)
        async with client.log("sleeps", "main", protocol.LogOptions()) as pieces:
            assert b"asked" in b"".join([piece async for piece in pieces])
        # Its port is closed with it, although the executor had it open, too.
        await client.delete("sleeps", epoch=1, sequence=2, grace_seconds=30)
        await until(client, lambda status: status.phase is Phase.ENDED, "sleeps")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)

    talk(runner, certificates, work)


async def holds_armed(runner: RunnerProcess, port: int) -> None:
    """Wait until the executor has a server's listening socket, so that it is the one who waits for clients."""
    assert runner.process is not None
    (executor,) = _children(runner.process.pid)
    wanted = f"socket:[{_inode(port)}]"
    while wanted not in {str(link.readlink()) for link in Path(f"/proc/{executor}/fd").iterdir()}:
        await asyncio.sleep(0.01)


async def _get(http: aiohttp.ClientSession, url: str) -> str:
    async with http.get(url) as answer:
        return await answer.text()


def guests(runner: RunnerProcess) -> list[int]:
    """The processes of its guests."""
    assert runner.process is not None
    (executor,) = _children(runner.process.pid)
    return _children(executor)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_server_of_wasi_03_is_served_where_the_runner_is_set_to(
    runner: RunnerProcess, certificates: Certificates, tmp_path: Path
) -> None:
    async def told(client: RunnerClient) -> None:
        await client.put("newer", put(module=SERVER_03))

        def is_refused(status: WorkloadStatus) -> bool:
            state = status.containers[0].state
            return isinstance(state, protocol.Waiting) and "--wasi-0.3" in state.message

        await until(client, is_refused, "newer")
        await client.delete("newer", epoch=1, sequence=2, grace_seconds=0)

    async def served(client: RunnerClient) -> None:
        for name, module in (("newer", SERVER_03), ("older", SERVER)):
            await client.put(name, put(module=module))
            port = await ready(client, name)
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
                assert (await http.get("/log")).text == GREETING
            await client.delete(name, epoch=1, sequence=2, grace_seconds=30)
            ended = await until(client, lambda status: status.phase is Phase.ENDED, name)
            state = ended.containers[0].state
            assert isinstance(state, protocol.Terminated)
            assert (state.exit_code, state.reason) == (0, "Completed")

    talk(runner, certificates, told)
    newer = RunnerProcess(tmp_path, certificates, "runner-newer", ("--wasi-0.3",))
    newer.start()
    try:
        talk(newer, certificates, served)
    finally:
        newer.kill()
        newer.close()
