"""What tests of the operator share: settings with real certificates, and a clock that a test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.cluster.pki import CertificateAuthority, CertificateFiles
from wherry_operator.clock import Clock
from wherry_operator.settings import ClientTls, KubeletSettings, RunnerAddress, Settings

START = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


class FakeTime:
    """Time that moves only when a test says so; sleepers wake in order."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.ahead_seconds = 0.0
        """By which the wall clock was set."""
        self._sleepers: list[tuple[float, asyncio.Event]] = []
        self.clock = Clock(
            monotonic=lambda: self.seconds,
            now=lambda: START + timedelta(seconds=self.seconds + self.ahead_seconds),
            sleep=self._sleep,
        )

    async def _sleep(self, seconds: float) -> None:
        woken = asyncio.Event()
        entry = (self.seconds + seconds, woken)
        self._sleepers.append(entry)
        try:
            await woken.wait()
        finally:
            self._sleepers.remove(entry)

    async def advance(self, seconds: float) -> None:
        """Move on, waking whoever is due, each at its own time."""
        end = self.seconds + seconds
        await settle()
        while due := min((at for at, _ in self._sleepers if at <= end), default=None):
            self.seconds = max(self.seconds, due)
            for at, woken in self._sleepers:
                if at <= self.seconds:
                    woken.set()
            await settle()
        self.seconds = end
        await settle()


async def settle() -> None:
    """Let everything run that can run without time or network."""
    for _ in range(50):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what real sockets bring; the test's own time-out bounds it."""
    while not condition():  # what is waited for has no event of its own
        await asyncio.sleep(0.005)


@dataclass
class Pki:
    """Two CAs (runners' and the cluster's clients') and what they issued."""

    runner_ca: CertificateAuthority
    runner: CertificateFiles
    operator: CertificateFiles
    client_ca: CertificateAuthority
    kubelet: CertificateFiles


def make_pki(folder: Path) -> Pki:
    runner_ca = CertificateAuthority(folder / "runner", "runner-ca")
    client_ca = CertificateAuthority(folder / "client", "client-ca")
    return Pki(
        runner_ca=runner_ca,
        runner=runner_ca.issue("wherry-runner", dns=["wherry-runner"], server=True),
        operator=runner_ca.issue("wherry-operator", client=True),
        client_ca=client_ca,
        kubelet=client_ca.issue("wherry", ips=["127.0.0.1"], server=True),
    )


def make_settings(pki: Pki | None = None, runners: tuple[RunnerAddress, ...] = ()) -> Settings:
    nowhere = Path("/nowhere")
    return Settings(
        node_name="wherry",
        class_name="wherry",
        namespace="wherry",
        identity="operator-0",
        runners=runners,
        runner_tls=ClientTls(
            ca_file=pki.runner_ca.cert_file if pki else nowhere,
            cert_file=pki.operator.cert if pki else nowhere,
            key_file=pki.operator.key if pki else nowhere,
        ),
        kubelet=KubeletSettings(
            address="10.0.0.7",
            listen="127.0.0.1",
            port=0,
            cert_file=pki.kubelet.cert if pki else nowhere,
            key_file=pki.kubelet.key if pki else nowhere,
            certificate="files",
            client_ca_file=None,
        ),
        health_listen="127.0.0.1",
        health_port=0,
        max_pods=1000,
    )
