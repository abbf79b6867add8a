"""The kubelet endpoint over real TLS: identity, routes, and the way of a log from a runner to a client."""

from __future__ import annotations

import asyncio
import json
import random
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest
from multidict import MultiDict
from yarl import URL

from tests.support.operator_fakes import FakeTime, Pki, make_pki, make_settings, until
from wherry_operator.kube import Forbidden
from wherry_operator.kubelet.logs import BadQuery, parse_query, why_no_log
from wherry_operator.kubelet.server import KubeletServer
from wherry_operator.models import Object
from wherry_operator.runners.client import Refused, RunnerClient, RunnerUnavailable
from wherry_operator.runners.registry import RunnerState
from wherry_runner.protocol import LogOptions, Refusal, RefusalReason

LOG = "/containerLogs/default/hello/main"

NONSENSE = 10_000

MOST_UNSENT_BYTES = 16 << 20
"""Of one client: the kernel's buffers for a connection on loopback, at both ends, and ours."""


def pod(state: Object | None = None, last: Object | None = None) -> Object:
    status = [{"name": "main", "state": state or {}, "lastState": last or {}}] if state is not None else []
    return {
        "metadata": {"namespace": "default", "name": "hello", "uid": "u1"},
        "spec": {"containers": [{"name": "main"}]},
        "status": {"containerStatuses": status},
    }


class FakeRunner:
    """What of RunnerClient the endpoint uses."""

    name, url = "runner-a", "https://127.0.0.1:1"

    def __init__(self) -> None:
        self.pieces: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self.refusal: Exception | None = None
        self.options: LogOptions | None = None
        self.closed = asyncio.Event()

    @asynccontextmanager
    async def log(self, workload_id: str, container: str, options: LogOptions) -> AsyncIterator[AsyncIterator[bytes]]:
        assert (workload_id, container) == ("u1", "main")
        self.options = options
        if self.refusal:
            raise self.refusal
        try:
            yield self._pieces()
        finally:
            self.closed.set()

    async def _pieces(self) -> AsyncIterator[bytes]:
        while (piece := await self.pieces.get()) is not None:
            if isinstance(piece, Exception):
                raise piece
            yield piece


class Stage:
    """Server, its API server and a client for each kind of caller."""

    def __init__(self, pki: Pki) -> None:
        self.pki = pki
        self.time = FakeTime()
        self.time.clock = type(self.time.clock)(
            monotonic=lambda: 0.0, sleep=self.time.clock.sleep
        )  # certificates' time
        self.runner: FakeRunner | None = FakeRunner()
        self.pod_object = pod({"running": {}})
        self.allowed = {"kubelet-client", "reader"}
        self.ca: str | None = pki.client_ca.cert_file.read_text()
        self.unknown = ""
        self.server = KubeletServer(make_settings(pki), self, self, self, known=self.known, clock=self.time.clock)
        self.port = 0

    def pod(self, namespace: str, name: str) -> Object | None:
        return self.pod_object if (namespace, name) == ("default", "hello") else None

    async def known(self) -> str:
        return self.unknown

    def pods(self) -> list[Object]:
        return [self.pod_object]

    def placement(self, uid: str) -> RunnerClient | None:
        return cast("RunnerClient | None", self.runner)

    def address(self, pod: Object) -> tuple[str, dict[int, int]]:
        return "", {}

    def states(self) -> tuple[RunnerState, ...]:
        return ()

    def client(self, name: str) -> RunnerClient | None:
        return None

    async def get(self, path: str) -> Object:
        if self.ca is None:
            raise Forbidden(403, "Forbidden", "no")
        return {"data": {"client-ca-file": self.ca}}

    async def create(self, path: str, body: Object) -> Object:
        spec = body["spec"]
        if path.endswith("tokenreviews"):
            user = {"username": spec["token"]}
            return {"status": {"authenticated": spec["token"] in ("reader", "outsider"), "user": user}}
        return {"status": {"allowed": spec["user"] in self.allowed}}

    def context(self, user: str = "", ca: Any = None) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.pki.client_ca.cert_file)
        if user:
            files = (ca or self.pki.client_ca).issue(user, client=True)
            context.load_cert_chain(files.cert, files.key)
        return context

    @asynccontextmanager
    async def request(
        self, path: str, method: str = "GET", *, user: str = "kubelet-client", ca: Any = None, token: str = ""
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        connector = aiohttp.TCPConnector(ssl=self.context(user, ca))
        url = f"https://127.0.0.1:{self.port}{path}"
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.request(method, url, headers=headers) as response,
        ):
            yield response

    async def ask(self, path: str, method: str = "GET", **how: Any) -> tuple[int, str]:
        async with self.request(path, method, **how) as response:
            return response.status, await response.text()


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return make_pki(tmp_path)


