"""Services of our own, on a real API server: a WasmWorkload's, and where they lead.

A runner here says that it has an address that is not loopback, for EndpointSlices take no other; its ports are opened on
loopback all the same. What kube-proxy would do is done by a client that reads the slices.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cluster.local import LocalCluster
from tests.cluster.registry import Registry
from tests.controlplane.conftest import MIRRORED
from tests.guests.servers import SERVER
from tests.support import executors
from tests.support.installation import Installation, apart, folder_of
from tests.support.kube import TOLERATIONS, Json, Workspace, conditions
from tests.support.ports import free_port

NAME = "serving"
"""Of this installation's node and class: it lives beside the one that all others share."""

ADDRESS = "192.0.2.7"
"""That its runner says it has."""

GREETING = "hello over HTTP\n"


@pytest.fixture(autouse=True)
def _native() -> None:
    if reason := executors.why_not("native"):
        pytest.skip(reason)


@pytest.fixture(scope="module")
def serving(request: pytest.FixtureRequest, cluster: LocalCluster, registry: Registry) -> Iterator[Installation]:
    with folder_of(NAME, request.session) as directory:
        running = Installation(
            cluster,
            directory,
            node_name=NAME,
            class_name=NAME,
            namespace="wherry-serving",
            runners=("serving-a",),
            runner_flags=["--address", ADDRESS, "--guest-listen", "127.0.0.1"],
            registry_mirrors={MIRRORED: registry.url},
            # The client below reads the slices again and again, on a busy machine.
            operator_flags=["--resync-seconds", "5", "--unpublish-seconds", "5"],
            serves_logs=False,
        )
        with apart(running):
            yield running


@pytest.fixture
def space(serving: Installation, registry: Registry, namespace: str, tmp_path: Path) -> Workspace:
    return Workspace(serving, registry, namespace, tmp_path)


def _web(space: Workspace, name: str = "web", **more: Any) -> None:
    spec = {"module": {"inline": SERVER}, "http": {}, **more}
    space.workload(name, className=NAME, **spec)


def _slices(space: Workspace, service: str = "web") -> list[Json]:
    # While somebody gives the Service a selector, Kubernetes makes one of its own.
    selector = f"kubernetes.io/service-name={service},endpointslice.kubernetes.io/managed-by=wherry-operator-{NAME}"
    listed = space.cluster.kubectl("get", "endpointslices", "-n", space.namespace, "-l", selector, "-o", "json").stdout
    found: list[Json] = json.loads(listed)["items"]
    return found


def _endpoints(space: Workspace, service: str = "web") -> dict[str, str]:
    """Each address with its port, and whether it is `ready` or `leaving`."""
    found = {}
    for each in _slices(space, service):
        (port,) = each["ports"]
        assert (port["name"], port["protocol"], each["addressType"]) == ("http", "TCP", "IPv4")
        for endpoint in each["endpoints"]:
            how = endpoint["conditions"]
            assert how["serving"] and how["ready"] != how["terminating"], how
            found[f"{endpoint['addresses'][0]}:{port['port']}"] = "ready" if how["ready"] else "leaving"
    return found


def _instances(space: Workspace, name: str = "web") -> list[Json]:
    found: list[Json] = (space.get("ww", name) or {}).get("status", {}).get("instances") or []
    return found


def _service_ready(space: Workspace, name: str = "web") -> Json:
    return conditions(space.get("ww", name) or {}).get("ServiceReady", {})


def _wait_leads(space: Workspace, name: str = "web", *, to: int) -> None:
    """Wait until the Service leads to so many instances, and to them alone."""

    def leads() -> bool:
        ready = {each.get("address", "") for each in _instances(space, name) if each["ready"]}
        return len(ready) == to and _endpoints(space, name) == dict.fromkeys(ready, "ready")

    space.wait(leads, f"Service {name} leads to {to} instances")


