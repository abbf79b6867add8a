"""Runs a program as if the kernel lacked something.

`python -m tests.support.older_kernel LACKS PROGRAM ARGUMENT...`, where LACKS is a list like `landlock,seccomp`, of the names of
`--require-confinement`. A filter answers the calls as a kernel does that has never heard of them.
"""

from __future__ import annotations

import errno
import os
import sys

from wherry_runner.execution import confinement, process, seccomp, syscalls
from wherry_runner.execution.seccomp import IF_EQUAL, LOAD, RETURN, Instruction

_PR_SET_NO_NEW_PRIVS = 38

_ALLOW = Instruction(RETURN, 0, 0, 0x7FFF_0000)


def _fail(number: int) -> Instruction:
    return Instruction(RETURN, 0, 0, 0x0005_0000 | number)


def lacking(names: set[str]) -> list[Instruction]:
    """The filter."""
    program = [Instruction(LOAD, 0, 0, 0)]
    missing: list[str] = []
    if confinement.LANDLOCK in names:
        missing += ["landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"]
    if confinement.SECCOMP in names:
        missing += ["seccomp"]
    for call in missing:
        program += [Instruction(IF_EQUAL, 0, 1, syscalls.HERE[call]), _fail(errno.ENOSYS)]
    if confinement.NO_NEW_PRIVILEGES in names:
        first_argument = 16
        program += [
            Instruction(IF_EQUAL, 0, 3, syscalls.HERE["prctl"]),
            Instruction(LOAD, 0, 0, first_argument),
            Instruction(IF_EQUAL, 0, 1, _PR_SET_NO_NEW_PRIVS),
            _fail(errno.EINVAL),
        ]
    return [*program, _ALLOW]


if __name__ == "__main__":
    if os.geteuid() != 0:
        process.forbid_new_privileges()  # without it only root may have a filter
    seccomp.load(seccomp.encode(lacking(set(sys.argv[1].split(",")))))
    os.execvp(sys.argv[2], sys.argv[2:])
