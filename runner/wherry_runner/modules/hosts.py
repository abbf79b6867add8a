"""Where registries are, and which of them may be asked by plain HTTP. Pure.

A host is written as in references: a name or an address, with a port if it isn't the default one.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_DOCKER_HUB = {"docker.io": "registry-1.docker.io"}
"""Docker Hub's API has another address than its name."""


@dataclass(frozen=True, kw_only=True)
class RegistrySettings:
    """How registries are reached. Times in seconds."""

    connect_seconds: float = 10.0
    read_seconds: float = 30.0
    """The longest silence of a registry."""
    attempts: int = 3
    """Of one request that meets 429, a 5xx or a broken connection. The kubelet's own back-off comes on top."""
    max_wait_seconds: float = 20.0
    """The longest `Retry-After` that is waited for; a longer one ends the pull with a message that names it."""
    insecure_registries: frozenset[str] = frozenset()
    """Hosts asked by plain HTTP. Loopback addresses are so anyway, as in Docker, unless they have a CA file."""
    ca_files: Mapping[str, Path] = field(default_factory=dict)
    """Host → file with the CA certificates (PEM) that its certificate must be signed by, instead of the system's."""
    mirrors: Mapping[str, str] = field(default_factory=dict)
    """Host → base URL of a mirror that is asked instead."""

    def base_url(self, host: str) -> str:
        """Where a registry's API is, without a slash at the end."""
        if mirror := self.mirrors.get(host):
            return mirror.rstrip("/")
        return f"{'http' if self.allows_plain_http(host) else 'https'}://{_DOCKER_HUB.get(host, host)}"

    def allows_plain_http(self, host: str) -> bool:
        """Whether a registry, or the service that gives its tokens, is asked without TLS."""
        return host in self.insecure_registries or (is_loopback(host) and host not in self.ca_files)

    def credentials_name(self, host: str, repository: str) -> str:
        """What entries of a pull secret are matched against: a credential goes to the host that its entry names.

        So a mirror gets the credentials that are its own, never those of the registry that it stands for.
        """
        mirror = self.mirrors.get(host)
        return f"{mirror.rstrip('/').partition('://')[2] if mirror else host}/{repository}"


def is_loopback(host: str) -> bool:
    """Whether a host (with or without a port) is this machine itself."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
