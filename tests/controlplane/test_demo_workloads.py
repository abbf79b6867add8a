"""The demos of WasmWorkloads, applied as their READMEs say."""

from __future__ import annotations

import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests.guests import build
from tests.support import executors, pages
from tests.support.images import push
from tests.support.installation import ROOT
from tests.support.kube import Json, Workspace
from tests.support.ports import free_port

DEMOS = ROOT / "demos"

NAME = "greeter.default.svc.cluster.local"
"""Of the Service that the demo of allowed hosts asks."""


@pytest.fixture(autouse=True)
def module(space: Workspace) -> None:
    push(space.registry.address, "demos/hello-world-c", [DEMOS / "hello-world-c" / "hello.wasm"], tag="v1")


def _apply(space: Workspace, manifest: Path) -> None:
    space.kubectl("apply", "-f", str(manifest))


def _status(space: Workspace, name: str) -> Json:
    found: Json = (space.get("ww", name) or {}).get("status", {})
    return found


def test_hello(space: Workspace) -> None:
    for name in ("workload", "inline"):
        _apply(space, DEMOS / "hello-world-c" / f"{name}.yaml")
    space.kubectl("wait", "--for=condition=Ready", "ww/hello-world-c", "--timeout=60s")
    space.kubectl("wait", "--for=condition=Complete", "ww/hello-inline", "--timeout=60s")


def test_a_sweep_of_200(space: Workspace) -> None:
    _apply(space, DEMOS / "sweep" / "sweep.yaml")
    space.kubectl("wait", "--for=condition=Complete", "ww/sweep", "--timeout=280s", timeout=290)
    status = _status(space, "sweep")
    assert (status["succeeded"], status["failed"], status["completedIndexes"]) == (200, 0, "0-199")
    path = f"/apis/subresources.wherry.dev/v1alpha1/namespaces/{space.namespace}/wasmworkloads/sweep/log"
    log = space.cluster.kubectl("get", "--raw", path).stdout
    told = {line for line in log.splitlines() if line.startswith("Hello, ")}
    assert told == {f"Hello, part {index} of 200!" for index in range(200)}
    assert len(space.events("sweep")) <= 25, "200 instances are no 200 Events"


def test_a_rolling_update_that_can_be_watched(space: Workspace) -> None:
    _apply(space, DEMOS / "rolling-update" / "v1.yaml")
    space.kubectl("wait", "--for=condition=Ready", "ww/rolling", "--timeout=60s")
    _apply(space, DEMOS / "rolling-update" / "v2.yaml")
    seen: list[Json] = []

    def done() -> bool:
        seen.append(_status(space, "rolling"))
        newest = seen[-1]
        return bool(newest["observedGeneration"] == 2 and newest["currentRevision"] == newest["updateRevision"])

    space.wait(done, "the second version has taken over")
    rolling = [item for item in seen if item["observedGeneration"] == 2]
    assert {item["updatedReplicas"] for item in rolling} & set(range(1, 10)), "it went step by step"
    assert all(item["replicas"] <= 12 and item["availableReplicas"] >= 10 for item in rolling)


def test_an_http_api_in_python(space: Workspace, tmp_path: Path) -> None:
    if reason := executors.why_not("native"):
        pytest.skip(reason)
    component = tmp_path / "app.wasm"
    component.write_bytes(build.python_in(DEMOS / "http-python", "app", world="app"))
    push(space.registry.address, "demos/http-python", [component], tag="v1")
    _apply(space, DEMOS / "http-python" / "workload.yaml")
    # Beside others on this machine: on a port that is free.
    port, pod = free_port(), tmp_path / "pod.yaml"
    pod.write_text(
        (DEMOS / "http-python" / "pod.yaml").read_text().replace("containerPort: 8080", f"containerPort: {port}")
    )
    _apply(space, pod)
    for kind in ("ww", "pod"):
        space.kubectl("wait", "--for=condition=Ready", f"{kind}/greeter", "--timeout=240s", timeout=250)
    address = _status(space, "greeter")["instances"][0]["address"]
    answer = httpx.get(f"http://{address}/greet", params={"name": "Ada"})
    assert (answer.status_code, answer.json()) == (200, {"greeting": "Good morning, Ada!"})
    assert answer.headers["content-type"] == "application/json"
    unknown = httpx.get(f"http://{address}/elsewhere")
    assert (unknown.status_code, list(unknown.json())) == (404, ["error"])
    pod_ip = (space.get("pod", "greeter") or {})["status"]["podIP"]
    assert httpx.get(f"http://{pod_ip}:{port}/greet").json() == {"greeting": "Hello, world!"}
    assert "200 /greet" in space.kubectl("logs", "greeter")
    # A container beside it: no node runs one here, so it is only taken.
    assert "deployment.apps/visitor created" in space.kubectl("apply", "-f", str(DEMOS / "http-python" / "beside.yaml"))


