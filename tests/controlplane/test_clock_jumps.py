"""Operator and runner whose clocks are set by an hour while they work, beside a Kubernetes whose clock is right.

How long something took is measured by clocks that don't jump. What Kubernetes' own controllers judge by the date is judged by
it here as well: deadlines and times to live that are counted from a date in the object.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.cluster.local import LocalCluster
from tests.cluster.registry import Registry
from tests.support import node_monitor, wat
from tests.support.installation import Installation, folder_of
from tests.support.jumping_clock import JumpingClock
from tests.support.kube import MIRRORED, Json, Workspace, conditions

NAME = "jumpy"
"""Of this installation's node and class."""

HOUR = 3600


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> JumpingClock:
    return JumpingClock(tmp_path_factory.mktemp("clock"))


@pytest.fixture(scope="module")
def jumpy(
    request: pytest.FixtureRequest, cluster: LocalCluster, registry: Registry, clock: JumpingClock
) -> Iterator[Installation]:
    """An operator and a runner by that clock."""
    with (
        folder_of(NAME, request.session) as directory,
        Installation(
            cluster,
            directory,
            node_name=NAME,
            class_name=NAME,
            namespace="wherry-jumpy",
            runners=["runner-j"],
            registry_mirrors={MIRRORED: registry.url},
            serves_logs=False,
            variables=clock.environment,
        ) as running,
    ):
        yield running
    cluster.kubectl("delete", "node", NAME, "--ignore-not-found")


@pytest.fixture
def space(
    jumpy: Installation, clock: JumpingClock, registry: Registry, namespace: str, tmp_path: Path
) -> Iterator[Workspace]:
    yield Workspace(jumpy, registry, namespace, tmp_path)
    clock.jump(0)


def workload(space: Workspace, name: str, module: str, **spec: object) -> None:
    space.workload(name, className=NAME, module={"inline": module}, **spec)


def runs(space: Workspace, name: str) -> set[str]:
    """The runs of a WasmWorkload's instances."""
    found: Json = (space.get("ww", name) or {}).get("status", {})
    return {each["containerID"] for each in found["instances"]}


def standing(space: Workspace) -> Json:
    """What a clock must change nothing of."""
    node, pod = space.get("node", NAME) or {}, space.container("pod")
    lease = leader_lease(space)
    ready = conditions(node)["Ready"]
    return {
        "service": (runs(space, "service"), (space.get("ww", "service") or {})["status"]["restarts"]),
        "run": (runs(space, "run"), space.phase("run", kind="ww")),
        "pod": (pod["containerID"], pod["restartCount"], space.phase("pod")),
        "leader": (lease["holderIdentity"], lease["leaseTransitions"]),
        "node": (ready["status"], ready["lastTransitionTime"]),
    }


def leader_lease(space: Workspace) -> Json:
    found = space.cluster.get("lease", f"wherry-operator-{NAME}", space.installation.namespace)
    assert found is not None
    spec: Json = found["spec"]
    return spec


def goes_by(space: Workspace, seconds_ahead: int) -> None:
    """Wait until the operator has written a date that is so far ahead."""

    def seen() -> bool:
        found = datetime.fromisoformat(leader_lease(space)["renewTime"]) - datetime.now(UTC)
        return abs(found - timedelta(seconds=seconds_ahead)) < timedelta(seconds=HOUR / 4)

    space.wait(seen, "the operator goes by its new clock")


def renewals(space: Workspace, number: int) -> None:
    """Wait until the Node's Lease was renewed so often."""
    for _ in range(number):
        before = space.cluster.get("lease", NAME, "kube-node-lease")

        def renewed(before: Json | None = before) -> bool:
            return space.cluster.get("lease", NAME, "kube-node-lease") != before

        space.wait(renewed, "the Node's Lease is renewed")


def look_again(space: Workspace, name: str) -> None:
    """Have the operator reconcile a WasmWorkload, as whatever happens to it does."""
    space.kubectl("annotate", "ww", name, f"looked-at={datetime.now(UTC).timestamp()}", "--overwrite")


