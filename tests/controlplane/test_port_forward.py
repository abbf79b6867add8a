"""`kubectl port-forward` through the real API server, which speaks to kubelets as none of our own clients does."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.cluster.processes import Process
from tests.support import wat
from tests.support.kube import Workspace

PATIENCE_SECONDS = 60.0


class Answers(BaseHTTPRequestHandler):
    """A large answer to each GET."""

    def do_GET(self) -> None:  # as the library has it
        body = self.path.encode() * 100_000
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def listening() -> Iterator[int]:
    """Where the Pod's port would be."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def test_kubectl_forwards_a_port_of_a_pod(space: Workspace, tmp_path: Path) -> None:
    cluster = space.cluster
    with listening() as port:
        space.pod("web", space.push(wat.sleeps()), ports=[{"containerPort": port}])
        space.wait_phase("web", "Running")
        patch = '{"status": {"podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}}'
        space.kubectl("patch", "pod", "web", "--subresource=status", "--type=merge", "-p", patch)
        program = cluster.kubectl_program()
        where: list[str | Path] = [program, f"--kubeconfig={cluster.kubeconfig}", f"--namespace={space.namespace}"]
        command = [*where, "port-forward", "pod/web", f":{port}", ":6443", "--address=127.0.0.1"]
        forward = Process.start("port-forward", command, log=tmp_path / "log")
        try:
            forward.wait_until(lambda: " -> 6443" in forward.tail(), what="ready", timeout_seconds=PATIENCE_SECONDS)
            here = {
                int(line.rpartition(" -> ")[2]): int(line.split(" -> ")[0].rpartition(":")[2])
                for line in forward.tail().splitlines()
            }
            for number in range(20):
                client = http.client.HTTPConnection("127.0.0.1", here[port], timeout=PATIENCE_SECONDS)
                client.request("GET", f"/{number:02}")
                answer = client.getresponse()
                assert answer.read() == f"/{number:02}".encode() * 100_000
                client.close()
            client = http.client.HTTPConnection("127.0.0.1", here[6443], timeout=PATIENCE_SECONDS)
            try:
                client.request("GET", "/")
                client.getresponse()
            except ConnectionError:
                pass
            else:
                raise AssertionError("a port that the Pod does not name was reached")
            finally:
                client.close()
            forward.wait_until(
                lambda: f"pod web has no port 6443: it has {port}" in forward.tail(),
                what="told why",
                timeout_seconds=PATIENCE_SECONDS,
            )
        finally:
            forward.stop()
