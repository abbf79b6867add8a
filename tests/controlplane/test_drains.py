"""Two runners, and requests all the while: runners are stopped and started again, instances replaced and taken away.

Both say that they have an address that is not loopback, for EndpointSlices take no other; their ports are opened on loopback all
the same. What kube-proxy would do is done by clients that read the slices.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.client import ApiClient
from tests.cluster.local import LocalCluster
from tests.cluster.registry import Registry
from tests.controlplane.conftest import MIRRORED
from tests.guests import build
from tests.guests.servers import SERVER
from tests.support import executors
from tests.support.clients import Address, Clients
from tests.support.installation import Installation, apart, folder_of
from tests.support.kube import TOLERATIONS, Json, Workspace, node_of, pod
from tests.support.ports import free_port

NAME = "drains"
"""Of this installation's node and class."""

ADDRESS = "192.0.2.8"
"""That its runners say they have."""

GREETING = b"hello over HTTP\n"

REQUESTS = 10_000
"""In all, at least, of which none may fail."""

PATIENCE_SECONDS = 240.0


@pytest.fixture(autouse=True)
def _native() -> None:
    if reason := executors.why_not("native"):
        pytest.skip(reason)


@pytest.fixture(scope="module")
def draining(request: pytest.FixtureRequest, cluster: LocalCluster, registry: Registry) -> Iterator[Installation]:
    with folder_of(NAME, request.session) as directory:
        running = Installation(
            cluster,
            directory,
            node_name=NAME,
            class_name=NAME,
            namespace="wherry-drains",
            runners=("drains-a", "drains-b"),
            # Servers are waited for as long as it takes on a busy machine, and then have their grace period.
            runner_flags=[
                "--address", ADDRESS, "--guest-listen", "127.0.0.1",
                "--leave-seconds", "30", "--termination-grace-seconds", "30",
            ],
            registry_mirrors={MIRRORED: registry.url},
            # The clients read the slices again and again, on a busy machine.
            operator_flags=["--resync-seconds", "5", "--unpublish-seconds", "5"],
            serves_logs=False,
        )  # fmt: skip
        with apart(running):
            yield running


@pytest.fixture
def space(draining: Installation, registry: Registry, namespace: str, tmp_path: Path) -> Workspace:
    return Workspace(draining, registry, namespace, tmp_path)


@pytest.fixture(scope="module")
def api(cluster: LocalCluster) -> ApiClient:
    """The API server, without a process for each request."""
    assert cluster.pki is not None
    admin = cluster.pki.issue("clients-of-drains", ["system:masters"], client=True)
    return ApiClient(cluster.server, ca_file=cluster.ca_file, certificate=admin)


@dataclass(frozen=True)
class Service:
    """The Service `web` of a namespace, as a proxy sees it."""

    api: ApiClient
    space: Workspace

    def where(self) -> tuple[list[Address], list[Address]]:
        """Where it leads: to those that are ready, and to those that serve on and leave."""
        path = f"/apis/discovery.k8s.io/v1/namespaces/{self.space.namespace}/endpointslices"
        status, body = self.api.get(f"{path}?labelSelector=kubernetes.io/service-name%3Dweb")
        assert status == 200, body
        return _led(json.loads(body)["items"])

    @property
    def instances(self) -> list[Json]:
        found: list[Json] = (self.space.get("ww", "web") or {}).get("status", {}).get("instances") or []
        return found

    @property
    def runners(self) -> set[str]:
        return {each["runner"] for each in self.instances}

    def wait(self, replicas: int) -> None:
        """Wait until it leads to so many, to them alone, and there are no others."""

        def serves() -> bool:
            ready, leaving = self.where()
            instances = self.instances
            return len(ready) == len(instances) == replicas and not leaving and all(each["ready"] for each in instances)

        self.space.wait(serves, f"the Service leads to {replicas} instances", timeout=PATIENCE_SECONDS)


@pytest.fixture
def service(api: ApiClient, space: Workspace) -> Service:
    return Service(api, space)


def _led(slices: list[Json]) -> tuple[list[Address], list[Address]]:
    ready: list[Address] = []
    leaving: list[Address] = []
    for each in slices:
        for endpoint in each["endpoints"] or ():
            assert endpoint["addresses"] == [ADDRESS]
            how = endpoint["conditions"]
            if how["ready"] or (how["serving"] and how["terminating"]):
                found = ready if how["ready"] else leaving
                found += [("127.0.0.1", port["port"]) for port in each["ports"] or ()]
    return ready, leaving


def test_of_ten_thousand_requests_none_fails_while_runners_and_instances_come_and_go(
    space: Workspace, service: Service, draining: Installation
) -> None:
    space.workload("web", className=NAME, module={"inline": SERVER}, http={}, replicas=4)
    service.wait(4)
    assert service.runners == {"drains-a", "drains-b"}
    with Clients(service.where, GREETING) as clients:
        for name, other in (("drains-a", "drains-b"), ("drains-b", "drains-a")):
            runner = draining.runners[name]
            runner.stop(timeout_seconds=PATIENCE_SECONDS)
            service.wait(4)
            assert service.runners == {other}, "all have moved before it ended"
            assert clients.failures == []
            runner.start()
        space.kubectl("patch", "ww", "web", "--type=merge", "-p", '{"spec": {"args": ["another"]}}')
        space.wait(lambda: service.where()[1], "one that leaves is marked", timeout=PATIENCE_SECONDS)
        service.wait(4)
        assert clients.failures == []
        space.kubectl("scale", "ww", "web", "--replicas=2")
        service.wait(2)
        clients.wait(REQUESTS, timeout_seconds=PATIENCE_SECONDS)
    assert clients.failures == []
    assert 0 < clients.kept < clients.answered
    assert clients.answered >= REQUESTS


