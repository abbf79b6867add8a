"""Requests as wrk makes them (`apt-get install wrk`), from a core of their own to a server that has another."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

SECONDS = 4

SERVERS_CORE, CLIENTS_CORE = 0, 1


@dataclass(frozen=True)
class Asked:
    """What wrk tells of one round."""

    per_second: float
    p50_ms: float
    p99_ms: float


def require() -> None:
    """End the process where wrk or a second core is missing."""
    if shutil.which("wrk") is None:
        sys.exit("error: wrk is missing, which makes the requests: apt-get install wrk")
    if (os.cpu_count() or 1) < 2:
        sys.exit("error: server and clients need a core each")


def pin(processes: Iterable[int]) -> None:
    """Keep all threads of these processes on the servers' core."""
    for process in processes:
        for thread in Path(f"/proc/{process}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {SERVERS_CORE})


async def ask(url: str, *, clients: int, seconds: int = SECONDS, wrk: Sequence[str] = ("wrk",)) -> Asked:
    """Let wrk make requests over so many connections.

    :param wrk: how it is started.
    :raises RuntimeError: a request was not answered with 2xx.
    """
    command = [*wrk, "--threads=1", f"--connections={clients}", f"--duration={seconds}s", "--latency", url]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, preexec_fn=_to_the_clients_core)
    output, _ = await process.communicate()
    text = output.decode()
    if process.returncode or "Non-2xx" in text or "Socket errors" in text:
        raise RuntimeError(f"not every request was answered (wrk ended with {process.returncode}):\n{text}")
    return Asked(_per_second(text), _percentile(text, 50), _percentile(text, 99))


def _to_the_clients_core() -> None:
    os.sched_setaffinity(0, {CLIENTS_CORE})


def _per_second(text: str) -> float:
    return float(_found(r"Requests/sec:\s+([\d.]+)", text)[0])


def _percentile(text: str, number: int) -> float:
    """In milliseconds."""
    value, unit = _found(rf"{number}%\s+([\d.]+)(us|ms|s)\b", text)
    return float(value) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[unit]


def _found(pattern: str, text: str) -> tuple[str, ...]:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"wrk's words were not understood:\n{text}")
    return match.groups()
