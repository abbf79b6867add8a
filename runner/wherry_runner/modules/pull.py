"""Pulls a module from a registry: reference → manifest → layer, everything checked against its digest and size.

Nothing is believed for its label: a layer becomes a module when its bytes begin as WebAssembly does. What can be refused is
refused before a layer is fetched. What one source gave is never handed to who asks another one: bytes that are here are used
only where the same repository gave them for the same manifest.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

from wherry_runner.modules import image_config, sniff
from wherry_runner.modules import manifest as manifests
from wherry_runner.modules.authorization import Access, Authorizer
from wherry_runner.modules.credentials import Credential
from wherry_runner.modules.download import check_module, digest_mismatch, stream
from wherry_runner.modules.errors import AccessDenied, NotRunnable, NotThere, PullError, shown
from wherry_runner.modules.hosts import RegistrySettings
from wherry_runner.modules.progress import OnBytes
from wherry_runner.modules.reference import Reference
from wherry_runner.modules.registry import RegistryClient
from wherry_runner.modules.rootfs import Found, Image, Layer
from wherry_runner.modules.store import ANYBODY, PulledModule, Store, Unfinished
from wherry_runner.modules.threads import in_thread
from wherry_runner.modules.transport import Transport, read_limited
from wherry_runner.modules.turns import Turns

MAX_MANIFEST_BYTES = 4 << 20
"""What registries take as a manifest's size at most; a config has no more either."""

MAX_REFUSED = 1024
"""Manifests of what can't run that are remembered."""

AT_ONCE = 64
AT_ONCE_PER_HOST = 8
"""Pulls under way; a hundred small ones gain nothing by more, and large ones only share the line."""


UNPACKED_AT_ONCE = 2
"""Images: each takes a core, and memory for the names of its files."""


class PullMetrics(Protocol):
    """Counts pulls (`metrics.py`)."""

    def pulled(self, result: str, seconds: float, bytes: int = 0) -> None:
        """A pull is over: `ok` or `error`, how long it took, and how many bytes it brought."""


@dataclass(frozen=True, kw_only=True)
class PullSettings:
    """Limits of a pull."""

    registries: RegistrySettings = field(default_factory=RegistrySettings)
    max_module_bytes: int = 256 << 20
    """Of a module, and of all layers of a container image."""
    total_seconds: float = 600.0
    """For the whole of a pull, retries included."""

    @property
    def max_unpacked_bytes(self) -> int:
        """As far as an image's layers are unpacked, all together."""
        return 4 * self.max_module_bytes


T = TypeVar("T")


