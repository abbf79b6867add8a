"""The aggregated API over real TLS: who gets in, and the way of several logs from runners to one client."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest

from tests.cluster.pki import CertificateAuthority
from tests.support.fake_runners import AT, status_of
from tests.support.fake_runners import FakeRunner as RunnerOfAll
from tests.support.operator_fakes import Pki, make_pki, make_settings
from wherry_operator.aggregated import logs
from wherry_operator.aggregated.server import AggregatedServer
from wherry_operator.kube import NotFound
from wherry_operator.models import Object
from wherry_operator.runners.client import Refused, RunnerClient, RunnerUnavailable
from wherry_operator.runners.delivery import Place
from wherry_runner.protocol import (
    Container,
    ContainerStatus,
    InlineModule,
    LogOptions,
    Owner,
    Refusal,
    RefusalReason,
    Running,
    Workload,
    WorkloadPut,
)

PORT_FORWARD = "/apis/subresources.wherry.dev/v1alpha1/namespaces/default/wasmworkloads/hello/portforward"
LOG = "/apis/subresources.wherry.dev/v1alpha1/namespaces/default/wasmworkloads/hello/log"
ADA = {"X-Remote-User": "ada", "X-Remote-Group": "boatmen"}
USERS = '["X-Remote-User"]'
PUT = WorkloadPut(
    epoch=1,
    sequence=1,
    template_hash="t",
    workload=Workload(
        owner=Owner(kind="WasmWorkload", namespace="default", name="hello", uid="u1"),
        containers=(Container(name="module", module=InlineModule(data=b"AA==")),),
    ),
)


def at(second: int, text: str) -> bytes:
    return f"2026-01-02T03:04:{second:02d}.000000000Z {text}\n".encode()


class FakeRunner:
    """A runner with a log for each workload id."""

    def __init__(self) -> None:
        self.logs: dict[str, asyncio.Queue[bytes | Exception | None]] = {}
        self.refusals: dict[str, Exception] = {}
        self.options: list[LogOptions] = []
        self.open = 0

    def has(self, workload_id: str, *pieces: bytes | Exception | None) -> None:
        queue = self.logs.setdefault(workload_id, asyncio.Queue())
        for piece in pieces:
            queue.put_nowait(piece)

    @asynccontextmanager
    async def log(self, workload_id: str, container: str, options: LogOptions) -> AsyncIterator[AsyncIterator[bytes]]:
        assert container == "module"
        self.options.append(options)
        if error := self.refusals.get(workload_id):
            raise error
        self.open += 1
        try:
            yield self._pieces(self.logs[workload_id])
        finally:
            self.open -= 1

    async def _pieces(self, queue: asyncio.Queue[bytes | Exception | None]) -> AsyncIterator[bytes]:
        while (piece := await queue.get()) is not None:
            if isinstance(piece, Exception):
                raise piece
            yield piece


class FakeInstances:
    def __init__(self, runner: FakeRunner) -> None:
        self.runner = runner
        self.silent = False
        self.ports: dict[str, tuple[int, bool]] = {}
        """Of what serves, by its workload: where, and whether it is ready."""

    def instances(self, owner_uid: str) -> set[str]:
        assert owner_uid == "u1"
        return self.runner.logs.keys() | self.runner.refusals.keys() | self.ports.keys()

    def locate(self, workload_id: str, *, last_runner: str = "") -> Place | None:
        if workload_id not in self.ports:
            return Place(runner="a", reachable=True, status=None, info=None)
        port, ready = self.ports[workload_id]
        container = ContainerStatus(name="module", state=Running(started_at=AT), port=port, ready=ready)
        info = RunnerOfAll("a").state.info
        assert info is not None
        status = status_of(workload_id, PUT, containers=(container,))
        return Place(runner="a", reachable=True, status=status, info=info.model_copy(update={"address": "127.0.0.1"}))

    def client(self, runner: str) -> RunnerClient | None:
        return cast("RunnerClient", self.runner)


class FakeApi:
    def __init__(self, front_proxy_ca: str) -> None:
        self.config: Object = {
            "requestheader-client-ca-file": front_proxy_ca,
            "requestheader-allowed-names": '["proxy"]',
            "requestheader-username-headers": USERS,
            "requestheader-group-headers": '["X-Remote-Group"]',
        }
        self.allowed = {"ada"}
        self.asked: list[Object] = []
        self.status: Object = {"phase": "Pending", "instances": []}
        self.spec: Object = {}

    async def get(self, path: str) -> Object:
        assert path.endswith("/extension-apiserver-authentication")
        return {"data": self.config}

    async def find(self, path: str) -> Object:
        if not path.endswith("/namespaces/default/wasmworkloads/hello"):
            raise NotFound(404, "NotFound", "not found")
        metadata = {"namespace": "default", "name": "hello", "uid": "u1"}
        return {"metadata": metadata, "spec": {"className": "wherry", **self.spec}, "status": self.status}

    async def create(self, path: str, body: Object) -> Object:
        assert path.endswith("/subjectaccessreviews")
        self.asked.append(body["spec"])
        return {"status": {"allowed": body["spec"]["user"] in self.allowed}}


class Scene:
    """A server, and a client with or without the front proxy's certificate."""

    def __init__(self, pki: Pki, front_proxy: CertificateAuthority) -> None:
        self.pki = pki
        self.front_proxy = front_proxy
        self.runner = FakeRunner()
        self.instances = FakeInstances(self.runner)
        self.api = FakeApi(front_proxy.cert_file.read_text())
        self.url = ""
        self.heard = asyncio.Event()
        self.heard.set()

    async def known(self) -> None:
        await self.heard.wait()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Scene]:
        settings = replace(make_settings(self.pki), api_listen="127.0.0.1", api_port=0)
        server = AggregatedServer(settings, self.api, self.instances, known=self.known)
        self.url = f"https://127.0.0.1:{await server.start()}"
        try:
            yield self
        finally:
            await server.close()

    @asynccontextmanager
    async def asking(
        self, path: str = LOG, *, user: dict[str, str] = ADA, name: str = "proxy", **query: str
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        context = ssl.create_default_context(cafile=str(self.pki.client_ca.cert_file))
        if name:
            files = self.front_proxy.issue(name, client=True)
            context.load_cert_chain(files.cert, files.key)
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
            session.get(self.url + path, headers=user, params=query) as response,
        ):
            yield response

    async def ask(self, path: str = LOG, **more: Any) -> tuple[int, str]:
        async with self.asking(path, **more) as response:
            text = await response.text()
            return response.status, json.loads(text)["message"] if response.status >= 300 else text


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pki, CertificateAuthority]:
    folder: Path = tmp_path_factory.mktemp("pki")
    return make_pki(folder), CertificateAuthority(folder / "front", "front-proxy-ca")


