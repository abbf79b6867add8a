"""Provider `kind`: a node that is a container of Docker's. For the end-to-end tests, where Docker is: `make e2e CLUSTER=kind`.

**Not tried yet**: there was no Docker where it was written. It needs root on the machine where Docker runs, as the registry and
our own requests enter the node's network, and what images are built with (buildah, debootstrap).
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

import yaml

from tests.cluster import build
from tests.cluster.controlplane import LOOPBACK
from tests.cluster.errors import ClusterError
from tests.cluster.machine import connect_from, in_network, network_of
from tests.cluster.node import NodeCluster
from tests.cluster.nodeparts import REGISTRY_PORT, Node, registry_hosts
from tests.cluster.processes import Process, wait_for
from tests.cluster.progress import SILENT, Progress
from tests.cluster.provider import DEFAULT_NAME, Status, check_name
from tests.cluster.registry import Registry

PROGRAMS = ("docker", "buildah", "debootstrap", "nsenter")

READY_TIMEOUT_SECONDS = 300.0
"""For kind, which pulls an image of 1 GB at first, and for the node afterwards."""


def configuration() -> str:
    """Return kind's configuration: one node."""
    return yaml.safe_dump(
        {"kind": "Cluster", "apiVersion": "kind.x-k8s.io/v1alpha4", "nodes": [{"role": "control-plane"}]}
    )


def why_not() -> str | None:
    """Return why there can be no such cluster here; None if there can."""
    if os.geteuid() != 0:
        return "kind: only root can enter a node's network"
    if missing := [each for each in PROGRAMS if shutil.which(each) is None]:
        return f"kind: {', '.join(missing)} is missing"
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode != 0:
        return "kind: Docker does not answer"
    return None


class KindCluster(NodeCluster):
    """A cluster of kind's with one node."""

    provider = "kind"

    def __init__(self, directory: Path | None = None, *, name: str = DEFAULT_NAME, progress: Progress = SILENT) -> None:
        if problem := why_not():
            raise ClusterError(problem)
        self.name = check_name(name)
        self.directory = (directory or Path(tempfile.mkdtemp(prefix="wherry-kind-"))).resolve()
        self.kubeconfig = self.directory / "kubeconfigs" / "admin.yaml"
        self.logs = self.directory / "logs"
        self.keep_logs = False
        self.machines = {}
        self._progress = progress
        self._kind = build.kind(progress)
        self._container = f"{self.name}-control-plane"
        self.registry = _KindRegistry(self.directory / "registry", self._container)

    def up(self) -> None:
        """Have kind make it, and start a registry in its node's network."""
        self.kubeconfig.parent.mkdir(parents=True, exist_ok=True)
        self._progress.step("kind makes a cluster (at first it pulls its node's image)")
        wait = f"--wait={READY_TIMEOUT_SECONDS:.0f}s"
        command = ["create", "cluster", f"--name={self.name}", f"--kubeconfig={self.kubeconfig}", wait, "--config=-"]
        try:
            _run([str(self._kind), *command], input=configuration())
            self.nodes = [Node(1, self.directory / "nodes" / self._container)]
            self.registry.start()
            folder = f"/etc/containerd/certs.d/{self.registry.address}"
            write = f"mkdir -p {folder} && cat > {folder}/hosts.toml"
            hosts = registry_hosts(self.registry.url)
            _run(["docker", "exec", "-i", self._container, "sh", "-c", write], input=hosts)
            self.program("kubectl", build.kube(self._progress) / "kubectl")
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Have kind delete it."""
        self.registry.close()
        _run([str(self._kind), "delete", "cluster", f"--name={self.name}", f"--kubeconfig={self.kubeconfig}"])
        if self.keep_logs:
            _run([str(self._kind), "export", "logs", f"--name={self.name}", str(self.logs)], check=False)
        else:
            shutil.rmtree(self.directory, ignore_errors=True)

    def kubectl_program(self) -> Path:
        """Return our kubectl; kind's API server has a port on the host's loopback."""
        return self.directory / "bin" / "kubectl"

    def program(self, name: str, program: Path) -> Path:
        """Return a program of the host's: it needs no other network."""
        link = self.directory / "bin" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(program)
        return link

    def stop_component(self, component: str, *, kill: bool = False) -> None:
        """Signal a service of the node's: `kubelet-…`, `containerd-…`; its systemd starts it again."""
        unit, signal = component.partition("-")[0], "SIGKILL" if kill else "SIGTERM"
        _run(["docker", "exec", self._container, "systemctl", "kill", f"--signal={signal}", unit])

    def start_component(self, component: str, *flags: str) -> None:
        """Wait until the node's systemd has started it again."""
        unit = component.partition("-")[0]
        asks = ["docker", "exec", self._container, "systemctl", "is-active", "--quiet", unit]
        if not wait_for(
            lambda: subprocess.run(asks, check=False).returncode == 0, timeout_seconds=READY_TIMEOUT_SECONDS
        ):
            raise ClusterError(f"{unit} did not come back")

    def status(self) -> Status:
        """Return how the cluster is."""
        running = self.kubectl("get", "--raw=/readyz", check=False).returncode == 0
        return Status(name=self.name, provider=self.provider, state="running" if running else "stopped")

    def _connect(self, address: tuple[str, int], timeout: float) -> socket.socket:
        # What kubectl forwards is on the host's own loopback.
        if address[0] == LOOPBACK:
            return socket.create_connection(address, timeout)
        return connect_from(_network(self._container), address, timeout)


class _KindRegistry(Registry):
    """The registry in the network of kind's node, at an address that its containerd and its Pods reach."""

    def __init__(self, directory: Path, container: str) -> None:
        super().__init__(directory)
        self._container = container

    @property
    def address(self) -> str:
        return f"{_inspected(self._container, '{{.NetworkSettings.Networks.kind.IPAddress}}')}:{REGISTRY_PORT}"

    def _reserve(self) -> None:
        pass

    def _connect(self, address: tuple[str, int], timeout: float) -> socket.socket:
        return connect_from(_network(self._container), address, timeout)

    def _spawn(self, command: list[str | Path], env: Mapping[str, str]) -> Process:
        entered = in_network(_network(self._container), *command)
        return Process.start("registry", entered, log=self.log, env={**os.environ, **env})


def _network(container: str) -> Path:
    return network_of(int(_inspected(container, "{{.State.Pid}}")))


def _inspected(container: str, what: str) -> str:
    return _run(["docker", "inspect", f"--format={what}", container]).strip()


def _run(command: list[str], *, input: str = "", check: bool = True) -> str:
    done = subprocess.run(
        command, input=input, capture_output=True, text=True, timeout=READY_TIMEOUT_SECONDS * 2, check=False
    )
    if check and done.returncode != 0:
        raise ClusterError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
