"""The real metrics-server beside a control plane on loopback, known to the node by its ServiceAccount's token."""

from __future__ import annotations

import base64
from pathlib import Path

from tests.cluster import build, nodeparts
from tests.cluster.ports import LOOPBACK, Reservation
from tests.cluster.processes import Process
from tests.cluster.provider import Cluster
from tests.support.runner import START_SECONDS, environment

API_SERVICE = "v1beta1.metrics.k8s.io"
NAMESPACE = "kube-system"


class MetricsServer:
    """As a context manager it runs inside."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self._cluster = cluster
        self._directory = directory
        self._port = Reservation()
        self._process: Process | None = None

    def __enter__(self) -> MetricsServer:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop it."""
        # An API that nobody serves any more keeps namespaces from being deleted.
        self._cluster.kubectl("delete", "apiservice", API_SERVICE, "--ignore-not-found", check=False)
        if self._process is not None:
            self._process.stop()
        self._port.release()

    def _start(self) -> None:
        cluster = self._cluster
        assert cluster.pki is not None
        cluster.kubectl("create", "serviceaccount", "metrics-server", "-n", NAMESPACE)
        kubeconfig = cluster.service_account_kubeconfig(NAMESPACE, "metrics-server")
        serving = cluster.pki.issue("metrics-server", dns=[f"metrics-server.{NAMESPACE}.svc"], server=True)
        command = nodeparts.metrics_server(
            build.addons(),
            kubeconfig=kubeconfig,
            serving=serving,
            ca=cluster.ca_file,
            address=LOOPBACK,
            port=self._port.port,
        )
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "metrics-server", "namespace": NAMESPACE},
            "spec": {"type": "ExternalName", "externalName": "localhost"},
        }
        objects = nodeparts.metrics_objects(
            base64.b64encode(cluster.ca_file.read_bytes()).decode(),
            user=f"system:serviceaccount:{NAMESPACE}:metrics-server",
            port=self._port.port,
        )
        cluster.apply([service, *objects])
        self._process = Process.start(
            "metrics-server", command, log=self._directory / "metrics-server.log", env=environment()
        )
        cluster.kubectl(
            "wait", "--for=condition=Available", f"apiservice/{API_SERVICE}", f"--timeout={START_SECONDS:.0f}s",
            timeout=2 * START_SECONDS,
        )  # fmt: skip
