"""How a container is asked by its runner, in probes and hooks: by HTTP, its own port, on the address on which that was opened."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from wherry_runner import protocol


@dataclass(frozen=True, kw_only=True)
class Target:
    """Who is asked."""

    address: str
    port: Callable[[], int | None]
    """Where it is reached now; None: nowhere."""
    named: Callable[[], int | None]
    """The port that its spec names for it."""
    serves: Callable[[], bool]
    """Whether it takes connections."""
    listens: Mapping[int, int] = field(default_factory=dict)
    """Of a command: where the TCP ports are on which its own sockets may listen, by the one that its spec names."""

    def port_for(self, wanted: int | None) -> int | None:
        """Where it is reached by a port that a spec names; None: nowhere, for another than its own is nobody's."""
        if wanted is not None and wanted in self.listens:
            return self.listens[wanted]
        return self.port() if wanted in (None, self.named()) else None


def host(address: str, port: int) -> str:
    """As it stands in a URL."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def request(path: str, headers: Iterable[protocol.ProbeHeader], *, host: str, agent: str) -> bytes:
    """A GET with the kubelet's own headers, unless others of the same name are given."""
    found = {
        "host": ("Host", host),
        "user-agent": ("User-Agent", agent),
        "accept": ("Accept", "*/*"),
    }
    for each in headers:
        found[each.name.lower()] = (each.name, each.value)
    lines = [
        f"GET {path} HTTP/1.1",
        *(f"{name}: {value}" for name, value in found.values()),
        "Connection: close",
    ]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()
