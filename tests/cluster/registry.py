"""A real OCI registry (CNCF distribution) on loopback."""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from tests.cluster import build
from tests.cluster.errors import ClusterError, ProcessFailed
from tests.cluster.pki import CertificateFiles
from tests.cluster.ports import Reservation, is_taken
from tests.cluster.processes import Process
from tests.cluster.progress import SILENT, Progress

START_TIMEOUT_SECONDS = 60.0
"""Far more than it takes."""

START_ATTEMPTS = 3
"""See `local.START_ATTEMPTS`."""

REQUEST_TIMEOUT_SECONDS = 5.0
"""For the question whether it is ready."""


class Registry:
    """An OCI registry that lives as long as this process, at most.

    :param directory: for its images (`storage/`, kept by `stop()`), configuration and log.
    :param tls: serve HTTPS with this certificate, which must be good for 127.0.0.1.
    :param htpasswd: users and their passwords; default: anybody may do anything.
    :param ca_file: what `tls` is checked against by clients.
    """

    def __init__(
        self,
        directory: Path,
        tls: CertificateFiles | None = None,
        htpasswd: Mapping[str, str] | None = None,
        ca_file: Path | None = None,
        *,
        progress: Progress = SILENT,
    ) -> None:
        self.directory = directory
        self.tls = tls
        self.users = dict(htpasswd or {})
        self.ca_file = ca_file
        self.log = directory / "registry.log"
        self._progress = progress
        self._process: Process | None = None
        self._reservation: Reservation | None = None

    def start(self) -> None:
        """Start it, and return when it answers. After `stop()` it comes back at its address, with its images.

        :raises BuildFailed: its binary could not be built.
        :raises ProcessFailed: it did not start.
        """
        if self._process is not None:
            raise ClusterError(f"the registry at {self.address} runs already")
        binary = build.registry(self._progress)
        for attempt in range(1, START_ATTEMPTS + 1):
            try:
                self._start(binary)
                return
            except ProcessFailed as failure:
                self.close()
                if not is_taken(failure.tail) or attempt == START_ATTEMPTS:
                    raise

    def stop(self) -> None:
        """Stop it. Does nothing if it doesn't run."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def close(self) -> None:
        """Stop it and give its port back."""
        self.stop()
        if self._reservation is not None:
            self._reservation.release()
            self._reservation = None

    @property
    def address(self) -> str:
        """`127.0.0.1:PORT`: the first part of its images' references."""
        if self._reservation is None:
            raise ClusterError("the registry was not started")
        return self._reservation.address

    @property
    def url(self) -> str:
        """Its URL, without a trailing slash."""
        return f"{'http' if self.tls is None else 'https'}://{self.address}"

    def __enter__(self) -> Registry:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ping(self, user: str | None = None) -> int:
        """Return the HTTP status of `/v2/` for a user (default: anonymous), 0 if nothing answers."""
        host, _, port = self.address.partition(":")
        connection = http.client.HTTPConnection(host, int(port))
        headers = {}
        if user is not None:
            credentials = base64.b64encode(f"{user}:{self.users[user]}".encode()).decode()
            headers["Authorization"] = f"Basic {credentials}"
        try:
            plain = self._connect((host, int(port)), REQUEST_TIMEOUT_SECONDS)
            with plain:
                connection.sock = self._secured(plain, host)
            connection.request("GET", "/v2/", headers=headers)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            connection.close()

    def _secured(self, plain: socket.socket, host: str) -> socket.socket:
        if self.tls is None:
            return plain.dup()
        # Without a CA to check against this only asks whether the registry is there.
        context = ssl.create_default_context(cafile=str(self.ca_file) if self.ca_file else None)
        if self.ca_file is None:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context.wrap_socket(plain, server_hostname=host)

    def _connect(self, address: tuple[str, int], timeout: float) -> socket.socket:
        return socket.create_connection(address, timeout)

    def _reserve(self) -> None:
        if self._reservation is None:
            self._reservation = Reservation()

    def _spawn(self, command: list[str | Path], env: Mapping[str, str]) -> Process:
        return Process.start("registry", command, log=self.log, env=env)

    def _start(self, binary: Path) -> None:
        self._reserve()
        self.directory.mkdir(parents=True, exist_ok=True)
        configuration = self.directory / "registry.yaml"
        configuration.write_text(yaml.safe_dump(self._configuration(binary)))
        self._process = self._spawn(
            [binary, "serve", configuration],
            # It exports traces to localhost:4318 unless told not to.
            {"PATH": "/usr/bin:/bin", "OTEL_TRACES_EXPORTER": "none"},
        )
        expected = 401 if self.users else 200
        self._process.wait_until(lambda: self.ping() == expected, what="ready", timeout_seconds=START_TIMEOUT_SECONDS)

    def _configuration(self, binary: Path) -> dict[str, Any]:
        http_section: dict[str, Any] = {"addr": self.address}
        if self.tls is not None:
            http_section["tls"] = {"certificate": str(self.tls.cert), "key": str(self.tls.key)}
        configuration: dict[str, Any] = {
            "version": 0.1,
            "log": {"level": "info", "accesslog": {"disabled": False}},
            "storage": {
                "filesystem": {"rootdirectory": str(self.directory / "storage")},
                "delete": {"enabled": True},
                # No background deletion of old uploads: nothing here lives for days.
                "maintenance": {"uploadpurging": {"enabled": False}},
            },
            "http": http_section,
        }
        if self.users:
            path = self.directory / "htpasswd"
            path.write_text(_htpasswd(binary, self.users))
            configuration["auth"] = {"htpasswd": {"realm": "wherry", "path": str(path)}}
        return configuration


def _htpasswd(binary: Path, users: Mapping[str, str]) -> str:
    lines = "".join(f"{user}:{password}\n" for user, password in users.items())
    done = subprocess.run([binary, "htpasswd"], input=lines, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode != 0:
        raise ClusterError(f"can't make the registry's password file: {done.stderr.strip()}")
    return done.stdout
