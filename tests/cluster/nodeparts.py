"""The parts of a node, and what a cluster with nodes has beside: configuration files and command lines, pure.

As in `controlplane`: each setting that is not obvious says why it is there; what is not set is the default.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.cluster.controlplane import LOOPBACK, SERVICE_RANGE
from tests.cluster.pki import CertificateFiles

POD_RANGE = "10.244.0.0/16"
"""Of all nodes. Addresses are the same in every cluster of ours: none can see another."""

NODES_BITS = 24
"""Of the nodes' own network, 10.89.0.0/24."""

FIRST_ADDRESS = "10.89.0.1"
"""Of the node that also has the control plane, DNS, metrics and the registry."""

DNS_SERVICE_ADDRESS = "10.96.0.10"

CLUSTER_DOMAIN = "cluster.local"

REGISTRY_PORT = 5000
METRICS_PORT = 4443
DNS_READY_PORT = 8181
KUBELET_HEALTH_PORT = 10248
PROXY_HEALTH_PORT = 10256

CONTAINERD_SOCKET = Path("/run/containerd/containerd.sock")
"""The default: /run is the machine's own."""

CNI_PROGRAMS = "/usr/lib/cni"
"""Where Debian has them."""

KUBELET_ROOT = Path("/run/kubelet")
"""A short name, in the machine, of a folder of the cluster's: the kubelet makes sockets some levels below it, whose paths
may have no more than 107 characters."""

PAUSE_IMAGE = "wherry.test/pause:1"
"""What holds a Pod's namespaces. Imported, never pulled: before it there is no Pod network to pull through."""


@dataclass(frozen=True)
class Node:
    """One node: its number, and where its files are."""

    number: int
    directory: Path

    @property
    def name(self) -> str:
        """As in Kubernetes."""
        return f"node-{self.number}"

    @property
    def address(self) -> str:
        """In the nodes' network."""
        return f"10.89.0.{self.number}"

    @property
    def pods(self) -> str:
        """The range of its Pods' addresses."""
        return f"10.244.{self.number}.0/24"

    @property
    def certificates(self) -> Path:
        """The folder by which containerd knows how to reach registries."""
        return self.directory / "registries"

    @property
    def cni(self) -> Path:
        """The folder of its Pod network's configuration."""
        return self.directory / "cni"


def cni(node: Node) -> dict[str, Any]:
    """Return the Pod network's configuration: each Pod has a link of its own, and the node routes."""
    return {
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                # Not `bridge`: whether a bridge asks the firewall, where Services are, is a module's setting that the
                # host may lack. What is routed passes the firewall on every machine.
                "type": "ptp",
                # Nothing leads out of the cluster, and between nodes a Pod is to be seen with its own address.
                "ipMasq": False,
                "ipam": {
                    "type": "host-local",
                    "dataDir": str(node.directory / "addresses"),
                    "ranges": [[{"subnet": node.pods}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
        ],
    }


def containerd_config(node: Node) -> str:
    """Return containerd's configuration file."""
    return f"""\
version = 2
root = "{node.directory / "containerd"}"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.internal.v1.opt",
]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  # Without CAP_SYS_RESOURCE the pause container's -998 is refused.
  restrict_oom_score_adj = true
  # Its profile would have to be loaded into the host's kernel.
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PROGRAMS}"
    conf_dir = "{node.cni}"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{node.certificates}"
"""


def registry_hosts(url: str) -> str:
    """Return the file by which containerd pulls from a registry over plain HTTP."""
    return f'server = "{url}"\n[host."{url}"]\n  capabilities = ["pull", "resolve"]\n'


def containerd(node: Node) -> list[str]:
    """Return containerd's command line."""
    return ["containerd", f"--config={node.directory / 'containerd.toml'}"]


def kubelet_config(node: Node, *, ca: Path, serving: CertificateFiles, cgroup: str) -> dict[str, Any]:
    """Return the kubelet's configuration."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node.address,
        # As kubeadm does: who calls must be somebody, and is looked up.
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(ca)},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(serving.cert),
        "tlsPrivateKeyFile": str(serving.key),
        "healthzBindAddress": LOOPBACK,
        "healthzPort": KUBELET_HEALTH_PORT,
        "clusterDNS": [DNS_SERVICE_ADDRESS],
        "clusterDomain": CLUSTER_DOMAIN,
        # The host's name servers can't be reached from here.
        "resolvConf": "",
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{cgroup}",
        # 1.35 is the last that runs on cgroup v1 if asked to.
        "failCgroupV1": False,
        # What the machine is used for besides is not the node's to limit.
        "enforceNodeAllocatable": [],
        "failSwapOn": False,
        # A lower one needs CAP_SYS_RESOURCE.
        "oomScoreAdj": 0,
        # How full the host's disk is, is no matter of the cluster's.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "serializeImagePulls": False,
    }


def kubelet(node: Node, binaries: Path) -> list[str]:
    """Return the kubelet's command line."""
    return [
        str(binaries / "kubelet"),
        f"--config={node.directory / 'kubelet.json'}",
        f"--kubeconfig={node.directory / 'kubelet.kubeconfig'}",
        f"--root-dir={KUBELET_ROOT}",
        f"--hostname-override={node.name}",
        f"--node-ip={node.address}",
    ]


def proxy_config(node: Node) -> dict[str, Any]:
    """Return kube-proxy's configuration."""
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(node.directory / "proxy.kubeconfig")},
        "mode": "iptables",
        "clusterCIDR": POD_RANGE,
        "hostnameOverride": node.name,
        "bindAddress": node.address,
        "healthzBindAddress": f"{LOOPBACK}:{PROXY_HEALTH_PORT}",
        "metricsBindAddress": f"{LOOPBACK}:10249",
        # Else it writes a setting that is the host's alone.
        "conntrack": {"maxPerCore": 0, "min": 0},
    }


