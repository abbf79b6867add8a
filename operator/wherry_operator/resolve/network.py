"""What a workload may reach, as its owner writes it → the wire.

An entry is `HOST`, `HOST:PORT`, `HOST:FIRST-LAST` or `HOST:*`; a host is a name, `*.` and a name for all below it, an address
(of IPv6 in brackets, if a port follows), or a network as `10.0.0.0/8`. Without a port: 80 and 443. `http://HOST` and
`https://HOST[:PORT]` mean the port of their scheme.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterable, Mapping

from pydantic import ValidationError

from wherry_operator.models import WorkloadNetwork
from wherry_operator.resolve.objects import ResolveError
from wherry_runner.protocol import Destination, Network

HOSTS_ANNOTATION = "wherry.dev/allowed-hosts"
"""Of a Pod: entries, separated by commas or blanks."""

DNS_ANNOTATION = "wherry.dev/allow-dns"
"""Of a Pod: `true` or `false`."""

KRUSTLET_ANNOTATION = "alpha.wasi.krustlet.dev/allowed-domains"
"""Krustlet's: a JSON list of URLs. There only their hosts counted; here their ports do too."""

DEFAULT_PORTS = ((80, 80), (443, 443))
_ALL_PORTS = ((1, 65_535),)
_SCHEMES = {"http": 80, "https": 443}

_URL = re.compile(r"(https?)://([^/?#@]+)/?", re.IGNORECASE)
_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_LABEL = r"[a-z0-9_](?:[-a-z0-9_]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?:\*\.)?(?:{_LABEL}\.)*(?![0-9]+\Z){_LABEL}")

Ports = tuple[tuple[int, int], ...]


def of_workload(spec: WorkloadNetwork | None) -> Network | None:
    """What a WasmWorkload may reach; None: nothing. Raises ResolveError."""
    if spec is None:
        return None
    entries = spec.allowed_hosts or ()
    named = ((f"spec.network.allowedHosts[{index}]", entry) for index, entry in enumerate(entries))
    return _network(named, lookups=spec.allow_dns is not False, where="spec.network.allowedHosts")


def of_pod(annotations: Mapping[str, str]) -> Network | None:
    """What a Pod's containers may reach; None: nothing. Raises ResolveError."""
    entries = re.split(r"[\s,]+", annotations.get(HOSTS_ANNOTATION, "").strip())
    named = [(f"annotation {HOSTS_ANNOTATION}", entry) for entry in entries if entry]
    named += [(f"annotation {KRUSTLET_ANNOTATION}", url) for url in _krustlets(annotations.get(KRUSTLET_ANNOTATION))]
    lookups = annotations.get(DNS_ANNOTATION, "true")
    if lookups not in ("true", "false"):
        raise ResolveError(f"annotation {DNS_ANNOTATION} must be true or false, not {lookups!r}")
    return _network(named, lookups=lookups == "true", where=f"annotation {HOSTS_ANNOTATION}")


def _krustlets(text: str | None) -> list[str]:
    if not text:
        return []
    try:
        urls = json.loads(text)
    except ValueError:
        urls = None
    if not isinstance(urls, list) or not all(isinstance(url, str) for url in urls):
        raise ResolveError(f'annotation {KRUSTLET_ANNOTATION} must be a JSON list of URLs, as ["https://example.com"]')
    return urls


def _network(entries: Iterable[tuple[str, str]], *, lookups: bool, where: str) -> Network | None:
    found: dict[tuple[str, str, int, int], Destination] = {}
    for place, entry in entries:
        try:
            for each in destinations(entry):
                found[each.name or "", str(each.network), each.first_port, each.last_port] = each
        except ValueError as error:
            raise ResolveError(f"{place}: {error}") from None
    if not found:
        return None
    try:
        return Network(destinations=tuple(found.values()), lookups=lookups)
    except ValidationError:
        raise ResolveError(f"{where}: {len(found)} destinations are too many") from None


def destinations(entry: str) -> tuple[Destination, ...]:
    """What an entry means. Raises ValueError with a sentence that quotes it."""
    host, ports = _split(entry)
    network = _address(host, entry)
    if network is not None:
        return tuple(Destination(network=network, first_port=first, last_port=last) for first, last in ports)
    name = host.lower().removesuffix(".")
    if not _NAME.fullmatch(name) or len(name) > 253:
        raise ValueError(
            f"{entry!r} has neither a host's name, nor *. and a name, nor an address or network for a host"
        )
    return tuple(Destination(name=name, first_port=first, last_port=last) for first, last in ports)


def _split(entry: str) -> tuple[str, Ports]:
    """The host and the ports."""
    if "://" in entry:
        url = _URL.fullmatch(entry)
        if url is None:
            raise ValueError(f"{entry!r} must be http:// or https:// and a host, with nothing behind it but a port")
        scheme, rest = url.groups()
        port = _SCHEMES[scheme.lower()]
        host, ports = _split_ports(rest, entry)
        return host, ports or ((port, port),)
    host, given = _split_ports(entry, entry)
    return host, given or DEFAULT_PORTS


def _split_ports(text: str, entry: str) -> tuple[str, Ports]:
    """The host, without brackets, and the ports if there are any."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{entry!r} must have ] behind the address, and then nothing or a colon and a port")
        return host, _ports(rest[1:], entry) if rest else ()
    if text.count(":") != 1:
        return text, ()
    host, _, ports = text.partition(":")
    return host, _ports(ports, entry)


def _ports(text: str, entry: str) -> Ports:
    if text == "*":
        return _ALL_PORTS
    found = _PORTS.fullmatch(text)
    if found is None:
        raise ValueError(f"{entry!r}: behind the colon must be a port, two with a dash between them, or *")
    first = int(found[1])
    last = int(found[2] or first)
    if not 1 <= first <= last <= 65_535:
        raise ValueError(f"{entry!r}: ports are from 1 to 65535, the lower one first")
    return ((first, last),)


def _address(host: str, entry: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """An address or a network; None if it is neither."""
    try:
        network = ipaddress.ip_network(host)
    except ValueError:
        if "/" in host:
            raise ValueError(
                f"{entry!r} has no network for a host, as 10.0.0.0/8: bits behind the prefix must be 0"
            ) from None
        return None
    if "%" in host:
        raise ValueError(f"{entry!r}: an address with a zone means something on one machine only")
    mapped = ipaddress.ip_network("::ffff:0:0/96")
    if (
        isinstance(network, ipaddress.IPv6Network)
        and isinstance(mapped, ipaddress.IPv6Network)
        and network.subnet_of(mapped)
    ):
        raise ValueError(f"{entry!r} is an address of IPv4: write it as such")
    return network
