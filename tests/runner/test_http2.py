"""HTTP/2 by prior knowledge on a server's port: the same answers and bounds as HTTP/1.1, and what only HTTP/2 has."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from h2.errors import ErrorCodes

from tests.runner.conftest import Play
from tests.runner.harness import Bench, until
from tests.runner.test_http import BOUNDS, GREETING, SHORT, Server, served
from tests.support.http2 import Answer, GoneError, Http2Client, http2

pytestmark = pytest.mark.native_only
"""The only one that serves."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@pytest.fixture(params=[False, True], ids=["0.2", "0.3"])
def wasi_03(request: pytest.FixtureRequest) -> bool:
    """Servers of both versions of WASI keep to the same."""
    return bool(request.param)


def greets(answer: Answer) -> bool:
    return (answer.reset, answer.status, answer.body.decode()) == (None, 200, GREETING)


async def _is_done(server: Server) -> None:
    await until(lambda: server.counts.requests == 0)


def test_one_connection_has_many_requests_at_once(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened) as server, http2(server.port) as client:
            waiting = [asyncio.create_task(client.ask("/wait")) for _ in range(50)]
            await until(lambda: server.counts.requests == 50)
            assert greets(await client.ask())
            assert all([greets(await each) for each in waiting])
            assert all(map(greets, await asyncio.gather(*(client.ask() for _ in range(500)))))
            await until(lambda: server.counts.answers[1] == 551)
            assert server.counts.connections == 1
            assert await server.get() == (200, GREETING)  # HTTP/1.1 on the same port

    play(scenario)


def test_a_body_goes_in_and_comes_out_and_a_trailer_follows(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened) as server, http2(server.port) as client:
            data = bytes(range(256)) * 4096
            answer = await client.ask("/echo", method="POST", body=data)
            assert (answer.status, answer.body) == (200, data)
            answer = await client.ask("/grpc", headers={"te": "trailers", "content-type": "application/grpc"})
            assert greets(answer)
            assert answer.trailers == {"grpc-status": "0"}

    play(scenario)


def test_what_fails_is_told_and_the_other_requests_go_on(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened, bounds=dataclasses.replace(BOUNDS, request_seconds=2.0)) as server:
            async with http2(server.port) as client:
                never = asyncio.create_task(client.ask("/never"))
                assert (await client.ask("/trap")).status == 500
                half = await client.ask("/half")
                assert (half.status, half.reset) == (200, ErrorCodes.INTERNAL_ERROR)
                spinning = asyncio.create_task(client.ask("/spin"))
                assert greets(await client.ask())
                assert (await never).status == 504
                assert (await spinning).status == 504
                assert greets(await client.ask())
            assert (server.counts.failed, server.counts.overdue) == (2, 2)

    play(scenario)