class _Client(threading.Thread):
    """Asks a Service until it is told to stop, as by a proxy: of the endpoints that are ready one after the other, and of those
    that leave where there is no other. A new connection each time."""

    def __init__(self, space: Workspace) -> None:
        super().__init__()
        self._space = space
        self._over = threading.Event()
        self._known: list[str] = []
        self.answers = 0
        self.failures: list[str] = []

    def __enter__(self) -> _Client:
        self._read()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        reading = threading.Thread(target=self._read_on)
        reading.start()
        while not self._over.is_set():
            for address in self._known:
                try:
                    answer = httpx.get(f"http://{address.replace(ADDRESS, '127.0.0.1')}/", trust_env=False)
                    assert (answer.status_code, answer.text) == (200, GREETING)
                    self.answers += 1
                except Exception as error:
                    self.failures.append(f"{address}: {error!r}")
        reading.join()

    def _read_on(self) -> None:
        while not self._over.wait(0.2):
            self._read()

    def _read(self) -> None:
        now = _endpoints(self._space)
        self._known = [each for each, how in now.items() if how == "ready"] or list(now)


def test_a_workload_that_serves_has_a_service_that_leads_to_its_instances(space: Workspace) -> None:
    _web(space, replicas=3)
    space.kubectl("wait", "--for=condition=ServiceReady", "ww/web", "--timeout=60s")
    _wait_leads(space, to=3)
    body, service = space.get("ww", "web") or {}, space.get("service", "web") or {}
    assert body["status"]["url"] == f"http://web.{space.namespace}.svc"
    (port,) = service["spec"]["ports"]
    assert (service["spec"]["type"], port["name"], port["port"]) == ("ClusterIP", "http", 80)
    assert "selector" not in service["spec"]
    (owner,) = service["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("WasmWorkload", body["metadata"]["uid"])
    for each in _slices(space):
        (owner,) = each["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"]) == ("Service", service["metadata"]["uid"])
        assert {endpoint["nodeName"] for endpoint in each["endpoints"]} == {"node-of-serving-a"}
    for address in _endpoints(space):
        assert httpx.get(f"http://{address.replace(ADDRESS, '127.0.0.1')}/").text == GREETING
    space.kubectl("delete", "ww", "web", "--wait=true")
    space.wait(lambda: not space.get("service", "web") and not _slices(space), "all of it is garbage")


def test_nothing_is_written_when_nothing_has_changed(space: Workspace, serving: Installation) -> None:
    _web(space, replicas=2)
    _wait_leads(space, to=2)

    def versions() -> list[str]:
        found = [space.get("service", "web") or {}, *_slices(space)]
        return [each["metadata"]["resourceVersion"] for each in found]

    before = versions()
    serving.stop_operator()
    serving.start_operator()
    # The new one has looked at all of it once this is done.
    space.kubectl("patch", "ww", "web", "--type=merge", "-p", '{"spec": {"revisionHistoryLimit": 3}}')
    space.wait(
        lambda: (
            (body := space.get("ww", "web") or {})["status"]["observedGeneration"] == body["metadata"]["generation"]
        ),
        "the change is observed",
    )
    assert versions() == before


def test_what_is_asked_of_the_service_is_so_and_restarts_nothing(space: Workspace) -> None:
    _web(space, http={"service": {"annotations": {"a": "1", "b": "2"}}})
    _wait_leads(space, to=1)
    began = _instances(space)[0]["containerID"]
    space.kubectl("annotate", "service", "web", "theirs=stays")

    def annotations(name: str = "web") -> Json:
        found: Json = (space.get("service", name) or {"metadata": {}})["metadata"].get("annotations") or {}
        return {key: value for key, value in found.items() if "/" not in key}

    _web(space, http={"port": 8080, "service": {"type": "NodePort", "annotations": {"a": "3"}}})
    space.wait(lambda: annotations() == {"a": "3", "theirs": "stays"}, "annotations follow")
    service = space.get("service", "web") or {}
    (port,) = service["spec"]["ports"]
    assert (service["spec"]["type"], port["port"]) == ("NodePort", 8080)
    assert port["nodePort"]
    url = f"http://web.{space.namespace}.svc:8080"
    space.wait(lambda: (space.get("ww", "web") or {})["status"]["url"] == url, "its URL has the port")

    _web(space, http={"service": {"name": "other"}})
    space.wait(lambda: space.get("service", "other") and not space.get("service", "web"), "it has the other name")
    service = space.get("service", "other") or {}
    (port,) = service["spec"]["ports"]
    assert (service["spec"]["type"], port["port"], "nodePort" in port) == ("ClusterIP", 80, False)
    space.wait(lambda: len(_endpoints(space, "other")) == 1, "it leads there")
    assert [each["containerID"] for each in _instances(space)] == [began]


