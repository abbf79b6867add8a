"""Two runners on a real API server: lost, back again, cordoned, to be left; and two operators, of which one leads."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.local import LocalCluster
from tests.cluster.registry import Registry
from tests.controlplane.conftest import MIRRORED
from tests.support import slices, wat
from tests.support.installation import Installation, apart, folder_of
from tests.support.kube import Json, Workspace, node_of
from tests.support.relay import Relay

NAME = "fleet"
"""Of this installation's node and class: it lives beside the one that all others share."""


REFUSED = "refused by a runner: epoch"
"""What an operator's log says when a runner has heard of a newer leader."""


@pytest.fixture(scope="module")
def link() -> Iterator[list[Relay]]:
    """The way to runner b."""
    links: list[Relay] = []
    yield links
    for each in links:
        each.close()


@pytest.fixture(scope="module")
def fleet(
    request: pytest.FixtureRequest, cluster: LocalCluster, registry: Registry, link: list[Relay]
) -> Iterator[Installation]:
    """An operator, and runners a and b."""
    with folder_of(NAME, request.session) as directory:
        running = Installation(
            cluster,
            directory,
            node_name=NAME,
            class_name=NAME,
            namespace="wherry-fleet",
            runners=("fleet-a", "fleet-b"),
            registry_mirrors={MIRRORED: registry.url},
            operator_flags=["--resync-seconds", "5"],
            serves_logs=False,
        )
        link.append(Relay(running.runners["fleet-b"].url.removeprefix("https://")))
        running.routes["fleet-b"] = f"https://{link[0].address}"
        with apart(running):
            yield running


@pytest.fixture
def space(fleet: Installation, registry: Registry, namespace: str, tmp_path: Path) -> Workspace:
    return Workspace(fleet, registry, namespace, tmp_path)


@pytest.fixture
def way(fleet: Installation, link: list[Relay]) -> Iterator[Relay]:
    """The way to runner b; whole again at the end."""
    yield link[0]
    link[0].mend()
    if fleet.runners["fleet-b"].process is None:
        fleet.runners["fleet-b"].start()


@pytest.fixture
def impatient(fleet: Installation) -> Iterator[Installation]:
    """The operator gives a silent runner up after three seconds instead of sixty."""
    usual = list(fleet.operator_flags)
    fleet.stop_operator()
    fleet.operator_flags += ["--runner-loss-seconds", "3"]
    fleet.start_operator()
    yield fleet
    fleet.stop_operator()
    fleet.operator_flags = usual
    fleet.start_operator()


@pytest.fixture
def node(cluster: LocalCluster) -> Iterator[str]:
    """The Node that runner b says it is on."""
    with node_of(cluster, "fleet-b", zone="z") as name:
        yield name


def service(space: Workspace, name: str, replicas: int = 2, **spec: object) -> None:
    """A service that is ready."""
    space.workload(name, className=NAME, module={"inline": wat.sleeps()}, replicas=replicas, **spec)
    space.kubectl("wait", "--for=condition=Ready", f"ww/{name}", "--timeout=60s")


def status(space: Workspace, name: str) -> Json:
    found: Json = (space.get("ww", name) or {}).get("status", {})
    return found


def by_runner(space: Workspace, name: str) -> dict[str, list[str]]:
    """The runs of a WasmWorkload's instances, by runner."""
    found: dict[str, list[str]] = {}
    for item in status(space, name).get("instances") or []:
        found.setdefault(item.get("runner", ""), []).append(item.get("containerID", ""))
    return found


def ready(space: Workspace, name: str, text: str) -> None:
    space.wait(lambda: status(space, name).get("ready") == text, f"{text} are ready")


def has(fleet: Installation, runner: str, space: Workspace, name: str) -> bool:
    """Whether a runner has something of a WasmWorkload."""
    uid = (space.get("ww", name) or {})["metadata"]["uid"]
    return bool(fleet.runners[runner].traces(uid))


def test_instances_are_spread_over_the_runners(space: Workspace) -> None:
    service(space, "spread", 4)
    assert {name: len(runs) for name, runs in by_runner(space, "spread").items()} == {"fleet-a": 2, "fleet-b": 2}


def test_a_runner_that_comes_back_in_time_has_lost_nothing(space: Workspace, way: Relay) -> None:
    service(space, "patient")
    before = by_runner(space, "patient")
    way.cut()
    ready(space, "patient", "1/2")
    way.mend()
    ready(space, "patient", "2/2")
    assert by_runner(space, "patient") == before
    assert status(space, "patient")["restarts"] == 0


def test_what_was_on_a_runner_that_died_is_started_elsewhere(
    space: Workspace, impatient: Installation, way: Relay
) -> None:
    service(space, "moves")
    (undisturbed,) = by_runner(space, "moves")["fleet-a"]
    impatient.runners["fleet-b"].kill()
    space.wait(lambda: set(by_runner(space, "moves")) == {"fleet-a"}, "both are on runner a")
    ready(space, "moves", "2/2")
    assert undisturbed in by_runner(space, "moves")["fleet-a"]
    assert status(space, "moves")["restarts"] == 1, "the one that was lost"


