"""Which entries of a pull secret are for an image: as the kubelet's keyring matches them."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from wherry_runner import protocol
from wherry_runner.modules.credentials import MAX_TRIED, Credential, matching

DOCKER = "https://index.docker.io/v1/"


def entry(registry: str, username: str = "", password: str = "pw", token: str = "") -> protocol.RegistryCredential:
    return protocol.RegistryCredential(
        registry=registry,
        username=username or registry,
        password=SecretStr(password),
        identity_token=SecretStr(token),
    )


def found(image: str, *registries: str) -> list[str]:
    """The entries that are for an image, in their order."""
    return [credential.username for credential in matching(map(entry, registries), image)]


@pytest.mark.parametrize(
    ("registry", "image"),
    [
        ("registry.example", "registry.example/x"),
        ("https://registry.example", "registry.example/x"),
        ("http://registry.example/", "registry.example/x"),
        ("https://registry.example/v1/", "registry.example/x"),
        ("registry.example/v2/", "registry.example/x"),
        ("registry.example:5000", "registry.example:5000/x"),
        ("*.registry.example", "eu.registry.example/x"),
        ("*.*.example", "eu.registry.example/x"),
        ("e*.registry.example", "eu.registry.example/x"),
        ("*u.registry.example", "eu.registry.example/x"),
        ("r*g*y.example", "registry.example/x"),
        ("*.registry.example:5000", "eu.registry.example:5000/x"),
        ("registry.example/team", "registry.example/team/x"),
        ("registry.example/team", "registry.example/teams/x"),  # a prefix, letter by letter
        ("registry.example/v2/team/", "registry.example/team/x"),
        ("registry.example/team/x", "registry.example/team/x"),
        ("localhost:5000", "localhost:5000/x"),
        ("127.0.0.1:5000", "127.0.0.1:5000/x"),
        ("[::1]:5000", "[::1]:5000/x"),
        ("[::1]", "[::1]/x"),
        ("user@registry.example", "registry.example/x"),
        ("registry.example/?a=b#c", "registry.example/x"),
        (DOCKER, "docker.io/library/hello"),
        ("index.docker.io", "docker.io/library/hello"),
        ("docker.io", "docker.io/library/hello"),
        ("docker.io/team", "docker.io/team/hello"),
        ("*.io", "docker.io/library/hello"),
    ],
)
def test_an_entry_that_is_for_an_image(registry: str, image: str) -> None:
    assert found(image, registry) == [registry]


@pytest.mark.parametrize(
    ("registry", "image"),
    [
        ("registry.example", "other.example/x"),
        ("registry.example", "eu.registry.example/x"),
        ("example", "registry.example/x"),
        ("registry.example", "registry.example:5000/x"),
        ("registry.example:5000", "registry.example/x"),
        ("registry.example:5000", "registry.example:5001/x"),
        ("*.example", "eu.registry.example/x"),
        ("*", "registry.example/x"),
        ("*registry.example", "eu.registry.example/x"),
        ("e*e.registry.example", "e.registry.example/x"),
        ("registry.example/team", "registry.example/x"),
        ("registry.example/team/", "registry.example/teams/x"),
        ("registry.example/Team", "registry.example/team/x"),
        ("registry.example/*", "registry.example/x"),  # no patterns in paths
        ("registry.ex?mple", "registry.example/x"),
        ("registry.example.evil", "registry.example/x"),
        ("evil/registry.example", "registry.example/x"),
        (DOCKER, "registry.example/x"),
        (DOCKER, "docker.io.evil.example/library/x"),
        ("index.docker.io/team", "docker.io/library/hello"),
        ("https://", "registry.example/x"),
    ],
)
def test_an_entry_that_is_for_another(registry: str, image: str) -> None:
    assert found(image, registry) == []


def test_longer_paths_come_first() -> None:
    registries = ("registry.example", "registry.example/team/x", "*.example", "registry.example/team")
    assert found("registry.example/team/x", *registries) == [
        "registry.example/team/x", "registry.example/team", "registry.example", "*.example",
    ]  # fmt: skip


def test_docker_s_own_entry_is_only_for_what_no_other_entry_is_for() -> None:
    assert found("docker.io/library/hello", DOCKER, "docker.io") == ["docker.io"]
    assert found("docker.io/library/hello", DOCKER, "docker.io/team") == [DOCKER]


def test_entries_of_one_name_keep_the_order_of_the_secrets() -> None:
    entries = [entry("registry.example", "second"), entry("https://registry.example", "first"), entry("a.example")]
    assert [item.username for item in matching(entries, "registry.example/x")] == ["second", "first"]


def test_what_says_nothing_or_says_it_twice_is_tried_once() -> None:
    entries = [
        entry("registry.example", "ada"),
        entry("registry.example/x", "ada"),
        protocol.RegistryCredential(registry="registry.example"),
    ]
    assert len(matching(entries, "registry.example/x")) == 1
    many = [entry("registry.example", str(number)) for number in range(100)]
    assert len(matching(many, "registry.example/x")) == MAX_TRIED


def test_a_pattern_made_to_take_long_takes_no_time() -> None:
    assert found("a" * 200 + ".example/x", "*a" * 120 + "b.example") == []


def test_nobody_learns_a_credential_from_how_it_is_printed_or_known_again() -> None:
    credential = Credential(username="ada", password=SecretStr("hunter2"), identity_token=SecretStr("refresh-me"))
    shown = repr(credential) + str(credential) + credential.fingerprint(b"salt" * 8)
    assert not any(word in shown for word in ("hunter2", "refresh-me", "ada"))
    assert credential.fingerprint(b"salt") != credential.fingerprint(b"pepper")
    other = Credential(username="ada", password=SecretStr("hunter3"))
    assert other.fingerprint(b"salt") != credential.fingerprint(b"salt")
    # Where one part ends and the next begins counts.
    assert Credential(username="a", password=SecretStr("b")).fingerprint(b"") != Credential(username="ab").fingerprint(
        b""
    )
