"""Modules, ready to run: the one thing of this room that the supervisor knows.

    reference ──pull.py──┐
    address   ──url.py───┼──> bytes by digest ──compile.py──> native code by digest, engine, variant and options
    inline    ───────────┘

Each step is done once for all who wait for it. Everything that can be wrong with a module is a `ModuleError`.

A private module that is here is given only to who may pull it (KEP-2535): who pulled it, or shows the same credential again,
or gets it from the registry with another one.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from wherry_runner import protocol
from wherry_runner.execution.engine import CompiledModule, ModuleKind, Variant
from wherry_runner.modules import credentials as keyring
from wherry_runner.modules import reference as references
from wherry_runner.modules import sniff
from wherry_runner.modules.compile import CodeMaker, CompileMetrics, Compiler, CompileSettings, Damaged, Refused
from wherry_runner.modules.credentials import Credential
from wherry_runner.modules.errors import ModuleError, NeverPull, NotRunnable
from wherry_runner.modules.progress import Compiling, OnProgress, Progress, Pulling, paced
from wherry_runner.modules.pull import Puller, PullMetrics, PullSettings
from wherry_runner.modules.reference import Reference
from wherry_runner.modules.single_flight import SingleFlight
from wherry_runner.modules.store import ANYBODY, CompiledFacts, PulledModule, Store, StoredImage, StoreLimits
from wherry_runner.modules.threads import in_thread
from wherry_runner.modules.transport import Sleep, Transport
from wherry_runner.modules.url import Fetcher

__all__ = ["Compiling", "Modules", "OnProgress", "Progress", "Pulling"]


class Metrics(PullMetrics, CompileMetrics, Protocol):
    """Who counts (`metrics.Metrics`)."""


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """Whose module it is, for messages."""

    text: str
    inline: bool
    name: str


AT_HAND_BYTES = 256 << 10
"""A module that came with a request and is larger is hashed beside the event loop, not in it."""


def _subject(module: protocol.InlineModule) -> _Subject:
    key = re.search(r'key "([^"]+)"', module.source)
    return _Subject(text=module.source, inline=True, name=key[1] if key else "module")


@lru_cache(256)
def _one(compiled: CompiledModule) -> CompiledModule:
    """The same value for all who have it: a thousand containers keep theirs as long as they run."""
    return compiled


def _of(pulled: PulledModule, path: Path, facts: CompiledFacts, *, variant: Variant, name: str) -> CompiledModule:
    return _one(
        CompiledModule(
            path=path,
            digest=pulled.layer_digest,
            kind=ModuleKind(facts.kind),
            variant=variant,
            name=pulled.name or name,
            image_digest=pulled.manifest_digest,
            packed_by_krustlet=pulled.packed_by_krustlet,
            entrypoint_args=pulled.entrypoint_args,
            image_args=pulled.image_args,
        )
    )


class Modules:
    """Gets modules from registries, addresses and requests, and compiles them."""

    def __init__(
        self,
        directory: Path,
        *,
        engine: CodeMaker,
        pull: PullSettings | None = None,
        compile: CompileSettings | None = None,
        limits: StoreLimits | None = None,
        in_use: Callable[[], Collection[str]] = tuple,
        metrics: Metrics | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """Open the store under `directory`, for an engine. Raises OSError.

        `in_use`: digests of modules that run or are about to; they are never removed to make room.
        """
        pull = pull or PullSettings()
        self._registries = pull.registries
        self._store = Store(directory, limits=limits, in_use=in_use)
        self._transport = Transport(pull.registries, sleep=sleep)
        self._puller = Puller(self._store, pull, transport=self._transport, metrics=metrics)
        self._fetcher = Fetcher(self._store, pull, transport=self._transport, metrics=metrics)
        self._compiler = Compiler(self._store, engine=engine, settings=compile, metrics=metrics)
        self._pulls: SingleFlight[PulledModule, Progress] = SingleFlight()
        self._compiles: SingleFlight[tuple[Path, CompiledFacts], Progress] = SingleFlight()

    @property
    def used_bytes(self) -> int:
        """What the store holds."""
        return self._store.used_bytes

    def complaint(self) -> str:
        """What the store's disk is short of; "" if nothing."""
        return self._store.complaint()

    def images(self) -> list[StoredImage]:
        """What was pulled from registries and is here, once for each reference."""
        return self._store.images()

    async def close(self) -> None:
        """Close connections to registries. Callers of `get` are cancelled by their owners before."""
        await self._transport.close()

    def at_hand(
        self,
        module: protocol.Module,
        *,
        variant: Variant = Variant.PLAIN,
        credentials: Sequence[protocol.RegistryCredential] = (),
    ) -> CompiledModule | None:
        """A module that can run now, without a question to anybody and without work for the disk; None: `get` knows more."""
        match module:
            case protocol.InlineModule():
                if len(module.data) > AT_HAND_BYTES:
                    return None
                digest = f"sha256:{hashlib.sha256(module.data).hexdigest()}"
                found = self._compiler.at_hand(digest, variant) if self._store.has_blob(digest) else None
                if found is None:
                    return None
                path, facts = found
                name = _subject(module).name
                return _one(
                    CompiledModule(path=path, digest=digest, kind=ModuleKind(facts.kind), variant=variant, name=name)
                )
            case protocol.ImageModule() if module.pull_policy is not protocol.PullPolicy.ALWAYS:
                try:
                    reference = references.parse(module.reference)
                except ModuleError:
                    return None
                own = keyring.matching(
                    credentials, self._registries.credentials_name(reference.host, reference.repository)
                )
                pulled = self._store.recall(str(reference))
                if pulled is None or not pulled.lets_in(tuple(map(self._store.fingerprint, own))):
                    return None
                found = self._compiler.at_hand(pulled.layer_digest, variant)
                return None if found is None else _of(pulled, *found, variant=variant, name=reference.name)
        return None

    async def get(
        self,
        module: protocol.Module,
        *,
        variant: Variant = Variant.PLAIN,
        credentials: Sequence[protocol.RegistryCredential] = (),
        on_progress: OnProgress | None = None,
    ) -> CompiledModule:
        """A module, compiled. Raises ModuleError; cancelling one caller doesn't disturb the others."""
        try:
            match module:
                case protocol.InlineModule():
                    return await self._inline(module, variant, on_progress)
                case protocol.UrlModule():
                    return await self._url(module, variant, on_progress)
                case protocol.ImageModule():
                    return await self._image(module, variant, credentials, on_progress)
        except Damaged as error:
            raise ModuleError("ErrImagePull", "the module was damaged on the runner's disk, twice in a row") from error
        except OSError as error:
            # Of the store: a full or broken disk, or quota, which may mend.
            inline = isinstance(module, protocol.InlineModule)
            reason = "CreateContainerConfigError" if inline else "ErrImagePull"
            raise ModuleError(reason, f"can't store the module: {error}") from error

    # --- sources ------------------------------------------------------------------------------------------------------

    async def _inline(
        self, module: protocol.InlineModule, variant: Variant, on_progress: OnProgress | None
    ) -> CompiledModule:
        data = module.data
        head = data[: sniff.HEAD_BYTES]
        if sniff.sniff(head) is sniff.Form.NONE:
            raise NotRunnable(
                f"{module.source} is not WebAssembly: {sniff.beginning(head)}; expected a binary module (\\0asm) or "
                "its text format",
                inline=True,
            )
        subject = _subject(module)
        digest = await in_thread(lambda: self._store.put_blob(data))
        try:
            path, facts = await self._compile(digest, variant, subject, on_progress)
        except Damaged:
            self._store.remove_blob(digest)
            await in_thread(lambda: self._store.put_blob(data))
            path, facts = await self._compile(digest, variant, subject, on_progress)
        return _one(
            CompiledModule(path=path, digest=digest, kind=ModuleKind(facts.kind), variant=variant, name=subject.name)
        )

    async def _url(
        self, module: protocol.UrlModule, variant: Variant, on_progress: OnProgress | None
    ) -> CompiledModule:
        address = self._fetcher.parse(module.url)
        digest = f"sha256:{module.sha256}"
        # The digest alone says what it is, wherever it came from; but only what was open to all at some address is given
        # to who names another one.
        key = f"url {digest}"
        subject = _Subject(text=address.text, inline=False, name=address.name)

        async def fetched() -> PulledModule:
            if known := self._store.recall(key):
                return known
            if module.pull_policy is protocol.PullPolicy.NEVER:
                raise NeverPull(f"Module {address.text} is not present with pull policy of Never")

            async def work(tell: OnProgress) -> PulledModule:
                await self._fetcher.fetch(address, digest, on_bytes=paced(tell))
                pulled = PulledModule(reference=key, layer_digest=digest, access=(ANYBODY,))
                return await in_thread(lambda: self._store.remember(pulled))

            # By the address too: one that gives the wrong bytes is no reason to refuse another. Hashed, since a flight's name
            # may be logged.
            where = hashlib.sha256(module.url.encode()).hexdigest()
            return await self._pulls.run(f"{key} {where}", work, on_progress=on_progress)

        return await self._compiled(fetched, variant, subject, on_progress)

    async def _image(
        self,
        module: protocol.ImageModule,
        variant: Variant,
        credentials: Sequence[protocol.RegistryCredential],
        on_progress: OnProgress | None,
    ) -> CompiledModule:
        reference = references.parse(module.reference)
        subject = _Subject(text=f'"{reference}"', inline=False, name=reference.name)
        name = self._registries.credentials_name(reference.host, reference.repository)
        own = keyring.matching(credentials, name)
        return await self._compiled(
            lambda: self._pulled(reference, module.pull_policy, own, on_progress), variant, subject, on_progress
        )

    async def _pulled(
        self,
        reference: Reference,
        policy: protocol.PullPolicy,
        credentials: Sequence[Credential],
        on_progress: OnProgress | None,
    ) -> PulledModule:
        """Raises NeverPull, PullError, NotRunnable."""
        fingerprints = tuple(map(self._store.fingerprint, credentials))
        known = self._store.recall(str(reference))
        if known is not None and policy is not protocol.PullPolicy.ALWAYS and known.lets_in(fingerprints):
            return known
        if policy is protocol.PullPolicy.NEVER:
            # The same words for what may not be seen, as the kubelet's (image_manager.go).
            raise NeverPull(f'Container image "{reference}" is not present with pull policy of Never')

        async def work(tell: OnProgress) -> PulledModule:
            if known is not None:
                digest, credential = await self._puller.current_digest(reference, credentials)
                if digest == known.manifest_digest:
                    access = ANYBODY if credential is None else self._store.fingerprint(credential)
                    if access in known.access:
                        return known
                    seen = replace(known, access=(access,))
                    return await in_thread(lambda: self._store.remember(seen))
            return await self._puller.pull(reference, credentials, on_bytes=paced(tell))

        # What one may have, the registry decides: who has other credentials asks by themselves.
        key = " ".join((str(reference), *fingerprints))
        return await self._pulls.run(key, work, on_progress=on_progress)

    # --- compiling ----------------------------------------------------------------------------------------------------

    async def _compiled(
        self,
        pull: Callable[[], Awaitable[PulledModule]],
        variant: Variant,
        subject: _Subject,
        on_progress: OnProgress | None,
    ) -> CompiledModule:
        """What was fetched, compiled. Raises what `pull` raises, NotRunnable, OSError."""
        pulled = await pull()
        try:
            path, facts = await self._compile(pulled.layer_digest, variant, subject, on_progress)
        except Damaged:
            # A disk that lost bytes: away with them, and once more from where they came, if that may be asked.
            self._store.remove_blob(pulled.layer_digest)
            pulled = await pull()
            path, facts = await self._compile(pulled.layer_digest, variant, subject, on_progress)
        return _of(pulled, path, facts, variant=variant, name=subject.name)

    async def _compile(
        self, digest: str, variant: Variant, subject: _Subject, on_progress: OnProgress | None
    ) -> tuple[Path, CompiledFacts]:
        """Raises NotRunnable, Damaged, OSError."""

        async def work(tell: OnProgress) -> tuple[Path, CompiledFacts]:
            if found := await self._compiler.find(digest, variant):
                return found
            tell(Compiling())
            return await self._compiler.compile(digest, variant)

        try:
            with self._store.holding(digest):
                return await self._compiles.run(f"{digest} {variant}", work, on_progress=on_progress)
        except Refused as error:
            raise NotRunnable(f"{subject.text} {error}", inline=subject.inline) from error
        except FileNotFoundError as error:
            raise Damaged(digest) from error