def test_a_runner_that_comes_back_too_late_has_to_end_its_copy(
    space: Workspace, impatient: Installation, way: Relay
) -> None:
    service(space, "late")
    way.cut()
    space.wait(lambda: set(by_runner(space, "late")) == {"fleet-a"}, "both are on runner a")
    ready(space, "late", "2/2")
    assert has(impatient, "fleet-b", space, "late"), "it runs there too, as nobody could know"
    kept = by_runner(space, "late")
    way.mend()
    space.wait(lambda: not has(impatient, "fleet-b", space, "late"), "its copy was ended")
    ready(space, "late", "2/2")
    assert by_runner(space, "late") == kept


def test_a_cordoned_node_keeps_what_it_has_and_gets_nothing_new(
    space: Workspace, fleet: Installation, node: str
) -> None:
    service(space, "cordoned")
    before = by_runner(space, "cordoned")["fleet-b"]
    space.cluster.kubectl("cordon", node)
    space.kubectl("scale", "ww/cordoned", "--replicas=4")
    ready(space, "cordoned", "4/4")
    assert by_runner(space, "cordoned")["fleet-b"] == before


def test_a_node_selector_and_a_taint_decide_where_it_may_be(space: Workspace, node: str) -> None:
    space.cluster.kubectl("taint", "node", node, "maintenance=now:NoSchedule")
    space.workload("there", className=NAME, module={"inline": wat.sleeps()}, nodeSelector={"zone": "z"})
    reason = "0/2 runners fit: 1 doesn't match the node selector, 1 has an untolerated taint {maintenance: now}"
    space.wait(lambda: ("FailedPlacement", reason) in space.events("there"), "it says why it waits")
    space.cluster.kubectl("taint", "node", node, "maintenance-")
    ready(space, "there", "1/1")
    assert set(by_runner(space, "there")) == {"fleet-b"}


def test_a_taint_that_expels_moves_what_is_there(space: Workspace, node: str) -> None:
    service(space, "leaves")
    service(space, "stays", tolerations=[{"key": "maintenance", "operator": "Exists"}])
    before = by_runner(space, "stays")
    space.cluster.kubectl("taint", "node", node, "maintenance=now:NoExecute")
    space.wait(lambda: set(by_runner(space, "leaves")) == {"fleet-a"}, "both are on runner a")
    ready(space, "leaves", "2/2")
    assert by_runner(space, "stays") == before


def test_a_follower_takes_over_from_a_leader_that_was_killed(space: Workspace, fleet: Installation) -> None:
    service(space, "steady")
    before = by_runner(space, "steady")
    with fleet.second_operator() as second:
        assert holder(space, fleet) != "second"
        fleet.kill_operator()
        killed = time.monotonic()
        space.workload("later", className=NAME, module={"inline": wat.exits(0)}, restartPolicy="Never")
        space.wait(lambda: holder(space, fleet) == "second", "the second leads")
        leads = time.monotonic() - killed
        space.wait_phase("later", "Succeeded", kind="wasmworkload")
        print(
            f"the leader killed, another leads after {leads:.1f} s; after {time.monotonic() - killed:.1f} s a new object ran"
        )
        second.wait_ready()
        assert by_runner(space, "steady") == before
        assert status(space, "steady")["restarts"] == 0
    fleet.start_operator()


def test_a_leader_that_was_frozen_finds_itself_deposed_and_does_no_harm(space: Workspace, fleet: Installation) -> None:
    service(space, "steady")
    assert fleet.operator is not None
    frozen = fleet.operator
    with fleet.second_operator():
        frozen.signal(signal.SIGSTOP)
        since = time.monotonic()
        space.wait(lambda: holder(space, fleet) == "second", "the second leads")
        space.kubectl("scale", "ww/steady", "--replicas=3")
        ready(space, "steady", "3/3")
        print(f"a third instance runs {time.monotonic() - since:.1f} s after the leader was frozen")
        after = by_runner(space, "steady")
        frozen.signal(signal.SIGCONT)
        space.wait(lambda: not frozen.running, "the first has ended")
        service(space, "another", 1)
        assert by_runner(space, "steady") == after
        assert status(space, "steady")["restarts"] == 0
    fleet.stop_operator()
    fleet.start_operator()


def test_an_operator_starts_while_a_runner_is_silent_and_keeps_its_lease(
    space: Workspace, fleet: Installation, way: Relay
) -> None:
    way.cut()
    fleet.stop_operator()
    fleet.start_operator()
    taken = renewed(space, fleet)
    space.wait(lambda: renewed(space, fleet) > taken, "the Lease is renewed")
    service(space, "first", 1)
    assert fleet.operator is not None and fleet.operator.running


