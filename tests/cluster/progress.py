"""Tells a person how far things are: one updating line on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from typing import TextIO

QUIET_INTERVAL_SECONDS = 15.0
"""How often a long step says how far it is where lines can't be overwritten (CI logs, pipes)."""

LIVE_INTERVAL_SECONDS = 0.1
"""The same on a terminal: often enough to look alive, seldom enough to cost nothing."""


class Progress:
    """Writes steps, with the seconds since it was made, to a stream.

    :param stream: default: the standard error of the moment of writing.
    :param quiet: write nothing at all.
    """

    def __init__(self, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self._stream = stream
        self._quiet = quiet
        self._started = time.monotonic()
        self._updated = self._started
        self._live = False

    def step(self, text: str) -> None:
        """Say that a step begins, or what came of it: a line that stays."""
        self._write(f"[{self.elapsed_seconds:6.1f} s] {text}", stays=True)

    def update(self, text: str) -> None:
        """Say how far the present step is: overwritten on a terminal, rare elsewhere."""
        terminal = self._out.isatty()
        now = time.monotonic()
        if now - self._updated < (LIVE_INTERVAL_SECONDS if terminal else QUIET_INTERVAL_SECONDS):
            return
        self._updated = now
        self._write(f"[{self.elapsed_seconds:6.1f} s] {text}", stays=not terminal)

    @property
    def elapsed_seconds(self) -> float:
        """Seconds since this was made."""
        return time.monotonic() - self._started

    @property
    def _out(self) -> TextIO:
        return self._stream if self._stream is not None else sys.stderr

    def _write(self, line: str, *, stays: bool) -> None:
        if self._quiet:
            return
        erase = "\r\x1b[K" if self._live else ""
        self._live = not stays
        self._out.write(erase + line + ("\n" if stays else ""))
        self._out.flush()


SILENT = Progress(quiet=True)
"""For callers that show nothing."""
