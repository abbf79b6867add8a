"""What is waited for before something is said not to be there, and for how long."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from wherry_operator import known
from wherry_operator.known import Knowledge


class Runners:
    def __init__(self) -> None:
        self.heard = asyncio.Event()

    async def wait_first_sync(self, timeout_seconds: float) -> bool:
        assert timeout_seconds == known.FIRST_SYNC_SECONDS
        await self.heard.wait()
        return True


class Scene:
    def __init__(self, *, discovers: bool = True, leads: bool = True) -> None:
        self.registry = Runners()
        self.found = asyncio.Event()
        self.listed = asyncio.Event()
        parts: dict[str, Any] = {
            "registry": self.registry,
            "discovery": SimpleNamespace(synced=self.found) if discovers else None,
            "resync": SimpleNamespace(once_complete=self.listed),
            "leadership": SimpleNamespace(held=leads),
        }
        self.knowledge = Knowledge(**parts)


async def waits(task: asyncio.Task[Any]) -> bool:
    for _ in range(10):
        await asyncio.sleep(0)
    return not task.done()


def test_runners_are_first_found_and_then_heard() -> None:
    async def scenario() -> None:
        scene = Scene()
        asked = asyncio.create_task(scene.knowledge.runners())
        assert await waits(asked)
        scene.registry.heard.set()
        assert await waits(asked)
        scene.found.set()
        await asked
        static = Scene(discovers=False)
        static.registry.heard.set()
        await static.knowledge.runners()

    asyncio.run(scenario())


def test_a_discovery_that_brings_nothing_holds_up_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "FIRST_SYNC_SECONDS", 0.01)

    async def scenario() -> None:
        scene = Scene()
        scene.registry.heard.set()
        await scene.knowledge.runners()

    asyncio.run(scenario())


def test_pods_are_known_after_a_list_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        scene = Scene()
        asked = asyncio.create_task(scene.knowledge.pods())
        assert await waits(asked)
        scene.listed.set()
        assert await asked == ""
        # Who has lost the lead still knows them, for the moments until it ends.
        lost = Scene(leads=False)
        assert "does not lead" in await lost.knowledge.pods()
        lost.listed.set()
        assert await lost.knowledge.pods() == ""
        monkeypatch.setattr(known, "PODS_SECONDS", 0.01)
        assert "has begun to lead" in await Scene().knowledge.pods()

    asyncio.run(scenario())
