"""Which runner gets a workload."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wherry_operator.models import Container, PodSpec, Toleration, WasmWorkloadSpec
from wherry_operator.placement import Demand, Needs, NodeFacts, NoRunner, RunnerFacts, Taint, choose
from wherry_runner import protocol

MI = 1 << 20
GPU = Taint("gpu", "yes", "NoSchedule")


def runner(name: str, workloads: int = 0, *, ready: bool = True, most: int = 10, **more: Any) -> RunnerFacts:
    return RunnerFacts(name=name, ready=ready, workloads=workloads, max_workloads=most, **more)


def node(zone: str = "", *taints: Taint, **more: Any) -> NodeFacts:
    return NodeFacts(labels={"zone": zone} if zone else {}, taints=taints, **more)


def tolerates(**toleration: Any) -> tuple[Toleration, ...]:
    return (Toleration(**toleration),)


@pytest.mark.parametrize(
    ("runners", "expected"),
    [
        ([runner("b"), runner("a")], "a"),
        ([runner("a", 2), runner("b", 1)], "b"),
        ([runner("a", 2, most=100), runner("b", 1, most=10)], "a"),  # by share, not by number
        ([runner("a", ready=False), runner("b", 9)], "b"),
        ([runner("a", 10), runner("b", 9)], "b"),
        ([runner("a", most=0), runner("b", 9)], "b"),
        # What is scarcest counts.
        ([runner("a", 1, kept=Demand(memory_bytes=90), memory_bytes=100), runner("b", 5)], "b"),
        ([runner("a", 1, kept=Demand(cpu_millicores=90), cpu_millicores=100), runner("b", 5)], "b"),
        ([runner("a", 4, kept=Demand(defaults=4), default_memory_bytes=20, memory_bytes=100), runner("b", 5)], "b"),
    ],
)
def test_the_least_loaded_runner_that_fits_is_chosen(runners: list[RunnerFacts], expected: str) -> None:
    assert choose(runners) == expected


@pytest.mark.parametrize("what", ["memory", "disk", "processes"])
def test_a_runner_that_is_short_of_something_is_left_alone(what: str) -> None:
    short = runner("a", short_of=frozenset({what}))
    assert choose([short, runner("b", 9)], Needs(demand=Demand(defaults=1))) == "b"
    if what == "memory":
        assert choose([short, runner("b", 9)], Needs(demand=Demand(memory_bytes=MI))) == "a", "it says what it needs"


@pytest.mark.parametrize(
    ("runners", "needs", "message"),
    [
        ([], {}, "0/0 runners fit: the operator knows of no runner"),
        ([runner("a", ready=False)], {}, "0/1 runners fit: 1 is not ready"),
        ([runner("a", leaving=True)], {}, "0/1 runners fit: 1 is about to end"),
        ([runner("a", short_of=frozenset({"disk"}))], {}, "0/1 runners fit: 1 is short of disk"),
        (
            [runner("a", short_of=frozenset({"memory"})), runner("b", short_of=frozenset({"memory"}))],
            {"demand": Demand(defaults=1)},
            "0/2 runners fit: 2 are short of memory",
        ),
        ([runner("a", 10), runner("b", 11)], {}, "0/2 runners fit: 2 are full"),
        (
            [runner("a", 10), runner("b", ready=False), runner("c", ready=False)],
            {},
            "0/3 runners fit: 2 are not ready, 1 is full",
        ),
        (
            [runner("a", memory_bytes=5), runner("b", memory_bytes=9), runner("c", ready=False)],
            {"demand": Demand(memory_bytes=10)},
            "0/3 runners fit: 2 lack memory, 1 is not ready",
        ),
        (
            [runner("a", memory_bytes=5), runner("b", memory_bytes=9, default_memory_bytes=10)],
            {"demand": Demand(memory_bytes=6, defaults=1)},
            "0/2 runners fit: 2 lack memory",
        ),
        (
            [runner("a", kept=Demand(cpu_millicores=900), cpu_millicores=1000)],
            {"demand": Demand(cpu_millicores=200)},
            "0/1 runners fit: 1 lacks cpu",
        ),
        (
            [runner("a", node=node("x")), runner("b", node=node("y")), runner("c")],
            {"node_selector": {"zone": "z"}},
            "0/3 runners fit: 3 don't match the node selector",
        ),
        (
            [runner("a", node=node(unschedulable=True)), runner("b", node=node(ready=False))],
            {},
            "0/2 runners fit: 1 is on a node that is not ready, 1 is on an unschedulable node",
        ),
        (
            [runner("a", node=node("", GPU)), runner("b", node=node("", GPU)), runner("c", 10)],
            {"tolerations": tolerates(key="gpu", value="no")},
            "0/3 runners fit: 2 have an untolerated taint {gpu: yes}, 1 is full",
        ),
    ],
)
def test_where_none_fits_the_reasons_are_counted(
    runners: list[RunnerFacts], needs: dict[str, Any], message: str
) -> None:
    with pytest.raises(NoRunner) as refused:
        choose(runners, Needs(**needs))
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("toleration", "expected"),
    [
        ({"key": "gpu", "operator": "Exists"}, True),
        ({"key": "gpu", "value": "yes"}, True),
        ({"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoSchedule"}, True),
        ({"operator": "Exists"}, True),
        ({"key": "gpu", "value": "no"}, False),
        ({"key": "gpu"}, False),
        ({"key": "gpu", "operator": "Exists", "effect": "NoExecute"}, False),
        ({"key": "other", "operator": "Exists"}, False),
    ],
)
def test_taints_are_tolerated_as_the_scheduler_has_it(toleration: dict[str, Any], expected: bool) -> None:
    assert GPU.tolerated(tolerates(**toleration)) is expected


def test_a_taint_that_only_prefers_is_a_weight() -> None:
    disliked = node("", Taint("spot", "", "PreferNoSchedule"))
    assert choose([runner("a", node=disliked), runner("b", 9)]) == "b"
    assert choose([runner("a", node=disliked)]) == "a"
    tolerated = Needs(tolerations=tolerates(key="spot", operator="Exists"))
    assert choose([runner("a", node=disliked), runner("b", 9)], tolerated) == "a"


def test_a_cordoned_node_takes_what_tolerates_that() -> None:
    cordoned = [runner("a", node=node(unschedulable=True))]
    taint = "node.kubernetes.io/unschedulable"
    assert choose(cordoned, Needs(tolerations=tolerates(key=taint, operator="Exists"))) == "a"


def test_instances_are_spread_over_the_values_of_a_label_before_load_counts() -> None:
    runners = [
        runner("a", 5, node=node("x"), alike=1),
        runner("b", 0, node=node("x")),
        runner("c", 9, node=node("y")),
        runner("d", 0),
    ]
    assert choose(runners, Needs(topology_key="zone")) == "c"
    assert choose(runners) == "b", "by default each runner is a part of its own"
    assert choose(runners[3:], Needs(topology_key="zone")) == "d", "without the label it is only the last choice"


def test_a_runner_with_the_module_is_preferred_where_that_costs_no_balance() -> None:
    needs = Needs(module="m")
    assert choose([runner("a"), runner("b", has_module=True)], needs) == "b"
    assert choose([runner("a", most=1000), runner("b", 9, most=1000, has_module=True)], needs) == "b"
    assert choose([runner("a"), runner("b", 1, has_module=True)], needs) == "a"
    assert choose([runner("a"), runner("b", has_module=True)]) == "a"


def test_what_must_leave_a_node_and_what_may_stay() -> None:
    maintenance = node("", Taint("maintenance", "", "NoExecute"))
    taint = maintenance.expels(())
    assert taint is not None
    assert str(taint) == "maintenance: "
    assert maintenance.expels(tolerates(key="maintenance", operator="Exists")) is None
    assert node("", GPU).expels(()) is None
    # Whether the runner answers is better known than by these.
    assert node("", Taint("node.kubernetes.io/unreachable", "", "NoExecute")).expels(()) is None


def test_a_node_as_the_api_server_has_it() -> None:
    facts = NodeFacts.of(
        {
            "metadata": {"name": "n-1", "labels": {"zone": "x"}},
            "spec": {"unschedulable": True, "taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]},
            "status": {"conditions": [{"type": "Ready", "status": "Unknown"}]},
        }
    )
    assert facts == NodeFacts(
        labels={"zone": "x", "kubernetes.io/hostname": "n-1"}, taints=(GPU,), ready=False, unschedulable=True
    )
    assert NodeFacts.unknown("n-2") == NodeFacts(labels={"kubernetes.io/hostname": "n-2"})
    off = {"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}
    assert NodeFacts.of({"metadata": {"name": "n"}, "spec": {"taints": [off]}}).out_of_service


def wire(name: str, **resources: int) -> dict[str, Any]:
    return {
        "name": name,
        "module": protocol.ImageModule(reference="i"),
        "resources": protocol.Resources(**resources),
    }


def test_a_workload_is_weighed_at_its_largest_moment() -> None:
    workload = protocol.Workload(
        owner=protocol.Owner(kind="Pod", namespace="n", name="p", uid="u"),
        init_containers=(
            protocol.InitContainer(**wire("side", memory_request_bytes=10), restart_policy="Always"),
            protocol.InitContainer(**wire("first", memory_request_bytes=100, cpu_request_millicores=5)),
        ),
        containers=(
            protocol.Container(**wire("a", memory_limit_bytes=20, cpu_limit_millicores=3)),
            protocol.Container(**wire("b")),
        ),
    )
    assert Demand.of(workload) == Demand(memory_bytes=110, defaults=1, cpu_millicores=5)
    assert Needs.of(WasmWorkloadSpec.model_validate({"module": {}}), workload).module == "i"


def test_a_pod_is_weighed_by_its_spec() -> None:
    resources = {"requests": {"cpu": "250m"}, "limits": {"memory": "1Mi"}}
    spec = PodSpec(containers=(Container(name="a", image="i", resources=resources), Container(name="b")))
    needs = Needs.of_pod(spec)
    assert (needs.demand, needs.module) == (Demand(memory_bytes=MI, defaults=1, cpu_millicores=250), "i")
    bad = Container(name="a", resources={"requests": {"cpu": "much"}})
    assert Needs.of_pod(PodSpec(containers=(bad,))).demand == Demand()


def test_a_runner_where_its_port_is_free_is_better_and_one_where_it_is_taken_will_do() -> None:
    needs = Needs(ports=frozenset({8080}))
    taken, free = runner("a", ports={8080}), runner("b", 5, ports={80})
    assert choose([taken, free], needs) == "b"
    assert choose([taken, runner("b", ports={80, 8080})], needs) == "a"


def test_a_pods_ports_are_all_that_it_names_for_a_command_may_listen_on_each() -> None:
    def ports(*found: tuple[str | None, int, str | None]) -> frozenset[int]:
        given = [{"name": name, "containerPort": number, "protocol": kind} for name, number, kind in found]
        container = Container.model_validate({"name": "a", "image": "i", "ports": given})
        return Needs.of_pod(PodSpec(containers=(container,))).ports

    assert ports() == frozenset()
    assert ports(("dns", 53, "UDP"), (None, 8080, None), (None, 9090, "TCP")) == {53, 8080, 9090}
    assert ports(("assoc", 9090, "SCTP"), ("http", 8080, "TCP")) == {8080}


TAINTS = st.lists(
    st.builds(
        Taint,
        st.sampled_from("kl"),
        st.sampled_from("vw"),
        st.sampled_from(["NoSchedule", "PreferNoSchedule", "NoExecute"]),
    ),
    max_size=2,
).map(tuple)
NODES = st.builds(
    NodeFacts,
    labels=st.fixed_dictionaries({}, optional={"zone": st.sampled_from("xyz"), "kubernetes.io/hostname": st.just("h")}),
    taints=TAINTS,
    ready=st.booleans(),
    unschedulable=st.booleans(),
)
DEMANDS = st.builds(Demand, st.integers(0, 60), st.integers(0, 1), st.integers(0, 60))
FACTS = st.builds(
    RunnerFacts,
    name=st.sampled_from("abcdef"),
    ready=st.booleans(),
    workloads=st.integers(0, 5),
    max_workloads=st.integers(0, 5),
    kept=DEMANDS,
    memory_bytes=st.integers(0, 100),
    cpu_millicores=st.integers(0, 100),
    default_memory_bytes=st.integers(0, 10),
    node=NODES,
    alike=st.integers(0, 3),
    has_module=st.booleans(),
)
NEEDS = st.builds(
    Needs,
    demand=DEMANDS,
    node_selector=st.fixed_dictionaries({}, optional={"zone": st.sampled_from("xy")}),
    tolerations=st.lists(
        st.builds(
            Toleration, key=st.sampled_from("kl"), operator=st.sampled_from(["Exists", "Equal"]), value=st.just("v")
        ),
        max_size=2,
    ).map(tuple),
    topology_key=st.sampled_from(["zone", "kubernetes.io/hostname"]),
    module=st.sampled_from(["", "m"]),
)
FLEETS = st.lists(FACTS, min_size=1, max_size=6, unique_by=lambda facts: facts.name)


@settings(deadline=None)
@given(FLEETS, NEEDS, st.randoms())
def test_whoever_is_chosen_fits_and_the_order_of_the_runners_does_not_matter(
    runners: list[RunnerFacts], needs: Needs, random: Any
) -> None:
    alone = {facts.name for facts in runners if _fits(facts, needs)}
    try:
        name = choose(runners, needs)
    except NoRunner as refused:
        assert not alone
        counts = [int(part.split()[0]) for part in str(refused).partition(": ")[2].split(", ")]
        assert sum(counts) == len(runners), "each refusal is counted once"
        return
    assert name in alone
    random.shuffle(runners)
    assert choose(runners, needs) == name
    # No other that fits is better in what counts first.
    chosen = next(facts for facts in runners if facts.name == name)
    others = [facts for facts in runners if facts.name in alone and facts.node == chosen.node]
    if needs.topology_key == "zone" and not needs.module:
        assert chosen.load <= min(facts.load for facts in others) + 1 / 50


def _fits(facts: RunnerFacts, needs: Needs) -> bool:
    """By the rules once more, in another way."""
    node, demand = facts.node, facts.kept + needs.demand
    memory = demand.memory_bytes + demand.defaults * facts.default_memory_bytes
    more = needs.demand.memory_bytes + needs.demand.defaults * facts.default_memory_bytes
    return all(
        (
            facts.ready,
            node.ready,
            not node.unschedulable,
            needs.node_selector.items() <= node.labels.items(),
            all(taint.effect == "PreferNoSchedule" or taint.tolerated(needs.tolerations) for taint in node.taints),
            facts.workloads < facts.max_workloads,
            memory <= facts.memory_bytes or not more,
            demand.cpu_millicores <= facts.cpu_millicores or not needs.demand.cpu_millicores,
        )
    )


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 40), st.booleans())
def test_instances_that_come_one_by_one_end_up_evenly(runners: int, instances: int, compiled: bool) -> None:
    fleet = {name: runner(name, most=100, has_module=compiled and name == "a") for name in "abcdef"[:runners]}
    for _ in range(instances):
        name = choose(list(fleet.values()), Needs(module="m"))
        fleet[name] = replace(fleet[name], workloads=fleet[name].workloads + 1, alike=fleet[name].alike + 1)
    counts = Counter({name: facts.workloads for name, facts in fleet.items()})
    assert max(counts.values()) - min(counts.values()) <= 1