def test_a_service_that_is_somebody_elses_is_left_as_it_is(space: Workspace) -> None:
    theirs = {"selector": {"app": "theirs"}, "ports": [{"port": 99}]}
    space.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": theirs})
    before = space.get("service", "web")
    _web(space)
    space.kubectl("wait", "--for=condition=Ready", "ww/web", "--timeout=60s")
    space.wait(lambda: _service_ready(space).get("reason") == "ServiceNotOurs", "it is told")
    assert "url" not in (space.get("ww", "web") or {})["status"]
    space.wait(lambda: "ServiceNotOurs" in dict(space.events("web")), "by an Event too")
    assert space.get("service", "web") == before
    space.kubectl("delete", "service", "web")
    space.kubectl("wait", "--for=condition=ServiceReady", "ww/web", "--timeout=60s")
    _wait_leads(space, to=1)


def test_a_service_that_is_refused_is_told_in_the_api_servers_words(space: Workspace) -> None:
    quota = {"hard": {"services.nodeports": "0"}}
    space.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": quota})
    space.wait(lambda: (space.get("quota", "none") or {}).get("status", {}).get("hard"), "the quota counts")
    _web(space, http={"service": {"type": "NodePort"}})
    space.wait(lambda: _service_ready(space).get("reason") == "ServiceRefused", "it is told")
    assert "services.nodeports" in _service_ready(space)["message"]


def test_without_http_the_service_goes(space: Workspace) -> None:
    _web(space)
    _wait_leads(space, to=1)
    space.kubectl("patch", "ww", "web", "--type=merge", "-p", '{"spec": {"http": null}}')
    space.wait(lambda: not space.get("service", "web") and not _slices(space), "it is gone")
    space.wait(lambda: not _service_ready(space), "nothing is said of it any more")


def test_what_somebody_else_changed_is_put_right(space: Workspace) -> None:
    _web(space, replicas=2)
    _wait_leads(space, to=2)
    first, second = (each["metadata"]["name"] for each in _slices(space))
    space.kubectl("delete", "endpointslice", first)
    space.kubectl("patch", "endpointslice", second, "--type=merge", "-p", '{"endpoints": []}')
    space.kubectl("patch", "service", "web", "--type=merge", "-p", '{"spec": {"selector": {"app": "x"}}}')
    _wait_leads(space, to=2)
    space.wait(lambda: "selector" not in (space.get("service", "web") or {})["spec"], "it has no selector")
    space.kubectl("delete", "service", "web")
    space.wait(lambda: space.get("service", "web") is not None, "it is there again")
    _wait_leads(space, to=2)


def test_no_request_fails_while_instances_are_replaced_and_taken_away(space: Workspace) -> None:
    _web(space, replicas=3)
    _wait_leads(space, to=3)
    old = set(_endpoints(space))
    with _Client(space) as client:
        space.kubectl("patch", "ww", "web", "--type=merge", "-p", '{"spec": {"args": ["another"]}}')
        space.wait(lambda: "leaving" in _endpoints(space).values(), "one that leaves is marked")
        _wait_leads(space, to=3)
        assert not old & set(_endpoints(space)), "all were replaced"
        space.kubectl("scale", "ww", "web", "--replicas=1")
        _wait_leads(space, to=1)
        after = client.answers
        space.wait(lambda: client.answers > after + 20, "the one that is left answers")
    assert client.failures == []
    assert client.answers > 100


