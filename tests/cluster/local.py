"""Provider `local`: etcd, API server, controller-manager and scheduler on loopback. No root needed.

There is no node but the virtual one: Pods for others stay Pending. The folder of a cluster, `directory`:

    pki/ kubeconfigs/ data/     the cluster's own
    logs/                       one file for each process, and the audit log
    cluster.json                see `record`
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.cluster import build, controlplane, pki
from tests.cluster.client import ApiClient
from tests.cluster.errors import ClusterError, ProcessFailed
from tests.cluster.ports import Reservation, is_taken
from tests.cluster.processes import Process
from tests.cluster.progress import SILENT, Progress
from tests.cluster.provider import DEFAULT_NAME, Cluster, Status, check_name
from tests.cluster.record import Component, Record

START_TIMEOUT_SECONDS = 120.0
"""For each component. Seconds suffice; a loaded CI machine may need many times as long."""

STOP_TIMEOUT_SECONDS = 5.0
"""For each component, then it is killed: there is nothing in it that is worth waiting for."""

START_ATTEMPTS = 3
"""A port can only be lost to a program that binds fixed ports: rare enough to just try again with others."""

DEFAULT_OBJECTS = (
    "/api/v1/namespaces/default",
    "/api/v1/namespaces/default/serviceaccounts/default",
    "/api/v1/namespaces/default/configmaps/kube-root-ca.crt",
)
"""Made by the controller-manager soon after its start. Without them no Pod can be created."""

READY_PATHS = {
    "etcd": "/health",
    "kube-apiserver": "/readyz",
    "kube-controller-manager": "/healthz",
    "kube-scheduler": "/healthz",
}

COMPONENTS: dict[str, Callable[[controlplane.Layout], list[str]]] = {
    "etcd": controlplane.etcd,
    "kube-apiserver": controlplane.apiserver,
    "kube-controller-manager": controlplane.controller_manager,
    "kube-scheduler": controlplane.scheduler,
}
"""In the order of their start."""


class LocalCluster(Cluster):
    """A control plane that lives as long as this process, at most.

    :param directory: where its files are: the cluster's alone, removed by `down()`. Default: temporary.
    :param name: what a person calls it.
    :param progress: told which component starts.
    :param authorization: the API server's modes, separated by commas.
    :param keep_logs: whether `down()` leaves `logs`; can be set until then.
    :param flags: further flags of components, by their names.
    :param environment: further variables of all of them.
    """

    provider = "local"
    address = controlplane.LOOPBACK
    """Where its API server is."""

    def __init__(
        self,
        directory: Path | None = None,
        *,
        name: str = DEFAULT_NAME,
        progress: Progress = SILENT,
        keep_logs: bool = False,
        authorization: str = controlplane.AUTHORIZATION,
        flags: Mapping[str, Sequence[str]] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.authorization = authorization
        self.name = check_name(name)
        self.directory = directory or Path(tempfile.mkdtemp(prefix="wherry-cluster-"))
        self.keep_logs = keep_logs
        self.kubeconfig = self.directory / "kubeconfigs" / "admin.yaml"
        self.logs = self.directory / "logs"
        self.audit_log = self.logs / "audit.jsonl"
        self._progress = progress
        self._flags = dict(flags or {})
        self._environment = {**controlplane.ENVIRONMENT, **(environment or {})}
        self._processes: dict[str, Process] = {}
        self._reservations: list[Reservation] = []
        self._layout: controlplane.Layout | None = None
        self._apis: dict[str, ApiClient] = {}
        self._binaries: Path | None = None

    def up(self) -> None:
        """Start everything, and return when Pods can be created.

        :raises BuildFailed: the binaries could not be built.
        :raises ProcessFailed: a component did not start; its log is kept and named in the message.
        """
        if self._processes:
            raise ClusterError(f"cluster {self.name!r} is up already")
        try:
            self._binaries = build.kube(self._progress)
        except BaseException:
            self._remove(keep_logs=False)
            raise
        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                self._start()
                return
            except ProcessFailed as failure:
                self._stop()
                if not is_taken(failure.tail) or attempt == START_ATTEMPTS:
                    self._remove(keep_logs=True)
                    raise
                self._progress.step("a port was taken meanwhile: once more, with others")
                self._remove(keep_logs=False)
            except BaseException:
                self._stop()
                self._remove(keep_logs=True)
                raise

    def down(self) -> None:
        """Stop everything and remove the folder (but for the logs, if `keep_logs`)."""
        self._stop()
        self._remove(keep_logs=self.keep_logs)

    def status(self) -> Status:
        """Return how the cluster is."""
        components = {
            name: "running" if process.running else f"ended with exit code {process.returncode}"
            for name, process in self._processes.items()
        }
        if not components:
            return Status(name=self.name, provider=self.provider, state="stopped")
        code, body = self._apis["kube-apiserver"].get("/version")
        whole = code == 200 and all(process.running for process in self._processes.values())
        return Status(
            name=self.name,
            provider=self.provider,
            state="running" if whole else "broken",
            server=self.server,
            version=json.loads(body)["gitVersion"] if code == 200 else "",
            components=components,
        )

    def kubectl_program(self) -> Path:
        """Return our kubectl."""
        return self._binaries_directory() / "kubectl"

    def process(self, component: str) -> Process:
        """Return a component's process: to look at its memory, or to send it signals."""
        return self._processes[component]

    def stop_component(self, component: str, *, kill: bool = False) -> None:
        """Stop one component, as a test of what then still works. `start_component` brings it back."""
        process = self._processes[component]
        if kill:
            process.kill()
        else:
            process.stop(timeout_seconds=STOP_TIMEOUT_SECONDS)

    def start_component(self, component: str, *flags: str) -> None:
        """Start one component with its ports and data, and return when it is ready.

        :param flags: besides those that it always has.
        :raises ProcessFailed: it did not start.
        """
        old = self._processes.get(component)
        if old is not None and old.running:
            raise ClusterError(f"{component} of cluster {self.name!r} runs already")
        self._launch(component, *flags)
        self._wait_ready(component)

    def forget_history(self) -> None:
        """Have etcd forget every version but the present one, as it does every five minutes on a real cluster.

        A watch from an older one is then answered with 410 Gone, unless the API server's own cache still has it (flag
        `--watch-cache=false`: it has none).

        :raises ClusterError: etcd refused.
        """
        first_key = base64.b64encode(b"\0").decode()
        revision = self._ask_etcd("/v3/kv/range", {"key": first_key})["header"]["revision"]
        self._ask_etcd("/v3/kv/compaction", {"revision": revision, "physical": True})

    def _ask_etcd(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        code, text = self._apis["etcd"].post(path, body)
        if code != 200:
            raise ClusterError(f"etcd answers {path} with {code}: {text}")
        answer: dict[str, Any] = json.loads(text)
        return answer

    def _start(self) -> None:
        self._start_control_plane()
        self._progress.step(f"cluster {self.name!r} is up at {self.server}")

    def _start_control_plane(self) -> None:
        self._layout = self._prepare()
        for component in ("etcd", "kube-apiserver"):
            self._launch(component)
            self._wait_ready(component)
        clients = ("kube-controller-manager", "kube-scheduler")
        for component in clients:
            self._launch(component)
        self.apply(controlplane.KUBELET_CLIENT_BINDING)
        for component in clients:
            self._wait_ready(component)
        self._progress.step("waiting for the default namespace's service account and root CA")
        api, maker = self._apis["kube-apiserver"], self._processes["kube-controller-manager"]
        maker.wait_until(
            lambda: all(api.ok(path) for path in DEFAULT_OBJECTS),
            what="done with the default namespace",
            timeout_seconds=START_TIMEOUT_SECONDS,
        )

    def _launch(self, component: str, *flags: str) -> None:
        assert self._layout is not None
        self._progress.step(f"starting {component}")
        self._processes[component] = self._spawn(
            component, [*COMPONENTS[component](self._layout), *self._flags.get(component, ()), *flags]
        )
        self._save_record()

    def _spawn(self, component: str, command: list[str]) -> Process:
        environment = {**os.environ, **self._environment}
        return Process.start(component, command, log=self.logs / f"{component}.log", env=environment)

    def _connect(self, address: tuple[str, int], timeout: float) -> socket.socket:
        return socket.create_connection(address, timeout)

    def _take_ports(self) -> controlplane.Ports:
        # Kept for as long as the cluster is there, so that a component can be started again on its port.
        self._reservations = [Reservation() for _ in controlplane.Ports.__dataclass_fields__]
        return controlplane.Ports(*(each.port for each in self._reservations))

    def _wait_ready(self, component: str) -> None:
        api, path = self._apis[component], READY_PATHS[component]
        self._processes[component].wait_until(lambda: api.ok(path), what="ready", timeout_seconds=START_TIMEOUT_SECONDS)

    def _prepare(self) -> controlplane.Layout:
        """Make all files and take the ports."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.logs.mkdir(exist_ok=True)
        certificates = self.directory / "pki"
        self.pki = pki.CertificateAuthority(certificates / "cluster", "kubernetes-ca")
        self.front_proxy_ca = pki.CertificateAuthority(certificates / "front-proxy", "front-proxy-ca")
        etcd_ca = pki.CertificateAuthority(certificates / "etcd", "etcd-ca")
        key, public_key = pki.service_account_key(certificates)

        ports = self._take_ports()
        self.server = f"https://{self.address}:{ports.apiserver}"
        self.ca_file = self.pki.cert_file
        admin = self.pki.issue("kubernetes-admin", ["system:masters"], client=True)
        self._write_kubeconfig("admin", user="kubernetes-admin", certificate=admin)

        audit_policy = self.directory / "audit-policy.json"
        audit_policy.write_text(json.dumps(controlplane.AUDIT_POLICY))
        layout = controlplane.Layout(
            binaries=self._binaries_directory(),
            data=self.directory / "data",
            audit_policy=audit_policy,
            audit_log=self.audit_log,
            ca=self.pki.files,
            front_proxy_ca=self.front_proxy_ca.cert_file,
            service_account_key=key,
            service_account_public_key=public_key,
            etcd_ca=etcd_ca.cert_file,
            etcd=etcd_ca.issue("etcd", dns=["localhost"], ips=["127.0.0.1"], client=True, server=True),
            etcd_client=etcd_ca.issue("kube-apiserver-etcd-client", client=True),
            apiserver=self.pki.issue(
                "kube-apiserver",
                dns=[
                    "localhost",
                    "kubernetes",
                    "kubernetes.default",
                    "kubernetes.default.svc",
                    "kubernetes.default.svc.cluster.local",
                ],
                ips=[*{controlplane.LOOPBACK, self.address}, controlplane.FIRST_SERVICE_ADDRESS],
                server=True,
            ),
            kubelet_client=self.pki.issue(controlplane.KUBELET_CLIENT_USER, client=True),
            front_proxy_client=self.front_proxy_ca.issue(controlplane.FRONT_PROXY_USER, client=True),
            controller_manager=self._serving("kube-controller-manager"),
            scheduler=self._serving("kube-scheduler"),
            controller_manager_kubeconfig=self._component_kubeconfig("kube-controller-manager"),
            scheduler_kubeconfig=self._component_kubeconfig("kube-scheduler"),
            ports=ports,
            address=self.address,
            authorization=self.authorization,
        )
        self._apis = {
            component: ApiClient(url, ca_file=self.ca_file, certificate=admin, connect=self._connect)
            for component, url in (
                ("kube-apiserver", self.server),
                ("kube-controller-manager", f"https://{controlplane.LOOPBACK}:{ports.controller_manager}"),
                ("kube-scheduler", f"https://{controlplane.LOOPBACK}:{ports.scheduler}"),
            )
        }
        self._apis["etcd"] = ApiClient(
            layout.etcd_url, ca_file=layout.etcd_ca, certificate=layout.etcd_client, connect=self._connect
        )
        return layout

    def _binaries_directory(self) -> Path:
        if self._binaries is None:
            self._binaries = build.kube(self._progress)
        return self._binaries

    def _serving(self, component: str) -> pki.CertificateFiles:
        assert self.pki is not None
        return self.pki.issue(component, dns=["localhost"], ips=["127.0.0.1"], server=True)

    def _component_kubeconfig(self, component: str) -> Path:
        assert self.pki is not None
        user = f"system:{component}"
        certificate = self.pki.issue(user, client=True)
        return self._write_kubeconfig(component, user=user, certificate=certificate)

    def _stop(self) -> None:
        """Stop clients before servers; none is waited for longer than it takes to be killed."""
        clients = [self._processes.get(name) for name in ("kube-scheduler", "kube-controller-manager")]
        for process in clients:
            if process is not None:
                process.terminate()
        for name in reversed(COMPONENTS):
            process = self._processes.pop(name, None)
            if process is not None:
                if process.running:
                    process.signal(signal.SIGCONT)  # a test may have stopped it
                process.stop(timeout_seconds=STOP_TIMEOUT_SECONDS)
        for reservation in self._reservations:
            reservation.release()
        self._reservations = []

    def _remove(self, *, keep_logs: bool) -> None:
        if not self.directory.exists():
            return
        for each in self.directory.iterdir():
            if keep_logs and each == self.logs:
                continue
            if each.is_dir() and not each.is_symlink():
                shutil.rmtree(each)
            else:
                each.unlink()
        if not keep_logs:
            self.directory.rmdir()

    def _save_record(self) -> None:
        components = []
        for name, process in self._processes.items():
            identity = process.identity
            if identity is not None:
                components.append(
                    Component(name=name, pid=identity.pid, start_time=identity.start_time, log=str(process.log))
                )
        Record(
            name=self.name,
            provider=self.provider,
            server=self.server,
            kubeconfig=str(self.kubeconfig),
            ca_file=str(self.ca_file),
            components=tuple(components),
        ).save(self.directory)
