"""Failures, in the words that kubectl has for them."""

from __future__ import annotations


class CliError(Exception):
    """Ends the command with exit code 1; the message is all that is shown."""


class ServerError(CliError):
    """The API server refused. `status` is the HTTP status, `reason` Kubernetes' word for it."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"Error from server ({reason}): {message}" if reason else f"Error from server: {message}")
        self.status = status
        self.reason = reason
        self.message = message


class InvalidObject(ServerError):
    """The API server refuses an object's content: kubectl says it in other words, one line for each cause."""

    def __init__(self, status: int, kind: str, name: str, causes: list[str]) -> None:
        what = f'The {kind} "{name}" is invalid' if kind else "The request is invalid"
        super().__init__(status, "Invalid", ", ".join(causes))
        self.args = (
            what + (": " + causes[0] if len(causes) == 1 else ":" + "".join(f"\n* {each}" for each in causes)),
        )
