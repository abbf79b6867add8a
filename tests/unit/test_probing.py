"""Probes, by the kubelet's rules: what is asked, what an answer is, and when answers count."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.ports import free_port
from tests.support.runner_scene import ALWAYS, AT_ONCE, Runner, container, holds, run
from wherry_runner.execution.engine import ModuleKind
from wherry_runner.http_counts import HttpCounts
from wherry_runner.lives.asking import Target
from wherry_runner.lives.probing import Count, attempt
from wherry_runner.protocol import HttpServer, Probe, ProbeHeader, Running, WorkloadStatus

EVERY_SECOND = {"period_seconds": 1, "failure_threshold": 1}


@pytest.mark.parametrize(
    ("success", "failure", "results", "meanings"),
    [
        (1, 3, "fffs", [None, None, False, True]),
        (1, 3, "ffsff", [None, None, True, None, None]),
        (2, 1, "sfss", [None, False, None, True]),
        (1, 1, "sf", [True, False]),
        (1, 2, "ffff", [None, False, False, False]),
    ],
)
def test_only_so_many_results_in_a_row_count(
    success: int, failure: int, results: str, meanings: list[bool | None]
) -> None:
    count = Count(success_threshold=success, failure_threshold=failure)
    assert [count.note(result == "s") for result in results] == meanings


@asynccontextmanager
async def answering(answer: bytes, seen: list[bytes]) -> AsyncIterator[int]:
    """A server that answers so; without an answer it keeps its client waiting."""
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            seen.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            if not answer:
                await reader.read()
        writer.transport.abort()
        over.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]
        await over.wait()
        await asyncio.sleep(0)  # the transport closes its socket in the next turn


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", ""),
        (b"HTTP/1.1 204\r\n\r\n", ""),
        (b"HTTP/1.1 301 Moved\r\nLocation: http://elsewhere/\r\n\r\n", ""),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "HTTP probe failed with statuscode: 404"),
        (b"HTTP/1.1 500 Oh\r\n\r\n", "HTTP probe failed with statuscode: 500"),
        (b"HTTP/1.1 199 Early\r\n\r\n", "HTTP probe failed with statuscode: 199"),
        (b"hello\r\n", 'Get "URL": malformed HTTP response'),
        (b"\r\n", 'Get "URL": malformed HTTP response'),
        (b"", 'Get "URL": context deadline exceeded (Client.Timeout exceeded while awaiting headers)'),
    ],
)
def test_an_answer_by_http_is_judged_by_its_status(answer: bytes, failure: str) -> None:
    async def scenario() -> None:
        seen: list[bytes] = []
        async with answering(answer, seen) as port:
            target = Target(address="127.0.0.1", port=lambda: port, named=lambda: port, serves=lambda: True)
            headers = (ProbeHeader(name="X-Who", value="me"), ProbeHeader(name="host", value="web.example"))
            said = await attempt(Probe(port=port, path="/healthz?full=1", headers=headers), target)
            assert said == failure.replace("URL", f"http://127.0.0.1:{port}/healthz?full=1")
            lines = seen[0].decode().split("\r\n")
            assert lines[0] == "GET /healthz?full=1 HTTP/1.1"
            assert {"host: web.example", "X-Who: me", "Connection: close"} <= set(lines)

    run(scenario())


def test_nobody_else_is_asked() -> None:
    async def scenario() -> None:
        for target in (
            Target(address="127.0.0.1", port=lambda: None, named=lambda: None, serves=lambda: True),
            Target(address="127.0.0.1", port=lambda: 1234, named=lambda: 1234, serves=lambda: True),
        ):
            refused = "dial tcp 127.0.0.1:80: connect: connection refused"
            assert await attempt(Probe(port=80, path="/"), target) == f'Get "http://127.0.0.1:80/": {refused}'
            assert await attempt(Probe(port=80), target) == refused
        serving = Target(address="127.0.0.1", port=lambda: 80, named=lambda: 80, serves=lambda: True)
        assert await attempt(Probe(port=80), serving) == ""
        moved = Target(address="127.0.0.1", port=lambda: 20_001, named=lambda: 80, serves=lambda: True)
        answers = [await attempt(Probe(port=port), moved) for port in (80, 20_001, None)]
        assert answers == ["", "dial tcp 127.0.0.1:20001: connect: connection refused", ""]
        silent = Target(address="127.0.0.1", port=lambda: 80, named=lambda: 80, serves=lambda: False)
        assert await attempt(Probe(port=80), silent) == "dial tcp 127.0.0.1:80: connect: connection refused"

    run(scenario())


@pytest.mark.parametrize("path", ["", "x", "/a b", "/a\r\nHost: b", "/\x00", "/é"])
def test_a_path_can_not_hold_a_line_of_its_own(path: str) -> None:
    with pytest.raises(ValueError):
        Probe(port=80, path=path)


@pytest.mark.parametrize(("name", "value"), [("", "x"), ("a b", "x"), ("a", "x\r\nb: c"), ("a:", "x")])
def test_a_header_can_not_hold_a_line_of_its_own(name: str, value: str) -> None:
    with pytest.raises(ValueError):
        ProbeHeader(name=name, value=value)


def serving_runner(folder: Path) -> Runner:
    runner = Runner(folder, back_off=AT_ONCE)
    runner.modules.kind = ModuleKind.HTTP
    return runner


def test_a_container_is_ready_when_its_readiness_probe_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner, port, closed = serving_runner(tmp_path), free_port(), free_port()
        spec = container(http=HttpServer(port=port), readiness_probe=Probe(port=closed, **EVERY_SECOND))
        runner.put(containers=(spec,))
        await runner.running()
        (await runner.engine.guest(0)).serve()
        right = container(http=HttpServer(port=port), readiness_probe=Probe(port=port, **EVERY_SECOND))
        runner.put(id="w2", containers=(container(http=HttpServer()),))
        await runner.running(id="w2")
        (await runner.engine.guest(1)).serve()
        await runner.when(lambda status: status.containers[0].ready, "w2")
        assert not runner.life().status.ready, "another port's probe never succeeds"
        runner.put(sequence=2, content="c2", containers=(right,))
        (await runner.engine.guest(0)).exit(1)
        await runner.running(restarts=1)
        (await runner.engine.guest(2)).serve()
        await runner.when(lambda status: status.containers[0].ready)

    run(scenario())


def test_a_container_that_fails_its_startup_or_liveness_probe_runs_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        for kind in ("startup", "liveness"):
            runner, port = serving_runner(tmp_path / kind), free_port()
            probe = Probe(port=port, path="/", **EVERY_SECOND)
            probes: dict[str, Any] = {f"{kind}_probe": probe}
            runner.put(policy=ALWAYS, containers=(container(http=HttpServer(port=port), **probes),))
            await runner.running()
            guest = await runner.engine.guest(0)

            def again(status: WorkloadStatus) -> bool:
                return status.containers[0].restart_count >= 1 and isinstance(status.containers[0].state, Running)

            status = await runner.when(again)
            assert guest.killed
            last = status.containers[0].last_terminated
            assert last is not None
            assert last.message.startswith(f"Container main failed {kind} probe, will be restarted: Get ")
            assert "Client.Timeout exceeded" in last.message

    run(scenario())


def test_until_its_startup_probe_succeeds_a_container_has_not_started(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner, port = serving_runner(tmp_path), free_port()
        probe = Probe(port=port, period_seconds=1, failure_threshold=100)
        runner.put(containers=(container(http=HttpServer(port=port), startup_probe=probe),))
        status = await runner.running()
        assert status.containers[0].started is False
        (await runner.engine.guest(0)).serve()
        await holds(lambda: runner.life().status.started is True)

    run(scenario())


@pytest.mark.parametrize("told", [True, False], ids=["told-that-it-serves", "asked-before-that-was-told"])
def test_a_server_that_fails_its_liveness_probe_has_time_to_finish(tmp_path: Path, told: bool) -> None:
    async def scenario() -> None:
        runner, port = serving_runner(tmp_path), free_port()
        probe = Probe(port=port, path="/", grace_seconds=1, **EVERY_SECOND)
        runner.put(containers=(container(http=HttpServer(port=port), liveness_probe=probe),))
        await runner.running()
        guest = await runner.engine.guest(0)
        if told:
            guest.serve()
        else:
            guest.counts = HttpCounts(answers=(0, 0, 0, 0, 1))
        await holds(lambda: guest.drained)
        await holds(lambda: guest.killed)
        await runner.running(restarts=1)

    run(scenario())


def test_failures_are_told_when_they_are_new_and_not_each_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner, port, closed = serving_runner(tmp_path), free_port(), free_port()
        probe = Probe(port=closed, period_seconds=1)
        runner.put(containers=(container(http=HttpServer(port=port), readiness_probe=probe),))
        await runner.running()
        status = await runner.when(lambda status: bool(status.containers[0].probe_failures))
        (failure,) = status.containers[0].probe_failures
        refused = f"dial tcp 127.0.0.1:{closed}: connect: connection refused"
        assert (failure.probe, failure.message, failure.count) == ("Readiness", refused, 1)
        probes = runner.life()._beside._probes
        await holds(lambda: probes is not None and probes._counts["Readiness"] >= 3)
        assert runner.life().status.probe_failures == (failure,), "in the same words it is not told again at once"

    run(scenario())
