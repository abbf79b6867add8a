"""The python executor's process: `python -m wherry_runner.execution.zygote FD PARENT_PID ALLOWANCES_FD`.

It loads wasmtime once, keeps compiled modules loaded, and forks one process per guest, so that a guest starts in
milliseconds and shares all it can. It speaks `channel.py` on FD.

What must stay true, or children hang or share secrets (facts: wasmtime.md §3, executor.md):
  - one thread: it never compiles and never runs a module; checked after every load;
  - it never reads a guest's payload, never builds a guest's context, never draws a random number;
  - it holds a guest's descriptors only until it has forked.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
from collections import OrderedDict
from collections.abc import Iterable

import wasmtime
from wasmtime import component

from wherry_runner.execution import channel, guest, process, sandbox
from wherry_runner.execution.engine import ModuleKind, Variant
from wherry_runner.execution.wasmtime_config import engine_name, guest_engine

MAX_LOADED_MODULES = 64
"""Modules kept loaded: each holds a descriptor and address space, its code is shared page cache. Loading one again costs
30 µs to a few milliseconds."""

SHADOWED_MODULE = "wasi_snapshot_preview1"


class NotLoadable(Exception):
    """A compiled module can't be run by this executor; the text is for the user."""


class Loader:
    """Loads and links what was compiled as one variant."""

    def __init__(self, variant: Variant) -> None:
        self.engine = guest_engine(variant, parallel=False)
        self._core_linker = wasmtime.Linker(self.engine)
        self._core_linker.allow_shadowing = True
        self._core_linker.define_wasi()
        exit_type = wasmtime.FuncType([wasmtime.ValType.i32()], [])
        self._core_linker.define_func(SHADOWED_MODULE, "proc_exit", exit_type, _proc_exit)
        # Without wasi:http: linked but not configured in the store, its first use would abort the process.
        self._component_linker = component.Linker(self.engine)
        self._component_linker.add_wasip2()

    def load(self, kind: str, descriptor: int) -> guest.Loaded:
        """What the descriptor holds. Raises NotLoadable, WasmtimeError."""
        path = f"/proc/self/fd/{descriptor}"
        before = _open_descriptors()
        if kind == ModuleKind.CORE:
            module = wasmtime.Module.deserialize_file(self.engine, path)
            kept = _open_descriptors() - before
            command = self._core_linker.instantiate_pre(module)
            return guest.Loaded(engine=self.engine, descriptors=tuple(kept), command=command)
        loaded = component.Component.deserialize_file(self.engine, path)
        kept = _open_descriptors() - before
        if missing := missing_imports(loaded.type.imports(self.engine)):
            raise NotLoadable(missing)
        return guest.Loaded(
            engine=self.engine, descriptors=tuple(kept), component=loaded, linker=self._component_linker
        )


class ModuleCache:
    """Compiled modules, loaded; the least recently used go first."""

    def __init__(self) -> None:
        self._loaders = {variant: Loader(variant) for variant in Variant}
        self._modules: OrderedDict[str, guest.Loaded] = OrderedDict()

    def get(self, key: str, *, kind: str, variant: str, descriptor: int) -> guest.Loaded:
        """The module, loaded from the descriptor if it isn't yet. Raises NotLoadable."""
        if key in self._modules:
            self._modules.move_to_end(key)
            return self._modules[key]
        try:
            loaded = self._loaders[Variant(variant)].load(kind, descriptor)
        except (wasmtime.WasmtimeError, ValueError) as error:
            raise NotLoadable(str(error)) from None
        self._modules[key] = loaded
        if len(self._modules) > MAX_LOADED_MODULES:
            self._modules.popitem(last=False)
        # What is here now will be in every child: frozen, no child's collector touches (and so copies) its pages.
        gc.collect()
        gc.freeze()
        return loaded


def missing_imports(imports: Iterable[str]) -> str:
    """What a component imports and doesn't get, as a sentence; empty if all is there."""
    names = list(imports)
    if http := [name for name in names if name.startswith("wasi:http/")]:
        return f"the component wants outbound HTTP (it imports {', '.join(http)}), which this runner does not give"
    given = ("wasi:cli/", "wasi:clocks/", "wasi:filesystem/", "wasi:io/", "wasi:random/", "wasi:sockets/")
    if unknown := [name for name in names if not (name.startswith(given) and "@0.2." in name)]:
        return f"the component imports {', '.join(unknown[:5])}, which no runner provides: WASI 0.2 is given"
    return ""


