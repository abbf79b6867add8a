"""A request to a stranger's server: TLS, redirects, time limits, another try, and errors in words. Knows nothing of registries.

Errors are `PullError`s whose text begins where the caller's ends: `failed to resolve reference "…": ` + text. No header and no
query of a URL is in any of them: those hold tokens and signatures.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import TypeVar

import httpx

from wherry_runner.modules.errors import AccessDenied, NotThere, PullError, shown
from wherry_runner.modules.hosts import RegistrySettings

MAX_REDIRECTS = 5

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_RETRIED = frozenset({429, 500, 502, 503, 504})
_MISSING = "not found (404): the registry has no such repository or tag"

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]


class Transient(Exception):
    """Worth another try. `wait` is what the server asked for, in seconds."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class Transport:
    """Sends requests. One for the process's life; `close` it at the end."""

    def __init__(self, settings: RegistrySettings, *, sleep: Sleep = asyncio.sleep) -> None:
        self._settings = settings
        self._sleep = sleep
        self._clients: dict[tuple[object, ...], httpx.AsyncClient] = {}

    async def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            await client.aclose()
        self._clients.clear()

    async def retrying(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Run `attempt` again while it raises Transient, a bounded number of times. Raises PullError."""
        for number in range(1, self._settings.attempts + 1):
            try:
                return await attempt()
            except Transient as error:
                wait = error.wait if error.wait is not None else 0.5 * 2 ** (number - 1)
                if wait > self._settings.max_wait_seconds:
                    raise PullError(f"{error}; the registry asks to wait {wait:.0f} s") from error
                if number == self._settings.attempts:
                    raise PullError(f"{error} ({number} attempts)" if number > 1 else str(error)) from error
                await self._sleep(wait)
        raise AssertionError("attempts must be at least 1")

    @asynccontextmanager
    async def send(
        self,
        url: str,
        *,
        registry: str,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        form: Mapping[str, str] | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """The answer, of whatever status, with redirects followed and its body not read yet.

        `registry`: the host on whose behalf another one is asked; its CA is trusted there, too. `form`: a body with a
        credential, so a redirect is an error. Raises Transient, PullError; so does what reads the body inside.
        """
        with _Translated() as asked:
            response = await self._follow(asked, httpx.URL(url), registry, method, dict(headers or {}), form)
            try:
                yield response
            finally:
                await response.aclose()

    async def _follow(
        self,
        asked: _Translated,
        url: httpx.URL,
        registry: str,
        method: str,
        headers: dict[str, str],
        form: Mapping[str, str] | None,
    ) -> httpx.Response:
        """Follow redirects: only to http and https, never from https to http, and to no other server with a credential."""
        for _ in range(MAX_REDIRECTS + 1):
            asked.host = host_of(url)
            _check_host(url)
            client = self._client(asked.host, registry)
            request = client.build_request(method, url, headers=headers, data=form)
            response = await client.send(request, stream=True)
            location = response.headers.get("location")
            if response.status_code not in _REDIRECTS or not location:
                return response
            await response.aclose()
            # Without a user and password: httpx would send them.
            target = url.join(location).copy_with(userinfo=b"", fragment=None)
            if target.scheme not in ("http", "https") or (url.scheme == "https" and target.scheme == "http"):
                raise PullError(f"it redirects to {shown_url(target)}, which is not followed: not https")
            if form is not None:
                raise PullError(f"it redirects a request with a credential to {shown_url(target)}")
            if not same_server(target, url):
                # Another server is another party: it gets no token. A token may also make it refuse the request.
                headers = {name: value for name, value in headers.items() if name != "Authorization"}
            url = target
        raise PullError(f"it redirects more than {MAX_REDIRECTS} times")

    def _client(self, host: str, registry: str) -> httpx.AsyncClient:
        """One for each set of trusted CAs. Raises PullError."""
        ca_files = self._settings.ca_files
        own, of_registry = ca_files.get(host), ca_files.get(registry)
        # A host with a CA file is trusted by that alone; a registry's storage or token service by the system's CAs, too.
        key = (own and _version(own),) if own else (of_registry and _version(of_registry), "system")
        if key not in self._clients:
            try:
                context = ssl.create_default_context(cafile=own)
                if own is None and of_registry is not None:
                    context.load_verify_locations(of_registry)
            except (OSError, ssl.SSLError) as error:
                text = f"the CA file for {host}, {own or of_registry}, can't be used: {error}"
                raise PullError(text) from error
            settings = self._settings
            self._clients[key] = httpx.AsyncClient(
                verify=context,
                timeout=httpx.Timeout(settings.read_seconds, connect=settings.connect_seconds),
                # Whoever hangs must not keep others from connecting: `turns.py` bounds what is under way.
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=32, keepalive_expiry=15.0),
                follow_redirects=False,
                # Nothing compressed: a digest is that of the bytes on the wire, and a few kilobytes unpack to gigabytes.
                headers={"User-Agent": "wherry", "Accept-Encoding": "identity"},
                # No cookies: a session opened with one workload's credential would serve the next one without.
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            )
        return self._clients[key]


async def read_limited(response: httpx.Response, limit: int, *, what: str) -> bytes:
    """The whole body, at most `limit` bytes. Raises PullError; inside `Transport.send`."""
    if (encoding := response.headers.get("content-encoding", "identity")) != "identity":
        raise PullError(f"{what} came compressed ({shown(encoding, 40)}), which was not asked for")
    data = bytearray()
    async for chunk in response.aiter_raw():
        data += chunk
        if len(data) > limit:
            raise PullError(f"{what} is larger than {limit} bytes")
    return bytes(data)


def raise_for_status(
    response: httpx.Response, *, denied: str, missing: str = _MISSING, who: str = "the registry"
) -> None:
    """Raises AccessDenied with what follows from it, NotThere, Transient, PullError; nothing for 200."""
    status = response.status_code
    if status == 200:
        return
    if status == 404:
        raise NotThere(missing)
    if status in (401, 403):
        raise AccessDenied(f"access denied ({status}): {denied}")
    text = f"{who} answered {status} {shown(response.reason_phrase, 60)}".rstrip()
    if status in _RETRIED:
        raise Transient(text, retry_after(response.headers.get("retry-after", "")))
    raise PullError(text)


def retry_after(value: str) -> float | None:
    """Seconds, from seconds or a date (RFC 9110 §10.2.3); None if there is nothing sensible."""
    if value.isascii() and value.isdigit():
        return float(value[:12])
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def same_server(one: httpx.URL, other: httpx.URL) -> bool:
    """Whether what one may know, the other may (the origin of RFC 6454)."""
    return (one.scheme, one.host, one.port) == (other.scheme, other.host, other.port)


def _check_host(url: httpx.URL) -> None:
    """Raises PullError for what the libraries below fail at, each in its own way (RFC 1035 §2.3.4)."""
    name = url.raw_host.decode("ascii", "replace").rstrip(".")
    if not name or len(name) > 253 or not all(0 < len(label) < 64 for label in name.split(".")):
        raise PullError(
            f"{shown(host_of(url))} is not a host that could be asked: its name is too long, or empty in part"
        )
    if url.port is not None and url.port > 65535:
        raise PullError(f"{shown(host_of(url))} is not a host that could be asked: ports end at 65535")


def host_of(url: httpx.URL) -> str:
    """Host and port, as references have them."""
    return url.netloc.decode("ascii", "replace")


def shown_url(url: httpx.URL) -> str:
    """A URL without its query, which may hold a signature, and without a user."""
    return shown(f"{url.scheme}://{host_of(url)}{url.path}")


def _version(path: Path) -> tuple[str, int]:
    """A file as it is now: a renewed CA is taken up."""
    try:
        return str(path), path.stat().st_mtime_ns
    except OSError:
        return str(path), 0


class _Translated:
    """Turns httpx's errors into ours."""

    host = "the server"

    def __enter__(self) -> _Translated:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        what = shown(error)
        match error:
            case httpx.ConnectTimeout():
                raise Transient(f"{self.host} did not accept a connection in time") from error
            case httpx.TimeoutException():
                raise Transient(f"{self.host} did not answer in time") from error
            case httpx.ConnectError() if "CERTIFICATE_VERIFY_FAILED" in str(error):
                text = f"the certificate of {self.host} is not trusted: {what}; give its CA to the runner"
                raise PullError(text) from error
            case httpx.ConnectError() if "SSL" in str(error) or "TLS" in str(error):
                text = f"{self.host} does not speak TLS: {what}; if it is plain HTTP, list it as insecure"
                raise PullError(text) from error
            case httpx.ConnectError():
                raise Transient(f"can't reach {self.host}: {what}") from error
            case httpx.TransportError():
                raise Transient(f"the connection to {self.host} broke: {what}") from error
            case httpx.HTTPError() | httpx.InvalidURL():
                raise PullError(f"{self.host} sent an answer that can't be read: {what}") from error
