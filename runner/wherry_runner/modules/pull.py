"""Pulls a module from a registry: reference → manifest → layer, everything checked against its digest and size.

Nothing is believed for its label: a layer becomes a module when its bytes begin as WebAssembly does. What can be refused is
refused before a layer is fetched.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

import httpx

from wherry_runner.modules import manifest as manifests
from wherry_runner.modules import sniff
from wherry_runner.modules.errors import NotRunnable, PullError
from wherry_runner.modules.reference import Reference
from wherry_runner.modules.registry import (
    RegistryClient,
    RegistrySettings,
    Sleep,
    Transient,
    read_limited,
)
from wherry_runner.modules.store import PulledModule, Store, Unfinished

MAX_MANIFEST_BYTES = 4 << 20
"""What registries take as a manifest's size at most."""


@dataclass(frozen=True, kw_only=True)
class PullSettings:
    """Limits of a pull."""

    registries: RegistrySettings = field(default_factory=RegistrySettings)
    max_module_bytes: int = 256 << 20
    total_seconds: float = 600.0
    """For the whole of a pull, retries included."""


T = TypeVar("T")
OnBytes = Callable[[int, int], None]
"""Told how many bytes of a module are here, and how many it has."""


class Puller:
    """Pulls modules into a store."""

    def __init__(self, store: Store, settings: PullSettings, *, sleep: Sleep = asyncio.sleep) -> None:
        self._store = store
        self._settings = settings
        self._client = RegistryClient(settings.registries, sleep=sleep)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def current_digest(self, reference: Reference) -> str:
        """The digest a reference stands for now, as the registry says: cheap, and not counted as a pull by most.

        Empty if it doesn't say. To be compared with what was verified once, never to be believed for itself.
        Raises PullError.
        """

        async def attempt() -> str:
            path = f"manifests/{reference.version}"
            request = self._client.get(
                reference.host, reference.repository, path, accept=manifests.ACCEPT, method="HEAD"
            )
            async with request as response:
                return str(response.headers.get("docker-content-digest", ""))

        return await self._guarded(reference, self._client.retrying(attempt))

    async def pull(self, reference: Reference, *, on_bytes: OnBytes = lambda done, total: None) -> PulledModule:
        """Resolve a reference, fetch its module and remember both. Raises PullError, NotRunnable."""
        return await self._guarded(reference, self._pull(reference, on_bytes))

    async def _pull(self, reference: Reference, on_bytes: OnBytes) -> PulledModule:
        manifest_digest, manifest = await self._manifest(reference, reference.version)
        if isinstance(manifest, manifests.Index):
            _, manifest = await self._manifest(reference, manifest.choose().digest)
            if isinstance(manifest, manifests.Index):
                raise manifests.MalformedManifest("it answered with an index inside an index")
        layer = manifest.module_layer()
        if manifest.is_container_image:
            config = await self._small_blob(reference, manifest.config)
            raise manifests.NotAModule(manifests.describe_container_image(config))
        if layer.size > self._settings.max_module_bytes:
            limit = self._settings.max_module_bytes
            raise manifests.NotAModule(f"has {layer.size} bytes; this runner takes modules of at most {limit}")
        if not self._store.has_blob(layer.digest):
            await self._client.retrying(lambda: self._fetch(reference, layer, on_bytes))
        pulled = PulledModule(
            reference=str(reference),
            manifest_digest=manifest_digest,
            layer_digest=layer.digest,
            packed_by_krustlet=layer.media_type == manifests.KRUSTLET_LAYER_TYPE,
        )
        self._store.remember(pulled)
        return pulled

    async def _manifest(self, reference: Reference, version: str) -> tuple[str, manifests.Manifest | manifests.Index]:
        """A manifest and its true digest. Raises PullError, MalformedManifest."""

        async def attempt() -> tuple[str, manifests.Manifest | manifests.Index]:
            path = f"manifests/{version}"
            request = self._client.get(reference.host, reference.repository, path, accept=manifests.ACCEPT)
            async with request as response:
                data = await read_limited(response, MAX_MANIFEST_BYTES, what="the manifest")
            digest = "sha256:" + hashlib.sha256(data).hexdigest()
            # The digest that was asked for decides; for a tag, the registry's own word must at least be true.
            asked = version if version.startswith("sha256:") else response.headers.get("docker-content-digest", digest)
            if asked != digest:
                raise _mismatch("the manifest's", got=digest, expected=asked)
            return digest, manifests.parse(data, content_type=response.headers.get("content-type", ""))

        return await self._client.retrying(attempt)

    async def _small_blob(self, reference: Reference, descriptor: manifests.Descriptor) -> bytes:
        """A verified blob, in memory: a config."""

        async def attempt() -> bytes:
            request = self._client.get(reference.host, reference.repository, f"blobs/{descriptor.digest}")
            async with request as response:
                data = await read_limited(response, MAX_MANIFEST_BYTES, what="the image's config")
            digest = "sha256:" + hashlib.sha256(data).hexdigest()
            if digest != descriptor.digest:
                raise _mismatch("the config's", got=digest, expected=descriptor.digest)
            return data

        return await self._client.retrying(attempt)

    async def _fetch(self, reference: Reference, layer: manifests.Descriptor, on_bytes: OnBytes) -> None:
        """Fetch the module into the store. Raises Transient, PullError, NotAModule."""
        request = self._client.get(reference.host, reference.repository, f"blobs/{layer.digest}")
        with self._store.unfinished() as file:
            async with request as response:
                await _stream(response, layer, file, on_bytes)
            # Off the event loop: a disk may take seconds for a large module.
            await asyncio.to_thread(file.commit, self._store.blob(layer.digest))

    async def _guarded(self, reference: Reference, work: Awaitable[T]) -> T:
        """Give errors their beginning, and the whole a time limit."""
        seconds = self._settings.total_seconds
        try:
            async with asyncio.timeout(seconds):
                return await work
        except TimeoutError:
            raise PullError(f'failed to pull "{reference}": it took more than {seconds:.0f} s') from None
        except PullError as error:
            raise PullError(f'failed to resolve reference "{reference}": {error.message}') from error
        except manifests.MalformedManifest as error:
            raise PullError(f'failed to resolve reference "{reference}": {error}') from error
        except manifests.NotAModule as error:
            raise NotRunnable(f'"{reference}" {error}', inline=False) from error


