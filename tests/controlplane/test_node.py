"""The virtual node, as the real API server, scheduler and node controller see it."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from pathlib import Path

from tests.cluster.local import LocalCluster
from tests.support import wat
from tests.support.installation import Installation
from tests.support.kube import Json, Workspace, conditions


def _node(cluster: LocalCluster) -> Json:
    found = cluster.get("node", "wherry")
    assert found is not None
    return found


def test_it_has_krustlets_labels_and_taints(cluster: LocalCluster, installation: Installation) -> None:
    node = _node(cluster)
    labels = node["metadata"]["labels"]
    assert labels["kubernetes.io/arch"] == labels["kubernetes.io/os"] == "wasm32-wasi"
    assert labels["type"] == "virtual-kubelet"
    assert "node.kubernetes.io/exclude-from-external-load-balancers" in labels
    taints = {(t["key"], t.get("value"), t["effect"]) for t in node["spec"]["taints"]}
    assert {("kubernetes.io/arch", "wasm32-wasi", effect) for effect in ("NoSchedule", "NoExecute")} <= taints
    assert conditions(node)["Ready"]["status"] == "True"
    assert int(node["status"]["capacity"]["pods"].removesuffix("k")) > 0


def test_its_lease_is_renewed(space: Workspace) -> None:
    def renewed() -> str:
        lease = space.cluster.get("lease", "wherry", "kube-node-lease")
        assert lease is not None
        assert lease["spec"]["leaseDurationSeconds"] == 40
        return str(lease["spec"]["renewTime"])

    before = renewed()
    space.wait(lambda: renewed() != before, "the Lease was renewed")


def test_a_deleted_node_reappears(space: Workspace) -> None:
    before = (space.cluster.get("node", "wherry") or {})["metadata"]["uid"]
    space.cluster.kubectl("delete", "node", "wherry")

    def back() -> bool:
        node = space.cluster.get("node", "wherry")
        return (
            node is not None
            and node["metadata"]["uid"] != before
            and conditions(node).get("Ready", {}).get("status") == "True"
        )

    space.wait(back, "the node is back and Ready")
    space.pod("after", space.push(wat.exits(0)), spec={"restartPolicy": "Never"})
    space.wait_phase("after", "Succeeded")


def test_the_kubelet_api_wants_to_know_who_calls(
    cluster: LocalCluster, installation: Installation, space: Workspace
) -> None:
    space.pod("private", space.push(wat.exits(0, says="private words")), spec={"restartPolicy": "Never"})
    space.wait_phase("private", "Succeeded")
    port = _node(cluster)["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
    url = f"https://127.0.0.1:{port}/containerLogs/{space.namespace}/private/main"
    context = ssl.create_default_context(cafile=str(cluster.ca_file))

    def ask(headers: dict[str, str], tls: ssl.SSLContext = context) -> tuple[int, str]:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls))
        try:
            with opener.open(urllib.request.Request(url, headers=headers), timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    assert ask({})[0] == 401
    assert ask({"Authorization": "Bearer nonsense"})[0] == 401
    token = cluster.kubectl("create", "token", "default", "-n", space.namespace).stdout.strip()
    code, text = ask({"Authorization": f"Bearer {token}"})
    assert (code, "Forbidden" in text) == (403, True)
    cluster.kubectl(
        "create", "clusterrolebinding", f"reads-{space.namespace}", "--clusterrole=system:kubelet-api-admin",
        f"--serviceaccount={space.namespace}:reader",
    )  # fmt: skip
    cluster.kubectl("create", "serviceaccount", "reader", "-n", space.namespace)
    allowed = cluster.kubectl("create", "token", "reader", "-n", space.namespace).stdout.strip()
    assert ask({"Authorization": f"Bearer {allowed}"}) == (200, "private words\n")
    assert cluster.pki is not None
    stranger = cluster.pki.issue("somebody", client=True)
    with_certificate = ssl.create_default_context(cafile=str(cluster.ca_file))
    with_certificate.load_cert_chain(stranger.cert, stranger.key)
    assert ask({}, with_certificate)[0] == 403


def test_what_a_module_has_not_is_refused_with_a_sentence(space: Workspace) -> None:
    space.pod("private", space.push(wat.sleeps()))
    space.kubectl("wait", "--for=condition=Ready", "pod/private", "--timeout=60s")
    refused = space.cluster.kubectl("-n", space.namespace, "exec", "private", "--", "ls", check=False)
    assert refused.returncode != 0
    assert "exec is not supported for WebAssembly workloads: a module has no shell" in refused.stderr


def test_two_installations_live_side_by_side(
    cluster: LocalCluster, installation: Installation, space: Workspace, tmp_path: Path
) -> None:
    other = Installation(
        cluster,
        tmp_path / "other",
        node_name="wherry-two",
        class_name="two",
        namespace="wherry-two",
        runners=["runner-two"],
        serves_logs=False,
    )
    with other:
        space.workload("mine", module={"inline": wat.exits(0)}, restartPolicy="Never")
        space.workload("theirs", module={"inline": wat.exits(0)}, restartPolicy="Never", className="two")
        for name, runner in (("mine", "runner-a"), ("theirs", "runner-two")):
            body = space.wait_phase(name, "Succeeded", kind="wasmworkload")
            assert body["status"]["instances"][0]["runner"] == runner
        ready = json.loads(cluster.kubectl("get", "nodes", "-o", "json").stdout)["items"]
        assert {node["metadata"]["name"] for node in ready} >= {"wherry", "wherry-two"}
    cluster.kubectl("delete", "node", "wherry-two")
