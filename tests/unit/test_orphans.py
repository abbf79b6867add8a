"""Whatever comes to a subreaper ends and is reaped, and nothing that somebody waits for is."""

from __future__ import annotations

import subprocess
import sys

SCENARIO = """
import asyncio, os, signal, subprocess, sys
from wherry_runner.execution import orphans
from wherry_runner.execution import process

LEAVES = '''
import os, sys, time
for lives in (True, False):
    if os.fork() == 0:
        if lives: time.sleep(600)
        os._exit(0)
sys.exit(7)
'''

def children():
    return open(f"/proc/self/task/{os.getpid()}/children").read().split()

async def main():
    process.become_subreaper()
    keeping = asyncio.create_task(orphans.keep_reaping(left_alone_seconds=0.1))
    await asyncio.sleep(0)
    pipes = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=None, pass_fds=())
    leaver = process.spawn([sys.executable, "-c", LEAVES], **pipes)
    keeper = process.spawn([sys.executable, "-c", "input()"], **{**pipes, "stdin": subprocess.PIPE})
    pidfd = os.pidfd_open(leaver.pid)
    await process.readable(pidfd)
    assert len(children()) == 4, "the two that the leaver left have come to us"
    while len(children()) > 2:
        await asyncio.sleep(0.01)
    assert sorted(children()) == sorted([str(leaver.pid), str(keeper.pid)]), "those who were started are left to whoever did"
    assert leaver.wait() == 7
    keeper.communicate(b"\\n")
    assert keeper.returncode == 0
    keeping.cancel()

asyncio.run(main())
"""


def test_orphans_end_and_are_reaped_and_other_children_are_left_alone() -> None:
    done = subprocess.run([sys.executable, "-c", SCENARIO], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