def play(pki: Pki, scenario: Callable[[Stage], Awaitable[None]], *, ca: bool = True) -> None:
    async def run() -> None:
        stage = Stage(pki)
        if not ca:
            stage.ca = None
        stage.port = await stage.server.start()
        try:
            await scenario(stage)
        finally:
            await stage.server.close()

    asyncio.run(run())


def test_callers_are_told_apart(pki: Pki) -> None:
    async def scenario(stage: Stage) -> None:
        assert await stage.ask("/healthz", user="") == (401, "Unauthorized")
        assert await stage.ask("/nowhere", user="") == (401, "Unauthorized")
        assert await stage.ask("/healthz", user="", token="unknown") == (401, "Unauthorized")
        assert await stage.ask("/healthz", user="", token="reader") == (200, "ok")
        assert await stage.ask("/healthz") == (200, "ok")
        assert await stage.ask("/containerLogs/a/b/c", user="somebody") == (
            403,
            "Forbidden (user=somebody, verb=get, resource=nodes, subresource(s)=[proxy])\n",
        )
        assert await stage.ask("/healthz", user="", token="outsider") == (
            403,
            "Forbidden (user=outsider, verb=get, resource=nodes, subresource(s)=[healthz proxy])\n",
        )
        with pytest.raises(aiohttp.ClientError):
            await stage.ask("/healthz", ca=pki.runner_ca)  # a certificate of a CA that is not the clients'

    play(pki, scenario)


def test_the_client_ca_is_read_again(pki: Pki) -> None:
    async def scenario(stage: Stage) -> None:
        assert "client CA" in stage.server.complaint()
        assert await stage.ask("/healthz", user="", token="reader") == (200, "ok")
        with pytest.raises(aiohttp.ClientError):
            await stage.ask("/healthz")
        stage.ca = pki.client_ca.cert_file.read_text()
        await stage.time.advance(10)
        assert stage.server.complaint() == ""
        assert await stage.ask("/healthz") == (200, "ok")
        # Another CA now: certificates of the one before are no longer taken.
        stage.ca = pki.runner_ca.cert_file.read_text()
        await stage.time.advance(300)
        assert await stage.ask("/healthz", ca=pki.runner_ca) == (200, "ok")
        with pytest.raises(aiohttp.ClientError):
            await stage.ask("/healthz")

    play(pki, scenario, ca=False)


def test_a_renewed_serving_certificate_is_shown(pki: Pki) -> None:
    async def scenario(stage: Stage) -> None:
        before = await _shown(stage)
        renewed = pki.client_ca.issue("renewed", ips=["127.0.0.1"], server=True)
        pki.kubelet.cert.write_bytes(renewed.cert.read_bytes())
        assert await _shown(stage) == before  # the key does not fit yet
        pki.kubelet.key.write_bytes(renewed.key.read_bytes())
        assert await _shown(stage) == "renewed"

    play(pki, scenario)


def test_a_node_without_runners_has_no_figures(pki: Pki) -> None:
    async def scenario(stage: Stage) -> None:
        async with stage.request("/metrics/resource") as response:
            assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
            values = [line for line in (await response.text()).splitlines() if line[0] != "#"]
            assert values == ["resource_scrape_error 0"]
        async with stage.request("/stats/summary?only_cpu_and_memory=true") as response:
            summary = await response.json()
            assert (summary["node"]["nodeName"], summary["pods"]) == ("wherry", [])

    play(pki, scenario)


async def _shown(stage: Stage) -> str:
    _, writer = await asyncio.open_connection("127.0.0.1", stage.port, ssl=stage.context())
    certificate = writer.get_extra_info("peercert")
    writer.close()
    return str(dict(pair for part in certificate["subject"] for pair in part)["commonName"])


