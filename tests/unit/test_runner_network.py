"""What a runner adds to what its containers may reach: who is asked for names, and what is kept from all."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest

from wherry_runner.execution.engine import Destination
from wherry_runner.lives.network import NetworkAround, grant, nameservers, protected, socket_address
from wherry_runner.protocol import Destination as Wanted
from wherry_runner.protocol import Network


def test_nothing_wanted_is_nothing_granted() -> None:
    assert grant(None, NetworkAround()) is None
    assert grant(Network(), NetworkAround()) is None


def test_a_grant_is_what_is_wanted_and_what_the_runner_knows() -> None:
    wanted = Network(
        destinations=(
            Wanted(name="*.example.com", first_port=443, last_port=443),
            Wanted.model_validate({"network": "10.0.0.0/8", "firstPort": 1, "lastPort": 9}),
        ),
        lookups=False,
    )
    around = NetworkAround(nameservers=("10.96.0.10:53",), certificates="PEM")
    granted = grant(wanted, around)
    assert granted is not None
    assert granted.destinations == (
        Destination(name="*.example.com", ports=(443, 443)),
        Destination(network="10.0.0.0/8", ports=(1, 9)),
    )
    assert (granted.lookups, granted.nameservers, granted.certificates) == (False, ("10.96.0.10:53",), "PEM")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nameserver 10.96.0.10\nsearch svc.cluster.local\n", ("10.96.0.10:53",)),
        ("# nameserver 1.1.1.1\nnameserver 2001:db8::1\nnameserver fe80::1%eth0", ("[2001:db8::1]:53",)),
        ("nameserver a\nnameserver\n", ("127.0.0.1:53",)),
        ("".join(f"nameserver 10.0.0.{n}\n" for n in range(1, 6)), ("10.0.0.1:53", "10.0.0.2:53", "10.0.0.3:53")),
    ],
)
def test_name_servers_are_those_of_resolv_conf(text: str, expected: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "resolv.conf").write_text(text)
    assert nameservers(tmp_path / "resolv.conf") == expected
    assert nameservers(tmp_path / "missing") == ("127.0.0.1:53",)


def test_a_name_server_may_have_a_port() -> None:
    for text, expected in (
        ("10.0.0.1:5353", "10.0.0.1:5353"),
        ("[2001:db8::1]:5353", "[2001:db8::1]:5353"),
        ("2001:db8::1", "[2001:db8::1]:53"),
    ):
        assert socket_address(text) == expected
    for wrong in (
        "dns.example",
        "10.0.0.1:",
        "10.0.0.1:0",
        "10.0.0.1:70000",
        "10.0.0.1:x",
        "10.0.0.1:²",
        "fe80::1%eth0",
    ):
        with pytest.raises(ValueError, match=r"."):
            socket_address(wrong)


def test_what_a_runner_protects() -> None:
    found = protected(
        networks=["192.0.2.1", "203.0.113.0/24"],
        api_server="10.96.0.1",
        own_addresses=["10.244.0.7", "0.0.0.0", ""],
        api_port=19443,
        own_ports=(19443, 19080),
    )
    whole = {(each.network, each.what) for each in found if each.port is None}
    assert whole == {
        ("192.0.2.1/32", "protected here"),
        ("203.0.113.0/24", "protected here"),
        ("10.96.0.1/32", "the API server's"),
    }
    assert {(each.network, each.port) for each in found if each.what == "the runner's own"} == {
        ("10.244.0.7/32", 19443),
        ("10.244.0.7/32", 19080),
    }
    others = [each for each in found if each.what == "a runner's API"]
    assert all(
        (each.port == 19443 and ip_network(each.network).is_private) or each.network == "100.64.0.0/10"
        for each in others
    )
    nothing = protected(networks=[], api_server="kubernetes.default", own_addresses=[], api_port=0, own_ports=())
    assert nothing == ()
    with pytest.raises(ValueError, match=r"."):
        protected(networks=["10.0.0.1/8"], api_server="", own_addresses=[], api_port=0, own_ports=())
