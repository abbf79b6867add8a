"""What a container Pod does on a real node: what Wherry's Pods are to be compared with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.client import http_status
from tests.cluster.errors import KubectlFailed
from tests.cluster.processes import Process, wait_for
from tests.node.pods import PATIENCE_SECONDS, RESTRICTED, Space, pod

SERVER = ["python3", "-m", "http.server", "8080"]

READY_PROBE = {"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1}

FETCH = "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1], timeout=5).status)"


def test_a_pod_is_pulled_becomes_ready_and_is_logged(node_space: Space, base_image: str) -> None:
    script = "import time; print('boat ahoy', flush=True); time.sleep(3600)"
    node_space.create(pod("talks", base_image, ["python3", "-c", script], imagePullPolicy="Always"))
    node_space.wait("pod/talks", "condition=Ready")
    assert node_space.status("talks")["hostIP"] == node_space.cluster.address
    logged = "jsonpath={.status.containerStatuses[0].started}=true"
    node_space.wait("pod/talks", logged)
    assert wait_for(
        lambda: node_space.kubectl("logs", "talks").stdout == "boat ahoy\n", timeout_seconds=PATIENCE_SECONDS
    )
    events = node_space.kubectl("get", "events", "--output=jsonpath={.items[*].reason}").stdout.split()
    assert "Pulled" in events, events


def test_a_command_runs_inside_a_pod(node_space: Space, base_image: str) -> None:
    node_space.create(pod("host", base_image, ["sleep", "3600"]))
    node_space.wait("pod/host", "condition=Ready")
    assert node_space.inside("host", "sh", "-c", "echo $((6 * 7)) in $(hostname)") == "42 in host\n"
    refused = node_space.kubectl("exec", "host", "--", "sh", "-c", "exit 3", check=False)
    assert refused.returncode == 3


def test_a_pod_over_its_memory_limit_is_killed(node_space: Space, base_image: str) -> None:
    eats = pod("eats", base_image, ["python3", "-c", "b = bytearray(256 << 20)"])
    eats["spec"]["containers"][0]["resources"] = {"limits": {"memory": "64Mi"}}
    eats["spec"]["restartPolicy"] = "Never"
    node_space.create(eats)
    node_space.wait("pod/eats", "jsonpath={.status.phase}=Failed")
    ended = node_space.status("eats")["containerStatuses"][0]["state"]["terminated"]
    assert (ended["reason"], ended["exitCode"]) == ("OOMKilled", 137)


def test_probes_decide_on_readiness_and_restarts(node_space: Space, base_image: str) -> None:
    probed = pod(
        "probed",
        base_image,
        ["sleep", "3600"],
        readinessProbe={"exec": {"command": ["test", "-e", "/tmp/ready"]}, "periodSeconds": 1},
        livenessProbe={
            "exec": {"command": ["test", "!", "-e", "/tmp/stuck"]},
            "periodSeconds": 1,
            "failureThreshold": 1,
        },
    )
    node_space.create(probed)
    node_space.wait("pod/probed", "jsonpath={.status.phase}=Running")
    assert not node_space.status("probed")["containerStatuses"][0]["ready"]
    node_space.inside("probed", "touch", "/tmp/ready")
    node_space.wait("pod/probed", "condition=Ready")
    node_space.inside("probed", "touch", "/tmp/stuck")
    node_space.wait("pod/probed", "jsonpath={.status.containerStatuses[0].restartCount}=1")


def test_a_service_answers_by_name_inside_and_by_address_from_the_node(node_space: Space, base_image: str) -> None:
    node_space.create(
        pod("web", base_image, SERVER, readinessProbe=READY_PROBE),
        pod("asks", base_image, ["sleep", "3600"]),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "boats"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
        },
    )
    node_space.wait("pod/web", "condition=Ready")
    node_space.wait("pod/asks", "condition=Ready")
    for name in ("boats", f"boats.{node_space.namespace}", f"boats.{node_space.namespace}.svc.cluster.local"):
        assert node_space.eventually("asks", "python3", "-c", FETCH, f"http://{name}/") == "200\n"
    service = node_space.cluster.get("service", "boats", node_space.namespace)
    assert service is not None
    node_space.cluster.connect((service["spec"]["clusterIP"], 80), PATIENCE_SECONDS).close()


def test_a_port_is_forwarded_and_the_api_server_is_a_way_in(node_space: Space, base_image: str, tmp_path: Path) -> None:
    node_space.create(pod("web", base_image, SERVER, readinessProbe=READY_PROBE))
    node_space.wait("pod/web", "condition=Ready")
    cluster, namespace = node_space.cluster, node_space.namespace
    program, kubeconfig = cluster.kubectl_program(), f"--kubeconfig={cluster.kubeconfig}"
    where: list[str | Path] = [program, kubeconfig, f"--namespace={namespace}"]
    command = [*where, "port-forward", "pod/web", ":8080", "--address=127.0.0.1"]
    forward = Process.start("port-forward", command, log=tmp_path / "log")
    try:
        forward.wait_until(lambda: " -> 8080" in forward.tail(), what="forwarding", timeout_seconds=PATIENCE_SECONDS)
        port = int(forward.tail().split(" -> 8080")[0].rpartition(":")[2])
        assert http_status(cluster.connect, "127.0.0.1", port, "/") == 200
    finally:
        forward.stop()
    answer = cluster.kubectl("get", "--raw", f"/api/v1/namespaces/{namespace}/pods/web:8080/proxy/").stdout
    assert "Directory listing" in answer
    assert cluster.kubectl("get", "--raw", "/api/v1/nodes/node-1/proxy/healthz").stdout == "ok"


def test_the_api_server_is_reached_from_a_pod(node_space: Space, base_image: str) -> None:
    node_space.create(pod("asks", base_image, ["sleep", "3600"]))
    node_space.wait("pod/asks", "condition=Ready")
    script = "import socket; print(socket.create_connection(('kubernetes.default', 443), 5).getpeername()[0])"
    assert node_space.eventually("asks", "python3", "-c", script) == "10.96.0.1\n"


def test_kubectl_top_measures_pod_and_node(node_space: Space, base_image: str) -> None:
    busy = "b = bytearray(40 << 20)\nwhile True: sum(range(10000))"
    measured = pod("busy", base_image, ["python3", "-c", busy])
    measured["spec"]["containers"][0]["resources"] = {"limits": {"cpu": "200m"}}
    node_space.create(measured)
    node_space.wait("pod/busy", "condition=Ready")

    def figures() -> list[str]:
        return node_space.kubectl("top", "pod", "busy", "--no-headers", check=False).stdout.split()

    assert wait_for(lambda: bool(figures()) and figures()[1] != "0m", timeout_seconds=PATIENCE_SECONDS)
    _, cpu, memory = figures()
    assert 50 <= int(cpu.removesuffix("m")) <= 400
    assert 40 <= int(memory.removesuffix("Mi")) <= 80
    assert node_space.kubectl("top", "node", "--no-headers").stdout.startswith("node-1 ")


def test_a_restricted_namespace_admits_a_pod_without_rights_only(node_space: Space, base_image: str) -> None:
    level = "pod-security.kubernetes.io/enforce=restricted"
    node_space.cluster.kubectl("label", "namespace", node_space.namespace, level)
    with pytest.raises(KubectlFailed, match='violates PodSecurity "restricted'):
        node_space.create(pod("root", base_image, ["sleep", "3600"]))
    node_space.create(pod("nobody", base_image, ["sleep", "3600"], securityContext=RESTRICTED))
    node_space.wait("pod/nobody", "condition=Ready")
    status = node_space.inside("nobody", "cat", "/proc/self/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    assert fields["Uid"].split() == ["65532"] * 4
    assert int(fields["CapEff"], 16) == 0
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    assert node_space.kubectl("exec", "nobody", "--", "touch", "/etc/x", check=False).returncode != 0


def test_an_image_that_is_not_there_is_reported(node_space: Space) -> None:
    node_space.create(pod("never", f"{node_space.cluster.registry.address}/none:1"))
    node_space.wait("pod/never", "jsonpath={.status.containerStatuses[0].state.waiting.reason}=ErrImagePull")


def test_a_volume_in_memory_and_a_secret_are_mounted(node_space: Space, base_image: str) -> None:
    mounts = [{"name": "secret", "mountPath": "/secret"}, {"name": "memory", "mountPath": "/memory"}]
    reads = pod("reads", base_image, ["sleep", "3600"], volumeMounts=mounts)
    reads["spec"]["volumes"] = [
        {"name": "secret", "secret": {"secretName": "word"}},
        {"name": "memory", "emptyDir": {"medium": "Memory"}},
    ]
    node_space.create(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "word"}, "stringData": {"word": "open sesame"}},
        reads,
    )
    node_space.wait("pod/reads", "condition=Ready")
    assert node_space.inside("reads", "cat", "/secret/word") == "open sesame"
    assert "tmpfs" in node_space.inside("reads", "stat", "--file-system", "--format=%T", "/memory")
