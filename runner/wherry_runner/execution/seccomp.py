"""seccomp: which system calls a process may make, by a filter that it gives itself (seccomp(2)).

A list of what running a module needs; everything else fails with EPERM. What nobody but an intruder would try ends the
process. The native executor has the same lists (`runner/executor/src/sandbox/seccomp.rs`), and a test compares them:
CPython needs nothing beyond them once the module runs, since it then does no more than call wasmtime.

The filter is a binary search, assembled once, in the executor: the kernel translates and evaluates it anew for each guest.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cache
from typing import NamedTuple

from wherry_runner.execution import syscalls


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FILES = _names("""
close close_range dup dup2 dup3 fadvise64 fallocate fdatasync fstat fstatfs fsync ftruncate getdents getdents64 link linkat
lseek lstat mkdir mkdirat newfstatat open openat openat2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readlink
readlinkat readv rename renameat renameat2 rmdir stat statx symlink symlinkat unlink unlinkat utimensat write writev
""")
"""Of any file: which ones is Landlock's matter."""

_MEMORY = _names("brk madvise mremap munmap")

_THREADS = _names("""
epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd2 exit exit_group futex membarrier poll ppoll pselect6
restart_syscall rseq sched_getaffinity sched_yield select set_robust_list set_tid_address
""")
"""And what they wait by."""

_SIGNALS = _names("""
rt_sigaction rt_sigpending rt_sigprocmask rt_sigreturn rt_sigsuspend rt_sigtimedwait sigaltstack timer_create timer_delete
timer_getoverrun timer_gettime timer_settime
""")
"""To itself: traps arrive as such, and so does the timer that keeps a CPU ceiling."""

_CLOCKS = _names("""
clock_getres clock_gettime clock_nanosleep getcpu getegid geteuid getgid getpid getppid getrandom getrlimit getrusage gettid
gettimeofday getuid nanosleep sysinfo time times uname
""")
"""And random numbers, and what it is itself."""

ALLOWED = _FILES | _MEMORY | _THREADS | _SIGNALS | _CLOCKS

UNKNOWN = _names("clone3")
"""Answered with ENOSYS: the C library takes clone(2) instead, whose flags a filter can see."""

KILLED = _names("""
acct add_key adjtimex bpf chroot clock_adjtime clock_settime delete_module execve execveat finit_module fsconfig fsmount
fsopen fspick init_module io_uring_enter io_uring_register io_uring_setup ioperm iopl kcmp kexec_load keyctl modify_ldt mount
mount_setattr move_mount open_by_handle_at open_tree perf_event_open personality pidfd_getfd pidfd_open pidfd_send_signal
pivot_root process_madvise process_vm_readv process_vm_writev ptrace quotactl reboot request_key setdomainname sethostname
setns settimeofday swapoff swapon umount2 unshare userfaultfd vhangup
""")
"""Other processes, other programs, the kernel's own machinery, and ways around this filter: the process dies of SIGSYS."""

LAST = 462
"""The last system call that was weighed for these lists (mseal). A newer one is answered as by a kernel without it."""


class Answer(Enum):
    """What the filter says to a call."""

    ALLOW = auto()
    DENY = auto()
    """EPERM."""
    UNKNOWN = auto()
    """ENOSYS."""
    KILL = auto()


@dataclass(frozen=True)
class Condition:
    """A condition under which a call is allowed: on the lower half of one argument, all that the kernel reads of it here."""

    argument: int
    """Counted from 0."""
    values: tuple[int, ...]
    """It must be one of these."""
    mask: int = 0xFFFF_FFFF
    """After all but these bits were left out."""
    upper_half_too: bool = False
    """For a pointer: both halves must pass."""


OWN_PROCESS = 0xFFFF_FFFF
"""In an assembled filter, where the number of the process belongs that installs it. No process has this one."""

