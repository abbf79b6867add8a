"""What only servers of WASI 0.3 have (the rest is in test_http.py and its like, for both versions): bodies that are handed
on, guests that go on when they have answered. And what modules of 0.3 reach."""

from __future__ import annotations

import asyncio
import itertools

import aiohttp
import pytest

from tests.guests.servers import SERVER
from tests.guests.servers_03 import SERVER_03
from tests.guests.sockets_03 import LOOKUP_FAILED, looks_up, opens
from tests.runner.conftest import Play
from tests.runner.harness import Bench, until
from tests.runner.test_http import GREETING, SHORT, served
from tests.runner.test_network import FIELD, HERE, PRIVATE, ask, complaints, grant, refused, rule, web
from tests.support.dns import NameServer, serving
from wherry_runner.execution.engine import NetworkGrant, StartRefused
from wherry_runner.modules.compile import Refused

pytestmark = pytest.mark.native_only
"""The only one that serves."""

DENIED, PROHIBITED = "15", "04"
"""Places of `HTTP-request-denied` and of `destination-IP-prohibited` among the error codes."""


@pytest.fixture
def wasi_03() -> bool:
    return True


def test_a_body_that_is_handed_on_comes_out(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened) as server:
            data = bytes(range(256)) * 4000
            async with server.client.post(server.url + "/forward", data=data) as answer:
                assert (answer.status, await answer.read()) == (200, data)
            assert await server.get("/forward") == (200, "")

    play(scenario)


def test_a_body_that_is_handed_on_ends_with_its_requests_time(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened, bounds=SHORT) as server:
            said = await server.asks(b"POST /forward HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf")
            assert b"200 OK" in said
            assert b"half" in said
            assert not said.endswith(b"0\r\n\r\n"), "the last chunk of a complete body"
            await until(lambda: server.counts.requests == 0 and server.counts.connections == 0)
            assert server.counts.overdue == 1

    play(scenario)


def test_an_answer_without_an_end_is_cut_off_and_never_looks_complete(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened, bounds=SHORT) as server:
            with pytest.raises(aiohttp.ClientPayloadError):
                await server.get("/keep")
            await until(lambda: server.counts.requests == 0)
            assert server.counts.overdue == 1
            assert "GET /keep: not done within 1 s" in await server.log()

    play(scenario)


def test_a_guest_goes_on_when_its_answer_is_over_and_is_waited_for_at_the_end(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened) as server:
            assert await server.get("/afterwards") == (200, GREETING)
            await until(lambda: server.counts.requests == 0)
            server.running.guest.drain()
            outcome = await opened.end(server.running)
            assert (outcome.exit.exit_code, outcome.text("stdout")) == (0, "afterwards\n")

    play(scenario)


def test_a_guest_is_told_whom_a_request_is_for(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened) as server:
            async with server.client.get(server.url + "/uri", headers={"Host": "name.test:8080"}) as answer:
                assert (answer.status, await answer.text()) == (200, "name.test:8080")
            said = await server.asks(b"GET /uri HTTP/1.1\r\nHost: a b\r\nConnection: close\r\n\r\n")
            assert said.startswith(b"HTTP/1.1 400 ")
            assert server.counts.failed == 0

    play(scenario)


def test_an_error_code_is_500_and_is_told_in_the_log(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened) as server:
            assert await server.get("/bad") == (500, "the guest answered with an error")
            assert "the guest answered with an error: ErrorCode::ConfigurationError" in await server.log()

    play(scenario)


@pytest.mark.parametrize("makes", ["open", "new-set", "fields"])
def test_a_guest_that_makes_things_without_end_is_ended(play: Play, makes: str) -> None:
    module = SERVER_03.replace("(loop $forever (br $forever))", f"(loop $forever (drop (call ${makes})) (br $forever))")

    async def scenario(opened: Bench) -> None:
        async with served(opened, module=module) as server:
            assert (await server.get("/spin"))[0] == 500
            assert await server.get() == (200, GREETING)
            assert "GET /spin: a host call failed: cannot allocate another handle" in await server.log()

    play(scenario)


def test_a_guest_that_gives_way_for_ever_is_given_up(play: Play) -> None:
    yielding = "(i32.const 1)"
    module = SERVER_03.replace("(call $do (local.get $request)) (i32.const 0))", f"{yielding})")
    module = module.replace("(result i32) unreachable)", f"(result i32) {yielding})")
    assert module.count(f"(result i32) {yielding})") == 2

    async def scenario(opened: Bench) -> None:
        async with served(opened, module=module, bounds=SHORT) as server:
            answers = await asyncio.gather(*(server.get() for _ in range(3)))
            assert answers == [(504, "the guest did not answer in time")] * 3
            await until(lambda: server.counts.requests == 0)

    play(scenario)


def test_servers_of_02_are_served_beside_them(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened, module=SERVER) as server:
            answers = await asyncio.gather(*(server.get("/log") for _ in range(50)))
            assert set(answers) == {(200, GREETING)}
            async with server.client.post(server.url + "/echo", data=b"x" * 100_000) as answer:
                assert await answer.read() == b"x" * 100_000
            assert (await server.get("/trap"))[0] == 500
            assert "asked" in await server.log()

    play(scenario)


