"""A whole installation in Pods on real nodes, as the chart will bring it: runners a DaemonSet, two operators a Deployment."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.cluster.images import dockerfile
from tests.cluster.node import NodeCluster
from tests.cluster.pki import CertificateFiles
from tests.cluster.progress import SILENT, Progress
from tests.node.pods import PATIENCE, RESTRICTED, Space
from tests.support.installation import RBAC, establish_crd
from tests.support.runner import Certificates

Json = dict[str, Any]

NAMESPACE, NODE_NAME = "wherry-system", "wherry"

API_PORT, HEALTH_PORT, KUBELET_PORT = 8443, 8080, 10250

HAS_RUNNER = "example.com/runner"
"""The label of the nodes that are to have one."""


def install(
    cluster: NodeCluster,
    directory: Path,
    *,
    runner_flags: Sequence[str] = (),
    max_pods: int = 1000,
    progress: Progress = SILENT,
) -> Space:
    """Bring operators and a runner on each node, from our own images, and return their namespace when all are ready.

    :param directory: for keys and certificates; the caller removes it.
    """
    images = {name: cluster.push(dockerfile.layout(name, progress), f"{name}:1") for name in dockerfile.IMAGES}
    progress.step("installing Wherry")
    cluster.kubectl("label", "nodes", *(node.name for node in cluster.nodes), f"{HAS_RUNNER}=true")
    cluster.kubectl("create", "namespace", NAMESPACE)
    establish_crd(cluster)
    cluster.apply(RBAC.read_text().replace("${NODE_NAME}", NODE_NAME).replace("${NAMESPACE}", NAMESPACE))
    system = Space(cluster, NAMESPACE)
    certificates = Certificates(directory)
    assert cluster.pki is not None
    kubelet = cluster.pki.issue(f"system:node:{NODE_NAME}", ["system:nodes"], dns=["wherry-operator"], server=True)
    system.create(
        _secret("runner", certificates.runner, certificates.ca.cert_file),
        _secret("operator", certificates.operator, certificates.ca.cert_file),
        _secret("kubelet", kubelet, certificates.ca.cert_file),
        _headless(),
        _runners(images["runner"], runner_flags),
        _operators(images["operator"], max_pods),
    )
    for what in ("daemonset/runner", "deployment/operator"):
        progress.step(f"waiting for {what}")
        rolled_out(system, what)
    return system


def rolled_out(system: Space, what: str) -> None:
    """Wait until a DaemonSet or a Deployment has rolled out."""
    done = system.kubectl("rollout", "status", what, f"--timeout={PATIENCE}", check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{seen(system)}"


def seen(system: Space) -> str:
    """What there is of the installation, for whoever has to find out why a test failed."""
    text = system.kubectl("get", "pods,endpointslices", "-o", "wide").stdout
    for previous in ("false", "true"):
        logs = ["logs", "--selector=app=operator", "--tail=30", "--prefix", f"--previous={previous}"]
        text += f"\n{system.kubectl(*logs, check=False).stdout}"
    return text


def _secret(name: str, pair: CertificateFiles, ca: Path) -> Json:
    files = {"tls.crt": pair.cert, "tls.key": pair.key, "ca.crt": ca}
    data = {key: base64.b64encode(file.read_bytes()).decode() for key, file in files.items()}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data}


def _headless() -> Json:
    """Names runners also before they are ready: they may have guests."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "runners"},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"app": "runner"},
            "ports": [{"name": "health", "port": HEALTH_PORT}, {"name": "api", "port": API_PORT}],
        },
    }


def _runners(image: str, flags: Sequence[str]) -> Json:
    container = {
        "name": "runner",
        "image": image,
        "args": [
            "--name=$(NODE)", "--node=$(NODE)", "--address=$(POD_IP)",
            "--listen=0.0.0.0", f"--port={API_PORT}", "--health-listen=0.0.0.0", f"--health-port={HEALTH_PORT}",
            "--cert=/runner/tls.crt", "--key=/runner/tls.key", "--client-ca=/runner/ca.crt",
            "--state-directory=/state", "--memory-directory=/memory",
            "--leave-seconds=0", "--termination-grace-seconds=0",
            *flags,
        ],
        "env": [_field("NODE", "spec.nodeName"), _field("POD_IP", "status.podIP")],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": HEALTH_PORT}, "periodSeconds": 1},
    }  # fmt: skip
    folders = [("state", {}), ("memory", {"medium": "Memory"}), ("tmp", {})]
    return _controller("DaemonSet", "runner", container, ["runner"], folders, nodeSelector={HAS_RUNNER: "true"})


def _operators(image: str, max_pods: int) -> Json:
    container = {
        "name": "operator",
        "image": image,
        "args": [
            f"--node-name={NODE_NAME}", f"--namespace={NAMESPACE}", "--identity=$(POD_NAME)", "--address=$(POD_IP)",
            f"--kubelet-port={KUBELET_PORT}", f"--api-port={API_PORT}", f"--health-port={HEALTH_PORT}",
            "--kubelet-cert=/kubelet/tls.crt", "--kubelet-key=/kubelet/tls.key", "--runner-ca=/operator/ca.crt",
            "--runner-cert=/operator/tls.crt", "--runner-key=/operator/tls.key", "--runner-service=runners",
            f"--max-pods={max_pods}",
        ],
        "env": [_field("POD_NAME", "metadata.name"), _field("POD_IP", "status.podIP")],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": HEALTH_PORT}, "periodSeconds": 1},
    }  # fmt: skip
    pod_spec = {"serviceAccountName": "wherry-operator", "automountServiceAccountToken": True}
    return _controller(
        "Deployment", "operator", container, ["operator", "kubelet"], [("tmp", {})], replicas=2, **pod_spec
    )


def _controller(
    kind: str,
    name: str,
    container: Json,
    secrets: list[str],
    folders: list[tuple[str, Json]],
    *,
    replicas: int | None = None,
    **pod_spec: Any,
) -> Json:
    """A DaemonSet or Deployment of Pods of one container that the level `restricted` admits."""
    labels = {"app": name}
    container["securityContext"] = RESTRICTED
    container["volumeMounts"] = [
        {"name": volume, "mountPath": f"/{volume}"} for volume in (*secrets, *(folder for folder, _ in folders))
    ]
    volumes = [{"name": each, "secret": {"secretName": each, "defaultMode": 0o440}} for each in secrets]
    volumes += [{"name": each, "emptyDir": how} for each, how in folders]
    spec = {
        "securityContext": {"fsGroup": 65532},
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 5,
        "containers": [container],
        "volumes": volumes,
        **pod_spec,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
            **({} if replicas is None else {"replicas": replicas}),
        },
    }


def _field(name: str, path: str) -> Json:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
