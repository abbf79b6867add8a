"""Our own images, built from our Dockerfiles, pulled by a real kubelet, in a namespace that admits nothing unusual."""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import re
import ssl
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.client import http_status
from tests.cluster.images import dockerfile
from tests.cluster.images.dockerfile import REPOSITORY
from tests.cluster.processes import wait_for
from tests.node.pods import PATIENCE_SECONDS, RESTRICTED, Space, pod
from tests.support import executors, wat
from tests.support.runner import RUNNER_NAME_IN_CERTIFICATE, Certificates
from wherry_runner import protocol
from wherry_runner.execution import confinement

COMPILERS = "gcc cc clang rustc cargo go make ld as"

API_PORT, HEALTH_PORT = 8443, 8080

EXECUTOR = "wherry-executor"

LARGEST_BYTES = {"operator": 120_000_000, "runner": 150_000_000}
"""Over the base: unpacked, which is far more than what is pulled."""

GREETING = b"hello from a restricted Pod\n"

LANDLOCK_ABI = 4
"""Of Linux 6.7: it also closes TCP."""


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


@dataclass(frozen=True)
class RunnerPod:
    """A runner in a restricted Pod, which is ready."""

    space: Space
    address: str
    certificates: Certificates

    def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Ask its API as the operator does, from the node's network."""
        context = ssl.create_default_context(cafile=str(self.certificates.ca.cert_file))
        context.load_cert_chain(self.certificates.operator.cert, self.certificates.operator.key)
        connection = http.client.HTTPSConnection(self.address, API_PORT, context=context)
        try:
            with self.space.cluster.connect((self.address, API_PORT), PATIENCE_SECONDS) as plain:
                connection.sock = context.wrap_socket(plain, server_hostname=RUNNER_NAME_IN_CERTIFICATE)
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def processes(self) -> dict[int, dict[str, str]]:
        """What /proc/PID/status says of each process in the Pod."""
        text = self.space.inside("runner", "sh", "-c", "for each in /proc/[0-9]*/status; do cat $each; echo; done")
        found = [dict(re.findall(r"^(\w+):\s+(.*)$", status, re.MULTILINE)) for status in text.split("\n\n")]
        return {int(status["Pid"]): status for status in found if status}


