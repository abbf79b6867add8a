"""From a POST to a status, one at a time, a thousand at once, and a thousand instances of one object."""

from __future__ import annotations

import asyncio
from typing import Any

from bench.operator_scene import Api, Scene, cpu_by_part, now_ms
from bench.table import Report, p50, p99
from tests.support import wat

ROUNDS = 100
BURST = 1000
REPLICAS = 1000
NOBODY = "nobody"
"""A class that no installation takes."""


def spec(**more: Any) -> dict[str, Any]:
    """A workload that says a word and sleeps."""
    return {"module": {"inline": wat.sleeps()}, **more}


async def starts(scene: Scene, report: Report) -> None:
    """One after the other, alternating with two bare writes."""
    with scene.installation():
        async with scene.api() as api, api.watching():
            ours, peer = [], []
            for number in range(ROUNDS + 5):
                began = now_ms()
                await _two_writes(api, f"bare-{number}")
                middle = now_ms()
                name = f"one-{number}"
                await api.create(name, **spec())
                await api.when(lambda name=name: api.phase(name) == "Running")  # type: ignore[misc]
                if number >= 5:  # the first of each warm caches, here and there
                    peer.append(middle - began)
                    ours.append(now_ms() - middle)
            report.ratio("POST to Running seen by a watch, p50", p50(ours), p50(peer), "ms", at_most=3.0)
            report.figure("POST to Running seen by a watch, p50", p50(ours), "ms", at_most=100)
            report.figure("the same, p99 in relation to p50", p99(ours) / p50(ours), "x", at_most=5)


async def _two_writes(api: Api, name: str) -> None:
    """What a start can't do without: an object and its status, each with its watch event."""
    await api.create(name, **spec(className=NOBODY))
    await api.when(lambda: name in api.seen)
    await api.ask("PATCH", api.path(name, subresource="status"), {"status": {"phase": "Running"}})
    await api.when(lambda: api.phase(name) == "Running")


async def burst(scene: Scene, report: Report) -> None:
    """A thousand objects as fast as the API server takes them."""
    with scene.installation():
        async with scene.api() as api, api.watching():
            await api.create("warm", **spec())
            await api.when(lambda: api.running() == 1)
            before, began = cpu_by_part(), now_ms()
            names = [f"burst-{number}" for number in range(BURST)]
            creating = asyncio.create_task(api.create_many(names, **spec()))
            await api.when(lambda: api.running() == BURST + 1)
            took = (now_ms() - began) / 1e3
            await creating
            spent = {part: seconds - before.get(part, 0.0) for part, seconds in cpu_by_part().items()}
            report.figure(f"{BURST} objects at once, Running per second", BURST / took, "/s", at_least=100)
            for part in ("operator", "runner and guests", "API server", "etcd"):
                report.figure(f"CPU for each of them, {part}", spent[part] / BURST * 1e3, "ms")
            writes = [api.seen[name].versions - 1 for name in names]
            report.figure("status writes for each of them", sum(writes) / BURST, "", at_most=2)
            report.figure("status writes, at most", max(writes), "")
            report.figure("Events for each of them", await api.events() / BURST, "")
            status = api.seen[names[0]].newest["status"]
    bare = await _bare_writes(scene, names, status)
    report.ratio("the same, against their bare writes with nobody beside them", BURST / took, bare, "/s")


async def _bare_writes(scene: Scene, names: list[str], status: dict[str, Any]) -> float:
    """What a burst can't do without: each object and its status, by as many writers at once; seen per second."""
    async with scene.api() as api, api.watching():
        began = now_ms()
        await api.create_many(names, **spec(className=NOBODY))
        await api.set_status_of_many(names, status)
        await api.when(lambda: api.running() == len(names))
        return len(names) / (now_ms() - began) * 1e3


async def scale(scene: Scene, report: Report) -> None:
    """One object of a thousand instances."""
    with scene.installation():
        async with scene.api() as api, api.watching():
            name = "large"
            await api.create(name, **spec(replicas=1))
            await api.when(lambda: api.phase(name) == "Running")
            versions, began = api.seen[name].versions, now_ms()
            await api.ask("PATCH", api.path(name, subresource="scale"), {"spec": {"replicas": REPLICAS}})

            def ready() -> int:
                return int((api.seen[name].newest.get("status") or {}).get("readyReplicas") or 0)

            await api.when(lambda: ready() == REPLICAS)
            took = (now_ms() - began) / 1e3
            writes = api.seen[name].versions - versions - 1  # the first is the scaling itself
            report.figure(f"scaled to {REPLICAS}: instances ready per second", REPLICAS / took, "/s")
            report.figure(f"scaled to {REPLICAS}: status writes per second", writes / took, "/s", at_most=5)
            report.figure(
                f"scaled to {REPLICAS}: the object's size", api.seen[name].largest_bytes / 1024, "KiB", at_most=64
            )
            report.figure(f"scaled to {REPLICAS}: Events", await api.events(), "")
