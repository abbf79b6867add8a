"""Clients that are slow, silent or many, against a real server on loopback."""

from __future__ import annotations

import asyncio
import datetime
import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from tests.cluster.pki import CertificateAuthority
from tests.support.runner_scene import INFO, Runner, container, files, put, run
from wherry_runner.metrics import Metrics
from wherry_runner.resources.usage import Usage
from wherry_runner.serving import api
from wherry_runner.serving.condition import Condition
from wherry_runner.serving.health import Health
from wherry_runner.serving.listening import Server, serve
from wherry_runner.serving.tls import Role, ServerTls

HOST = "127.0.0.1"


@asynccontextmanager
async def serving(app: web.Application, **kwargs: float) -> AsyncIterator[Server]:
    server = await serve(app, HOST, 0, **kwargs)  # type: ignore[arg-type]
    try:
        yield server
    finally:
        await server.close()


def probes() -> web.Application:
    return api.health_application(Health(ready={}, works={}))


async def said(server: Server, request: bytes) -> bytes:
    """Everything that comes back until the server closes the connection."""
    reader, writer = await asyncio.open_connection(HOST, server.port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer


def test_who_sends_no_headers_or_half_of_them_is_cut_off() -> None:
    async def scenario() -> None:
        async with serving(probes(), idle_seconds=0.05) as server:
            assert await said(server, b"") == b""
            assert await said(server, b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Slow: ") == b""
            whole = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
            assert b"200 OK" in await said(server, whole + whole[:20])  # and so is a second request

    run(scenario())


def test_who_begins_no_handshake_is_cut_off(tmp_path: Path) -> None:
    ca = CertificateAuthority(tmp_path, "ca")
    files = ca.issue("wherry-runner", dns=["wherry-runner"], server=True)
    tls = ServerTls(cert_file=files.cert, key_file=files.key, client_ca_file=ca.cert_file)

    async def scenario() -> None:
        server = await serve(probes(), HOST, 0, tls.context, handshake_seconds=0.05)
        assert await said(server, b"") == b""
        await server.close()

    run(scenario())


def test_an_expired_client_gets_no_answer(tmp_path: Path) -> None:
    ca = CertificateAuthority(tmp_path, "ca")
    files = ca.issue("wherry-runner", dns=["wherry-runner"], server=True)
    client = ca.issue("wherry-operator", client=True, lifetime=datetime.timedelta(seconds=-1))
    tls = ServerTls(cert_file=files.cert, key_file=files.key, client_ca_file=ca.cert_file)
    context = ssl.create_default_context(cafile=ca.cert_file)
    context.load_cert_chain(client.cert, client.key)

    async def scenario() -> None:
        server = await serve(probes(), HOST, 0, tls.context)
        try:
            reader, writer = await asyncio.open_connection(
                HOST, server.port, ssl=context, server_hostname="wherry-runner"
            )
            writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await reader.read() == b""
        except (ssl.SSLError, ConnectionError):
            pass  # TLS 1.3 tells it with the first read, or at once
        await server.close()

    run(scenario())


def operator_application(runner: Runner, counts: Metrics | None = None) -> web.Application:
    usage = Usage(running=list, executor_pid=lambda: None, workloads=lambda: 0, requested=lambda: (0, 0))
    return api.application(
        runner.supervisor,
        INFO,
        usage=usage,
        condition=Condition(memory=(), disk=(), processes=(), images=list),
        counts=counts or Metrics(),
        role_of=lambda _: Role.OPERATOR,
    )


CHANGES = 10_000


def test_a_reader_of_the_watch_that_stalls_for_ten_thousand_changes_gets_the_newest_state(tmp_path: Path) -> None:
    """What waits for it is bounded by the workloads there are, and by a socket's buffers: not by what has happened."""
    long = "x" * 500

    async def scenario() -> None:
        runner = Runner(tmp_path, max_workloads=20)
        counts = Metrics()
        async with serving(operator_application(runner, counts)) as server:
            sock = socket.create_connection((HOST, server.port))
            reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 14)
            writer.write(b"GET /v1/watch HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            while b"synced" not in await reader.readline():
                pass
            for sequence in range(1, CHANGES // 20 + 1):
                for number in range(20):
                    runner.put(id=f"w{number}", sequence=sequence, content=f"{long[:100]}{sequence}")
                await asyncio.sleep(0)
            assert b"wherry_runner_watch_readers 1.0" in counts.text()
            newest: dict[str, int] = {}
            events = 0
            last = CHANGES // 20
            while set(newest.values()) != {last} or len(newest) < 20:
                line = await reader.readline()
                if line.startswith(b'{"event":"status"'):
                    status = json.loads(line)["status"]
                    assert status["sequence"] >= newest.get(status["id"], 0), "an older state after a newer one"
                    newest[status["id"]] = status["sequence"]
                    events += 1
            assert events < CHANGES
            writer.close()

        await runner.die()

    run(scenario())


def test_half_a_body_holds_up_nobody(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        async with serving(operator_application(runner)) as server:
            stalled = []
            for number in range(50):
                reader, writer = await asyncio.open_connection(HOST, server.port)
                head = f"PUT /v1/workloads/w{number} HTTP/1.1\r\nHost: x\r\nContent-Length: 60000000\r\n\r\n"
                writer.write(head.encode() + b"{" * 50_000)
                stalled.append((reader, writer))
            body = put(containers=(container(),), volumes=(files(a="x" * 1_500_000),)).to_json()
            head = f"PUT /v1/workloads/whole HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            answer = await said(server, head.encode() + body)
            assert answer.startswith(b"HTTP/1.1 200 OK"), answer[:500]
            for _, writer in stalled:
                writer.close()
        await runner.die()

    run(scenario())


def test_a_body_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    async def scenario() -> None:
        runner = Runner(tmp_path)
        counts = Metrics()
        async with serving(operator_application(runner, counts), idle_seconds=1) as server:
            reader, writer = await asyncio.open_connection(HOST, server.port)
            writer.write(b"PUT /v1/workloads/w HTTP/1.1\r\nHost: x\r\nContent-Length: 70000000\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 413 ")
            assert b'"reason":"TooLarge","message":"the body is over 64 MiB"' in await reader.read(1000)
            assert b'wherry_runner_refusals_total{reason="TooLarge"} 1.0' in counts.text()
            writer.close()
        await runner.die()

    run(scenario())
