"""The registry and the client against a real TLS server that speaks the wire and plays a script."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import web
from pydantic import SecretStr

from tests.support.operator_fakes import FakeTime, Pki, make_pki, make_settings, settle, until
from wherry_operator.runners.client import Refused, RunnerClient, RunnerError, RunnerUnavailable
from wherry_operator.runners.registry import RunnerRegistry
from wherry_operator.settings import RunnerAddress
from wherry_operator.tls import RunnerTls
from wherry_runner.protocol import (
    Container,
    EnvironmentVariable,
    GoneEvent,
    HeartbeatEvent,
    History,
    InlineModule,
    LogOptions,
    Owner,
    Phase,
    Refusal,
    RefusalReason,
    RunnerCondition,
    RunnerInfo,
    StatusEvent,
    SyncedEvent,
    WatchEvent,
    Wire,
    Workload,
    WorkloadPut,
    WorkloadStatus,
)

OWNER = Owner(kind="Pod", namespace="default", name="hello", uid="u1")


def info(runner: str = "one", instance: str = "1", api_version: str = "v1") -> RunnerInfo:
    return RunnerInfo(
        api_version=api_version,
        runner=runner,
        node="n",
        instance=instance,
        wherry_version="0.1.0",
        engines=("wasmtime 50.0.1",),
        cpu_millicores=1000,
        memory_bytes=1 << 30,
        max_workloads=10,
    )


def status(workload_id: str, sequence: int = 1) -> WorkloadStatus:
    return WorkloadStatus.model_validate(
        {
            "id": workload_id,
            "owner": OWNER,
            "phase": Phase.ACTIVE,
            "epoch": 1,
            "sequence": sequence,
            "templateHash": "h",
            "acceptedAt": "2026-01-02T03:04:05Z",
            "containers": [],
        }
    )


class ScriptedRunner:
    """A runner whose watch says what a test puts into `events`; None ends the connection."""

    def __init__(self, pki: Pki) -> None:
        self.pki = pki
        self.info = info()
        self.events: asyncio.Queue[Wire | bytes | None] = asyncio.Queue()
        self.watches = 0
        self.requests: list[tuple[str, str, bytes]] = []
        self.answer: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None
        self.url = ""

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 20)
        app.router.add_get("/v1/info", self._info)
        app.router.add_get("/v1/watch", self._watch)
        app.router.add_route("*", "/{rest:.*}", self._other)
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.pki.runner.cert, self.pki.runner.key)
        context.load_verify_locations(self.pki.runner_ca.cert_file)
        context.verify_mode = ssl.CERT_REQUIRED
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context).start()
        self.url = f"https://127.0.0.1:{self._runner.addresses[0][1]}"

    async def close(self) -> None:
        await self._runner.cleanup()

    async def _info(self, _request: web.Request) -> web.Response:
        return web.Response(body=self.info.to_json(), content_type="application/json")

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        self.watches += 1
        response = web.StreamResponse()
        await response.prepare(request)
        while (event := await self.events.get()) is not None:
            await response.write(event if isinstance(event, bytes) else event.to_json() + b"\n")
        return response

    async def _other(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path_qs, await request.read()))
        assert self.answer is not None
        return await self.answer(request)

    def say(self, *events: Wire | bytes | None) -> None:
        for event in events:
            self.events.put_nowait(event)


class Stage:
    def __init__(self, pki: Pki) -> None:
        self.time = FakeTime()
        self.runner = ScriptedRunner(pki)
        self.tls = RunnerTls(make_settings(pki).runner_tls)
        self.changes: list[tuple[Owner | None, str, str]] = []
        self.runner_changes: list[str] = []

    def registry(self) -> RunnerRegistry:
        return RunnerRegistry(
            [RunnerAddress(name="one", url=self.runner.url)],
            self.tls,
            on_change=lambda owner, workload_id, name: self.changes.append((owner, workload_id, name)),
            on_runner_change=self.runner_changes.append,
            clock=self.time.clock,
        )

    def ids(self) -> list[str]:
        found = sorted(workload_id for _, workload_id, _ in self.changes)
        self.changes.clear()
        return found


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return make_pki(tmp_path)


def play_registry(pki: Pki, scenario: Callable[[Stage, RunnerRegistry], Awaitable[None]]) -> None:
    async def run() -> None:
        stage = Stage(pki)
        await stage.runner.start()
        registry = stage.registry()
        registry.start()
        try:
            await scenario(stage, registry)
        finally:
            await registry.close()
            await stage.runner.close()

    asyncio.run(run())


def play_client(pki: Pki, scenario: Callable[[ScriptedRunner, RunnerClient], Awaitable[None]]) -> None:
    async def run() -> None:
        runner = ScriptedRunner(pki)
        await runner.start()
        client = RunnerClient("one", runner.url, RunnerTls(make_settings(pki).runner_tls))
        try:
            await scenario(runner, client)
        finally:
            await client.close()
            await runner.close()

    asyncio.run(run())


def test_snapshot_is_applied_at_once_when_it_is_complete(pki: Pki) -> None:
    async def scenario(stage: Stage, registry: RunnerRegistry) -> None:
        state = registry.states()[0]
        stage.runner.say(StatusEvent(status=status("a")), StatusEvent(status=status("b")))
        await until(lambda: stage.runner.events.empty() and state.connected)
        await settle()
        assert (state.synced, dict(state.statuses), stage.ids()) == (False, {}, [])
        stage.runner.say(GoneEvent(id="b"), SyncedEvent(info=info()))
        assert await registry.wait_first_sync(60)
        assert (state.synced, set(state.statuses), stage.ids()) == (True, {"a"}, ["a"])
        assert registry.find("a") == [("one", status("a"))]

    play_registry(pki, scenario)


def test_changes_are_told_and_repetitions_are_not(pki: Pki) -> None:
    async def scenario(stage: Stage, registry: RunnerRegistry) -> None:
        stage.runner.say(SyncedEvent(info=info()), StatusEvent(status=status("a")), StatusEvent(status=status("a")))
        stage.runner.say(HeartbeatEvent(), StatusEvent(status=status("a", 2)), GoneEvent(id="a"), GoneEvent(id="x"))
        stage.runner.say(StatusEvent(status=status("last")))
        await until(lambda: bool(registry.find("last")))
        assert stage.changes == [(OWNER, "a", "one")] * 3 + [(OWNER, "last", "one")]
        assert registry.find("a") == []

    play_registry(pki, scenario)


def test_the_answer_to_a_put_counts_until_the_watch_brings_more(pki: Pki) -> None:
    async def scenario(stage: Stage, registry: RunnerRegistry) -> None:
        newer = status("b", sequence=2).model_copy(update={"phase": Phase.ENDED})
        stage.runner.say(SyncedEvent(info=info()), StatusEvent(status=newer))
        await until(lambda: registry.find("b") != [])
        told = len(stage.changes)
        for answer, known in ((status("a"), status("a")), (status("b"), newer), (status("b", sequence=2), newer)):
            assert registry.answered("one", "1", answer) == known
        assert registry.find("a") == [("one", status("a"))]
        assert registry.find("b") == [("one", newer)], "the watch was faster"
        registry.answered("one", "1", status("b", sequence=3))
        assert registry.find("b") == [("one", status("b", sequence=3))]
        registry.answered("one", "another start of it", status("c"))
        registry.answered("another", "1", status("c"))
        assert registry.find("c") == [], "what answered is no more"
        assert len(stage.changes) == told, "who asked knows"

    play_registry(pki, scenario)


def test_what_a_runner_is_short_of_is_told_when_it_changes(pki: Pki) -> None:
    async def scenario(stage: Stage, registry: RunnerRegistry) -> None:
        stage.runner.say(SyncedEvent(info=info()))
        await until(lambda: registry.states()[0].synced)
        stage.runner_changes.clear()
        registry.describes("one", RunnerCondition(images=()))
        assert stage.runner_changes == []
        for text in ("9 MiB are free", "8 MiB are free", ""):
            registry.describes("one", RunnerCondition(disk_pressure=text))
        registry.describes("another", RunnerCondition(disk_pressure="full"))
        assert stage.runner_changes == ["one", "one"], "when it begins, and when it is over"
        assert registry.states()[0].condition == RunnerCondition()

    play_registry(pki, scenario)


def test_after_a_break_it_connects_again_and_what_the_snapshot_lacks_is_gone(pki: Pki) -> None:
    async def scenario(stage: Stage, registry: RunnerRegistry) -> None:
        state = registry.states()[0]
        stage.runner.say(StatusEvent(status=status("a")), StatusEvent(status=status("b")), SyncedEvent(info=info()))
        await until(lambda: state.synced)
        assert stage.ids() == ["a", "b"]
        stage.runner.say(None)
        await until(lambda: not state.connected)
        # Silent is not dead: what it had is still known.
        assert (state.synced, set(state.statuses), stage.ids()) == (False, {"a", "b"}, [])
        await stage.time.advance(0.2)
        stage.runner.say(StatusEvent(status=status("b")), SyncedEvent(info=info()))
        await until(lambda: state.synced)
        assert (set(state.statuses), stage.ids(), stage.runner.watches) == ({"b"}, ["a"], 2)

    play_registry(pki, scenario)


def test_a_restarted_runner_is_told(pki: Pki) -> None:
    async def scenario(stage: Stage, registry: RunnerRegistry) -> None:
        state = registry.states()[0]
        stage.runner.say(SyncedEvent(info=info()))
        await until(lambda: state.synced)
        stage.runner.say(None)
        await until(lambda: not state.connected)
        stage.runner.info = info(instance="2")
        stage.runner_changes.clear()
        await stage.time.advance(0.2)
        await until(lambda: state.connected)
        assert state.info is not None and state.info.instance == "2"
        assert stage.runner_changes == ["one"]

    play_registry(pki, scenario)


def test_a_runner_that_is_about_to_end_is_told_once_and_until_its_next_process(pki: Pki) -> None:
    async def scenario(stage: Stage, registry: RunnerRegistry) -> None:
        state = registry.states()[0]
        stage.runner.say(SyncedEvent(info=info()))
        await until(lambda: state.synced)
        stage.runner_changes.clear()
        stage.runner.say(HeartbeatEvent(), HeartbeatEvent(leaving=True), HeartbeatEvent(leaving=True))
        await until(lambda: state.leaving)
        assert state.synced
        stage.runner.say(None)
        await until(lambda: not state.connected)
        assert state.leaving
        assert stage.runner_changes == ["one", "one"], "that it leaves, and that it is away"
        stage.runner.info = info(instance="2")
        await stage.time.advance(0.2)
        await until(lambda: state.connected)
        assert not state.leaving

    play_registry(pki, scenario)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(info(runner="two"), 'calls itself "two"'), (info(api_version="v9"), "speaks v9")],
)
def test_a_wrong_runner_is_rejected_and_tried_again(
    pki: Pki, caplog: pytest.LogCaptureFixture, wrong: RunnerInfo, message: str
) -> None:
    async def scenario(stage: Stage, registry: RunnerRegistry) -> None:
        state = registry.states()[0]
        stage.runner.info = wrong
        await until(lambda: message in caplog.text)
        assert (state.connected, state.info, stage.runner.watches) == (False, None, 0)
        stage.runner.info = info()
        stage.runner.say(SyncedEvent(info=info()))
        await stage.time.advance(0.2)
        await until(lambda: state.synced)

    async def run() -> None:
        stage = Stage(pki)
        stage.runner.info = wrong
        await stage.runner.start()
        registry = stage.registry()
        registry.start()
        try:
            await scenario(stage, registry)
        finally:
            await registry.close()
            await stage.runner.close()

    asyncio.run(run())


def test_a_listener_that_fails_does_not_cost_the_connection(pki: Pki) -> None:
    async def run() -> None:
        stage = Stage(pki)
        await stage.runner.start()

        def fail(*_: object) -> None:
            raise RuntimeError("listener")

        registry = RunnerRegistry(
            [RunnerAddress(name="one", url=stage.runner.url)],
            stage.tls,
            on_change=fail,
            on_runner_change=fail,
            clock=stage.time.clock,
        )
        registry.start()
        stage.runner.say(StatusEvent(status=status("a")), SyncedEvent(info=info()), StatusEvent(status=status("b")))
        await until(lambda: bool(registry.find("b")))
        await registry.close()
        await stage.runner.close()

    asyncio.run(run())


def test_runners_that_never_sync_are_waited_for_in_vain(pki: Pki) -> None:
    async def scenario(stage: Stage, registry: RunnerRegistry) -> None:
        assert not await registry.wait_first_sync(0)

    play_registry(pki, scenario)


def test_a_runner_that_was_away_all_the_while_is_not_waited_for_again(pki: Pki) -> None:
    async def scenario(stage: Stage, registry: RunnerRegistry) -> None:
        stage.time.seconds += 3600
        assert not await registry.wait_first_sync(3600)

    play_registry(pki, scenario)


def test_a_runner_with_another_name_in_its_certificate_is_not_talked_to(pki: Pki) -> None:
    pki.runner = pki.runner_ca.issue("other", dns=["other"], ips=["127.0.0.1"], server=True)

    async def scenario(runner: ScriptedRunner, client: RunnerClient) -> None:
        with pytest.raises(RunnerUnavailable, match="wherry-runner"):
            await client.info()

    play_client(pki, scenario)


def test_secrets_travel_as_they_are(pki: Pki) -> None:
    container = Container(
        name="c",
        module=InlineModule.model_validate({"data": "AGFzbQ=="}),
        env=(EnvironmentVariable(name="TOKEN", value=SecretStr("hush")),),
    )
    body = WorkloadPut(
        epoch=1,
        sequence=2,
        template_hash="h",
        workload=Workload(owner=OWNER, containers=(container,)),
        history=(History(container="c", started_at=datetime(2026, 1, 2, tzinfo=UTC)),),
    )

    async def scenario(runner: ScriptedRunner, client: RunnerClient) -> None:
        async def answer(_: web.Request) -> web.Response:
            return web.Response(body=status("u1").to_json())

        runner.answer = answer
        assert await client.put("u1", body) == status("u1")
        method, path, sent = runner.requests[0]
        assert (method, path) == ("PUT", "/v1/workloads/u1")
        assert WorkloadPut.model_validate_json(sent) == body
        assert json.loads(sent)["workload"]["containers"][0]["env"] == [{"name": "TOKEN", "value": "hush"}]

    play_client(pki, scenario)


def test_delete_tells_still_stopping_from_gone(pki: Pki) -> None:
    async def scenario(runner: ScriptedRunner, client: RunnerClient) -> None:
        not_found = Refusal(reason=RefusalReason.NOT_FOUND, message="no such workload").to_json()
        for answered, expected in (
            ((202, status("u1").to_json()), status("u1")),
            ((200, status("u1").to_json()), None),
            ((404, not_found), None),
        ):
            runner.answer = _with(*answered)
            assert await client.delete("u1", epoch=3, sequence=4, grace_seconds=30) == expected
        assert runner.requests[0][:2] == ("DELETE", "/v1/workloads/u1?epoch=3&sequence=4&grace=30")

    play_client(pki, scenario)


def _with(code: int, body: bytes) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=code, body=body)

    return answer


def test_refusals_and_nonsense_are_told_apart(pki: Pki) -> None:
    async def scenario(runner: ScriptedRunner, client: RunnerClient) -> None:
        stale = Refusal(reason=RefusalReason.STALE_EPOCH, message="a newer leader was here", epoch=9)
        runner.answer = _with(409, stale.to_json())
        with pytest.raises(Refused) as refused:
            await client.get("u1")
        assert refused.value.refusal == stale
        for code, body in ((502, b"<html>"), (200, b"{}")):
            runner.answer = _with(code, body)
            with pytest.raises(RunnerError) as failed:
                await client.get("u1")
            assert type(failed.value) is RunnerError
        await runner.close()
        with pytest.raises(RunnerUnavailable):
            await client.get("u1")

    play_client(pki, scenario)


def test_log_is_streamed_with_its_options_and_a_break_is_an_error(pki: Pki) -> None:
    async def scenario(runner: ScriptedRunner, client: RunnerClient) -> None:
        more = asyncio.Event()

        async def answer(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse()
            response.enable_chunked_encoding()
            await response.prepare(request)
            await response.write(b"one\n")
            await more.wait()
            assert request.transport is not None
            request.transport.abort()
            return response

        runner.answer = answer
        options = LogOptions(follow=True, tail_lines=5)
        with pytest.raises(RunnerUnavailable):
            async with client.log("u1", "c", options) as pieces:
                assert await anext(pieces) == b"one\n"
                more.set()
                await anext(pieces)
        path = runner.requests[0][1]
        assert path.startswith("/v1/workloads/u1/containers/c/log?")
        assert "follow=true" in path and "tailLines=5" in path and "sinceTime" not in path

    play_client(pki, scenario)


def test_a_log_that_is_refused_or_whose_reader_fails(pki: Pki) -> None:
    async def scenario(runner: ScriptedRunner, client: RunnerClient) -> None:
        async def refuse(_: web.Request) -> web.StreamResponse:
            return web.Response(status=404, body=Refusal(reason=RefusalReason.NO_LOG, message="none").to_json())

        runner.answer = refuse
        with pytest.raises(Refused, match="none"):
            async with client.log("u1", "c", LogOptions()):
                pass

        async def answer(request: web.Request) -> web.StreamResponse:
            return web.Response(body=b"one\n")

        runner.answer = answer
        # What goes wrong on the reader's own connection is no word about the runner.
        with pytest.raises(ConnectionResetError):
            async with client.log("u1", "c", LogOptions()) as pieces:
                assert await anext(pieces) == b"one\n"
                raise ConnectionResetError("the reader has gone")
        async with client.log("u1", "c", LogOptions()) as pieces:
            assert [piece async for piece in pieces] == [b"one\n"]

    play_client(pki, scenario)


def test_watch_splits_lines_at_newlines_only(pki: Pki) -> None:
    async def scenario(runner: ScriptedRunner, client: RunnerClient) -> None:
        odd = status("a").model_copy(update={"content_revision": "line\u2028separator"})
        runner.say(StatusEvent(status=odd).to_json()[:20], StatusEvent(status=odd).to_json()[20:] + b"\n\n", None)
        events = [event async for event in _until_end(client)]
        assert events == [StatusEvent(status=odd)]

    play_client(pki, scenario)


async def _until_end(client: RunnerClient) -> AsyncIterator[WatchEvent]:
    with pytest.raises(RunnerUnavailable, match="ended the watch"):
        async for event in client.watch():
            yield event


def test_a_renewed_client_certificate_is_used_for_the_next_connection(pki: Pki) -> None:
    async def scenario(runner: ScriptedRunner, client: RunnerClient) -> None:
        await client.info()
        first = client._connections
        renewed = pki.runner_ca.issue("wherry-operator", client=True)
        pki.operator.cert.write_bytes(renewed.cert.read_bytes())
        pki.operator.key.write_bytes(renewed.key.read_bytes())
        await client.info()
        assert first is not client._connections and first is not None and first.http.closed

    play_client(pki, scenario)


def test_a_runner_that_discovery_names_is_followed_and_one_that_moved_is_followed_there(pki: Pki) -> None:
    async def run() -> None:
        stage = Stage(pki)
        other = ScriptedRunner(pki)
        await stage.runner.start()
        await other.start()
        registry = RunnerRegistry(
            [],
            stage.tls,
            on_change=lambda owner, workload_id, name: stage.changes.append((owner, workload_id, name)),
            on_runner_change=stage.runner_changes.append,
            clock=stage.time.clock,
        )
        registry.start()
        assert registry.states() == ()
        registry.discovered([RunnerAddress(name="one", url=stage.runner.url, node="n-1")])
        stage.runner.say(StatusEvent(status=status("a")), SyncedEvent(info=info()))
        assert await registry.wait_first_sync(60)
        (state,) = registry.states()
        assert (state.node, state.silent_since) == ("n-1", None)
        registry.discovered([RunnerAddress(name="one", url=other.url, node="n-1")])
        await until(lambda: not state.synced)
        assert registry.find("a") == [("one", status("a"))], "what it had is known until it says otherwise"
        other.say(StatusEvent(status=status("b")), SyncedEvent(info=info(instance="2")))
        await until(lambda: state.synced)
        assert (state.url, registry.find("a"), registry.find("b")) == (other.url, [], [("one", status("b"))])
        await registry.close()
        await stage.runner.close()
        await other.close()

    asyncio.run(run())


def test_a_runner_that_is_no_longer_named_is_forgotten_only_when_it_was_silent_for_the_grace(pki: Pki) -> None:
    async def scenario(stage: Stage, registry: RunnerRegistry) -> None:
        state = registry.states()[0]
        stage.runner.say(StatusEvent(status=status("a")), SyncedEvent(info=info()))
        await until(lambda: state.synced)
        registry.discovered([])
        await stage.time.advance(1000)
        assert (registry.states(), state.synced) == ((state,), True), "it answers: the list must be wrong"
        stage.runner.say(HeartbeatEvent(), None)
        await until(lambda: not state.connected)
        stage.runner.info = info(runner="stranger")
        assert state.silent_since == 1000
        await stage.time.advance(30)
        assert registry.states() == (state,)
        stage.ids()
        stage.runner_changes.clear()
        while registry.states():  # each try is a real connection
            await stage.time.advance(1)
            await asyncio.sleep(0.005)
        assert stage.time.seconds >= 1060
        assert (registry.find("a"), stage.ids(), stage.runner_changes) == ([], ["a"], ["one"])
        assert registry.client("one") is None
        registry.discovered([RunnerAddress(name="one", url=stage.runner.url)])
        stage.runner.info = info()
        stage.runner.say(SyncedEvent(info=info()))
        await until(lambda: bool(registry.states()) and registry.states()[0].synced)

    play_registry(pki, scenario)


def test_a_runner_that_is_named_again_in_time_is_kept(pki: Pki) -> None:
    async def scenario(stage: Stage, registry: RunnerRegistry) -> None:
        state = registry.states()[0]
        stage.runner.say(SyncedEvent(info=info()))
        await until(lambda: state.synced)
        registry.discovered([])
        assert state.departed
        registry.discovered([RunnerAddress(name="one", url=stage.runner.url)])
        assert (state.departed, stage.runner.watches) == (False, 1)

    play_registry(pki, scenario)


def test_where_a_workload_is_is_known_through_every_change(pki: Pki) -> None:
    async def scenario(stage: Stage, registry: RunnerRegistry) -> None:
        stage.runner.say(StatusEvent(status=status("a")), SyncedEvent(info=info()), StatusEvent(status=status("b")))
        await until(lambda: bool(registry.find("b")))
        stage.runner.say(GoneEvent(id="a"), StatusEvent(status=status("c")))
        await until(lambda: bool(registry.find("c")))
        assert (registry.find("a"), registry.find("b")) == ([], [("one", status("b"))])

    play_registry(pki, scenario)
