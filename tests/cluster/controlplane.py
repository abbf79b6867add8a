"""The command lines of a control plane: pure functions of where its files and ports are.

Each flag that is not obvious says why it is there. What is not set is Kubernetes' default: what is tested
here is what a real cluster does (for one, how long a node may be silent).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.cluster.pki import CertificateFiles

LOOPBACK = "127.0.0.1"

ENVIRONMENT = {"GOGC": "200"}
"""Of a control plane that was just started the heap is so small that collecting it takes a fifth of all its CPU time; of one in
use it is many times as large, and seldom collected."""

AUTHORIZATION = "Node,RBAC"
"""As kubeadm has it, and nearly all others."""

SERVICE_RANGE = "10.96.0.0/16"
"""On loopback nothing routes there: a Service has an address, but no kube-proxy."""

FIRST_SERVICE_ADDRESS = "10.96.0.1"
"""The API server's own Service, `kubernetes.default`."""

FRONT_PROXY_USER = "front-proxy-client"
"""The name in the certificate that the API server shows to aggregated API servers."""

KUBELET_CLIENT_USER = "kube-apiserver-kubelet-client"
"""The user that the API server is to kubelets."""

KUBELET_CLIENT_BINDING = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "ClusterRoleBinding",
    "metadata": {"name": "wherry-test:kubelet-client"},
    "roleRef": {
        "apiGroup": "rbac.authorization.k8s.io",
        "kind": "ClusterRole",
        "name": "system:kubelet-api-admin",
    },
    "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": KUBELET_CLIENT_USER}],
}
"""A kubelet asks whether its caller may: so the API server gets the right to call kubelets, and no more."""

AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    # Who did what to which object, and the answer: once for each request (a watch: at its start and end).
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}


@dataclass(frozen=True)
class Ports:
    """The ports of one control plane."""

    etcd: int
    etcd_peer: int
    apiserver: int
    controller_manager: int
    scheduler: int


@dataclass(frozen=True)
class Layout:
    """Where the files of one control plane are, and its ports."""

    binaries: Path
    data: Path
    audit_policy: Path
    audit_log: Path
    ca: CertificateFiles
    front_proxy_ca: Path
    service_account_key: Path
    service_account_public_key: Path
    etcd_ca: Path
    etcd: CertificateFiles
    etcd_client: CertificateFiles
    apiserver: CertificateFiles
    kubelet_client: CertificateFiles
    front_proxy_client: CertificateFiles
    controller_manager: CertificateFiles
    scheduler: CertificateFiles
    controller_manager_kubeconfig: Path
    scheduler_kubeconfig: Path
    ports: Ports
    address: str = LOOPBACK
    """Where the API server is found; all else is on loopback."""
    authorization: str = AUTHORIZATION

    @property
    def etcd_url(self) -> str:
        """Where the API server finds etcd."""
        return f"https://127.0.0.1:{self.ports.etcd}"


def etcd(layout: Layout) -> list[str]:
    """Return etcd's command line."""
    peer_url = f"https://127.0.0.1:{layout.ports.etcd_peer}"
    return [
        str(layout.binaries / "etcd"),
        "--name=wherry",
        f"--data-dir={layout.data / 'etcd'}",
        f"--listen-client-urls={layout.etcd_url}",
        f"--advertise-client-urls={layout.etcd_url}",
        f"--listen-peer-urls={peer_url}",
        f"--initial-advertise-peer-urls={peer_url}",
        f"--initial-cluster=wherry={peer_url}",
        # Loopback is shared with everybody on the machine, so etcd wants certificates from all.
        f"--cert-file={layout.etcd.cert}",
        f"--key-file={layout.etcd.key}",
        f"--trusted-ca-file={layout.etcd_ca}",
        "--client-cert-auth",
        f"--peer-cert-file={layout.etcd.cert}",
        f"--peer-key-file={layout.etcd.key}",
        f"--peer-trusted-ca-file={layout.etcd_ca}",
        "--peer-client-cert-auth",
        # The data needn't survive the machine: without this, a slow disk is a slow cluster.
        "--unsafe-no-fsync",
        # A single member has nobody to lose an election to: don't wait a second for others.
        "--heartbeat-interval=10",
        "--election-timeout=100",
        "--log-level=warn",
    ]


