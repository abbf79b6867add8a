"""The periodic LIST: what no object wants is dropped, but never on the word of one LIST, and never all at once."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

import pytest

from tests.support.fake_kube import FakeKube
from tests.support.fake_runners import FakeRegistry, FakeRunner, deliveries
from wherry_operator.kube import Kube, KubeError, Unavailable
from wherry_operator.objects import ObjectStore
from wherry_operator.queue import Key
from wherry_operator.reconcile.resync import DROPS_A_ROUND, Collection, Resync
from wherry_operator.runners.client import RunnerUnavailable
from wherry_operator.runners.registry import RunnerRegistry
from wherry_runner import protocol

PODS, WORKLOADS = "/api/v1/pods", "/apis/wherry.dev/v1alpha1/wasmworkloads"


def path_of(kind: str) -> Any:
    return lambda namespace, name: f"/namespaces/{namespace}/{kind}/{name}"


class Cluster:
    """Pods and WasmWorkloads, two runners, and the comparison of them."""

    def __init__(self) -> None:
        self.kube = FakeKube()
        self.runners = {name: FakeRunner(name) for name in ("one", "two")}
        self.registry = FakeRegistry(*self.runners.values())
        self.told: list[tuple[Key, str | None]] = []
        collections = [
            Collection(
                store=ObjectStore(
                    kind, accepts=lambda _: True, on_change=lambda key, gone: self.told.append((key, gone))
                ),
                paths={"": path},
                field_selector="",
                object_path=path_of(path.rpartition("/")[2]),
            )
            for kind, path in (("Pod", PODS), ("WasmWorkload", WORKLOADS))
        ]
        self.stores = [collection.store for collection in collections]
        self.resync = Resync(
            cast("Kube", self.kube),
            collections,
            registry=cast("RunnerRegistry", self.registry),
            deliveries=deliveries(self.registry),
            interval=60,
        )

    def has(self, uid: str, kind: str = "pods") -> None:
        body = {"metadata": {"name": uid, "namespace": "boats", "uid": uid}, "spec": {}}
        self.kube.put(f"/namespaces/boats/{kind}/{uid}", body)

    def runs(self, runner: str, *uids: str, instance: str = "") -> None:
        for uid in uids:
            owner = protocol.Owner(kind="Pod", namespace="boats", name=uid, uid=uid)
            self.runners[runner].state.statuses[uid + instance] = protocol.WorkloadStatus.model_validate(
                {
                    "id": uid + instance,
                    "owner": owner,
                    "phase": "Active",
                    "epoch": 1,
                    "sequence": 1,
                    "templateHash": "t",
                    "acceptedAt": "2026-01-02T03:04:05Z",
                    "containers": [],
                }
            )

    def rounds(self, number: int = 1) -> list[str]:
        """What is dropped in so many rounds."""

        async def scenario() -> None:
            for _ in range(number):
                await self.resync.once()

        for runner in self.runners.values():
            runner.deletes.clear()
        asyncio.run(scenario())
        return sorted(workload for runner in self.runners.values() for workload, _ in runner.deletes)


def test_a_workload_without_an_object_is_dropped_after_two_lists_agree() -> None:
    cluster = Cluster()
    cluster.has("wanted")
    cluster.has("also-wanted", "wasmworkloads")
    cluster.runs("one", "wanted", "orphan")
    cluster.runs("two", "also-wanted", "lost", instance="-abc")
    assert cluster.rounds() == []
    assert cluster.rounds() == ["lost-abc", "orphan"]
    assert cluster.rounds(3) == []
    assert cluster.resync.completed == 5


def test_what_a_list_forgot_once_is_not_dropped() -> None:
    cluster = Cluster()
    cluster.has("a")
    cluster.runs("one", "a")
    body = cluster.kube.remove("/namespaces/boats/pods/a")
    assert cluster.rounds() == []
    cluster.kube.put("/namespaces/boats/pods/a", body)
    assert cluster.rounds() == []
    cluster.kube.remove("/namespaces/boats/pods/a")
    assert cluster.rounds() == [], "one LIST, after one that agreed with the object"
    assert cluster.rounds() == ["a"]


@pytest.mark.parametrize("path", [PODS, WORKLOADS])
def test_a_list_that_fails_drops_nothing_and_does_not_count(path: str) -> None:
    cluster = Cluster()
    cluster.runs("one", "orphan")
    assert cluster.rounds() == []
    cluster.kube.errors[path] = [Unavailable(503, "", "no")]
    with pytest.raises(KubeError):
        cluster.rounds()
    assert cluster.runners["one"].deletes == []
    assert cluster.resync.completed == 1
    assert cluster.rounds() == ["orphan"]


def test_a_list_of_nothing_empties_no_cluster_at_once() -> None:
    cluster = Cluster()
    cluster.runs("one", *(f"w{number:03}" for number in range(2 * DROPS_A_ROUND + 10)))
    assert [len(cluster.rounds()) for _ in range(5)] == [0, DROPS_A_ROUND, DROPS_A_ROUND, 10, 0]


def test_a_silent_runner_is_left_alone_until_it_is_back() -> None:
    cluster = Cluster()
    cluster.runs("one", "orphan")
    cluster.runners["one"].go_silent()
    assert cluster.rounds(3) == []
    cluster.runners["one"].state.connected = cluster.runners["one"].state.synced = True
    assert cluster.rounds() == []
    assert cluster.rounds() == ["orphan"]


def test_a_runner_that_fails_stands_in_no_others_way(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    cluster = Cluster()
    cluster.runs("one", "a")
    cluster.runs("two", "b")
    cluster.rounds()
    cluster.runners["one"].errors = [RunnerUnavailable("no answer")]
    assert cluster.rounds() == ["b"]
    assert "dropping a failed: no answer" in caplog.text
    assert cluster.rounds() == ["a"]


def test_what_a_watch_missed_is_found() -> None:
    cluster = Cluster()
    cluster.has("a")
    cluster.rounds()
    assert cluster.told == [(Key("Pod", "boats", "a"), None)]
    cluster.kube.remove("/namespaces/boats/pods/a")
    cluster.rounds()
    assert cluster.told[-1] == (Key("Pod", "boats", "a"), "a")
