"""A registry over HTTP: where it is, redirects, anonymous tokens, retries, time limits. Knows nothing of WebAssembly.

What is trusted: a digest that the user wrote, and after that only what hashes to it. A registry (or whoever stands between)
can refuse and delay, within limits, but not change a byte.

Errors are `PullError`s whose text begins where the caller's ends: `failed to resolve reference "…": ` + text.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlencode

import httpx

from wherry_runner.modules.errors import PullError

MAX_REDIRECTS = 5
MAX_TOKEN_BYTES = 256 << 10

_DOCKER_HUB = {"docker.io": "registry-1.docker.io"}
"""Docker Hub's API has another address than its name."""

_RETRIED = frozenset({429, 500, 502, 503, 504})
_MISSING = "not found (404): the registry has no such repository or tag"
_DENIED = "access denied ({status}): the repository does not exist, or it is private; anonymous pulls only, so far"

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class RegistrySettings:
    """How registries are reached. Times in seconds."""

    connect_seconds: float = 10.0
    read_seconds: float = 30.0
    """The longest silence of a registry."""
    attempts: int = 3
    """Of one request that meets 429, a 5xx or a broken connection. The kubelet's own back-off comes on top."""
    max_wait_seconds: float = 20.0
    """The longest `Retry-After` that is waited for; a longer one ends the pull with a message that names it."""
    insecure_registries: frozenset[str] = frozenset()
    """Hosts (with port, as in references) asked by plain HTTP. Loopback addresses are so anyway, as in Docker, unless they
    have a CA file."""
    ca_files: Mapping[str, Path] = field(default_factory=dict)
    """Host → file with the CA certificates (PEM) that its certificate must be signed by, instead of the system's."""
    mirrors: Mapping[str, str] = field(default_factory=dict)
    """Host → base URL of a mirror that is asked instead."""


class Transient(Exception):
    """Worth another try. `wait` is what the registry asked for, in seconds."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class RegistryClient:
    """Asks registries. One for the process's life; `close` it at the end."""

    def __init__(self, settings: RegistrySettings, *, sleep: Sleep = asyncio.sleep) -> None:
        self._settings = settings
        self._sleep = sleep
        self._clients: dict[str, httpx.AsyncClient] = {}

    async def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            await client.aclose()
        self._clients.clear()

    def base_url(self, host: str) -> str:
        """Where a registry's API is, without a slash at the end."""
        settings = self._settings
        if mirror := settings.mirrors.get(host):
            return mirror.rstrip("/")
        plain = host in settings.insecure_registries or (_is_loopback(host) and host not in settings.ca_files)
        return f"{'http' if plain else 'https'}://{_DOCKER_HUB.get(host, host)}"

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
    async def get(
        self, host: str, repository: str, path: str, *, accept: str = "*/*", method: str = "GET"
    ) -> AsyncIterator[httpx.Response]:
        """A successful answer, its body not read yet. Raises Transient, PullError; so does what reads the body."""
        url = httpx.URL(f"{self.base_url(host)}/v2/{repository}/{path}")
        headers = {"Accept": accept}
        with _translated(host):
            response = await self._follow(host, method, url, headers)
            try:
                if response.status_code == 401 and (challenge := _bearer(response)):
                    token = await self._anonymous_token(host, repository, challenge)
                    await response.aclose()
                    response = await self._follow(host, method, url, headers | {"Authorization": f"Bearer {token}"})
                _raise_for_status(response)
                yield response
            finally:
                await response.aclose()

    async def _follow(self, host: str, method: str, url: httpx.URL, headers: dict[str, str]) -> httpx.Response:
        """Send a request and follow redirects: only to http and https, never from https to http."""
        for _ in range(MAX_REDIRECTS + 1):
            client = self._client(host)
            response = await client.send(client.build_request(method, url, headers=headers), stream=True)
            location = response.headers.get("location")
            if response.status_code not in (301, 302, 303, 307, 308) or not location:
                return response
            await response.aclose()
            target = url.join(location)
            if target.scheme not in ("http", "https") or (url.scheme == "https" and target.scheme == "http"):
                raise PullError(f"the registry redirects to {_shown(target)}, which is not followed: not https")
            if (target.scheme, target.host, target.port) != (url.scheme, url.host, url.port):
                # Another server is another party: it gets no token. A token may also make it refuse the request.
                headers = {name: value for name, value in headers.items() if name != "Authorization"}
            url = target
        raise PullError(f"the registry redirects more than {MAX_REDIRECTS} times")

    async def _anonymous_token(self, host: str, repository: str, challenge: dict[str, str]) -> str:
        """The token that public registries give to anybody. Raises Transient, PullError."""
        realm = httpx.URL(challenge["realm"])
        if realm.scheme != "https" and not self.base_url(host).startswith("http://"):
            raise PullError(f"the registry sends to {_shown(realm)} for a token, which is not https")
        query = {"scope": f"repository:{repository}:pull"}
        if service := challenge.get("service"):
            query["service"] = service
        separator = "&" if realm.query else "?"
        response = await self._follow(host, "GET", httpx.URL(f"{realm}{separator}{urlencode(query)}"), {})
        try:
            _raise_for_status(response)
            data = await read_limited(response, MAX_TOKEN_BYTES, what="the token")
        finally:
            await response.aclose()
        try:
            fields = httpx.Response(200, content=data).json()
            return str(fields.get("token") or fields["access_token"])
        except (ValueError, KeyError, AttributeError):
            raise PullError(f"{_shown(realm)} answered with something that is not a token") from None

    def _client(self, host: str) -> httpx.AsyncClient:
        """One per set of trusted CAs."""
        ca_file = self._settings.ca_files.get(host)
        key = str(ca_file or "")
        if key not in self._clients:
            try:
                context = ssl.create_default_context(cafile=ca_file)
            except (OSError, ssl.SSLError) as error:
                raise PullError(f"the CA file for {host}, {ca_file}, can't be used: {error}") from error
            settings = self._settings
            timeout = httpx.Timeout(settings.read_seconds, connect=settings.connect_seconds)
            self._clients[key] = httpx.AsyncClient(
                verify=context, timeout=timeout, follow_redirects=False, headers={"User-Agent": "wherry"}
            )
        return self._clients[key]


