"""Pods that serve HTTP, by the real control plane: their port, their address, when they are ready, and how they end.

(Services want an address that is not loopback; what they do with these Pods is looked at on real nodes.)
"""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from tests.guests.servers import SERVER
from tests.support import executors, wat
from tests.support.kube import Workspace, conditions, workload
from tests.support.ports import free_port

GREETING = "hello over HTTP\n"


@pytest.fixture(autouse=True)
def _native() -> None:
    if reason := executors.why_not("native"):
        pytest.skip(reason)


def test_a_pod_serves_on_its_containers_port_until_it_is_deleted(space: Workspace) -> None:
    port = free_port()
    space.pod("web", space.push(SERVER), ports=[{"name": "http", "containerPort": port}])
    space.kubectl("wait", "--for=condition=Ready", "pod/web", "--timeout=60s")
    status = (space.get("pod", "web") or {})["status"]
    assert (status["podIP"], status["podIPs"]) == ("127.0.0.1", [{"ip": "127.0.0.1"}])
    address = f"http://{status['podIP']}:{port}"
    assert httpx.get(f"{address}/log").text == GREETING
    space.wait(lambda: "asked" in space.logs("web"), "its output is in the log")
    space.kubectl("delete", "pod", "web", "--wait=true")
    with pytest.raises(httpx.ConnectError):
        httpx.get(address)


def test_a_second_pod_for_the_same_port_gets_another_and_no_address(space: Workspace) -> None:
    port = free_port()
    image = space.push(SERVER)
    named = [{"name": "http", "containerPort": port}]
    space.pod("first", image, ports=named)
    space.kubectl("wait", "--for=condition=Ready", "pod/first", "--timeout=60s")
    asked = {"httpGet": {"port": "http", "path": "/"}}
    space.pod("second", image, ports=named, readinessProbe=asked, livenessProbe=asked)
    space.kubectl("wait", "--for=condition=Ready", "pod/second", "--timeout=60s")
    assert "podIP" not in (space.get("pod", "second") or {})["status"]
    space.wait(lambda: f"port {port} is taken" in dict(space.events("second")).get("PortTaken", ""), "it is told")
    taken = re.search(r"it serves on (\d+)", dict(space.events("second"))["PortTaken"])
    assert taken is not None
    assert httpx.get(f"http://127.0.0.1:{taken[1]}/").text == GREETING
    space.kubectl("delete", "pod", "first", "--wait=true")
    assert httpx.get(f"http://127.0.0.1:{taken[1]}/").text == GREETING, "it stays where it is"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/")


def test_a_command_with_a_port_has_no_address_and_keeps_nobody_from_it(space: Workspace) -> None:
    port = free_port()
    space.pod("command", space.push(wat.exits(0)), spec={"restartPolicy": "Never"}, ports=[{"containerPort": port}])
    body = space.wait_phase("command", "Succeeded")
    assert "podIP" not in body["status"]


def test_a_port_of_the_node_is_refused_by_name(space: Workspace) -> None:
    space.pod("host", space.push(SERVER), ports=[{"containerPort": 8080, "hostPort": 8080}])
    space.wait(lambda: "hostPort" in str((space.get("pod", "host") or {}).get("status", {})), "its field is named")


def test_a_server_without_a_port_says_what_is_missing(space: Workspace) -> None:
    space.pod("nameless", space.push(SERVER))
    space.wait(lambda: "nothing says on which port" in space.waiting("nameless").get("message", ""), "it is told")
    assert "Ready" in conditions(space.get("pod", "nameless") or {})


def test_each_instance_of_a_wasmworkload_serves_on_a_port_of_its_own(space: Workspace) -> None:
    space.workload("web", module={"inline": SERVER}, replicas=3, http={"maxRequests": 10})
    space.kubectl("wait", "--for=condition=Ready", "wasmworkload/web", "--timeout=60s")
    instances = (space.get("wasmworkload", "web") or {})["status"]["instances"]
    addresses = {each["address"] for each in instances}
    assert len(addresses) == 3
    for address in addresses:
        assert httpx.get(f"http://{address}/").text == GREETING
    space.kubectl("delete", "wasmworkload", "web", "--wait=true")


def test_http_is_for_what_has_no_end(space: Workspace) -> None:
    for spec, words in (
        ({"restartPolicy": "Never", "http": {}}, "http is for restartPolicy Always"),
        ({"http": {"maxRequests": 0}}, "spec.http.maxRequests"),
        ({"http": {"requestTimeoutSeconds": 86401}}, "spec.http.requestTimeoutSeconds"),
        ({"livenessProbe": {"tcpSocket": {}}}, "probes are for what serves"),
        ({"http": {}, "readinessProbe": {}}, "a probe has exactly one of httpGet and tcpSocket"),
        ({"http": {}, "readinessProbe": {"tcpSocket": {"port": 80}}}, "unknown field"),
    ):
        done = space.try_apply(workload("bad", module={"inline": SERVER}, **spec))
        assert done.returncode != 0
        assert words in done.stderr