# Of <linux/sched.h>, <sys/mman.h>, <fcntl.h>, <asm/ioctls.h>, <linux/prctl.h>; the same on both architectures.
CLONE_THREAD = 0x1_0000
PROT_EXEC = 4
F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC = 0, 1, 2, 3, 4, 1030
TCGETS, FIONREAD, FIONBIO, FIOCLEX = 0x5401, 0x541B, 0x5421, 0x5451
PR_SET_NAME = 15

CONDITIONAL = {
    # A thread of this process; not another process.
    "clone": Condition(0, (CLONE_THREAD,), mask=CLONE_THREAD),
    # The executor has mapped the module's code before; from then on memory is data.
    "mmap": Condition(2, (0,), mask=PROT_EXEC),
    "mprotect": Condition(2, (0,), mask=PROT_EXEC),
    # Not F_SETOWN, by which the kernel sends signals to others in our name; no leases; no locks.
    "fcntl": Condition(1, (F_DUPFD, F_DUPFD_CLOEXEC, F_GETFD, F_GETFL, F_SETFD, F_SETFL)),
    # TCGETS is how a C library asks whether something is a terminal.
    "ioctl": Condition(1, (FIOCLEX, FIONBIO, FIONREAD, TCGETS)),
    # Threads give themselves names.
    "prctl": Condition(0, (PR_SET_NAME,)),
    # Limits are read and not changed.
    "prlimit64": Condition(2, (0,), upper_half_too=True),
    # By these abort(3) ends its own process.
    "kill": Condition(0, (OWN_PROCESS,)),
    "tgkill": Condition(0, (OWN_PROCESS,)),
}

_ARCHITECTURES = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}


class Instruction(NamedTuple):
    """Of classic BPF (`struct sock_filter`). A jump leaves out the next `yes` or `no` instructions."""

    code: int
    yes: int
    no: int
    k: int


# Codes of <linux/bpf_common.h>, and offsets in `struct seccomp_data`, whose arguments have their lower half first.
LOAD, AND, IF_EQUAL, IF_AT_LEAST, RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16

VALUES = {
    Answer.KILL: 0x8000_0000,
    Answer.UNKNOWN: 0x0005_0000 | errno.ENOSYS,
    Answer.DENY: 0x0005_0000 | errno.EPERM,
    Answer.ALLOW: 0x7FFF_0000,
}
"""SECCOMP_RET_*."""

_INSTRUCTION = struct.Struct("=HBBI")

_SET_MODE_FILTER = 1

_MACHINE = os.uname().machine

_libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def prepare() -> None:
    """Assemble the filter, so that no child has to."""
    if _MACHINE in _ARCHITECTURES:
        _encoded()


def install() -> None:
    """Give this thread and those that it will start the filter. Raises OSError."""
    if _MACHINE not in _ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no filter for {_MACHINE}")
    template, own_process = _encoded()
    instructions = bytearray(template)
    for offset in own_process:
        struct.pack_into("=I", instructions, offset, os.getpid())
    load(bytes(instructions))