def test_what_a_module_does_not_have_is_refused_with_a_reason(pki: Pki) -> None:
    async def scenario(stage: Stage) -> None:
        for path, method, word in (
            ("/exec/default/hello/main?command=sh&output=1", "POST", "exec"),
            ("/exec/default/hello/u1/main?command=sh", "GET", "exec"),
            ("/run/default/hello/main?cmd=ls", "POST", "exec"),
        ):
            async with stage.request(path, method) as response:
                refusal = await response.json()
            # kubectl shows the message only of a whole metav1.Status.
            assert (response.status, refusal["kind"], refusal["status"]) == (501, "Status", "Failure")
            assert refusal["message"].split()[0] == word
        for path, status, text in (
            ("/attach/default/other/main?output=1", 404, 'pod "other" does not exist'),
            ("/attach/default/hello/u2/main?output=1", 404, 'pod "hello" does not exist'),
            ("/attach/default/hello/other?output=1", 404, 'container "other" not found in pod "hello"'),
            ("/attach/default/hello/u1/main?output=1", 400, "Upgrade request required"),
            ("/portForward/default/other", 404, 'pod "other" does not exist'),
            ("/portForward/default/hello/u2", 404, 'pod "hello" does not exist'),
            ("/portForward/default/hello", 400, "Upgrade request required"),
        ):
            async with stage.request(path, "POST") as response:
                assert response.status == status and (await response.json())["message"].startswith(text)
        assert (await stage.ask("/nowhere"))[0] == 404
        assert (await stage.ask(LOG, "HEAD"))[0] == 405

    play(pki, scenario)


def test_who_does_not_know_the_pods_says_so_and_denies_none(pki: Pki) -> None:
    async def scenario(stage: Stage) -> None:
        stage.unknown = "it does not lead"
        for path in ("/containerLogs/default/hello/main", "/pods", "/metrics/resource", "/stats/summary"):
            code, text = await stage.ask(path)
            assert (code, json.loads(text)["message"]) == (503, "it does not lead")
        assert (await stage.ask("/attach/default/hello/main", "POST"))[0] == 503
        assert await stage.ask("/healthz") == (200, "ok")
        assert (await stage.ask("/containerLogs/default/hello/main", user="somebody"))[0] == 403

    play(pki, scenario)


def test_pods_are_listed_and_the_server_is_not_named(pki: Pki) -> None:
    async def scenario(stage: Stage) -> None:
        async with stage.request("/pods") as response:
            found = await response.json()
            assert (found["kind"], [each["metadata"]["name"] for each in found["items"]]) == ("PodList", ["hello"])
            assert "Server" not in response.headers

    play(pki, scenario)


def test_a_followed_log_comes_piece_by_piece_after_its_head(pki: Pki) -> None:
    async def scenario(stage: Stage) -> None:
        assert stage.runner is not None
        async with stage.request(f"{LOG}?follow=true&tailLines=2&timestamps=true") as response:
            # The head is here though nothing was written yet.
            assert (response.status, response.headers["Transfer-Encoding"]) == (200, "chunked")
            for line in (b"one\n", b"two\n"):
                stage.runner.pieces.put_nowait(line)
                assert await response.content.readany() == line
            stage.runner.pieces.put_nowait(None)
            assert await response.content.readany() == b""
        assert stage.runner.options == LogOptions(follow=True, tail_lines=2, timestamps=True)

    play(pki, scenario)


def test_a_client_that_leaves_ends_the_stream_from_the_runner(pki: Pki) -> None:
    async def scenario(stage: Stage) -> None:
        assert stage.runner is not None
        async with stage.request(f"{LOG}?follow=true") as response:
            assert response.status == 200
            assert not stage.runner.closed.is_set()
        await stage.runner.closed.wait()

    play(pki, scenario)


class Flood(FakeRunner):
    """Says more than anybody takes."""

    def __init__(self) -> None:
        super().__init__()
        self.taken_bytes = 0

    async def _pieces(self) -> AsyncIterator[bytes]:
        while True:
            self.taken_bytes += 1 << 16
            yield b"x" * (1 << 16)


def test_clients_that_take_nothing_hold_up_themselves_alone(pki: Pki) -> None:
    """Of what each could have, no more is kept than its connection's buffers hold."""

    async def scenario(stage: Stage) -> None:
        floods = [Flood() for _ in range(20)]
        writers = []
        for flood in floods:
            stage.runner = flood
            _, writer = await asyncio.open_connection(
                "127.0.0.1", stage.port, ssl=stage.context("kubelet-client"), limit=1 << 10
            )
            writer.write(f"GET {LOG}?follow=true HTTP/1.1\r\nHost: h\r\n\r\n".encode())
            writers.append(writer)
            await until(lambda flood=flood: flood.taken_bytes > 0)  # type: ignore[misc]
        before = -1
        while before != (before := sum(flood.taken_bytes for flood in floods)):
            assert await stage.ask("/healthz") == (200, "ok")  # the others are served meanwhile
        assert before < len(floods) * MOST_UNSENT_BYTES
        for writer in writers:
            writer.transport.abort()
        for flood in floods:
            await flood.closed.wait()
        await until(lambda: len(asyncio.all_tasks()) <= 3)

    play(pki, scenario)