def test_probes_decide_who_is_ready_and_who_runs_again(space: Workspace) -> None:
    image = space.push(SERVER)

    def web(name: str, **probes: Any) -> None:
        space.pod(name, image, ports=[{"name": "http", "containerPort": free_port()}], **probes)

    # Long enough for a server that is still starting on a busy machine: what has not begun to serve has nothing to drain.
    every = {"periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 30}
    well, ill = ({"httpGet": {"port": "http", "path": path}, **every} for path in ("/", "/trap"))
    taken = {"tcpSocket": {"port": "http"}, "periodSeconds": 1}
    patient = {**taken, "failureThreshold": 60}
    web("well", startupProbe=patient, readinessProbe=well, livenessProbe=taken)
    web("unready", readinessProbe=ill)
    web("ill", livenessProbe=ill)
    space.kubectl("wait", "--for=condition=Ready", "pod/well", "--timeout=60s")
    space.wait(lambda: space.container("ill").get("restartCount", 0) >= 1, "it was run again")
    last = space.container("ill")["lastState"]["terminated"]
    assert (last["exitCode"], last["reason"]) == (0, "Completed"), "it drained"
    assert (
        last["message"]
        == "Container main failed liveness probe, will be restarted: HTTP probe failed with statuscode: 500"
    )
    failed = ("Unhealthy", "Liveness probe failed: HTTP probe failed with statuscode: 500")
    space.wait(lambda: failed in space.events("ill"), "it is told")
    unready = space.container("unready")
    assert (unready["ready"], unready["started"], unready["restartCount"]) == (False, True, 0)
    well_status = space.container("well")
    assert (well_status["ready"], well_status["started"], well_status["restartCount"]) == (True, True, 0)


def test_a_wasmworkload_that_nobody_asks_rests_and_is_ready(space: Workspace) -> None:
    refused = space.try_apply(workload("bad", module={"inline": SERVER}, http={"idle": {"afterSeconds": 0}}))
    assert "spec.http.idle.afterSeconds" in refused.stderr
    space.workload("rests", module={"inline": SERVER}, http={"idle": {"afterSeconds": 1}})

    def instance() -> Any:
        return next(iter(((space.get("wasmworkload", "rests") or {}).get("status") or {}).get("instances", ())), {})

    space.wait(lambda: instance().get("reason") == "Idle", "it rests")
    resting = instance()
    assert (resting["state"], resting["ready"], resting["message"]) == (
        "Running", True, "nobody asks it; the next request starts it",
    )  # fmt: skip
    assert httpx.get(f"http://{resting['address']}/").text == GREETING
    space.wait(lambda: instance().get("reason") == "Idle", "it rests again")
    status = (space.get("wasmworkload", "rests") or {})["status"]
    assert (status["ready"], status["phase"], status["restarts"]) == ("1/1", "Running", 0)


def test_a_pod_serves_on_while_its_pre_stop_hook_lasts_and_no_longer_than_its_grace_period(space: Workspace) -> None:
    port = free_port()
    hooks = {"postStart": {"httpGet": {"port": "http", "path": "/log"}}, "preStop": {"sleep": {"seconds": 3000}}}
    ports = [{"name": "http", "containerPort": port}]
    space.pod("web", space.push(SERVER), spec={"terminationGracePeriodSeconds": 3600}, ports=ports, lifecycle=hooks)
    space.kubectl("wait", "--for=condition=Ready", "pod/web", "--timeout=60s")
    assert "asked" in space.logs("web"), "it was not Ready before its first hook"
    space.kubectl("delete", "pod", "web", "--wait=false")
    space.wait(lambda: "Killing" in dict(space.events("web")), "it is asked to end")
    assert httpx.get(f"http://127.0.0.1:{port}/").text == GREETING
    space.kubectl("delete", "pod", "web", "--grace-period=1", "--wait=true")
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/")


def test_hooks_that_fail_are_told_in_the_kubelets_words(space: Workspace) -> None:
    port, closed = free_port(), free_port()
    fails = {"httpGet": {"port": closed, "path": "/"}}
    ports = [{"name": "http", "containerPort": port}]
    space.pod("begins", space.push(SERVER), ports=ports, lifecycle={"postStart": fails})
    space.wait(lambda: ("FailedPostStartHook", "PostStartHook failed") in space.events("begins"), "it is told")
    space.wait(lambda: space.container("begins").get("restartCount", 0) > 0, "it is run again")
    ended = space.container("begins")["lastState"]["terminated"]
    assert "HTTP lifecycle hook (/) for Container" in ended["message"]
    other = [{"name": "http", "containerPort": free_port()}]
    space.pod("ends", space.push(SERVER), ports=other, lifecycle={"preStop": fails})
    space.kubectl("wait", "--for=condition=Ready", "pod/ends", "--timeout=60s")
    space.kubectl("delete", "pod", "ends", "--wait=true")
    space.wait(lambda: ("FailedPreStopHook", "PreStopHook failed") in space.events("ends"), "it is told")


def test_a_grpc_probe_of_a_server_without_health_checks_fails_in_the_kubelets_words(space: Workspace) -> None:
    port = free_port()
    probe = {"grpc": {"port": port, "service": "boats"}, "periodSeconds": 1}
    space.pod("web", space.push(SERVER), ports=[{"name": "http", "containerPort": port}], readinessProbe=probe)
    words = "Readiness probe failed: error: health rpc probe failed: rpc error: code = "
    space.wait(lambda: dict(space.events("web")).get("Unhealthy", "").startswith(words), "it is told")
    assert httpx.get(f"http://127.0.0.1:{port}/").text == GREETING
    assert conditions(space.get("pod", "web") or {})["Ready"]["reason"] == "ContainersNotReady"
