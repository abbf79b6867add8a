"""A registry's API (OCI distribution specification): what is asked of it, and with which authorization.

What is trusted: a digest that the user wrote, and after that only what hashes to it. A registry (or whoever stands between)
can refuse and delay, within limits, but not change a byte.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from wherry_runner.modules import challenge as challenges
from wherry_runner.modules.authorization import Access, Authorizer
from wherry_runner.modules.errors import AccessDenied
from wherry_runner.modules.transport import Transport, raise_for_status, same_server


class RegistryClient:
    """Asks registries."""

    def __init__(self, transport: Transport, authorizer: Authorizer) -> None:
        self._transport = transport
        self._authorizer = authorizer

    @asynccontextmanager
    async def get(
        self, access: Access, path: str, *, accept: str = "*/*", method: str = "GET"
    ) -> AsyncIterator[httpx.Response]:
        """A successful answer, its body not read yet. Raises Transient, PullError; so does what reads the body."""
        url = f"{access.base_url}/v2/{access.repository}/{path}"
        headers = {"Accept": accept}
        known = self._authorizer.known(access)
        async with self._send(access, url, method, headers, known) as response:
            if response.status_code != 401:
                raise_for_status(response, denied=access.denied)
                yield response
                return
            # The registry's own word only: who it redirects to could ask for its credentials.
            if not same_server(response.url, httpx.URL(access.base_url)):
                raise AccessDenied(f"access denied (401): {access.denied}")
            wanted = challenges.parse(response.headers.get_list("www-authenticate"))
        self._authorizer.forget(access)
        found = await self._authorizer.answer(access, wanted)
        async with self._send(access, url, method, headers, found) as response:
            if response.status_code == 401:
                self._authorizer.forget(access)
            raise_for_status(response, denied=access.denied)
            yield response

    @asynccontextmanager
    async def _send(
        self, access: Access, url: str, method: str, headers: dict[str, str], authorization: str | None
    ) -> AsyncIterator[httpx.Response]:
        if authorization is not None:
            headers = headers | {"Authorization": authorization}
        async with self._transport.send(url, registry=access.host, method=method, headers=headers) as response:
            yield response
