"""Operator and runner killed with SIGKILL, and started again: they take up where they were (design §3.8)."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest

from tests.support import wat
from tests.support.installation import Installation
from tests.support.kube import Json, Workspace
from tests.support.runner import RunnerProcess


@pytest.fixture
def runner(installation: Installation) -> Iterator[RunnerProcess]:
    """The runner; started again at the end, whatever happened."""
    found = installation.runners["runner-a"]
    yield found
    if found.process is None:
        found.start()


@pytest.fixture
def operator(installation: Installation) -> Iterator[Installation]:
    """The installation whose operator may be killed; it runs again at the end."""
    yield installation
    if installation.operator is None:
        installation.start_operator()


def _ready(space: Workspace, name: str) -> Json:
    space.kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=60s")
    return space.container(name)


def _restart(runner: RunnerProcess) -> None:
    runner.kill()
    runner.start()


def test_a_killed_operator_leaves_guests_alone_and_takes_up_again(space: Workspace, operator: Installation) -> None:
    image = space.push(wat.sleeps("undisturbed"))
    space.pod("steady", image)
    before = _ready(space, "steady")
    operator.kill_operator()
    space.pod("later", space.push(wat.exits(0)), spec={"restartPolicy": "Never"})
    operator.start_operator()
    space.wait_phase("later", "Succeeded")
    after = space.container("steady")
    assert after["containerID"] == before["containerID"]
    assert after["restartCount"] == 0
    assert space.logs("steady") == "undisturbed\n"


def test_an_operator_with_other_settings_takes_over_and_restarts_nothing(
    space: Workspace, operator: Installation
) -> None:
    """As after an upgrade. That revisions keep their names through it: `unit/test_resolve.py`, `unit/test_crd.py`."""
    space.workload("service", module={"inline": wat.sleeps()}, replicas=3)
    space.workload("done", module={"inline": wat.exits(0)}, restartPolicy="Never", completions=3)
    space.kubectl("wait", "--for=condition=Ready", "ww/service", "--timeout=60s")
    space.kubectl("wait", "--for=condition=Complete", "ww/done", "--timeout=60s")
    before = {name: (space.get("ww", name) or {})["status"] for name in ("service", "done")}
    usual = list(operator.operator_flags)
    operator.stop_operator()
    operator.operator_flags += ["--resync-seconds", "2", "--runner-loss-seconds", "30", "--log-level", "DEBUG"]
    try:
        operator.start_operator()
        space.workload("later", module={"inline": wat.exits(0)}, restartPolicy="Never")
        space.wait_phase("later", "Succeeded", kind="wasmworkload")
        assert {name: (space.get("ww", name) or {})["status"] for name in before} == before
    finally:
        operator.stop_operator()
        operator.operator_flags = usual
        operator.start_operator()


def test_what_ended_while_the_operator_was_down_is_told_afterwards(space: Workspace, operator: Installation) -> None:
    space.pod("ends", space.push(wat.sleeps(seconds=3, then_exits=3)), spec={"restartPolicy": "Never"})
    _ready(space, "ends")
    operator.kill_operator()
    operator.start_operator()
    body = space.wait_phase("ends", "Failed")
    assert body["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 3
    assert body["status"]["containerStatuses"][0]["restartCount"] == 0


def test_what_was_deleted_while_the_operator_was_down_is_stopped(
    space: Workspace, operator: Installation, runner: RunnerProcess
) -> None:
    image = space.push(wat.sleeps())
    space.workload("orphan", module={"image": image})
    space.pod("forced", image)
    space.kubectl("wait", "--for=condition=Ready", "wasmworkload/orphan", "--timeout=60s")
    _ready(space, "forced")
    uids = [(space.get(kind, name) or {})["metadata"]["uid"] for kind, name in (("ww", "orphan"), ("pod", "forced"))]
    operator.kill_operator()
    space.kubectl("delete", "wasmworkload", "orphan")
    space.kubectl("delete", "pod", "forced", "--force", "--grace-period=0")
    operator.start_operator()
    # Two complete LISTs have to agree first, a minute apart.
    for uid in uids:

        def gone(uid: str = uid) -> bool:
            return not runner.traces(uid)

        space.wait(gone, "the runner dropped it", timeout=180)


def test_a_killed_runner_runs_always_again_and_counts_it(space: Workspace, runner: RunnerProcess) -> None:
    space.pod("always", space.push(wat.sleeps()))
    before = _ready(space, "always")
    _restart(runner)
    space.wait(lambda: space.container("always").get("restartCount") == 1, "it was restarted")
    after = _ready(space, "always")
    assert after["containerID"] != before["containerID"]
    assert after["lastState"]["terminated"]["reason"] == "RunnerLost"
    assert after["lastState"]["terminated"]["exitCode"] == 137


def test_a_killed_runner_fails_what_must_never_run_again(space: Workspace, runner: RunnerProcess) -> None:
    space.pod("once", space.push(wat.sleeps()), spec={"restartPolicy": "Never"})
    _ready(space, "once")
    _restart(runner)
    body = space.wait_phase("once", "Failed")
    terminated = body["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (terminated["reason"], terminated["exitCode"]) == ("RunnerLost", 137)
    assert "not run again" in terminated["message"]


@pytest.mark.parametrize("policy", ["Never", "OnFailure"])
def test_what_ended_well_never_runs_again(space: Workspace, runner: RunnerProcess, policy: str) -> None:
    image = space.push(wat.exits(0))
    space.pod("done", image, spec={"restartPolicy": policy})
    space.workload("done", module={"image": image}, restartPolicy=policy)
    before = space.wait_phase("done", "Succeeded")
    space.wait_phase("done", "Succeeded", kind="wasmworkload")
    space.pod("witness", space.push(wat.sleeps()))
    _ready(space, "witness")
    _restart(runner)
    space.wait(lambda: space.container("witness").get("restartCount") == 1, "the runner is in use again")
    after = space.get("pod", "done") or {}
    assert after["status"] == before["status"]
    workload = space.get("wasmworkload", "done") or {}
    assert workload["status"]["phase"] == "Succeeded"
    assert workload["status"]["restarts"] == 0


def test_a_runner_that_lost_its_disk_still_runs_nothing_twice(space: Workspace, runner: RunnerProcess) -> None:
    """What the object's own status knows is enough: the journal may be gone with the runner's pod."""
    import shutil

    space.pod("once", space.push(wat.sleeps()), spec={"restartPolicy": "Never"})
    space.pod("again", space.push(wat.sleeps()))
    _ready(space, "once")
    _ready(space, "again")
    runner.kill()
    shutil.rmtree(runner.state)
    runner.start()
    body = space.wait_phase("once", "Failed")
    assert body["status"]["containerStatuses"][0]["state"]["terminated"]["reason"] == "RunnerLost"
    space.wait(lambda: space.container("again").get("restartCount") == 1, "it was restarted")


def test_pods_on_a_silent_runner_are_not_ready_and_not_moved(space: Workspace, runner: RunnerProcess) -> None:
    space.pod("waits", space.push(wat.sleeps()))
    _ready(space, "waits")
    runner.kill()

    def ready() -> Json:
        found = (space.get("pod", "waits") or {})["status"]["conditions"]
        return next(item for item in found if item["type"] == "Ready")

    space.wait(lambda: ready()["status"] == "False", "it is not Ready")
    assert ready()["reason"] in ("RunnerUnreachable", "ContainersNotReady")
    node = space.cluster.get("node", "wherry") or {}
    assert node["metadata"]["name"] == "wherry"
    runner.start()
    _ready(space, "waits")


def test_an_api_server_that_restarts_stops_nothing(
    space: Workspace, operator: Installation, runner: RunnerProcess
) -> None:
    space.pod("steady", space.push(wat.sleeps()))
    before = _ready(space, "steady")
    cluster = space.cluster
    cluster.stop_component("kube-apiserver", kill=True)  # type: ignore[attr-defined]
    cluster.start_component("kube-apiserver")  # type: ignore[attr-defined]
    operator.keep_operator()
    space.pod("later", space.push(wat.exits(0)), spec={"restartPolicy": "Never"})
    space.wait_phase("later", "Succeeded", meanwhile=operator.keep_operator)
    assert space.container("steady")["containerID"] == before["containerID"]


def test_a_workload_outlives_an_api_server_and_what_was_asked_of_the_next_one_is_done(space: Workspace) -> None:
    space.workload("steady", module={"inline": wat.sleeps()}, replicas=3)
    space.kubectl("wait", "--for=condition=Ready", "ww/steady", "--timeout=60s")
    before = {item["name"]: item["containerID"] for item in space.get("ww", "steady")["status"]["instances"]}  # type: ignore[index]
    cluster = space.cluster
    cluster.stop_component("kube-apiserver", kill=True)  # type: ignore[attr-defined]
    cluster.start_component("kube-apiserver")  # type: ignore[attr-defined]
    space.kubectl("scale", "ww/steady", "--replicas=5")
    space.wait(lambda: (space.get("ww", "steady") or {})["status"]["ready"] == "5/5", "five run")
    after = {item["name"]: item["containerID"] for item in space.get("ww", "steady")["status"]["instances"]}  # type: ignore[index]
    assert before.items() <= after.items()


def test_a_follower_survives_an_operators_polite_restart(space: Workspace, operator: Installation) -> None:
    """The stream ends with its operator, the guest does not; asked again, nothing is missing."""
    space.pod("ticks", space.push(wat.sleeps("line", seconds=4)), spec={"restartPolicy": "Never"})
    _ready(space, "ticks")
    texts: list[str] = []
    follower = threading.Thread(
        target=lambda: texts.append(space.kubectl("logs", "ticks", "-f", check=False, timeout=90))
    )
    follower.start()
    operator.stop_operator()
    operator.start_operator()
    follower.join(90)
    assert not follower.is_alive()
    space.wait_phase("ticks", "Succeeded")
    assert space.logs("ticks") == "line\n"


def test_no_object_of_anybody_else_was_written(space: Workspace) -> None:
    space.pod("plain", space.push(wat.exits(0)), spec={"restartPolicy": "Never"})
    space.workload("plain", module={"inline": wat.exits(0)}, restartPolicy="Never")
    space.wait_phase("plain", "Succeeded")
    space.wait_phase("plain", "Succeeded", kind="wasmworkload")
    for kind in ("pod", "wasmworkload"):
        raw = space.cluster.kubectl("get", kind, "plain", "-n", space.namespace, "-o", "json", "--show-managed-fields")
        metadata = json.loads(raw.stdout)["metadata"]
        assert "finalizers" not in metadata
        assert all("kopf" not in key for key in metadata.get("annotations", {}))
        ours = [item for item in metadata["managedFields"] if item.get("subresource") == "status"]
        others = [item for item in metadata["managedFields"] if item not in ours]
        assert ours
        assert all(item["manager"].startswith("kubectl") for item in others), others


@pytest.mark.parametrize("resumed", ["while the operator is down", "afterwards"])
def test_an_operator_that_dies_while_it_suspends_counts_no_failure(
    space: Workspace, operator: Installation, resumed: str
) -> None:
    """At whatever step it died: an instance that was stopped has not failed, and none is stopped or counted twice."""
    space.workload("paused", module={"inline": wat.sleeps()}, restartPolicy="Never", completions=6, replicas=6)

    def status(**wanted: object) -> bool:
        body = space.get("ww", "paused") or {}
        found = body.get("status") or {}
        looked_at = found.get("observedGeneration") == body["metadata"]["generation"]
        return looked_at and wanted.items() <= found.items()

    space.wait(lambda: status(ready="6/6"), "all six run")
    change = ["patch", "ww", "paused", "--type=merge", "-p"]
    space.kubectl(*change, '{"spec":{"suspend":true}}')
    operator.kill_operator()
    if resumed == "while the operator is down":
        space.kubectl(*change, '{"spec":{"suspend":false}}')
    operator.start_operator()
    if resumed == "afterwards":
        space.wait(lambda: status(phase="Suspended", replicas=0, failed=0), "it is suspended")
        space.kubectl(*change, '{"spec":{"suspend":false}}')
    space.wait(lambda: status(ready="6/6", phase="Running"), "all six run again")
    assert status(failed=0, succeeded=0)
