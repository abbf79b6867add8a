"""What somebody would try who came through wasmtime: each attempt from inside a confined process of its own.

`python -m tests.support.intruder SANDBOX GATES FOLDER` prints a JSON object with what came of each attempt: `ok`, the name
of an errno, or the signal that ended the process. SANDBOX is `python`, or the path of the native executor's sandbox as a
library (`tests/support/sandbox_library`). FOLDER was made by `furnish`. Run as root, it continues as nobody in
particular, because root passes through much of this.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from wherry_runner.execution import sandbox, syscalls
from wherry_runner.execution.sandbox import Confinement, Sandbox

NOBODY = 65532

GATES: dict[str, Callable[[Confinement], Confinement]] = {
    "none": lambda found: Confinement(),
    "landlock": lambda found: Confinement(no_new_privileges=True, landlock_abi=found.landlock_abi),
    "seccomp": lambda found: Confinement(no_new_privileges=True, seccomp=found.seccomp),
    "all": lambda found: found,
}
"""Which of the gates that the kernel has are closed."""

_PR_SET_DUMPABLE = 4
_PTRACE_SEIZE = 0x4206
_CLONE_NEWUSER = 0x1000_0000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p

_SECRET = ctypes.create_string_buffer(b"the parent's secret")
"""The parent of each attempt is this program: the child knows its addresses."""


class _Vector(ctypes.Structure):
    """`struct iovec`."""

    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


def _call(name: str, *arguments: int) -> int:
    return _checked(_libc.syscall(*map(ctypes.c_long, (syscalls.HERE[name], *arguments))))


def _checked(answer: int | None) -> int:
    if answer == -1 or answer is None:
        raise OSError(ctypes.get_errno(), "")
    return answer


def _fork() -> None:
    if os.fork() == 0:
        os._exit(0)


def _clone() -> None:
    if _call("clone", signal.SIGCHLD, 0, 0, 0, 0) == 0:
        os._exit(0)


def _thread() -> None:
    threading.Thread(target=time.sleep, args=(0,)).start()


def _read_parents_memory() -> None:
    found = ctypes.create_string_buffer(len(_SECRET))
    here = _Vector(ctypes.addressof(found), len(_SECRET))
    there = _Vector(ctypes.addressof(_SECRET), len(_SECRET))
    _checked(_libc.process_vm_readv(os.getppid(), ctypes.byref(here), 1, ctypes.byref(there), 1, ctypes.c_ulong(0)))
    assert found.raw == _SECRET.raw


def _open_parents_memory() -> None:
    with open(f"/proc/{os.getppid()}/mem", "r+b", buffering=0) as memory:
        memory.seek(ctypes.addressof(_SECRET))
        assert memory.read(len(_SECRET)) == _SECRET.raw


def _make_code() -> None:
    page = _map(mmap.PROT_READ | mmap.PROT_WRITE)
    _checked(_libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), mmap.PROT_READ | mmap.PROT_EXEC))


def _map(protection: int) -> int:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    address: int = _libc.mmap(None, ctypes.c_size_t(mmap.PAGESIZE), protection, flags, -1, ctypes.c_long(0))
    _checked(-1 if address == ctypes.c_void_p(-1).value else 0)
    return address


def _create(path: str) -> Callable[[], None]:
    return lambda: os.close(os.open(path, os.O_WRONLY | os.O_CREAT))


def _open(path: str, flags: int = os.O_RDONLY) -> Callable[[], None]:
    return lambda: os.close(os.open(path, flags))


def _rotate_log() -> None:
    os.rename("log/current", "log/current.1")
    _create("log/current")()


def _make_and_remove() -> None:
    os.mkdir("writable/folder")
    os.rmdir("writable/folder")
    os.symlink("/", "writable/link")
    os.unlink("writable/link")


def _change_limits() -> None:
    limits = (ctypes.c_uint64 * 2)(64, 64)
    _call("prlimit64", 0, resource.RLIMIT_NOFILE, ctypes.addressof(limits), 0)


class Belongings:
    """What a process had before it was confined, and tries to use."""

    def __init__(self) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind("")  # an abstract name of the kernel's choice
        self._listener.listen()
        self.abstract_name = self._listener.getsockname()
        self.unix_socket = socket.socket(socket.AF_UNIX)
        self.tcp_socket = socket.socket(socket.AF_INET)


def attempts(mine: Belongings) -> dict[str, Callable[[], object]]:
    """By name, what is tried; each returns, or raises OSError, or ends its process."""
    nowhere = ("127.0.0.1", 0)
    return {
        # Processes and programs.
        "fork": _fork,
        "clone": _clone,
        "clone3": lambda: _call("clone3", 0, 0),
        "execve": lambda: os.execv("/bin/true", ["true"]),
        "execve readable": lambda: os.execv("readable/file", ["file"]),
        "unshare": lambda: _call("unshare", _CLONE_NEWUSER),
        # Other processes.
        "signal parent": lambda: os.kill(os.getppid(), 0),
        "signal parent's thread": lambda: _call("tgkill", os.getppid(), os.getppid(), 0),
        "signal everybody": lambda: os.kill(-1, 0),
        "have parent signalled": lambda: fcntl.fcntl(mine.tcp_socket, fcntl.F_SETOWN, os.getppid()),
        "ptrace parent": lambda: _checked(_libc.ptrace(_PTRACE_SEIZE, os.getppid(), None, None)),
        "read parent's memory": _read_parents_memory,
        "open parent's memory": _open_parents_memory,
        # The network.
        "unix socket": lambda: socket.socket(socket.AF_UNIX),
        "tcp socket": lambda: socket.socket(socket.AF_INET),
        "udp socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        "socket pair": socket.socketpair,
        "tcp connect": lambda: mine.tcp_socket.connect(nowhere),
        "tcp bind": lambda: mine.tcp_socket.bind(nowhere),
        "abstract socket": lambda: mine.unix_socket.connect(mine.abstract_name),
        # Files that are not its own.
        "read outside": _open("outside/file"),
        "create outside": _create("outside/new"),
        "truncate outside": _open("outside/file", os.O_WRONLY | os.O_TRUNC),
        "list root": lambda: os.listdir("/"),
        "open own memory": _open("/proc/self/mem", os.O_RDWR),
        "follow link outside": _open("writable/way-out/file"),
        "move outside": lambda: os.rename("writable/movable", "outside/moved"),
        "move in": lambda: os.rename("outside/movable", "writable/moved"),
        "link in": lambda: os.link("outside/file", "writable/linked"),
        "change mode outside": lambda: os.chmod("outside/file", 0o600),
        "change folder": lambda: os.chdir("/"),
        "stat outside": lambda: os.stat("outside/file"),
        "set times outside": lambda: os.utime("outside/file"),
        "read link outside": lambda: os.readlink("outside/link"),
        "mount": lambda: _call("mount", 0, 0, 0, 0, 0),
        # Its own folders.
        "read readable": _open("readable/file"),
        "write readable": _open("readable/file", os.O_WRONLY),
        "create in readable": _create("readable/new"),
        "write writable": _open("writable/file", os.O_RDWR | os.O_TRUNC),
        "create in writable": _create("writable/new"),
        "make and remove": _make_and_remove,
        "make a pipe": lambda: os.mkfifo("writable/pipe"),
        # Its log.
        "append to log": _open("log/current", os.O_WRONLY | os.O_APPEND),
        "rotate log": _rotate_log,
        "read log": _open("log/current"),
        "move log out": lambda: os.rename("log/current", "writable/stolen"),
        "make a folder beside log": lambda: os.mkdir("log/folder"),
        # Memory, and the kernel's machinery.
        "map code": lambda: _map(mmap.PROT_READ | mmap.PROT_EXEC),
        "make code": _make_code,
        "memory file": lambda: os.memfd_create("code"),
        "become dumpable": lambda: _call("prctl", _PR_SET_DUMPABLE, 1, 0, 0, 0),
        "change limits": _change_limits,
        "bpf": lambda: _call("bpf", 0, 0, 0),
        "io_uring": lambda: _call("io_uring_setup", 1, 0),
        "userfaultfd": lambda: _call("userfaultfd", 0),
        "keyring": lambda: _call("keyctl", 0, 0, 0),
        # What running a module takes.
        "thread": _thread,
        "signal oneself": lambda: os.kill(os.getpid(), 0),
        "abort": os.abort,
        "map data": lambda: _map(mmap.PROT_READ | mmap.PROT_WRITE),
        "random": lambda: os.getrandom(8),
        "sleep": lambda: time.sleep(0),
    }


def furnish(folder: Path) -> None:
    """What the attempts find."""
    for name in (
        "readable/file",
        "writable/file",
        "writable/movable",
        "log/current",
        "outside/file",
        "outside/movable",
    ):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("contents")
        path.chmod(0o755)
    (folder / "writable" / "way-out").symlink_to("../outside")
    (folder / "outside" / "link").symlink_to("somewhere")


def main(chosen: str, gates: str, folder: str) -> None:
    """Try everything."""
    if os.geteuid() == 0:
        for entry in (Path(folder), *Path(folder).rglob("*")):
            os.chown(entry, NOBODY, NOBODY, follow_symlinks=False)
    os.chdir(folder)
    probe, confine = gates_of(chosen)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    # As a parent that could be inspected: that others can't be must be the sandbox's doing.
    _call("prctl", _PR_SET_DUMPABLE, 1, 0, 0, 0)
    found = probe()
    untouched = Path("/proc/self/status").read_text()
    chosen_gates = GATES[gates](found)
    outcomes = {
        name: _outcome(lambda: confine(chosen_gates), attempt) for name, attempt in attempts(Belongings()).items()
    }
    print(json.dumps({"found": found, "status after probe": untouched, "outcomes": outcomes}))


def gates_of(chosen: str) -> tuple[Callable[[], Confinement], Callable[[Confinement], None]]:
    folders = [os.open(name, os.O_RDONLY | os.O_DIRECTORY) for name in ("readable", "writable", "log")]
    readable, writable, log = folders
    if chosen == "python":
        # Its guests write no logs themselves: the log's folder is not theirs.
        return sandbox.probe, lambda found: Sandbox(found, readable=[readable], writable=[writable]).enter()
    native = ctypes.CDLL(chosen)

    def probe() -> Confinement:
        found: int = native.probe()
        return Confinement(bool(found & 256), found & 255, bool(found & 512))

    def confine(found: Confinement) -> None:
        number = found.landlock_abi | found.no_new_privileges << 8 | found.seccomp << 9
        assert native.apply(number, readable, writable, log) == 0

    return probe, confine


def _outcome(confine: Callable[[], None], attempt: Callable[[], object]) -> str:
    """What comes of an attempt in a child that was confined before."""
    child = os.fork()
    if child == 0:
        code = 255
        try:
            confine()
            code = _errno_of(attempt)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return signal.Signals(-code).name
    return "ok" if code == 0 else errno.errorcode.get(code, f"exit code {code}")


def _errno_of(attempt: Callable[[], object]) -> int:
    try:
        attempt()
    except OSError as error:
        return error.errno or 254
    return 0


if __name__ == "__main__":
    main(*sys.argv[1:])
