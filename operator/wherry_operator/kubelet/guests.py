"""What the kubelet API asks of runners beside their logs: what guests use, and a way to their input."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from typing import Protocol, cast
from urllib.parse import quote

import httpx

from wherry_operator.runners.client import CONNECT_SECONDS, RunnerClient
from wherry_operator.runners.registry import RunnerState
from wherry_operator.tls import RunnerTls
from wherry_runner.protocol import RunnerStats


class Runners(Protocol):
    """What of `RunnerRegistry` is used here."""

    def states(self) -> tuple[RunnerState, ...]:
        """All runners."""
        ...


class GuestClient(RunnerClient):
    """One runner. Its connections are its own: somebody's input may keep one for hours."""

    async def stats(self) -> RunnerStats:
        """What the runner and its containers use. Raises Refused, RunnerUnavailable, RunnerError."""
        return await self._call(RunnerStats, "GET", "/v1/stats")

    async def write_input(self, workload_id: str, container: str, pieces: AsyncIterable[bytes]) -> None:
        """Give a container its input, piece by piece, as fast as it reads.

        Raises Refused (NoInput where it takes none, or no more), RunnerUnavailable, RunnerError.
        """
        path = f"/v1/workloads/{quote(workload_id, safe='')}/containers/{quote(container, safe='')}/stdin"
        # As long as the client types and the guest does not read: neither has a bound.
        timeout = httpx.Timeout(None, connect=CONNECT_SECONDS)
        # The transport takes a stream as well as a whole body.
        async with self._open("PUT", path, content=cast("bytes", pieces), timeout=timeout):
            pass


class Guests:
    """A client for each runner, made when it is first asked for."""

    def __init__(self, runners: Runners, tls: RunnerTls) -> None:
        self._runners = runners
        self._tls = tls
        self._clients: dict[tuple[str, str], GuestClient] = {}

    def client(self, name: str, url: str) -> GuestClient:
        """The client of the runner at an address."""
        key = (name, url)
        if key not in self._clients:
            self._clients[key] = GuestClient(name, url, self._tls)
        return self._clients[key]

    async def connected(self) -> list[GuestClient]:
        """Of all runners that answer; connections to those that are no more are closed."""
        states = self._runners.states()
        for gone in self._clients.keys() - {(state.name, state.url) for state in states}:
            await self._clients.pop(gone).close()
        return [self.client(state.name, state.url) for state in states if state.connected]

    async def close(self) -> None:
        """Close all connections."""
        await asyncio.gather(*(client.close() for client in self._clients.values()))
        self._clients.clear()