async def read_limited(response: httpx.Response, limit: int, *, what: str) -> bytes:
    """The whole body, at most `limit` bytes. Raises PullError, httpx errors."""
    data = bytearray()
    async for chunk in response.aiter_bytes():
        data += chunk
        if len(data) > limit:
            raise PullError(f"{what} is larger than {limit} bytes")
    return bytes(data)


class _translated:
    """Turns httpx's errors into ours."""

    def __init__(self, host: str) -> None:
        self._host = host

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        match error:
            case httpx.ConnectTimeout():
                raise Transient(f"{self._host} did not accept a connection in time") from error
            case httpx.TimeoutException():
                raise Transient(f"{self._host} did not answer in time") from error
            case httpx.ConnectError() if "CERTIFICATE_VERIFY_FAILED" in str(error):
                text = f"the certificate of {self._host} is not trusted: {error}; give its CA to the runner"
                raise PullError(text) from error
            case httpx.ConnectError() if "SSL" in str(error) or "TLS" in str(error):
                text = f"{self._host} does not speak TLS: {error}; if it is plain HTTP, list it as insecure"
                raise PullError(text) from error
            case httpx.ConnectError():
                raise Transient(f"can't reach {self._host}: {error}") from error
            case httpx.TransportError():
                raise Transient(f"the connection to {self._host} broke: {error}") from error
            case httpx.HTTPError() | httpx.InvalidURL():
                raise PullError(f"{self._host} sent an answer that can't be read: {error}") from error


def _raise_for_status(response: httpx.Response) -> None:
    status = response.status_code
    if status == 200:
        return
    if status == 404:
        raise PullError(_MISSING)
    if status in (401, 403):
        raise PullError(_DENIED.format(status=status))
    text = f"the registry answered {status} {response.reason_phrase}".rstrip()
    if status in _RETRIED:
        raise Transient(text, _retry_after(response.headers.get("retry-after", "")))
    raise PullError(text)


def _retry_after(value: str) -> float | None:
    """Seconds, from seconds or a date; None if there is nothing sensible."""
    if value.isdigit():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _bearer(response: httpx.Response) -> dict[str, str] | None:
    """The parameters of a Bearer challenge (RFC 6750 §3), if there is one with a realm."""
    challenge = response.headers.get("www-authenticate", "")
    scheme, _, rest = challenge.partition(" ")
    parameters = dict(re.findall(r'(\w+)="([^"]*)"', rest))
    return parameters if scheme.lower() == "bearer" and "realm" in parameters else None


def _is_loopback(host: str) -> bool:
    name = httpx.URL(f"http://{host}").host
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _shown(url: httpx.URL) -> str:
    """A URL without its query, which may hold a signature."""
    return f"{url.scheme}://{url.host}{url.path}"
