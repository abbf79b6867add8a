"""What a Pod's spec can ask of a runner: limits, init containers and sidecars, folders, deadlines, private registries."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.registry import Registry
from tests.guests import build
from tests.support import images, wat
from tests.support.installation import Installation
from tests.support.kube import Json, Workspace, conditions

GROWS = """(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (loop $again (br_if $again (i32.ne (memory.grow (i32.const 16)) (i32.const -1))))
    (call $exit (i32.const 3))))"""
"""Grows its memory until that is refused, and then ends badly."""


@pytest.fixture
def tool(space: Workspace, tmp_path: Path) -> str:
    """The image of the guest that its arguments script."""
    path = tmp_path / "tool.wasm"
    path.write_bytes(build.c("tool"))
    return space.push_file(path)


def terminated(body: Json, name: str = "main", kind: str = "containerStatuses") -> Json:
    found: Json = next(item for item in body["status"][kind] if item["name"] == name)["state"]["terminated"]
    return found


def test_a_module_that_grows_beyond_its_limit_is_oom_killed(space: Workspace) -> None:
    limits = {"limits": {"memory": "16Mi"}}
    space.pod("greedy", space.push(GROWS), spec={"restartPolicy": "Never"}, resources=limits)
    body = space.wait_phase("greedy", "Failed")
    end = terminated(body)
    assert (end["reason"], end["exitCode"]) == ("OOMKilled", 137)
    assert body["status"]["containerStatuses"][0]["resources"]["limits"] == {"memory": "16Mi"}
    assert "OOMKilled" in space.kubectl("describe", "pod", "greedy")


def test_init_containers_run_in_order_and_share_a_folder_with_the_main_one(space: Workspace, tool: str) -> None:
    mounts = [{"name": "work", "mountPath": "/work"}]

    def step(name: str, *arguments: str) -> Json:
        return {"name": name, "image": tool, "args": list(arguments), "volumeMounts": mounts}

    space.pod(
        "steps",
        tool,
        args=["read", "/work/made"],
        volumeMounts=mounts,
        spec={
            "restartPolicy": "Never",
            "initContainers": [
                step("first", "create", "/work/made", "by the first"),
                step("second", "read", "/work/made"),
            ],
            "volumes": [{"name": "work", "emptyDir": {}}],
        },
    )
    body = space.wait_phase("steps", "Succeeded")
    assert space.logs("steps", "-c", "second").strip() == space.logs("steps", "-c", "main").strip() == "by the first"
    first, second = (terminated(body, name, "initContainerStatuses") for name in ("first", "second"))
    assert first["finishedAt"] <= second["startedAt"]
    assert conditions(body)["Initialized"]["reason"] == "PodCompleted"


def test_a_failing_init_container_fails_its_pod_under_never(space: Workspace) -> None:
    init = [{"name": "bad", "image": space.push(wat.exits(7))}]
    space.pod("never", space.push(wat.exits(0)), spec={"restartPolicy": "Never", "initContainers": init})
    body = space.wait_phase("never", "Failed")
    assert terminated(body, "bad", "initContainerStatuses")["exitCode"] == 7
    assert space.waiting("never")["reason"] == "PodInitializing"
    assert "Init:Error" in space.kubectl("get", "pod", "never")
    space.wait(
        lambda: ("Started", "Container started") in space.events("never"), "its start is told, as of any container"
    )
    assert "Failed" not in dict(space.events("never"))


def test_a_sidecar_runs_beside_and_ends_after_the_main_container(space: Workspace) -> None:
    side = {"name": "side", "image": space.push(wat.sleeps("beside")), "restartPolicy": "Always"}
    spec = {"restartPolicy": "Never", "initContainers": [side], "terminationGracePeriodSeconds": 1}
    space.pod("pair", space.push(wat.exits(0, says="main")), spec=spec)
    body = space.wait_phase("pair", "Succeeded")
    assert (space.logs("pair", "-c", "side"), space.logs("pair", "-c", "main")) == ("beside\n", "main\n")
    assert terminated(body, "side", "initContainerStatuses")["finishedAt"] >= terminated(body)["finishedAt"]


def test_a_pod_that_is_active_for_too_long_fails_with_the_kubelets_words(space: Workspace) -> None:
    image = space.push(wat.sleeps())
    space.pod("late", image, spec={"activeDeadlineSeconds": 2, "terminationGracePeriodSeconds": 0})
    status = space.wait_phase("late", "Failed")["status"]
    assert (status["reason"], status["message"]) == (
        "DeadlineExceeded",
        "Pod was active on the node longer than the specified deadline",
    )


def test_a_folder_that_outgrows_its_limit_gets_its_pod_evicted(space: Workspace, tool: str) -> None:
    mounts = [{"name": "work", "mountPath": "/work"}]
    # No single file can be larger than the limit; several together are found by looking.
    init = [
        {"name": name, "image": tool, "args": ["fill", f"/work/{name}", str(640 << 10)], "volumeMounts": mounts}
        for name in ("one", "two")
    ]
    space.pod(
        "big",
        space.push(wat.sleeps()),
        volumeMounts=mounts,
        spec={
            "initContainers": init,
            "volumes": [{"name": "work", "emptyDir": {"sizeLimit": "1Mi"}}],
            "terminationGracePeriodSeconds": 0,
        },
    )
    status = space.wait_phase("big", "Failed")["status"]
    assert status["reason"] == "Evicted"
    assert status["message"].strip() == 'Usage of EmptyDir volume "work" exceeds the limit "1Mi".'


def test_one_file_of_a_config_map_is_mounted_by_sub_path(space: Workspace, tool: str) -> None:
    space.kubectl("create", "configmap", "settings", "--from-literal=app.conf=one", "--from-literal=other=two")
    space.pod(
        "part",
        tool,
        args=["read", "/etc/app/app.conf"],
        volumeMounts=[{"name": "all", "mountPath": "/etc/app/app.conf", "subPath": "app.conf"}],
        spec={"volumes": [{"name": "all", "configMap": {"name": "settings"}}], "restartPolicy": "Never"},
    )
    space.wait_phase("part", "Succeeded")
    assert space.logs("part").strip() == "one"


def test_a_folder_of_the_node_is_refused_by_name_where_no_setting_allows_it(space: Workspace) -> None:
    volumes = [{"name": "host", "hostPath": {"path": "/etc"}}]
    mounts = [{"name": "host", "mountPath": "/host"}]
    space.pod("nosy", space.push(wat.exits(0)), spec={"volumes": volumes}, volumeMounts=mounts)
    space.wait(lambda: "--host-path" in space.waiting("nosy").get("message", ""), "the message names the setting")


def test_a_request_that_no_runner_can_hold_waits_and_says_why(space: Workspace) -> None:
    image = space.push(wat.exits(0))
    space.workload("huge", module={"image": image}, resources={"requests": {"memory": "100Ti"}})

    def told() -> bool:
        found = space.get("wasmworkload", "huge") or {}
        return "memory" in conditions(found).get("Ready", {}).get("message", "")

    space.wait(told, "the object says what is missing")


def test_fuel_ends_a_module_that_never_ends(space: Workspace) -> None:
    module = {"image": space.push(wat.spins())}
    space.workload("burns", module=module, restartPolicy="Never", resources={"fuel": 50_000_000})
    space.wait_phase("burns", "Failed", kind="wasmworkload")
    instance = space.instance("burns")
    assert (instance["reason"], instance["exitCode"]) == ("OutOfFuel", 134)


# --- a private registry -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """A registry that asks for a password."""
    registry = Registry(tmp_path_factory.mktemp("private"), htpasswd={"me": "hunter2"})
    registry.start()
    yield registry
    registry.close()


@pytest.fixture(scope="module")
def apart(request: pytest.FixtureRequest, private: Registry, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An installation of its own, whose runner may ask that registry."""
    cluster = request.getfixturevalue("cluster")
    with Installation(
        cluster,
        tmp_path_factory.mktemp("apart"),
        node_name="wherry-private",
        class_name="private",
        namespace="wherry-private",
        runners=["runner-p"],
        serves_logs=False,
        runner_flags=["--back-off-initial", "1", "--insecure-registry", private.address],
        operator_flags=["--reference-ttl-seconds", "2"],
    ) as running:
        yield running
    # The scheduler takes a Node for ready for a while after its operator has gone.
    cluster.kubectl("delete", "node", "wherry-private")