def apiserver(layout: Layout) -> list[str]:
    """Return the API server's command line."""
    return [
        str(layout.binaries / "kube-apiserver"),
        f"--etcd-servers={layout.etcd_url}",
        f"--etcd-cafile={layout.etcd_ca}",
        f"--etcd-certfile={layout.etcd_client.cert}",
        f"--etcd-keyfile={layout.etcd_client.key}",
        f"--bind-address={layout.address}",
        f"--secure-port={layout.ports.apiserver}",
        # Without it the address of the default route is looked for: there may be none.
        f"--advertise-address={layout.address}",
        # EndpointSlices refuse loopback addresses, so `kubernetes.default` can't have any there.
        *(["--endpoint-reconciler-type=none"] if layout.address == LOOPBACK else []),
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        f"--tls-cert-file={layout.apiserver.cert}",
        f"--tls-private-key-file={layout.apiserver.key}",
        f"--client-ca-file={layout.ca.cert}",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={layout.service_account_public_key}",
        f"--service-account-signing-key-file={layout.service_account_key}",
        f"--authorization-mode={layout.authorization}",
        # As kubeadm does. Without it a node may change its taints and delete itself: tests would pass that
        # fail on every real cluster.
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        # Kubelets, the virtual node's endpoint among them, are really verified, and know who calls.
        f"--kubelet-certificate-authority={layout.ca.cert}",
        f"--kubelet-client-certificate={layout.kubelet_client.cert}",
        f"--kubelet-client-key={layout.kubelet_client.key}",
        # Else the node's name is looked up in DNS, and `kubectl logs` fails.
        "--kubelet-preferred-address-types=InternalIP",
        f"--requestheader-client-ca-file={layout.front_proxy_ca}",
        f"--requestheader-allowed-names={FRONT_PROXY_USER}",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={layout.front_proxy_client.cert}",
        f"--proxy-client-key-file={layout.front_proxy_client.key}",
        # Through a Service's address on a real cluster. On loopback nobody routes that, and EndpointSlices can't have
        # 127.0.0.1: there a Service of type ExternalName is the way, which only this resolver takes.
        *([] if layout.address == LOOPBACK else ["--enable-aggregator-routing"]),
        f"--audit-policy-file={layout.audit_policy}",
        f"--audit-log-path={layout.audit_log}",
        # A request is in the log before it is answered: tests read what they just did.
        "--audit-log-mode=blocking",
        "--profiling=false",
    ]


def controller_manager(layout: Layout) -> list[str]:
    """Return the controller-manager's command line."""
    return [
        str(layout.binaries / "kube-controller-manager"),
        *_client_of(layout.controller_manager_kubeconfig, layout.controller_manager, layout),
        f"--secure-port={layout.ports.controller_manager}",
        "--use-service-account-credentials",
        f"--root-ca-file={layout.ca.cert}",
        f"--service-account-private-key-file={layout.service_account_key}",
        f"--cluster-signing-cert-file={layout.ca.cert}",
        f"--cluster-signing-key-file={layout.ca.key}",
        f"--service-cluster-ip-range={SERVICE_RANGE}",
        "--cluster-name=wherry",
        # It first makes a service account and a token for each of its controllers: at the default burst of 30
        # that takes 5 s. The steady rate stays the default.
        "--kube-api-burst=300",
        "--profiling=false",
    ]


def scheduler(layout: Layout) -> list[str]:
    """Return the scheduler's command line."""
    return [
        str(layout.binaries / "kube-scheduler"),
        *_client_of(layout.scheduler_kubeconfig, layout.scheduler, layout),
        f"--secure-port={layout.ports.scheduler}",
        "--profiling=false",
    ]


def _client_of(kubeconfig: Path, serving: CertificateFiles, layout: Layout) -> list[str]:
    return [
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        f"--client-ca-file={layout.ca.cert}",
        f"--requestheader-client-ca-file={layout.front_proxy_ca}",
        "--bind-address=127.0.0.1",
        # Else they make their own in a folder that only root may write.
        f"--tls-cert-file={serving.cert}",
        f"--tls-private-key-file={serving.key}",
        # There is one of each: waiting for a lease only takes time.
        "--leader-elect=false",
    ]
