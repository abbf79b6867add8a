"""Compiles modules, each once: runs the compiler's process within limits and keeps what it made.

Compiled code is kept under a key of all that it depends on: the module's bytes, the engine with its version, its options,
the processor. It is written once with a checksum of its own, which is checked when it is first used in a process's life,
and again when its file is another one: wasmtime would load a damaged file without a word (facts: wasmtime.md §7). One that
doesn't match is made anew. What is refused is remembered too (`refusals.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import functools
import hashlib
import logging
import os
import platform
import re
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from wherry_runner.execution import process
from wherry_runner.execution.engine import Variant
from wherry_runner.modules import answer as answers
from wherry_runner.modules import classify
from wherry_runner.modules.refusals import LIMIT_SECONDS, Refusals
from wherry_runner.modules.store import CompiledFacts, Store, sha256_of
from wherry_runner.modules.threads import in_thread

OPTIONS = "guests-3"
"""Names what the compilers are set to (`execution/wasmtime_config.py`, `runner/executor/src/config.rs`). Count it up with
every change there that changes compiled code."""

WASI_03 = "wasi-0.3"
"""The feature of an engine that runs WASI 0.3."""

_MAX_VERIFIED = 10_000
"""Checked files that are remembered; one that is forgotten is only checked again."""

_log = logging.getLogger(__name__)


class CodeMaker(Protocol):
    """What a compilation needs of an engine (`engine.Engine`)."""

    @property
    def name(self) -> str:
        """With its version."""

    @property
    def features(self) -> frozenset[str]:
        """What it can do."""

    def compiler(self, variant: Variant) -> tuple[str, ...]:
        """Program and first arguments."""


class CompileMetrics(Protocol):
    """Who counts (`metrics.Metrics`)."""

    def compiled(self, result: str, seconds: float) -> None:
        """A compilation is over: `ok` or `error`."""


class NoMetrics:
    """Counts nothing."""

    def compiled(self, result: str, seconds: float) -> None:
        """Nothing."""


@dataclass(frozen=True, kw_only=True)
class CompileSettings:
    """Limits of one compilation, and how many there are at once."""

    memory_bytes: int = 2 << 30
    wall_seconds: float = 120.0
    cpu_seconds: int = 120 * (os.cpu_count() or 1)
    """On all cores together. It ends a compiler that nobody watches any more."""
    at_once: int = os.cpu_count() or 1


def at_once(*, cores: int, budget_bytes: int, memory_bytes: int) -> int:
    """How many compilations fit: no more than there are cores, each with its memory; always one. Pure."""
    return max(1, min(cores, budget_bytes // memory_bytes))


class Refused(Exception):
    """The module can't be compiled or is nothing to run; the text says why, to follow its name."""


class Damaged(Exception):
    """The stored bytes don't have their digest any more."""


