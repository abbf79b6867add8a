"""The chart on a real node, with the images of our own Dockerfiles, in a namespace that admits nothing unusual."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.node import NodeCluster
from tests.cluster.processes import wait_for
from tests.guests import build
from tests.guests.requests import outcome, sends
from tests.guests.servers import SERVER
from tests.node.load import Asking
from tests.node.pods import PATIENCE, PATIENCE_SECONDS, Space
from tests.node.pods import pod as container_pod
from tests.node.release import LOGS, SYSTEM, Release, installed, module_layout
from tests.support import wat
from tests.support.kube import pod, workload

FILES_PATIENCE_SECONDS = 240.0
"""A kubelet looks at a Pod's volumes every 60 to 90 s."""


@pytest.fixture(scope="module")
def release(
    node_cluster: NodeCluster, operator_image: str, runner_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Release]:
    images = {"operator": operator_image, "runner": runner_image}
    with installed(node_cluster, images, tmp_path_factory.mktemp("helm")) as running:
        yield running


def test_helm_test_is_content(release: Release) -> None:
    assert "Phase:          Succeeded" in release.helm.run("test", "wherry", f"--namespace={SYSTEM}")


def test_a_wasmworkload_runs_and_its_log_is_served(release: Release, node_space: Space) -> None:
    node_space.create(workload("hello", module={"inline": wat.sleeps("hello from a release")}))
    node_space.wait("wasmworkload/hello", "jsonpath={.status.phase}=Running")
    log = f"{LOGS}/{node_space.namespace}/wasmworkloads/hello/log"

    def shown() -> bool:
        done = release.cluster.kubectl("get", "--raw", log, check=False)
        return done.stdout == "hello from a release\n"

    assert wait_for(shown, timeout_seconds=PATIENCE_SECONDS)


def test_a_pod_runs_as_webassembly(release: Release, node_space: Space, tmp_path: Path) -> None:
    image = release.cluster.push(module_layout(wat.sleeps(), tmp_path), "hello-wasm:1")
    node_space.create(pod("hello", image))
    node_space.wait("pod/hello", "condition=Ready")
    found = release.cluster.get("pod", "hello", node_space.namespace)
    assert found is not None
    assert found["spec"]["nodeName"] == "wherry"
    (container,) = found["status"]["containerStatuses"]
    assert container["containerID"].startswith(f"wherry://{release.node}/")


def test_a_container_calls_a_module_by_the_name_of_its_service(
    release: Release, node_space: Space, base_image: str, tmp_path: Path
) -> None:
    image = release.cluster.push(module_layout(SERVER, tmp_path), "web-wasm:1")
    # Below 1024, which the runner may open without a privilege.
    web = pod("web", image, ports=[{"name": "http", "containerPort": 80}])
    web["metadata"]["labels"] = {"app": "web"}
    service = {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]}
    node_space.create(
        web,
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": service},
        container_pod("asks", base_image, ["sleep", "3600"]),
    )
    node_space.wait("pod/web", "condition=Ready")
    node_space.wait("pod/asks", "condition=Ready")
    script = "import urllib.request; print(urllib.request.urlopen('http://web/', timeout=5).read().decode(), end='')"
    assert node_space.eventually("asks", "python3", "-c", script) == "hello over HTTP\n"