@pytest.fixture
def play(certificates: tuple[Pki, CertificateAuthority]) -> Callable[[Callable[[Scene], Awaitable[None]]], None]:
    def run(scenario: Callable[[Scene], Awaitable[None]]) -> None:
        async def inside() -> None:
            async with Scene(*certificates).running() as scene:
                await scenario(scene)

        asyncio.run(inside())

    return run


Play = Callable[[Callable[[Scene], Awaitable[None]]], None]


def test_only_whom_the_front_proxy_vouches_for_gets_in(play: Play) -> None:
    async def scenario(scene: Scene) -> None:
        for path in ("/apis", LOG, "/nowhere"):
            assert await scene.ask(path, name="") == (401, "Unauthorized")
            assert await scene.ask(path, name="another") == (401, "Unauthorized")
            assert await scene.ask(path, user={}) == (401, "Unauthorized")
        assert (await scene.ask("/apis"))[0] == 200
        assert (await scene.ask("/nowhere"))[0] == 404
        assert scene.api.asked == []

    play(scenario)


def test_the_users_right_is_reviewed(play: Play) -> None:
    async def scenario(scene: Scene) -> None:
        scene.runner.has("u1-r-0", at(1, "hello"), None)
        code, message = await scene.ask(user={"X-Remote-User": "eve"})
        assert code == 403 and 'User "eve" cannot get resource "wasmworkloads/log"' in message
        assert await scene.ask() == (200, "hello\n")
        assert scene.api.asked[-1] == {
            "user": "ada",
            "groups": ["boatmen"],
            "resourceAttributes": {
                "verb": "get",
                "group": "subresources.wherry.dev",
                "version": "v1alpha1",
                "resource": "wasmworkloads",
                "subresource": "log",
                "namespace": "default",
                "name": "hello",
            },
        }

    play(scenario)


