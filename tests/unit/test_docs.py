"""What the documentation points at is there: files, headings, tests."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    page
    for folder in ("", "bench/", "demos/**/", "docs/", "runner/executor/", "tests/**/")
    for page in sorted(ROOT.glob(f"{folder}*.md"))
]

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> Iterator[str]:
    """A page's lines, without its examples."""
    example = False
    for line in page.read_text().splitlines():
        if line.lstrip().startswith("```"):
            example = not example
        elif not example:
            yield line


def anchors(page: Path) -> set[str]:
    """What can stand behind a `#`, as GitHub makes it of headings."""
    headings = (re.sub(r"^#+ ", "", line) for line in prose(page) if re.match("#+ ", line))
    words = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower().strip() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", each).replace(" ", "-") for each in words}


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", "\n".join(prose(page))):
        if re.match("[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@every_page
def test_tests_that_are_named_are_there(page: Path) -> None:
    for file, test in re.findall(r"((?:\w+/)*test_\w+\.py)(?:::(\w+))?", page.read_text()):
        found = [path for path in ROOT.glob("tests/**/*.py") if str(path).endswith(f"/{file}")]
        assert found, file
        assert not test or any(f"def {test}(" in path.read_text() for path in found), f"{file}::{test}"