def test_a_break_at_the_runner_is_no_orderly_end(pki: Pki) -> None:
    async def scenario(stage: Stage) -> None:
        assert stage.runner is not None
        async with stage.request(f"{LOG}?follow=true") as response:
            stage.runner.pieces.put_nowait(b"one\n")
            assert await response.content.readany() == b"one\n"
            stage.runner.pieces.put_nowait(RunnerUnavailable("gone"))
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.content.readany()

    play(pki, scenario)


def test_errors_are_in_the_kubelets_words(pki: Pki) -> None:
    async def scenario(stage: Stage) -> None:
        assert stage.runner is not None
        no_pod, no_container = "/containerLogs/default/other/main", "/containerLogs/default/hello/other"
        assert await stage.ask(no_pod) == (404, 'pod "other" does not exist')
        assert await stage.ask(no_container) == (404, 'container "other" not found in pod "hello"')
        assert await stage.ask(f"{LOG}?tailLines=-1") == (422, '{"message": "Invalid request."}')
        assert await stage.ask(f"{LOG}?tailLines=x") == (400, '{"message": "Unable to decode query."}')
        no_log = Refusal(reason=RefusalReason.NO_LOG, message="not started")
        stage.runner.refusal = Refused(no_log)
        assert await stage.ask(LOG) == (400, "not started")  # the Pod's status lags behind
        stage.pod_object = pod({"waiting": {"reason": "ErrImagePull"}})
        waiting = 'container "main" in pod "hello" is waiting to start: image can\'t be pulled'
        assert await stage.ask(LOG) == (400, waiting)
        stage.runner.refusal = RunnerUnavailable("runner does not answer")
        assert await stage.ask(LOG) == (500, "runner does not answer")
        stage.runner = None
        assert await stage.ask(LOG) == (400, waiting)

    play(pki, scenario)