class Puller:
    """Pulls modules into a store."""

    def __init__(
        self,
        store: Store,
        settings: PullSettings,
        *,
        transport: Transport,
        metrics: PullMetrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._settings = settings
        self._registries = settings.registries
        self._transport = transport
        self._client = RegistryClient(transport, Authorizer(transport, settings.registries, clock=clock))
        self._metrics = metrics
        self._turns = Turns(in_all=AT_ONCE, per_host=AT_ONCE_PER_HOST)
        self._unpacking = asyncio.Semaphore(UNPACKED_AT_ONCE)
        self._refused: OrderedDict[str, str] = OrderedDict()
        """By a manifest's digest: what it is instead of a module. It can't become another thing."""

    async def current_digest(
        self, reference: Reference, credentials: Sequence[Credential]
    ) -> tuple[str, Credential | None]:
        """The digest a reference stands for now, as the registry says, and with which credential it said so.

        Cheap, and not counted as a pull by most. Empty if it doesn't say. To be compared with what was verified once, never
        to be believed for itself. Raises PullError.
        """

        async def ask(access: Access) -> tuple[str, Credential | None]:
            async def attempt() -> str:
                path = f"manifests/{reference.version}"
                async with self._client.get(access, path, accept=manifests.ACCEPT, method="HEAD") as response:
                    return str(response.headers.get("docker-content-digest", ""))

            return await self._transport.retrying(attempt), access.credential

        return await self._guarded(reference, lambda: self._with_each(reference, credentials, ask))

    async def pull(
        self,
        reference: Reference,
        credentials: Sequence[Credential] = (),
        *,
        on_bytes: OnBytes = lambda done, total: None,
    ) -> PulledModule:
        """Resolve a reference, fetch its module and remember both. Raises PullError, NotRunnable, OSError."""
        started = time.monotonic()
        result, brought = "error", _Brought()
        try:
            pulled = await self._guarded(
                reference,
                lambda: self._with_each(
                    reference, credentials, lambda access: self._pull(reference, access, brought, on_bytes)
                ),
            )
            result = "ok"
        finally:
            if self._metrics is not None:
                self._metrics.pulled(result, time.monotonic() - started, brought.bytes)
        return pulled

    async def _pull(self, reference: Reference, access: Access, brought: _Brought, on_bytes: OnBytes) -> PulledModule:
        manifest_digest, manifest = await self._manifest(access, reference.version)
        if (text := self._refused.get(manifest_digest)) is not None:
            self._refused.move_to_end(manifest_digest)
            raise manifests.NotAModule(text)
        fingerprint = ANYBODY if access.credential is None else self._store.fingerprint(access.credential)
        known = self._store.same_manifest(f"{reference.host}/{reference.repository}", manifest_digest)
        if known is None:
            try:
                known = await self._fetch(access, manifest, brought, on_bytes)
            except manifests.NotAModule as error:
                self._refused[manifest_digest] = str(error)
                if len(self._refused) > MAX_REFUSED:
                    self._refused.popitem(last=False)
                raise
        pulled = replace(known, reference=str(reference), manifest_digest=manifest_digest, access=(fingerprint,))
        return await in_thread(lambda: self._store.remember(pulled))

    async def _fetch(
        self, access: Access, manifest: manifests.Manifest | manifests.Index, brought: _Brought, on_bytes: OnBytes
    ) -> PulledModule:
        """Fetch the module into the store; what is known of it but for its reference."""
        if isinstance(manifest, manifests.Index):
            _, manifest = await self._manifest(access, manifest.choose().digest)
            if isinstance(manifest, manifests.Index):
                raise manifests.MalformedManifest("it answered with an index inside an index")
        layer = manifest.module_layer()
        if layer is None:
            return await self._fetch_image(access, manifest, brought, on_bytes)
        self._check_size(layer.size, "has")
        await self._transport.retrying(lambda: self._fetch_layer(access, layer, on_bytes))
        brought.bytes += layer.size
        krustlet = layer.media_type == manifests.KRUSTLET_LAYER_TYPE
        return PulledModule(reference="", layer_digest=layer.digest, packed_by_krustlet=krustlet)

    async def _fetch_layer(self, access: Access, layer: manifests.Descriptor, on_bytes: OnBytes) -> None:
        """Fetch a layer that is the module. Raises Transient, PullError, NotAModule, OSError."""
        with self._store.unfinished(layer.size) as file:
            await self._download(access, layer, file, on_bytes, check_head=check_module)
            await in_thread(lambda: self._store.keep(file, layer.digest))

    async def _fetch_image(
        self, access: Access, manifest: manifests.Manifest, brought: _Brought, on_bytes: OnBytes
    ) -> PulledModule:
        """Fetch the layers of a container image, and keep the one file of them that it runs."""
        if manifest.config.size > MAX_MANIFEST_BYTES:
            raise manifests.NotAModule(f"is a container image whose config has {manifest.config.size} bytes")
        command = image_config.parse(await self._small_blob(access, manifest.config))
        total = sum(layer.size for layer in manifest.layers)
        self._check_size(total, "is a container image whose layers have")
        with contextlib.ExitStack() as stack:
            layers = []
            for layer in manifest.layers:
                file = stack.enter_context(self._store.unfinished(layer.size))
                before = brought.bytes

                async def attempt(
                    layer: manifests.Descriptor = layer, file: Unfinished = file, before: int = before
                ) -> None:
                    file.stream.seek(0)
                    file.stream.truncate()
                    await self._download(access, layer, file, lambda done, _: on_bytes(before + done, total))

                await self._transport.retrying(attempt)
                brought.bytes += layer.size
                layers.append(Layer(file=file.stream, size=layer.size))
            async with self._unpacking:
                digest = await self._unpack(layers, command.path)
        return PulledModule(
            reference="",
            layer_digest=digest,
            name=command.name,
            entrypoint_args=command.entrypoint_args,
            image_args=command.args,
        )

    async def _unpack(self, layers: Sequence[Layer], path: str) -> str:
        """Keep one file of an image; its digest. Raises NotAModule, OSError."""
        stop = threading.Event()

        def find() -> tuple[Image, Found]:
            image = Image(layers, max_unpacked_bytes=self._settings.max_unpacked_bytes, stop=stop)
            return image, image.find(path)

        image, found = await in_thread(find, on_cancel=stop.set)
        self._check_size(found.size, f"is to run {shown(path)}, which has")
        with self._store.unfinished(found.size) as file:

            def write() -> str:
                hasher = hashlib.sha256()
                head = b""
                for chunk in image.chunks(found):
                    if len(head) < sniff.HEAD_BYTES:
                        head = (head + chunk)[: sniff.HEAD_BYTES]
                        if len(head) >= 8:
                            check_module(head)
                    hasher.update(chunk)
                    file.stream.write(chunk)
                check_module(head)
                digest = "sha256:" + hasher.hexdigest()
                self._store.keep(file, digest)
                return digest

            try:
                return await in_thread(write, on_cancel=stop.set)
            except manifests.NotAModule as error:
                raise manifests.NotAModule(f"is a container image; {shown(path)}, which it runs, {error}") from error

    async def _download(
        self,
        access: Access,
        layer: manifests.Descriptor,
        file: Unfinished,
        on_bytes: OnBytes,
        *,
        check_head: Callable[[bytes], None] | None = None,
    ) -> None:
        async with self._client.get(access, f"blobs/{layer.digest}") as response:
            await stream(
                response,
                file,
                digest=layer.digest,
                what="the layer",
                size=layer.size,
                most=self._settings.max_module_bytes,
                check_head=check_head,
                on_bytes=on_bytes,
            )

    async def _manifest(self, access: Access, version: str) -> tuple[str, manifests.Manifest | manifests.Index]:
        """A manifest and its true digest. Raises PullError, MalformedManifest."""

        async def attempt() -> tuple[str, manifests.Manifest | manifests.Index]:
            async with self._client.get(access, f"manifests/{version}", accept=manifests.ACCEPT) as response:
                data = await read_limited(response, MAX_MANIFEST_BYTES, what="the manifest")
            digest = "sha256:" + hashlib.sha256(data).hexdigest()
            # The digest that was asked for decides; for a tag, the registry's own word must at least be true.
            asked = version if version.startswith("sha256:") else response.headers.get("docker-content-digest", digest)
            if asked != digest:
                raise digest_mismatch("the manifest", got=digest, expected=shown(asked, 80))
            return digest, manifests.parse(data, content_type=response.headers.get("content-type", ""))

        return await self._transport.retrying(attempt)

    async def _small_blob(self, access: Access, descriptor: manifests.Descriptor) -> bytes:
        """A verified blob, in memory: a config."""

        async def attempt() -> bytes:
            async with self._client.get(access, f"blobs/{descriptor.digest}") as response:
                data = await read_limited(response, MAX_MANIFEST_BYTES, what="the image's config")
            digest = "sha256:" + hashlib.sha256(data).hexdigest()
            if digest != descriptor.digest:
                raise digest_mismatch("the image's config", got=digest, expected=descriptor.digest)
            return data

        return await self._transport.retrying(attempt)

    def _check_size(self, size: int, what: str) -> None:
        limit = self._settings.max_module_bytes
        if size > limit:
            raise manifests.NotAModule(f"{what} {size} bytes; this runner takes modules of at most {limit}")

    async def _with_each(
        self, reference: Reference, credentials: Sequence[Credential], ask: Callable[[Access], Awaitable[T]]
    ) -> T:
        """Ask with one credential after the other, until one is let in; without any if there is none."""
        refusal: PullError | None = None
        for credential in credentials or (None,):
            access = Access(
                host=reference.host,
                base_url=self._registries.base_url(reference.host),
                repository=reference.repository,
                credential=credential,
            )
            try:
                return await ask(access)
            except (AccessDenied, NotThere) as error:  # what may not be seen is not there, to some registries
                refusal = refusal if isinstance(refusal, AccessDenied) else error
        assert refusal is not None
        tried = f" ({len(credentials)} credentials tried)" if len(credentials) > 1 else ""
        raise PullError(f"{refusal.message}{tried}") from refusal

    async def _guarded(self, reference: Reference, work: Callable[[], Awaitable[T]]) -> T:
        """Wait for a turn, give the whole a time limit, and errors their beginning."""
        seconds = self._settings.total_seconds
        try:
            async with self._turns.take(reference.host), asyncio.timeout(seconds):
                return await work()
        except TimeoutError:
            raise PullError(f'failed to pull "{reference}": it took more than {seconds:.0f} s') from None
        except PullError as error:
            raise PullError(f'failed to resolve reference "{reference}": {error.message}') from error
        except manifests.MalformedManifest as error:
            raise PullError(f'failed to resolve reference "{reference}": {error}') from error
        except manifests.NotAModule as error:
            raise NotRunnable(f'"{reference}" {error}', inline=False) from error


@dataclass
class _Brought:
    """What a pull has fetched so far."""

    bytes: int = 0