async def _stream(response: httpx.Response, layer: manifests.Descriptor, file: Unfinished, on_bytes: OnBytes) -> None:
    """Write a layer to a file, checking form, size and digest on the way. Raises Transient, PullError, NotAModule."""
    hasher = hashlib.sha256()
    head = b""
    done = 0
    on_bytes(0, layer.size)
    try:
        # Raw: a digest is that of the bytes on the wire, and no Content-Encoding was asked for.
        async for chunk in response.aiter_raw():
            done += len(chunk)
            if done > layer.size:
                raise PullError(f"layer {layer.digest} is longer than the {layer.size} bytes its manifest gives it")
            if len(head) < sniff.HEAD_BYTES:
                head = (head + chunk)[: sniff.HEAD_BYTES]
                _check_form(head, complete=done == layer.size)
            hasher.update(chunk)
            file.stream.write(chunk)
            on_bytes(done, layer.size)
    except httpx.RemoteProtocolError as error:  # the connection was closed before the announced length
        raise Transient(f"layer {layer.digest} ended after {done} of {layer.size} bytes") from error
    if not layer.size:
        _check_form(b"", complete=True)
    if done != layer.size:
        raise Transient(f"layer {layer.digest} ended after {done} of {layer.size} bytes")
    digest = "sha256:" + hasher.hexdigest()
    if digest != layer.digest:
        raise _mismatch("the layer's", got=digest, expected=layer.digest)


def _check_form(head: bytes, *, complete: bool) -> None:
    """Raises NotAModule as soon as the first bytes show that a layer isn't a module."""
    if len(head) < 8 and not complete:
        return
    form = sniff.sniff(head)
    if form is sniff.Form.TEXT:
        raise manifests.NotAModule("is WebAssembly in its text format; a registry's layer must be binary")
    if form is sniff.Form.NONE:
        raise manifests.NotAModule(f"is not WebAssembly: {sniff.beginning(head)}; a module begins with \\0asm")
    if form is sniff.Form.UNKNOWN_VERSION:
        raise manifests.NotAModule(f"is WebAssembly of a version that this runner doesn't know ({head[4:8].hex()})")


def _mismatch(whose: str, *, got: str, expected: str) -> PullError:
    return PullError(f"{whose} digest mismatch: the registry sent {got} for {expected}")
