"""What all failures have in common that are no bug of ours."""

from __future__ import annotations


class Expected(Exception):
    """A failure of something outside: the API server, a runner. It is told in one line; a traceback would say nothing."""


class StartError(Exception):
    """The operator can't work here; the message says what to do."""


def text(error: BaseException) -> str:
    """An error in words: some (time-outs, above all) have none of their own."""
    return str(error) or type(error).__name__