def _proc_exit(code: int) -> None:
    raise guest.ProcExit(code)


def _open_descriptors() -> set[int]:
    # The descriptor by which the folder itself is listed is closed again when the list is there.
    return {number for number in map(int, os.listdir("/proc/self/fd")) if _is_open(number)}


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


class Zygote:
    """The executor's loop: one socket, and a pidfd for each guest."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._confinement = sandbox.probe()
        self._modules = ModuleCache()
        self._guests: dict[int, tuple[int, str]] = {}  # pidfd → process and guest
        self._epoll = select.epoll()
        self._epoll.register(sock, select.EPOLLIN)

    def serve(self) -> None:
        """Until the supervisor is gone; the kernel then kills the guests."""
        ready = channel.Ready(
            engine=engine_name(),
            features=["fuel"],
            no_new_privileges=self._confinement.no_new_privileges,
            landlock_abi=self._confinement.landlock_abi,
            seccomp=self._confinement.seccomp,
        )
        channel.send(self._socket, ready)
        while True:
            for descriptor, _ in self._epoll.poll():
                if descriptor in self._guests:
                    self._reap(descriptor)
                elif not self._receive():
                    return

    def _receive(self) -> bool:
        received = channel.receive(self._socket)
        if received is None:
            return False
        message, descriptors = received
        try:
            match message:
                case channel.Start():
                    self._start(message, descriptors)
                case channel.Stop():
                    for pidfd, (_, name) in self._guests.items():
                        if name == message.guest:
                            process.kill(pidfd)
                case _:
                    raise channel.ChannelError(f"a supervisor does not send {message.type!r}")
        finally:
            channel.close_all(descriptors.values())
        return True

    def _start(self, message: channel.Start, descriptors: dict[str, int]) -> None:
        try:
            module = descriptors.pop("module")
            try:
                loaded = self._modules.get(
                    message.module_key, kind=message.kind, variant=message.variant, descriptor=module
                )
            finally:
                os.close(module)
        except NotLoadable as error:
            channel.send(self._socket, channel.Refused(guest=message.guest, message=str(error)))
            return
        if (threads := len(os.listdir("/proc/self/task"))) != 1:
            # A child of a process with threads may hang in a lock that nobody will release: better no executor at all.
            sys.exit(f"the executor has {threads} threads; it must have one")
        parent_pid = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            channel.send(self._socket, channel.Refused(guest=message.guest, message=f"can't fork: {error.strerror}"))
            return
        if pid == 0:
            guest.run(loaded, descriptors, parent_pid=parent_pid, confinement=self._confinement)
        # Nobody but this process reaps the child, so its number can't have been given to another by now.
        pidfd = os.pidfd_open(pid)
        self._guests[pidfd] = pid, message.guest
        self._epoll.register(pidfd, select.EPOLLIN)
        channel.send(self._socket, channel.Started(guest=message.guest, pid=pid), {"pidfd": pidfd})

    def _reap(self, pidfd: int) -> None:
        pid, name = self._guests[pidfd]
        ending = process.reap(pid)
        if ending is None:
            return
        self._epoll.unregister(pidfd)
        os.close(pidfd)
        del self._guests[pidfd]
        channel.send(self._socket, channel.Exited(guest=name, **ending._asdict()))


def main(arguments: list[str]) -> None:
    """Serve on the inherited socket `arguments[0]` as a child of the process `arguments[1]`.

    `arguments[2]`, the table of log allowances, is for executors that write logs.
    """
    os.close(int(arguments[2]))
    process.die_with_parent(int(arguments[1]))
    process.forbid_core_dumps()
    process.forbid_new_privileges()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.disable()  # a collection touches every object, and so copies pages that children share
    with socket.socket(fileno=int(arguments[0])) as sock:
        sock.set_inheritable(False)
        Zygote(sock).serve()


if __name__ == "__main__":
    main(sys.argv[1:])