def test_the_service_leads_to_none_whose_readiness_probe_fails(space: Workspace) -> None:
    every = {"periodSeconds": 1, "failureThreshold": 1}
    _web(space, readinessProbe={"httpGet": {"path": "/trap"}, **every})
    failed = ("Unhealthy", "Readiness probe failed: HTTP probe failed with statuscode: 500")
    space.wait(lambda: failed in space.events("web"), "it is told")
    assert _endpoints(space) == {}
    _web(
        space,
        name="ill",
        livenessProbe={"httpGet": {"path": "/trap"}, **every},
        startupProbe={"tcpSocket": {}, **every},
    )
    space.wait(lambda: space.instance("ill").get("restarts", 0) >= 1, "it is run again")
    _web(space, readinessProbe={"httpGet": {"path": "/"}, **every})
    _wait_leads(space, to=1)


# --- Pods whose ports are taken ---------------------------------------------------------------------------------------


def _deploy(space: Workspace, image: str, port: int, *, replicas: int, **container: Any) -> None:
    # Its node is cordoned, to keep other tests' Pods away.
    tolerations = [*TOLERATIONS, {"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]
    ports = [{"name": "http", "containerPort": port}]
    labels = {"app": "web"}
    template = {
        "metadata": {"labels": labels},
        "spec": {
            "tolerations": tolerations,
            "nodeSelector": {"kubernetes.io/hostname": NAME},
            "terminationGracePeriodSeconds": 5,
            "containers": [{"name": "main", "image": image, "ports": ports, **container}],
        },
    }
    space.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "web"},
            "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template},
        }
    )


def _where(space: Workspace) -> list[str]:
    """All that is ready in all slices of the Service, Kubernetes' own and ours."""
    listed = ["get", "endpointslices", "-n", space.namespace, "-l", "kubernetes.io/service-name=web", "-o", "json"]
    return [
        f"{address}:{port['port']}"
        for each in json.loads(space.cluster.kubectl(*listed).stdout)["items"]
        for port in each["ports"] or ()
        for endpoint in each["endpoints"] or ()
        for address in endpoint["addresses"]
        if endpoint["conditions"]["ready"]
    ]


def test_twenty_pods_with_one_port_all_serve_on_one_runner(space: Workspace) -> None:
    image, port = space.push(SERVER), free_port()
    spec = {"selector": {"app": "web"}, "ports": [{"name": "web", "port": 80, "targetPort": "http"}]}
    space.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": spec})
    _deploy(space, image, port, replicas=20)
    space.kubectl("rollout", "status", "deployment/web", "--timeout=120s", timeout=130)

    def leads_to(number: int) -> bool:
        found = _where(space)
        return len(found) == len(set(found)) == number

    space.wait(lambda: leads_to(20), "the Service leads to all twenty")
    assert f"{ADDRESS}:{port}" in _where(space), "one has the port itself"
    for address in _where(space):
        assert httpx.get(f"http://{address.replace(ADDRESS, '127.0.0.1')}/").text == GREETING
    space.kubectl("scale", "deployment", "web", "--replicas=4")
    space.wait(lambda: leads_to(4), "it follows")
    before = set(_where(space))
    _deploy(space, image, port, replicas=4, args=["another"])
    space.kubectl("rollout", "status", "deployment/web", "--timeout=120s", timeout=130)
    space.wait(lambda: leads_to(4) and set(_where(space)) != before, "it follows an update, with no room for its ports")
    space.kubectl("patch", "service", "web", "--type=merge", "-p", '{"spec": {"selector": {"app": "other"}}}')
    space.wait(lambda: leads_to(0), "another selector selects others")
    space.kubectl("patch", "service", "web", "--type=merge", "-p", '{"spec": {"selector": {"app": "web"}}}')
    space.wait(lambda: leads_to(4), "and these again")
