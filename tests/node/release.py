"""The chart, installed on real nodes with the images of our own Dockerfiles, in a namespace that admits nothing unusual."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.chart.helm import CHART, Helm, Json
from tests.cluster.images.archive import MANIFEST_TYPE
from tests.cluster.node import NodeCluster
from tests.cluster.processes import wait_for
from tests.node.pods import PATIENCE_SECONDS
from tests.support import wat
from tests.support.images import CNCF

SYSTEM = "wherry-system"

PULL_PATIENCE = "300s"
"""For Pods whose images have to be pulled and unpacked first, on a busy machine."""

CRD = "wasmworkloads.wherry.dev"

LOGS = "/apis/subresources.wherry.dev/v1alpha1/namespaces"

MADE_BY_THE_CHART = (
    "deploy,ds,svc,cm,secret,sa,netpol,pdb,role,rolebinding,clusterrole,clusterrolebinding,priorityclass,apiservice"
)


@dataclass(frozen=True)
class Release:
    """The chart, installed."""

    helm: Helm
    cluster: NodeCluster
    values: Json

    def upgrade(self, part: str, **changed: object) -> None:
        """Upgrade it with further values of the operator or the runner, and wait until all is as wanted."""
        self.values[part].update(changed)
        self.helm.run("upgrade", "wherry", str(CHART), f"--namespace={SYSTEM}", values=self.values)
        self.wait()

    def wait(self) -> None:
        """Wait for its Pods, and for the virtual node."""
        for what in ("deployment/wherry-operator", "daemonset/wherry-runner"):
            self.cluster.kubectl("rollout", "status", what, "-n", SYSTEM, f"--timeout={PULL_PATIENCE}", timeout=320)
        self.cluster.kubectl("wait", "--for=create", "node/wherry", f"--timeout={PULL_PATIENCE}", timeout=320)
        self.cluster.kubectl("wait", "--for=condition=Ready", "node/wherry", f"--timeout={PULL_PATIENCE}", timeout=320)

    @property
    def node(self) -> str:
        """The name of the first real node."""
        where = ["-l", "type!=virtual-kubelet", "-o", "jsonpath={.items[0].metadata.name}"]
        return self.cluster.kubectl("get", "nodes", *where).stdout

    def approve(self) -> None:
        """Approve what operators ask a certificate for, as an administrator would."""
        items = json.loads(self.cluster.kubectl("get", "csr", "-o", "json").stdout)["items"]
        ours = [each for each in items if each["spec"]["signerName"] == "kubernetes.io/kubelet-serving"]
        if asked := [each["metadata"]["name"] for each in ours if not each["status"].get("conditions")]:
            self.cluster.kubectl("certificate", "approve", *asked)

    def pods(self, component: str) -> list[Json]:
        """The Pods of `operator` or `runner`."""
        selector = f"app.kubernetes.io/part-of=wherry,app.kubernetes.io/component={component}"
        found = self.cluster.kubectl("get", "pods", "-n", SYSTEM, "-l", selector, "-o", "json").stdout
        items: list[Json] = json.loads(found)["items"]
        return items

    def settled(self) -> bool:
        """Whether the operator that leads is one that stays, and the virtual node is where that is."""
        lease = self.cluster.get("lease", "wherry-operator-wherry", SYSTEM)
        node = self.cluster.get("node", "wherry")
        if lease is None or node is None:
            return False
        at = {each["address"] for each in node["status"]["addresses"]}
        return any(
            each["metadata"]["name"] == lease["spec"].get("holderIdentity") and each["status"].get("podIP") in at
            for each in self.pods("operator")
            if "deletionTimestamp" not in each["metadata"]
        )

    def left(self) -> list[str]:
        """What is there of what the chart, and the operator, made in the cluster; not the CRD, which is to stay."""
        selector = "app.kubernetes.io/part-of=wherry"
        objects = self.cluster.kubectl("get", MADE_BY_THE_CHART, "-A", "-l", selector, "-o", "name").stdout.split()
        pods = self.cluster.kubectl("get", "pods", "-n", SYSTEM, "-o", "name").stdout.split()
        node = self.cluster.kubectl("get", "node", "wherry", "--ignore-not-found", "-o", "name").stdout.split()
        return [*objects, *pods, *node]

    def uninstall(self) -> None:
        """Remove it, and wait until nothing is left: what the operator made is the garbage collector's."""
        self.helm.run("uninstall", "wherry", f"--namespace={SYSTEM}")
        assert wait_for(lambda: not self.left(), timeout_seconds=PATIENCE_SECONDS), self.left()
        assert self.cluster.get("crd", CRD) is not None


@contextmanager
def installed(
    cluster: NodeCluster, images: Mapping[str, str], home: Path, values: Json | None = None
) -> Iterator[Release]:
    """The chart on all nodes. At the end all that is left of it goes, the CRD too.

    :param images: the references of `operator` and `runner`.
    :param home: a folder for Helm's own files.
    :param values: of the chart, besides the images.
    """
    given: Json = copy.deepcopy(values or {})
    for part, image in images.items():
        repository, _, tag = image.rpartition(":")
        given.setdefault(part, {})["image"] = {"repository": repository, "tag": tag}
    given["runner"].setdefault("registries", {})["insecure"] = [cluster.registry.address]
    helm = Helm(cluster.helm_program(), home, cluster.kubeconfig)
    cluster.kubectl("create", "namespace", SYSTEM)
    cluster.kubectl("label", "namespace", SYSTEM, "pod-security.kubernetes.io/enforce=restricted")
    try:
        helm.run("install", "wherry", str(CHART), f"--namespace={SYSTEM}", values=given)
        release = Release(helm, cluster, given)
        release.wait()
        yield release
    finally:
        if "wherry" in helm.run("list", "--short", f"--namespace={SYSTEM}"):
            helm.run("uninstall", "wherry", f"--namespace={SYSTEM}")
        cluster.kubectl("delete", "node", "wherry", "--ignore-not-found", "--wait=false")
        cluster.kubectl("delete", "crd", CRD, "--ignore-not-found", "--wait=false")
        # Gone, for another installation may follow.
        cluster.kubectl("delete", "namespace", SYSTEM, timeout=180)


def module_layout(module: str | bytes, folder: Path, types: tuple[str, str] = CNCF) -> Path:
    """An OCI layout of a module: its text, or itself. By default the CNCF's Wasm artifact."""
    layer_type, config_type = types
    blobs = folder / "layout" / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(content: bytes, media_type: str) -> Json:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(content)}

    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": blob(b'{"architecture": "wasm", "os": "wasip1"}', config_type),
        "layers": [blob(module if isinstance(module, bytes) else wat.binary(module), layer_type)],
    }
    entry = blob(json.dumps(manifest).encode(), MANIFEST_TYPE)
    (folder / "layout" / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    return folder / "layout"
