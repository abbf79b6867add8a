"""What processes need beyond the standard library: prctl(2), death with the parent, limits, pidfds in asyncio.

Used by the executors, by guests and by the compiler. Nothing here knows of WebAssembly.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

# Numbers of <linux/prctl.h>: part of the kernel's ABI, which never changes.
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38

PYTHON = (sys.executable, "-I", "-m")
"""Runs one of our modules, isolated from the user's environment; the module's name and arguments follow."""

Stream = IO[bytes] | int
Child = subprocess.Popen[bytes]

_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, argument: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(argument), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def die_with_parent(parent_pid: int) -> None:
    """Let the kernel kill this process (SIGKILL) when its parent dies; exit at once if that has happened already.

    The signal fires when the *thread* that forked ends, so processes are spawned from a main thread only. It survives
    exec of an ordinary program, but not fork: every generation asks for it anew.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have died before the call above; then the kernel has nobody left to watch.
    if os.getppid() != parent_pid:
        os._exit(1)


def forbid_new_privileges() -> None:
    """Set no_new_privs: no setuid or file capability gives this process anything, ever. Raises OSError."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def forbid_inspection() -> None:
    """Make this process undumpable: others of the same user can't read its memory or descriptors. Raises OSError."""
    _prctl(_PR_SET_DUMPABLE, 0)


def become_subreaper() -> None:
    """Inherit the orphans of this process's descendants, so that their ends are seen and reaped. Raises OSError.

    For the runner's main process: should an executor die, its guests become the runner's children.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def forbid_core_dumps() -> None:
    """A core file would hold a guest's memory, and with it its Secrets."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def raise_descriptor_limit() -> int:
    """Let this process, and those that it spawns from now on, open as many descriptors as they may at all; how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def make_room_for_descriptors(count: int) -> None:
    """Have the kernel make this process's table of descriptors that large at once. Before the first thread: with threads, each
    time that it has to grow the process stands still for a grace period of RCU, 100 ms on a busy machine (Linux, fs/file.c,
    expand_fdtable). A lower limit of descriptors counts. Raises OSError."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    last = min(count, soft) - 1
    low = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.close(os.dup2(low, last, inheritable=False))
    finally:
        os.close(low)


def spawn(command: Sequence[str], *, stdin: Stream, stdout: Stream, stderr: Stream, pass_fds: Sequence[int]) -> Child:
    """Run a program as a process of its own: no environment, no terminal, no current folder. Raises OSError.

    On the main thread only (`die_with_parent`), and not by asyncio, which starts a thread for each child.
    """
    return subprocess.Popen(
        command,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        pass_fds=pass_fds,
        env={},
        cwd="/",
        start_new_session=True,
    )


class Ending(NamedTuple):
    """How a process ended (one of the first two is set), and what it used."""

    exit_code: int | None
    signal: int | None
    max_rss_bytes: int
    cpu_nanoseconds: int


def reap(pid: int) -> Ending | None:
    """The end of a child, which is thereby reaped; None while it runs. Raises ChildProcessError if it isn't ours."""
    found, status, used = os.wait4(pid, os.WNOHANG)
    if not found:
        return None
    code = os.waitstatus_to_exitcode(status)
    return Ending(
        exit_code=code if code >= 0 else None,
        signal=-code if code < 0 else None,
        max_rss_bytes=used.ru_maxrss << 10,
        cpu_nanoseconds=round((used.ru_utime + used.ru_stime) * 1e9),
    )


def children_in_session(session: int) -> list[int]:
    """This process's children that belong to a session: as a subreaper, it inherits them from the session's leader."""
    found = []
    try:
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        return []
    for pid in children:
        try:
            # After the name, which may hold anything: state, parent, process group, session (proc_pid_stat(5)).
            fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session:
            found.append(int(pid))
    return found


def cpu_clock(pid: int) -> int:
    """The number of the clock of all CPU time that a process uses, for `time.clock_gettime`."""
    return (~pid << 3) | 2  # how clock_getcpuclockid(3) makes it; 2 is CPUCLOCK_SCHED


async def readable(descriptor: int) -> None:
    """Wait until a descriptor is readable; for a pidfd, that its process has ended.

    One waiter per descriptor: an event loop knows one reader for each. A second waiter takes a duplicate.
    """
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(descriptor, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(descriptor)


def kill(pidfd: int) -> None:
    """SIGKILL to a process, if it still is there."""
    send_signal(pidfd, signal.SIGKILL)


def send_signal(pidfd: int, number: int) -> None:
    """A signal to a process, if it still is there."""
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)