def test_a_server_sends_requests_where_it_may(play_apart: Play) -> None:
    async def scenario(opened: Bench) -> None:
        names = NameServer({name: itertools.repeat([HERE]) for name in ("api.test", "other.test")})
        async with serving(names), web(head="204 No Content") as page:
            network = NetworkGrant(destinations=(rule("api.test", page),), nameservers=(names.address,))
            async with served(opened, network=network) as server:
                assert await server.get(f"/oapi.test:{page}") == (204, "")
                assert await server.get(f"/oother.test:{page}") == (200, DENIED)
                assert await server.get(f"/o{PRIVATE}:{page}") == (200, PROHIBITED)
                assert set(await asyncio.gather(*(server.get(f"/oapi.test:{page}") for _ in range(50)))) == {(204, "")}
                server.running.guest.drain()
                ended = await opened.end(server.running)
                assert refused(ended) == {"name": 1, "address": 1}
                assert f"HTTP to {PRIVATE}:{page} is refused: {FIELD} does not name it" in complaints(ended)
            assert set(names.asked) == {"api.test"}, "no other name was told to anybody"
            async with served(opened) as server:
                assert await server.get(f"/oapi.test:{page}") == (200, DENIED)
                assert await server.get(f"/o127.0.0.1:{page}") == (200, PROHIBITED)
                server.running.guest.drain()
                ended = await opened.end(server.running)
                assert f"HTTP to 127.0.0.1:{page} is refused: {FIELD} grants nothing" in complaints(ended)

    play_apart(scenario)


def test_an_answer_that_is_handed_on_comes_whole(play_apart: Play) -> None:
    data = bytes(range(256)) * 4000

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(data))
        for begin in range(0, len(data), 100_000):
            writer.write(data[begin : begin + 100_000])
            await writer.drain()
        writer.close()

    async def scenario(opened: Bench) -> None:
        page = await asyncio.start_server(answer, HERE, 0)
        port = page.sockets[0].getsockname()[1]
        async with page, served(opened, network=grant(rule(f"{HERE}/32", port))) as server:
            async with server.client.get(f"{server.url}/o{HERE}:{port}") as answered:
                assert (answered.status, await answered.read()) == (200, data)
            await until(lambda: server.counts.requests == 0)

    play_apart(scenario)


def test_a_command_sends_requests_where_it_may(play_apart: Play) -> None:
    async def scenario(opened: Bench) -> None:
        names = NameServer({"api.test": itertools.repeat([HERE]), "bad.test": itertools.repeat(["127.0.0.1"])})
        async with serving(names), web() as page, web("127.0.0.1") as inner:
            rules = (rule("api.test", page), rule("bad.test", inner))
            network = NetworkGrant(destinations=rules, nameservers=(names.address,))
            assert (await ask(opened, f"http://api.test:{page}", network))[0] == 2
            answer, ended = await ask(opened, f"http://bad.test:{inner}", network)
            assert (answer, refused(ended)) == ("destination-IP-prohibited", {"address": 1}), "rebinding"
            for literal in ("127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"):
                answer, _ = await ask(opened, f"http://{literal}:{inner}", grant(rule("0.0.0.0/0", inner)))
                assert answer == "destination-IP-prohibited", literal
            answer, ended = await ask(opened, f"http://api.test:{page}", None)
            assert (answer, refused(ended)) == ("HTTP-request-denied", {"name": 1})

    play_apart(scenario)


def test_names_and_sockets_are_decided_as_those_of_02_are(play_apart: Play) -> None:
    async def scenario(opened: Bench) -> None:
        names = NameServer({name: itertools.repeat([HERE]) for name in ("api.test", "other.test")})
        async with serving(names):
            network = NetworkGrant(destinations=(rule("api.test", 80),), nameservers=(names.address,))
            found = await opened.run(looks_up("api.test"), network=network)
            assert found.exit.exit_code == int(HERE.rpartition(".")[2]), found.exit
            denied = await opened.run(looks_up("other.test"), network=network)
            assert (denied.exit.exit_code, refused(denied)) == (LOOKUP_FAILED, {"name": 1})
            assert complaints(denied) == [f"looking up other.test is refused: {FIELD} does not name it"]
            assert set(names.asked) == {"api.test"}
            for kind in ("tcp", "udp"):
                assert (await opened.run(opens(kind), network=network)).exit.exit_code == 1
                denied = await opened.run(opens(kind))
                assert (denied.exit.exit_code, refused(denied)) == (0, {"socket": 1})
                assert complaints(denied) == [f"a {kind.upper()} socket is refused: {FIELD} grants nothing"]

    play_apart(scenario)


def test_what_stands_before_another_handler_is_told_what_it_lacks(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        before_another = SERVER_03.replace(
            "(core module $libc", '(import "wasi:http/handler@0.3.0" (instance))\n  (core module $libc', 1
        )
        with pytest.raises(StartRefused, match=r"imports wasi:http/handler@0\.3\.0, the handler behind it"):
            async with served(opened, module=before_another):
                pass

    play(scenario)


def test_drafts_of_it_are_refused(play: Play) -> None:
    async def scenario(opened: Bench) -> None:
        draft = SERVER_03.replace("wasi:http/handler@0.3.0", "wasi:http/handler@0.3.0-rc-2026-03-15")
        with pytest.raises(Refused, match=r"is an HTTP server of a draft of WASI 0\.3"):
            await opened.compile(draft)
        with pytest.raises(
            StartRefused, match=r"imports wasi:http/types@0\.3\.0-rc-2026-03-15, which no runner provides"
        ):
            async with served(
                opened, module=SERVER_03.replace("wasi:http/types@0.3.0", "wasi:http/types@0.3.0-rc-2026-03-15")
            ):
                pass

    play(scenario)
