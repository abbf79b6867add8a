"""What all tests share."""

from __future__ import annotations

import pytest

pytest_plugins = ["tests.cluster.fixtures"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `last` read what the whole session left behind."""
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Which executors the tests ran on."""
    terminalreporter.write_line("executors: python: run (wasmtime-py) · native: NOT RUN (it comes with a later issue)")
