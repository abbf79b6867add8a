"""Fetches a module from an https address. Its sha256 is given, and decides what is run, whoever answers there.

No credential is ever sent: an address with a user in it is refused. Its query, which may hold a signature, is in no message.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from urllib.parse import unquote

import httpx

from wherry_runner.modules.download import check_module, stream
from wherry_runner.modules.errors import ModuleError, NotRunnable, PullError, shown
from wherry_runner.modules.manifest import NotAModule
from wherry_runner.modules.progress import OnBytes
from wherry_runner.modules.pull import AT_ONCE, AT_ONCE_PER_HOST, PullMetrics, PullSettings
from wherry_runner.modules.store import Store
from wherry_runner.modules.threads import in_thread
from wherry_runner.modules.transport import Transport, host_of, raise_for_status, shown_url
from wherry_runner.modules.turns import Turns

_DENIED = "it is not open to all; modules are fetched without a credential"


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a module is fetched."""

    url: httpx.URL
    text: str
    """For messages."""
    name: str
    """Of the module: the last part of the path."""


class Fetcher:
    """Fetches modules into a store."""

    def __init__(
        self, store: Store, settings: PullSettings, *, transport: Transport, metrics: PullMetrics | None = None
    ) -> None:
        self._store = store
        self._settings = settings
        self._transport = transport
        self._metrics = metrics
        self._turns = Turns(in_all=AT_ONCE, per_host=AT_ONCE_PER_HOST)

    def parse(self, text: str) -> Address:
        """Read an address. Raises ModuleError (`CreateContainerConfigError`)."""
        try:
            url = httpx.URL(text).copy_with(fragment=None)
        except httpx.InvalidURL as error:
            raise _wrong(f"can't be read: {shown(error)}") from None
        if url.userinfo:
            raise _wrong("has a user or a password in it, which would be shown to all who may read this object")
        plain = url.scheme == "http" and host_of(url) in self._settings.registries.insecure_registries
        if (url.scheme != "https" and not plain) or not url.host:
            raise _wrong(f"begins with {shown(url.scheme, 20)}://; it must be https:// with a host")
        name = unquote(url.path).rpartition("/")[2]
        return Address(url=url, text=f'"{shown_url(url)}"', name=name if name.isprintable() and name else "module")

    async def fetch(self, address: Address, digest: str, *, on_bytes: OnBytes) -> None:
        """Fetch a module into the store. Raises PullError, NotRunnable, OSError."""
        seconds = self._settings.total_seconds
        started = time.monotonic()
        result, brought = "error", 0
        try:
            async with self._turns.take(host_of(address.url)), asyncio.timeout(seconds):
                brought = await self._transport.retrying(lambda: self._fetch(address, digest, on_bytes))
            result = "ok"
        except TimeoutError:
            raise PullError(f"failed to fetch {address.text}: it took more than {seconds:.0f} s") from None
        except PullError as error:
            raise PullError(f"failed to fetch {address.text}: {error.message}") from error
        except NotAModule as error:
            raise NotRunnable(f"{address.text} {error}", inline=False) from error
        finally:
            if self._metrics is not None:
                self._metrics.pulled(result, time.monotonic() - started, brought)

    async def _fetch(self, address: Address, digest: str, on_bytes: OnBytes) -> int:
        most = self._settings.max_module_bytes
        async with self._transport.send(str(address.url), registry=host_of(address.url)) as response:
            raise_for_status(response, denied=_DENIED, missing="not found (404)", who="the server")
            announced = response.headers.get("content-length", "")
            size = int(announced[:20]) if announced.isascii() and announced.isdigit() else most
            with self._store.unfinished(min(size, most)) as file:
                done = await stream(
                    response,
                    file,
                    digest=digest,
                    what="the module",
                    most=most,
                    check_head=lambda head: check_module(head, text_too=True),
                    on_bytes=on_bytes,
                )
                await in_thread(lambda: self._store.keep(file, digest))
        return done


def _wrong(text: str) -> ModuleError:
    return ModuleError("CreateContainerConfigError", f"the module's url {text}", retry=False)
