"""The lists and the filter that confine a guest, without a kernel: tests/runner/test_confinement.py has one."""

from __future__ import annotations

import errno
import re
import struct
from importlib import resources
from pathlib import Path

import pytest

from wherry_runner.execution import confinement, landlock, seccomp, syscalls
from wherry_runner.execution.seccomp import Answer
from wherry_runner.protocol import Confinement

NATIVE = Path(__file__).parents[2] / "runner" / "executor" / "src" / "sandbox"

HEADERS = {"x86_64": "x86-linux-any", "aarch64": "aarch64-linux-any"}
"""The kernel's own, as Zig ships them."""

MACHINES = tuple(HEADERS)

OWN_PROCESS = 42


def answer(machine: str, number: int, *arguments: int, architecture: int | None = None) -> int:
    """What the filter of process 42 answers, found as the kernel does: instruction by instruction."""
    words = (*arguments, *[0] * (6 - len(arguments)))
    architecture = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[machine] if architecture is None else architecture
    data = struct.pack("<IIQ6Q", number, architecture, 0, *words)
    program = seccomp.assemble(machine)
    accumulator, at = 0, 0
    while True:
        code, yes, no, k = program[at]
        k = OWN_PROCESS if k == seccomp.OWN_PROCESS else k
        at += 1
        match code:
            case seccomp.LOAD:
                (accumulator,) = struct.unpack_from("<I", data, k)
            case seccomp.AND:
                accumulator &= k
            case seccomp.IF_EQUAL:
                at += yes if accumulator == k else no
            case seccomp.IF_AT_LEAST:
                at += yes if accumulator >= k else no
            case seccomp.RETURN:
                return k
            case _:
                raise AssertionError(f"instruction {code:#x}")


ALLOWED, DENIED, UNKNOWN, KILLED = (
    seccomp.VALUES[one] for one in (Answer.ALLOW, Answer.DENY, Answer.UNKNOWN, Answer.KILL)
)


@pytest.mark.parametrize("machine", MACHINES)
def test_the_numbers_are_the_kernels(machine: str) -> None:
    header = resources.files("ziglang") / "lib" / "libc" / "include" / HEADERS[machine] / "asm" / "unistd_64.h"
    numbers = dict(re.findall(r"#define __NR_(\w+)\s+(\d+)$", header.read_text(), re.MULTILINE))
    assert {name: str(number) for name, number in syscalls.BY_MACHINE[machine].items()} == {
        name: numbers[name] for name in syscalls.BY_MACHINE["x86_64"] if name in numbers
    }


@pytest.mark.parametrize("machine", MACHINES)
def test_every_call_is_answered_as_its_list_says(machine: str) -> None:
    names = {number: name for name, number in syscalls.BY_MACHINE[machine].items()}
    for number in range(seccomp.LAST + 1):
        name = names.get(number, "")
        if name in seccomp.CONDITIONAL:
            continue
        lists = {ALLOWED: seccomp.ALLOWED, UNKNOWN: seccomp.UNKNOWN, KILLED: seccomp.KILLED}
        expected = next((value for value, known in lists.items() if name in known), DENIED)
        assert answer(machine, number) == expected, name or number


@pytest.mark.parametrize("machine", MACHINES)
def test_newer_calls_are_unheard_of_and_other_architectures_end_the_process(machine: str) -> None:
    x32 = 0x4000_0000
    for number in (seccomp.LAST + 1, x32, x32 + 1, 0xFFFF_FFFF):
        assert answer(machine, number) == UNKNOWN
    i386 = 0x4000_0003
    assert answer(machine, 1, architecture=i386) == KILLED


