"""The error tree of `tests.cluster`.

ClusterError
 ├─ BuildFailed      a Go binary could not be built
 ├─ ProcessFailed    a process ended, or was not ready in time
 └─ KubectlFailed    kubectl exited non-zero or took too long

Each message is meant to be shown as it is: it says what failed, what was printed last, and where the rest is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class ClusterError(Exception):
    """Something about a cluster failed."""


class BuildFailed(ClusterError):
    """A Go binary could not be built."""


class ProcessFailed(ClusterError):
    """A process ended early, or did not become ready in time."""

    def __init__(self, what: str, *, log: Path, tail: str) -> None:
        shown = tail or "(nothing was printed)"
        super().__init__(f"{what}\n--- end of {log} ---\n{shown}\n--- the whole log: {log}")
        self.log = log
        self.tail = tail


class KubectlFailed(ClusterError):
    """kubectl exited non-zero, or took too long (`returncode` is None)."""

    def __init__(self, arguments: Sequence[str], *, returncode: int | None, stdout: str, stderr: str) -> None:
        how = "did not end in time" if returncode is None else f"ended with exit code {returncode}"
        parts = [f"kubectl {' '.join(arguments)}: {how}", stderr.strip(), stdout.strip()]
        super().__init__("\n".join(part for part in parts if part))
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr
