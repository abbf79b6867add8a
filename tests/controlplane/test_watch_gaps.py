"""410 Gone: what came after the version that was seen last is forgotten, and everything has to be read again.

A cluster of its own, whose API server has no watch cache: what etcd has forgotten, nobody remembers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes.aio import client, config

from tests.cluster.local import LocalCluster
from tests.cluster.registry import Registry
from tests.support import slices, wat
from tests.support.installation import Installation, folder_of
from tests.support.kube import Json, Workspace
from tests.support.relay import Relay
from wherry_operator.kube import Kube, KubeError

SLEEPS = {"inline": wat.sleeps()}

NODE = "node-of-runner-a"
"""Where the runner says that it is."""


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest, kubernetes_binaries: Path) -> Iterator[LocalCluster]:
    """A control plane whose API server remembers nothing by itself."""
    with LocalCluster(flags={"kube-apiserver": ["--watch-cache=false"]}) as running:
        yield running
        running.keep_logs = request.session.testsfailed > 0


@pytest.fixture(scope="module")
def way(cluster: LocalCluster) -> Iterator[Relay]:
    """The operator's way to the API server."""
    relay = Relay(cluster.server.removeprefix("https://"))
    yield relay
    relay.close()


@pytest.fixture(scope="module")
def installation(request: pytest.FixtureRequest, cluster: LocalCluster, way: Relay) -> Iterator[Installation]:
    """An operator that compares with a LIST only at its start and an hour later: till then it has nothing but watches."""
    with folder_of("gaps", request.session) as directory:
        running = Installation(cluster, directory, operator_flags=["--resync-seconds", "3600"], serves_logs=False)
        running.api_route = f"https://{way.address}"
        with running:
            yield running


@pytest.fixture
def space(installation: Installation, registry: Registry, namespace: str, tmp_path: Path) -> Iterator[Workspace]:
    """A namespace; at the end the operator that was there at the beginning still has to be: it may not mend a gap by ending."""
    operator = installation.operator
    yield Workspace(installation, registry, namespace, tmp_path)
    assert operator is None or operator.running, operator.tail(20)


class Gap:
    """Between its two ends the operator hears nothing, and afterwards nobody can tell it what it missed."""

    def __init__(self, space: Workspace, way: Relay, path: str) -> None:
        self._space = space
        self._way = way
        self._path = path

    def __enter__(self) -> None:
        self._version = self._ask("?limit=1")["metadata"]["resourceVersion"]
        self._way.cut()

    def __exit__(self, *_: object) -> None:
        cluster = self._space.cluster
        assert isinstance(cluster, LocalCluster)
        # Two things have to come after the version that is asked for: etcd keeps the last one, and if that is the next, nothing
        # is missing.
        self._space.kubectl("create", "configmap", f"after-{self._version}")
        self._space.kubectl("delete", "configmap", f"after-{self._version}")
        cluster.forget_history()
        # Soon: an operator that can't renew its Lease for ten seconds ends.
        self._way.mend()
        told = self._ask(f"?watch=1&timeoutSeconds=5&resourceVersion={self._version}")
        assert (told["type"], told["object"]["code"]) == ("ERROR", 410), told

    def _ask(self, query: str) -> Json:
        answer: Json = json.loads(self._space.cluster.kubectl("get", "--raw", f"{self._path}{query}").stdout)
        return answer


WORKLOADS = "/apis/wherry.dev/v1alpha1/wasmworkloads"


def asked(installation: Installation, verb: str) -> int:
    """How often the operator has asked to list, or to watch, all WasmWorkloads."""
    cluster = installation.cluster
    assert isinstance(cluster, LocalCluster)
    user = f"system:serviceaccount:{installation.namespace}:wherry-operator"
    # A watch's end may be far away.
    stage = "ResponseStarted" if verb == "watch" else "ResponseComplete"
    requests = map(json.loads, cluster.audit_log.read_text().splitlines())
    return sum(
        each["verb"] == verb
        and each["stage"] == stage
        and each["user"]["username"] == user
        and each["objectRef"]["resource"] == "wasmworkloads"
        for each in requests
    )


def ready(space: Workspace, name: str, text: str) -> None:
    space.wait(lambda: _status(space, name).get("ready") == text, f"{text} of {name} are ready")


