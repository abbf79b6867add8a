"""What a container may reach, as its executor is told: what its spec names, and what the runner keeps from all."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wherry_runner import protocol
from wherry_runner.execution.engine import Destination, NetworkFields, NetworkGrant, ProtectedNetwork

FIELDS = {
    "Pod": NetworkFields(
        allowed_hosts="the annotation wherry.dev/allowed-hosts", allow_dns="the annotation wherry.dev/allow-dns"
    )
}
"""By the owner's kind, where they differ from a WasmWorkload's."""

RESOLV_CONF = Path("/etc/resolv.conf")

MAX_NAMESERVERS = 3
"""As the C library has it (resolv.conf(5), MAXNS)."""

PRIVATE_NETWORKS = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
"""Where other runners may be (RFC 1918, 6598, 4193)."""


@dataclass(frozen=True, kw_only=True)
class NetworkAround:
    """What of the network is the same for all containers of a runner."""

    nameservers: tuple[str, ...] = ()
    """`IP:PORT`; none: those of resolv.conf, as it is when a container starts."""
    protected: tuple[ProtectedNetwork, ...] = ()
    certificates: str = field(default="", repr=False)


def grant(wanted: protocol.Network | None, around: NetworkAround) -> NetworkGrant | None:
    """What a container is granted; None: nothing."""
    if wanted is None or not wanted.destinations:
        return None
    return NetworkGrant(
        destinations=tuple(
            Destination(
                name=each.name or "",
                network="" if each.network is None else str(each.network),
                ports=(each.first_port, each.last_port),
            )
            for each in wanted.destinations
        ),
        lookups=wanted.lookups,
        nameservers=around.nameservers or nameservers(),
        protected=around.protected,
        certificates=around.certificates,
    )


def nameservers(path: Path = RESOLV_CONF) -> tuple[str, ...]:
    """The name servers of resolv.conf(5); where it names none, or is not there: the one on this machine."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    found = []
    for words in map(str.split, lines):
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                found.append(socket_address(words[1]))
            except ValueError:
                continue  # with a zone, for instance
    return tuple(found[:MAX_NAMESERVERS]) or ("127.0.0.1:53",)


def socket_address(text: str) -> str:
    """`IP` or `IP:PORT`, with port 53 if it has none, as the executor reads it. Raises ValueError."""
    host, separator, port = text.rpartition(":")
    if not separator or (":" in host and not host.startswith("[")):
        host, port = text, "53"
    address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        raise ValueError(f"{text!r} has a zone")
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65_535):
        raise ValueError(f"{text!r} has no port between 1 and 65535")
    return f"[{address}]:{int(port)}" if address.version == 6 else f"{address}:{int(port)}"


def protected(
    *, networks: Sequence[str], api_server: str, own_addresses: Sequence[str], api_port: int, own_ports: Sequence[int]
) -> tuple[ProtectedNetwork, ...]:
    """What a runner keeps from its containers, unless they name it by its address. Raises ValueError.

    `networks`: of its settings. `api_server`: the address that Kubernetes tells each container of, empty outside of it.
    `own_addresses`: where `own_ports`, the runner's own, are open. `api_port`: the port of other runners' API, on private
    addresses; 0: not known.
    """
    found = [ProtectedNetwork(network=str(ipaddress.ip_network(text)), what="protected here") for text in networks]
    if (server := _address(api_server)) is not None:
        found.append(ProtectedNetwork(network=str(ipaddress.ip_network(server)), what="the API server's"))
    for text in own_addresses:
        address = _address(text)
        if address is not None and not address.is_unspecified:
            own = str(ipaddress.ip_network(address))
            found += [ProtectedNetwork(network=own, port=port, what="the runner's own") for port in own_ports if port]
    if api_port:
        found += [ProtectedNetwork(network=net, port=api_port, what="a runner's API") for net in PRIVATE_NETWORKS]
    return tuple(found)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """None if it is a name, or nothing."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