def proxy(node: Node, binaries: Path) -> list[str]:
    """Return kube-proxy's command line."""
    return [str(binaries / "kube-proxy"), f"--config={node.directory / 'proxy.json'}"]


def corefile(kubeconfig: Path) -> str:
    """Return CoreDNS' configuration: the cluster's names and no others; nothing is cached, so tests needn't wait."""
    return f"""\
.:53 {{
    errors
    ready {LOOPBACK}:{DNS_READY_PORT}
    kubernetes {CLUSTER_DOMAIN} in-addr.arpa ip6.arpa {{
        kubeconfig {kubeconfig}
        pods insecure
    }}
}}
"""


def coredns(addons: Path, configuration: Path) -> list[str]:
    """Return CoreDNS' command line."""
    return [str(addons / "coredns"), "-conf", str(configuration)]


def metrics_server(
    addons: Path,
    *,
    kubeconfig: Path,
    serving: CertificateFiles,
    ca: Path,
    address: str = FIRST_ADDRESS,
    port: int = METRICS_PORT,
) -> list[str]:
    """Return metrics-server's command line.

    :param address: where it listens.
    """
    return [
        str(addons / "metrics-server"),
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        f"--bind-address={address}",
        f"--secure-port={port}",
        f"--tls-cert-file={serving.cert}",
        f"--tls-private-key-file={serving.key}",
        # Kubelets' certificates are verified, the virtual node's too.
        f"--kubelet-certificate-authority={ca}",
        "--kubelet-preferred-address-types=InternalIP",
        # As its own manifests have it: a virtual node listens where it says.
        "--kubelet-use-node-status-port",
        # The least that it takes: a Pod has its first figures after two. Must be longer than a kubelet may take.
        "--metric-resolution=10s",
        "--kubelet-request-timeout=5s",
    ]


def addon_objects(ca_bundle: str) -> list[dict[str, Any]]:
    """Return the Services and rights of DNS and metrics, which run beside the control plane and not as Pods.

    :param ca_bundle: the CA that metrics-server's certificate is of: PEM, in base64.
    """
    return [
        _cluster_role("system:coredns", [
            {"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": ["list", "watch"]},
            {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
        ]),
        _binding("ClusterRoleBinding", "system:coredns", "system:coredns"),
        *_service("kube-dns", {"dns": ("UDP", 53, 53), "dns-tcp": ("TCP", 53, 53)}, address=DNS_SERVICE_ADDRESS),
        *_service("metrics-server", {"https": ("TCP", 443, METRICS_PORT)}),
        *metrics_objects(ca_bundle),
    ]  # fmt: skip


def metrics_objects(ca_bundle: str, *, user: str = "system:metrics-server", port: int = 443) -> list[dict[str, Any]]:
    """Return metrics-server's rights and its APIService, without the Service that this leads to.

    :param ca_bundle: as for `addon_objects`.
    :param user: whom it runs as.
    :param port: the Service's.
    """
    rbac = "rbac.authorization.k8s.io"
    return [
        _cluster_role("system:metrics-server", [
            {"apiGroups": [""], "resources": ["nodes/metrics"], "verbs": ["get"]},
            {"apiGroups": [""], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"]},
        ]),
        _cluster_role("system:aggregated-metrics-reader", [
            {"apiGroups": ["metrics.k8s.io"], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"]},
        ], labels={f"{rbac}/aggregate-to-{role}": "true" for role in ("admin", "edit", "view")}),
        _binding("ClusterRoleBinding", "system:metrics-server", user, role="system:metrics-server"),
        _binding("ClusterRoleBinding", "metrics-server:system:auth-delegator", user,
                 role="system:auth-delegator"),
        _binding("RoleBinding", "metrics-server-auth-reader", user,
                 role="extension-apiserver-authentication-reader"),
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": "v1beta1.metrics.k8s.io"},
            "spec": {
                "group": "metrics.k8s.io",
                "version": "v1beta1",
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
                "caBundle": ca_bundle,
                "service": {"name": "metrics-server", "namespace": "kube-system", "port": port},
            },
        },
    ]  # fmt: skip


def _cluster_role(name: str, rules: list[dict[str, Any]], labels: dict[str, str] | None = None) -> dict[str, Any]:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": name, "labels": labels or {}},
        "rules": rules,
    }


def _binding(kind: str, name: str, user: str, role: str = "") -> dict[str, Any]:
    group = "rbac.authorization.k8s.io"
    return {
        "apiVersion": f"{group}/v1",
        "kind": kind,
        "metadata": {"name": name, **({"namespace": "kube-system"} if kind == "RoleBinding" else {})},
        "roleRef": {"apiGroup": group, "kind": kind.removesuffix("Binding"), "name": role or user},
        "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
    }


def _service(name: str, ports: dict[str, tuple[str, int, int]], address: str | None = None) -> list[dict[str, Any]]:
    """Return a Service without a selector, and the EndpointSlice that leads it to the first node."""
    metadata = {"name": name, "namespace": "kube-system"}
    spec: dict[str, Any] = {
        "ports": [
            {"name": port, "protocol": protocol, "port": served, "targetPort": target}
            for port, (protocol, served, target) in ports.items()
        ]
    }
    if address is not None:
        spec["clusterIP"] = address
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec},
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**metadata, "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4",
            "endpoints": [{"addresses": [FIRST_ADDRESS], "conditions": {"ready": True}}],
            "ports": [
                {"name": port, "protocol": protocol, "port": target} for port, (protocol, _, target) in ports.items()
            ],
        },
    ]


SERVICE_ROUTE = SERVICE_RANGE
"""Needs a route, to anywhere: without one a packet is dropped before the firewall sends it to a Pod."""
