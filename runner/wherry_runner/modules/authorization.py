"""How a registry lets us in: by name and password, or by a token that its token service gives for them, or to anybody.

A credential is shown to the registry that its entry in the pull secret names, by TLS or where plain HTTP is allowed, and to
the token service that this registry names. What was found out is kept for the same registry, repository and credential, and
for nobody else.
"""

from __future__ import annotations

import base64
import json
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlencode

import httpx

from wherry_runner.modules.challenge import Challenge
from wherry_runner.modules.credentials import Credential
from wherry_runner.modules.errors import AccessDenied, PullError
from wherry_runner.modules.hosts import RegistrySettings
from wherry_runner.modules.transport import Transport, host_of, raise_for_status, read_limited, same_server, shown_url

MAX_TOKEN_BYTES = 256 << 10

MAX_KEPT = 1024
"""Tokens; the one that was used longest ago goes first."""

_SHORTEST_SECONDS = 60.0
_LONGEST_SECONDS = 3600.0
"""How long a token is good for, at least (where the service says less or nothing) and as far as it is believed."""

_EARLY_SECONDS = 10.0
"""A token is given up so long before its end: a request takes time."""

_TOKEN = re.compile(r"[\x21-\x7e]{1,65536}")


@dataclass(frozen=True, kw_only=True)
class Access:
    """Who asks for what. Tokens are kept by this."""

    host: str
    """As in the reference."""
    base_url: str
    repository: str
    credential: Credential | None = None
    """None: anybody."""

    @property
    def denied(self) -> str:
        """What a refusal means, for messages."""
        if self.credential is None:
            return (
                "the repository does not exist, or it is private and no pull secret of the workload has an entry for it"
            )
        return "the repository does not exist, or the registry does not accept what the workload's pull secret says"


class Authorizer:
    """Finds and keeps values of the Authorization header."""

    def __init__(
        self, transport: Transport, settings: RegistrySettings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._transport = transport
        self._settings = settings
        self._clock = clock
        self._kept: OrderedDict[Access, tuple[str, float]] = OrderedDict()

    def known(self, access: Access) -> str | None:
        """What let us in the last time, while it is good."""
        value, good_until = self._kept.get(access, ("", 0.0))
        if not value or self._clock() >= good_until:
            return None
        self._kept.move_to_end(access)
        return value

    def forget(self, access: Access) -> None:
        """It let us in no more."""
        self._kept.pop(access, None)

    async def answer(self, access: Access, challenges: list[Challenge]) -> str:
        """What lets us in. Raises AccessDenied, Transient, PullError."""
        by_scheme = {challenge.scheme: challenge.parameters for challenge in reversed(challenges)}
        good_for = _LONGEST_SECONDS
        if "realm" in by_scheme.get("bearer", {}):
            token, good_for = await self._token(access, by_scheme["bearer"])
            value = f"Bearer {token}"
        elif "basic" in by_scheme and access.credential is not None and access.credential.password.get_secret_value():
            value = _basic(access.credential)
        else:
            raise AccessDenied(f"access denied (401): {access.denied}")
        self._kept[access] = value, self._clock() + good_for
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
        return value

    async def _token(self, access: Access, parameters: dict[str, str]) -> tuple[str, float]:
        """A token and for how many seconds it is good, as Docker's token services give it."""
        try:
            realm = httpx.URL(parameters["realm"]).copy_with(userinfo=b"", fragment=None)
        except httpx.InvalidURL:
            raise PullError("the registry names a token service by something that is no URL") from None
        self._check(realm, access)
        fields = {"scope": f"repository:{access.repository}:pull"}
        if service := parameters.get("service"):
            fields["service"] = service
        credential = access.credential
        if credential is not None and (token := credential.identity_token.get_secret_value()):
            # OAuth2's refresh token grant. In the body, and so it is never sent to where a redirect points.
            form = fields | {"grant_type": "refresh_token", "client_id": "wherry", "refresh_token": token}
            request = self._transport.send(str(realm), registry=access.host, method="POST", form=form)
        else:
            headers = {"Authorization": _basic(credential)} if credential is not None else {}
            url = f"{realm}{'&' if realm.query else '?'}{urlencode(fields)}"
            request = self._transport.send(url, registry=access.host, headers=headers)
        async with request as response:
            if response.status_code == 400:  # so OAuth2 says it of a refresh token that is none
                raise AccessDenied(f"access denied (400): {access.denied}")
            missing = f"its token service, {shown_url(realm)}, is not found (404)"
            raise_for_status(response, denied=access.denied, missing=missing, who="its token service")
            data = await read_limited(response, MAX_TOKEN_BYTES, what="the token")
        return _read_token(data, shown_url(realm))

    def _check(self, realm: httpx.URL, access: Access) -> None:
        """Raises PullError for a token service that may not be asked."""
        plain_is_allowed = self._settings.allows_plain_http(host_of(realm)) or same_server(
            realm, httpx.URL(access.base_url)
        )
        if realm.scheme != "https" and not (realm.scheme == "http" and plain_is_allowed):
            raise PullError(f"the registry sends to {shown_url(realm)} for a token, which is not https")


def _basic(credential: Credential) -> str:
    pair = f"{credential.username}:{credential.password.get_secret_value()}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


def _read_token(data: bytes, where: str) -> tuple[str, float]:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        fields = None
    match fields:
        case {"token": str(token)} | {"access_token": str(token)} if _TOKEN.fullmatch(token):
            pass
        case _:
            raise PullError(f"{where} answered with something that is not a token")
    seconds = fields.get("expires_in")
    good_for = float(seconds) if isinstance(seconds, int) and 0 < seconds < 1 << 32 else 0.0
    return token, min(max(good_for, _SHORTEST_SECONDS), _LONGEST_SECONDS) - _EARLY_SECONDS
