"""What a server wants, told by `WWW-Authenticate` (RFC 9110 §11.6.1, RFC 6750 §3). Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

MAX_CHARACTERS = 16 << 10
"""Of all headers together; what follows is not looked at."""

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PARAMETER = re.compile(rf'\s*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))\s*(?=,|$)', re.DOTALL)
_SCHEME = re.compile(rf"\s*({_TOKEN})(?:[ \t]+|(?=,|$))")
_TOKEN_68 = re.compile(r"\s*[A-Za-z0-9._~+/-]+=*\s*(?=,|$)")


@dataclass(frozen=True)
class Challenge:
    """One way to be let in."""

    scheme: str
    """In lower case: `basic`, `bearer`, …"""
    parameters: dict[str, str] = field(default_factory=dict)
    """By their names in lower case."""


def parse(headers: Iterable[str]) -> list[Challenge]:
    """All challenges of all these header fields, in their order. What can't be read ends a field."""
    challenges: list[Challenge] = []
    remaining = MAX_CHARACTERS
    for header in headers:
        challenges += _parse(header[:remaining])
        remaining -= min(remaining, len(header))
    return challenges


def _parse(text: str) -> list[Challenge]:
    challenges: list[Challenge] = []
    position = 0
    while position < len(text):
        if text[position] in ", \t":
            position += 1
        elif challenges and (match := _PARAMETER.match(text, position)):
            value = match[3] if match[2] is None else re.sub(r"\\(.)", r"\1", match[2], flags=re.DOTALL)
            # Of a parameter that is named twice, the first counts.
            challenges[-1].parameters.setdefault(match[1].lower(), value)
            position = match.end()
        elif match := _SCHEME.match(text, position):
            challenges.append(Challenge(match[1].lower()))
            position = match.end()
            if not _PARAMETER.match(text, position) and (token := _TOKEN_68.match(text, position)):
                position = token.end()  # as Negotiate has it; not for us
        else:
            break
    return challenges