THREAD = 0x3D0F00  # CLONE_THREAD, with what a C library gives a thread beside it


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("call", "allowed", "denied"),
    [
        ("clone", (THREAD,), (17,)),  # 17: SIGCHLD, a process
        ("mmap", (0, 4096, 3), (0, 4096, 5)),  # PROT_READ with PROT_WRITE, with PROT_EXEC
        ("mprotect", (0, 4096, 0), (0, 4096, 7)),
        ("fcntl", (0, 3), (0, 8)),  # F_GETFL, F_SETOWN
        ("fcntl", (0, 1030), (0, 1024)),  # F_DUPFD_CLOEXEC, F_SETLEASE
        ("ioctl", (0, 0x5401), (0, 0x5412)),  # TCGETS, TIOCSTI
        ("prctl", (15,), (4,)),  # PR_SET_NAME, PR_SET_DUMPABLE
        ("prlimit64", (0, 7, 0), (0, 7, 0x1000)),
        ("prlimit64", (0, 7, 0), (0, 7, 1 << 32)),
        ("kill", (OWN_PROCESS,), (OWN_PROCESS - 1,)),
        ("kill", (OWN_PROCESS,), (0xFFFF_FFFF_FFFF_FFFF,)),  # -1: everybody
        ("tgkill", (OWN_PROCESS, 43), (0, 43)),
    ],
)
def test_arguments_decide_where_the_call_does_not(
    machine: str, call: str, allowed: tuple[int, ...], denied: tuple[int, ...]
) -> None:
    number = syscalls.BY_MACHINE[machine][call]
    assert answer(machine, number, *allowed) == ALLOWED
    assert answer(machine, number, *denied) == DENIED


def test_no_call_is_in_two_lists() -> None:
    lists = (seccomp.ALLOWED, seccomp.UNKNOWN, seccomp.KILLED, frozenset(seccomp.CONDITIONAL))
    assert sum(map(len, lists)) == len(frozenset().union(*lists))


def test_both_executors_have_the_same_lists() -> None:
    source = (NATIVE / "seccomp.rs").read_text().split("#[cfg(test)]")[0]

    def names(*constants: str) -> set[str]:
        bodies = [re.findall(rf"\nconst {name}:[^=]*= &\[(.*?)\];", source, re.DOTALL) for name in constants]
        return set(re.findall(r"libc::SYS_(\w+)", "".join(body for found in bodies for body in found)))

    assert names("ALLOWED", "ALLOWED_HERE") == seccomp.ALLOWED
    assert names("UNKNOWN") == seccomp.UNKNOWN
    assert names("KILLED", "KILLED_HERE") == seccomp.KILLED
    assert names("CONDITIONAL") == seccomp.CONDITIONAL.keys()
    last = re.search(r"const LAST: c_long = (\d+);", source)
    assert last and int(last[1]) == seccomp.LAST


def test_a_version_of_landlock_takes_away_what_it_knows() -> None:
    assert landlock.rights(0) == 0
    assert landlock.rights(1) == 2 * landlock.MAKE_SYM - 1
    assert landlock.rights(2) == landlock.rights(1) | landlock.REFER
    assert landlock.rights(3) == landlock.rights(4) == landlock.rights(2) | landlock.TRUNCATE
    assert landlock.rights(5) == landlock.rights(landlock.NEWEST_KNOWN) == landlock.rights(4) | 1 << 15
    for abi in range(1, landlock.NEWEST_KNOWN + 1):
        files, network, scope = struct.unpack("=QQQ", landlock.taken_away(abi))
        assert files == landlock.rights(abi)
        assert (network, scope) == (0b11 if abi >= 4 else 0, 0b11 if abi >= 6 else 0)


NOTHING = Confinement()
EVERYTHING = Confinement(no_new_privileges=True, landlock_abi=1, seccomp=True)


def test_what_is_required_and_there_is_not_missed() -> None:
    assert confinement.missing(confinement.parse(""), NOTHING) == ""
    assert confinement.missing(confinement.parse("landlock, seccomp,no-new-privileges"), EVERYTHING) == ""
    assert confinement.missing(confinement.parse("seccomp"), Confinement(seccomp=True)) == ""


def test_what_is_missed_is_named() -> None:
    sentence = confinement.missing(confinement.parse("seccomp,landlock"), Confinement(no_new_privileges=True))
    assert sentence.startswith("--require-confinement: guests can't be confined by landlock and seccomp here")
    assert "5.13" in sentence
    assert "no-new-privileges" not in sentence


def test_only_known_names_can_be_required() -> None:
    with pytest.raises(ValueError, match="apparmor, true is none of no-new-privileges, landlock, seccomp"):
        confinement.parse("landlock,true,apparmor")


def test_the_answers_are_the_kernels_codes() -> None:
    assert (DENIED & 0xFFFF, UNKNOWN & 0xFFFF) == (errno.EPERM, errno.ENOSYS)
