"""The virtual Node: the object, its status, and the loop that keeps it."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from datetime import timedelta
from typing import Any

import pytest

from tests.support.operator_fakes import START, FakeTime, make_settings
from wherry_operator.kube import Conflict, NotFound, PatchKind, Unavailable
from wherry_operator.models import Object
from wherry_operator.reconcile import node_object
from wherry_operator.reconcile.node import NodeKeeper
from wherry_operator.runners.registry import RunnerState
from wherry_runner.protocol import RunnerInfo

SETTINGS = make_settings()


def state(
    name: str, *, connected: bool = True, synced: bool = True, cpu: int = 1500, memory: int = 1 << 30
) -> RunnerState:
    info = RunnerInfo(
        runner=name,
        node=name,
        instance="1",
        wherry_version="0.1.0",
        engines=("python wasmtime 50.0.1",),
        cpu_millicores=cpu,
        memory_bytes=memory,
        max_workloads=100,
    )
    return RunnerState(name=name, url="https://10.0.0.1:1", info=info, connected=connected, synced=synced)


def status_of(live: Object, *states: RunnerState, later: float = 0.0) -> Object:
    return node_object.node_status(SETTINGS, 10250, states, live, START + timedelta(seconds=later), "0.1.0")


def condition(status: Object, kind: str) -> Object:
    found: Object = next(each for each in status["conditions"] if each["type"] == kind)
    return found


def live_node(status: Object | None = None) -> Object:
    return {"metadata": {"name": "wherry", "uid": "1111-2222"}, "status": copy.deepcopy(status or {})}


def test_node_has_krustlets_labels_and_both_taints() -> None:
    node = node_object.node_object(SETTINGS)
    assert node["metadata"]["labels"] == {
        "kubernetes.io/arch": "wasm32-wasi",
        "kubernetes.io/os": "wasm32-wasi",
        "beta.kubernetes.io/arch": "wasm32-wasi",
        "beta.kubernetes.io/os": "wasm32-wasi",
        "kubernetes.io/hostname": "wherry",
        "type": "virtual-kubelet",
        "node.kubernetes.io/exclude-from-external-load-balancers": "",
    }
    assert [(each["key"], each["value"], each["effect"]) for each in node["spec"]["taints"]] == [
        ("kubernetes.io/arch", "wasm32-wasi", "NoSchedule"),
        ("kubernetes.io/arch", "wasm32-wasi", "NoExecute"),
    ]


def test_capacity_is_the_sum_over_connected_runners() -> None:
    status = status_of(live_node(), state("a"), state("b", cpu=500), state("c", connected=False, synced=False))
    assert status["capacity"] == {"cpu": "2", "memory": "2Gi", "pods": "1k"}
    assert status["allocatable"] == status["capacity"]


@pytest.mark.parametrize(
    ("cpu", "memory", "expected"),
    [
        (0, 0, ("0", "0")),
        (1500, 1536 << 20, ("1500m", "1536Mi")),
        (4000, 4032800 << 10, ("4", "4032800Ki")),
        (1_000_000, (1 << 40) + 5, ("1k", "1Ti")),
    ],
)
def test_quantities_are_in_canonical_form(cpu: int, memory: int, expected: tuple[str, str]) -> None:
    capacity = status_of(live_node(), state("a", cpu=cpu, memory=memory))["capacity"]
    assert (capacity["cpu"], capacity["memory"]) == expected


def test_ready_needs_a_runner_that_is_synced() -> None:
    assert condition(status_of(live_node(), state("a")), "Ready")["reason"] == "KubeletReady"
    for none_ready in ([state("a", synced=False)], [state("a", connected=False, synced=False)], []):
        ready = condition(status_of(live_node(), *none_ready), "Ready")
        assert (ready["status"], ready["reason"]) == ("False", "NoRunner")
        assert "operator's log" in ready["message"]


def test_node_info_is_honest_and_a_version_that_tools_can_parse() -> None:
    info = status_of(live_node(), state("a"))["nodeInfo"]
    assert info["kubeletVersion"] == "v1.35.0+wherry.0.1.0"
    assert info["containerRuntimeVersion"] == "wasmtime://50.0.1"
    assert info["machineID"] == "11112222"


def test_transition_time_moves_only_when_the_status_flips() -> None:
    first = status_of(live_node(), state("a"))
    same = status_of(live_node(first), state("a"), state("b"), later=60)
    flipped = status_of(live_node(first), later=60)
    assert condition(same, "Ready")["lastTransitionTime"] == condition(first, "Ready")["lastTransitionTime"]
    assert condition(same, "Ready")["lastHeartbeatTime"] == "2026-01-02T03:05:05Z"
    assert condition(flipped, "Ready")["lastTransitionTime"] == "2026-01-02T03:05:05Z"


def must_write(live: Object, *states: RunnerState, later: float = 0.0) -> bool:
    return node_object.must_write(live, status_of(live, *states, later=later), START + timedelta(seconds=later))


def test_status_is_written_only_when_it_differs_or_the_heartbeat_is_due() -> None:
    live = live_node(status_of(live_node(), state("a")))
    assert must_write(live_node(), state("a"))
    assert not must_write(live, state("a"), later=299)
    assert must_write(live, state("a"), later=301)
    assert must_write(live, later=1)
    # The node controller's word for a silent node.
    condition(live["status"], "Ready").update(status="Unknown", reason="NodeStatusUnknown")
    assert must_write(live, state("a"), later=1)


def test_what_others_add_does_not_make_us_write_for_ever() -> None:
    live = live_node(status_of(live_node(), state("a")))
    live["status"]["capacity"]["example.com/gpu"] = "1"
    live["status"]["addresses"].append({"type": "ExternalIP", "address": "192.0.2.1"})
    live["status"]["nodeInfo"]["kubeProxyVersion"] = ""
    live["status"]["conditions"].append({"type": "NetworkUnavailable", "status": "False"})
    assert not must_write(live, state("a"))


class FakeNodes:
    """Node and Lease, as far as the keeper uses them."""

    def __init__(self) -> None:
        self.node: Object | None = None
        self.lease: Object | None = None
        self.log: list[str] = []
        self.uids = 0
        self.down = False

    def _check(self, what: str) -> None:
        if self.down:
            raise Unavailable(0, "Unavailable", "down")
        self.log.append(what)

    async def get(self, path: str) -> Object:
        self._check(f"get {path.rsplit('/', 2)[1]}")
        found = self.lease if "leases" in path else self.node
        if found is None:
            raise NotFound(404, "NotFound", "not found")
        return copy.deepcopy(found)

    async def create(self, path: str, body: Object) -> Object:
        self._check(f"create {path.rsplit('/', 1)[1]}")
        body = copy.deepcopy(body)
        self.uids += 1
        body["metadata"] |= {"uid": f"uid-{self.uids}", "resourceVersion": "1"}
        if "leases" in path:
            self.lease = body
        else:
            self.node = body
        return copy.deepcopy(body)

    async def replace(self, path: str, body: Object) -> Object:
        self._check("replace lease")
        if self.lease is None:
            raise NotFound(404, "NotFound", "not found")
        if body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise Conflict(409, "Conflict", "changed")
        self.lease = copy.deepcopy(body)
        self.lease["metadata"]["resourceVersion"] = str(int(body["metadata"]["resourceVersion"]) + 1)
        return copy.deepcopy(self.lease)

    async def patch(self, path: str, body: Object, kind: PatchKind = PatchKind.MERGE) -> Object:
        assert self.node is not None
        self._check(f"patch {path.rsplit('/', 1)[1]}")
        if "status" in body:
            assert kind is PatchKind.STRATEGIC
            self.node["status"] = copy.deepcopy(body["status"])
        else:
            self.node["metadata"].setdefault("labels", {}).update(body["metadata"]["labels"])
        return copy.deepcopy(self.node)

    def count(self, what: str) -> int:
        return self.log.count(what)


class FakeRunners:
    def __init__(self, *states: RunnerState) -> None:
        self.now = states

    def states(self) -> tuple[RunnerState, ...]:
        return self.now


def keep(scenario: Any, nodes: FakeNodes, runners: FakeRunners) -> None:
    async def run() -> None:
        time = FakeTime()
        keeper = NodeKeeper(nodes, runners, SETTINGS, 10250, clock=time.clock)
        task = asyncio.create_task(keeper.run())
        try:
            await time.advance(0)
            await scenario(time, keeper)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    asyncio.run(run())


def test_keeper_makes_the_node_and_renews_its_lease() -> None:
    nodes = FakeNodes()

    async def scenario(time: FakeTime, keeper: NodeKeeper) -> None:
        assert nodes.node is not None and nodes.lease is not None
        assert condition(nodes.node["status"], "Ready")["status"] == "True"
        assert nodes.lease["metadata"]["ownerReferences"][0]["uid"] == nodes.node["metadata"]["uid"]
        assert nodes.lease["spec"]["leaseDurationSeconds"] == 40
        assert nodes.lease["spec"]["renewTime"] == "2026-01-02T03:04:05.678901Z"
        await time.advance(31)
        assert nodes.lease["spec"]["renewTime"] == "2026-01-02T03:04:35.678901Z"
        assert (nodes.count("replace lease"), nodes.count("patch status")) == (3, 1)
        assert keeper.complaint() == ""

    keep(scenario, nodes, FakeRunners(state("a")))


def test_keeper_looks_at_once_when_poked() -> None:
    nodes, runners = FakeNodes(), FakeRunners()

    async def scenario(time: FakeTime, keeper: NodeKeeper) -> None:
        assert nodes.node is not None
        assert condition(nodes.node["status"], "Ready")["status"] == "False"
        runners.now = (state("a"),)
        keeper.poke()
        await time.advance(0)
        assert condition(nodes.node["status"], "Ready")["status"] == "True"

    keep(scenario, nodes, runners)


def test_keeper_makes_a_deleted_node_again_and_hands_it_the_lease() -> None:
    nodes = FakeNodes()

    async def scenario(time: FakeTime, keeper: NodeKeeper) -> None:
        nodes.node = None
        await time.advance(21)
        assert nodes.node is not None and nodes.lease is not None
        assert nodes.lease["metadata"]["ownerReferences"][0]["uid"] == nodes.node["metadata"]["uid"]

    keep(scenario, nodes, FakeRunners(state("a")))


def test_keeper_survives_an_outage_and_another_writer_of_the_lease() -> None:
    nodes = FakeNodes()

    async def scenario(time: FakeTime, keeper: NodeKeeper) -> None:
        nodes.down = True
        await time.advance(60)
        assert "last renewed" in keeper.complaint()
        assert nodes.lease is not None
        nodes.lease["metadata"]["resourceVersion"] = "77"
        nodes.down = False
        await time.advance(11)
        assert keeper.complaint() == ""
        assert nodes.lease["metadata"]["resourceVersion"] == "78"

    keep(scenario, nodes, FakeRunners(state("a")))


def test_labels_of_a_node_that_exists_are_set_once() -> None:
    nodes = FakeNodes()
    nodes.node = {
        "metadata": {"name": "wherry", "uid": "old", "labels": {"type": "krustlet", "mine": "1"}},
        "spec": {},
    }

    async def scenario(time: FakeTime, keeper: NodeKeeper) -> None:
        assert nodes.node is not None
        assert nodes.node["metadata"]["labels"] == {**node_object.labels(SETTINGS), "mine": "1"}
        del nodes.node["metadata"]["labels"]["type"]
        await time.advance(30)
        assert "type" not in nodes.node["metadata"]["labels"]

    keep(scenario, nodes, FakeRunners(state("a")))
