"""Provider `node`: real nodes, and all that belongs to a cluster, in machines made of namespaces. Needs root.

The first machine has the control plane, DNS, metrics and the registry, and is a node; each further machine is a node.
All addresses are the machines' own: clusters don't see each other, and the host sees none. Clients run inside the first
machine's network (`bin/kubectl`, `in_network`, `connect`). In the cluster's folder, besides what `local` has:

    bin/                        programs that find their way in: kubectl, node-1, shell
    nodes/NAME/                 configuration and state of containerd, kubelet, kube-proxy
    registry/                   the images that kubelets pull
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shlex
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.cluster import build, cgroups, controlplane, host, kubeconfig, leftovers, nodeparts
from tests.cluster.client import http_status
from tests.cluster.errors import ClusterError
from tests.cluster.images import pause, push
from tests.cluster.local import START_TIMEOUT_SECONDS, LocalCluster
from tests.cluster.machine import Machine, child_of
from tests.cluster.nodeparts import Node
from tests.cluster.processes import Process
from tests.cluster.progress import SILENT, Progress
from tests.cluster.provider import DEFAULT_NAME
from tests.cluster.registry import Registry

PORTS = controlplane.Ports(etcd=2379, etcd_peer=2380, apiserver=6443, controller_manager=10257, scheduler=10259)
"""The usual ones: nobody else is in there."""

ENVIRONMENT = {"PATH": host.SEARCH_PATH, "HOME": "/root"}
"""Of what runs in a machine: a proxy of the host's, for one, can't be reached from there."""


class NodeCluster(LocalCluster):
    """A cluster with real nodes that lives as long as this process, at most.

    :param nodes: how many; `node-1`, `node-2`, ...
    :param flags: further flags of the control plane's components, by their names.

    Attributes:
        machines: the machine of each node, by the node's name.
        registry: from which the kubelets pull, `10.89.0.1:5000`.
    """

    provider = "node"
    address = nodeparts.FIRST_ADDRESS

    def __init__(
        self,
        directory: Path | None = None,
        *,
        nodes: int = 1,
        name: str = DEFAULT_NAME,
        progress: Progress = SILENT,
        keep_logs: bool = False,
        flags: Mapping[str, Sequence[str]] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        host.require()
        super().__init__(
            directory, name=name, progress=progress, keep_logs=keep_logs, flags=flags, environment=environment
        )
        self.directory = self.directory.resolve()
        self.nodes = [Node(number, self.directory / "nodes" / f"node-{number}") for number in range(1, nodes + 1)]
        self.machines = {
            node.name: Machine(node.name, log=self.logs / f"machine-{node.name}.log") for node in self.nodes
        }
        self.registry: Registry = _NodeRegistry(self.directory / "registry", self._first)
        self.cgroup = f"wherry-{secrets.token_hex(4)}"
        self._footprint: leftovers.Footprint | None = None
        self._parts: dict[str, tuple[Machine, Callable[[], list[str]], Callable[[], bool]]] = {}

    def up(self) -> None:
        """Start everything, and return when the nodes are ready. Sweeps what killed clusters left.

        :raises BuildFailed: the binaries could not be built.
        :raises ProcessFailed: something did not start; its log is kept and named in the message.
        """
        for folder in leftovers.sweep():
            self._progress.step(f"swept what a killed cluster left: {folder}")
        try:
            self._addons = build.addons(self._progress)
            build.registry(self._progress)
            self._pause = pause.archive_file()
        except BaseException:
            self._remove(keep_logs=False)
            raise
        super().up()

    def pid(self, component: str) -> int:
        """Return the process id of a component, as the host counts: its `process` is what keeps it in its machine."""
        return child_of(self.process(component).pid)

    def kubectl_program(self) -> Path:
        """Return a kubectl that runs inside the cluster's network."""
        inside = self.directory / "bin" / "kubectl"
        return inside if inside.exists() else super().kubectl_program()

    def helm_program(self) -> Path:
        """Return a Helm that runs inside the cluster's network; give it `KUBECONFIG`. Built at first: minutes."""
        return self.program("helm", build.helm(self._progress))

    def program(self, name: str, program: Path) -> Path:
        """Make `bin/NAME`, which runs a program of the host inside the cluster's network, and return its path."""
        return self._script(name, [*self._first.in_network(program)])

    def in_network(self, *command: str | Path) -> list[str]:
        """Return the command line that runs a command inside the cluster's network."""
        return self._first.in_network(*command)

    def connect(self, address: tuple[str, int], timeout: float) -> socket.socket:
        """Connect to an address inside the cluster: a Service's, a Pod's, a node's."""
        return self._connect(address, timeout)

    def push(self, layout: Path, name: str) -> str:
        """Push an image (see `images`) to the cluster's registry, and return the reference that Pods name it by."""
        reference = f"{self.registry.address}/{name}"
        push.push(layout, reference, self.connect, mount_from="base")
        return reference

    @property
    def _first(self) -> Machine:
        return self.machines[self.nodes[0].name]

    # --- start --------------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._footprint = leftovers.Footprint.of_this_process(self.cgroup, self.directory)
        self._footprint.record()
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.logs.mkdir(exist_ok=True)
        cgroups.make(self.cgroup)
        self._start_machines()
        self._start_control_plane()
        self.registry.start()
        self._prepare_addons()
        for node in self.nodes:
            self._prepare_node(node)
        for part in self._parts:
            self._launch(part)
            if part.startswith("containerd-"):
                self._wait_ready(part)
                self._import_pause(self._parts[part][0])
        for part in self._parts:
            self._wait_ready(part)
        self._progress.step(f"cluster {self.name!r} is up with {len(self.nodes)} node(s); see {self.directory / 'bin'}")

    def _start_machines(self) -> None:
        self._progress.step(f"making {len(self.nodes)} machine(s) of namespaces")
        for node in self.nodes:
            machine = self.machines[node.name]
            machine.start()
            assert machine.process is not None
            self._processes[f"machine-{node.name}"] = machine.process
            self._link(node, machine)
        self._script("kubectl", [*self._first.in_network(self._binaries_directory() / "kubectl")])
        for node in self.nodes:
            pid = str(self.machines[node.name].pid)
            self._script(node.name, ["nsenter", "-t", pid, "-m", "-n", "-p", "-i", "-u", "--"])
        path = os.pathsep.join(
            [str(self.directory / "bin"), str(self._binaries_directory()), os.environ.get("PATH", "")]
        )
        shell = ["env", f"KUBECONFIG={self.kubeconfig}", f"PATH={path}", os.environ.get("SHELL") or "/bin/sh"]
        self._script("shell", self._first.in_network(*shell))

    def _link(self, node: Node, machine: Machine) -> None:
        """Give a machine its address in the nodes' network: a bridge in the first machine."""
        if machine is self._first:
            machine.run("ip", "link", "add", "nodes", "type", "bridge")
        else:
            peer = ["peer", "name", node.name, "netns", str(self._first.pid)]
            _run(machine.in_network("ip", "link", "add", "nodes", "type", "veth", *peer))
            self._first.run("ip", "link", "set", node.name, "master", "nodes", "up")
        machine.run("ip", "address", "add", f"{node.address}/{nodeparts.NODES_BITS}", "dev", "nodes")
        machine.run("ip", "link", "set", "nodes", "up")
        machine.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        machine.run("ip", "route", "add", nodeparts.SERVICE_ROUTE, "dev", "nodes")
        for other in self.nodes:
            if other != node:
                machine.run("ip", "route", "add", other.pods, "via", other.address)

    def _prepare_node(self, node: Node) -> None:
        assert self.pki is not None
        machine = self.machines[node.name]
        node.cni.mkdir(parents=True)
        (node.cni / "10-pods.conflist").write_text(json.dumps(nodeparts.cni(node)))
        (node.directory / "containerd.toml").write_text(nodeparts.containerd_config(node))
        hosts = node.certificates / self.registry.address / "hosts.toml"
        hosts.parent.mkdir(parents=True)
        hosts.write_text(nodeparts.registry_hosts(self.registry.url))

        user = f"system:node:{node.name}"
        serving = self.pki.issue(user, ["system:nodes"], dns=[node.name], ips=[node.address], server=True)
        cgroup = f"{self.cgroup}/{node.name}"
        cgroups.make(cgroup)
        kubelet = nodeparts.kubelet_config(node, ca=self.ca_file, serving=serving, cgroup=cgroup)
        (node.directory / "kubelet.json").write_text(json.dumps(kubelet))
        self._kubeconfig_of(user, node.directory / "kubelet.kubeconfig", "system:nodes")
        (node.directory / "proxy.json").write_text(json.dumps(nodeparts.proxy_config(node)))
        self._kubeconfig_of("system:kube-proxy", node.directory / "proxy.kubeconfig")

        root = node.directory / "kubelet"
        root.mkdir()
        machine.run("mkdir", nodeparts.KUBELET_ROOT)
        machine.run("mount", "--bind", root, nodeparts.KUBELET_ROOT)
        # Shared with containers, as a Pod may ask, but not with the folder that it stands for.
        machine.run("mount", "--make-private", nodeparts.KUBELET_ROOT)
        machine.run("mount", "--make-shared", nodeparts.KUBELET_ROOT)

        binaries = self._binaries_directory()
        self._parts[f"containerd-{node.name}"] = (
            machine,
            lambda: nodeparts.containerd(node),
            lambda: "Server:" in machine.run("ctr", f"--address={nodeparts.CONTAINERD_SOCKET}", "version", check=False),
        )
        self._parts[f"kubelet-{node.name}"] = (
            machine,
            lambda: nodeparts.kubelet(node, binaries),
            lambda: self._node_is_ready(node.name),
        )
        self._parts[f"kube-proxy-{node.name}"] = (
            machine,
            lambda: nodeparts.proxy(node, binaries),
            lambda: _answers(machine, nodeparts.PROXY_HEALTH_PORT, "/healthz"),
        )

    def _prepare_addons(self) -> None:
        assert self.pki is not None
        folder = self.directory / "addons"
        folder.mkdir(parents=True)
        self.apply(nodeparts.addon_objects(base64.b64encode(self.ca_file.read_bytes()).decode()))
        corefile = folder / "Corefile"
        corefile.write_text(nodeparts.corefile(self._kubeconfig_of("system:coredns", folder / "coredns.kubeconfig")))
        self._parts["coredns"] = (
            self._first,
            lambda: nodeparts.coredns(self._addons, corefile),
            lambda: _answers(self._first, nodeparts.DNS_READY_PORT, "/ready"),
        )
        serving = self.pki.issue("metrics-server", dns=["metrics-server.kube-system.svc"], server=True)
        metrics = self._kubeconfig_of("system:metrics-server", folder / "metrics-server.kubeconfig")
        self._parts["metrics-server"] = (
            self._first,
            lambda: nodeparts.metrics_server(self._addons, kubeconfig=metrics, serving=serving, ca=self.ca_file),
            lambda: self._apis["kube-apiserver"].ok("/apis/metrics.k8s.io/v1beta1"),
        )

    def _kubeconfig_of(self, user: str, path: Path, *groups: str) -> Path:
        assert self.pki is not None
        certificate = self.pki.issue(user, groups, client=True)
        return kubeconfig.write(
            path, cluster=self.name, server=self.server, ca_file=self.ca_file, user=user, certificate=certificate
        )

    def _import_pause(self, machine: Machine) -> None:
        ctr = ["ctr", f"--address={nodeparts.CONTAINERD_SOCKET}", "--namespace=k8s.io"]
        machine.run(*ctr, "images", "import", self._pause)

    def _node_is_ready(self, name: str) -> bool:
        code, body = self._apis["kube-apiserver"].get(f"/api/v1/nodes/{name}")
        if code != 200:
            return False
        conditions = json.loads(body)["status"].get("conditions", [])
        return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)

    # --- what `local` does on the host's loopback ---------------------------------------------------------------------

    def _launch(self, component: str, *flags: str) -> None:
        if component not in self._parts:
            super()._launch(component, *flags)
            return
        machine, command, _ = self._parts[component]
        self._progress.step(f"starting {component}")
        log = self.logs / f"{component}.log"
        self._processes[component] = machine.spawn(component, [*command(), *flags], log=log, env=ENVIRONMENT)
        self._save_record()

    def _wait_ready(self, component: str) -> None:
        if component not in self._parts:
            super()._wait_ready(component)
            return
        _, _, ready = self._parts[component]
        self._processes[component].wait_until(ready, what="ready", timeout_seconds=START_TIMEOUT_SECONDS)

    def _spawn(self, component: str, command: list[str]) -> Process:
        environment = {**ENVIRONMENT, **self._environment}
        return self._first.spawn(component, command, log=self.logs / f"{component}.log", env=environment)

    def _connect(self, address: tuple[str, int], timeout: float) -> socket.socket:
        return self._first.connect(address, timeout)

    def _take_ports(self) -> controlplane.Ports:
        return PORTS

    # --- end ----------------------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        """End the machines: the kernel ends what is in them, at once, which nothing here is too good for."""
        for machine in self.machines.values():
            machine.stop()
        self.registry.close()
        for name in [*self._parts, *(f"machine-{node}" for node in self.machines)]:
            process = self._processes.pop(name, None)
            if process is not None:
                process.kill()
        super()._stop()
        self._parts = {}
        if self._footprint is not None:
            self._footprint.remove()
            self._footprint = None

    def _script(self, name: str, command: list[str]) -> Path:
        path = self.directory / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        path.chmod(0o755)
        return path


class _NodeRegistry(Registry):
    """The registry inside the first machine, at an address that every node reaches."""

    def __init__(self, directory: Path, machine: Machine) -> None:
        super().__init__(directory)
        self._machine = machine

    @property
    def address(self) -> str:
        return f"{nodeparts.FIRST_ADDRESS}:{nodeparts.REGISTRY_PORT}"

    def _reserve(self) -> None:
        pass

    def _connect(self, address: tuple[str, int], timeout: float) -> socket.socket:
        return self._machine.connect(address, timeout)

    def _spawn(self, command: list[str | Path], env: Mapping[str, str]) -> Process:
        return self._machine.spawn("registry", command, log=self.log, env=env)


def _answers(machine: Machine, port: int, path: str) -> bool:
    return http_status(machine.connect, controlplane.LOOPBACK, port, path) == 200


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ClusterError(f"{' '.join(command)}: {done.stderr.strip()}")
