"""Many at once on one real node: a burst of Pods, what an idle one takes of memory, and thousands beside a control plane."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from bench.container_pods import MIB, PODS, mem_available
from bench.container_pods import pod as container_pod
from bench.node_scene import WORKLOADS, NodeScene, taken, wasm_pod
from bench.table import Report
from tests.cluster.errors import ClusterError
from tests.support import kube, wat

MANY_TIMEOUT_SECONDS = 1_800.0
"""For thousands."""

FEW = 20
"""Of either kind, before it is measured what each further one takes: modules are compiled, images unpacked then."""


def burst(scene: NodeScene, report: Report, count: int) -> None:
    """Pods of either kind as fast as they can be posted: how many are Running in a second."""
    rates = {}
    for kind, body in _kinds(scene).items():
        scene.progress.step(f"{count} Pods of a {kind} at once")
        with _pods(scene, f"warm-{kind}", 2, body):
            pass
        with _pods(scene, f"burst-{kind}", count, body) as seconds:
            rates[kind] = count / seconds
    report.ratio(f"burst of {count} Pods, Running per second", rates["module"], rates["container"], "/s", at_least=10)


def memory(scene: NodeScene, report: Report, containers: int, workloads: int) -> None:
    """What each further idle one takes, by PSS and by the fall of MemAvailable; and all that is ours, for each."""
    scene.progress.step(f"memory of {containers} Pods of a container")
    with _pods(scene, "few", FEW, _kinds(scene)["container"]):
        before = taken(scene.account)
        with _pods(scene, "more", containers, _kinds(scene)["container"]):
            peer = _less(taken(scene.account), before, containers)
    scene.progress.step(f"memory of {workloads} WasmWorkloads")
    none = taken(scene.account)
    with _workloads(scene, "few", FEW):
        before = taken(scene.account)
        with _workloads(scene, "more", workloads - FEW):
            after = taken(scene.account)
    each = _less(after, before, workloads - FEW)
    ours = {"PSS": (after["PSS"] - scene.empty["PSS"]) / workloads}
    # What control plane and kubelet grew by in between is other sections' and containers' as well: of that time our own
    # processes count alone.
    grown = none["PSS"] - scene.installed["PSS"]
    ours["MemAvailable"] = (
        scene.installed["MemAvailable"] - scene.empty["MemAvailable"] + grown
        + after["MemAvailable"] - none["MemAvailable"]
    ) / workloads  # fmt: skip
    for how in ("PSS", "MemAvailable"):
        if min(each[how], ours[how], peer[how]) <= 0:
            raise ClusterError(f"memory by {how}: others' work disturbed it; measure on a machine that is left alone")
        name = "PSS" if how == "PSS" else "fall of MemAvailable"
        report.ratio(f"each further idle workload, {name}", each[how] / 1024, peer[how] / 1024, "KiB", at_most=0.07)
        report.ratio(
            f"all of ours divided by {workloads} workloads, {name}", ours[how] / 1024, peer[how] / 1024, "KiB",
            at_most=0.1,
        )  # fmt: skip


def many(scene: NodeScene, report: Report, pods: int, objects: int) -> None:
    """So many Pods and so many WasmWorkloads, all Running on one node beside its control plane."""
    scene.progress.step(f"{pods} Pods of a module and {objects} WasmWorkloads")
    with (
        _pods(scene, "many", pods, _kinds(scene)["module"]) as for_pods,
        _workloads(scene, "many", objects) as for_objects,
    ):
        running = _running(scene)
        report.figure("Pods of modules that are Running at the same time", running["pods"], "", at_least=pods)
        report.figure("WasmWorkloads that are Running beside them", running["ww"], "", at_least=objects)
        report.figure(f"{pods} Pods, from the first POST to all Running", for_pods, "s")
        report.figure(f"{objects} WasmWorkloads, likewise", for_objects, "s")
        report.figure("MemAvailable then", mem_available() / MIB, "MiB")


def _kinds(scene: NodeScene) -> dict[str, Callable[[str], dict[str, Any]]]:
    return {
        "container": lambda name: container_pod(name, scene.container_image),
        "module": lambda name: wasm_pod(name, scene.wasm_image),
    }


@contextlib.contextmanager
def _pods(scene: NodeScene, prefix: str, count: int, body: Callable[[str], dict[str, Any]]) -> Iterator[float]:
    """So many Pods, Running; seconds from the first POST to the last Running. Gone, with their processes, at the end."""
    idle = scene.idle()
    names = {f"{prefix}-{number}" for number in range(count)}
    with contextlib.closing(scene.api.connection()) as connection:
        began = time.monotonic()
        for name in names:
            scene.api.ask(connection, "POST", PODS, body(name))
    scene.pods.wait(lambda: scene.pods.seen.keys() >= names, timeout_seconds=MANY_TIMEOUT_SECONDS)
    yield max(scene.pods.seen[name] for name in names) - began
    with contextlib.closing(scene.api.connection()) as connection:
        for name in names:
            scene.api.ask(connection, "DELETE", f"{PODS}/{name}")
    scene.pods.wait(lambda: scene.pods.gone >= names, timeout_seconds=MANY_TIMEOUT_SECONDS)
    scene.wait_idle(idle)


@contextlib.contextmanager
def _workloads(scene: NodeScene, prefix: str, count: int) -> Iterator[float]:
    """The same of WasmWorkloads."""
    idle = scene.idle()
    names = {f"{prefix}-{number}" for number in range(count)}
    module = {"inline": wat.sleeps("ready")}
    with contextlib.closing(scene.api.connection()) as connection:
        began = time.monotonic()
        for name in names:
            body = kube.workload(name, module=module, terminationGracePeriodSeconds=0)
            scene.api.ask(connection, "POST", WORKLOADS, body)
    scene.workloads.wait(lambda: scene.workloads.seen.keys() >= names, timeout_seconds=MANY_TIMEOUT_SECONDS)
    yield max(scene.workloads.seen[name] for name in names) - began
    with contextlib.closing(scene.api.connection()) as connection:
        for name in names:
            scene.api.ask(connection, "DELETE", f"{WORKLOADS}/{name}")
    scene.workloads.wait(lambda: scene.workloads.gone >= names, timeout_seconds=MANY_TIMEOUT_SECONDS)
    scene.wait_idle(idle)


def _less(after: dict[str, float], before: dict[str, float], count: int) -> dict[str, float]:
    """What came to it, for each of so many."""
    return {how: (after[how] - before[how]) / count for how in after}


def _running(scene: NodeScene) -> dict[str, int]:
    """How many are Running now, as the API server has it."""
    found = {}
    for kind in ("pods", "ww"):
        where = ["-n", "bench", "-o", "jsonpath={.items[*].status.phase}"]
        found[kind] = scene.cluster.kubectl("get", kind, *where, timeout=300).stdout.split().count("Running")
    return found