class Compiler:
    """Compiles blobs of a store, for one engine."""

    def __init__(
        self,
        store: Store,
        *,
        engine: CodeMaker,
        settings: CompileSettings | None = None,
        metrics: CompileMetrics | None = None,
        refusals: Refusals | None = None,
    ) -> None:
        self._store = store
        self._engine = engine
        self._settings = settings or CompileSettings()
        self._metrics = metrics or NoMetrics()
        self._slots = asyncio.Semaphore(self._settings.at_once)
        self._refusals = refusals or Refusals()
        self._verified: OrderedDict[str, tuple[_Identity, Path, CompiledFacts]] = OrderedDict()

    def at_hand(self, digest: str, variant: Variant = Variant.PLAIN) -> tuple[Path, CompiledFacts] | None:
        """What was compiled of a module and checked by this process, without any work; None if that has to be found out."""
        key = self._key(digest, variant)
        known = self._verified.get(key)
        if known is None or self._refusals.get(key):
            return None
        identity, path, facts = known
        try:
            if _identity(path) != identity or not self._store.uses_compiled(key):
                return None
        except OSError:
            return None
        return path, facts

    async def find(self, digest: str, variant: Variant = Variant.PLAIN) -> tuple[Path, CompiledFacts] | None:
        """What was compiled of a module before, checked; None if there is nothing, or nothing good.

        Raises Refused where the module was refused before.
        """
        key = self._key(digest, variant)
        if text := self._refusals.get(key):
            raise Refused(text)
        found = self._store.compiled(key)
        if found is None:
            return None
        path, facts = found
        try:
            identity = _identity(path)
            if key not in self._verified or self._verified[key][0] != identity:
                if (facts.module_digest, facts.variant) != (digest, variant):
                    return None
                if await in_thread(lambda: sha256_of(path)) != facts.sha256:
                    _log.warning("the compiled code of %s is damaged; it is made anew", digest)
                    return None
        except OSError:
            return None
        self._remember_verified(key, identity, path, facts)
        return found

    async def compile(self, digest: str, variant: Variant = Variant.PLAIN) -> tuple[Path, CompiledFacts]:
        """Compile a blob. Raises Refused, Damaged, OSError (FileNotFoundError: the blob isn't there)."""
        key = self._key(digest, variant)
        async with self._slots:
            started = time.monotonic()
            try:
                compiled = await self._compile(key, digest, variant)
            except Exception:
                self._metrics.compiled("error", time.monotonic() - started)
                raise
            self._metrics.compiled("ok", time.monotonic() - started)
        return compiled

    async def _compile(self, key: str, digest: str, variant: Variant) -> tuple[Path, CompiledFacts]:
        with self._store.unfinished() as output:
            match await self._run(digest, variant, output.stream.fileno()):
                case answers.Damaged():
                    raise Damaged(digest)
                case answers.DiskFull(text=text):
                    raise OSError(errno.ENOSPC, text)
                case answers.Limit(text=text, lasting=lasting):
                    if lasting:
                        self._refusals.remember(key, text, seconds=LIMIT_SECONDS)
                    raise Refused(text)
                case answers.NotCompiled(text=text, outline=outline):
                    text = (classify.wants_wasi_03(outline) if outline and not self._wasi_03 else "") or text
                    self._refusals.remember(key, text)
                    raise Refused(text)
                case answers.Compiled(outline=outline, sha256=sha256):
                    if text := classify.refusal(outline, wasi_03=self._wasi_03):
                        self._refusals.remember(key, text)
                        raise Refused(text)
            facts = CompiledFacts(kind=outline.kind, variant=variant, sha256=sha256, module_digest=digest)
            path = await in_thread(lambda: self._store.put_compiled(key, output, facts))
        self._remember_verified(key, _identity(path), path, facts)
        return path, facts

    @property
    def _wasi_03(self) -> bool:
        return WASI_03 in self._engine.features

    def _key(self, digest: str, variant: Variant) -> str:
        parts = (digest, self._engine.name, OPTIONS, variant, WASI_03 if self._wasi_03 else "", _processor())
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _remember_verified(self, key: str, identity: _Identity, path: Path, facts: CompiledFacts) -> None:
        self._verified[key] = (identity, path, facts)
        self._verified.move_to_end(key)
        if len(self._verified) > _MAX_VERIFIED:
            self._verified.popitem(last=False)

    async def _run(
        self, digest: str, variant: Variant, output: int
    ) -> answers.Answer | answers.Limit | answers.DiskFull:
        """One compiler's process, from its start to its end."""
        settings = self._settings
        with contextlib.ExitStack() as stack:
            blob = stack.enter_context(open(self._store.blob(digest), "rb"))
            said = _memory_file(stack, "stdout")
            complained = _memory_file(stack, "stderr")
            try:
                child = process.spawn(
                    [
                        *self._engine.compiler(variant),
                        str(os.getpid()),
                        str(settings.memory_bytes),
                        str(settings.cpu_seconds),
                        digest,
                        str(output),
                        variant,
                        *(["--wasi-0.3"] if self._wasi_03 else []),
                    ],
                    stdin=blob,
                    stdout=said,
                    stderr=complained,
                    pass_fds=[output],
                )
            except OSError as error:
                # Nothing of the module's: not even FileNotFoundError, which would say that its bytes are gone.
                return answers.Limit(
                    text=f"could not be compiled: its compiler can't be started: {error}", lasting=False
                )
            stack.callback(child.wait)
            stack.callback(child.kill)
            pidfd = os.pidfd_open(child.pid)
            stack.callback(os.close, pidfd)
            try:
                async with asyncio.timeout(settings.wall_seconds):
                    await process.readable(pidfd)
            except TimeoutError:
                return answers.Limit(text=f"takes more than {settings.wall_seconds:g} s to compile")
            finally:
                process.kill(pidfd)
                # The kernel takes a while to give gigabytes back; the event loop must not wait for it.
                await process.readable(pidfd)
            if (code := child.wait()) != 0:
                return answers.ending(
                    code,
                    _read(complained).decode(errors="replace"),
                    memory_bytes=settings.memory_bytes,
                    cpu_seconds=settings.cpu_seconds,
                )
            try:
                return answers.parse(_read(said))
            except answers.Nonsense as error:
                return answers.Limit(text=f"could not be compiled: its compiler's answer is not understood: {error}")


@dataclass(frozen=True)
class _Identity:
    """Of a file: it changes with whatever is written to it or put in its place."""

    inode: int
    size: int
    modified: int


def _identity(path: Path) -> _Identity:
    """Raises OSError."""
    status = path.stat()
    return _Identity(status.st_ino, status.st_size, status.st_mtime_ns)


@functools.cache
def _processor() -> str:
    """What the processor can do: compiled code uses all of it, and a virtual machine may wake up on another one."""
    text = Path("/proc/cpuinfo").read_text()
    abilities = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return f"{platform.machine()} {' '.join(sorted(abilities[1].split())) if abilities else ''}"


def _memory_file(stack: contextlib.ExitStack, name: str) -> int:
    """A file in memory for a child to write to: nobody has to read it while the child works, as a pipe would want.

    It can't grow, so a compiler that writes without end fills nobody's memory.
    """
    number = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    stack.callback(os.close, number)
    os.ftruncate(number, answers.MAX_BYTES)
    fcntl.fcntl(number, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return number


def _read(descriptor: int) -> bytes:
    """What was written, without the zeros that were there before."""
    return os.pread(descriptor, answers.MAX_BYTES, 0).rstrip(b"\0")