def test_an_http_api_in_javascript(space: Workspace, tmp_path: Path) -> None:
    """What it asks for is in `tests/runner/test_http_languages.py`: no Service has a name here."""
    if reason := executors.why_not("native"):
        pytest.skip(reason)
    if shutil.which("npm") is None:
        pytest.skip("npm is missing, by which the tools come that make a component of JavaScript")
    folder = DEMOS / "http-javascript"
    component = tmp_path / "app.wasm"
    component.write_bytes(build.javascript_in(folder, "app", world="app"))
    push(space.registry.address, "demos/http-javascript", [component], tag="v1")
    for generation, manifest in enumerate(("workload", "allowed"), 1):
        _apply(space, folder / f"{manifest}.yaml")
        space.wait(lambda seen=generation: _serves(space, "relay", seen), f"{manifest}.yaml serves", timeout=240)  # type: ignore[misc]
        address = _status(space, "relay")["instances"][0]["address"]
        answer = httpx.get(f"http://{address}/greet", params={"name": "Ada"})
        assert (answer.status_code, answer.json()) == (200, {"greeting": "Hello, Ada!"})


def _serves(space: Workspace, name: str, generation: int) -> bool:
    """Whether its only instance is of this generation, and ready."""
    status = _status(space, name)
    counts = {status.get(field) for field in ("replicas", "readyReplicas", "updatedReplicas")}
    return status.get("observedGeneration") == generation and counts == {1}


class _Greeter(BaseHTTPRequestHandler):
    """Answers as the demo's other half, and says nothing of it."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"greeting": "Hello, Ada!"}\n')

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_caller_that_is_refused_and_then_allowed(space: Workspace, tmp_path: Path) -> None:
    """No Service has a name here: the page is asked for by an address."""
    if reason := executors.why_not("native"):
        pytest.skip(reason)
    folder = DEMOS / "allowed-hosts"
    component = tmp_path / "app.wasm"
    component.write_bytes(build.python_in(folder, "app", world="program"))
    push(space.registry.address, "demos/allowed-hosts", [component], tag="v1")
    refused, allowed = pages.examples((folder / "README.md").read_text())[1:]
    with ThreadingHTTPServer(("127.0.0.1", 0), _Greeter) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            here = f"127.0.0.1:{server.server_port}"
            for name, said in (("refused", "no answer"), ("allowed", '200: {"greeting": "Hello, Ada!"}')):
                manifest = tmp_path / f"{name}.yaml"
                manifest.write_text((folder / f"{name}.yaml").read_text().replace(NAME, here))
                _apply(space, manifest)
                assert said in (refused if name == "refused" else allowed)
                space.wait(lambda said=said: said in _log(space, "caller"), f"it says {said!r}", timeout=240)  # type: ignore[misc]
                if name == "refused":
                    assert "is refused: spec.network.allowedHosts grants nothing" in _log(space, "caller")
        finally:
            server.shutdown()
            serving.join()


def _log(space: Workspace, name: str) -> str:
    path = f"/apis/subresources.wherry.dev/v1alpha1/namespaces/{space.namespace}/wasmworkloads/{name}/log"
    return space.cluster.kubectl("get", "--raw", path, check=False).stdout
