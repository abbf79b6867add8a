"""Child processes that die with their parent, log to a file of their own, and are stopped in bounded time.

A parent that is killed can't clean up, so the kernel does it (PR_SET_PDEATHSIG). Two traps:

* The signal comes when the *thread* that forked ends, not the process. All forks are therefore done by one
  thread that lives as long as the process.
* The setting must be made in the child, before the program runs. Python code between fork and exec can
  deadlock in a process with threads, so a stub (a second, bare Python) makes it after exec, then becomes the
  program.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.errors import ProcessFailed

STOP_TIMEOUT_SECONDS = 10.0
"""After SIGTERM; then SIGKILL."""

POLL_SECONDS = 0.02
"""How often conditions are looked at while waiting: a cluster's start is made of half a dozen such waits."""

_STUB = """
import ctypes, os, signal, sys
parent, program = int(sys.argv[1]), sys.argv[2:]
ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)  # 1: PR_SET_PDEATHSIG
if os.getppid() != parent:  # it died before the setting was made
    os._exit(1)
for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python; what is ignored stays so across exec
    signal.signal(ignored, signal.SIG_DFL)
try:
    os.execv(program[0], program)
except OSError as error:
    print(f"can't run {program[0]}: {error}", file=sys.stderr, flush=True)
    os._exit(127)
"""


@dataclass(frozen=True)
class Identity:
    """A process id that can't be mistaken for a later process's: with the start time from /proc."""

    pid: int
    start_time: int

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """Return the identity of a process that is there (and no zombie), else None."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The second field is the name in parentheses, which may hold anything: count from the last one.
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in ("Z", "X") else cls(pid=pid, start_time=int(fields[19]))

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        return Identity.of(self.pid) == self

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if the process is still there."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.alive:  # checked after the pidfd was opened: from here on the id can't be reused unseen
                signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            pass
        finally:
            os.close(descriptor)

    def wait_gone(self, timeout_seconds: float) -> bool:
        """Wait until the process is gone; False if it is still there after `timeout_seconds`."""
        return wait_for(lambda: not self.alive, timeout_seconds=timeout_seconds)


class Process:
    """A running child. Its standard output and error go to `log` (appended)."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes], *, log: Path) -> None:
        self.name = name
        self.log = log
        self.pid = popen.pid
        self.identity = Identity.of(popen.pid)
        """None if it ended at once."""
        self._popen = popen
        self._stopping = False

    @classmethod
    def start(
        cls,
        name: str,
        command: Sequence[str | Path],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Process:
        """Start a program that dies with this process.

        :param name: used in messages.
        :param command: the program (a path, or found on PATH) and its arguments.
        :param log: its output is appended here; the folder is made if needed.
        :param env: the whole environment; default: this process's.
        :raises FileNotFoundError: the program isn't on PATH.
        """
        program = _resolve(str(command[0]))
        log.parent.mkdir(parents=True, exist_ok=True)
        stub = [sys.executable, "-I", "-S", "-c", _STUB, str(os.getpid())]

        def spawn() -> subprocess.Popen[bytes]:
            with log.open("ab") as output:
                return subprocess.Popen(
                    [*stub, program, *map(str, command[1:])],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=dict(env) if env is not None else None,
                    cwd=cwd,
                    start_new_session=True,  # Ctrl-C is for us: we stop it in order
                )

        return cls(name, _forker.run(spawn), log=log)

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    @property
    def returncode(self) -> int | None:
        """The exit code (negative: the signal), None while it runs."""
        return self._popen.poll()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens if it has ended."""
        self._popen.send_signal(number)

    def terminate(self) -> None:
        """Ask it to stop, without waiting: several can so stop side by side."""
        self._stopping = True
        self._popen.terminate()

    def stop(self, *, timeout_seconds: float = STOP_TIMEOUT_SECONDS) -> int:
        """Stop it with SIGTERM (unless `terminate` was called), then SIGKILL, and return its exit code."""
        if self.running and not self._stopping:
            self.terminate()
        try:
            return self._popen.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return self.kill()

    def kill(self) -> int:
        """Kill it now, and return its exit code."""
        self._popen.kill()
        return self._popen.wait()

    def tail(self, lines: int = 20) -> str:
        """Return the last lines of its log."""
        return tail(self.log, lines)

    def failure(self, what: str) -> ProcessFailed:
        """Make the error that says what went wrong, with the end of the log."""
        return ProcessFailed(what, log=self.log, tail=self.tail())

    def wait_until(self, condition: Callable[[], bool], *, what: str, timeout_seconds: float) -> None:
        """Wait for a condition that this process is to bring about.

        :param what: "ready", "listening": completes "NAME is not ...".
        :raises ProcessFailed: it ended, or the time is up.
        """
        done = wait_for(lambda: not self.running or condition(), timeout_seconds=timeout_seconds)
        if done and self.running:
            return
        if self.running:
            raise self.failure(f"{self.name} is not {what} after {timeout_seconds:.0f} s")
        raise self.failure(f"{self.name} ended with exit code {self.returncode} before it was {what}")


def wait_for(condition: Callable[[], bool], *, timeout_seconds: float) -> bool:
    """Wait until a condition holds; False if it doesn't within `timeout_seconds`."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def tail(log: Path, lines: int = 20) -> str:
    """Return the last lines of a file; empty if there is none."""
    limit_bytes = 64 * 1024
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - limit_bytes))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def _resolve(program: str) -> str:
    if os.sep in program:
        return os.path.abspath(program)
    for folder in os.get_exec_path():
        path = os.path.join(folder, program)
        if os.access(path, os.X_OK):
            return os.path.abspath(path)
    raise FileNotFoundError(f"no program {program!r} on PATH")


_Spawn = Callable[[], "subprocess.Popen[bytes]"]


class _Forker:
    """The one thread that forks. A daemon: it ends when the process does, and with it the children."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._jobs: queue.SimpleQueue[tuple[_Spawn, Future[subprocess.Popen[bytes]]]]

    def run(self, job: _Spawn) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._owner != os.getpid():  # not started yet, or we are a fork of who started it
                self._jobs = queue.SimpleQueue()
                threading.Thread(target=self._work, name="forker", daemon=True).start()
                self._owner = os.getpid()
        future: Future[subprocess.Popen[bytes]] = Future()
        self._jobs.put((job, future))
        return future.result()

    def _work(self) -> None:
        while True:
            job, future = self._jobs.get()
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)


_forker = _Forker()
