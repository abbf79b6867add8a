"""Runs a program inside a machine: `python enter.py PID PROGRAM ARGUMENTS...`; see `machine`.

Process ids of one's own begin with the children, so this stays outside as the program's parent, passes signals on,
and ends as the program does. It runs bare (`-I -S`): the standard library is all that it has.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
from typing import NoReturn

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)

PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def main(pid: int, program: list[str]) -> NoReturn:
    """Enter the namespaces of a process, and run a program there."""
    # All are opened first: with other mounts, /proc is another.
    for descriptor in [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY) for kind in ("net", "ipc", "uts", "pid", "mnt")]:
        if _libc.setns(descriptor, 0) != 0:
            sys.exit(f"can't enter the machine of process {pid}: {os.strerror(ctypes.get_errno())}")
        os.close(descriptor)
    alive, life = os.pipe()
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    child = os.fork()
    if child == 0:
        os.close(life)
        _become(program, alive)
    for number in PASSED_ON:
        signal.signal(number, lambda received, _: os.kill(child, received))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        signal.signal(os.WTERMSIG(status), signal.SIG_DFL) if os.WTERMSIG(status) != signal.SIGKILL else None
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def _become(program: list[str], alive: int) -> NoReturn:
    _libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if select.select([alive], [], [], 0)[0]:  # the parent died before that was set: end of file
        os._exit(1)
    os.close(alive)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execvp(program[0], program)
    except OSError as error:
        print(f"can't run {program[0]}: {error}", file=sys.stderr, flush=True)
    os._exit(127)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