def test_nothing_is_said_to_be_missing_before_the_runners_were_heard(play: Play) -> None:
    async def scenario(scene: Scene) -> None:
        scene.heard.clear()
        asked = asyncio.create_task(scene.ask())
        while not scene.api.asked:
            await asyncio.sleep(0)
        scene.runner.has("u1-r-0", at(1, "hello"), None)
        scene.heard.set()
        assert await asked == (200, "hello\n")

    play(scenario)


def test_logs_are_merged_by_time_and_prefixed(play: Play) -> None:
    async def scenario(scene: Scene) -> None:
        scene.runner.has("u1-r-0", at(1, "one"), at(3, "three"), None)
        scene.runner.has("u1-r-1", at(2, "two"), None)
        prefixed = "[hello-r-0/module] one\n[hello-r-1/module] two\n[hello-r-0/module] three\n"
        assert await scene.ask(prefix="true", tailLines="9", limitBytes="1000") == (200, prefixed)
        assert all(given.timestamps and given.limit_bytes is None for given in scene.runner.options)
        assert {given.tail_lines for given in scene.runner.options} == {9}
        assert scene.runner.open == 0

    play(scenario)


@pytest.mark.parametrize(("wanted", "shown"), [("hello-r-1", "one"), ("r-1", "one"), ("1", "one"), ("10", "ten")])
def test_one_instance_goes_by_its_name_or_the_end_of_it(play: Play, wanted: str, shown: str) -> None:
    async def scenario(scene: Scene) -> None:
        scene.runner.has("u1-r-1", at(1, "one"), None)
        scene.runner.has("u1-r-10", at(1, "ten"), None)
        assert await scene.ask(instance=wanted) == (200, f"{shown}\n")
        assert await scene.ask(instance="0") == (400, 'wasmworkload "hello" has no instance "0"')

    play(scenario)


def test_followed_logs_come_as_they_are_written(play: Play) -> None:
    async def scenario(scene: Scene) -> None:
        scene.runner.has("u1-r-0", at(1, "one"))
        scene.runner.has("u1-r-1")
        async with scene.asking(follow="true") as response:
            assert await response.content.readline() == b"one\n"  # though the other is silent
            scene.runner.has("u1-r-1", at(2, "two"), None)
            assert await response.content.readline() == b"two\n"
            scene.runner.has("u1-r-0", None)
            assert await response.content.readline() == b""

    play(scenario)


def test_a_client_that_has_gone_ends_the_streams(play: Play) -> None:
    async def scenario(scene: Scene) -> None:
        scene.runner.has("u1-r-0", at(1, "one"))
        async with scene.asking(follow="true") as response:
            await response.content.readline()
            assert scene.runner.open == 1
        while scene.runner.open:
            await asyncio.sleep(0.005)

    play(scenario)


def test_instances_without_a_log_are_left_out_unless_none_has_one(play: Play) -> None:
    async def scenario(scene: Scene) -> None:
        none = Refused(Refusal(reason=RefusalReason.NO_LOG, message="no log of a run here"))
        scene.runner.refusals["u1-r-0"] = none
        scene.api.status["instances"] = [{"name": "hello-r-0", "state": "Waiting", "reason": "ErrImagePull"}]
        waits = 'container "module" in instance "hello-r-0" is waiting to start: ErrImagePull'
        assert await scene.ask() == (400, waits)
        gone = 'previous terminated container "module" in instance "hello-r-0" not found'
        assert await scene.ask(previous="true") == (400, gone)
        scene.runner.has("u1-r-1", at(1, "one"), None)
        assert await scene.ask() == (200, "one\n")

    play(scenario)


def test_a_silent_runner_is_told_and_no_part_passed_off_as_the_whole(play: Play) -> None:
    async def scenario(scene: Scene) -> None:
        scene.runner.has("u1-r-0", at(1, "one"), None)
        scene.runner.refusals["u1-r-1"] = RunnerUnavailable("runner a does not answer")
        assert await scene.ask() == (503, "runner a does not answer")
        scene.runner.refusals.clear()
        scene.runner.logs.clear()
        scene.runner.has("u1-r-0", at(1, "one"), RunnerUnavailable("broke off"))
        with pytest.raises(aiohttp.ClientError):
            await scene.ask()

    play(scenario)