def test_a_deposed_leader_that_has_not_heard_of_it_is_refused_by_the_runners(
    space: Workspace, fleet: Installation
) -> None:
    """It is cut off from the API server, so it still wants what was wanted, and to the runners it has a way."""
    service(space, "steady", 3)
    fleet.stop_operator()
    with contextlib.closing(Relay(fleet.cluster.server.removeprefix("https://"))) as api:
        fleet.api_route = f"https://{api.address}"
        fleet.start_operator()
        fleet.api_route = ""
        deposed = fleet.operator
        assert deposed is not None
        with fleet.second_operator():
            before_it = renewed(space, fleet)
            space.wait(lambda: renewed(space, fleet) != before_it, "its Lease is renewed: it has ten seconds")
            api.cut()
            space.cluster.kubectl(
                "patch", "lease", f"wherry-operator-{NAME}", "-n", fleet.namespace, "--type=merge",
                "-p", '{"spec":{"holderIdentity":""}}',
            )  # fmt: skip
            space.wait(lambda: holder(space, fleet) == "second", "the second leads")
            before = {item["containerID"] for item in status(space, "steady")["instances"]}
            refused = deposed.log.read_text().count(REFUSED)
            space.kubectl("scale", "ww/steady", "--replicas=1")
            # Two are gone then, and who knows nothing of that starts them again.
            space.wait(lambda: deposed.log.read_text().count(REFUSED) > refused, "a runner has refused the first")
            space.wait(lambda: not deposed.running, "the first has ended")
            ready(space, "steady", "1/1")
            (left,) = status(space, "steady")["instances"]
            assert left["containerID"] in before
            uid = (space.get("ww", "steady") or {})["metadata"]["uid"]
            own = uid + left["name"].removeprefix("steady")
            there = [trace for runner in fleet.runners.values() for trace in runner.traces(uid)]
            assert there and all(trace.startswith(own) for trace in there), there
    fleet.stop_operator()
    fleet.start_operator()


def test_metrics_and_readiness_say_how_it_stands(space: Workspace, fleet: Installation, way: Relay) -> None:
    service(space, "counted")

    def metrics(address: str = fleet.health_address) -> dict[str, float]:
        lines = (line.rpartition(" ") for line in fetch(f"http://{address}/metrics").splitlines() if line[0] != "#")
        return {name: float(value) for name, _, value in lines}

    found = metrics()
    assert found["wherry_operator_leader"] == 1
    assert found['wherry_operator_runners{state="ready"}'] == 2
    assert found['wherry_operator_workloads{phase="Running"}'] >= 1
    assert found["wherry_operator_instances"] >= 2
    assert found['wherry_operator_reconcile_duration_seconds_count{kind="WasmWorkload",result="ok"}'] >= 1
    checks = [f"[+]{check} ok" for check in ("leader", "nodes", "resync", "node")]
    space.wait(lambda: all(each in fetch(f"http://{fleet.health_address}/readyz") for each in checks), "it is ready")
    way.cut()
    space.wait(lambda: metrics()['wherry_operator_runners{state="silent"}'] == 1, "one is silent")
    with fleet.second_operator() as second:
        assert metrics(second.health_address)["wherry_operator_leader"] == 0
        assert "[+]leader ok" in fetch(f"http://{second.health_address}/readyz")


def test_runners_are_found_by_their_services_slices_with_the_operators_own_rights(installation: Installation) -> None:
    def put(name: str, address: str, node: str, service: str = slices.SERVICE) -> Coroutine[Any, Any, None]:
        return asyncio.to_thread(slices.put, installation, name, address, node, service=service)

    async def run() -> None:
        await put("runners-1", "192.0.2.1", "n-1")
        async with slices.discovering(installation) as (found, way):
            await found.until(n_1="192.0.2.1")
            await put("others", "192.0.2.3", "n-3", "others")
            await put("runners-2", "192.0.2.2", "n-2")
            await found.until(n_1="192.0.2.1", n_2="192.0.2.2")
            way.cut()
            await put("runners-1", "192.0.2.9", "n-1")
            await asyncio.to_thread(slices.remove, installation, "runners-2")
            way.mend()
            await found.until(n_1="192.0.2.9")

    try:
        asyncio.run(run())
    finally:
        slices.remove(installation, "runners-1", "runners-2", "others")


def fetch(url: str) -> str:
    """What a plain HTTP address answers, whether it is well or not."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=10) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return error.read().decode()


def lease(space: Workspace, fleet: Installation) -> Json:
    """The spec of the operators' Lease."""
    found: Json = (space.cluster.get("lease", f"wherry-operator-{NAME}", fleet.namespace) or {}).get("spec", {})
    return found


def holder(space: Workspace, fleet: Installation) -> str:
    """Who leads."""
    return str(lease(space, fleet).get("holderIdentity", ""))


def renewed(space: Workspace, fleet: Installation) -> str:
    """When the leader said so last."""
    return str(lease(space, fleet)["renewTime"])
