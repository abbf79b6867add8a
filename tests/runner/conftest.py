"""What the tests of executors share: each runs on every executor there is."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.guests import build
from tests.runner.harness import Bench, bench
from tests.support import apart, executors

Scenario = Callable[[Bench], Awaitable[None]]
Play = Callable[[Scenario], None]

SCENARIO_SECONDS = 120.0
"""What no scenario needs: one that waits for something that doesn't come fails with a traceback of where."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test runs on each executor, or on the native one alone, where only that can do what it is about."""
    if "executor" in metafunc.fixturenames:
        alone = metafunc.definition.get_closest_marker("native_only") is not None
        metafunc.parametrize("executor", ["native"] if alone else executors.EXECUTORS, indirect=True)


@pytest.fixture
def executor(request: pytest.FixtureRequest) -> str:
    """The name of an executor. With CI=true one that is missing is a failure (tests/conftest.py)."""
    name: str = request.param
    if reason := executors.why_not(name):
        pytest.skip(reason)
    return name


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all: what was compiled stays compiled."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def wasi_03() -> bool:
    """Whether benches run WASI 0.3 too."""
    return False


@pytest.fixture
def play(executor: str, tmp_path: Path, store: Path, wasi_03: bool) -> Play:
    """Plays a scenario on a bench of its own, and looks for what is left behind."""

    def run(scenario: Scenario) -> None:
        async def whole() -> None:
            async with (
                asyncio.timeout(SCENARIO_SECONDS),
                bench(executor, tmp_path, store, wasi_03=wasi_03) as opened,
            ):
                await scenario(opened)

        before = children()
        asyncio.run(whole())
        assert children() == before, "processes were left behind"

    return run


@pytest.fixture
def play_apart(executor: str, tmp_path: Path, store: Path, wasi_03: bool) -> Play:
    """Plays a scenario on a network of its own, where `apart.ADDRESSES` are."""

    def play(scenario: Scenario) -> None:
        async def whole() -> None:
            async with (
                asyncio.timeout(SCENARIO_SECONDS),
                bench(executor, tmp_path, store, wasi_03=wasi_03) as opened,
            ):
                await scenario(opened)

        apart.run(lambda: asyncio.run(whole()))

    return play


@pytest.fixture(scope="session")
def tool() -> bytes:
    """The guest that its arguments script (`tests/guests/tool.c`)."""
    return build.c("tool")


def children() -> set[str]:
    """This process's children."""
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
