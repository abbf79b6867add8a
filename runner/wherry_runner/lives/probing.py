"""Probes: how a container is asked, and when what it answers counts. By the kubelet's rules (pkg/kubelet/prober).

A container asks itself only: its own port, on the address on which its runner opened it. A TCP probe of a server needs no
connection: the port is ours, and whether somebody takes connections from it is known (a held socket would always answer). A
command that listens itself is connected to.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from wherry_runner import protocol
from wherry_runner.lives import asking
from wherry_runner.lives.asking import Target

MAX_HEAD_BYTES = 64 << 10
"""Of an answer to a probe: its first line is all that is read of it."""

TELL_SECONDS = 60.0
"""A probe that fails on and on in the same words is told of no more often."""


Kind = Literal["Startup", "Liveness", "Readiness"]


@dataclass(kw_only=True)
class Count:
    """Results that follow one another: only so many of a kind change anything."""

    success_threshold: int
    failure_threshold: int
    _last: bool | None = field(default=None, init=False)
    _run: int = field(default=0, init=False)

    def note(self, succeeded: bool) -> bool | None:
        """Take note of a result; what it means, or None if it means nothing yet."""
        self._run = self._run + 1 if succeeded == self._last else 1
        self._last = succeeded
        enough = self._run >= (self.success_threshold if succeeded else self.failure_threshold)
        return succeeded if enough else None


@dataclass(kw_only=True)
class Probes:
    """The probes of one run of a container, and what they have found so far."""

    spec: protocol.Container
    target: Target
    on_change: Callable[[], None]
    on_failure: Callable[[str, float | None], None]
    """It is to be run anew: a sentence, and the seconds that it has to end (None: its workload's grace period)."""
    started: bool = field(init=False)
    ready: bool = field(init=False)
    failures: dict[Kind, protocol.ProbeFailure] = field(default_factory=dict, init=False)
    """What is told of those that have failed."""
    _counts: Counter[Kind] = field(default_factory=Counter, init=False)
    _told: dict[Kind, float] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.started = self.spec.startup_probe is None
        self.ready = self.spec.readiness_probe is None

    async def run(self) -> None:
        """Ask until cancelled; first the startup probe alone."""
        begun = asyncio.get_running_loop().time()
        if (startup := self.spec.startup_probe) is not None:
            await self._ask("Startup", startup, begun, self._on_startup)
            if not self.started:
                return
        async with asyncio.TaskGroup() as both:
            if (liveness := self.spec.liveness_probe) is not None:
                both.create_task(self._ask("Liveness", liveness, begun, self._on_liveness))
            if (readiness := self.spec.readiness_probe) is not None:
                both.create_task(self._ask("Readiness", readiness, begun, self._on_readiness))

    async def _ask(
        self, kind: Kind, probe: protocol.Probe, begun: float, on_result: Callable[[bool, str], bool]
    ) -> None:
        """Ask once in a period, until a result ends it."""
        loop = asyncio.get_running_loop()
        count = Count(success_threshold=probe.success_threshold, failure_threshold=probe.failure_threshold)
        await asyncio.sleep(begun + probe.initial_delay_seconds - loop.time())
        while True:
            next_at = loop.time() + probe.period_seconds
            failure = await attempt(probe, self.target)
            if failure:
                self._note(kind, failure)
            meaning = count.note(not failure)
            if meaning is not None and on_result(meaning, failure):
                return
            await asyncio.sleep(next_at - loop.time())

    def _note(self, kind: Kind, message: str) -> None:
        self._counts[kind] += 1
        told, now = self.failures.get(kind), asyncio.get_running_loop().time()
        if told is None or told.message != message or now - self._told[kind] >= TELL_SECONDS:
            self._told[kind] = now
            self.failures[kind] = protocol.ProbeFailure(probe=kind, message=message, count=self._counts[kind])
            self.on_change()

    def _on_startup(self, succeeded: bool, failure: str) -> bool:
        if succeeded:
            self.started = True
            self.on_change()
        else:
            assert self.spec.startup_probe is not None
            self.on_failure(
                f"failed startup probe, will be restarted: {failure}", self.spec.startup_probe.grace_seconds
            )
        return True

    def _on_liveness(self, succeeded: bool, failure: str) -> bool:
        if succeeded:
            return False
        assert self.spec.liveness_probe is not None
        self.on_failure(f"failed liveness probe, will be restarted: {failure}", self.spec.liveness_probe.grace_seconds)
        return True

    def _on_readiness(self, succeeded: bool, _: str) -> bool:
        if succeeded != self.ready:
            self.ready = succeeded
            self.on_change()
        return False


async def attempt(probe: protocol.Probe, target: Target) -> str:
    """Ask once. Why that failed, as a kubelet says it (k8s.io/kubernetes/pkg/probe); empty: it did not."""
    port = target.port_for(probe.port)
    host = asking.host(target.address, port or probe.port or 0)
    if probe.grpc_service is not None:
        from wherry_runner.lives import grpc_health  # with an HTTP/2 of its own: for those alone who ask by it

        if port is None:
            return grpc_health.refused(host, probe.timeout_seconds)
        return await grpc_health.check(
            target.address, port, host=host, service=probe.grpc_service, timeout_seconds=probe.timeout_seconds
        )
    refused = f"dial tcp {host}: connect: connection refused"
    if probe.path is None and port is not None and probe.port in target.listens:
        return await _connect(probe, target.address, port)
    if probe.path is None:
        return "" if port is not None and target.serves() else refused
    asked = f'Get "http://{host}{probe.path}"'
    if port is None:
        return f"{asked}: {refused}"
    try:
        async with asyncio.timeout(probe.timeout_seconds):
            request = asking.request(probe.path, probe.headers, host=host, agent="kube-probe/wherry")
            return await _get(request, target.address, port)
    except TimeoutError:
        return f"{asked}: context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
    except ConnectionRefusedError:
        return f"{asked}: {refused}"
    except (OSError, ValueError) as error:
        return f"{asked}: {error}"


async def _connect(probe: protocol.Probe, address: str, port: int) -> str:
    """Connect, and be gone."""
    try:
        async with asyncio.timeout(probe.timeout_seconds):
            _, writer = await asyncio.open_connection(address, port)
        writer.transport.abort()
    except TimeoutError:
        return f"dial tcp {asking.host(address, port)}: i/o timeout"
    except OSError:
        return f"dial tcp {asking.host(address, port)}: connect: connection refused"
    return ""


async def _get(request: bytes, address: str, port: int) -> str:
    """Ask by HTTP: what is neither a success nor a redirection is a failure. Raises OSError, ValueError."""
    reader, writer = await asyncio.open_connection(address, port, limit=MAX_HEAD_BYTES)
    try:
        writer.write(request)
        words = (await reader.readline()).split(maxsplit=2)
    finally:
        # At once: who does not read must not keep it.
        writer.transport.abort()
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise ValueError("malformed HTTP response")
    status = int(words[1])
    return "" if 200 <= status < 400 else f"HTTP probe failed with statuscode: {status}"
