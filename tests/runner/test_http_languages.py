"""A server that was written in C: what other languages' tools make of their sources is served as it is."""

from __future__ import annotations

import shutil

import pytest

from tests.guests import build
from tests.runner.conftest import Play
from tests.runner.harness import Bench
from tests.runner.test_http import served
from tests.support import executors


@pytest.fixture
def executor() -> str:
    """The only one that serves."""
    if reason := executors.why_not("native"):
        pytest.skip(reason)
    return "native"


def test_a_server_in_c_answers_each_request(play: Play) -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm is missing, by which the tool comes that makes a component of C's module")
    module = build.server_in_c()

    async def scenario(opened: Bench) -> None:
        async with served(opened, module=module) as server:
            for number in range(3):
                assert await server.get(f"/{number}?x=1") == (200, f"hello from C: /{number}?x=1")
            assert (server.counts.answers[1], server.counts.failed) == (3, 0)

    play(scenario)
