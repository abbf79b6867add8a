"""Pull secrets → credentials for the runner, in both forms that Kubernetes has for them.

`kubernetes.io/dockerconfigjson` (`{"auths": {REGISTRY: ENTRY}}`) and `kubernetes.io/dockercfg` (`{REGISTRY: ENTRY}`); an entry
has `auth` (base64 of `user:password`), or `username` and `password`, or an `identitytoken`
(pkg/credentialprovider/config.go). A secret that is missing or can't be read keeps nothing from being tried: the kubelet says
so in an Event and pulls without it.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import SecretStr

from wherry_operator.resolve.objects import Found, Kind, Objects, Reference
from wherry_runner import protocol

JSON_KEY = ".dockerconfigjson"
OLD_KEY = ".dockercfg"


@dataclass(frozen=True, kw_only=True)
class PullSecrets:
    """What pull secrets say."""

    credentials: tuple[protocol.RegistryCredential, ...]
    complaints: tuple[str, ...]
    """One for each secret that gave nothing. Nothing of a secret's content is in it."""


def references(names: Iterable[str]) -> set[Reference]:
    """The Secrets of these names."""
    return {Reference(Kind.SECRET, name) for name in names if name}


def read(names: Iterable[str], objects: Objects) -> PullSecrets:
    """All credentials, in the order of the secrets."""
    credentials: list[protocol.RegistryCredential] = []
    complaints = []
    for name in names:
        if not name:
            continue
        secret = objects[Reference(Kind.SECRET, name)]
        if not isinstance(secret, Found):
            complaints.append(secret.message)
            continue
        try:
            credentials += _entries(secret)
        except ValueError as error:
            complaints.append(f'secret "{name}" is no pull secret: {error}')
    return PullSecrets(credentials=tuple(credentials), complaints=tuple(complaints))


def _entries(secret: Found) -> list[protocol.RegistryCredential]:
    """Raises ValueError, with nothing of the secret in it."""
    if JSON_KEY in secret.data:
        entries = _json(secret.data[JSON_KEY], JSON_KEY).get("auths")
    elif OLD_KEY in secret.data:
        entries = _json(secret.data[OLD_KEY], OLD_KEY)
    else:
        raise ValueError(f"it has neither {JSON_KEY} nor {OLD_KEY}")
    if not isinstance(entries, dict):
        raise ValueError(f'{JSON_KEY} has no "auths"')
    return [_entry(registry, entry) for registry, entry in entries.items() if registry and isinstance(entry, dict)]


def _entry(registry: str, entry: dict[str, object]) -> protocol.RegistryCredential:
    username, password = str(entry.get("username") or ""), str(entry.get("password") or "")
    auth = entry.get("auth")
    if isinstance(auth, str) and auth:
        try:
            # Docker pads some of them with NUL bytes.
            username, separator, password = base64.b64decode(auth).decode().rstrip("\0").partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise ValueError(f'"auth" of an entry is not base64 of user:password (registry "{registry}")') from None
        if not separator:
            raise ValueError(f'"auth" of an entry has no colon (registry "{registry}")')
    token = entry.get("identitytoken")
    return protocol.RegistryCredential(
        registry=registry,
        username=username,
        password=SecretStr(password),
        identity_token=SecretStr(token if isinstance(token, str) else ""),
    )


def _json(data: bytes, key: str) -> dict[str, object]:
    try:
        value = json.loads(data)
    except ValueError:
        raise ValueError(f"{key} is not JSON") from None
    if not isinstance(value, dict):
        raise ValueError(f"{key} is not a JSON object")
    return value
