"""A process with memory of its own and children that have more, which nobody may look into: like an executor's guests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

MIB = 1 << 20

SHARED_BYTES = 64 * MIB
OWN_BYTES = 32 * MIB

_PROGRAM = f"""
import ctypes, mmap, os, sys, time
def fill(size):
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE)
    for page in range(0, size, 4096): memory[page] = 1
    return memory
shared = fill({SHARED_BYTES})
for _ in range(int(sys.argv[1])):
    if os.fork() == 0:
        ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
        ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG
        own = fill({OWN_BYTES})
        end = time.process_time() + 0.2
        while time.process_time() < end: pass
        os.write(1, b"%d\\n" % os.getpid())
        time.sleep(600)
        os._exit(0)
while True: os.wait()
"""


class Family:
    """As a context manager it lives inside."""

    def __init__(self, children: int) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", _PROGRAM, str(children)], stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.parent = self._process.pid
        self.children = [int(self._process.stdout.readline()) for _ in range(children)]

    def __enter__(self) -> Family:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self.children:
            os.kill(child, signal.SIGKILL)
        self._process.kill()
        self._process.communicate()