def test_nothing_is_ended_restarted_lost_or_led_twice(
    cluster: LocalCluster, jumpy: Installation, clock: JumpingClock, space: Workspace
) -> None:
    workload(space, "service", wat.sleeps(), replicas=2, minReadySeconds=2)
    workload(space, "run", wat.sleeps(), restartPolicy="Never", activeDeadlineSeconds=2 * HOUR)
    space.pod("pod", space.push(wat.sleeps()), spec={"restartPolicy": "Never", "activeDeadlineSeconds": 2 * HOUR})
    for what in ("ww/service", "ww/run", "pod/pod"):
        space.kubectl("wait", "--for=condition=Ready", what, "--timeout=60s")
    with node_monitor.impatient(cluster), jumpy.second_operator() as second:
        before = standing(space)
        for jump, ahead in (("forth", HOUR), ("back", 0)):
            clock.jump(ahead)
            goes_by(space, ahead)
            # For so long that the node would be given up if none of them counted.
            renewals(space, 3)
            for name in ("service", "run"):
                look_again(space, name)
            workload(space, f"ends-{jump}", wat.exits(0), restartPolicy="Never", activeDeadlineSeconds=HOUR)
            workload(space, f"serves-{jump}", wat.sleeps(), minReadySeconds=2)
            space.wait_phase(f"ends-{jump}", "Succeeded", kind="ww")
            space.kubectl("wait", "--for=condition=Ready", f"ww/serves-{jump}", "--timeout=60s")
            assert standing(space) == before, jump
        assert second.process.running
    assert jumpy.operator is not None and jumpy.operator.running
    began = datetime.fromisoformat((space.get("ww", "serves-forth") or {})["status"]["instances"][0]["startedAt"])
    assert began - datetime.now(UTC) > timedelta(seconds=HOUR / 2), "the runner went by it as well"


def test_what_is_counted_from_a_date_is_over_when_the_date_is(clock: JumpingClock, space: Workspace) -> None:
    """As for a Job and a Deployment, whose controllers compare dates too."""
    workload(space, "deadline", wat.sleeps(), restartPolicy="Never", activeDeadlineSeconds=HOUR // 2)
    workload(space, "kept", wat.exits(0), restartPolicy="Never", ttlSecondsAfterFinished=HOUR // 2)
    workload(space, "young", wat.sleeps(), minReadySeconds=HOUR // 2)
    space.kubectl("wait", "--for=condition=Ready", "ww/deadline", "--timeout=60s")
    space.kubectl("wait", "--for=condition=Complete", "ww/kept", "--timeout=60s")
    space.wait(lambda: (space.get("ww", "young") or {})["status"].get("readyReplicas") == 1, "it runs")
    assert conditions(space.get("ww", "young") or {})["Ready"]["status"] == "False"
    clock.jump(HOUR)
    for name in ("deadline", "kept", "young"):
        look_again(space, name)
    space.kubectl("wait", "--for=condition=Failed", "ww/deadline", "--timeout=60s")
    assert conditions(space.get("ww", "deadline") or {})["Failed"]["reason"] == "DeadlineExceeded"
    space.kubectl("wait", "--for=condition=Ready", "ww/young", "--timeout=60s")
    space.wait(lambda: space.get("ww", "kept") is None, "its time to live is over")
    clock.jump(0)
    look_again(space, "deadline")
    workload(space, "later", wat.exits(0), restartPolicy="Never")
    space.wait_phase("later", "Succeeded", kind="ww")
    assert space.phase("deadline", kind="ww") == "Failed", "what is over stays so"


def test_who_begins_after_a_clock_was_set_back_lives_with_what_lies_ahead(
    jumpy: Installation, clock: JumpingClock, space: Workspace
) -> None:
    clock.jump(HOUR)
    goes_by(space, HOUR)
    workload(space, "young", wat.sleeps(), minReadySeconds=HOUR // 2)
    space.wait(lambda: (space.get("ww", "young") or {}).get("status", {}).get("readyReplicas") == 1, "it runs")
    before = runs(space, "young")
    jumpy.kill_operator()
    clock.jump(0)
    jumpy.start_operator()
    # Nobody would wait until the runner's clock, as it was, is caught up with.
    space.kubectl("wait", "--for=condition=Ready", "ww/young", "--timeout=60s")
    assert runs(space, "young") == before
    assert (space.get("ww", "young") or {})["status"]["restarts"] == 0
