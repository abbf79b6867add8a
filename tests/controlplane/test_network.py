"""What WasmWorkloads and Pods reach, by the real control plane: what their owners name, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.guests.requests import outcome, sends
from tests.support import executors
from tests.support.kube import Workspace, pod


class _Listener(BaseHTTPRequestHandler):
    """Answers, and says nothing of it."""

    def do_GET(self) -> None:
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def listener() -> Iterator[str]:
    """Where somebody listens: `IP:PORT`."""
    if reason := executors.why_not("native"):
        pytest.skip(reason)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Listener) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        serving.join()


def test_a_workload_reaches_what_its_spec_names(space: Workspace, listener: str) -> None:
    once = {"module": {"inline": sends(listener)}, "restartPolicy": "Never", "backoffLimit": 0}
    space.workload("named", **once, network={"allowedHosts": [listener]})
    space.workload("nothing", **once)
    space.workload("wider", **once, network={"allowedHosts": ["0.0.0.0/0:*", "localhost:*"]})
    for name in ("named", "nothing", "wider"):
        space.wait(lambda name=name: "exitCode" in space.instance(name), f"{name} has ended")  # type: ignore[misc]
    ended = {name: outcome(space.instance(name)["exitCode"]) for name in ("named", "nothing", "wider")}
    assert ended == {"named": 2, "nothing": "destination-IP-prohibited", "wider": "destination-IP-prohibited"}


def test_a_wrong_entry_is_quoted(space: Workspace, listener: str) -> None:
    refused = space.try_apply(
        {
            "apiVersion": "wherry.dev/v1alpha1",
            "kind": "WasmWorkload",
            "metadata": {"name": "blank"},
            "spec": {"module": {"inline": sends(listener)}, "network": {"allowedHosts": ["no host"]}},
        }
    )
    assert "spec.network.allowedHosts[0]" in refused.stderr
    space.workload("ports", module={"inline": sends(listener)}, network={"allowedHosts": ["a.example:90-80"]})
    space.wait(
        lambda: "spec.network.allowedHosts[0]: 'a.example:90-80'" in str(space.get("wasmworkload", "ports")),
        "its status quotes the entry",
    )


def test_a_pod_reaches_what_its_annotations_name(space: Workspace, listener: str) -> None:
    image = space.push(sends(listener))
    for name, given in (
        ("named", {"wherry.dev/allowed-hosts": f"example.com, {listener}"}),
        ("krustlet", {"alpha.wasi.krustlet.dev/allowed-domains": f'["http://{listener}"]'}),
        ("nothing", {}),
    ):
        body = pod(name, image, node=space.installation.node_name, spec={"restartPolicy": "Never"})
        body["metadata"]["annotations"] = given
        space.apply(body)
    for name, expected in (("named", 2), ("krustlet", 2), ("nothing", "destination-IP-prohibited")):
        found = space.wait_phase(name, "Failed")
        code = found["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"]
        assert outcome(code) == expected, name
    expected_line = "is refused: the annotation wherry.dev/allowed-hosts grants nothing"
    assert f"wherry: network: HTTP to {listener} {expected_line}" in space.logs("nothing")