def test_nonsense_is_answered_and_nothing_is_left_of_it(pki: Pki) -> None:
    """Requests as nobody would send them: each gets an answer that is no failure of ours."""
    dice = random.Random(11)
    words = [
        "containerLogs", "attach", "exec", "run", "pods", "metrics", "resource", "stats", "summary", "default", "hello", "main",
        "u1", "..", "%2e%2e", "%00", "%ff", "%c3%a4", "a" * 300, "", "{pod}",
    ]  # fmt: skip
    values = ["1", "-1", "true", "x", "%00", "9" * 40, "2026-01-02T03:04:05Z", "All", "", "1&output=1"]
    names = [
        "follow",
        "tailLines",
        "sinceTime",
        "limitBytes",
        "stream",
        "output",
        "input",
        "tty",
        "error",
        "%00",
        "a" * 300,
    ]

    def one() -> tuple[str, str, dict[str, str]]:
        path = "/" + "/".join(dice.choices(words, k=dice.randrange(6)))
        query = "&".join(f"{dice.choice(names)}={dice.choice(values)}" for _ in range(dice.randrange(4)))
        upgrades = ["SPDY/3.1", "websocket", "h2c", "x"]
        headers = {"Connection": "Upgrade", "Upgrade": dice.choice(upgrades)} if dice.random() < 0.3 else {}
        return dice.choice(["GET", "POST", "PUT", "HEAD", "DELETE", "PATCH", "OPTIONS"]), f"{path}?{query}", headers

    async def scenario(stage: Stage) -> None:
        stage.runner = None
        connector = aiohttp.TCPConnector(ssl=stage.context("kubelet-client"), limit=4)
        seen: Counter[int] = Counter()
        async with aiohttp.ClientSession(connector=connector) as session:

            async def ask() -> None:
                method, path, headers = one()
                url = URL(f"https://127.0.0.1:{stage.port}{path}", encoded=True)
                async with session.request(method, url, headers=headers) as response:
                    await response.read()
                    seen[response.status] += 1

            for _ in range(NONSENSE // 50):
                await asyncio.gather(*(ask() for _ in range(50)))
            assert seen.total() == NONSENSE and not {status for status in seen if status >= 500} - {501}, seen
        assert await stage.ask("/healthz") == (200, "ok")
        await until(lambda: len(asyncio.all_tasks()) <= 3)

    play(pki, scenario)


def test_what_is_no_http_is_answered_and_not_logged(pki: Pki, caplog: pytest.LogCaptureFixture) -> None:
    """Anybody who reaches the port could fill the log with it."""

    async def scenario(stage: Stage) -> None:
        for nonsense in (b"GET /\xff HTTP/1.1\r\n\r\n", b"\0\1\2\r\n\r\n", b"GET / HTTP/1.1\r\na b: c\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", stage.port, ssl=stage.context())
            writer.write(nonsense)
            assert (await reader.read()).startswith(b"HTTP/1.0 400 ")
            writer.close()

    play(pki, scenario)
    assert caplog.records == []


RAN: Object = {"terminated": {"containerID": "wherry://1"}}
NEVER_RAN: Object = {"terminated": {"exitCode": 128}}
WHERE = 'container "main" in pod "hello"'


@pytest.mark.parametrize(
    ("state", "last", "previous", "expected"),
    [
        (None, None, False, f"{WHERE} is not available"),
        ({"running": {}}, {}, False, ""),
        ({"running": {}}, {}, True, f"previous terminated {WHERE} not found"),
        ({"running": {}}, NEVER_RAN, True, f"previous terminated {WHERE} not found"),
        ({"running": {}}, RAN, True, ""),
        (RAN, {}, False, ""),
        (NEVER_RAN, {}, False, f"{WHERE} is terminated"),
        (NEVER_RAN, RAN, False, ""),
        ({"waiting": {"reason": "CrashLoopBackOff"}}, RAN, False, ""),
        ({"waiting": {"reason": "CrashLoopBackOff"}}, NEVER_RAN, False, f"{WHERE} is terminated"),
        ({"waiting": {}}, {}, False, f"{WHERE} is waiting to start: ContainerCreating"),
        (
            {"waiting": {"reason": "ImagePullBackOff"}},
            {},
            False,
            f"{WHERE} is waiting to start: trying and failing to pull image",
        ),
        ({"waiting": {"reason": "Other"}}, {}, False, f"{WHERE} is waiting to start: Other"),
        ({}, {}, False, f"{WHERE} is waiting to start - no logs yet"),
    ],
)
def test_why_there_is_no_log(state: Object | None, last: Object | None, previous: bool, expected: str) -> None:
    assert why_no_log(pod(state, last), "main", previous=previous) == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, LogOptions()),
        (
            {"follow": "true", "previous": "1", "timestamps": ""},
            LogOptions(follow=True, previous=True, timestamps=True),
        ),
        ({"follow": "False", "previous": "0"}, LogOptions()),
        ({"sinceSeconds": "1"}, LogOptions(since_seconds=1)),
        (
            {"sinceTime": "2026-01-02T03:04:05.123456789Z"},
            LogOptions(since_time=datetime(2026, 1, 2, 3, 4, 5, 123456, tzinfo=UTC)),
        ),
        ({"sinceTime": ""}, LogOptions()),
        ({"tailLines": "0", "limitBytes": "1"}, LogOptions(tail_lines=0, limit_bytes=1)),
        ({"tail": "7"}, LogOptions(tail_lines=7)),
        ({"tail": "all", "tailLines": "7"}, LogOptions()),
        ({"stream": "Stderr"}, LogOptions(stream="Stderr")),
        ({"unknown": "x"}, LogOptions()),
    ],
)
def test_queries_are_read_as_the_kubelet_reads_them(query: dict[str, str], expected: LogOptions) -> None:
    assert parse_query(MultiDict(query)) == expected


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"sinceSeconds": "0"}, 422),
        ({"sinceSeconds": "5", "sinceTime": "2026-01-02T03:04:05Z"}, 422),
        ({"tailLines": "-1"}, 422),
        ({"limitBytes": "0"}, 422),
        ({"stream": "stdout"}, 422),
        ({"stream": "Stdout", "tailLines": "1"}, 422),
        ({"tailLines": "all"}, 400),
        ({"tailLines": ""}, 400),
        ({"tailLines": "1_0"}, 400),
        ({"limitBytes": "9223372036854775808"}, 400),
        ({"sinceTime": "yesterday"}, 400),
        ({"sinceTime": "2026-13-02T03:04:05Z"}, 400),
        ({"sinceTime": "2026-01-02T03:04:05"}, 400),
    ],
)
def test_bad_queries_are_refused(query: dict[str, str], status: int) -> None:
    with pytest.raises(BadQuery) as refused:
        parse_query(MultiDict(query))
    assert refused.value.status == status
