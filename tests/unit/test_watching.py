"""Following a small collection, and what is followed: nodes, and the EndpointSlices that say where runners are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import Any, cast

import pytest

from tests.support.operator_fakes import FakeTime, settle
from wherry_operator.kube import Kube, KubeError, Unavailable
from wherry_operator.placement import NodeFacts
from wherry_operator.runners.discovery import Discovery, Endpoint, endpoints
from wherry_operator.runners.nodes import ClusterNodes
from wherry_operator.settings import RunnerAddress
from wherry_operator.watching import LAST_BACKOFF_SECONDS, Watched

Json = dict[str, Any]

GONE = KubeError(410, "Expired", "too old resource version")
AWAY = Unavailable(0, "Unavailable", "the API server does not answer")


class FakeCollection:
    """What of `Kube` is used: a list that a test changes, and events that it sends."""

    def __init__(self) -> None:
        self.bodies: list[Json] = []
        self.version = 0
        self.events: asyncio.Queue[tuple[str, Json] | KubeError | None] = asyncio.Queue()
        self.errors: list[KubeError] = []
        self.lists: list[tuple[str, str]] = []
        self.watched_from: list[str] = []

    def put(self, name: str, **body: Any) -> Json:
        """An object as it is from now on."""
        self.version += 1
        made = {"metadata": {"name": name, "resourceVersion": str(self.version)}, **body}
        self.bodies = [each for each in self.bodies if each["metadata"]["name"] != name] + [made]
        return made

    def say(self, *events: tuple[str, Json] | KubeError | None) -> None:
        for event in events:
            self.events.put_nowait(event)

    async def list_objects(self, path: str, *, label_selector: str = "") -> tuple[list[Json], str]:
        self.lists.append((path, label_selector))
        if self.errors:
            raise self.errors.pop(0)
        return list(self.bodies), str(self.version)

    async def watch(
        self, path: str, version: str, *, label_selector: str = ""
    ) -> AsyncGenerator[tuple[str, Json], None]:
        self.watched_from.append(version)
        while (event := await self.events.get()) is not None:
            if isinstance(event, KubeError):
                raise event
            yield event


class Stage:
    def __init__(self) -> None:
        self.kube = FakeCollection()
        self.time = FakeTime()
        self.changes: list[set[str]] = []
        self.watched = Watched(
            cast("Kube", self.kube),
            "/things",
            keep=lambda body: body.get("value"),
            on_change=self.changes.append,
            clock=self.time.clock,
        )

    def told(self) -> list[set[str]]:
        found, self.changes[:] = list(self.changes), []
        return found


def play(scenario: Callable[[Stage], Awaitable[None]], *, prepare: Callable[[FakeCollection], object]) -> None:
    async def run() -> None:
        stage = Stage()
        prepare(stage.kube)
        task = asyncio.create_task(stage.watched.run())
        await settle()
        try:
            await scenario(stage)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def test_it_lists_and_then_follows_and_tells_only_what_counts() -> None:
    async def scenario(stage: Stage) -> None:
        assert stage.watched.items == {"a": 1}
        assert (stage.told(), stage.watched.complaint(), stage.kube.watched_from) == ([{"a"}], "", ["1"])
        stage.kube.say(("MODIFIED", stage.kube.put("a", value=1)), ("ADDED", stage.kube.put("b", value=2)))
        await settle()
        assert (stage.watched.items, stage.told()) == ({"a": 1, "b": 2}, [{"b"}])
        stage.kube.say(("DELETED", stage.kube.put("a", value=1)))
        await settle()
        assert (stage.watched.items, stage.told()) == ({"b": 2}, [{"a"}])

    play(scenario, prepare=lambda kube: kube.put("a", value=1))


def test_what_was_written_here_is_not_undone_by_what_the_watch_brings_late() -> None:
    async def scenario(stage: Stage) -> None:
        late, own, after = (stage.kube.put("a", value=number) for number in (2, 3, 4))
        stage.watched.wrote(own)
        stage.kube.say(("MODIFIED", late))
        await settle()
        assert stage.watched.items == {"a": 3}
        stage.kube.say(("MODIFIED", own), ("MODIFIED", after))
        await settle()
        assert stage.watched.items == {"a": 4}
        stage.watched.wrote(stage.kube.put("a", value=5))
        stage.kube.say(("DELETED", stage.kube.put("a", value=5)))
        await settle()
        assert stage.watched.items == {}

    play(scenario, prepare=lambda kube: kube.put("a", value=1))


def test_a_stream_that_ends_goes_on_where_it_was_also_after_a_bookmark() -> None:
    async def scenario(stage: Stage) -> None:
        await stage.time.advance(300)
        stage.kube.say(("BOOKMARK", {"metadata": {"resourceVersion": "77"}}), None)
        await settle()
        assert stage.kube.watched_from == ["1", "77"]
        assert len(stage.kube.lists) == 1
        assert stage.watched.items == {"a": 1}

    play(scenario, prepare=lambda kube: kube.put("a", value=1))


def test_streams_that_end_at_once_are_not_asked_for_without_a_pause() -> None:
    async def scenario(stage: Stage) -> None:
        stage.kube.say(None, None, None)
        await settle()
        assert len(stage.kube.watched_from) == 1
        await stage.time.advance(1)
        assert len(stage.kube.watched_from) == 3
        assert (len(stage.kube.lists), stage.watched.complaint()) == (1, "")

    play(scenario, prepare=lambda kube: kube.put("a", value=1))


@pytest.mark.parametrize("error", [GONE, AWAY])
def test_after_an_error_everything_is_read_again_and_what_vanished_meanwhile_is_told(error: KubeError) -> None:
    async def scenario(stage: Stage) -> None:
        stage.told()
        stage.kube.bodies.clear()
        stage.kube.put("b", value=2)
        stage.kube.say(error)
        await settle()
        assert stage.watched.items == {"a": 1}, "what was known last, until something else is"
        assert bool(stage.watched.complaint()) == (error is AWAY)
        await stage.time.advance(1)
        assert (stage.watched.items, stage.told()) == ({"b": 2}, [{"a", "b"}])
        assert stage.watched.complaint() == ""

    play(scenario, prepare=lambda kube: kube.put("a", value=1))


def test_until_it_was_read_once_it_is_not_synced_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(stage: Stage) -> None:
        assert not stage.watched.synced.is_set()
        assert stage.watched.complaint() == AWAY.message
        await stage.time.advance(3 * LAST_BACKOFF_SECONDS)
        assert stage.watched.synced.is_set()
        assert stage.told() == [set()], "an empty one is told too, once"
        assert caplog.text.count(AWAY.message) == 1

    play(scenario, prepare=lambda kube: kube.errors.extend([AWAY] * 4))


def test_nodes_are_told_of_when_what_placing_needs_has_changed() -> None:
    async def run() -> None:
        kube, changes = FakeCollection(), list[set[str]]()
        ready = {"conditions": [{"type": "Ready", "status": "True"}]}
        kube.put("n", spec={}, status=ready)
        nodes = ClusterNodes(cast("Kube", kube), on_change=changes.append)
        task = asyncio.create_task(nodes.run())
        await settle()
        assert nodes.facts("n") == NodeFacts(labels={"kubernetes.io/hostname": "n"})
        assert nodes.facts("other") == NodeFacts(labels={"kubernetes.io/hostname": "other"})
        kube.say(("MODIFIED", kube.put("n", spec={}, status={**ready, "addresses": []})))
        kube.say(("MODIFIED", kube.put("n", spec={"unschedulable": True}, status=ready)))
        await settle()
        assert changes == [{"n"}, {"n"}]
        assert nodes.facts("n").unschedulable
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def endpoint_slice(*endpoints: Json, ports: Iterable[tuple[str, int]] = (("api", 8443),), **more: Any) -> Json:
    return {
        "addressType": "IPv4",
        "endpoints": list(endpoints),
        "ports": [{"name": name, "port": port} for name, port in ports],
        **more,
    }


def endpoint(address: str, node: str = "", pod: str = "", **conditions: bool) -> Json:
    found: Json = {"addresses": [address], "conditions": conditions}
    if node:
        found["nodeName"] = node
    if pod:
        found["targetRef"] = {"kind": "Pod", "name": pod}
    return found


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (endpoint_slice(endpoint("10.0.0.1", "n-1", ready=True)), [("n-1", "https://10.0.0.1:8443", "n-1", False)]),
        (endpoint_slice(endpoint("10.0.0.1", "n-1", ready=False)), [("n-1", "https://10.0.0.1:8443", "n-1", False)]),
        (
            endpoint_slice(endpoint("10.0.0.1", "n-1", terminating=True)),
            [("n-1", "https://10.0.0.1:8443", "n-1", True)],
        ),
        (endpoint_slice(endpoint("10.0.0.1", pod="p-1")), [("p-1", "https://10.0.0.1:8443", "", False)]),
        (
            endpoint_slice(endpoint("fd00::1", "n-1"), addressType="IPv6"),
            [("n-1", "https://[fd00::1]:8443", "n-1", False)],
        ),
        (
            endpoint_slice(endpoint("10.0.0.1", "n-1"), ports=[("health", 1), ("api", 2)]),
            [("n-1", "https://10.0.0.1:2", "n-1", False)],
        ),
        (
            endpoint_slice(endpoint("10.0.0.1", "n-1"), ports=[("https", 3)]),
            [("n-1", "https://10.0.0.1:3", "n-1", False)],
        ),
        (endpoint_slice(endpoint("10.0.0.1", "n-1"), ports=[("a", 1), ("b", 2)]), []),
        (endpoint_slice(endpoint("10.0.0.1", "n-1"), ports=[]), []),
        (endpoint_slice(endpoint("10.0.0.1")), []),
        ({"addressType": "IPv4", "endpoints": None, "ports": None}, []),
    ],
)
def test_what_a_slice_names(body: Json, expected: list[tuple[str, str, str, bool]]) -> None:
    assert list(endpoints(body)) == [
        Endpoint(RunnerAddress(name=name, url=url, node=node), leaving=leaving) for name, url, node, leaving in expected
    ]


def test_runners_of_all_slices_are_named_and_of_two_on_a_node_the_one_that_stays() -> None:
    async def run() -> None:
        kube, told = FakeCollection(), list[dict[str, str]]()
        discovery = Discovery(
            cast("Kube", kube),
            namespace="wherry",
            service="runners",
            on_discovered=lambda runners: told.append({runner.name: runner.url for runner in runners}),
        )
        kube.put("s-1", **endpoint_slice(endpoint("10.0.0.1", "n-1"), endpoint("10.0.0.2", "n-2")))
        kube.put("s-2", **endpoint_slice(endpoint("10.0.0.3", "n-1", terminating=True), endpoint("10.0.0.4", "n-4")))
        task = asyncio.create_task(discovery.run())
        await settle()
        first = {"n-1": "https://10.0.0.1:8443", "n-2": "https://10.0.0.2:8443", "n-4": "https://10.0.0.4:8443"}
        assert told == [first]
        assert kube.lists[0][1] == "kubernetes.io/service-name=runners"
        kube.say(("DELETED", kube.put("s-1")))
        await settle()
        assert told[1:] == [{"n-1": "https://10.0.0.3:8443", "n-4": "https://10.0.0.4:8443"}]
        assert discovery.complaint() == ""
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
