"""What all tests share."""

from __future__ import annotations

import os
from collections.abc import Generator

import hypothesis
import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling

from tests.support import executors

pytest_plugins = ["tests.cluster.fixtures"]

# No test is about time, on a busy machine least of all. In CI Hypothesis has a profile of its own that says so too.
hypothesis.settings.register_profile("busy", deadline=None)
if not os.environ.get("CI"):
    hypothesis.settings.load_profile("busy")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest first, for several workers; those marked `last` last: they read what the session left behind."""
    order = {"node": 0, "controlplane": 1, "chart": 2, "cluster": 3, "runner": 4}

    def rank(item: pytest.Item) -> tuple[bool, int]:
        folder = item.path.relative_to(item.config.rootpath).parts[1]
        return item.get_closest_marker("last") is not None, order.get(folder, 9)

    items.sort(key=rank)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByCluster:
    """How `make test` shares the tests among its workers."""
    return ByCluster(config, log)


class ByCluster(LoadScopeScheduling):  # type: ignore[misc]
    """A file stays on one worker, for its clusters; all that needs the real node counts as one file."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "tests/node" if file.startswith("tests/node/") else file


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With CI=true nothing may be skipped: what can't run there is a failure, and says why."""
    report = yield
    if report.skipped and os.environ.get("CI") == "true" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but CI=true: {report.longrepr}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Which executors the tests ran on."""
    terminalreporter.write_line(executors.summary())
