"""Resizing a Pod that runs (its `resize` subresource): what can follow does, what can't is said in a kubelet's words."""

from __future__ import annotations

import json

import pytest

from tests.cluster.local import LocalCluster
from tests.support import wat
from tests.support.audit import pod_writes
from tests.support.kube import Json, Workspace, conditions

SMALL = {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"cpu": "500m", "memory": "32Mi"}}


def resize(space: Workspace, name: str, **resources: Json) -> None:
    patch = {"spec": {"containers": [{"name": "main", "resources": resources}]}}
    space.kubectl("patch", "pod", name, "--subresource=resize", "-p", json.dumps(patch))


def starts(space: Workspace, name: str, *restarting: str) -> Json:
    policies = [{"resourceName": each, "restartPolicy": "RestartContainer"} for each in restarting]
    more: Json = {"resizePolicy": policies} if policies else {}
    space.pod(name, space.push(wat.sleeps()), resources=SMALL, **more)
    space.kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=60s")
    return space.container(name)


def condition(space: Workspace, name: str, kind: str) -> Json:
    found: Json = conditions(space.get("pod", name) or {}).get(kind, {})
    return found


def test_requests_follow_without_a_restart(space: Workspace) -> None:
    before = starts(space, "grows")
    resize(space, "grows", requests={"cpu": "20m", "memory": "24Mi"})
    space.wait(
        lambda: space.container("grows")["resources"]["requests"] == {"cpu": "20m", "memory": "24Mi"}, "it has them"
    )
    after = space.container("grows")
    assert (after["containerID"], after["restartCount"]) == (before["containerID"], 0)
    body = space.get("pod", "grows") or {}
    assert body["status"]["observedGeneration"] == body["metadata"]["generation"] == 2
    assert not {"PodResizePending", "PodResizeInProgress"} & conditions(body).keys()


def test_a_limit_that_may_not_restart_the_module_is_infeasible_until_it_is_taken_back(
    cluster: LocalCluster, space: Workspace
) -> None:
    before = starts(space, "stays")
    resize(space, "stays", limits={"memory": "64Mi"})
    space.wait(lambda: condition(space, "stays", "PodResizePending"), "it is told")
    pending = condition(space, "stays", "PodResizePending")
    assert (pending["status"], pending["reason"]) == ("True", "Infeasible")
    assert "container main: the memory limit of a running module can't be changed" in pending["message"]
    space.wait(lambda: "can't be changed" in space.kubectl("describe", "pod", "stays"), "describe shows the Event")
    after = space.container("stays")
    assert after["resources"] == before["resources"] == SMALL
    assert (after["containerID"], after["ready"]) == (before["containerID"], True)
    writes = pod_writes(cluster, space, "stays")
    space.pod("later", space.push(wat.exits(0)), spec={"restartPolicy": "Never"})
    space.wait_phase("later", "Succeeded")
    assert pod_writes(cluster, space, "stays") == writes, "once is enough"
    resize(space, "stays", limits={"memory": "32Mi"})
    space.wait(lambda: not condition(space, "stays", "PodResizePending"), "nothing is asked for any more")


@pytest.mark.parametrize(("name", "value"), [("memory", "64Mi"), ("cpu", "700m")])
def test_a_limit_that_may_restart_the_module_does(space: Workspace, name: str, value: str) -> None:
    before = starts(space, "again", name)
    resize(space, "again", limits={name: value})
    space.wait(lambda: space.container("again").get("restartCount") == 1, "it runs again")
    space.wait(lambda: space.container("again")["resources"]["limits"] == {**SMALL["limits"], name: value}, "with it")
    space.kubectl("wait", "--for=condition=Ready", "pod/again", "--timeout=60s")
    last = space.container("again")["lastState"]["terminated"]
    assert last["containerID"] == before["containerID"]
    assert (last["exitCode"], last["message"]) == (137, "killed, to run again with other limits")
    assert not condition(space, "again", "PodResizeInProgress")


def test_what_its_runner_has_not_is_deferred_and_the_pod_runs_on(space: Workspace) -> None:
    before = starts(space, "wants", "memory")
    resize(space, "wants", limits={"memory": "900Ti"}, requests={"memory": "900Ti"})
    space.wait(lambda: condition(space, "wants", "PodResizePending"), "it is told")
    pending = condition(space, "wants", "PodResizePending")
    assert pending["reason"] == "Deferred" and "runner-a" in pending["message"]
    after = space.container("wants")
    assert (after["containerID"], after["ready"], after["resources"]) == (before["containerID"], True, SMALL)
    resize(space, "wants", **SMALL)
    space.wait(lambda: not condition(space, "wants", "PodResizePending"), "taken back")
    assert space.container("wants")["restartCount"] == 0
