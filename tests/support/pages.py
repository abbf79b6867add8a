"""The console examples of the documentation: what a reader types, and what the page says is then printed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FENCE = "```"

CHANGES = ("AGE", "NODE")
"""Columns that differ from one cluster, and from one moment, to the other."""


@dataclass(frozen=True)
class Command:
    """One command of an example."""

    text: str
    """As it is typed, further lines included."""
    told: tuple[str, ...]
    """The lines that the page says it prints; none where it says nothing."""

    def shows(self, printed: str) -> bool:
        """Whether the lines that are told stand in what was printed, in this order; `…` is any number of lines."""
        lines = iter(_words(printed.splitlines()))
        return all(any(line == wanted for line in lines) for wanted in _words([t for t in self.told if t != "…"]))


def section(page: Path, heading: str) -> str:
    """A page's text below a heading, up to the next one."""
    _, found, rest = page.read_text().partition(f"\n## {heading}\n")
    assert found, f"{page} has no section {heading!r}"
    return rest.partition("\n## ")[0]


def examples(text: str, language: str = "console") -> list[str]:
    """The examples in some language."""
    return re.findall(rf"^{FENCE}{language}\n(.*?)^{FENCE}$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[Command]:
    """The commands of all console examples in a text."""
    return [command for example in examples(text) for command in _commands(example)]


def _commands(example: str) -> Iterator[Command]:
    for part in re.split(r"^\$ ", example, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        last = 0
        while lines[last].endswith("\\"):
            last += 1
        if here := re.search(r"<<'(\w+)'$", lines[last]):
            last = lines.index(here[1])
        yield Command("\n".join(lines[: last + 1]), tuple(line for line in lines[last + 1 :] if line))


def _words(lines: list[str]) -> list[list[str]]:
    """The words of each line; of a table, without what changes."""
    found: list[list[str]] = []
    left_out: set[int] = set()
    for line in lines:
        words = line.split()
        if words and words[0] == "NAME":
            left_out = {number for number, word in enumerate(words) if word in CHANGES}
        found.append([word for number, word in enumerate(words) if number not in left_out])
    return found
