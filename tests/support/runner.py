"""A runner as a process of its own, with the certificates that it and its operator show to each other."""

from __future__ import annotations

import contextlib
import glob
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.cluster.pki import CertificateAuthority
from tests.cluster.ports import Reservation
from tests.cluster.processes import STOP_TIMEOUT_SECONDS, Process
from tests.support import executors

START_SECONDS = 60.0
"""Far more than a start takes, also on a machine that compiles something beside it."""

RUNNER_NAME_IN_CERTIFICATE = "wherry-runner"


class Certificates:
    """The private CA of an installation, and what it issued."""

    def __init__(self, directory: Path) -> None:
        self.ca = CertificateAuthority(directory, "wherry-ca")
        self.runner = self.ca.issue("wherry-runner", dns=[RUNNER_NAME_IN_CERTIFICATE], server=True)
        self.operator = self.ca.issue("wherry-operator", client=True)


class RunnerProcess:
    """A runner, stopped and started as wanted; its state directory stays."""

    def __init__(
        self,
        directory: Path,
        certificates: Certificates,
        name: str,
        flags: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """`variables`: of its environment."""
        self._certificates = certificates
        self._variables = dict(variables or {})
        self.name = name
        self.flags = list(flags)
        self.state = directory / "runners" / name
        self.log = directory / "logs" / f"runner-{name}.log"
        self._port = Reservation()
        self._health = Reservation()
        self.process: Process | None = None

    @property
    def url(self) -> str:
        """Where its API is."""
        return f"https://{self._port.address}"

    @property
    def health_url(self) -> str:
        """Where its probes are."""
        return f"http://{self._health.address}"

    def traces(self, text: str) -> list[str]:
        """Files and folders of its state whose names have the text. What vanishes meanwhile counts as gone."""
        return [name for _, folders, files in os.walk(self.state) for name in (*folders, *files) if text in name]

    def volumes(self, workload_id: str) -> list[Path]:
        """The folders of a workload's volumes: on its disk, and in memory, which all runners of a machine share."""
        kept = [self.state / "volumes", *Path("/dev/shm").glob("wherry-*")]
        return [root / workload_id for root in kept if (root / workload_id).is_dir()]

    def contents(self, pattern: str) -> list[str]:
        """The texts of its files that match. What vanishes meanwhile counts as gone."""
        found = []
        for name in glob.glob(pattern, root_dir=self.state):
            with contextlib.suppress(FileNotFoundError):
                found.append((self.state / name).read_text())
        return found

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        pki = self._certificates
        command = [
            sys.executable, "-m", "wherry_runner",
            "--name", self.name, "--node", f"node-of-{self.name}", "--address", "127.0.0.1",
            "--listen", "127.0.0.1", "--port", str(self._port.port),
            "--health-listen", "127.0.0.1", "--health-port", str(self._health.port),
            "--cert", str(pki.runner.cert), "--key", str(pki.runner.key),
            "--client-ca", str(pki.ca.cert_file), "--state-directory", str(self.state),
            "--leave-seconds", "0", "--termination-grace-seconds", "0", *executors.runner_flags(), *self.flags,
        ]  # fmt: skip
        self.process = Process.start(f"runner {self.name}", command, log=self.log, env=environment(**self._variables))
        self.process.wait_until(
            lambda: healthy(f"{self.health_url}/healthz"), what="ready", timeout_seconds=START_SECONDS
        )

    def stop(self, *, timeout_seconds: float = STOP_TIMEOUT_SECONDS) -> None:
        """Stop it with SIGTERM, and with SIGKILL after so long."""
        if self.process is not None:
            self.process.stop(timeout_seconds=timeout_seconds)
            self.process = None

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process = None

    def close(self) -> None:
        """Stop it for good."""
        self.stop()
        self._port.release()
        self._health.release()


def healthy(url: str) -> bool:
    """Whether a health endpoint answers 200."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def environment(**more: str) -> dict[str, str]:
    """This process's environment without what would configure Wherry or a Kubernetes client."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WHERRY_", "KUBE"))}
    return {**kept, **more}
