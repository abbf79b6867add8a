"""The operator's rights: no more than it needs, and nothing that it does not use."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.cluster import processes
from tests.cluster.local import LocalCluster
from tests.support import slices, wat
from tests.support.installation import Installation
from tests.support.kube import Workspace, pod, workload
from wherry_operator.services.slices import Endpoint

Json = dict[str, Any]


class _Operator:
    """kubectl with the operator's own rights, and with those that it may take on."""

    def __init__(self, installation: Installation) -> None:
        self._cluster = installation.cluster
        self._kubeconfig = installation.operator_kubeconfig
        self._node = ["--as=system:node:wherry", "--as-group=system:nodes", "--as-group=system:authenticated"]

    def may_read(self, kind: str, name: str, namespace: str) -> bool:
        """Whether any identity that the operator has can read the object: the union of its rights."""
        return any(
            self._cluster.kubectl(
                "get", kind, name, "-n", namespace, *identity, kubeconfig=self._kubeconfig, check=False
            ).returncode
            == 0
            for identity in ([], self._node)
        )

    def refused(self, *arguments: str, as_node: bool = False) -> str:
        """What the API server says to a request that it must refuse."""
        done = self._cluster.kubectl(
            *arguments, *(self._node if as_node else []), kubeconfig=self._kubeconfig, check=False
        )
        assert done.returncode != 0, done.stdout
        return done.stderr


@pytest.fixture
def operator(installation: Installation) -> _Operator:
    return _Operator(installation)


def test_a_secret_that_nothing_names_is_out_of_reach(space: Workspace, operator: _Operator) -> None:
    for name in ("named", "unnamed"):
        space.kubectl("create", "secret", "generic", name, "--from-literal=key=value")
    image = space.push(wat.sleeps())
    assert not operator.may_read("secret", "named", space.namespace)
    reference = {"secretKeyRef": {"name": "named", "key": "key"}}
    space.pod("names-it", image, env=[{"name": "A", "valueFrom": reference}])
    space.kubectl("wait", "--for=condition=Ready", "pod/names-it", "--timeout=60s")
    assert operator.may_read("secret", "named", space.namespace)
    assert not operator.may_read("secret", "unnamed", space.namespace)
    assert "forbidden" in operator.refused("get", "secrets", "-n", space.namespace)
    assert "forbidden" in operator.refused("get", "secrets", "-A", as_node=True)


def test_a_workload_that_names_a_secret_needs_its_namespaces_grant(space: Workspace, operator: _Operator) -> None:
    space.kubectl("create", "secret", "generic", "named", "--from-literal=key=value")
    env = [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "named", "key": "key"}}}]
    space.workload("wants", module={"inline": wat.exits(0)}, env=env, restartPolicy="Never")

    def message() -> str:
        return str(space.instance("wants").get("message", ""))

    space.wait(lambda: "has no right to get secrets" in message(), "it says what is missing")
    assert "docs/security.md" in message()
    assert not operator.may_read("secret", "named", space.namespace)
    space.installation.grant_references(space.namespace)
    space.wait_phase("wants", "Succeeded", kind="wasmworkload")


def test_it_can_write_nothing_that_is_not_its_own(space: Workspace, operator: _Operator) -> None:
    space.kubectl("create", "configmap", "theirs", "--from-literal=a=b")
    space.pod("theirs", space.push(wat.sleeps()))
    space.workload("theirs", module={"inline": wat.sleeps()})
    for arguments in (
        ["delete", "pod", "theirs"],
        ["label", "ww", "theirs", "a=b"],
        ["annotate", "pod", "theirs", "a=b"],
        ["delete", "configmap", "theirs"],
        ["create", "configmap", "mine"],
        ["run", "intruder", "--image=x"],
    ):
        assert "forbidden" in operator.refused(*arguments, "-n", space.namespace).lower()
    assert "forbidden" in operator.refused("delete", "node", "wherry").lower()
    # Of nodes it may change the virtual one.
    space.cluster.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "theirs"}})
    try:
        assert "forbidden" in operator.refused("label", "node", "theirs", "a=b").lower()
        assert "forbidden" in operator.refused("taint", "node", "theirs", "a=b:NoExecute", as_node=True).lower()
    finally:
        space.cluster.kubectl("delete", "node", "theirs")
    assert "forbidden" in operator.refused("taint", "node", "wherry", "a=b:NoExecute", as_node=True).lower()
    assert "forbidden" in operator.refused("get", "clusterrole", "cluster-admin").lower()
    # As another node, or as anybody else, it may not act at all.
    for stranger in ("system:node:another", "system:admin"):
        assert "cannot impersonate" in operator.refused("get", "nodes", f"--as={stranger}").replace("can't", "cannot")