def test_what_is_not_there_is_told(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(scene: Scene) -> None:
        assert (await scene.ask(LOG.replace("hello", "nobody")))[0] == 404
        assert await scene.ask() == (400, 'wasmworkload "hello" is waiting to start: Pending')
        for query in ({"tailLines": "x"}, {"sinceTime": "yesterday"}):
            assert (await scene.ask(**query))[0] == 400
        assert (await scene.ask(tailLines="-1"))[0] == 422
        monkeypatch.setattr(logs, "MAX_INSTANCES", 1)
        for number in range(2):
            scene.runner.has(f"u1-r-{number}", None)
        code, message = await scene.ask()
        assert code == 400 and "has 2 instances" in message

    play(scenario)


# --- port-forward -----------------------------------------------------------------------------------------------------


@asynccontextmanager
async def serving(scene: Scene) -> AsyncIterator[int]:
    """The object's instance: it says back what it hears in capitals, and when it hears the end."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(1 << 16):
            writer.write(piece.upper())
        writer.write(b"<end>")
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listening:
        port = listening.sockets[0].getsockname()[1]
        scene.instances.ports = {"u1-0f-0": (1, False), "u1-0f-1": (port, True)}
        # Anybody's word, who may write a status: nobody listens to it.
        scene.api.status = {"instances": [{"name": "hello-0f-1", "ready": True, "address": "127.0.0.1:1"}]}
        scene.api.spec = {"http": {"port": 8080}}
        yield port


@asynccontextmanager
async def connected(scene: Scene, **query: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    context = ssl.create_default_context(cafile=str(scene.pki.client_ca.cert_file))
    files = scene.front_proxy.issue("proxy", client=True)
    context.load_cert_chain(files.cert, files.key)
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
        session.ws_connect(scene.url + PORT_FORWARD, headers=ADA, params=query) as connection,
    ):
        yield connection


def test_a_connection_leads_to_an_instance_that_is_ready(play: Play) -> None:
    async def scenario(scene: Scene) -> None:
        async with serving(scene), connected(scene, port="8080") as one, connected(scene, port="8080") as other:
            for number, connection in enumerate((one, other)):
                await connection.send_bytes(b"hello %d" % number)
                assert await connection.receive_bytes() == b"HELLO %d" % number
            await one.send_str("end")
            assert await one.receive_bytes() == b"<end>"
            assert (await one.receive()).type is aiohttp.WSMsgType.CLOSE
            await other.send_bytes(b"x" * 1_000_000)
            assert sum([len(await other.receive_bytes()) for _ in range(1)]) > 0, "it goes on"
        assert {
            (each["resourceAttributes"]["verb"], each["resourceAttributes"]["subresource"]) for each in scene.api.asked
        } == {("create", "portforward")}, "who may only read is not to talk to it"

    play(scenario)


def test_what_can_not_be_forwarded_is_said(play: Play) -> None:
    async def scenario(scene: Scene) -> None:
        assert await scene.ask(PORT_FORWARD, port="80") == (
            400,
            'wasmworkload "hello" serves nothing: its spec has no http',
        )
        async with serving(scene):
            assert await scene.ask(PORT_FORWARD, port="22") == (400, 'wasmworkload "hello" has no port 22: it has 8080')
            status, message = await scene.ask(PORT_FORWARD, port="8080", instance="0f-7")
            assert (status, message) == (503, 'no such instance of wasmworkload "hello" serves now')
            status, message = await scene.ask(PORT_FORWARD, port="8080")
            assert (status, message) == (400, "Upgrade request required: port-forward is a WebSocket")
            with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
                async with connected(scene, port="8080", instance="0f-0"):
                    pass
            status, message = await scene.ask(PORT_FORWARD, user={**ADA, "X-Remote-User": "eve"}, port="8080")
            assert status == 403 and 'cannot create resource "wasmworkloads/portforward"' in message

    play(scenario)
