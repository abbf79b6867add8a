"""A replica that waits for the lead: what it concludes from the Lease, what it can read, what it tells, and what it passes on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from wherry_operator import lease as rules
from wherry_operator.doors import Door
from wherry_operator.handlers import in_cluster_server
from wherry_operator.lease import ANNOTATION, Reachable, Sight, reachable_of, renewed, taken
from wherry_operator.metrics import Metrics, State
from wherry_operator.settings import parse
from wherry_operator.waiting import probes, relay
from wherry_operator.waiting.api import MAX_BODY_BYTES, parse_head
from wherry_operator.waiting.decide import (
    Claim,
    Decision,
    Grow,
    Stay,
    after_claim,
    after_look,
    after_question,
    is_claim,
)
from wherry_operator.waiting.relay import Relay, splice
from wherry_operator.waiting.stage import possible

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
HERE = Reachable(address="10.0.0.1", kubelet=10250, api=8443)


def held(by: str = "a", *, renewal: int = 0, reachable: Reachable | None = HERE) -> dict[str, Any]:
    body = taken({**rules.free("l"), "spec": {"leaseTransitions": 6}}, by, NOW, reachable)
    body["spec"]["renewTime"] = f"{renewal}"
    return body


def look(sight: Sight, moment: float, status: int = 200, body: Any = None) -> Decision:
    return after_look(status, body, sight, "me", moment=moment, since=0.0)


# --- the Lease ------------------------------------------------------------------------------------------------------------


def test_the_holder_says_where_it_is_and_nobody_else_is_believed() -> None:
    body = held("a")
    assert body["spec"]["leaseTransitions"] == 7
    assert reachable_of(body) == HERE
    # An operator of an earlier release takes the Lease, and leaves what it doesn't know.
    assert reachable_of({**body, "spec": {**body["spec"], "holderIdentity": "b"}}) is None
    assert reachable_of(renewed(body, "", NOW, reachable=HERE)) is None
    assert reachable_of(taken(body, "b", NOW, None)) is None
    assert reachable_of(renewed(taken(body, "b", NOW, None), "b", NOW, reachable=HERE)) == HERE


@pytest.mark.parametrize(
    "said",
    [
        "",
        "{",
        "[]",
        "7",
        '{"holder": "a"}',
        '{"holder": "a", "address": "a name", "kubelet": 1, "api": 2}',
        '{"holder": "a", "address": "10.0.0.1", "kubelet": 0, "api": 2}',
        '{"holder": "a", "address": "10.0.0.1", "kubelet": 1, "api": 65536}',
        '{"holder": "a", "address": "10.0.0.1", "kubelet": true, "api": 1}',
        '{"holder": "a", "address": "10.0.0.1", "kubelet": "1", "api": 1}',
    ],
)
def test_nonsense_about_where_it_is_says_nothing(said: str) -> None:
    body = held("a", reachable=None)
    assert reachable_of(body) is None
    assert reachable_of({**body, "metadata": {"annotations": {ANNOTATION: said}}}) is None


def test_other_annotations_stay() -> None:
    body = {"metadata": {"name": "l", "annotations": {"theirs": "1"}}, "spec": None}
    assert taken(body, "a", NOW, HERE)["metadata"]["annotations"]["theirs"] == "1"


# --- deciding -------------------------------------------------------------------------------------------------------------


def test_who_sees_a_lease_renewed_stays_small_for_ever() -> None:
    sight = Sight("l")
    for moment in range(0, 100, 5):
        assert look(sight, moment, body=held(renewal=moment)) == Stay(looked=True, leader=HERE)


def test_a_lease_that_is_renewed_no_more_makes_it_grow_before_its_end_by_its_own_clock() -> None:
    sight = Sight("l")
    assert look(sight, 100.0, body=held()) == Stay(looked=True, leader=HERE)
    assert look(sight, 107.9, body=held()) == Stay(looked=True, leader=HERE)
    assert look(sight, 108.0, body=held()) == Grow("a has not renewed the Lease", leads=True)


@pytest.mark.parametrize("status", [0, 408, 429, 500, 503])
def test_an_api_server_that_is_away_counts_as_a_silent_leader(status: int) -> None:
    sight = Sight("l")
    look(sight, 100.0, body=held())
    assert look(sight, 107.9, status) == Stay()
    assert look(sight, 108.0, status) == Grow("a has not renewed the Lease", leads=True)
    unseen = Sight("l")
    assert look(unseen, 8.0, status) == Stay()
    assert look(unseen, 8.1, status) == Grow("the Lease can't be read")


def test_a_lease_that_nobody_holds_is_claimed() -> None:
    assert look(Sight("l"), 1.0, 404) == Claim(None)
    body = renewed(held(), "", NOW)
    assert look(Sight("l"), 1.0, body=body) == Claim(body)


def test_one_that_was_deleted_under_its_holder_runs_out_first() -> None:
    sight = Sight("l")
    look(sight, 100.0, body=held())
    assert look(sight, 107.0, 404) == Stay()
    assert look(sight, 108.0, 404) == Grow("a has not renewed the Lease", leads=True)


def test_our_own_lease_is_taken_up_again() -> None:
    assert look(Sight("l"), 1.0, body=held("me")) == Grow("the Lease is ours", leads=True)


@pytest.mark.parametrize("status", [201, 301, 400, 401, 403, 418])
def test_what_it_does_not_expect_is_for_a_whole_operator(status: int) -> None:
    assert isinstance(look(Sight("l"), 1.0, status), Grow)
    assert isinstance(after_question(status, "/x", frozenset({200})), Grow)


@pytest.mark.parametrize("body", [None, [], "text", {}, {"spec": None}, {"spec": []}])
def test_a_lease_that_is_none_is_for_a_whole_operator(body: Any) -> None:
    assert isinstance(look(Sight("l"), 1.0, body=body), Grow)


def test_of_two_claims_one_wins_and_the_other_goes_on_waiting() -> None:
    sight = Sight("l")
    assert after_claim(409, {"kind": "Status"}, sight, moment=1.0) == Stay()
    assert after_claim(0, None, sight, moment=1.0) == Stay()
    assert after_claim(201, held("me"), sight, moment=1.0) == Grow("nobody held the Lease", leads=True)
    assert sight.holder == "me"
    assert isinstance(after_claim(403, None, sight, moment=1.0), Grow)


def test_a_claim_is_given_up_only_as_long_as_nobody_leads_by_it() -> None:
    claim = held("me")
    assert is_claim(claim, "me", 7)
    assert not is_claim(taken(claim, "me", NOW), "me", 7)
    assert not is_claim(renewed(claim, "", NOW), "me", 7)
    assert not is_claim(taken(claim, "b", NOW), "me", 8)
    assert not is_claim(None, "me", 7) and not is_claim({}, "me", 7)


def test_who_holds_the_lease_and_does_not_lead_yet_is_not_ready() -> None:
    sight = Sight("l")
    assert sight.complaint(1.0, "me") == "the Lease l can't be read"
    sight.observe({}, 1.0)
    assert sight.complaint(1.0, "me") == "nobody holds the Lease l"
    sight.observe(held("a")["spec"], 1.0)
    assert sight.complaint(1.0, "me") == ""
    assert sight.complaint(11.1, "me") == "the Lease l can't be read"
    sight.observe(held("me")["spec"], 2.0)
    assert sight.complaint(2.0, "me") == "the Lease l is ours, and we do not lead yet"


def test_a_question_that_is_answered_as_usual_decides_nothing() -> None:
    assert after_question(404, "/x", frozenset({200, 404})) is None
    assert after_question(503, "/x", frozenset({200})) == Stay()


def test_only_in_a_pod_and_where_nobody_has_to_approve_its_certificate_it_waits_so() -> None:
    flags = ["--runner-service", "r", "--certificates", "own", "--address", "10.0.0.1"]
    settings, pod = parse(flags), {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}
    assert possible(settings, pod)
    assert not possible(settings, {})
    assert not possible(settings, {**pod, "KUBECONFIG": "/x"})
    assert not possible(settings, {**pod, "HTTPS_PROXY": "http://proxy"})
    assert not possible(parse([*flags, "--kubelet-certificate", "csr"]), pod)


def test_a_pods_api_server_is_where_its_environment_says() -> None:
    pod = {"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT": "6443"}
    assert in_cluster_server(pod) == "https://10.96.0.1:6443"
    assert in_cluster_server({"KUBERNETES_SERVICE_HOST": "fd00::1"}) == "https://[fd00::1]:443"
    assert in_cluster_server({}) == in_cluster_server({**pod, "KUBECONFIG": "/x"}) == ""


# --- reading an answer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "status", "length", "last"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n", 200, 12, False),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length:0\r\nConnection: Close\r\n\r\n", 404, 0, True),
        (b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n", 200, None, False),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, 0, False),
    ],
)
def test_an_answers_head_is_read(raw: bytes, status: int, length: int | None, last: bool) -> None:
    head = parse_head(raw)
    assert (head.status, head.length, head.last) == (status, length, last)


@pytest.mark.parametrize(
    "raw",
    [
        b"\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\nContent-Length: 1\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        f"HTTP/1.1 200 OK\r\nContent-Length: {MAX_BODY_BYTES + 1}\r\n\r\n".encode(),
    ],
)
def test_an_answer_that_is_none_of_http_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_head(raw)


# --- probes ---------------------------------------------------------------------------------------------------------------


def test_what_it_tells_prometheus_is_called_as_a_whole_operator_calls_it() -> None:
    whole = Metrics()
    whole.follow(State)
    known = {each.name: each for each in text_string_to_metric_families(whole.text().decode())}
    told = list(text_string_to_metric_families(probes.metrics()))
    assert {"wherry_operator_leader", "wherry_operator_epoch", "process_resident_memory_bytes"} <= {
        each.name for each in told
    }
    for each in told:
        assert (each.documentation, each.type) == (known[each.name].documentation, known[each.name].type)
        assert [sample.labels for sample in each.samples] == [{}]


def test_a_complaint_makes_it_unready_and_unknown_paths_are_not_found() -> None:
    ready = {"api": lambda: "", "leader": lambda: "nobody"}
    head, _, body = probes.answer(b"GET /readyz?verbose HTTP/1.1\r\n\r\n", ready).decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 500 ")
    assert body == "[+]api ok\n[-]leader failed: nobody\nreadyz check failed\n"
    assert probes.answer(b"GET /livez HTTP/1.1\r\n\r\n", ready).startswith(b"HTTP/1.1 200 OK\r\n")
    assert probes.answer(b"HEAD /livez HTTP/1.1\r\n\r\n", ready).endswith(b"\r\n\r\n")
    assert probes.answer(b"GET / HTTP/1.1\r\n\r\n", ready).startswith(b"HTTP/1.1 404 ")
    assert probes.answer(b"POST /livez HTTP/1.1\r\n\r\n", ready).startswith(b"HTTP/1.1 405 ")
    assert probes.answer(b"nonsense", ready).startswith(b"HTTP/1.1 404 ")


# --- passing on -----------------------------------------------------------------------------------------------------------


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await work()

    asyncio.run(bounded())


def pair() -> tuple[socket.socket, socket.socket]:
    one, other = socket.socketpair()
    one.setblocking(False)
    other.setblocking(False)
    return one, other


async def everything(sock: socket.socket) -> bytes:
    whole = b""
    while more := await asyncio.get_running_loop().sock_recv(sock, 1 << 16):
        whole += more
    return whole


def test_each_direction_ends_by_itself_and_nothing_is_lost() -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        (client, left), (right, server) = pair(), pair()
        passing = asyncio.create_task(splice(left, right))
        sent = bytes(range(256)) * 20_000  # more than any buffer on its way
        sending = asyncio.create_task(loop.sock_sendall(client, sent))
        answering = asyncio.create_task(everything(server))
        await sending
        client.shutdown(socket.SHUT_WR)
        assert await answering == sent
        assert not passing.done()  # the other direction goes on
        await loop.sock_sendall(server, b"late")
        server.close()
        assert await everything(client) == b"late"
        await passing
        assert left.fileno() == right.fileno() == -1
        client.close()

    run(work)


class Scene:
    """A relay at a door, and what it asked for."""

    def __init__(self, door: Door, leader: tuple[str, int] | None) -> None:
        self.door = door
        self.why: list[str] = []
        self.relay = Relay(door, leader=lambda: leader, grow=self.why.append)
        self.relay.start()

    async def call(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.door.port)

    async def close(self) -> None:
        await self.relay.close()
        self.door.close()


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("known", [True, False], ids=["not reached", "not known"])
def test_whom_the_leader_can_not_serve_waits_unread_for_a_whole_operator(
    known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "PATIENCE_SECONDS", 0.3)

    async def work() -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            scene = Scene(await Door.open("127.0.0.1", 0), unused.getsockname() if known else None)
            reader, writer = await scene.call()
            writer.write(b"hello")
            await until(lambda: scene.why)
            scene.relay.stop()
            later_reader, later = await scene.call()  # the kernel keeps it
            adopted: list[socket.socket] = []
            listeners = scene.door.take(adopted.append)
            loop = asyncio.get_running_loop()
            assert await loop.sock_recv(adopted[0], 5) == b"hello"
            connection, _ = await loop.sock_accept(listeners[0])
            for each in (*adopted, *listeners, connection):
                each.close()
            writer.close()
            later.close()
            with contextlib.suppress(OSError):
                assert await reader.read() == await later_reader.read() == b""
            await scene.close()

    run(work)


def test_connections_go_on_when_somebody_else_has_taken_the_port() -> None:
    async def work() -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readline())
            writer.write(await reader.readline())
            writer.close()

        leader = await asyncio.start_server(echo, "127.0.0.1", 0)
        scene = Scene(await Door.open("127.0.0.1", 0), leader.sockets[0].getsockname())
        reader, writer = await scene.call()
        writer.write(b"one\n")
        assert await reader.readline() == b"one\n"
        for each in scene.door.take(lambda _: None):
            each.close()
        writer.write(b"two\n")
        assert await reader.readline() == b"two\n"
        assert await reader.read() == b""
        writer.close()
        leader.close()
        await scene.close()
        assert not scene.why

    run(work)


def test_one_that_leads_a_moment_later_is_waited_for() -> None:
    async def work() -> None:
        with socket.create_server(("127.0.0.1", 0)) as later, socket.socket() as before:
            before.bind(("127.0.0.1", 0))
            door = await Door.open("127.0.0.1", 0)
            addresses = [before.getsockname(), None, later.getsockname()]
            why: list[str] = []
            passing = Relay(door, leader=lambda: addresses.pop(0) if addresses[1:] else addresses[0], grow=why.append)
            passing.start()
            _, writer = await asyncio.open_connection("127.0.0.1", door.port)
            later.setblocking(False)
            reached, _ = await asyncio.get_running_loop().sock_accept(later)
            reached.close()
            writer.close()
            await passing.close()
            door.close()
            assert not why

    run(work)


def test_who_waits_no_more_hands_over_at_once_whom_it_could_not_connect() -> None:
    async def work() -> None:
        door = await Door.open("127.0.0.1", 0)
        asked: list[bool] = []
        passing = Relay(door, leader=lambda: asked.append(True), grow=lambda _: None)
        passing.start()
        _, writer = await asyncio.open_connection("127.0.0.1", door.port)
        await until(lambda: asked)
        adopted: list[socket.socket] = []
        passing.stop()
        listeners = door.take(adopted.append)
        await until(lambda: adopted)
        for each in (*adopted, *listeners):
            each.close()
        writer.close()
        await passing.close()

    run(work)


def test_more_connections_than_it_may_have_are_for_a_whole_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "MOST_CONNECTIONS", 2)

    async def work() -> None:
        with socket.create_server(("127.0.0.1", 0)) as leader:
            scene = Scene(await Door.open("127.0.0.1", 0), leader.getsockname())
            calls = [await scene.call() for _ in range(3)]
            await until(lambda: scene.why)
            kept: list[socket.socket] = []
            for each in (*scene.door.take(kept.append), *kept):
                each.close()
            assert len(kept) == 1
            await scene.close()
            for _, writer in calls:
                writer.close()

    run(work)


def test_the_annotation_is_json_that_others_can_read() -> None:
    said = json.loads(held("a")["metadata"]["annotations"][ANNOTATION])
    assert said == {"holder": "a", "address": "10.0.0.1", "kubelet": 10250, "api": 8443}
