"""Pods through the real scheduler: one after the other, a Deployment of 500, and the log of one that floods it."""

from __future__ import annotations

import asyncio
import os
import subprocess
from typing import Any

from bench import guests
from bench.operator_scene import PODS, Api, Scene, cpu_by_part, now_ms
from bench.scene import cpu_seconds, rss_bytes
from bench.table import Report, p50, p99
from tests.support import wat
from tests.support.kube import pod

ROUNDS = 100
BURST = 500

LINE_BYTES = 4096
LINES = 100_000
READ_BYTES = 1 << 20
MIB = 1 << 20


async def starts(scene: Scene, report: Report) -> None:
    """One after the other, from the POST to Running seen by a watch."""
    with scene.installation(), scene.image(wat.sleeps()) as image:
        async with scene.api(PODS) as api, api.watching():
            took = []
            for number in range(ROUNDS + 5):
                name, began = f"one-{number}", now_ms()
                await api.ask("POST", api.path(), pod(name, image))
                await api.when(lambda name=name: api.phase(name) == "Running")  # type: ignore[misc]
                if number >= 5:  # the first of each warm caches, here and there
                    took.append(now_ms() - began)
            report.figure("Pod, POST to Running seen by a watch, p50", p50(took), "ms", at_most=150)
            report.figure("the same, p99 in relation to p50", p99(took) / p50(took), "x")


async def burst(scene: Scene, report: Report) -> None:
    """A Deployment, from its POST until all of its Pods are Running."""
    with scene.installation(), scene.image(wat.sleeps()) as image:
        async with scene.api(PODS) as api, api.watching():
            await api.ask("POST", api.path(), pod("warm", image))
            await api.when(lambda: api.running() == 1)
            before, began = cpu_by_part(), now_ms()
            await api.ask("POST", f"/apis/apps/v1/namespaces/{api.namespace}/deployments", _deployment(image))
            await api.when(lambda: api.running() == BURST + 1)
            running = BURST / (now_ms() - began) * 1e3
            bound_ms = max(seen.bound_ms or 0.0 for seen in api.seen.values()) - began
            bound = BURST / bound_ms * 1e3
            spent = {part: seconds - before.get(part, 0.0) for part, seconds in cpu_by_part().items()}
            report.figure(f"Deployment of {BURST}: bound by the scheduler per second", bound, "/s")
            # Of the two, whichever is lower; the last one bound can't be Running at the same moment.
            report.figure(f"Deployment of {BURST}: Running per second", running, "/s", at_least=min(50.0, 0.9 * bound))
            for part in ("operator", "runner and guests", "API server", "etcd"):
                report.figure(f"CPU for each of them, {part}", spent[part] / BURST * 1e3, "ms")
            made = [seen for name, seen in api.seen.items() if name != "warm"]
            writes = sum(seen.versions - 2 for seen in made)  # its creation and its binding are others'
            report.figure("status writes for each of them", writes / BURST, "", at_most=4)
            report.figure("Events for each of them", await _node_events(api) / BURST, "")


async def log(scene: Scene, report: Report) -> None:
    """`kubectl logs -f` of a guest that writes as fast as it can, to its end."""
    # Large enough for all of it: what a rotation drops could not be counted.
    flags = ("--log-file-bytes", str(1 << 30), "--log-budget-bytes", str(8 << 30))
    text = guests.lines(LINE_BYTES, LINES)
    with scene.installation(runner_flags=flags) as installation, scene.image(text) as image:
        assert installation.operator is not None
        operator, runner = installation.operator.pid, _pid(installation.runners["runner-a"].process)
        async with scene.api(PODS) as api, api.watching():
            rates, resident, spent = [], 0, [0.0, 0.0]
            for number in range(3):
                name = f"floods-{number}"
                await api.ask("POST", api.path(), pod(name, image, spec={"restartPolicy": "Never"}))
                await api.when(lambda name=name: api.phase(name) in ("Running", "Succeeded"))  # type: ignore[misc]
                before, began = (cpu_seconds([operator]), cpu_seconds([runner])), now_ms()
                size, largest = await asyncio.to_thread(_read_log, scene, api.namespace, name, operator)
                seconds = (now_ms() - began) / 1e3
                # Of a log that breaks off, say with an operator that lost its Lease, an API server tells kubectl nothing.
                assert installation.operator.running, "the operator has ended"
                assert size == LINE_BYTES * LINES, f"{size} bytes came of {LINE_BYTES * LINES}"
                if number:
                    rates.append(size / 1e6 / seconds)
                    spent[0] += (cpu_seconds([operator]) - before[0]) / size * 1e9
                    spent[1] += (cpu_seconds([runner]) - before[1]) / size * 1e9
                resident = max(resident, largest)
            report.figure("kubectl logs -f, lines of 4 KiB", max(rates), "MB/s", at_least=50)
            report.figure("CPU of it, operator", spent[0] / len(rates), "s/GB")
            report.figure("CPU of it, runner's supervisor", spent[1] / len(rates), "s/GB")
            report.figure("operator meanwhile, resident at most", resident / MIB, "MiB", at_most=350)


def _read_log(scene: Scene, namespace: str, name: str, operator: int) -> tuple[int, int]:
    """How much `kubectl logs -f` gives up to its end, and the operator's largest resident size meanwhile."""
    command = [
        str(scene.cluster.kubectl_program()), f"--kubeconfig={scene.cluster.kubeconfig}",
        "logs", "-f", name, f"--namespace={namespace}",
    ]  # fmt: skip
    size = largest = 0
    with subprocess.Popen(command, stdout=subprocess.PIPE) as kubectl:
        assert kubectl.stdout is not None
        while piece := os.read(kubectl.stdout.fileno(), READ_BYTES):
            size += len(piece)
            if size % (16 * MIB) < len(piece):
                largest = max(largest, rss_bytes(operator))
    if kubectl.returncode:
        raise RuntimeError(f"kubectl logs ended with exit code {kubectl.returncode}")
    return size, max(largest, rss_bytes(operator))


def _pid(process: Any) -> int:
    assert process is not None
    return int(process.pid)


def _deployment(image: str) -> dict[str, Any]:
    labels = {"app": "burst"}
    template = {"metadata": {"labels": labels}, "spec": pod("", image)["spec"]}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "burst"},
        "spec": {"replicas": BURST, "selector": {"matchLabels": labels}, "template": template},
    }


async def _node_events(api: Api) -> int:
    """Events of the operator; others' are not counted."""
    found = await api.ask("GET", f"/api/v1/namespaces/{api.namespace}/events")
    ours = [item for item in found["items"] if (item.get("source") or {}).get("component") == "wherry"]
    return sum(item.get("count") or 1 for item in ours)
