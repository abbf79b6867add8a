"""`kubectl wherry logs`."""

from __future__ import annotations

import os
import re
import sys
from argparse import Namespace

from wherry_cli.cluster import Cluster
from wherry_cli.errors import CliError

_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|h|m|s)")


def run(cluster: Cluster, given: Namespace) -> int:
    """Show a log; 0, for what kubectl calls success."""
    show(cluster, given.name, query(given))
    return 0


def query(given: Namespace) -> dict[str, str]:
    """The parameters of the request. Raises CliError."""
    if given.since and given.since_time:
        raise CliError("error: at most one of --since-time and --since may be used")
    found: dict[str, str] = {}
    for flag in ("follow", "previous", "timestamps", "prefix"):
        if getattr(given, flag):
            found[flag] = "true"
    if given.tail is not None and given.tail >= 0:
        found["tailLines"] = str(given.tail)
    if given.since:
        found["sinceSeconds"] = str(max(1, round(seconds(given.since))))
    if given.since_time:
        found["sinceTime"] = given.since_time
    if given.limit_bytes:
        found["limitBytes"] = str(given.limit_bytes)
    if given.instance:
        found["instance"] = given.instance
    return found


def seconds(text: str) -> float:
    """A duration as kubectl takes it: `5s`, `2m`, `1h30m`. Raises CliError."""
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise CliError(f'error: invalid argument "{text}" for "--since" flag: want a duration like 5s, 2m or 3h')
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def show(cluster: Cluster, name: str, wanted: dict[str, str]) -> None:
    """Copy a log to the standard output as it comes. Raises CliError."""
    with cluster.log(name, wanted) as pieces:
        for piece in pieces:
            try:
                sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()
            except BrokenPipeError:
                # Whoever read it (`head`) has enough. Python would complain when it flushes at its end.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                sys.exit(0)
