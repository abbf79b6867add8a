"""A machine of its own, made of namespaces: network, mounts, processes, host name. Needs root, leaves nothing.

What is started in it sees the host's files, but has interfaces, firewall, mounts and process ids of its own. They
belong to the machine's first process, which dies with ours: the kernel then kills all others in there, containers
among them, and drops the interfaces and mounts. So a test that is killed leaves no process and no mount behind.

Network namespaces here have no name below /run/netns: the first `ip netns add` on a machine mounts that folder over
itself, and the host would not be as before.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

from tests.cluster.errors import ClusterError
from tests.cluster.processes import Identity, Process, wait_for

START_TIMEOUT_SECONDS = 30.0
"""It takes a tenth of a second."""

COMMAND_TIMEOUT_SECONDS = 60.0
"""For `mount`, `ip` and the like."""

CLONE_NEWNET = 0x40000000

_FIRST = """
import signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans of the machine become ours: no zombies
print("ready", flush=True)
while True:
    signal.pause()
"""

_ENTER = Path(__file__).resolve().parent / "enter.py"

_PRIVATE = ("/var/lib", "/var/log")
"""Kubelet, containerd and CNI write there at fixed paths: their changes go to memory, over the host's files."""

_SYSCTLS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""What a kubelet wants of the kernel. There is one kernel, and it is the host's: so the kubelet is shown these."""


class Machine:
    """A machine: up from `start()` to `stop()`, or to the death of this process.

    :param name: its host name.
    :param log: of its first process.
    """

    def __init__(self, name: str, *, log: Path) -> None:
        self.name = name
        self._log = log
        self.process: Process | None = None
        self._pid = 0

    def start(self) -> None:
        """Make it: loopback is up, /run is empty, /var/lib and /var/log keep no change."""
        unshare = ["unshare", "--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child=KILL"]
        first = [sys.executable, "-I", "-S", "-c", _FIRST]
        self._log.unlink(missing_ok=True)
        self.process = Process.start(f"machine {self.name}", [*unshare, *first], log=self._log)
        self.process.wait_until(
            lambda: "ready" in self._log.read_text(), what="ready", timeout_seconds=START_TIMEOUT_SECONDS
        )
        self._pid = child_of(self.process.pid)
        # Who sweeps kills this one, and it is gone only after all others.
        self.process.identity = Identity.of(self._pid)
        # Shared, as systemd does it, for volumes with mount propagation; `unshare` cut the way to the host's.
        self.run("mount", "--make-rshared", "/")
        self.run("mount", "-t", "proc", "proc", "/proc")
        self.run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
        for folder in _PRIVATE:
            upper, work = f"/run/private{folder}/upper", f"/run/private{folder}/work"
            self.run("mkdir", "-p", upper, work)
            self.run("mount", "-t", "overlay", "-o", f"lowerdir={folder},upperdir={upper},workdir={work}", "x", folder)
        self._show_sysctls()
        self.run("hostname", self.name)
        self.run("ip", "link", "set", "lo", "up")

    def stop(self) -> None:
        """End every process in it; the rest goes with them. Does nothing if it isn't up."""
        if self.process is None:
            return
        first = Path(f"/proc/{self._pid}")
        self.process.kill()
        self.process = None
        # The first process is gone only after all others: then nobody holds a file or a cgroup any more.
        if self._pid and not wait_for(lambda: not first.exists(), timeout_seconds=START_TIMEOUT_SECONDS):
            raise ClusterError(f"the processes of machine {self.name!r} don't end")

    @property
    def network(self) -> Path:
        """Its network namespace, for `nsenter --net=...`."""
        return network_of(self._pid)

    @property
    def pid(self) -> int:
        """Its first process, as the host counts."""
        return self._pid

    def run(
        self, *command: str | Path, input: str | None = None, env: Mapping[str, str] | None = None, check: bool = True
    ) -> str:
        """Run a command in the machine, and return what it printed.

        :raises ClusterError: it failed (if `check`).
        """
        done = subprocess.run(
            ["nsenter", "-t", str(self._pid), "-m", "-n", "-p", "-i", "-u", "--", *map(str, command)],
            input=input if input is not None else "",
            env=dict(env) if env is not None else None,
            capture_output=True,
            text=True,
            timeout=COMMAND_TIMEOUT_SECONDS,
            check=False,
        )
        if check and done.returncode != 0:
            raise ClusterError(f"{self.name}: {' '.join(map(str, command))}: {done.stderr.strip()}")
        return done.stdout

    def spawn(
        self, name: str, command: Sequence[str | Path], *, log: Path, env: Mapping[str, str] | None = None
    ) -> Process:
        """Start a program in the machine; signals to the returned process reach it."""
        stub: list[str | Path] = [sys.executable, "-I", "-S", _ENTER, str(self._pid)]
        return Process.start(name, [*stub, *command], log=log, env=env)

    def in_network(self, *command: str | Path) -> list[str]:
        """Return the command line that runs a command with the machine's network, but the host's all else."""
        return in_network(self.network, *command)

    def connect(self, address: tuple[str, int], timeout: float) -> socket.socket:
        """Connect from inside the machine."""
        return connect_from(self.network, address, timeout)

    def _show_sysctls(self) -> None:
        self.run("mkdir", "-p", "/run/sysctl")
        for name, value in _SYSCTLS.items():
            shown = f"/run/sysctl/{name.replace('/', '.')}"
            self.run("sh", "-c", f"echo {value} > {shown} && mount --bind {shown} /proc/sys/{name}")


def connect_from(network: Path, address: tuple[str, int], timeout: float) -> socket.socket:
    """Connect from inside a network namespace: a socket belongs to the one in which it was made.

    :raises OSError: there is no such namespace, or nobody listens.
    """
    made: Future[socket.socket] = Future()

    def make() -> None:
        try:
            _enter_network(network)
            made.set_result(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        except BaseException as error:
            made.set_exception(error)

    threading.Thread(target=make, name="enter network").start()  # only this thread changes its network, and it ends
    connection = made.result()
    try:
        connection.settimeout(timeout)
        connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


def network_of(pid: int) -> Path:
    """Return the network namespace of a process."""
    return Path(f"/proc/{pid}/ns/net")


def in_network(network: Path, *command: str | Path) -> list[str]:
    """Return the command line that runs a command in a network namespace, but with the host's all else."""
    return ["nsenter", f"--net={network}", "--", *map(str, command)]


def _enter_network(network: Path) -> None:
    descriptor = os.open(network, os.O_RDONLY)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(descriptor, CLONE_NEWNET) != 0:  # os.setns comes with Python 3.12
            raise OSError(ctypes.get_errno(), f"can't enter {network}")
    finally:
        os.close(descriptor)


def child_of(pid: int) -> int:
    """Return the one child of a process: what `enter.py` or `unshare` runs."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)
