"""An operator that has rights on the objects of some namespaces only, and takes them from there."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.cluster.local import LocalCluster
from tests.support import wat
from tests.support.another import another
from tests.support.kube import Json, Workspace

NAME = "narrow"


@contextlib.contextmanager
def _namespace(space: Workspace, prefix: str) -> Iterator[str]:
    name = f"{prefix}-{secrets.token_hex(3)}"
    space.cluster.kubectl("create", "namespace", name)
    try:
        yield name
    finally:
        space.cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def second(space: Workspace) -> Iterator[str]:
    """Another namespace that was named to it."""
    with _namespace(space, "second") as name:
        yield name


@pytest.fixture
def third(space: Workspace) -> Iterator[str]:
    """One that nobody named to it."""
    with _namespace(space, "third") as name:
        yield name


def _requests(cluster: LocalCluster, here: Workspace) -> list[Json]:
    """What the operator has asked of the API server so far, as itself."""
    user = f"system:serviceaccount:{here.installation.namespace}:wherry-operator"
    records = map(json.loads, cluster.audit_log.read_text().splitlines())
    return [each for each in records if each["user"]["username"] == user and "impersonatedUser" not in each]


def test_it_serves_the_named_namespaces_and_asks_for_no_others(
    cluster: LocalCluster, space: Workspace, second: str, third: str, tmp_path: Path
) -> None:
    named = [space.namespace, second]
    # What went while it was away is found by two LISTs.
    with another(space, tmp_path, NAME, "narrow-a", namespaces=named, operator_flags=["--resync-seconds", "1"]) as here:
        there = Workspace(here.installation, space.registry, second, tmp_path)
        outside = Workspace(here.installation, space.registry, third, tmp_path)
        for each in (here, there, outside):
            each.workload("says", module={"inline": wat.exits(0)}, className=NAME, restartPolicy="Never")
            each.workload("serves", module={"inline": wat.sleeps()}, className=NAME, http={"port": 80})
            each.pod("says", each.push(wat.exits(0)), spec={"restartPolicy": "Never"})
        for each in (here, there):
            each.wait_phase("says", "Succeeded", kind="wasmworkload")
            each.wait_phase("says", "Succeeded")
            each.wait(lambda each=each: each.get("service", "serves") is not None, "it has a Service")  # type: ignore[misc]
            assert each.logs("says") == "a line\n"
        # Whoever comes later is seen too, and whoever goes.
        there.workload("goes", module={"inline": wat.sleeps()}, className=NAME)
        there.wait_phase("goes", "Running", kind="wasmworkload")
        uid = str((there.get("wasmworkload", "goes") or {})["metadata"]["uid"])
        runner = here.installation.runners["narrow-a"]
        assert runner.traces(uid)
        here.installation.stop_operator()
        there.kubectl("delete", "ww", "goes")
        here.installation.start_operator()
        there.wait(lambda: not runner.traces(uid), "what was deleted meanwhile is stopped")
        assert "conditions" not in (outside.get("wasmworkload", "says") or {}).get("status", {})
        assert (outside.get("pod", "says") or {})["status"]["phase"] == "Pending"
        asked = _requests(cluster, here)
        outside.kubectl("delete", "pod", "says", "--force", "--grace-period=0")
    refused = [(each["verb"], each["requestURI"]) for each in asked if each["responseStatus"]["code"] == 403]
    assert refused == []
    references = [each["objectRef"] for each in asked if "objectRef" in each]
    kinds = ("pods", "wasmworkloads", "services", "endpointslices", "controllerrevisions", "events")
    of_objects = [each for each in references if each["resource"] in kinds]
    assert {each["resource"] for each in of_objects} >= {"pods", "wasmworkloads", "services", "endpointslices"}
    assert {each.get("namespace", "") for each in of_objects} <= {*named, here.installation.namespace}


def test_a_namespace_that_takes_its_rights_back_stands_in_no_others_way(
    space: Workspace, second: str, tmp_path: Path
) -> None:
    """As when it is deleted and made again: the RoleBinding is its own."""
    name = "refused"
    named = [space.namespace, second]
    flags = ["--resync-seconds", "1"]
    with another(space, tmp_path, name, "refused-a", namespaces=named, operator_flags=flags) as here:
        there = Workspace(here.installation, space.registry, second, tmp_path)
        runner = here.installation.runners["refused-a"]
        for each in (here, there):
            each.workload("stays", module={"inline": wat.sleeps()}, className=name)
            each.wait_phase("stays", "Running", kind="wasmworkload")
        gone, kept = (str((each.get("wasmworkload", "stays") or {})["metadata"]["uid"]) for each in (here, there))
        binding = there.kubectl("get", "rolebinding", f"wherry-objects-{name}", "-o", "yaml")
        here.installation.stop_operator()
        there.kubectl("delete", "rolebinding", f"wherry-objects-{name}")
        here.kubectl("delete", "ww", "stays")
        here.installation.start_operator()
        here.workload("serves", module={"inline": wat.sleeps()}, className=name, http={"port": 80})
        here.wait(lambda: here.get("service", "serves") is not None, "it has a Service")
        here.wait(lambda: not runner.traces(gone), "what was deleted meanwhile is stopped")
        assert runner.traces(kept)
        log = (here.installation.logs / f"operator-{name}.log").read_text()
        assert f"namespace {second} is left as it is" in log
        made = yaml.safe_load(binding)
        made["metadata"] = {"name": made["metadata"]["name"], "namespace": second}
        there.apply(made)
        there.workload("later", module={"inline": wat.exits(0)}, className=name, restartPolicy="Never")
        there.wait_phase("later", "Succeeded", kind="wasmworkload")