def _status(space: Workspace, name: str) -> Json:
    found: Json = (space.get("ww", name) or {}).get("status") or {}
    return found


def test_what_was_made_and_changed_meanwhile_is_seen(space: Workspace, way: Relay) -> None:
    space.workload("changed", module=SLEEPS)
    ready(space, "changed", "1/1")
    before = _status(space, "changed")["instances"][0]["containerID"]
    listed, watched = (asked(space.installation, verb) for verb in ("list", "watch"))
    with Gap(space, way, WORKLOADS):
        space.workload("made", module=SLEEPS)
        space.kubectl("scale", "ww/changed", "--replicas=3")
    ready(space, "made", "1/1")
    ready(space, "changed", "3/3")
    assert before in [item["containerID"] for item in _status(space, "changed")["instances"]]
    # More often where a busy machine answers one of them too late.
    assert asked(space.installation, "watch") >= watched + 2, "from where it was, which is refused, and from a new LIST"
    assert asked(space.installation, "list") > listed, "everything was read again"


def test_the_operators_own_client_tells_of_it(space: Workspace, way: Relay) -> None:
    async def run() -> None:
        configuration = client.Configuration()
        file = str(space.installation.operator_kubeconfig)
        await config.load_kube_config(file, client_configuration=configuration, persist_config=False)
        kube = Kube(configuration)
        try:
            _, version = await kube.list_objects("/api/v1/nodes")
            with Gap(space, way, "/api/v1/nodes"):
                pass
            with pytest.raises(KubeError) as told:
                await anext(kube.watch("/api/v1/nodes", version))
            assert told.value.status == 410
        finally:
            await kube.close()

    asyncio.run(run())


def test_a_node_that_changed_and_one_that_went_meanwhile_are_seen(space: Workspace, way: Relay) -> None:
    """Not by kopf, but by a watch of our own (`watching.py`)."""
    space.workload("expelled", module=SLEEPS)
    ready(space, "expelled", "1/1")
    with Gap(space, way, "/api/v1/nodes"):
        taints = [{"key": "maintenance", "value": "now", "effect": "NoExecute"}]
        space.cluster.apply(
            {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}, "spec": {"taints": taints}}
        )
    space.wait(lambda: "FailedPlacement" in dict(space.events("expelled")), "it had to leave, and says so")
    with Gap(space, way, "/api/v1/nodes"):
        space.cluster.kubectl("delete", "node", NODE)
    ready(space, "expelled", "1/1")


def test_slices_that_changed_and_went_meanwhile_are_seen(space: Workspace, installation: Installation) -> None:
    async def run() -> None:
        for name in ("first", "second"):
            slices.put(installation, name, "192.0.2.1", name)
        async with slices.discovering(installation) as (found, way):
            await found.until(first="192.0.2.1", second="192.0.2.1")
            path = f"/apis/discovery.k8s.io/v1/namespaces/{installation.namespace}/endpointslices"
            with Gap(space, way, path):
                slices.put(installation, "first", "192.0.2.9", "first")
                slices.remove(installation, "second")
            await found.until(first="192.0.2.9")

    try:
        asyncio.run(run())
    finally:
        slices.remove(installation, "first", "second")


def test_what_was_deleted_meanwhile_is_stopped_by_the_next_list(
    installation: Installation, registry: Registry, namespace: str, tmp_path: Path, way: Relay
) -> None:
    """kopf never tells of a deletion that it missed. Of one whose name has passed on it need not."""
    installation.stop_operator()
    installation.operator_flags = ["--resync-seconds", "5"]
    installation.start_operator()
    space = Workspace(installation, registry, namespace, tmp_path)
    uids = []
    for name in ("gone", "replaced"):
        space.workload(name, module=SLEEPS)
        ready(space, name, "1/1")
        uids.append((space.get("ww", name) or {})["metadata"]["uid"])
    operator = installation.operator
    assert operator is not None
    with Gap(space, way, WORKLOADS):
        space.kubectl("delete", "ww", "gone", "replaced")
        space.workload("replaced", module=SLEEPS)
    runner = installation.runners["runner-a"]
    for uid in uids:

        def stopped(uid: str = uid) -> bool:
            return not runner.traces(uid)

        space.wait(stopped, "its runner has nothing of it")
    ready(space, "replaced", "1/1")
    assert operator.running
