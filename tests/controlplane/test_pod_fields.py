"""Fields of Pods: the table against the API server's own schema, and what is refused as users see it."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from tests.cluster.local import LocalCluster
from tests.cluster.registry import Registry
from tests.guests import build
from tests.support import wat
from tests.support.installation import Installation
from tests.support.kube import MIRRORED, Json, Workspace
from wherry_operator.resolve import fields
from wherry_operator.status.pod import UNSUPPORTED


@pytest.fixture
def tool(space: Workspace, tmp_path: Path) -> str:
    """The image of the guest that its arguments script."""
    return _tool(space, tmp_path)


def _tool(space: Workspace, tmp_path: Path) -> str:
    path = tmp_path / "tool.wasm"
    path.write_bytes(build.c("tool"))
    return space.push_file(path)


@functools.cache
def _schemas(cluster: LocalCluster) -> Json:
    found: Json = json.loads(cluster.kubectl("get", "--raw", "/openapi/v3/api/v1").stdout)["components"]["schemas"]
    return found


@pytest.mark.parametrize(("kind", "table"), [("PodSpec", fields.POD), ("Container", fields.CONTAINER)])
def test_the_table_has_every_field_of_this_kubernetes(cluster: LocalCluster, kind: str, table: Json) -> None:
    assert set(_schemas(cluster)[f"io.k8s.api.core.v1.{kind}"]["properties"]) == set(table)


def test_a_refused_field_is_named_in_the_pods_status(space: Workspace) -> None:
    image = space.push(wat.sleeps())
    space.pod("asks", image, spec={"hostPID": True}, lifecycle={"preStop": {"exec": {"command": ["x"]}}})
    space.wait(lambda: space.waiting("asks").get("reason") == "CreateContainerConfigError", "it is refused")
    status = (space.get("pod", "asks") or {})["status"]
    assert (status["phase"], status["reason"]) == ("Pending", UNSUPPORTED)
    for text in (status["message"], space.waiting("asks")["message"]):
        assert text.split(":")[0] == "spec.hostPID" and "spec.containers[0].lifecycle.preStop.exec: " in text
    assert "CreateContainerConfigError" in space.kubectl("get", "pod", "asks")


def test_kubectl_debug_is_refused_in_words(space: Workspace) -> None:
    space.pod("runs", space.push(wat.sleeps()))
    space.wait_phase("runs", "Running")
    space.kubectl("debug", "runs", "--image=busybox", "--container=debugger")

    def ended() -> Json:
        statuses = (space.get("pod", "runs") or {})["status"].get("ephemeralContainerStatuses") or [{}]
        state: Json = statuses[0].get("state", {}).get("terminated", {})
        return state

    space.wait(ended, "its status says so")
    assert ended()["exitCode"] == 128 and ended()["message"].startswith("debug containers are not supported")
    assert "debug containers are not supported" in space.kubectl("logs", "runs", "-c", "debugger", check=False)
    pod = space.get("pod", "runs") or {}
    assert pod["status"]["phase"] == "Running" and pod["status"]["containerStatuses"][0]["restartCount"] == 0


def test_the_service_accounts_volume_has_no_token(space: Workspace, tool: str) -> None:
    account = "/var/run/secrets/kubernetes.io/serviceaccount"
    first = [
        {"name": "lists", "image": tool, "args": ["list", account]},
        {"name": "ca", "image": tool, "args": ["read", f"{account}/ca.crt"]},
    ]
    more = {"restartPolicy": "Never", "initContainers": first}
    space.pod("reads", tool, args=["read", f"{account}/namespace"], spec=more)
    space.wait_phase("reads", "Succeeded")
    assert sorted(space.logs("reads", "-c", "lists").split()) == ["ca.crt", "namespace"]
    assert "BEGIN CERTIFICATE" in space.logs("reads", "-c", "ca")
    assert space.logs("reads", "-c", "main") == space.namespace
    source = {"serviceAccountToken": {"path": "token"}}
    space.pod(
        "asks", space.push(wat.sleeps()), spec={"volumes": [{"name": "mine", "projected": {"sources": [source]}}]}
    )
    space.wait(lambda: "FailedMount" in dict(space.events("asks")), "it is refused")
    assert (
        "serviceAccountToken is not given to modules by this installation" in dict(space.events("asks"))["FailedMount"]
    )


def test_where_tokens_are_allowed_a_pod_gets_one_that_is_bound_to_it(
    space: Workspace, registry: Registry, cluster: LocalCluster, tmp_path: Path
) -> None:
    account = "/var/run/secrets/kubernetes.io/serviceaccount"
    with Installation(
        cluster,
        tmp_path / "installation",
        node_name="wherry-tokens",
        class_name="wherry-tokens",
        namespace="wherry-tokens",
        registry_mirrors={MIRRORED: registry.url},
        operator_flags=["--service-account-tokens", "allow"],
        serves_logs=False,
    ) as installation:
        trusting = Workspace(installation, registry, space.namespace, tmp_path)
        tool = _tool(trusting, tmp_path)
        source = {"serviceAccountToken": {"path": "vault", "audience": "vault"}}
        trusting.pod(
            "trusted",
            tool,
            args=["read", f"{account}/token"],
            spec={
                "restartPolicy": "Never",
                "volumes": [{"name": "mine", "projected": {"sources": [source]}}],
                "initContainers": [
                    {
                        "name": "vault",
                        "image": tool,
                        "args": ["read", "/mine/vault"],
                        "volumeMounts": [{"name": "mine", "mountPath": "/mine"}],
                    }
                ],
            },
        )
        trusting.wait_phase("trusted", "Succeeded")
        own, vault = (trusting.logs("trusted", "-c", name) for name in ("main", "vault"))
        user = _review(cluster, own)["user"]
        assert user["username"] == f"system:serviceaccount:{space.namespace}:default"
        assert user["extra"]["authentication.kubernetes.io/pod-name"] == ["trusted"]
        assert _review(cluster, vault).get("authenticated") is None
        assert _review(cluster, vault, "vault")["audiences"] == ["vault"]
        trusting.kubectl("delete", "pod", "trusted")
        trusting.wait(lambda: not _review(cluster, own).get("authenticated"), "it ends with its Pod")
    cluster.kubectl("delete", "node", "wherry-tokens")


def _review(cluster: LocalCluster, token: str, *audiences: str) -> Json:
    """What the API server says of a token."""
    spec = {"token": token, "audiences": list(audiences)}
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}
    done = cluster.kubectl("create", "-o", "json", "-f", "-", input=json.dumps(body))
    status: Json = json.loads(done.stdout)["status"]
    return status


def test_a_readiness_gate_is_waited_for_and_never_written(space: Workspace) -> None:
    gate = "example.com/load-balancer"
    space.pod("gated", space.push(wat.sleeps()), spec={"readinessGates": [{"conditionType": gate}]})
    space.wait_phase("gated", "Running")

    def conditions() -> dict[str, Json]:
        return {each["type"]: each for each in (space.get("pod", "gated") or {})["status"]["conditions"]}

    space.wait(lambda: conditions()["Ready"].get("reason") == "ReadinessGatesNotReady", "the gate is closed")
    assert conditions()["ContainersReady"]["status"] == "True"
    for status in ("True", "False", "True"):
        condition = {"type": gate, "status": status, "reason": "Theirs", "message": f"is {status}"}
        patch = json.dumps({"status": {"conditions": [condition]}})
        space.kubectl("patch", "pod", "gated", "--subresource=status", "--type=strategic", "-p", patch)
        space.kubectl("wait", f"--for=condition=Ready={status}", "pod/gated", "--timeout=60s")
        assert {key: conditions()[gate][key] for key in condition} == condition
