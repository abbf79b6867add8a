"""What a runner demands of its kernel (`--require-confinement`), and whether it has it. Pure."""

from __future__ import annotations

from collections.abc import Collection

from wherry_runner.protocol import Confinement

NO_NEW_PRIVILEGES = "no-new-privileges"
LANDLOCK = "landlock"
SECCOMP = "seccomp"

_REMEDIES = {
    NO_NEW_PRIVILEGES: "Linux has it since 3.5",
    LANDLOCK: "Linux has it since 5.13, if it was built with it and /sys/kernel/security/lsm lists it",
    SECCOMP: "Linux must have been built with CONFIG_SECCOMP_FILTER",
}

GATES = tuple(_REMEDIES)


def parse(text: str) -> frozenset[str]:
    """A list separated by commas, e.g. `landlock,seccomp`; empty: nothing is demanded. Raises ValueError."""
    names = frozenset(name for part in text.split(",") if (name := part.strip()))
    if unknown := sorted(names - set(GATES)):
        raise ValueError(f"{', '.join(unknown)} is none of {', '.join(GATES)}")
    return names


def missing(required: Collection[str], found: Confinement) -> str:
    """What is demanded and not in force, as a sentence that says what to do; empty if all is there."""
    in_force = {
        NO_NEW_PRIVILEGES: found.no_new_privileges,
        LANDLOCK: found.landlock_abi > 0,
        SECCOMP: found.seccomp,
    }
    lacking = [gate for gate in GATES if gate in required and not in_force[gate]]
    if not lacking:
        return ""
    remedies = "; ".join(f"{gate}: {_REMEDIES[gate]}" for gate in lacking)
    return (
        f"--require-confinement: guests can't be confined by {' and '.join(lacking)} here ({remedies}; a container's seccomp "
        "profile may forbid it too). Give the runner another kernel or profile, or demand less"
    )
