"""`kubectl port-forward` through the real API server, which speaks to kubelets as none of our own clients does."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.cluster.processes import Process, wait_for
from tests.guests.servers import SERVER
from tests.support import executors
from tests.support.kube import Workspace
from tests.support.ports import free_port

PATIENCE_SECONDS = 60.0


def test_kubectl_forwards_the_port_that_a_pod_names_and_no_other(space: Workspace, tmp_path: Path) -> None:
    if reason := executors.why_not("native"):
        pytest.skip(reason)
    port, other = free_port(), 6443
    space.pod("web", space.push(SERVER), ports=[{"containerPort": port}])
    space.kubectl("wait", "--for=condition=Ready", "pod/web", "--timeout=60s")
    where: list[str | Path] = [
        space.cluster.kubectl_program(), f"--kubeconfig={space.cluster.kubeconfig}", f"--namespace={space.namespace}",
    ]  # fmt: skip
    command = [*where, "port-forward", "pod/web", f":{port}", f":{other}", "--address=127.0.0.1"]
    forward = Process.start("port-forward", command, log=tmp_path / "log")
    try:
        forward.wait_until(lambda: f" -> {other}" in forward.tail(), what="ready", timeout_seconds=PATIENCE_SECONDS)
        here = {
            int(line.rpartition(" -> ")[2]): int(line.split(" -> ")[0].rpartition(":")[2])
            for line in forward.tail().splitlines()
        }
        for _ in range(20):  # each over a connection of its own
            assert httpx.get(f"http://127.0.0.1:{here[port]}/").text == "hello over HTTP\n"
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{here[other]}/")
        why = f"pod web has no port {other}: it has {port}"
        # kubectl gives up when it is told so.
        assert wait_for(lambda: why in forward.tail(), timeout_seconds=PATIENCE_SECONDS)
    finally:
        forward.stop()
