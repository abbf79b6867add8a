"""Pods whose modules listen by their own sockets: reached as any Pod is, and on no port that they do not name."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from tests.cluster.processes import Process
from tests.guests import build
from tests.support import executors
from tests.support.kube import Workspace
from tests.support.ports import free_port

PATIENCE_SECONDS = 60.0


@pytest.fixture
def image(space: Workspace) -> str:
    """A guest that echoes, on the port that its argument says (`tests/guests/python/serve.py`)."""
    if reason := executors.why_not("native"):
        pytest.skip(reason)
    return space.push_bytes(build.python("serve"))


def echo(space: Workspace, name: str, image: str, port: int) -> None:
    """A Pod that echoes, and is ready when it can be connected to."""
    asked = {"tcpSocket": {"port": "echo"}, "periodSeconds": 1, "failureThreshold": 60}
    named = [{"name": "echo", "containerPort": port}]
    space.pod(name, image, args=[f"tcp:0.0.0.0:{port}"], ports=named, startupProbe=asked)
    space.kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=120s", timeout=150)


def echoed(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as connection:
        connection.sendall(data)
        return connection.recv(len(data))


def test_a_pod_that_listens_is_reached_by_its_address(space: Workspace, image: str, tmp_path: Path) -> None:
    port = free_port()
    echo(space, "first", image, port)
    status = (space.get("pod", "first") or {})["status"]
    assert status["podIP"] == "127.0.0.1"
    assert echoed(port, b"ping") == b"ping"

    echo(space, "second", image, port)
    assert "podIP" not in (space.get("pod", "second") or {})["status"]
    space.wait(lambda: f"port {port} is taken" in dict(space.events("second")).get("PortTaken", ""), "it is told")
    moved = re.search(r"it serves on (\d+)", dict(space.events("second"))["PortTaken"])
    assert moved is not None
    assert echoed(int(moved[1]), b"pong") == b"pong"

    where: list[str | Path] = [
        space.cluster.kubectl_program(), f"--kubeconfig={space.cluster.kubeconfig}", f"--namespace={space.namespace}",
    ]  # fmt: skip
    command = [*where, "port-forward", "pod/second", f":{port}", "--address=127.0.0.1"]
    forward = Process.start("port-forward", command, log=tmp_path / "log")
    try:
        forward.wait_until(lambda: f" -> {port}" in forward.tail(), what="ready", timeout_seconds=PATIENCE_SECONDS)
        here = re.search(rf":(\d+) -> {port}", forward.tail())
        assert here is not None
        assert echoed(int(here[1]), b"forwarded") == b"forwarded"
    finally:
        forward.stop()

    space.kubectl("delete", "pod", "first", "--wait=true", "--grace-period=1")
    with pytest.raises(ConnectionRefusedError):
        echoed(port, b"")


def test_a_pod_that_names_no_port_listens_on_none(space: Workspace, image: str) -> None:
    port = free_port()
    other = [{"containerPort": free_port()}]
    for name, ports in (("nameless", []), ("other", other)):
        space.pod(name, image, args=[f"try:tcp:0.0.0.0:{port}"], ports=ports, spec={"restartPolicy": "Never"})
        space.wait_phase(name, "Succeeded")
    refused = "wherry: network: a TCP socket is refused: the annotation wherry.dev/allowed-hosts grants nothing"
    assert refused in space.logs("nameless")
    assert f"by TCP is refused: its container names no TCP port {port}" in space.logs("other")
