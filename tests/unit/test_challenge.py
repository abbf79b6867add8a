"""What a registry says it wants, in all the ways in which registries say it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry_runner.modules.challenge import MAX_CHARACTERS, Challenge, parse

HUB = 'Bearer realm="https://auth.example/token",service="registry.example",scope="repository:library/x:pull"'


@pytest.mark.parametrize(
    ("headers", "challenges"),
    [
        ([], []),
        ([""], []),
        (['Basic realm="x"'], [Challenge("basic", {"realm": "x"})]),
        (["Basic"], [Challenge("basic")]),
        (["BASIC Realm=x"], [Challenge("basic", {"realm": "x"})]),
        ([HUB], [Challenge("bearer", {
            "realm": "https://auth.example/token", "service": "registry.example", "scope": "repository:library/x:pull",
        })]),
        (['Bearer realm = "a" , service = b'], [Challenge("bearer", {"realm": "a", "service": "b"})]),
        (['Bearer realm="a\\"b\\\\c,d=e"'], [Challenge("bearer", {"realm": 'a"b\\c,d=e'})]),
        (['Basic realm="x", Bearer realm="y",service="z"'],
         [Challenge("basic", {"realm": "x"}), Challenge("bearer", {"realm": "y", "service": "z"})]),
        (['Basic realm="x"', 'Bearer realm="y"'],
         [Challenge("basic", {"realm": "x"}), Challenge("bearer", {"realm": "y"})]),
        (["Negotiate, Basic realm=x"], [Challenge("negotiate"), Challenge("basic", {"realm": "x"})]),
        (["Negotiate abc==, Basic realm=x"], [Challenge("negotiate"), Challenge("basic", {"realm": "x"})]),
        ([', , Basic realm="x",,'], [Challenge("basic", {"realm": "x"})]),
        (['Bearer realm="first",realm="second"'], [Challenge("bearer", {"realm": "first"})]),
        (['Bearer realm="never closed'], [Challenge("bearer")]),
        (['Bearer realm="x" service="y"'], [Challenge("bearer")]),
        (['realm="x"'], []),
        (['Basic realm=""'], [Challenge("basic", {"realm": ""})]),
    ],
)  # fmt: skip
def test_challenges(headers: list[str], challenges: list[Challenge]) -> None:
    assert parse(headers) == challenges


def test_only_so_much_is_read() -> None:
    assert len(parse(["Basic, " * MAX_CHARACTERS] * 3)) <= MAX_CHARACTERS // 7 + 1


@given(st.lists(st.text(alphabet='Bearer,="\\ \tx/+é\n'), max_size=4))
def test_anything_can_be_read(headers: list[str]) -> None:
    for challenge in parse(headers):
        assert challenge.scheme == challenge.scheme.lower()


@given(st.dictionaries(st.from_regex(r"[a-z]{1,8}", fullmatch=True), st.text(max_size=20), max_size=4))
def test_what_is_quoted_is_read_as_it_was_meant(parameters: dict[str, str]) -> None:
    quoted = ", ".join(
        f'{key}="{value.replace(chr(92), chr(92) * 2).replace(chr(34), chr(92) + chr(34))}"'
        for key, value in parameters.items()
    )
    assert parse([f"Bearer {quoted}"]) == [Challenge("bearer", parameters)]
