"""Ends and reaps what was left to us by processes that we started and that are gone.

The runner is a subreaper: an executor's guests become its children when the executor dies, and so would whatever a compiler
left behind. Who started a process reaps it, and an executor's adapter its guests (`execution/link.py`). What nobody asks for
would stay for ever, as a zombie or alive: this finds it.
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from pathlib import Path

LEFT_ALONE_SECONDS = 2.0
"""So long whoever knows a process is left the chance to reap it."""


async def keep_reaping(*, left_alone_seconds: float = LEFT_ALONE_SECONDS) -> None:
    """Look after each end of a child; runs until it is cancelled."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGCHLD, ended.set)
    try:
        while True:
            await ended.wait()
            ended.clear()
            await asyncio.sleep(left_alone_seconds)
            suspects = orphans()
            while suspects:
                await asyncio.sleep(left_alone_seconds)
                end(suspects & orphans())
                suspects = orphans()
    finally:
        loop.remove_signal_handler(signal.SIGCHLD)


def orphans() -> set[int]:
    """Children that we did not start: what we start leads a session of its own (`execution/process.py`, `spawn`)."""
    found = set()
    for number in _children():
        with suppress(OSError, IndexError):
            # After the name, which may hold anything: state, parent, process group, session (proc_pid_stat(5)).
            fields = Path(f"/proc/{number}/stat").read_bytes().rpartition(b")")[2].split()
            if int(fields[3]) != number:
                found.add(number)
    return found


def end(children: set[int]) -> None:
    """Kill and reap; who is not dead yet is reaped when asked again. A child's number is its own until it is reaped."""
    for number in children:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(number, signal.SIGKILL)
            os.waitpid(number, os.WNOHANG)


def _children() -> list[int]:
    path = Path(f"/proc/self/task/{os.getpid()}/children")
    try:
        return [int(number) for number in path.read_text().split()]
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        return []
