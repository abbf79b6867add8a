"""What owners write of what their workloads may reach, and what the wire says of it."""

from __future__ import annotations

from typing import Any

import pytest

from wherry_operator.models import WorkloadNetwork
from wherry_operator.resolve.network import destinations, of_pod, of_workload
from wherry_operator.resolve.objects import ResolveError
from wherry_runner.protocol import Destination, Network

WEB = [(80, 80), (443, 443)]
ALL = [(1, 65_535)]


def told(entry: str) -> list[tuple[str, list[tuple[int, int]]]]:
    """Hosts, and their ports."""
    found: dict[str, list[tuple[int, int]]] = {}
    for each in destinations(entry):
        found.setdefault(each.name or str(each.network), []).append((each.first_port, each.last_port))
    return list(found.items())


@pytest.mark.parametrize(
    ("entry", "host", "ports"),
    [
        ("api.example.com", "api.example.com", WEB),
        ("API.Example.COM.", "api.example.com", WEB),
        ("api.example.com:8443", "api.example.com", [(8443, 8443)]),
        ("api.example.com:8000-8100", "api.example.com", [(8000, 8100)]),
        ("api.example.com:*", "api.example.com", ALL),
        ("*.example.com:443", "*.example.com", [(443, 443)]),
        ("db", "db", WEB),
        ("_sip._tcp.example.com:5060", "_sip._tcp.example.com", [(5060, 5060)]),
        ("3com.example", "3com.example", WEB),
        ("10.1.2.3", "10.1.2.3/32", WEB),
        ("10.1.2.3:5432", "10.1.2.3/32", [(5432, 5432)]),
        ("10.0.0.0/8:5432", "10.0.0.0/8", [(5432, 5432)]),
        ("0.0.0.0/0:*", "0.0.0.0/0", ALL),
        ("2001:db8::1", "2001:db8::1/128", WEB),
        ("[2001:db8::1]", "2001:db8::1/128", WEB),
        ("[2001:db8::1]:853", "2001:db8::1/128", [(853, 853)]),
        ("2001:db8::/32", "2001:db8::/32", WEB),
        ("[2001:db8::/32]:*", "2001:db8::/32", ALL),
        ("https://api.example.com", "api.example.com", [(443, 443)]),
        ("https://api.example.com/", "api.example.com", [(443, 443)]),
        ("HTTP://api.example.com:8080", "api.example.com", [(8080, 8080)]),
        ("http://10.0.0.1", "10.0.0.1/32", [(80, 80)]),
    ],
)
def test_an_entry_is_a_host_and_ports(entry: str, host: str, ports: list[tuple[int, int]]) -> None:
    assert told(entry) == [(host, ports)]


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "*",
        "*.*.example.com",
        "a.*.example.com",
        "*example.com",
        "-a.example.com",
        "a..example.com",
        "exämple.com",
        "a b.example.com",
        "10.0.0",
        "10.0.0.256",
        "2130706433",
        "10.0.0.1/8",
        "10.0.0.0/33",
        "::ffff:10.0.0.1",
        "[::ffff:0.0.0.0/96]:80",
        "[2001:db8::1",
        "[2001:db8::1]443",
        "fe80::1%eth0",
        "api.example.com:",
        "api.example.com:0",
        "api.example.com:65536",
        "api.example.com:90-80",
        "api.example.com:http",
        "api.example.com:80,443",
        "https://api.example.com/path",
        "https://user@api.example.com",
        "ftp://api.example.com",
        "insecure:allow-all",
        "x" * 64 + ".example.com",
        ("x" * 60 + ".") * 5 + "example.com",
    ],
)
def test_an_entry_that_makes_no_sense_is_quoted(entry: str) -> None:
    with pytest.raises(ValueError, match=r"^'") as raised:
        destinations(entry)
    assert repr(entry) in str(raised.value)


def workload(*hosts: str, **other: Any) -> Network | None:
    return of_workload(WorkloadNetwork.model_validate({"allowedHosts": list(hosts), **other}))


def test_a_workload_without_entries_reaches_nothing() -> None:
    assert of_workload(None) is None
    assert workload() is None
    assert workload(allowDNS=True) is None


def test_a_workloads_error_names_the_entry() -> None:
    with pytest.raises(ResolveError, match=r"^spec\.network\.allowedHosts\[1\]: 'no host'"):
        workload("example.com", "no host")
    with pytest.raises(ResolveError, match=r"^spec\.network\.allowedHosts: 600 destinations are too many"):
        workload(*(f"{number}.example.com:443" for number in range(600)))


def test_lookups_are_on_unless_they_are_switched_off() -> None:
    for given, expected in (({}, True), ({"allowDNS": True}, True), ({"allowDNS": False}, False)):
        network = workload("example.com:443", "example.com:443", **given)
        destination = Destination(name="example.com", first_port=443, last_port=443)
        assert network == Network(destinations=(destination,), lookups=expected)


def pod(**annotations: str) -> Network | None:
    names = {
        "hosts": "wherry.dev/allowed-hosts",
        "dns": "wherry.dev/allow-dns",
        "krustlet": "alpha.wasi.krustlet.dev/allowed-domains",
    }
    return of_pod({names[key]: value for key, value in annotations.items()})


def test_a_pod_says_it_by_annotations() -> None:
    assert pod() is None
    assert pod(hosts=" ", dns="true") is None
    network = pod(hosts="example.com:443, 10.0.0.0/8:5432\n*.example.org:80", dns="false")
    assert network is not None
    assert [each.name or str(each.network) for each in network.destinations] == [
        "example.com",
        "10.0.0.0/8",
        "*.example.org",
    ]
    assert not network.lookups


def test_krustlets_annotation_is_understood() -> None:
    network = pod(krustlet='["https://api.example.com", "http://localhost:8080"]', hosts="db:5432")
    assert network is not None
    assert [(each.name, each.first_port) for each in network.destinations] == [
        ("db", 5432),
        ("api.example.com", 443),
        ("localhost", 8080),
    ]


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ({"hosts": "example.com:x"}, r"^annotation wherry\.dev/allowed-hosts: 'example\.com:x'"),
        ({"dns": "yes"}, r"^annotation wherry\.dev/allow-dns must be true or false, not 'yes'"),
        ({"krustlet": "https://example.com"}, r"^annotation alpha\.wasi.* must be a JSON list of URLs"),
        ({"krustlet": '{"a": 1}'}, r"^annotation alpha\.wasi.* must be a JSON list of URLs"),
        ({"krustlet": '["ftp://example.com"]'}, r"^annotation alpha\.wasi.*: 'ftp://example\.com'"),
    ],
)
def test_a_pods_error_names_the_annotation(annotations: dict[str, str], message: str) -> None:
    with pytest.raises(ResolveError, match=message):
        pod(**annotations)


@pytest.mark.parametrize(
    "fields",
    [
        {"firstPort": 1, "lastPort": 1},
        {"name": "a", "network": "10.0.0.0/8", "firstPort": 1, "lastPort": 1},
        {"name": "a", "firstPort": 2, "lastPort": 1},
        {"name": "a", "firstPort": 0, "lastPort": 1},
        {"name": "A", "firstPort": 1, "lastPort": 1},
        {"name": "a.*", "firstPort": 1, "lastPort": 1},
        {"network": "10.0.0.1/8", "firstPort": 1, "lastPort": 1},
    ],
)
def test_the_wire_takes_no_nonsense(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="Destination"):
        Destination.model_validate(fields)
