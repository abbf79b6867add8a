"""What is wrong with this runner, a sentence for each thing; asked by probes, watched by nobody."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path

Complaint = Callable[[], str]
"""Says what is wrong now; empty: nothing. Quick: it runs on the event loop."""


class Health:
    """Answers `/livez`, `/readyz` and `/healthz` (`api.py`)."""

    def __init__(self, *, ready: Mapping[str, Complaint], works: Mapping[str, Complaint]) -> None:
        """`ready`: what must be well for new work; `works`: what somebody should look at. By name."""
        self._ready = dict(ready)
        self._works = dict(works)
        self.serving = False
        """Whether requests are taken: set after the start, cleared at the beginning of the end."""

    def unready(self) -> list[str]:
        """Why the runner takes no work now; empty: it does."""
        return ([] if self.serving else ["serving: the runner is starting or stopping"]) + _complaints(self._ready)

    def unwell(self) -> list[str]:
        """All that is wrong; empty: nothing."""
        return _complaints(self._ready) + _complaints(self._works)


def _complaints(checks: Mapping[str, Complaint]) -> list[str]:
    return [f"{name}: {said}" for name, check in checks.items() if (said := check())]


def disk(folder: Path, *, again_seconds: float = 5.0) -> Complaint:
    """Whether a file can be written there; tried so seldom, for anybody may ask."""
    tried_at, said = -again_seconds, ""

    def complaint() -> str:
        nonlocal tried_at, said
        if time.monotonic() - tried_at >= again_seconds:
            tried_at, said = time.monotonic(), _written(folder / f".health-{secrets.token_hex(4)}")
        return said

    return complaint


def _written(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, b"ok\n")  # making a file may go well where there is no room for a byte
        finally:
            os.close(descriptor)
            path.unlink()
    except OSError as error:
        return f"{path.parent} can't be written to: {error.strerror}"
    return ""
