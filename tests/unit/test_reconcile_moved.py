"""Services that select Pods whose ports had to be others, with an API server and runners of dictionaries."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from tests.support.fake_kube import FakeKube
from tests.support.fake_runners import FakeRegistry, FakeRunner, deliveries
from tests.support.told import START
from wherry_operator.kube import Kube
from wherry_operator.objects import ObjectStore
from wherry_operator.queue import Key
from wherry_operator.reconcile.moved import MovedPods
from wherry_operator.reconcile.services import Services
from wherry_runner import protocol
from wherry_runner.protocol import Owner, Running, Workload, WorkloadPut

Json = dict[str, Any]

LABELS = {"app": "web"}
KEY = Key("Service", "boats", "web")
SERVICE = "/api/v1/namespaces/boats/services/web"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/boats/endpointslices"

PORTS = [{"name": "http", "containerPort": 8080}]


class Scene:
    """One runner, and Pods on it; a Service that selects them."""

    def __init__(self, **spec: Any) -> None:
        self.kube = FakeKube()
        self.runner = FakeRunner("one")
        self.deliveries = deliveries(FakeRegistry(self.runner))
        self.store = ObjectStore("Pod", accepts=lambda _: True, on_change=lambda *_: None)
        self.complete = True
        self.due: list[Key] = []
        kube = cast("Kube", self.kube)
        self.services = Services(kube, node_name="wherry", on_change=self.due.append)
        self.moved = MovedPods(
            services=self.services,
            pods=self.store,
            deliveries=self.deliveries,
            complete=lambda: self.complete,
            on_change=self.due.append,
        )
        spec = {"selector": LABELS, "ports": [{"name": "web", "port": 80, "targetPort": "http"}], **spec}
        self.kube.put(SERVICE, {"metadata": {"name": "web", "namespace": "boats", "uid": "s-1"}, "spec": spec})
        asyncio.run(self.services.load())
        self.due.clear()

    def pod(self, name: str, port: int | None, *, ready: bool = True, leaving: bool = False, **labels: str) -> None:
        """A Pod that serves on this port of its runner."""
        container = {"name": "main", "image": "i", "ports": PORTS}
        metadata = {"name": name, "namespace": "boats", "uid": name, "labels": labels or LABELS}
        body: Json = {
            "metadata": {**metadata, **({"deletionTimestamp": "2026-01-02T03:04:05Z"} if leaving else {})},
            "spec": {"containers": [container]},
            "status": {"conditions": [{"type": "Ready", "status": "True" if ready else "False"}]},
        }
        module = protocol.ImageModule(reference="i")
        workload = Workload(
            owner=Owner(kind="Pod", namespace="boats", name=name, uid=name),
            containers=(protocol.Container(name="main", module=module),),
        )
        put = WorkloadPut(epoch=1, sequence=1, template_hash="t", workload=workload)
        self.runner.puts.append((name, put))
        running = protocol.ContainerStatus(name="main", state=Running(started_at=START), ready=ready, port=port)
        self.runner.says(name, running)
        self.body = self.kube.put(f"/api/v1/namespaces/boats/pods/{name}", body)
        self.store.seen(self.body)
        self.moved.noted(self.body)

    def look(self) -> float | None:
        self.due.clear()
        return asyncio.run(self._look())

    async def _look(self) -> float | None:
        return await self.moved.reconcile(KEY)

    @property
    def endpoints(self) -> dict[tuple[str, int], tuple[bool, bool]]:
        """Ready and terminating, by port's name and number."""
        found = {}
        for path, body in self.kube.objects.items():
            if path.startswith(SLICES):
                for each in body["endpoints"]:
                    assert (each["addresses"], each["nodeName"]) == (["10.0.1.111"], "node-one")
                    how = each["conditions"]
                    for port in body["ports"]:
                        found[port["name"], port["port"]] = (how["ready"], how["terminating"])
        return found


def test_a_service_leads_to_those_that_kubernetes_leaves_out() -> None:
    scene = Scene()
    scene.pod("own", 8080)
    scene.pod("a", 20_001)
    scene.pod("b", 20_002)
    scene.pod("other", 20_003, app="other")
    scene.pod("starts", None)
    assert scene.due == [KEY, KEY]
    scene.look()
    assert scene.endpoints == {("web", 20_001): (True, False), ("web", 20_002): (True, False)}
    scene.kube.calls.clear()
    scene.look()
    assert scene.kube.calls == []


def test_a_pod_that_changes_has_its_services_looked_at_and_no_others() -> None:
    scene = Scene()
    scene.pod("a", 20_001)
    scene.look()
    scene.moved.noted(scene.body)
    assert scene.due == [], "it is as it was"
    scene.pod("a", 20_001, ready=False)
    assert scene.due == [KEY]
    scene.look()
    assert scene.endpoints == {}
    scene.pod("a", 20_001, leaving=True)
    scene.look()
    assert scene.endpoints == {("web", 20_001): (False, True)}
    scene.pod("a", 8080)
    assert scene.due == [KEY]
    scene.look()
    assert scene.endpoints == {}
    scene.pod("a", 20_001)
    scene.look()
    scene.store.seen(scene.kube.remove("/api/v1/namespaces/boats/pods/a"), deleted=True)
    scene.moved.gone("boats", "a")
    assert scene.due == [KEY]
    scene.look()
    assert scene.endpoints == {}


@pytest.mark.parametrize(
    ("ports", "expected"),
    [
        ([{"port": 80, "targetPort": 8080}], {("", 20_001)}),
        ([{"port": 8080}], {("", 20_001)}),
        ([{"port": 80, "targetPort": 9090}], set()),
        ([{"port": 80, "targetPort": "nothing"}], set()),
        ([{"port": 80, "targetPort": "http", "protocol": "UDP"}], set()),
        (
            [{"name": "a", "port": 1, "targetPort": "http"}, {"name": "b", "port": 2, "targetPort": 8080}],
            {("a", 20_001), ("b", 20_001)},
        ),
        (
            [{"name": "a", "port": 1, "targetPort": "http"}, {"name": "b", "port": 2, "targetPort": 1}],
            {("a", 20_001)},
        ),
    ],
)
def test_a_target_is_a_ports_name_or_its_number(ports: list[Json], expected: set[tuple[str, int]]) -> None:
    scene = Scene(ports=ports)
    scene.pod("a", 20_001)
    scene.look()
    assert set(scene.endpoints) == expected


def test_one_that_wants_unready_addresses_gets_them() -> None:
    scene = Scene(publishNotReadyAddresses=True, clusterIP="None")
    scene.pod("a", 20_001, ready=False, leaving=True)
    scene.look()
    assert scene.endpoints == {("web", 20_001): (True, False)}
    (body,) = (body for path, body in scene.kube.objects.items() if path.startswith(SLICES))
    assert body["metadata"]["labels"]["service.kubernetes.io/headless"] == ""


def test_nothing_is_taken_away_before_all_pods_are_known() -> None:
    scene = Scene()
    scene.pod("a", 20_001)
    scene.look()
    scene.store = ObjectStore("Pod", accepts=lambda _: True, on_change=lambda *_: None)
    scene.complete = False
    again = scene.look()
    assert again is not None
    assert set(scene.endpoints) == {("web", 20_001)}


def test_who_selects_nobody_of_ours_is_not_worth_a_look() -> None:
    scene = Scene()
    assert not scene.moved.concerns(KEY)
    scene.pod("a", 20_001)
    assert scene.moved.concerns(KEY)
    assert not scene.moved.concerns(Key("Service", "boats", "unknown"))
