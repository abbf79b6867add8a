"""What happens to the virtual node: runners that come and go, cordons, drains, other settings, and its release's end."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cluster.local import LocalCluster
from tests.cluster.registry import Registry
from tests.controlplane.conftest import MIRRORED
from tests.support import wat
from tests.support.another import another
from tests.support.installation import Installation
from tests.support.kube import TOLERATIONS, Json, Workspace, conditions, pod

QUARANTINE_SECONDS = 180.0
"""Kubernetes waits for 40 s before it deletes the Pods of a node that is gone, and looks for them every 20 s (podgc)."""


def _node(space: Workspace) -> Json:
    found = space.get("node", space.installation.node_name)
    assert found is not None
    return found


def _offers(space: Workspace) -> tuple[str, str, str, str]:
    status = _node(space)["status"]
    return (
        *(status["capacity"][key] for key in ("cpu", "memory")),
        *(status["allocatable"][key] for key in ("cpu", "memory")),
    )


def test_what_it_offers_follows_runners_and_workloads(space: Workspace, tmp_path: Path) -> None:
    with another(space, tmp_path, "offers", "offers-a", "offers-b") as here:
        here.wait(lambda: _offers(here) == ("4", "1Gi", "4", "1Gi"), "it offers both runners")
        here.installation.runners["offers-b"].kill()
        here.wait(lambda: _offers(here) == ("2", "512Mi", "2", "512Mi"), "a runner that is gone is not offered")
        here.installation.runners["offers-b"].start()
        here.wait(lambda: _offers(here) == ("4", "1Gi", "4", "1Gi"), "it is back")
        requests = {"requests": {"cpu": "500m", "memory": "256Mi"}}
        here.workload("takes", module={"inline": wat.sleeps()}, className="offers", resources=requests)
        here.wait(lambda: _offers(here) == ("4", "1Gi", "3500m", "768Mi"), "what a WasmWorkload has is not offered")
        here.pod(
            "fits", here.push(wat.exits(0)), resources={"requests": {"cpu": "3500m"}}, spec={"restartPolicy": "Never"}
        )
        here.wait(
            lambda: any(reason == "FailedPlacement" for reason, _ in here.events("fits")), "no single runner has it"
        )
        here.pod("large", here.push(wat.exits(0)), resources={"requests": {"cpu": "3600m"}})
        here.wait(lambda: any("Insufficient cpu" in text for _, text in here.events("large")), "the scheduler knows it")
        here.kubectl("delete", "ww", "takes")
        here.wait(lambda: _offers(here) == ("4", "1Gi", "4", "1Gi"), "it is given back")


def test_images_and_conditions_are_what_the_runners_say(space: Workspace) -> None:
    image = space.push(wat.exits(0, says="listed"))
    space.pod("pulls", image, spec={"restartPolicy": "Never"})
    space.wait_phase("pulls", "Succeeded")

    def names() -> list[str]:
        return [name for each in _node(space)["status"].get("images", []) for name in each["names"]]

    space.wait(lambda: image in names(), "the image is listed")
    digest = space.container("pulls")["imageID"]
    assert any(name.partition("@")[2] and name.partition("@")[2] in digest for name in names())
    found = conditions(_node(space))
    assert {kind: each["status"] for kind, each in found.items() if kind.endswith("Pressure")} == {
        "MemoryPressure": "False",
        "DiskPressure": "False",
        "PIDPressure": "False",
    }
    assert found["DiskPressure"]["message"] == "0 of 1 runners are short"


def test_a_cordoned_node_gets_nothing_new(space: Workspace) -> None:
    image = space.push(wat.sleeps())
    space.pod("before", image)
    space.wait_phase("before", "Running")
    space.cluster.kubectl("cordon", "wherry")
    try:
        space.pod("after", image)
        space.wait(lambda: any("unschedulable" in text for _, text in space.events("after")), "it is not scheduled")
        assert space.phase("before") == "Running"
    finally:
        space.cluster.kubectl("uncordon", "wherry")
    space.wait_phase("after", "Running")


def test_a_drained_node_has_no_pods_and_keeps_its_workloads(space: Workspace) -> None:
    image = space.push(wat.sleeps())
    template = pod("", image, spec={"terminationGracePeriodSeconds": 1})
    labels = {"app": "drained"}
    space.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "drained"},
            "spec": {
                "replicas": 2,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": template["spec"]},
            },
        }
    )
    space.workload("stays", module={"inline": wat.sleeps()})
    space.kubectl("rollout", "status", "deployment/drained", "--timeout=60s")
    space.wait_phase("stays", "Running", kind="wasmworkload")
    before = space.instance("stays")
    try:
        done = space.cluster.kubectl(
            "drain", "wherry", "--force", "--delete-emptydir-data", "--timeout=90s", timeout=120
        )
        assert "node/wherry drained" in done.stdout
        bound = space.kubectl("get", "pods", "-o", "jsonpath={.items[*].spec.nodeName}")
        assert bound.strip() == "", "the Deployment's new Pods wait"
        assert space.instance("stays") == before
    finally:
        space.cluster.kubectl("uncordon", "wherry")
    space.kubectl("rollout", "status", "deployment/drained", "--timeout=60s")


def test_what_runs_goes_on_when_somebody_deletes_the_node(space: Workspace) -> None:
    """As cloud controllers do with a node that they know no instance of."""
    space.pod("goes-on", space.push(wat.sleeps()))
    space.wait_phase("goes-on", "Running")
    before, uid = space.container("goes-on"), _node(space)["metadata"]["uid"]
    space.cluster.kubectl("delete", "node", "wherry")

    def back() -> bool:
        node = space.get("node", "wherry")
        return node is not None and node["metadata"]["uid"] != uid and conditions(node)["Ready"]["status"] == "True"

    space.wait(back, "the node is back and Ready")
    assert space.container("goes-on") == before


def test_changed_settings_reach_a_node_that_exists(space: Workspace, tmp_path: Path) -> None:
    with another(space, tmp_path, "changes", "changes-a") as here:
        uid = _node(here)["metadata"]["uid"]
        here.cluster.kubectl("taint", "node", "changes", "example.com/theirs=x:NoSchedule")
        here.cluster.kubectl("label", "node", "changes", "type=nonsense", "--overwrite")
        here.installation.stop_operator()
        here.installation.operator_flags += ["--taint-value", "changed", "--max-pods", "7"]
        here.installation.start_operator()

        def taints() -> set[tuple[str, str, str]]:
            found = _node(here)["spec"]["taints"]
            return {(each["key"], each.get("value", ""), each["effect"]) for each in found}

        expected = {("kubernetes.io/arch", "changed", effect) for effect in ("NoSchedule", "NoExecute")}
        here.wait(lambda: expected <= taints(), "the taints are what the settings say")
        assert ("example.com/theirs", "x", "NoSchedule") in taints() and len(taints()) == 3
        here.wait(lambda: _node(here)["status"]["allocatable"]["pods"] == "7", "so is what it offers")
        assert _node(here)["metadata"]["labels"]["type"] == "virtual-kubelet"
        assert _node(here)["metadata"]["uid"] == uid
        here.cluster.kubectl("taint", "node", "changes", "example.com/theirs-")
        # Who tolerates the first installation's taints does not tolerate these.
        here.pod("stranger", here.push(wat.exits(0)), spec={"restartPolicy": "Never"})
        here.wait(lambda: any("untolerated taint" in text for _, text in here.events("stranger")), "it is not let in")
        mine = [{**each, "value": "changed"} for each in TOLERATIONS]
        here.pod("mine", here.push(wat.exits(0)), spec={"restartPolicy": "Never", "tolerations": mine})
        here.wait_phase("mine", "Succeeded")


def test_it_goes_with_its_release_also_with_a_dead_operator(space: Workspace, tmp_path: Path) -> None:
    with another(space, tmp_path, "ends", "ends-a") as here:
        owner = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "name": "wherry-operator-ends"}
        (reference,) = _node(here)["metadata"]["ownerReferences"]
        assert {key: reference[key] for key in owner} == owner
        here.pod("left", here.push(wat.sleeps()))
        here.wait_phase("left", "Running")
        here.installation.kill_operator()
        here.cluster.kubectl("delete", "clusterrole", "wherry-operator-ends")
        here.wait(lambda: here.get("node", "ends") is None, "the Node is gone")
        here.wait(lambda: here.get("pod", "left") is None, "no Pod is left hanging", timeout=QUARANTINE_SECONDS)


def test_two_nodes_each_with_its_own_pods(space: Workspace, tmp_path: Path) -> None:
    with another(space, tmp_path, "second", "second-a") as here:
        for there in (space, here):
            name = f"on-{there.installation.node_name}"
            there.pod(name, there.push(wat.exits(0, says=name)), spec={"restartPolicy": "Never"})
        for there in (space, here):
            name = f"on-{there.installation.node_name}"
            body = there.wait_phase(name, "Succeeded")
            assert body["spec"]["nodeName"] == there.installation.node_name
            (status,) = body["status"]["containerStatuses"]
            (runner,) = there.installation.runners
            assert status["containerID"].startswith(f"wherry://{runner}/")
            assert there.logs(name) == f"{name}\n"


def test_without_a_node_authorizer_plain_rbac_does(
    kubernetes_binaries: Path, registry: Registry, tmp_path: Path
) -> None:
    """The documented fallback: charts/wherry/files/node-rbac.yaml."""
    cluster = LocalCluster(tmp_path / "cluster", authorization="RBAC")
    cluster.up()
    try:
        made = Installation(
            cluster, tmp_path / "installation", registry_mirrors={MIRRORED: registry.url}, serves_logs=False,
            operator_flags=["--service-account-tokens", "allow"],
        )  # fmt: skip
        cluster.apply(made.node_rbac())
        with made:
            space = Workspace(made, registry, "default", tmp_path)
            space.kubectl("create", "secret", "generic", "named", "--from-literal=key=value")
            env = [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "named", "key": "key"}}}]
            space.pod("short", space.push(wat.exits(0, says="a line")), env=env, spec={"restartPolicy": "Never"})
            space.pod("long", space.push(wat.sleeps()), spec={"terminationGracePeriodSeconds": 1})
            space.wait_phase("short", "Succeeded")
            space.wait_phase("long", "Running")
            assert space.logs("short") == "a line\n"
            assert "Started" in [reason for reason, _ in space.events("short")]
            space.kubectl("delete", "pod", "long")
            assert space.get("pod", "long") is None
    finally:
        cluster.down()


def test_its_certificate_is_signed_by_the_cluster_once_an_administrator_approves(
    space: Workspace, tmp_path: Path
) -> None:
    folder = tmp_path / "serving"
    flags = ["--kubelet-certificate", "csr", "--certificate-dir", str(folder)]
    with another(space, tmp_path, "signed", "signed-a", brings_certificate=False, operator_flags=flags) as here:
        here.pod("talks", here.push(wat.sleeps("hello")))
        here.wait_phase("talks", "Running")
        refused = here.kubectl("logs", "talks", check=False)
        assert "hello" not in refused, "this API server verifies whom it asks"
        # The signer's own admission: whose request it is, and what it may ask for.
        (request,) = [item for item in _requests(here) if item["spec"]["username"] == "system:node:signed"]
        assert request["spec"]["signerName"] == "kubernetes.io/kubelet-serving"
        here.cluster.kubectl("certificate", "approve", request["metadata"]["name"])
        here.wait(lambda: "hello" in here.kubectl("logs", "talks", check=False), "the log is shown")
        assert (folder / "tls.key").stat().st_mode & 0o077 == 0
        here.installation.stop_operator()
        here.installation.start_operator()
        here.wait(lambda: "hello" in here.kubectl("logs", "talks", check=False), "the log is shown")
        assert len([item for item in _requests(here) if item["spec"]["username"] == "system:node:signed"]) == 1, (
            "what was signed is used again"
        )
    space.cluster.kubectl("delete", "certificatesigningrequest", request["metadata"]["name"])


def _requests(space: Workspace) -> list[Json]:
    found: list[Json] = json.loads(space.cluster.kubectl("get", "csr", "-o", "json").stdout)["items"]
    return found