def test_a_module_calls_a_container_by_the_name_of_its_service_once_it_may(
    release: Release, node_space: Space, base_image: str
) -> None:
    name = f"outside.{node_space.namespace}.svc.cluster.local"
    service = {"selector": {"app": "outside"}, "ports": [{"port": 80, "targetPort": 8080}]}
    node_space.create(
        container_pod("outside", base_image, ["python3", "-m", "http.server", "8080"]),
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "outside"}, "spec": service},
        container_pod("asks", base_image, ["sleep", "3600"]),
    )
    node_space.wait("pod/outside", "condition=Ready")
    node_space.wait("pod/asks", "condition=Ready")
    script = f"import urllib.request; print(urllib.request.urlopen('http://{name}/', timeout=5).status)"
    assert node_space.eventually("asks", "python3", "-c", script) == "200\n"

    once = {"module": {"inline": sends(name)}, "restartPolicy": "Never", "backoffLimit": 0}
    node_space.create(
        workload("nothing", **once),
        workload("other", **once, network={"allowedHosts": ["kubernetes.default.svc.cluster.local"]}),
        workload("named", **once, network={"allowedHosts": [name]}),
    )

    def ended(workload: str) -> int | str:
        where = "jsonpath={.status.instances[0].exitCode}"
        found: list[str] = []

        def has_ended() -> bool:
            found.append(node_space.kubectl("get", "ww", workload, "-o", where).stdout)
            return bool(found[-1])

        assert wait_for(has_ended, timeout_seconds=PATIENCE_SECONDS)
        return outcome(int(found[-1]))

    assert {each: ended(each) for each in ("nothing", "other", "named")} == {
        "nothing": "HTTP-request-denied",
        "other": "HTTP-request-denied",
        "named": 2,
    }


def test_a_container_calls_a_module_that_listens_itself(
    release: Release, node_space: Space, base_image: str, tmp_path: Path
) -> None:
    image = release.cluster.push(module_layout(build.python("serve"), tmp_path), "serve:1")
    asked = {"tcpSocket": {"port": "echo"}, "periodSeconds": 1, "failureThreshold": 90}
    tcp = pod(
        "tcp", image, args=["tcp:0.0.0.0:9000"], ports=[{"name": "echo", "containerPort": 9000}], startupProbe=asked
    )
    udp = pod("udp", image, args=["udp:0.0.0.0:53"], ports=[{"containerPort": 53, "protocol": "UDP"}])
    objects = []
    for each, port in (
        (tcp, {"port": 7, "targetPort": "echo"}),
        (udp, {"port": 7, "targetPort": 53, "protocol": "UDP"}),
    ):
        name = each["metadata"]["name"]
        each["metadata"]["labels"] = {"app": name}
        spec = {"selector": {"app": name}, "ports": [port]}
        objects += [each, {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}]
    node_space.create(*objects, container_pod("asks", base_image, ["sleep", "3600"]))
    for name in ("tcp", "udp", "asks"):
        node_space.wait(f"pod/{name}", "condition=Ready")
    for name, kind in (("tcp", "SOCK_STREAM"), ("udp", "SOCK_DGRAM")):
        script = (
            f"import socket; s = socket.socket(type=socket.{kind}); s.settimeout(5); s.connect(('{name}', 7)); "
            "s.send(b'ping'); print(s.recv(9).decode())"
        )
        assert node_space.eventually("asks", "python3", "-c", script) == "ping\n"


def test_a_container_calls_a_wasmworkload_by_its_services_name_while_it_is_updated(
    release: Release, node_space: Space, base_image: str
) -> None:
    """Through kube-proxy."""
    spec = {"module": {"inline": SERVER}, "replicas": 3, "http": {"port": 8080, "service": {"name": "api"}}}
    node_space.create(workload("web", **spec), container_pod("asks", base_image, ["sleep", "3600"]))
    node_space.wait("wasmworkload/web", "condition=Ready")
    node_space.wait("wasmworkload/web", "condition=ServiceReady")
    node_space.wait("pod/asks", "condition=Ready")
    url = node_space.kubectl("get", "ww", "web", "-o", "jsonpath={.status.url}").stdout
    assert url == f"http://api.{node_space.namespace}.svc:8080"
    script = f"import urllib.request; print(urllib.request.urlopen('{url}/', timeout=5).read().decode(), end='')"
    assert node_space.eventually("asks", "python3", "-c", script) == "hello over HTTP\n"

    host = f"api.{node_space.namespace}.svc"
    with Asking(node_space, "asks", (host, 8080), at_least=2000) as asking:
        for number in range(2):
            change = {"spec": {"args": [str(number)]}}
            node_space.kubectl("patch", "ww", "web", "--type=merge", "-p", json.dumps(change))
            generation = node_space.kubectl("get", "ww", "web", "-o", "jsonpath={.metadata.generation}").stdout
            node_space.wait("wasmworkload/web", f"jsonpath={{.status.observedGeneration}}={generation}")
            node_space.wait("wasmworkload/web", "condition=Ready")
        node_space.kubectl("scale", "ww", "web", "--replicas=1")
        node_space.wait("wasmworkload/web", "jsonpath={.status.replicas}=1")
    assert asking.failed == []
    assert asking.answered >= 2000


