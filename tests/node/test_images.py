"""Our own images, built from our Dockerfiles, pulled by a real kubelet, in a namespace that admits nothing unusual."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.client import http_status
from tests.cluster.images import dockerfile
from tests.cluster.processes import wait_for
from tests.node.pods import PATIENCE_SECONDS, RESTRICTED, Space, pod
from tests.support.runner import Certificates

COMPILERS = "gcc cc clang rustc cargo go make ld as"


@pytest.fixture
def restricted(node_space: Space) -> Space:
    level = "pod-security.kubernetes.io/enforce=restricted"
    node_space.cluster.kubectl("label", "namespace", node_space.namespace, level)
    return node_space


def runs_to_its_end(space: Space, name: str, image: str, **container: Any) -> str:
    """Run a Pod to its successful end, and return what it printed."""
    once = pod(name, image, securityContext=RESTRICTED, **container)
    once["spec"]["restartPolicy"] = "Never"
    space.create(once)
    space.wait(f"pod/{name}", "jsonpath={.status.phase}=Succeeded")
    return space.kubectl("logs", name).stdout


def test_the_runner_image_starts_the_runner(restricted: Space, runner_image: str) -> None:
    assert runs_to_its_end(restricted, "runner", runner_image, args=["--help"]).startswith("usage: wherry-runner")


def test_the_operator_image_starts_the_operator(restricted: Space, operator_image: str) -> None:
    assert runs_to_its_end(restricted, "operator", operator_image, args=["--help"]).startswith("usage: wherry-operator")


def test_a_runner_pod_becomes_healthy_with_certificates_from_a_secret(
    restricted: Space, runner_image: str, tmp_path: Path
) -> None:
    certificates = Certificates(tmp_path)
    files = {
        "tls.crt": certificates.runner.cert,
        "tls.key": certificates.runner.key,
        "ca.crt": certificates.ca.cert_file,
    }
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "runner-certificates"},
        "data": {name: base64.b64encode(file.read_bytes()).decode() for name, file in files.items()},
    }
    runner = pod(
        "runner",
        runner_image,
        args=[
            "--name=runner-0", "--node=node-1", "--address=$(POD_IP)", "--listen=0.0.0.0", "--port=8443",
            "--health-listen=0.0.0.0", "--health-port=8080", "--cert=/certificates/tls.crt", "--key=/certificates/tls.key",
            "--client-ca=/certificates/ca.crt", "--state-directory=/state", "--memory-directory=/memory",
        ],
        env=[{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        readinessProbe={"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1},
        securityContext=RESTRICTED,
        volumeMounts=[
            {"name": name, "mountPath": f"/{name}"} for name in ("certificates", "state", "memory", "tmp")
        ],
    )  # fmt: skip
    runner["spec"]["securityContext"] = {"fsGroup": 65532}
    runner["spec"]["volumes"] = [
        {"name": "certificates", "secret": {"secretName": "runner-certificates", "defaultMode": 0o440}},
        {"name": "state", "emptyDir": {}},
        {"name": "memory", "emptyDir": {"medium": "Memory"}},
        {"name": "tmp", "emptyDir": {}},
    ]
    restricted.create(secret, runner)
    restricted.wait("pod/runner", "condition=Ready")
    address = restricted.status("runner")["podIP"]
    connect = restricted.cluster.connect
    assert wait_for(lambda: http_status(connect, address, 8080, "/healthz") == 200, timeout_seconds=PATIENCE_SECONDS)


def test_an_image_has_no_compiler_and_no_pip(restricted: Space, runner_image: str) -> None:
    script = f"for each in {COMPILERS} /opt/wherry/bin/pip; do command -v $each; done; true"
    assert runs_to_its_end(restricted, "looks", runner_image, command=["sh", "-c", script]) == ""


@pytest.mark.parametrize("name", dockerfile.IMAGES)
def test_an_image_is_nobodys_and_execs_its_program(nodes_possible: None, name: str) -> None:
    layout = dockerfile.layout(name)
    (entry,) = json.loads((layout / "index.json").read_text())["manifests"]
    manifest = json.loads((layout / "blobs" / "sha256" / entry["digest"].removeprefix("sha256:")).read_text())
    blob = layout / "blobs" / "sha256" / manifest["config"]["digest"].removeprefix("sha256:")
    config = json.loads(blob.read_text())["config"]
    assert (config["User"], config["Entrypoint"]) == ("65532:65532", [f"wherry-{name}"])
