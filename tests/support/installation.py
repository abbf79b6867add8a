"""An installation of Wherry beside a cluster: the real operator and the real runners as processes of their own.

What Helm does on a real cluster is done here by hand: the CRD, the operator's ServiceAccount and its RBAC (the chart's own
file), certificates. The operator runs under its ServiceAccount's token, never as an administrator.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from tests.cluster.ports import Reservation
from tests.cluster.processes import Process, wait_for
from tests.cluster.provider import Cluster
from tests.support import in_pod
from tests.support.runner import (
    RUNNER_NAME_IN_CERTIFICATE,
    START_SECONDS,
    Certificates,
    RunnerProcess,
    environment,
    healthy,
)

ROOT = Path(__file__).resolve().parents[2]
CRD = ROOT / "crds" / "wasmworkloads.wherry.dev.yaml"
RBAC = ROOT / "charts" / "wherry" / "files" / "operator-rbac.yaml"
CERTIFICATES_RBAC = ROOT / "charts" / "wherry" / "files" / "certificates-rbac.yaml"
NODE_RBAC = ROOT / "charts" / "wherry" / "files" / "node-rbac.yaml"
LOG_API = ROOT / "charts" / "wherry" / "files" / "log-api.yaml"


API_SERVICE = "v1alpha1.subresources.wherry.dev"


def establish_crd(cluster: Cluster) -> None:
    """Have the API server know WasmWorkloads."""
    cluster.apply(CRD.read_text())

    def established() -> bool:
        # Not by `kubectl wait`: it can't bear an object that has no conditions yet.
        found = cluster.get("crd", "wasmworkloads.wherry.dev") or {}
        conditions = found.get("status", {}).get("conditions") or []
        return any((each["type"], each["status"]) == ("Established", "True") for each in conditions)

    assert wait_for(established, timeout_seconds=START_SECONDS), "the CRD is not established"


@contextlib.contextmanager
def folder_of(name: str, session: pytest.Session) -> Iterator[Path]:
    """A folder for an installation that several tests share. Its logs are kept if one of them failed, or it could not be
    started."""
    directory = Path(tempfile.mkdtemp(prefix=f"wherry-{name}-"))
    failed = True
    try:
        yield directory
        failed = session.testsfailed > 0
    finally:
        if failed:
            print(f"\nlogs of operator and runners kept: {directory / 'logs'}")
        else:
            shutil.rmtree(directory)


@dataclasses.dataclass(frozen=True)
class Replica:
    """A further operator of an installation."""

    process: Process
    health_address: str
    kubelet_port: int
    api_port: int

    def wait_ready(self) -> None:
        """Wait until it says that it is ready."""
        self.process.wait_until(
            lambda: healthy(f"http://{self.health_address}/readyz"), what="ready", timeout_seconds=START_SECONDS
        )


class Installation:
    """Operator and runners beside a cluster. As a context manager it runs inside."""

    def __init__(
        self,
        cluster: Cluster,
        directory: Path,
        *,
        node_name: str = "wherry",
        class_name: str = "wherry",
        namespace: str = "wherry-system",
        runners: Sequence[str] = ("runner-a",),
        runner_flags: Sequence[str] = (),
        operator_flags: Sequence[str] = (),
        registry_mirrors: Mapping[str, str] | None = None,
        serves_logs: bool = True,
        brings_certificate: bool = True,
        brings_runners_certificates: bool = True,
        variables: Mapping[str, str] | None = None,
        namespaces: Sequence[str] = (),
        in_pods: bool = False,
    ) -> None:
        """`brings_certificate`: the kubelet endpoint's comes from the cluster's CA; else the operator is left to have one.
        `brings_runners_certificates`: those between operator and runners are files; else the operator makes them.
        `variables`: for the environments of all processes. `namespaces`: the only ones where it has rights on Pods and
        WasmWorkloads, and takes them. `in_pods`: operators find token, CA and API server as in a Pod.
        """
        self._in_pods = in_pods
        self._brings_certificate = brings_certificate
        self._brings_runners_certificates = brings_runners_certificates
        self._variables = dict(variables or {})
        self.cluster = cluster
        self.directory = directory
        self.node_name = node_name
        self.class_name = class_name
        self.namespace = namespace
        self._namespaces = tuple(namespaces)
        self.operator_flags = [*operator_flags, *(f"--watch-namespace={each}" for each in namespaces)]
        self.routes: dict[str, str] = {}
        """Where the operator is told that a runner is, if it is not where it listens."""
        self.api_route = ""
        """Where an operator that is started now is told that the API server is, if it is not where it listens."""
        self._serves_logs = serves_logs
        self.logs = directory / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.certificates = Certificates(directory / "pki")
        self._kubelet_port = Reservation()
        self._health = Reservation()
        self._api = Reservation()
        flags = [*runner_flags]
        for host, url in (registry_mirrors or {}).items():
            flags += ["--registry-mirror", f"{host}={url}"]
        self.runners = {
            name: RunnerProcess(directory, self.certificates, name, flags, self._variables) for name in runners
        }
        self.operator: Process | None = None
        self._kubeconfig: Path | None = None

    # --- life ---------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Installation:
        try:
            self.install()
            for runner in self.runners.values():
                runner.start()
            self.start_operator()
            if self._serves_logs:
                self._register_log_api()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def install(self) -> None:
        """What the chart would bring: CRD, RBAC, ServiceAccount."""
        establish_crd(self.cluster)
        if self.cluster.get("namespace", self.namespace) is None:
            self.cluster.kubectl("create", "namespace", self.namespace)
        self.cluster.apply(self.rbac())
        for namespace in self._namespaces:
            self.cluster.kubectl(
                "create", "rolebinding", self._objects, f"--clusterrole={self._objects}",
                f"--serviceaccount={self.namespace}:wherry-operator", f"--namespace={namespace}",
            )  # fmt: skip
        if not self._brings_runners_certificates:
            self.cluster.apply(self._filled(CERTIFICATES_RBAC))

    def rbac(self) -> str:
        """The chart's RBAC file, filled in."""
        text = self._filled(RBAC)
        if not self._namespaces:
            return text
        everywhere = ("ClusterRoleBinding", self._objects)
        every = yaml.safe_load_all(text)
        return yaml.safe_dump_all(each for each in every if (each["kind"], each["metadata"]["name"]) != everywhere)

    @property
    def _objects(self) -> str:
        """The name of what grants the rights on the objects that are served."""
        return f"wherry-objects-{self.node_name}"

    def remove_cluster_wide(self) -> None:
        """Delete what it has left that is of no namespace, once it is closed."""
        for kind in ("clusterrolebinding", "clusterrole"):
            for name in (f"wherry-operator-{self.node_name}", f"wherry-log-api-{self.node_name}", self._objects):
                self.cluster.kubectl("delete", kind, name, "--ignore-not-found")
        self.cluster.kubectl("delete", "node", self.node_name, "--ignore-not-found")

    def node_rbac(self) -> str:
        """The one for API servers without a Node authorizer."""
        return self._filled(NODE_RBAC)

    def _filled(self, file: Path) -> str:
        return file.read_text().replace("${NODE_NAME}", self.node_name).replace("${NAMESPACE}", self.namespace)

    def _register_log_api(self) -> None:
        """The chart's APIService, and a Service that leads to a process on this machine."""
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "wherry-operator", "namespace": self.namespace},
            "spec": {"type": "ExternalName", "externalName": "localhost"},
        }
        self.cluster.apply(service)
        pki = self.cluster.pki
        assert pki is not None
        filled = LOG_API.read_text()
        for name, value in {
            "${NAMESPACE}": self.namespace,
            "${PORT}": str(self._api.port),
            "${CA_BUNDLE}": base64.b64encode(pki.cert_file.read_bytes()).decode(),
        }.items():
            filled = filled.replace(name, value)
        self.cluster.apply(filled)
        self.cluster.kubectl("wait", "--for=condition=Available", f"apiservice/{API_SERVICE}", "--timeout=60s")

    @property
    def health_address(self) -> str:
        """Where the operator serves health and metrics."""
        return self._health.address

    @property
    def api_port(self) -> int:
        """Where the operator serves the aggregated API."""
        return self._api.port

    def grant_references(self, namespace: str) -> None:
        """Let WasmWorkloads of a namespace refer to its ConfigMaps and Secrets."""
        self.cluster.kubectl(
            "create", "rolebinding", "wherry-references", "--clusterrole=wherry-references",
            f"--serviceaccount={self.namespace}:wherry-operator", f"--namespace={namespace}",
        )  # fmt: skip

    @property
    def operator_kubeconfig(self) -> Path:
        """The operator's own rights."""
        if self._kubeconfig is None:
            self._kubeconfig = self.cluster.service_account_kubeconfig(self.namespace, "wherry-operator")
        return self._kubeconfig

    def start_operator(self, *, wait: bool = True) -> None:
        """Start the operator, and wait until it is ready."""
        self.operator = self._start(f"operator-{self.node_name}", self._kubelet_port, self._health, self._api)
        if wait:
            self.wait_operator_ready()

    @contextlib.contextmanager
    def second_operator(self) -> Iterator[Replica]:
        """Another replica, as ready as one can be that does not lead."""
        with Reservation() as kubelet, Reservation() as health, Reservation() as api:
            process = self._start("second", kubelet, health, api)
            replica = Replica(process, health.address, kubelet.port, api.port)
            try:
                replica.wait_ready()
                yield replica
            finally:
                replica.process.stop()

    def _start(self, identity: str, kubelet_port: Reservation, health: Reservation, api: Reservation) -> Process:
        pki, mine = self.cluster.pki, self.certificates
        assert pki is not None
        kubelet = pki.issue(
            f"system:node:{self.node_name}",
            ["system:nodes"],
            dns=[f"wherry-operator.{self.namespace}.svc"],
            ips=["127.0.0.1"],
            server=True,
        )
        command = [
            sys.executable, "-m", "wherry_operator",
            "--node-name", self.node_name, "--class-name", self.class_name, "--namespace", self.namespace,
            "--identity", identity, "--address", "127.0.0.1", "--node-owner", f"wherry-operator-{self.node_name}",
            "--kubelet-listen", "127.0.0.1", "--kubelet-port", str(kubelet_port.port),
            *(["--kubelet-cert", str(kubelet.cert), "--kubelet-key", str(kubelet.key)] if self._brings_certificate else []),
            "--health-listen", "127.0.0.1", "--health-port", str(health.port),
            "--api-listen", "127.0.0.1", "--api-port", str(api.port),
            *([
                "--runner-ca", str(mine.ca.cert_file),
                "--runner-cert", str(mine.operator.cert), "--runner-key", str(mine.operator.key),
            ] if self._brings_runners_certificates else ["--certificates", "own"]),
            "--runner-server-name", RUNNER_NAME_IN_CERTIFICATE,
            *self.operator_flags,
        ]  # fmt: skip
        for runner in self.runners.values():
            command += ["--runner", f"{runner.name}={self.routes.get(runner.name, runner.url)}"]
        log = self.logs / f"{identity}.log"
        if self._in_pods:
            server = urlsplit(self.api_route or self.cluster.server)
            variables = {
                "KUBERNETES_SERVICE_HOST": str(server.hostname),
                "KUBERNETES_SERVICE_PORT": str(server.port),
                **self._variables,
            }
            command = in_pod.command(self.service_account, command)
        else:
            variables = {"KUBECONFIG": str(self._routed_kubeconfig(identity)), **self._variables}
        return Process.start("operator", command, log=log, env=environment(**variables))

    @property
    def service_account(self) -> Path:
        """A folder as a kubelet mounts it, with the operator's own rights."""
        folder = self.directory / "serviceaccount"
        if not folder.exists():
            token = self.cluster.kubectl("create", "token", "wherry-operator", "-n", self.namespace, "--duration=24h")
            folder.mkdir()
            (folder / "token").write_text(token.stdout.strip())
            (folder / "namespace").write_text(self.namespace)
            shutil.copy(self.cluster.ca_file, folder / "ca.crt")
        return folder

    @property
    def kubelet_port(self) -> int:
        """Where the operator serves the virtual node."""
        return self._kubelet_port.port

    def _routed_kubeconfig(self, identity: str) -> Path:
        if not self.api_route:
            return self.operator_kubeconfig
        routed = self.directory / f"{identity}.kubeconfig"
        routed.write_text(self.operator_kubeconfig.read_text().replace(self.cluster.server, self.api_route))
        return routed

    def wait_operator_ready(self) -> None:
        """Wait until the operator leads and its node is kept."""
        assert self.operator is not None
        self.operator.wait_until(
            lambda: healthy(f"http://{self._health.address}/readyz") and self._node_ready(),
            what="ready",
            timeout_seconds=START_SECONDS,
        )

    def keep_operator(self) -> None:
        """What its Deployment does: one that has ended is started again. It ends when it can't renew its Lease."""
        if self.operator is not None and not self.operator.running:
            self.start_operator(wait=False)

    def kill_operator(self) -> None:
        """SIGKILL."""
        if self.operator is not None:
            self.operator.kill()
            self.operator = None

    def stop_operator(self) -> None:
        """SIGTERM."""
        if self.operator is not None:
            self.operator.stop()
            self.operator = None

    def close(self) -> None:
        """Stop everything."""
        if self._serves_logs:
            # An API that nobody serves any more keeps namespaces from being deleted.
            self.cluster.kubectl("delete", "apiservice", API_SERVICE, "--ignore-not-found", check=False)
        self.stop_operator()
        for runner in self.runners.values():
            runner.close()
        self._kubelet_port.release()
        self._health.release()
        self._api.release()

    def _node_ready(self) -> bool:
        node = self.cluster.get("node", self.node_name)
        conditions = {} if node is None else {c["type"]: c["status"] for c in node["status"].get("conditions", [])}
        return conditions.get("Ready") == "True"


@contextlib.contextmanager
def apart(installation: Installation) -> Iterator[Installation]:
    """An installation beside the one that most tests share, up for as long: other tests' Pods would come to its node too, for to
    the scheduler one virtual node is as good as another. So it is cordoned; and gone at the end."""
    cluster, node = installation.cluster, installation.node_name
    try:
        with installation:
            cluster.kubectl("cordon", node)
            yield installation
    finally:
        cluster.kubectl("delete", "node", node, "--ignore-not-found")
