"""Where registries are asked, and how."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry_runner.modules import reference as references
from wherry_runner.modules.errors import InvalidReference
from wherry_runner.modules.hosts import RegistrySettings, is_loopback

SETTINGS = RegistrySettings(
    insecure_registries=frozenset({"lab:5000"}),
    ca_files={"localhost:5001": Path("ca.crt")},
    mirrors={"mirrored.example": "http://cache.example:8080/mirrored/"},
)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("registry.example", "https://registry.example"),
        ("registry.example:5000", "https://registry.example:5000"),
        ("docker.io", "https://registry-1.docker.io"),
        ("lab:5000", "http://lab:5000"),
        ("lab", "https://lab"),
        ("localhost", "http://localhost"),
        ("localhost:5001", "https://localhost:5001"),  # it has a CA, so it speaks TLS
        ("127.0.0.9:5", "http://127.0.0.9:5"),
        ("[::1]:5", "http://[::1]:5"),
        ("[::1]", "http://[::1]"),
        ("localhost.example", "https://localhost.example"),
        ("127.0.0.1.example", "https://127.0.0.1.example"),
        ("10.0.0.1", "https://10.0.0.1"),
        ("mirrored.example", "http://cache.example:8080/mirrored"),
    ],
)
def test_plain_http_is_for_loopback_and_the_listed(host: str, url: str) -> None:
    assert SETTINGS.base_url(host) == url


def test_a_mirror_is_known_to_pull_secrets_by_its_own_name() -> None:
    assert SETTINGS.credentials_name("mirrored.example", "team/x") == "cache.example:8080/mirrored/team/x"
    assert SETTINGS.credentials_name("docker.io", "library/x") == "docker.io/library/x"


@given(st.text(alphabet="aZ09.:/@[]-_%é\x00 ", max_size=40))
def test_any_reference_that_can_be_read_names_a_host(text: str) -> None:
    try:
        reference = references.parse(text)
    except InvalidReference as error:
        assert text.isprintable() is False or error.message.isprintable()
        return
    assert isinstance(is_loopback(reference.host), bool)
    assert SETTINGS.base_url(reference.host).startswith(("http://", "https://"))