def test_twenty_pods_with_one_port_serve_on_one_node(
    release: Release, node_space: Space, base_image: str, tmp_path: Path
) -> None:
    image = release.cluster.push(module_layout(SERVER, tmp_path), "many-wasm:1")
    template = pod("many", image, ports=[{"name": "http", "containerPort": 8080}])
    labels = {"app": "many"}
    node_space.create(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "many"},
            "spec": {
                "replicas": 20,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": template["spec"]},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "many"},
            "spec": {"selector": labels, "ports": [{"port": 80, "targetPort": "http"}]},
        },
        container_pod("asks", base_image, ["sleep", "3600"]),
    )
    node_space.kubectl("rollout", "status", "deployment/many", f"--timeout={PATIENCE}")
    node_space.wait("pod/asks", "condition=Ready")

    def where() -> set[str]:
        """All that the Service leads to, by the slices of Kubernetes and ours."""
        listed = node_space.kubectl(
            "get", "endpointslices", "-l", "kubernetes.io/service-name=many", "-o", "json"
        ).stdout
        return {
            f"http://{endpoint['addresses'][0]}:{each['ports'][0]['port']}/"
            for each in json.loads(listed)["items"]
            for endpoint in each["endpoints"] or ()
            if endpoint["conditions"]["ready"]
        }

    assert wait_for(lambda: len(where()) == 20, timeout_seconds=PATIENCE_SECONDS), where()
    ask = "import sys, urllib.request\nfor each in sys.argv[1:]: print(urllib.request.urlopen(each, timeout=5).read())"
    answers = node_space.eventually("asks", "python3", "-c", ask, *where(), *["http://many/"] * 100)
    assert answers.splitlines() == [str(b"hello over HTTP\n")] * 120


def test_certificates_are_replaced_while_all_runs(release: Release, node_space: Space) -> None:
    """Down to the CA, as after somebody has seen its key; a kubelet takes a minute or two to bring files."""
    cluster = release.cluster
    node_space.create(workload("stays", module={"inline": wat.sleeps("still here")}))
    node_space.wait("wasmworkload/stays", "jsonpath={.status.phase}=Running")

    def loaded() -> int:
        logs = cluster.kubectl("logs", "-n", SYSTEM, "daemonset/wherry-runner", "--tail=-1").stdout
        return logs.count("loaded again: /certificates/")

    before = loaded()
    cluster.kubectl("delete", "secret", "wherry-ca", "-n", SYSTEM)
    # A handshake makes it look; so does its readiness probe.
    assert wait_for(lambda: loaded() > before, timeout_seconds=FILES_PATIENCE_SECONDS)
    node_space.create(workload("after", module={"inline": wat.sleeps()}))
    node_space.wait("wasmworkload/after", "jsonpath={.status.phase}=Running")
    log = f"{LOGS}/{node_space.namespace}/wasmworkloads/stays/log"
    shown = "still here\n"
    assert wait_for(
        lambda: cluster.kubectl("get", "--raw", log, check=False).stdout == shown, timeout_seconds=PATIENCE_SECONDS
    )
    pods = json.loads(cluster.kubectl("get", "pods", "-n", SYSTEM, "-o", "json").stdout)["items"]
    assert {each["status"]["containerStatuses"][0]["restartCount"] for each in pods} == {0}
    (instance,) = json.loads(node_space.kubectl("get", "ww", "stays", "-o", "json").stdout)["status"]["instances"]
    assert instance.get("restarts", 0) == 0


def test_nothing_is_left_but_the_crd(release: Release) -> None:
    """The last of this file: it removes what the others use."""
    release.uninstall()
