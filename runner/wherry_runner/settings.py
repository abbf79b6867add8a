"""What a runner is told at its start: flags, each with an environment variable behind it."""

from __future__ import annotations

import argparse
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wherry_runner.backoff import BackOffSettings
from wherry_runner.modules.pull import PullSettings
from wherry_runner.modules.registry import RegistrySettings


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One runner."""

    name: str
    node: str
    address: str
    listen: str
    port: int
    """0: any free one; printed in the log."""
    health_listen: str
    health_port: int
    cert_file: Path
    key_file: Path
    client_ca_file: Path
    """Whoever shows a client certificate of this CA is the operator: the CA is the installation's own."""
    state_directory: Path
    memory_directory: Path
    """A tmpfs: Secrets are written nowhere else."""
    cpu_millicores: int
    memory_bytes: int
    max_workloads: int
    pull: PullSettings
    back_off: BackOffSettings
    log_level: str


class SettingsError(Exception):
    """A setting is missing or wrong; the message names the flag and says what to give."""


LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

_DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


def parse(argv: Sequence[str] | None = None) -> Settings:
    """Settings from flags and WHERRY_RUNNER_* variables. Raises SettingsError; exits on --help and unknown flags."""
    given = _parser().parse_args(argv)
    missing = [
        flag
        for flag, value in {"--cert": given.cert, "--key": given.key, "--client-ca": given.client_ca}.items()
        if not value
    ]
    if missing:
        raise SettingsError(f"missing: {', '.join(missing)} (see wherry-runner --help)")
    for flag, value in {"--name": given.name, "--node": given.node}.items():
        if not _DNS_SUBDOMAIN.fullmatch(value):
            raise SettingsError(f"{flag} must be a DNS subdomain name (RFC 1123), not {value!r}")
    if given.back_off_initial <= 0 or given.back_off_max < given.back_off_initial:
        raise SettingsError("--back-off-initial must be above 0, and --back-off-max no less than it")
    if given.log_level.upper() not in LOG_LEVELS:
        raise SettingsError(f"--log-level must be one of {', '.join(LOG_LEVELS)}, not {given.log_level!r}")
    mirrors = _pairs("--registry-mirror", _repeated("--registry-mirror", given.registry_mirror))
    for url in mirrors.values():
        if not url.startswith(("http://", "https://")):
            raise SettingsError(f"--registry-mirror wants HOST=http(s)://…, not {url!r}")
    return Settings(
        name=given.name,
        node=given.node,
        address=given.address,
        listen=given.listen,
        port=given.port,
        health_listen=given.health_listen,
        health_port=given.health_port,
        cert_file=Path(given.cert),
        key_file=Path(given.key),
        client_ca_file=Path(given.client_ca),
        state_directory=Path(given.state_directory),
        memory_directory=Path(given.memory_directory),
        cpu_millicores=given.cpu_millicores or (os.cpu_count() or 1) * 1000,
        memory_bytes=given.memory_bytes or _half_of_memory(),
        max_workloads=given.max_workloads,
        pull=PullSettings(
            registries=RegistrySettings(
                mirrors=mirrors,
                insecure_registries=frozenset(_repeated("--insecure-registry", given.insecure_registry)),
                ca_files={
                    host: Path(path)
                    for host, path in _pairs("--registry-ca", _repeated("--registry-ca", given.registry_ca)).items()
                },
            ),
            max_module_bytes=given.max_module_bytes,
        ),
        back_off=BackOffSettings(initial=given.back_off_initial, maximum=given.back_off_max),
        log_level=given.log_level.upper(),
    )


def _variable(flag: str) -> str | None:
    return os.environ.get("WHERRY_RUNNER_" + flag.removeprefix("--").replace("-", "_").upper())


def _repeated(flag: str, given: Sequence[str]) -> Sequence[str]:
    """What the flag was given, else what its variable lists."""
    return given or [text.strip() for text in (_variable(flag) or "").split(",") if text.strip()]


def _pairs(flag: str, texts: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator or not key or not value:
            raise SettingsError(f"{flag} wants HOST=VALUE, not {text!r}")
        pairs[key] = value
    return pairs


def _half_of_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="wherry-runner",
        description="Pulls, compiles and runs WebAssembly modules for an operator.",
        epilog="Each flag can be given as an environment variable instead: --state-directory is "
        "WHERRY_RUNNER_STATE_DIRECTORY; those that may be repeated take a list separated by commas.",
    )

    def flag(name: str, default: str | float, text: str) -> None:
        given = _variable(name)
        shown = f" (default {default})" if default not in ("", 0) else ""
        parser.add_argument(name, default=default if given is None else given, type=type(default), help=text + shown)

    def repeated(name: str, metavar: str, text: str) -> None:
        parser.add_argument(name, action="append", metavar=metavar, default=[], help=text)

    host = socket.gethostname().lower()
    flag("--name", host, "name of this runner; unique in its installation")
    flag("--node", host, "name of the node that it runs on")
    flag("--address", "", "IP that Pods on this runner report as hostIP")
    flag("--listen", "0.0.0.0", "address that the API listens on")
    flag("--port", 8443, "port of the API; 0 picks a free one")
    flag("--health-listen", "0.0.0.0", "address of the plain HTTP health endpoint")
    flag("--health-port", 8080, "its port; 0 picks a free one")
    flag("--cert", "", "serving certificate (PEM)")
    flag("--key", "", "its key (PEM)")
    flag("--client-ca", "", "CA of the operator's client certificate (PEM)")
    flag("--state-directory", "/var/lib/wherry", "where modules, logs, volumes and the journal are kept")
    flag("--memory-directory", "/dev/shm", "a tmpfs for Secrets")
    flag("--cpu-millicores", 0, "CPU offered to guests; 0: all of the machine's")
    flag("--memory-bytes", 0, "memory offered to guests; 0: half of the machine's")
    flag("--max-workloads", 5000, "workloads accepted at most")
    flag("--max-module-bytes", 256 << 20, "largest module pulled")
    flag("--back-off-initial", 10.0, "seconds before the second restart of a container, doubled for each further one")
    flag("--back-off-max", 300.0, "seconds between two restarts at most")
    flag("--log-level", "INFO", "DEBUG, INFO, WARNING or ERROR")
    repeated("--registry-mirror", "HOST=URL", "ask URL instead of the registry HOST; may be repeated")
    repeated("--registry-ca", "HOST=FILE", "CA of the registry HOST; may be repeated")
    repeated("--insecure-registry", "HOST", "allow plain http to the registry HOST; may be repeated")
    return parser