def test_a_pull_secret_opens_a_private_registry_and_nothing_else_does(
    apart: Installation, private: Registry, registry: Registry, namespace: str, tmp_path: Path
) -> None:
    space = Workspace(apart, registry, namespace, tmp_path)
    apart.grant_references(namespace)
    module = wat.write(wat.exits(0, says="let in"), tmp_path / "m.wasm")
    image = images.push(private.address, "team/hello", [module], login=("me", "hunter2"))
    space.workload("asks", className="private", module={"image": image}, imagePullSecrets=[{"name": "pull"}])
    space.wait(lambda: "FailedToRetrieveImagePullSecret" in dict(space.events("asks")), "the missing Secret is told")
    space.wait(
        lambda: space.phase("asks", kind="wasmworkload") in ("ErrImagePull", "ImagePullBackOff"), "anonymously it can't"
    )
    _pull_secret(space, private)
    space.wait(lambda: space.instance("asks").get("exitCode") == 0, "with the Secret it runs")
    assert "hunter2" not in apart.runners["runner-p"].log.read_text()
    assert not apart.runners["runner-p"].traces("hunter2")


@pytest.mark.parametrize("whose", ["the Pod's", "its ServiceAccount's"])
def test_a_pods_pull_secret_is_its_own_or_its_service_accounts(
    apart: Installation, private: Registry, registry: Registry, namespace: str, tmp_path: Path, whose: str
) -> None:
    space = Workspace(apart, registry, namespace, tmp_path)
    module = wat.write(wat.exits(0, says="let in"), tmp_path / "m.wasm")
    # Always: what one Pod was let in for is no other's.
    image = images.push(private.address, "team/pods", [module], login=("me", "hunter2"))
    space.pod("stranger", image, imagePullPolicy="Always")
    space.wait(
        lambda: space.waiting("stranger").get("reason") in ("ErrImagePull", "ImagePullBackOff"), "it is not let in"
    )
    _pull_secret(space, private)
    spec: Json = {"restartPolicy": "Never", "imagePullSecrets": [{"name": "pull"}]}
    if whose == "its ServiceAccount's":
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "puller"}}
        space.apply({**account, "imagePullSecrets": [{"name": "pull"}]})
        spec = {"restartPolicy": "Never", "serviceAccountName": "puller"}
    space.pod("friend", image, spec=spec, imagePullPolicy="Always")
    space.wait_phase("friend", "Succeeded")
    assert space.logs("friend") == "let in\n"
    assert space.waiting("stranger"), "it is still not let in"


def _pull_secret(space: Workspace, private: Registry) -> None:
    auth = base64.b64encode(b"me:hunter2").decode()
    config = json.dumps({"auths": {private.address: {"auth": auth}}})
    space.kubectl(
        "create", "secret", "generic", "pull", "--type=kubernetes.io/dockerconfigjson",
        f"--from-literal=.dockerconfigjson={config}",
    )  # fmt: skip