@pytest.fixture
def runner_pod(restricted: Space, runner_image: str, tmp_path: Path) -> RunnerPod:
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
    demands = [] if executors.why_not("native") else [f"--require-confinement={','.join(confinement.GATES)}"]
    runner = pod(
        "runner",
        runner_image,
        args=[
            "--name=runner-0", "--node=node-1", "--address=$(POD_IP)", "--listen=0.0.0.0", f"--port={API_PORT}",
            "--health-listen=0.0.0.0", f"--health-port={HEALTH_PORT}", "--cert=/certificates/tls.crt",
            "--key=/certificates/tls.key", "--client-ca=/certificates/ca.crt", "--state-directory=/state",
            "--memory-directory=/memory", *demands,
        ],
        env=[{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        readinessProbe={"httpGet": {"path": "/healthz", "port": HEALTH_PORT}, "periodSeconds": 1},
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
    return RunnerPod(restricted, restricted.status("runner")["podIP"], certificates)


def test_a_runner_pod_becomes_healthy_with_certificates_from_a_secret(runner_pod: RunnerPod) -> None:
    connect = runner_pod.space.cluster.connect
    assert wait_for(
        lambda: http_status(connect, runner_pod.address, HEALTH_PORT, "/healthz") == 200,
        timeout_seconds=PATIENCE_SECONDS,
    )


def test_a_module_runs_confined_on_the_native_executor_in_a_restricted_pod(runner_pod: RunnerPod) -> None:
    if reason := executors.why_not("native"):
        pytest.skip(reason)
    info = protocol.RunnerInfo.model_validate_json(runner_pod.ask("GET", "/v1/info")[1])
    assert info.engines[0].startswith("native/")
    assert info.confinement.no_new_privileges
    assert info.confinement.seccomp
    assert info.confinement.landlock_abi >= LANDLOCK_ABI

    module = protocol.InlineModule(data=base64.b64encode(wat.sleeps("hello from a restricted Pod").encode()))
    put = protocol.WorkloadPut(
        epoch=1,
        sequence=1,
        template_hash="t1",
        workload=protocol.Workload(
            owner=protocol.Owner(kind="Pod", namespace="default", name="hello", uid="u"),
            containers=(protocol.Container(name="main", module=module),),
        ),
    )
    before = runner_pod.processes()
    code, answer = runner_pod.ask("PUT", "/v1/workloads/hello", put.to_json())
    assert code == 200, answer
    log = "/v1/workloads/hello/containers/main/log"
    assert wait_for(lambda: runner_pod.ask("GET", log) == (200, GREETING), timeout_seconds=PATIENCE_SECONDS)

    processes = runner_pod.processes()
    executors_ = [pid for pid in before if before[pid]["Name"] == EXECUTOR]
    guests = [each for pid, each in processes.items() if int(each["PPid"]) in executors_]
    assert len(executors_) == 1
    assert len(guests) == 1
    (guest,) = guests
    assert guest["NoNewPrivs"] == "1"
    assert guest["Seccomp"] == "2"
    # The container runtime's filter, and the guest's own.
    assert int(guest["Seccomp_filters"]) > int(processes[1]["Seccomp_filters"]) >= 1
    assert [guest[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")] == ["0" * 16] * 5
    assert guest["Uid"].split() == ["65532"] * 4
    assert int(guest["Threads"]) <= 2
    # Not even its own user, outside of the guest, sees what it has open.
    looking = runner_pod.space.kubectl("exec", "runner", "--", "ls", f"/proc/{guest['Pid']}/fd", check=False)
    assert looking.returncode != 0

    code, _ = runner_pod.ask("DELETE", "/v1/workloads/hello?epoch=1&sequence=2&grace=0")
    assert code == 202
    assert wait_for(lambda: guest["Pid"] not in map(str, runner_pod.processes()), timeout_seconds=PATIENCE_SECONDS)


def test_an_image_has_no_compiler_and_no_pip(restricted: Space, runner_image: str) -> None:
    script = f"for each in {COMPILERS} /opt/wherry/bin/pip; do command -v $each; done; true"
    assert runs_to_its_end(restricted, "looks", runner_image, command=["sh", "-c", script]) == ""


@pytest.mark.parametrize("name", dockerfile.IMAGES)
def test_an_image_lists_what_it_is_made_of(
    restricted: Space, operator_image: str, runner_image: str, name: str
) -> None:
    image = operator_image if name == "operator" else runner_image
    text = runs_to_its_end(restricted, "lists", image, command=["cat", "/opt/wherry/sbom.cdx.json"])
    listed = {each["purl"].removeprefix("pkg:") for each in json.loads(text)["components"]}
    locked = dict(re.findall(r"^([a-z0-9-]+)==([^ ;]+)", (REPOSITORY / f"locks/{name}.txt").read_text(), re.MULTILINE))
    installed = {each.removeprefix("pypi/") for each in listed if each.startswith("pypi/")}
    assert f"wherry@{_version()}" in installed
    assert installed - {f"wherry@{_version()}"} <= {f"{name}@{version}" for name, version in locked.items()}
    assert {f"pydantic@{locked['pydantic']}", f"aiohttp@{locked['aiohttp']}"} <= installed
    assert any(each.startswith("cargo/wasmtime@") for each in listed) == (name == "runner")


@dataclass(frozen=True)
class Layout:
    """An image of ours on disk."""

    config: dict[str, Any]
    pulled_bytes: int
    """Without the base's layer, as a registry has it: compressed."""
    unpacked_bytes: int


def _layout(name: str) -> Layout:
    blobs = dockerfile.layout(name) / "blobs" / "sha256"

    def blob(entry: dict[str, Any]) -> Path:
        return blobs / str(entry["digest"]).removeprefix("sha256:")

    (entry,) = json.loads((blobs.parent.parent / "index.json").read_text())["manifests"]
    manifest = json.loads(blob(entry).read_text())
    _, *ours = manifest["layers"]
    unpacked = 0
    for layer in ours:
        with gzip.open(blob(layer)) as file:
            while part := file.read(1 << 20):
                unpacked += len(part)
    return Layout(
        config=json.loads(blob(manifest["config"]).read_text())["config"],
        pulled_bytes=sum(layer["size"] for layer in ours),
        unpacked_bytes=unpacked,
    )


@pytest.mark.parametrize("name", dockerfile.IMAGES)
def test_an_image_is_nobodys_and_execs_its_program(nodes_possible: None, name: str) -> None:
    found = _layout(name)
    assert (found.config["User"], found.config["Entrypoint"]) == ("65532:65532", [f"wherry-{name}"])
    labels = {key.removeprefix("org.opencontainers.image."): value for key, value in found.config["Labels"].items()}
    assert (labels["title"], labels["licenses"], labels["version"]) == (f"wherry-{name}", "Apache-2.0", _version())
    mb = 1e6
    print(
        f"wherry-{name}, over its base: {found.pulled_bytes / mb:.0f} MB, {found.unpacked_bytes / mb:.0f} MB unpacked"
    )
    assert found.pulled_bytes < found.unpacked_bytes <= LARGEST_BYTES[name]


def _version() -> str:
    return str(tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"])