@pytest.mark.last
def test_every_rule_was_used_by_some_test(cluster: LocalCluster, installation: Installation, space: Workspace) -> None:
    """From the API server's audit log of the whole session."""
    # What a short session may not have done by itself.
    space.installation.grant_references(space.namespace)
    space.kubectl("create", "configmap", "named", "--from-literal=key=value")
    space.kubectl("create", "secret", "generic", "named", "--from-literal=key=value")
    env = [
        {"name": kind.upper(), "valueFrom": {f"{kind}KeyRef": {"name": "named", "key": "key"}}}
        for kind in ("secret", "configMap")
    ]
    space.apply(workload("uses", module={"inline": wat.exits(3)}, env=env, restartPolicy="Always"))
    space.workload("expires", module={"inline": wat.exits(0)}, restartPolicy="Never", ttlSecondsAfterFinished=1)
    space.wait(lambda: space.get("ww", "expires") is None, "it is deleted after its time")
    # With no history to keep, the revision before is deleted.
    for number in (1, 2):
        args = [str(number)]
        space.workload("revised", module={"inline": wat.sleeps()}, args=args, revisionHistoryLimit=0)
        _wait_for_revision(space, f"/revised-{number}-")
    space.apply(pod("uses", space.push(wat.exits(0)), spec={"restartPolicy": "Never"}))
    space.wait_phase("uses", "Succeeded")
    space.wait(lambda: any(r == "CrashLoopBackOff" for r, _ in space.events("uses")), "an Event about the workload")
    assert space.logs("uses") == "a line\n"
    token = cluster.kubectl("create", "token", "default", "-n", space.namespace).stdout.strip()
    port = (cluster.get("node", "wherry") or {})["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
    _ask_with_token(port, token)
    # A Node that is not as the settings have it, as an operator finds it that takes over.
    cluster.kubectl("taint", "node", "wherry", "kubernetes.io/arch:NoExecute-")
    installation.stop_operator()
    installation.start_operator()
    asyncio.run(_discover_nobody(installation))
    _lead_to_nobody(space)

    user = f"system:serviceaccount:{installation.namespace}:wherry-operator"

    def unused() -> list[str]:
        used = {
            (
                request["verb"],
                request["objectRef"].get("apiGroup", ""),
                _resource(request["objectRef"]),
                request["objectRef"].get("name", ""),
            )
            for request in _audit(cluster)
            if request["user"]["username"] == user
            and request.get("annotations", {}).get("authorization.k8s.io/decision") == "allow"
            and "objectRef" in request
        }
        impersonated = {
            ("users", name)
            for request in _audit(cluster)
            if request["user"]["username"] == user and (name := request.get("impersonatedUser", {}).get("username"))
        } | {
            ("groups", group)
            for request in _audit(cluster)
            if request["user"]["username"] == user
            for group in request.get("impersonatedUser", {}).get("groups", [])
        }
        missing = []
        for group, resource, verb, names in _rules(installation):
            if verb == "impersonate":
                found = all((resource, name) in impersonated for name in names)
            else:
                found = any((v, g, r) == (verb, group, resource) and (not names or n in names) for v, g, r, n in used)
            if not found:
                missing.append(f"{verb} {resource}.{group or 'core'} {sorted(names)}")
        return missing

    processes.wait_for(lambda: not unused(), timeout_seconds=60)
    assert unused() == []


async def _discover_nobody(installation: Installation) -> None:
    """Follow the EndpointSlices of the runners' Service: this installation's runners are named by flags."""
    async with slices.discovering(installation) as (found, _):
        await found.until()
        slices.put(installation, "runners-1", "192.0.2.1", "n-1")
        await found.until(n_1="192.0.2.1")
    slices.remove(installation, "runners-1")


def _lead_to_nobody(space: Workspace) -> None:
    """Have a Service whose slices come, change and go: this installation's runners are on loopback, which no slice takes."""
    space.workload("serves", module={"inline": wat.sleeps()}, http={})
    space.wait(lambda: space.get("service", "serves") is not None, "it has a Service")
    space.kubectl("patch", "ww", "serves", "--type=merge", "-p", '{"spec": {"http": {"port": 81}}}')
    space.wait(lambda: (space.get("service", "serves") or {})["spec"]["ports"][0]["port"] == 81, "with another port")
    one, other = (Endpoint(address=f"192.0.2.{number}", ports=(("http", 20_000),)) for number in (1, 2))
    asyncio.run(slices.lead(space.installation, space.get("ww", "serves") or {}, [one], [other], []))
    space.kubectl("patch", "ww", "serves", "--type=merge", "-p", '{"spec": {"http": null}}')
    space.wait(lambda: space.get("service", "serves") is None, "it goes")


def _wait_for_revision(space: Workspace, name: str) -> None:
    listed = ["get", "controllerrevisions", "-n", space.namespace, "-o", "name"]
    space.wait(lambda: name in space.cluster.kubectl(*listed).stdout, "it is remembered")


def _ask_with_token(port: int, token: str) -> None:
    """Make the kubelet API ask for a TokenReview and a SubjectAccessReview."""
    import ssl
    import urllib.error
    import urllib.request

    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    request = urllib.request.Request(f"https://127.0.0.1:{port}/pods", headers={"Authorization": f"Bearer {token}"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    with pytest.raises(urllib.error.HTTPError) as refused:
        opener.open(request, timeout=10)
    assert refused.value.code == 403
    refused.value.close()


def _rules(installation: Installation) -> Iterator[tuple[str, str, str, frozenset[str]]]:
    """Each right that the chart's file grants: group, resource, verb, names."""
    for document in yaml.safe_load_all(installation.rbac()):
        for rule in document.get("rules") or []:
            for group in rule["apiGroups"]:
                for resource in rule["resources"]:
                    for verb in rule["verbs"]:
                        yield group, resource, verb, frozenset(rule.get("resourceNames") or [])


def _audit(cluster: LocalCluster) -> Iterator[Json]:
    for line in cluster.audit_log.read_text().splitlines():
        record = json.loads(line)
        if record.get("stage") == "ResponseComplete" or record.get("verb") == "watch":
            yield record


def _resource(reference: Json) -> str:
    resource, sub = reference["resource"], reference.get("subresource")
    return f"{resource}/{sub}" if sub else str(resource)
