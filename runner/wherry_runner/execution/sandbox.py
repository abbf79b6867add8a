"""What confines a guest's process, before the first byte of its module is interpreted: the python executor's side.

Three gates of the kernel, all open to an unprivileged process, none of which can be opened again:

  - **no_new_privs**: no setuid program and no file capability gives it anything.
  - **Landlock** (`landlock.py`): the guest's folders are all of the file system; no TCP port, no abstract Unix socket of
    others, no signal to others, no ptrace of others.
  - **seccomp** (`seccomp.py`): a list of the system calls that running a module needs. No process, no socket, no program, no
    executable memory.

WebAssembly is the wall; this is what somebody who came through it would find. What the kernel has is tried once, by `probe`;
from then on each guest gets exactly that or is not run. The native executor does the same in Rust
(`runner/executor/src/sandbox/`), and the same tests hold for both.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from wherry_runner.execution import landlock, process, seccomp


class Confinement(NamedTuple):
    """What is in force for every guest on this kernel."""

    no_new_privileges: bool = False
    landlock_abi: int = 0
    """Version of the kernel's Landlock interface that is used; 0: none."""
    seccomp: bool = False


class NotConfined(Exception):
    """A gate that the kernel has did not close: the guest must not be run."""


def probe() -> Confinement:
    """Try what this kernel gives, in a child that is thrown away. Raises OSError if no child can be made.

    For a process with one thread, which stays as it was. A gate counts when what it forbids was seen to fail.
    """
    seccomp.prepare()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, bytes(_try_all()))
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        found = pipe.read()
    os.waitpid(child, 0)
    # Empty if the child died of a gate: then there is none that could be relied on.
    return Confinement(bool(found[0]), found[1], bool(found[2])) if len(found) == 3 else Confinement()


class Sandbox:
    """What a process is about to be confined to.

    Made while its folders are open, and entered when they have been handed over to WASI, which opens each anew: were ours
    still open then, only half as many would fit into a guest's limit of descriptors.
    """

    def __init__(self, confinement: Confinement, *, readable: Sequence[int] = (), writable: Sequence[int] = ()) -> None:
        """The folders are open descriptors. Raises NotConfined if the kernel does not take one."""
        self._confinement = confinement
        self._ruleset = -1
        if confinement.landlock_abi:
            with _gate("Landlock"):
                self._ruleset = landlock.ruleset(confinement.landlock_abi, readable=readable, writable=writable)

    def enter(self) -> None:
        """Confine this process, which must have one thread, and the threads that it will start. There is no way back.

        From here on nothing can be opened but what is in the folders, not even a module of Python's library: what is needed
        must have been imported. Raises NotConfined if a gate does not close.
        """
        if self._confinement.no_new_privileges:
            with _gate("no_new_privs"):
                process.forbid_new_privileges()
        if self._ruleset >= 0:
            with _gate("Landlock"):
                landlock.enforce(self._ruleset)
        if self._confinement.seccomp:
            # Last, for it forbids the calls that the others are made of.
            with _gate("seccomp"):
                seccomp.install()


@contextmanager
def _gate(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NotConfined(f"this process can't be confined by {name}: {error}") from error


def _try_all() -> Confinement:
    """In a child: close one gate after the other, and see whether it holds."""
    abi = landlock.abi()
    return Confinement(
        no_new_privileges=_closes(Confinement(no_new_privileges=True)),
        landlock_abi=abi if _closes(Confinement(landlock_abi=abi)) and not _opens_root() else 0,
        seccomp=_closes(Confinement(seccomp=True)) and not _opens_socket(),
    )


def _closes(gate: Confinement) -> bool:
    try:
        Sandbox(gate).enter()
    except NotConfined:
        return False
    return True


def _opens_root() -> bool:
    try:
        os.close(os.open("/", os.O_RDONLY | os.O_DIRECTORY))
    except PermissionError:
        return False
    return True


def _opens_socket() -> bool:
    try:
        socket.socket(socket.AF_UNIX).close()
    except PermissionError:
        return False
    return True
