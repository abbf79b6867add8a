"""Which Pods the node rejects: by a kubelet's rules, and only for what waiting can't change."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.test_reconcile_pod import Scene
from wherry_operator.admission import matches, resources
from wherry_operator.placement import Demand

Json = dict[str, Any]

LABELS = {"kubernetes.io/arch": "wasm32-wasi", "generation": "7"}


def required(*terms: Json) -> Json:
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}}}
    return {"affinity": affinity}


def expressions(*each: tuple[str, str, list[str]]) -> Json:
    return {"matchExpressions": [{"key": key, "operator": how, "values": values} for key, how, values in each]}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, True),
        ({"nodeSelector": {"kubernetes.io/arch": "wasm32-wasi"}}, True),
        ({"nodeSelector": {"kubernetes.io/arch": "amd64"}}, False),
        ({"nodeSelector": {"no": "such"}}, False),
        ({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}}, True),
        (required(), False),
        (required({}), False),
        (required(expressions(("no", "Exists", []))), False),
        (required(expressions(("no", "Exists", [])), expressions(("generation", "In", ["6", "7"]))), True),
        (required(expressions(("generation", "In", ["7"]), ("no", "Exists", []))), False),
        (required(expressions(("kubernetes.io/arch", "NotIn", ["amd64"]))), True),
        (required(expressions(("no", "NotIn", ["such"]), ("no", "DoesNotExist", []))), True),
        (required(expressions(("generation", "Gt", ["6"]), ("generation", "Lt", ["8"]))), True),
        (required(expressions(("generation", "Gt", ["7"]))), False),
        (required(expressions(("kubernetes.io/arch", "Lt", ["7"]))), False),
        (required(expressions(("generation", "Like", ["7"]))), False),
        (required({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["wherry"]}]}), True),
        (required({"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["wherry"]}]}), False),
        ({"nodeSelector": {"no": "such"}, **required(expressions(("generation", "Exists", [])))}, False),
    ],
)
def test_selector_and_required_affinity(spec: Json, expected: bool) -> None:
    assert matches(spec, "wherry", LABELS) is expected


def test_what_all_runners_together_do_not_have_is_named_in_the_kubelets_words() -> None:
    offered, kept = Demand(100, 0, 2000), Demand(30, 0, 50)
    assert resources(Demand(100, 0, 2000), kept=kept, offered=offered) is None
    cpu = resources(Demand(101, 0, 64000), kept=kept, offered=offered)
    assert cpu is not None and cpu.reason == "OutOfcpu"
    assert cpu.message == "Node didn't have enough resource: cpu, requested: 64000, used: 50, capacity: 2000"
    memory = resources(Demand(101), kept=kept, offered=offered)
    assert memory is not None and memory.reason == "OutOfmemory"


def asks(cpu: str) -> Json:
    main = {"name": "main", "image": "i", "resources": {"requests": {"cpu": cpu}}}
    return {"containers": [main]}


def test_a_pod_that_the_node_can_never_hold_fails_at_once() -> None:
    scene = Scene(**asks("1000"))
    assert scene.reconcile() is None
    assert (scene.status["phase"], scene.status["reason"]) == ("Failed", "OutOfcpu")
    assert scene.status["message"].startswith(
        "Pod was rejected: Node didn't have enough resource: cpu, requested: 1000000"
    )
    assert [reason for reason, _ in scene.events] == ["OutOfcpu"]
    assert "containerStatuses" not in scene.status and not scene.one.puts and not scene.two.puts


def test_as_long_as_one_runner_has_not_said_what_it_offers_nothing_is_rejected() -> None:
    scene = Scene(**asks("1000"))
    scene.registry.states()[1].info = None
    assert scene.reconcile() is not None
    assert scene.status["phase"] == "Pending"


def test_a_selector_is_held_against_the_live_nodes_labels() -> None:
    scene = Scene(nodeSelector={"pool": "blue"})
    scene.kube.put("/api/v1/nodes/wherry", {"metadata": {"name": "wherry", "labels": {"pool": "blue"}}})
    scene.reconcile()
    assert scene.status["phase"] == "Pending"
    scene = Scene(nodeSelector={"pool": "blue"})
    scene.kube.put("/api/v1/nodes/wherry", {"metadata": {"name": "wherry", "labels": {"pool": "green"}}})
    scene.reconcile()
    assert (scene.status["phase"], scene.status["reason"]) == ("Failed", "NodeAffinity")


def test_who_was_taken_is_never_rejected() -> None:
    scene = Scene().run()
    scene.change(lambda body: body["spec"].update(nodeSelector={"no": "such"}))
    scene.kube.put("/api/v1/nodes/wherry", {"metadata": {"name": "wherry", "labels": {}}})
    scene.succeed()
    scene.reconcile()
    assert scene.status["phase"] == "Running"