def test_requests_beyond_the_bound_are_refused_whichever_way_they_come(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with (
            served(opened, bounds=dataclasses.replace(BOUNDS, max_requests=3)) as server,
            http2(server.port) as client,
            http2(server.port) as other,
        ):
            assert greets(await client.ask())
            assert client.http.remote_settings.max_concurrent_streams == 3
            waiting = [asyncio.create_task(client.ask("/wait")) for _ in range(3)]
            await until(lambda: server.counts.requests == 3)
            assert (await other.ask()).status == 503
            assert (await server.get())[0] == 503
            assert all([greets(await each) for each in waiting])

    play(scenario)


def test_a_request_that_its_client_takes_back_is_ended(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened) as server, http2(server.port) as client:
            stream = await client.begin("/never")
            await until(lambda: server.counts.requests == 1)
            client.http.reset_stream(stream)
            client.flush()
            await _is_done(server)
            assert greets(await client.ask())

    play(scenario)


def test_who_takes_requests_back_at_once_without_end_is_cut_off(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened) as server:
            async with http2(server.port) as client:
                assert greets(await client.ask())
                head = [(":method", "GET"), (":path", "/"), (":scheme", "http"), (":authority", "localhost")]
                for _ in range(2000):
                    stream = client.http.get_next_available_stream_id()
                    client.http.send_headers(stream, head, end_stream=True)
                    client.http.reset_stream(stream)
                client.flush()
                await client.closed()
                assert client.farewell is not None
                assert client.farewell.error_code == ErrorCodes.ENHANCE_YOUR_CALM
            await _is_done(server)
            assert await server.get() == (200, GREETING)

    play(scenario)


def test_huge_heads_are_refused(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened, bounds=dataclasses.replace(BOUNDS, head_bytes=8192)) as server:
            async with http2(server.port) as client:
                huge = await client.ask(headers={"x": "a" * 20_000})
                assert huge.reset is not None or huge.status == 431
                assert greets(await client.ask())
            # One that never ends: each frame is within its bounds.
            reader, writer = await server.connect()
            writer.write(PREFACE + _frame(4, 0, 0, b"") + _frame(1, 0, 1, b"\x00\x01a\x7f\x80\x7f"[:3]))
            piece = _frame(9, 0, 1, b"\x00\x01a\x01b" * 3000)
            try:
                while True:
                    writer.write(piece)
                    await writer.drain()
            except ConnectionError:
                pass
            finally:
                writer.close()
            del reader
            assert await server.get() == (200, GREETING)

    play(scenario)


def test_idle_and_slow_clients_are_cut_off(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened, bounds=SHORT) as server:
            for begun in (
                PREFACE[:20],
                PREFACE + _frame(4, 0, 0, b""),
                PREFACE + _frame(4, 0, 0, b"") + _frame(1, 0, 1, b"\x82"),  # a head that does not go on
            ):
                reader, writer = await server.connect()
                writer.write(begun)
                await reader.read()
                writer.close()
            async with http2(server.port) as client:
                assert greets(await client.ask())
                await client.closed()
                assert client.farewell is not None
                assert client.farewell.error_code == ErrorCodes.NO_ERROR
            await until(lambda: server.counts.connections == 0)

    play(scenario)


def test_a_client_that_takes_nothing_of_its_answer_is_cut_off(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened, bounds=SHORT) as server:
            async with http2(server.port) as client:
                client.http.update_settings({4: 1})  # a window of one byte
                client.flush()
                stream = await client.begin("/")
                client.http.acknowledge_received_data = lambda *_: None  # type: ignore[method-assign]
                with pytest.raises(ConnectionError):
                    await client.answer(stream)
            await until(lambda: server.counts.connections == 0)
            assert server.counts.requests == 0

    play(scenario)


def test_no_request_is_lost_when_a_server_is_replaced(play: Play) -> None:
    """Clients go on with the next server when theirs says farewell; what it took before it answers."""

    async def scenario(opened: Bench) -> None:
        async with served(opened) as old, served(opened) as new:
            ports, answered = [old.port], 0

            async def use(client: Http2Client) -> None:
                nonlocal answered
                while answered < 3000:
                    assert greets(await client.ask())
                    answered += 1

            async def go_on() -> None:
                while answered < 3000:
                    async with http2(ports[-1]) as client:
                        for end in await asyncio.gather(*(use(client) for _ in range(8)), return_exceptions=True):
                            assert end is None or isinstance(end, GoneError), end

            going_on = [asyncio.create_task(go_on()) for _ in range(4)]
            await until(lambda: old.counts.answers[1] > 500)
            ports.append(new.port)
            old.running.guest.drain()
            end = (await opened.end(old.running)).exit
            assert (end.exit_code, end.reason) == (0, "Completed")
            await asyncio.gather(*going_on)
            assert end.http is not None
            assert end.http.answers[1] >= 500
            assert new.counts.answers[1] > 0
            assert end.http.answers[1] + new.counts.answers[1] == answered

    play(scenario)


def test_a_drain_waits_for_what_was_begun_and_not_for_who_says_nothing(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened) as server, http2(server.port) as client:
            waiting = [asyncio.create_task(client.ask("/wait")) for _ in range(10)]
            await until(lambda: server.counts.requests == 10)
            _, silent = await server.connect()
            silent.write(PREFACE + _frame(4, 0, 0, b""))
            await until(lambda: server.counts.connections == 2)
            server.running.guest.drain()
            assert all([greets(await each) for each in waiting])
            assert (await opened.end(server.running)).exit.exit_code == 0
            silent.close()

    play(scenario)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload
