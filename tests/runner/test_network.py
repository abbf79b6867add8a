"""What guests reach, and what not: by sockets and by HTTP, with rules and against them, on a machine's network of its own."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.cluster.pki import CertificateAuthority
from tests.guests import build
from tests.guests.requests import outcome, sends, sends_many
from tests.guests.requests_03 import sends_03
from tests.runner.conftest import Play
from tests.runner.harness import Bench, Outcome, bench
from tests.support import apart
from tests.support.dns import NameServer, serving
from wherry_runner.execution.engine import (
    Destination,
    Limits,
    NetworkFields,
    NetworkGrant,
    ProtectedNetwork,
    StartRefused,
)
from wherry_runner.network_counts import REFUSALS

pytestmark = pytest.mark.native_only
"""The only one that has a network to give."""

HERE, PRIVATE = apart.ADDRESSES
ANY_PORT = (1, 65_535)
FIELD = NetworkFields().allowed_hosts

GREETING = "hello from outside"

of_both_versions = pytest.mark.parametrize("wasi_03", [False, True], ids=["0.2", "0.3"])


@pytest.fixture(scope="session")
def reach() -> bytes:
    """The guest that its arguments send out (`tests/guests/python/reach.py`)."""
    return build.python("reach")


def rule(host: str, port: int | tuple[int, int]) -> Destination:
    ports = port if isinstance(port, tuple) else (port, port)
    return Destination(network=host, ports=ports) if "/" in host else Destination(name=host, ports=ports)


def grant(*rules: Destination, lookups: bool = True, protected: tuple[ProtectedNetwork, ...] = ()) -> NetworkGrant:
    return NetworkGrant(destinations=rules, lookups=lookups, nameservers=("127.0.0.1:1",), protected=protected)


@asynccontextmanager
async def greeter(address: str = HERE, port: int = 0) -> AsyncIterator[int]:
    """Greets who connects by TCP, and answers who sends by UDP, on one port."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING.encode())
        await writer.drain()
        writer.close()

    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
            self.transport = transport

        def datagram_received(self, data: bytes, sender: tuple[str, int]) -> None:
            self.transport.sendto(GREETING.encode(), sender)

    server = await asyncio.start_server(greet, address, port)
    port = server.sockets[0].getsockname()[1]
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Echo, local_addr=(address, port))
    try:
        yield port
    finally:
        transport.close()
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def web(
    address: str = HERE, *, head: str = "200 OK", tls: ssl.SSLContext | None = None, together: int = 1
) -> AsyncIterator[int]:
    """Answers HTTP, once so many requests are there."""
    there, all_there = itertools.count(1), asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            if next(there) >= together:
                all_there.set()
            await all_there.wait()
            writer.write(f"HTTP/1.1 {head}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, address, 0, ssl=tls, backlog=1000)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


async def run(opened: Bench, module: bytes | str, *deeds: str, network: NetworkGrant | None) -> Outcome:
    """Run a guest to its end; what was refused is checked against what its log says."""
    running = await opened.start(module, *deeds, network=network, limits=Limits(memory_bytes=256 << 20))
    return await opened.end(running)


def said(ended: Outcome) -> dict[str, str]:
    """What it said of each deed."""
    assert ended.exit.exit_code == 0, (ended.exit, ended.text())
    return dict(line.split(": ", 1) for line in ended.text("stdout").splitlines())


def refused(ended: Outcome) -> dict[str, int]:
    """What was refused, as far as anything was."""
    return {what: count for what, count in zip(REFUSALS, ended.exit.refused, strict=True) if count}


def complaints(ended: Outcome) -> list[str]:
    """What its log says of refusals."""
    lines = ended.text("stderr").splitlines()
    return [line.removeprefix("wherry: network: ") for line in lines if line.startswith("wherry: network: ")]


async def ask(opened: Bench, url: str, network: NetworkGrant | None) -> tuple[int | str, Outcome]:
    """What a request to `http://AUTHORITY` or `https://…` gives."""
    scheme, _, authority = url.partition("://")
    sending = sends_03 if opened.wasi_03 else sends
    ended = await run(opened, sending(authority, https=scheme == "https"), network=network)
    return outcome(ended.exit.exit_code), ended


def test_nothing_is_reached_without_a_grant(play: Play, reach: bytes) -> None:
    async def scenario(opened: Bench) -> None:
        async with greeter("127.0.0.1") as port:
            deeds = [f"tcp:127.0.0.1:{port}", f"udp:127.0.0.1:{port}", "lookup:localhost", "listen"]
            ended = await run(opened, reach, *deeds, network=None)
            assert all("rror " in text for text in said(ended).values()), ended.text()
            assert refused(ended) == {"socket": 3, "name": 1}
            assert f"a TCP socket is refused: {FIELD} grants nothing" in complaints(ended)
            assert f"looking up localhost is refused: {FIELD} grants nothing" in complaints(ended)
            answer, ended = await ask(opened, f"http://127.0.0.1:{port}", None)
            assert answer == "destination-IP-prohibited"
            assert complaints(ended) == [f"HTTP to 127.0.0.1:{port} is refused: {FIELD} grants nothing"]
            answer, ended = await ask(opened, "https://example.com", None)
            assert (answer, refused(ended)) == ("HTTP-request-denied", {"name": 1})

    play(scenario)


def test_a_name_is_reached_on_its_ports_and_nothing_else(play_apart: Play, reach: bytes) -> None:
    async def scenario(opened: Bench) -> None:
        server = NameServer({"api.test": itertools.repeat([HERE]), "other.test": itertools.repeat([PRIVATE])})
        async with serving(server), greeter() as port, greeter() as other, greeter(PRIVATE) as private, web() as page:
            rules = (rule("api.test", port), rule("api.test", page))
            network = NetworkGrant(destinations=rules, nameservers=(server.address,))
            deeds = [
                f"tcp:{HERE}:{port}",
                "lookup:api.test",
                f"tcp:API.test.:{port}",
                f"udp:api.test:{port}",
                f"connected:api.test:{port}",
                f"tcp:api.test:{other}",
                f"udp:api.test:{other}",
                "lookup:other.test",
                "lookup:sub.api.test",
                f"tcp:{PRIVATE}:{private}",
                "listen",
            ]
            ended = await run(opened, reach, *deeds, network=network)
            words = said(ended)
            assert words.pop("lookup:api.test") == HERE
            reached = {deed for deed, text in words.items() if text == GREETING}
            assert reached == {f"tcp:API.test.:{port}", f"udp:api.test:{port}", f"connected:api.test:{port}"}, words
            assert refused(ended) == {"address": 4, "name": 2, "socket": 1}
            assert f"TCP to {HERE}:{other} is refused: {FIELD} does not name it" in complaints(ended)
            assert f"UDP to {HERE}:{other} is refused: {FIELD} does not name it" in complaints(ended)
            assert set(server.asked) == {"api.test"}, "no other name was told to anybody"
            assert (await ask(opened, f"http://api.test:{page}", network))[0] == 2
            assert (await ask(opened, f"http://api.test:{other}", network))[0] == "HTTP-request-denied"
            assert (await ask(opened, f"http://{HERE}:{page}", network))[0] == "destination-IP-prohibited"

    play_apart(scenario)


def test_a_wildcard_covers_what_is_below_it(play_apart: Play, reach: bytes) -> None:
    async def scenario(opened: Bench) -> None:
        names = ("a.example.test", "a.b.example.test", "example.test", "badexample.test")
        server = NameServer({name: itertools.repeat([HERE]) for name in names})
        async with serving(server):
            network = NetworkGrant(destinations=(rule("*.example.test", 80),), nameservers=(server.address,))
            ended = await run(opened, reach, *(f"lookup:{name}" for name in names), network=network)
            found = {deed.partition(":")[2] for deed, text in said(ended).items() if text == HERE}
            assert found == {"a.example.test", "a.b.example.test"}
            assert set(server.asked) == found

    play_apart(scenario)


def test_addresses_and_networks_are_reached_on_their_ports(play_apart: Play, reach: bytes) -> None:
    async def scenario(opened: Bench) -> None:
        async with greeter(PRIVATE) as port, greeter() as public, web(PRIVATE) as page:
            network = grant(rule("10.1.0.0/16", (port, port)), rule(f"{PRIVATE}/32", page))
            deeds = [
                f"tcp:{PRIVATE}:{port}",
                f"udp:{PRIVATE}:{port}",
                f"tcp:{HERE}:{public}",
                f"tcp:{PRIVATE}:{public}",
            ]
            words = said(await run(opened, reach, *deeds, network=network))
            assert [words[deed] == GREETING for deed in deeds] == [True, True, False, False]
            assert (await ask(opened, f"http://{PRIVATE}:{page}", network))[0] == 2

    play_apart(scenario)


def test_dns_can_be_kept_from_the_guest_and_requests_go_on(play_apart: Play, reach: bytes) -> None:
    async def scenario(opened: Bench) -> None:
        server = NameServer({"api.test": itertools.repeat([HERE])})
        async with serving(server), web() as page:
            network = NetworkGrant(destinations=(rule("api.test", page),), nameservers=(server.address,), lookups=False)
            ended = await run(opened, reach, "lookup:api.test", network=network)
            assert server.asked == []
            assert complaints(ended) == ["looking up api.test is refused: spec.network.allowDNS is false"]
            assert (await ask(opened, f"http://api.test:{page}", network))[0] == 2

    play_apart(scenario)


def test_a_name_that_leads_to_this_machine_or_to_metadata_leads_nowhere(play_apart: Play, reach: bytes) -> None:
    """Rebinding: the name is allowed, and whoever answers for it answers something else."""

    async def scenario(opened: Bench) -> None:
        bad = [
            "127.0.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "::1",
            "::ffff:127.0.0.1",
            "fe80::1",
            "fd00:ec2::254",
            "224.0.0.1",
        ]
        server = NameServer({"bad.test": itertools.repeat(bad), "mixed.test": itertools.repeat(["127.0.0.1", HERE])})
        async with serving(server), greeter("127.0.0.1") as port, web("127.0.0.1") as page:
            rules = (rule("*.test", ANY_PORT), rule("0.0.0.0/0", ANY_PORT), rule("::/0", ANY_PORT))
            network = NetworkGrant(destinations=rules, nameservers=(server.address,))
            deeds = ["lookup:bad.test", "lookup:mixed.test", f"tcp:127.0.0.1:{port}", f"tcp:[::1]:{port}"]
            ended = await run(opened, reach, *deeds, network=network)
            words = said(ended)
            assert "rror " in words.pop("lookup:bad.test")
            assert words.pop("lookup:mixed.test") == HERE
            assert all("rror " in text for text in words.values())
            assert any("which is 169.254.169.254, is refused: this is link-local" in line for line in complaints(ended))
            answer, ended = await ask(opened, f"http://bad.test:{page}", network)
            assert (answer, refused(ended)) == ("destination-IP-prohibited", {"address": len(bad)})
            for literal in ("127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "[64:ff9b::127.0.0.1]"):
                assert (await ask(opened, f"http://{literal}:{page}", network))[0] == "destination-IP-prohibited", (
                    literal
                )
            for disguise in ("2130706433", "0x7f.1", "127.1", "localhost"):
                ended = await run(opened, sends(f"{disguise}:{page}"), network=network)
                assert outcome(ended.exit.exit_code) == "HTTP-request-denied", disguise

    play_apart(scenario)


def test_an_answer_is_asked_for_once_while_it_holds(play_apart: Play, reach: bytes) -> None:
    async def scenario(opened: Bench) -> None:
        for seconds, questions in ((30, 2), (0, 6)):
            server = NameServer({"api.test": itertools.repeat([HERE])}, seconds=seconds)
            async with serving(server), greeter() as port:
                network = NetworkGrant(destinations=(rule("api.test", port),), nameservers=(server.address,))
                deeds = [f"tcp:api.test:{port}", f"udp:api.test:{port}", "lookup:api.test"]
                words = said(await run(opened, reach, *deeds, network=network))
                assert list(words.values()) == [GREETING, GREETING, HERE]
                assert server.asked == ["api.test"] * questions

    play_apart(scenario)


def test_an_answer_that_changes_is_checked_each_time(play_apart: Play, reach: bytes) -> None:
    """What was allowed once is no permission for what the name leads to next."""

    async def scenario(opened: Bench) -> None:
        server = NameServer({"turns.test": iter([[HERE], ["127.0.0.1"], [PRIVATE]])})
        async with serving(server), greeter() as port, greeter("127.0.0.1", port), greeter(PRIVATE, port):
            network = NetworkGrant(destinations=(rule("turns.test", port),), nameservers=(server.address,))
            deeds = [f"tcp:turns.test:{port}", "lookup:turns.test", f"tcp:127.0.0.1:{port}", f"tcp:{PRIVATE}:{port}"]
            words = said(await run(opened, reach, *deeds, network=network))
            assert words[deeds[0]] == GREETING
            assert all("rror " in words[deed] for deed in deeds[1:]), words

    play_apart(scenario)


def test_what_the_runner_protects_needs_an_address_of_its_own(play_apart: Play, reach: bytes) -> None:
    async def scenario(opened: Bench) -> None:
        server = NameServer({"kubernetes.test": itertools.repeat([PRIVATE])})
        async with serving(server), greeter(PRIVATE) as port:
            protected = (ProtectedNetwork(network=f"{PRIVATE}/32", what="the API server's"),)
            wide = (rule("kubernetes.test", port), rule("10.0.0.0/8", port))
            deeds = [f"tcp:{PRIVATE}:{port}", "lookup:kubernetes.test"]
            network = NetworkGrant(destinations=wide, nameservers=(server.address,), protected=protected)
            ended = await run(opened, reach, *deeds, network=network)
            assert all("rror " in text for text in said(ended).values())
            why = f"this is the API server's, and needs an address of its own in {FIELD}"
            assert complaints(ended) == [
                f"TCP to {PRIVATE}:{port} is refused: {why}",
                f"looking up kubernetes.test, which is {PRIVATE}, is refused: {why}",
            ]
            own = NetworkGrant(destinations=(rule(f"{PRIVATE}/32", port),), protected=protected)
            assert said(await run(opened, reach, deeds[0], network=own)) == {deeds[0]: GREETING}

    play_apart(scenario)


@of_both_versions
def test_a_redirection_is_the_guests_next_request(play_apart: Play) -> None:
    async def scenario(opened: Bench) -> None:
        server = NameServer({"api.test": itertools.repeat([HERE])})
        async with (
            serving(server),
            web("127.0.0.1") as inner,
            web(head=f"302 Found\r\nLocation: http://127.0.0.1:{inner}/") as page,
        ):
            network = NetworkGrant(destinations=(rule("api.test", page),), nameservers=(server.address,))
            assert (await ask(opened, f"http://api.test:{page}", network))[0] == 3
            assert (await ask(opened, f"http://127.0.0.1:{inner}", network))[0] == "destination-IP-prohibited"

    play_apart(scenario)


@of_both_versions
def test_https_believes_the_given_authorities_and_the_name_that_is_meant(
    play_apart: Play, tmp_path_factory: pytest.TempPathFactory
) -> None:
    authority = CertificateAuthority(tmp_path_factory.mktemp("pki"), "network-ca")
    issued = authority.issue("api.test", dns=["api.test"], server=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(issued.cert, issued.key)
    certificates = authority.cert_file.read_text()

    async def scenario(opened: Bench) -> None:
        server = NameServer({name: itertools.repeat([HERE]) for name in ("api.test", "other.test")})
        async with serving(server), web(tls=context) as page:
            rules = (rule("api.test", page), rule("other.test", page))
            trusting = NetworkGrant(destinations=rules, nameservers=(server.address,), certificates=certificates)
            strict = dataclasses.replace(trusting, certificates="")
            assert (await ask(opened, f"https://api.test:{page}", trusting))[0] == 2
            assert (await ask(opened, f"https://other.test:{page}", trusting))[0] == "TLS-certificate-error"
            assert (await ask(opened, f"https://api.test:{page}", strict))[0] == "TLS-certificate-error"

    play_apart(scenario)


def test_many_connections_are_bounded(play_apart: Play, reach: bytes) -> None:
    async def scenario(opened: Bench) -> None:
        async with greeter() as port, web(together=100) as page:
            network = grant(rule(f"{HERE}/32", ANY_PORT))
            running = await opened.start(
                reach,
                f"many:{HERE}:{port}:1000",
                network=network,
                limits=Limits(memory_bytes=256 << 20, descriptors=128),
            )
            (count,) = said(await opened.end(running)).values()
            assert 50 < int(count.partition(" ")[0]) < 128, count
            ended = await run(opened, sends_many(f"{HERE}:{page}", 150), network=network)
            assert ended.exit.exit_code == 100, (ended.exit, ended.text())
            assert refused(ended) == {"connection": 50}

    play_apart(scenario)


def test_a_flood_of_refusals_is_counted_and_told_a_few_times(play: Play, reach: bytes) -> None:
    async def scenario(opened: Bench) -> None:
        deeds = [f"udp:203.0.113.9:{port}" for port in range(1000, 1500)]
        ended = await run(opened, reach, *deeds, network=grant(rule("192.0.2.1/32", 80)))
        assert refused(ended) == {"address": 500}
        assert 10 <= len(complaints(ended)) < 20

    play(scenario)


def test_names_that_do_not_exist_and_servers_that_are_silent_are_told_apart(play: Play, reach: bytes) -> None:
    async def scenario(opened: Bench) -> None:
        server = NameServer({"cut.test": itertools.repeat(["198.51.100.9", "2001:db8::9"])}, truncates=True)
        async with serving(server):
            rules = (rule("*.test", 80),)
            network = NetworkGrant(destinations=rules, nameservers=("127.0.0.1:1", server.address))
            ended = await run(opened, reach, "lookup:none.test", "lookup:cut.test", network=network)
            words = said(ended)
            assert "rror " in words["lookup:none.test"]
            assert words["lookup:cut.test"].split() == ["198.51.100.9", "2001:db8::9"], "asked again by TCP"
            assert refused(ended) == {}

    play(scenario)


def test_a_python_executor_says_that_it_has_none(tmp_path: Path, store: Path) -> None:
    async def scenario() -> None:
        async with bench("python", tmp_path, store) as opened:
            with pytest.raises(StartRefused, match=r"spec\.network\.allowedHosts: the python executor has no network"):
                await opened.start('(module (func (export "_start")))', network=grant(rule("10.0.0.0/8", 80)))

    asyncio.run(scenario())
