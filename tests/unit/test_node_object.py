"""The virtual Node: the object, its status, and the loop that keeps it."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from dataclasses import replace
from datetime import timedelta
from typing import Any, cast

import pytest

from tests.support.operator_fakes import START, FakeTime, make_settings
from wherry_operator.kube import Conflict, Forbidden, KubeError, NotFound, PatchKind, Unavailable
from wherry_operator.models import Object
from wherry_operator.placement import Demand
from wherry_operator.reconcile import node_object, node_status
from wherry_operator.reconcile.node import NodeKeeper
from wherry_operator.reconcile.node_status import Fleet
from wherry_operator.runners.client import RunnerClient, RunnerUnavailable
from wherry_operator.runners.ledger import Reserved
from wherry_operator.runners.registry import RunnerState
from wherry_runner.protocol import Image, RunnerCondition, RunnerInfo

SETTINGS = make_settings()


def state(
    name: str,
    *,
    connected: bool = True,
    synced: bool = True,
    cpu: int = 1500,
    memory: int = 1 << 30,
    workloads: int = 600,
) -> RunnerState:
    info = RunnerInfo(
        runner=name,
        node=name,
        instance="1",
        wherry_version="0.1.0",
        engines=("python wasmtime 50.0.1",),
        cpu_millicores=cpu,
        memory_bytes=memory,
        max_workloads=workloads,
        default_memory_request_bytes=4 << 20,
    )
    return RunnerState(name=name, url="https://10.0.0.1:1", info=info, connected=connected, synced=synced)


def status_of(live: Object, *states: RunnerState, later: float = 0.0) -> Object:
    return status_of_fleet(Fleet(states=states), live, later=later)


def status_of_fleet(fleet: Fleet, live: Object | None = None, *, later: float = 0.0) -> Object:
    now = START + timedelta(seconds=later)
    return node_status.node_status(SETTINGS, 10250, fleet, live or live_node(), now, "0.1.0")


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


def test_what_wasm_workloads_have_is_not_offered_to_pods() -> None:
    reserved = {
        "a": Reserved(demand=Demand(memory_bytes=256 << 20, defaults=2, cpu_millicores=200), instances=3),
        # After its settings were changed it has more than it offers: that is nothing of the other's.
        "b": Reserved(demand=Demand(memory_bytes=8 << 30, cpu_millicores=9000), instances=900),
        "gone": Reserved(demand=Demand(cpu_millicores=1), instances=1),
    }
    status = status_of_fleet(Fleet(states=(state("a", workloads=100), state("b")), reserved=reserved))
    assert status["capacity"] == {"cpu": "3", "memory": "2Gi", "pods": "700"}
    assert status["allocatable"] == {"cpu": "1300m", "memory": "760Mi", "pods": "97"}


def test_the_node_is_under_pressure_where_every_runner_is() -> None:
    def found(**said: str) -> tuple[str, str, str]:
        conditions = {name: RunnerCondition(disk_pressure=text) for name, text in said.items()}
        states = (state("a"), state("b"), state("c", connected=False, synced=False))
        status = status_of_fleet(Fleet(states=states, conditions=conditions))
        assert condition(status, "MemoryPressure")["status"] == condition(status, "PIDPressure")["status"] == "False"
        disk = condition(status, "DiskPressure")
        return disk["status"], disk["reason"], disk["message"]

    assert found() == ("False", "KubeletHasNoDiskPressure", "0 of 2 runners are short")
    assert found(a="full", c="full") == ("False", "KubeletHasNoDiskPressure", "1 of 2 runners are short: a: full")
    assert found(a="full", b="too") == ("True", "KubeletHasDiskPressure", "2 of 2 runners are short: a: full; b: too")
    assert len(found(a="x" * 10_000)[2]) < 300
    alone = status_of(live_node(), state("a", connected=False, synced=False))
    assert {condition(alone, kind)["status"] for kind in ("MemoryPressure", "DiskPressure", "PIDPressure")} == {
        "Unknown"
    }


def test_images_are_listed_once_the_largest_first_and_bounded() -> None:
    def listed(**images: list[Image]) -> list[Object]:
        conditions = {name: RunnerCondition(images=tuple(each)) for name, each in images.items()}
        states = (state("a"), state("b"), state("c", connected=False, synced=False))
        found: list[Object] = status_of_fleet(Fleet(states=states, conditions=conditions))["images"]
        return found

    x, y = "r.example/x@sha256:1", "r.example/y@sha256:2"
    both = listed(
        a=[Image(names=(x, "r.example/x:v1"), size_bytes=5)],
        b=[Image(names=(x, "r.example/x:v2"), size_bytes=5), Image(names=(y,), size_bytes=7)],
        c=[Image(names=("away",), size_bytes=9)],
    )
    assert both == [
        {"names": [y], "sizeBytes": 7},
        {"names": [x, "r.example/x:v1", "r.example/x:v2"], "sizeBytes": 5},
    ]
    assert len(listed(a=[Image(names=(f"r.example/{number}:v1",), size_bytes=number) for number in range(99)])) == 50
    assert listed(a=[Image(names=(), size_bytes=1), Image(names=("x" * 10_000,), size_bytes=1)]) == []
    (kept,) = listed(a=[Image(names=("x" * 10_000, "short"), size_bytes=1)])
    assert kept["names"] == ["short"]


def test_an_image_that_went_is_no_longer_listed() -> None:
    fleet = Fleet(states=(state("a"),), conditions={"a": RunnerCondition(images=(Image(names=("x",), size_bytes=1),))})
    live = live_node(status_of_fleet(fleet))
    assert not node_status.must_write(live, status_of_fleet(fleet, live), START)
    assert must_write(live, state("a"))


TAINTS = node_object.taints(SETTINGS)
OWNER: Object = {"metadata": {"name": "wherry-operator-wherry", "uid": "owner-2"}}
REFERENCE = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRole",
    "name": "wherry-operator-wherry",
    "uid": "owner-2",
}


def test_taints_and_owner_of_a_node_that_exists_are_brought_to_the_settings() -> None:
    theirs = {"key": "example.com/theirs", "effect": "NoSchedule"}
    same = {"kind": "Other", "uid": "other"}

    def correction(taints: list[Object], owners: list[Object], owner: Object | None = OWNER) -> Object | None:
        metadata: Object = {"name": "wherry", "resourceVersion": "7", "ownerReferences": owners}
        live: Object = {"metadata": metadata, "spec": {"taints": taints}}
        return node_object.correction(live, SETTINGS, owner)

    assert correction([*TAINTS, theirs], [same, REFERENCE]) is None
    assert correction(list(reversed(TAINTS)), [], owner=None) is None
    assert correction([theirs, TAINTS[0]], [REFERENCE]) == {
        "metadata": {"resourceVersion": "7"},
        "spec": {"taints": [theirs, *TAINTS]},
    }
    another_value = [{**each, "value": "another"} for each in TAINTS]
    assert correction(another_value, [REFERENCE]) == {"metadata": {"resourceVersion": "7"}, "spec": {"taints": TAINTS}}
    # The release was installed anew: what has the old UID would be deleted with it.
    before = {**REFERENCE, "uid": "owner-1"}
    expected = {"metadata": {"resourceVersion": "7", "ownerReferences": [same, REFERENCE]}}
    assert correction(TAINTS, [before, same]) == expected
    assert correction(TAINTS, [same]) == expected


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
    return node_status.must_write(live, status_of(live, *states, later=later), START + timedelta(seconds=later))


def test_status_is_written_only_when_it_differs_or_the_heartbeat_is_due() -> None:
    live = live_node(status_of(live_node(), state("a")))
    assert must_write(live_node(), state("a"))
    assert not must_write(live, state("a"), later=299)
    assert must_write(live, state("a"), later=301)
    assert must_write(live, later=1)
    assert must_write(live, state("a"), later=-3600), "the clock was set back"
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
    """Node, its owner and Lease, as far as the keeper uses them."""

    def __init__(self) -> None:
        self.node: Object | None = None
        self.lease: Object | None = None
        self.log: list[str] = []
        self.uids = 0
        self.down = False
        self.owner: Object | None = OWNER
        self.refusals: list[KubeError] = []
        """Raised one by one where the operator itself changes the Node."""

    def _check(self, what: str) -> None:
        if self.down:
            raise Unavailable(0, "Unavailable", "down")
        self.log.append(what)

    async def get(self, path: str) -> Object:
        self._check(f"get {path.rsplit('/', 2)[1]}")
        found = self.owner if "clusterroles" in path else self.lease if "leases" in path else self.node
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
        elif "labels" in body["metadata"]:
            self.node["metadata"].setdefault("labels", {}).update(body["metadata"]["labels"])
        else:
            if self.refusals:
                raise self.refusals.pop(0)
            self.node["metadata"].update(body["metadata"])
            self.node["spec"] = {**self.node.get("spec", {}), **body.get("spec", {})}
        return copy.deepcopy(self.node)

    def count(self, what: str) -> int:
        return self.log.count(what)


class FakeRunners:
    def __init__(self, *states: RunnerState) -> None:
        self.now = states
        self.says: RunnerCondition | Exception = RunnerCondition()

    def states(self) -> tuple[RunnerState, ...]:
        return self.now

    def client(self, name: str) -> RunnerClient | None:
        return cast("RunnerClient", _FakeClient(name, self))

    def describes(self, name: str, condition: RunnerCondition) -> None:
        next(state for state in self.now if state.name == name).condition = condition


class _FakeClient:
    def __init__(self, name: str, runners: FakeRunners) -> None:
        self.name = name
        self._runners = runners

    async def condition(self) -> RunnerCondition:
        if isinstance(self._runners.says, Exception):
            raise self._runners.says
        return self._runners.says


def keep(scenario: Any, nodes: FakeNodes, runners: FakeRunners) -> None:
    async def run() -> None:
        time = FakeTime()
        settings = replace(SETTINGS, node_owner="wherry-operator-wherry")
        keeper = NodeKeeper(nodes, nodes, runners, settings, 10250, clock=time.clock)
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


def test_renewals_of_the_lease_count_also_by_a_clock_that_was_set_back() -> None:
    nodes = FakeNodes()

    async def scenario(time: FakeTime, keeper: NodeKeeper) -> None:
        def renewed() -> str:
            assert nodes.lease is not None
            return str(nodes.lease["spec"]["renewTime"])

        before = [renewed()]
        time.ahead_seconds = -3600
        for _ in range(3):
            await time.advance(10)
            before.append(renewed())
        assert before == sorted(set(before)), "each is later than the one before"
        time.ahead_seconds = 0
        await time.advance(10)
        assert renewed() == "2026-01-02T03:04:45.678901Z"

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


def existing(taints: list[Object]) -> Object:
    return {
        "metadata": {"name": "wherry", "uid": "u", "resourceVersion": "1", "labels": node_object.labels(SETTINGS)},
        "spec": {"taints": taints},
    }


def test_keeper_corrects_what_a_node_may_not_change_of_itself() -> None:
    nodes = FakeNodes()
    nodes.node = existing([])

    async def scenario(time: FakeTime, keeper: NodeKeeper) -> None:
        assert nodes.node is not None
        assert nodes.node["spec"]["taints"] == TAINTS
        assert nodes.node["metadata"]["ownerReferences"] == [REFERENCE]
        patches = nodes.count("patch wherry")
        nodes.node["spec"]["taints"] = []
        await time.advance(60)
        assert nodes.count("patch wherry") == patches, "what an administrator changes later stays"

    keep(scenario, nodes, FakeRunners(state("a")))


def test_keeper_tries_a_correction_again_that_somebody_came_before() -> None:
    nodes = FakeNodes()
    nodes.node = existing([])
    nodes.refusals = [Conflict(409, "Conflict", "changed")]

    async def scenario(time: FakeTime, keeper: NodeKeeper) -> None:
        assert nodes.node is not None and nodes.node["spec"]["taints"] == []
        await time.advance(10)
        assert nodes.node["spec"]["taints"] == TAINTS

    keep(scenario, nodes, FakeRunners(state("a")))


def test_keeper_goes_on_where_it_may_not_correct(caplog: pytest.LogCaptureFixture) -> None:
    nodes = FakeNodes()
    nodes.node = existing([])
    nodes.refusals = [Forbidden(403, "Forbidden", "nodes is forbidden")]

    async def scenario(time: FakeTime, keeper: NodeKeeper) -> None:
        assert nodes.node is not None
        assert condition(nodes.node["status"], "Ready")["status"] == "True"

    keep(scenario, nodes, FakeRunners(state("a")))
    assert "owner and taints of the Node wherry are not what the settings say" in caplog.text


def test_keeper_makes_the_node_also_where_its_owner_is_not_there(caplog: pytest.LogCaptureFixture) -> None:
    nodes = FakeNodes()
    nodes.owner = None

    async def scenario(time: FakeTime, keeper: NodeKeeper) -> None:
        assert nodes.node is not None and "ownerReferences" not in nodes.node["metadata"]

    keep(scenario, nodes, FakeRunners(state("a")))
    assert "the Node wherry will outlive its release" in caplog.text


def test_keeper_remembers_what_a_runner_said_last() -> None:
    nodes, runners = FakeNodes(), FakeRunners(state("a"))
    runners.says = RunnerCondition(pid_pressure="none left")

    async def scenario(time: FakeTime, keeper: NodeKeeper) -> None:
        def pressure() -> str:
            assert nodes.node is not None
            return str(condition(nodes.node["status"], "PIDPressure")["status"])

        assert pressure() == "True"
        runners.says = RunnerUnavailable("no answer")
        await time.advance(20)
        assert pressure() == "True"
        runners.says = RunnerCondition()
        await time.advance(10)
        assert pressure() == "False"

    keep(scenario, nodes, runners)