def test_no_request_fails_while_a_taint_expels_instances(
    space: Workspace, service: Service, cluster: LocalCluster
) -> None:
    with node_of(cluster, "drains-a") as node:
        space.workload("web", className=NAME, module={"inline": SERVER}, http={}, replicas=4)
        service.wait(4)
        assert service.runners == {"drains-a", "drains-b"}
        with Clients(service.where, GREETING) as clients:
            cluster.kubectl("taint", "node", node, "maintenance=now:NoExecute")
            space.wait(lambda: service.runners == {"drains-b"}, "all have moved", timeout=PATIENCE_SECONDS)
            service.wait(4)
            clients.wait(1000, timeout_seconds=PATIENCE_SECONDS)
        assert clients.failures == []
        assert "TaintManagerEviction" in dict(space.events("web"))


def server(space: Workspace, port: int) -> Json:
    """A container whose module is a server; once it is asked to stop it takes no more connections."""
    named = [{"name": "http", "containerPort": port}]
    template = pod("web", space.push(SERVER), node=NAME, ports=named, lifecycle={"preStop": {"sleep": {"seconds": 5}}})
    found: Json = template["spec"]
    return found


def listener(space: Workspace, port: int) -> Json:
    """A container whose own socket listens: nothing asks it to stop, and it is reached until its grace period is over."""
    named = [{"name": "http", "containerPort": port}]
    asked = {"tcpSocket": {"port": "http"}, "periodSeconds": 1}
    args = [f"http:0.0.0.0:{port}"]
    image = space.push_bytes(build.python("serve"))
    template = pod("web", image, node=NAME, args=args, ports=named, readinessProbe=asked)
    found: Json = template["spec"] | {"terminationGracePeriodSeconds": 10}
    return found


@pytest.mark.parametrize("containers", [server, listener])
def test_no_request_to_pods_fails_while_a_runner_is_stopped_and_started_again_and_they_are_replaced(
    space: Workspace, service: Service, draining: Installation, containers: Callable[[Workspace, int], Json]
) -> None:
    labels = {"app": "web"}
    led = {"selector": labels, "ports": [{"port": 80, "targetPort": "http"}]}
    space.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": led})
    # Its node is cordoned, to keep other tests' Pods away.
    cordoned = {"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}
    spec = containers(space, free_port()) | {"tolerations": [*TOLERATIONS, cordoned]}
    template = {"metadata": {"labels": labels}, "spec": spec}
    deployment = {"replicas": 4, "selector": {"matchLabels": labels}, "template": template}
    space.apply({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": deployment})

    def led_to(number: int) -> None:
        space.wait(lambda: len(service.where()[0]) == number, f"it leads to {number}", timeout=PATIENCE_SECONDS)

    led_to(4)
    before = set(service.where()[0])
    listed = json.loads(space.cluster.kubectl("get", "pods", "-n", space.namespace, "-o", "json").stdout)["items"]
    ids = [each["status"]["containerStatuses"][0]["containerID"] for each in listed]
    on_a = sum(each.startswith("wherry://drains-a/") for each in ids)
    assert 0 < on_a < 4
    with Clients(service.where, GREETING) as clients:
        runner = draining.runners["drains-a"]
        runner.stop(timeout_seconds=PATIENCE_SECONDS)
        led_to(4 - on_a)
        assert set(service.where()[0]) < before, "those that are left have not moved"
        runner.start()
        led_to(4)
        assert clients.failures == []
        space.kubectl("set", "env", "deployment/web", "CHANGED=yes")
        space.kubectl(
            "rollout", "status", "deployment/web", f"--timeout={PATIENCE_SECONDS:.0f}s", timeout=PATIENCE_SECONDS
        )
        assert clients.failures == []
        space.kubectl("scale", "deployment/web", "--replicas=2")
        led_to(2)
        clients.wait(1000, timeout_seconds=PATIENCE_SECONDS)
    assert clients.failures == []


def test_a_deleted_object_finishes_the_requests_that_it_has(space: Workspace, service: Service) -> None:
    space.workload("web", className=NAME, module={"inline": SERVER}, http={}, terminationGracePeriodSeconds=60)
    service.wait(1)
    ((address,), _) = service.where()
    connection = http.client.HTTPConnection(*address, timeout=PATIENCE_SECONDS)
    # Its head has come back, and its body is on the way, until the client has sent its own.
    connection.putrequest("POST", "/echo")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    connection.send(b"6\r\nbefore\r\n")
    answer = connection.getresponse()
    assert answer.read(6) == b"before"
    space.kubectl("delete", "ww", "web", "--wait=true")
    space.wait(lambda: not space.get("service", "web"), "its Service has gone")

    def refused() -> bool:
        try:
            socket.create_connection(address, timeout=PATIENCE_SECONDS).close()
        except ConnectionRefusedError:
            return True
        return False

    space.wait(refused, "it takes no more clients")
    connection.send(b"5\r\nafter\r\n0\r\n\r\n")
    assert answer.read() == b"after"
    connection.close()
