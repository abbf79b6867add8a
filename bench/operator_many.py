"""Ten thousand objects that run on simulated runners: what an operator costs that has nothing to do, and its start."""

from __future__ import annotations

import asyncio
import json
import sys
import urllib.request
from collections import Counter
from functools import partial
from pathlib import Path

from bench.operator_scene import Api, Scene, now_ms
from bench.operator_starts import spec
from bench.scene import cpu_seconds, rss_bytes
from bench.table import Report
from tests.cluster.ports import Reservation
from tests.cluster.processes import Process
from tests.support.installation import Installation
from tests.support.runner import environment

OBJECTS = 10_000
RUNNERS = 4
IDLE_SECONDS = 60.0
MIB = 1 << 20


async def measure(scene: Scene, report: Report) -> None:
    """Create them, start the operator anew, and let it idle."""
    ports = {f"simulated-{number}": Reservation() for number in range(RUNNERS)}
    flags = [word for name, port in ports.items() for word in ("--runner", f"{name}=https://{port.address}")]
    start = partial(_start_runners, ports=ports)
    try:
        with scene.installation(simulated=start, operator_flags=flags) as installation:
            async with scene.api() as api, api.watching():
                began = now_ms()
                await api.create_many([f"many-{number}" for number in range(OBJECTS)], **spec())
                await api.when(lambda: api.running() == OBJECTS)
                report.figure(
                    f"{OBJECTS} objects on simulated runners, Running per second",
                    OBJECTS * 1e3 / (now_ms() - began),
                    "/s",
                )
                await _written_down(api)
                await asyncio.to_thread(installation.stop_operator)
                began = now_ms()
                installation.start_operator(wait=False)
                await _reconciled(installation)
                report.figure("operator start-up to all reconciled", (now_ms() - began) / 1e3, "s", at_most=30)
                assert installation.operator is not None
                pid = installation.operator.pid
                await asyncio.sleep(10)  # what follows a start is no idling
                asked, spent = _requests(scene.cluster.audit_log, installation), cpu_seconds([pid])
                await asyncio.sleep(IDLE_SECONDS)
                report.figure("operator, resident", rss_bytes(pid) / MIB, "MiB", at_most=350)
                idle = (cpu_seconds([pid]) - spent) / IDLE_SECONDS * 100
                report.figure("operator idle, of one core", idle, "%", at_most=2)
                for what, count in (_requests(scene.cluster.audit_log, installation) - asked).most_common():
                    report.figure(f"operator idle, requests: {what}", count / IDLE_SECONDS * 60, "/min")
    finally:
        for port in ports.values():
            port.release()


def _start_runners(installation: Installation, ports: dict[str, Reservation]) -> Process:
    pki = installation.certificates
    command = [
        sys.executable, "-m", "bench.simulated_runner", str(installation.directory / "simulated"),
        str(pki.runner.cert), str(pki.runner.key), str(pki.ca.cert_file),
        *(f"{name}={port.port}" for name, port in ports.items()),
    ]  # fmt: skip
    log = installation.logs / "simulated.log"
    process = Process.start("simulated runners", command, log=log, env=environment())
    process.wait_until(lambda: "ready" in log.read_text(), what="ready", timeout_seconds=60)
    return process


async def _written_down(api: Api) -> None:
    """Until the last object's revision is remembered, which is done at leisure."""
    path = f"/apis/apps/v1/namespaces/{api.namespace}/controllerrevisions?limit=1"
    while True:
        found = await api.ask("GET", path)
        if 1 + (found["metadata"].get("remainingItemCount") or 0) >= OBJECTS:
            return
        await asyncio.sleep(1)


async def _reconciled(installation: Installation) -> None:
    """Until the operator knows every object, has looked at it and has nothing left to do, by its own metrics."""
    while True:
        found = await asyncio.to_thread(_metrics, installation)
        if found and found["known"] >= OBJECTS and found["looked"] >= OBJECTS and found["depth"] == 0:
            return
        await asyncio.sleep(0.1)


def _metrics(installation: Installation) -> dict[str, float] | None:
    try:
        with urllib.request.urlopen(f"http://{installation.health_address}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return None
    sums = {"known": 0.0, "looked": 0.0, "depth": 0.0}
    for line in lines:
        name, _, value = line.rpartition(" ")
        if name.startswith('wherry_operator_reconcile_duration_seconds_count{kind="WasmWorkload"'):
            sums["looked"] += float(value)
        elif name.startswith('wherry_operator_workloads{phase="Running"'):
            sums["known"] += float(value)
        elif name.startswith("wherry_operator_queue_depth"):
            sums["depth"] += float(value)
    return sums


def _requests(audit_log: Path, installation: Installation) -> Counter[str]:
    """What the operator has asked the API server for, by verb and resource; leases apart, which have their own rhythm."""
    user = f"system:serviceaccount:{installation.namespace}:wherry-operator"
    found: Counter[str] = Counter()
    with open(audit_log) as lines:
        for line in lines:
            if user not in line:
                continue
            record = json.loads(line)
            if record.get("stage") == "ResponseComplete" and record["user"]["username"] == user:
                found[f"{record['verb']} {record.get('objectRef', {}).get('resource', record['requestURI'])}"] += 1
    return found
