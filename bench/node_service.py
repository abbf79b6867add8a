"""Requests through a Service with a ClusterIP on a real node: a Pod of a module, beside one whose container is `wasmtime serve`.

kube-proxy leads to both alike. Each server has one core, wrk the other; the control plane, which is idle, has both.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import wasmtime_cli, wrk
from bench.container_pods import NAMESPACE, PODS, TIMEOUT_SECONDS
from bench.container_pods import pod as container_pod
from bench.node_scene import NodeScene, push_module, wasm_pod
from bench.table import Report, p50
from tests.cluster import cgroups
from tests.cluster.client import http_status
from tests.cluster.errors import ClusterError
from tests.cluster.images import archive
from tests.cluster.processes import wait_for
from tests.guests.servers import SERVER
from tests.support import wat

CLIENTS = (1, 8, 32)
"""How many at once."""

FIGURES: list[tuple[str, str, str, dict[str, float]]] = [
    ("requests per second", "per_second", "/s", {"at_least": 0.95}),
    ("p50", "p50_ms", "ms", {}),
    ("p99", "p99_ms", "ms", {}),
]
"""What is compared: its name, where wrk's answer has it, its unit, and what is promised of the ratio."""

ROUNDS = 5

PORT = 8080
"""Of the containers. The Services' is 80."""

SERVICES = f"/api/v1/namespaces/{NAMESPACE}/services"

OURS, PEERS = "wherry-executor", "wasmtime"
"""How the processes that serve are called."""


def measure(scene: NodeScene, report: Report) -> None:
    """In turns, the middle of some rounds each."""
    wrk.require()
    with tempfile.TemporaryDirectory() as folder:
        module = wat.write(SERVER, Path(folder) / "server.wasm")
        scene.progress.step("pushing the peer's image, and the component")
        peers_image = scene.cluster.push(_peers_image(Path(folder), module), "wasmtime-serve:1")
        image = push_module(scene.cluster, module)
    ports = [{"name": "http", "containerPort": PORT}]
    peer = container_pod("service-peer", peers_image)
    peer["spec"]["containers"] = [{"name": "main", "image": peers_image, "ports": ports}]
    ours = wasm_pod("service-module", image, ports=ports)
    with _served(scene, ours, OURS) as our_url, _served(scene, peer, PEERS) as peers_url:
        asyncio.run(_compare(scene, report, (our_url, peers_url)))


async def _compare(scene: NodeScene, report: Report, urls: tuple[str, str]) -> None:
    """Ours first."""
    command = scene.cluster.in_network("wrk")
    for url in urls:
        await wrk.ask(url, clients=8, seconds=1, wrk=command)
    for clients in CLIENTS:
        scene.progress.step(f"requests over {clients} connections, in turns")
        rounds = [[await wrk.ask(url, clients=clients, wrk=command) for url in urls] for _ in range(ROUNDS)]
        for what, attribute, unit, limit in FIGURES:
            ours, peer = (p50([getattr(each, attribute) for each in side]) for side in zip(*rounds, strict=True))
            report.ratio(f"{what} through a Service, c={clients}", ours, peer, unit, **limit)


@contextlib.contextmanager
def _served(scene: NodeScene, body: dict[str, Any], program: str) -> Iterator[str]:
    """A Pod behind a Service of its own that answers, and whose process is on the servers' core; the Service's URL.

    :param program: what the process that serves is called; it wasn't there before.
    """
    name = body["metadata"]["name"]
    group = f"{scene.cluster.cgroup}/node-1"
    before = cgroups.processes(group)
    body["metadata"]["labels"] = {"app": name}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": "http"}]},
    }
    with contextlib.closing(scene.api.connection()) as connection:
        address = scene.api.ask(connection, "POST", SERVICES, service)["spec"]["clusterIP"]
        scene.api.ask(connection, "POST", PODS, body)
    connect = scene.cluster.connect
    if not wait_for(lambda: http_status(connect, address, 80, "/") == 200, timeout_seconds=TIMEOUT_SECONDS):
        raise ClusterError(f"the Service of {name} did not answer in {TIMEOUT_SECONDS:.0f} s")
    servers = [pid for pid in cgroups.processes(group) - before if _called(pid, program)]
    if len(servers) != 1:
        raise ClusterError(f"{name} should have one process {program}, and has {len(servers)}")
    wrk.pin(servers)
    yield f"http://{address}/"
    with contextlib.closing(scene.api.connection()) as connection:
        scene.api.ask(connection, "DELETE", f"{PODS}/{name}")
        scene.api.ask(connection, "DELETE", f"{SERVICES}/{name}")
    scene.pods.wait(lambda: name in scene.pods.gone)


def _called(pid: int, name: str) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip() == name
    return False


def _peers_image(folder: Path, module: Path) -> Path:
    """The layout of an image of `wasmtime serve` with what it loads, and the component."""
    program = wasmtime_cli.executable()
    loaded = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout.split()
    files = {path.lstrip("/"): Path(path) for path in loaded if path.startswith("/")}
    layer, layout = folder / "layer.tar", folder / "layout"
    archive.tar(layer, {**files, "wasmtime": program, module.name: module})
    entrypoint = ["/wasmtime", *wasmtime_cli.serve_options(f"0.0.0.0:{PORT}"), f"/{module.name}"]
    archive.write_layout(layout, "wherry.test/wasmtime-serve:1", layer, {"Entrypoint": entrypoint})
    return layout
