"""Compiles modules, each once: runs the compiler's process within limits and keeps what it made.

Compiled code is kept under a key of all that it depends on: the module's bytes, the engine with its version, its options.
It is written once with a checksum of its own, checked when it is first used in a process's life: wasmtime would load a
damaged file without a word (facts: wasmtime.md §7). One that doesn't match is made anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wherry_runner.execution import process
from wherry_runner.execution.wasmtime_config import OPTIONS
from wherry_runner.modules.store import CompiledFacts, Store, sha256_of

_SAID_BYTES = 64 << 10
"""As much as is read of what a compiler prints."""


@dataclass(frozen=True, kw_only=True)
class CompileSettings:
    """Limits of one compilation, and how many there are at once."""

    memory_bytes: int = 2 << 30
    cpu_seconds: int = 600
    """On all cores together."""
    wall_seconds: float = 120.0
    at_once: int = os.cpu_count() or 1


class Refused(Exception):
    """The module can't be compiled or is nothing to run; the text says why, to follow its name."""


class Damaged(Exception):
    """The stored bytes don't have their digest any more."""


class Compiler:
    """Compiles blobs of a store."""

    def __init__(self, store: Store, *, engine_name: str, settings: CompileSettings) -> None:
        self._store = store
        self._engine_name = engine_name
        self._settings = settings
        self._slots = asyncio.Semaphore(settings.at_once)
        self._verified: set[str] = set()

    async def find(self, digest: str) -> tuple[Path, CompiledFacts] | None:
        """What was compiled of a module before, checked; None if there is nothing, or nothing good."""
        key = self._key(digest)
        found = self._store.compiled(key)
        if found is None or not found[0].is_file():
            return None
        if key in self._verified:
            return found
        path, facts = found
        try:
            intact = await asyncio.to_thread(sha256_of, path) == facts.sha256
        except OSError:
            intact = False
        if not intact:
            return None
        self._verified.add(key)
        return found

    async def compile(self, digest: str) -> tuple[Path, CompiledFacts]:
        """Compile a blob. Raises Refused, Damaged, OSError."""
        async with self._slots:
            with self._store.unfinished() as output:
                answer = await self._run(digest, output.stream.fileno())
                if "refused" in answer:
                    raise Refused(answer["refused"])
                if "damaged" in answer:
                    raise Damaged(digest)
                facts = CompiledFacts(kind=answer["kind"], sha256=answer["sha256"], module_digest=digest)
                key = self._key(digest)
                path = await asyncio.to_thread(self._store.put_compiled, key, output, facts)
        return path, facts

    def _key(self, digest: str) -> str:
        return hashlib.sha256(f"{digest}\n{self._engine_name}\n{OPTIONS}".encode()).hexdigest()

    async def _run(self, digest: str, output: int) -> dict[str, Any]:
        """One compiler's process. Raises Refused."""
        settings = self._settings
        with contextlib.ExitStack() as stack:
            blob = stack.enter_context(open(self._store.blob(digest), "rb"))
            # Memory files, not pipes: nobody has to read them while it works, and it can't be stopped by a full one.
            said = _memory_file(stack, "stdout")
            complained = _memory_file(stack, "stderr")
            limits = (str(settings.memory_bytes), str(settings.cpu_seconds))
            child = process.spawn(
                ["wherry_runner.modules.compiler", str(os.getpid()), *limits, digest, str(output)],
                stdin=blob,
                stdout=said,
                stderr=complained,
                pass_fds=[output],
            )
            pidfd = os.pidfd_open(child.pid)
            stack.callback(os.close, pidfd)
            try:
                async with asyncio.timeout(settings.wall_seconds):
                    await process.readable(pidfd)
            except TimeoutError:
                raise Refused(f"takes more than {settings.wall_seconds:.0f} s to compile") from None
            finally:
                if child.poll() is None:
                    child.kill()
                    child.wait()
            if child.returncode != 0:
                raise Refused(_crash(child.returncode, _read(complained), settings))
            answer = json.loads(_read(said))
            assert isinstance(answer, dict)
            return answer


def _crash(code: int, complaint: str, settings: CompileSettings) -> str:
    """Why a compiler ended without an answer, in words."""
    if code in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"takes more than {settings.cpu_seconds} s of CPU time to compile, or its compiler was killed"
    if "memory allocation" in complaint or "MemoryError" in complaint or "annot allocate memory" in complaint:
        return f"needs more than {settings.memory_bytes >> 20} MiB of memory to compile"
    ending = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"could not be compiled: its compiler ended with {ending}: {complaint.strip()[-500:] or 'without a word'}"


def _memory_file(stack: contextlib.ExitStack, name: str) -> int:
    number = os.memfd_create(name, os.MFD_CLOEXEC)
    stack.callback(os.close, number)
    return number


def _read(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, _SAID_BYTES, max(0, size - _SAID_BYTES)).decode(errors="replace")
