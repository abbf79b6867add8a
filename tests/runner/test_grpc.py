"""gRPC: a guest that answers it, asked by Google's own library; HTTP/2 and its trailers are between the two."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from typing import Any

import pytest

from tests.guests import build
from tests.runner.conftest import Play
from tests.runner.harness import Bench
from tests.runner.test_http import served
from wherry_runner.lives import grpc_health

pytestmark = pytest.mark.native_only
"""The only one that serves."""

HERE = "127.0.0.1"


@pytest.fixture
def module() -> bytes:
    """`tests/guests/grpc.c`."""
    if shutil.which("npm") is None:
        pytest.skip("npm is missing, by which the tool comes that makes a component of C's module")
    return build.server_in_c("grpc")


def test_a_grpc_client_gets_messages_and_status(play: Play, module: bytes) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened, module=module) as server:
            said = await _ask(f"{HERE}:{server.port}")
            assert said["greetings"] == [f"ahoy, boat {number}" for number in range(50)]
            assert said["streamed"] == ["ahoy, Ada"] * 3
            assert said["all"] == "ahoy, Ada, Bo, Cy"
            assert said["talk"] == said["greetings"], "each was answered while the client had more to say"
            assert said["status"] == "UNIMPLEMENTED"
            assert (server.counts.answers[1], server.counts.failed) == (54, 0)

    play(scenario)


def test_a_guest_answers_grpc_health_checks(play: Play, module: bytes) -> None:
    async def scenario(opened: Bench) -> None:
        async with served(opened, module=module) as server:
            why = await grpc_health.check(HERE, server.port, host=HERE, service="boats", timeout_seconds=60)
            assert not why

    play(scenario)


async def _ask(address: str) -> dict[str, Any]:
    """What the client prints."""
    command = (sys.executable, "-m", "tests.support.grpc_client", address)
    client = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await client.communicate()
    assert client.returncode == 0
    found: dict[str, Any] = json.loads(output)
    return found
