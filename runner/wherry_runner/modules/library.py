"""Modules, ready to run: the one thing of this room that the supervisor knows.

    reference ──pull.py──> bytes by digest ──compile.py──> native code by digest, engine and options
    inline    ──────────────────^

Each step is done once for all who wait for it. Everything that can be wrong with a module is a `ModuleError`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wherry_runner import protocol
from wherry_runner.execution.engine import CompiledModule, ModuleKind
from wherry_runner.modules import reference as references
from wherry_runner.modules import sniff
from wherry_runner.modules.compile import Compiler, CompileSettings, Damaged, Refused
from wherry_runner.modules.errors import ModuleError, NeverPull, NotRunnable
from wherry_runner.modules.pull import Puller, PullSettings
from wherry_runner.modules.reference import Reference
from wherry_runner.modules.registry import Sleep
from wherry_runner.modules.single_flight import SingleFlight
from wherry_runner.modules.store import CompiledFacts, PulledModule, Store


@dataclass(frozen=True, kw_only=True)
class Pulling:
    """A module is being fetched."""

    done_bytes: int
    total_bytes: int


@dataclass(frozen=True, kw_only=True)
class Compiling:
    """A module is being compiled."""


Progress = Pulling | Compiling

OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """Whose module it is, for messages."""

    text: str
    inline: bool
    name: str


class Modules:
    """Gets modules from registries and requests, and compiles them."""

    def __init__(
        self,
        directory: Path,
        *,
        engine_name: str,
        pull: PullSettings | None = None,
        compile: CompileSettings | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """Open the store under `directory`, for the engine of this name. Raises OSError."""
        self._store = Store(directory)
        self._puller = Puller(self._store, pull or PullSettings(), sleep=sleep)
        self._compiler = Compiler(self._store, engine_name=engine_name, settings=compile or CompileSettings())
        self._pulls: SingleFlight[PulledModule, Progress] = SingleFlight()
        self._compiles: SingleFlight[tuple[Path, CompiledFacts], Progress] = SingleFlight()

    async def close(self) -> None:
        """Close connections to registries. Callers of `get` are cancelled by their owners before."""
        await self._puller.close()

    async def get(self, module: protocol.Module, *, on_progress: OnProgress | None = None) -> CompiledModule:
        """A module, compiled. Raises ModuleError; cancelling one caller doesn't disturb the others."""
        try:
            if isinstance(module, protocol.InlineModule):
                return await self._inline(module, on_progress)
            return await self._image(module, on_progress)
        except OSError as error:
            # Of the store: a full or broken disk, which may mend.
            inline = isinstance(module, protocol.InlineModule)
            reason = "CreateContainerConfigError" if inline else "ErrImagePull"
            raise ModuleError(reason, f"can't store the module: {error}") from error

    async def _inline(self, module: protocol.InlineModule, on_progress: OnProgress | None) -> CompiledModule:
        data = module.data
        head = data[: sniff.HEAD_BYTES]
        if sniff.sniff(head) is sniff.Form.NONE:
            raise NotRunnable(
                f"{module.source} is not WebAssembly: {sniff.beginning(head)}; expected a binary module (\\0asm) or "
                "its text format",
                inline=True,
            )
        digest = await asyncio.to_thread(self._store.put_blob, data)
        key = re.search(r'key "([^"]+)"', module.source)
        subject = _Subject(text=module.source, inline=True, name=key[1] if key else "module")
        try:
            path, facts = await self._compile(digest, subject, on_progress)
        except Damaged:
            self._store.remove_blob(digest)
            await asyncio.to_thread(self._store.put_blob, data)
            path, facts = await self._compile(digest, subject, on_progress)
        return CompiledModule(path=path, digest=digest, kind=ModuleKind(facts.kind), name=subject.name)

    async def _image(self, module: protocol.ImageModule, on_progress: OnProgress | None) -> CompiledModule:
        reference = references.parse(module.reference)
        subject = _Subject(text=f'"{reference}"', inline=False, name=reference.name)
        pulled = await self._pulled(reference, module.pull_policy, on_progress)
        try:
            path, facts = await self._compile(pulled.layer_digest, subject, on_progress)
        except Damaged:
            # A disk that lost bytes: away with them, and once more from the registry, if it may be asked.
            self._store.remove_blob(pulled.layer_digest)
            pulled = await self._pulled(reference, module.pull_policy, on_progress)
            path, facts = await self._compile(pulled.layer_digest, subject, on_progress)
        return CompiledModule(
            path=path,
            digest=pulled.layer_digest,
            kind=ModuleKind(facts.kind),
            name=subject.name,
            image_digest=pulled.manifest_digest,
            packed_by_krustlet=pulled.packed_by_krustlet,
        )

    async def _pulled(
        self, reference: Reference, policy: protocol.PullPolicy, on_progress: OnProgress | None
    ) -> PulledModule:
        """Raises NeverPull, PullError, NotRunnable."""
        known = self._store.recall(str(reference))
        if known is not None and policy is not protocol.PullPolicy.ALWAYS:
            return known
        if policy is protocol.PullPolicy.NEVER:
            raise NeverPull(f'Container image "{reference}" is not present with pull policy of Never')

        async def work(tell: OnProgress) -> PulledModule:
            if known is not None and await self._puller.current_digest(reference) == known.manifest_digest:
                return known

            def on_bytes(done: int, total: int) -> None:
                tell(Pulling(done_bytes=done, total_bytes=total))

            return await self._puller.pull(reference, on_bytes=on_bytes)

        return await self._pulls.run(str(reference), work, on_progress=on_progress)

    async def _compile(
        self, digest: str, subject: _Subject, on_progress: OnProgress | None
    ) -> tuple[Path, CompiledFacts]:
        """Raises NotRunnable, Damaged, OSError."""

        async def work(tell: OnProgress) -> tuple[Path, CompiledFacts]:
            if found := await self._compiler.find(digest):
                return found
            tell(Compiling())
            return await self._compiler.compile(digest)

        try:
            return await self._compiles.run(digest, work, on_progress=on_progress)
        except Refused as error:
            raise NotRunnable(f"{subject.text} {error}", inline=subject.inline) from error
        except FileNotFoundError as error:
            raise Damaged(digest) from error
