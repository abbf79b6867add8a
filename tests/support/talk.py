"""Talking to a runner's process as its operator does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tests.support.runner import Certificates, RunnerProcess
from wherry_operator.runners.client import RunnerClient
from wherry_operator.settings import ClientTls
from wherry_operator.tls import RunnerTls

PATIENCE_SECONDS = 120.0
"""What no talk needs."""

Work = Callable[[RunnerClient], Awaitable[None]]


def talk(runner: RunnerProcess, certificates: Certificates, work: Work) -> None:
    """Do some work by the operator's own client, with its certificate."""

    async def main() -> None:
        files = ClientTls(
            ca_file=certificates.ca.cert_file, cert_file=certificates.operator.cert, key_file=certificates.operator.key
        )
        client = RunnerClient(runner.name, runner.url, RunnerTls(files))
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await work(client)
        finally:
            await client.close()

    asyncio.run(main())