def load(instructions: bytes) -> None:
    """Give this thread and those that it will start a filter. Raises OSError."""
    program = _Program(len(instructions) // _INSTRUCTION.size, instructions)
    arguments = (ctypes.c_long(_SET_MODE_FILTER), ctypes.c_long(0), ctypes.byref(program))
    if _libc.syscall(ctypes.c_long(syscalls.HERE["seccomp"]), *arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def ranges(numbers: Mapping[str, int]) -> list[tuple[int, Answer | Condition]]:
    """From which number on which answer holds, ascending from 0."""
    answers: list[Answer | Condition] = [*(Answer.DENY for _ in range(LAST + 1)), Answer.UNKNOWN]
    for names, answer in ((ALLOWED, Answer.ALLOW), (UNKNOWN, Answer.UNKNOWN), (KILLED, Answer.KILL)):
        for name in names & numbers.keys():
            answers[numbers[name]] = answer
    for name, condition in CONDITIONAL.items():
        answers[numbers[name]] = condition
    return [(number, answer) for number, answer in enumerate(answers) if number == 0 or answer != answers[number - 1]]


def encode(program: Iterable[Instruction]) -> bytes:
    """As the kernel reads it."""
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)


@cache
def _encoded() -> tuple[bytes, tuple[int, ...]]:
    """This machine's filter as the kernel reads it, and where the number of the installing process belongs."""
    filter_ = assemble(_MACHINE)
    k_offset = _INSTRUCTION.size - 4
    own_process = (at for at, instruction in enumerate(filter_) if instruction.k == OWN_PROCESS)
    return encode(filter_), tuple(at * _INSTRUCTION.size + k_offset for at in own_process)


def assemble(machine: str) -> tuple[Instruction, ...]:
    """The filter for a machine (`os.uname`), with OWN_PROCESS in place of a number: the search for the call's range, the tests of
    arguments, and each answer once, at the end, where all jumps reach it (forward, over 255 instructions at most).
    """
    steps = ranges(syscalls.BY_MACHINE[machine])
    filter_ = _Assembler()
    filter_.push(LOAD, _ARCHITECTURE)
    filter_.push(IF_EQUAL, _ARCHITECTURES[machine], no=Answer.KILL)
    filter_.push(LOAD, _NUMBER)
    filter_.search(steps)
    for condition in dict.fromkeys(answer for _, answer in steps if isinstance(answer, Condition)):
        filter_.check(condition)
    for answer, value in VALUES.items():
        filter_.land(answer)
        filter_.push(RETURN, value)
    return tuple(filter_.program)


@dataclass
class _Assembler:
    program: list[Instruction] = field(default_factory=list)
    open: list[tuple[int, str, Answer | Condition]] = field(default_factory=list)
    """Jumps whose target comes later: the instruction, which of its two ways, and where to."""

    def push(
        self, code: int, k: int, *, yes: Answer | Condition | None = None, no: Answer | Condition | None = None
    ) -> None:
        """Add an instruction, and where it leads if its condition holds or doesn't (None: to the next)."""
        for way, target in (("yes", yes), ("no", no)):
            if target is not None:
                self.open.append((len(self.program), way, target))
        self.program.append(Instruction(code, 0, 0, k))

    def land(self, target: Answer | Condition) -> None:
        """What comes next is this target."""
        for start, way, wanted in self.open:
            if wanted == target:
                self._lead_here(start, way)
        self.open = [jump for jump in self.open if jump[2] != target]

    def search(self, steps: list[tuple[int, Answer | Condition]]) -> None:
        """Halve the ranges until there is one."""
        middle = len(steps) // 2
        fork = len(self.program)
        self.push(IF_AT_LEAST, steps[middle][0])
        for half, way in ((steps[:middle], "no"), (steps[middle:], "yes")):
            if len(half) == 1:
                self.open.append((fork, way, half[0][1]))
            else:
                self._lead_here(fork, way)
                self.search(half)

    def check(self, condition: Condition) -> None:
        """Look at an argument."""
        self.land(condition)
        offset = _ARGUMENTS + 8 * condition.argument
        if condition.upper_half_too:
            self.push(LOAD, offset + 4)
            self.push(IF_EQUAL, condition.values[0], no=Answer.DENY)
        self.push(LOAD, offset)
        if condition.mask != 0xFFFF_FFFF:
            self.push(AND, condition.mask)
        for value in condition.values[:-1]:
            self.push(IF_EQUAL, value, yes=Answer.ALLOW)
        self.push(IF_EQUAL, condition.values[-1], yes=Answer.ALLOW, no=Answer.DENY)

    def _lead_here(self, start: int, way: str) -> None:
        distance = len(self.program) - start - 1
        if distance > 255:
            raise OverflowError("a jump reaches 255 instructions")
        self.program[start] = self.program[start]._replace(**{way: distance})
