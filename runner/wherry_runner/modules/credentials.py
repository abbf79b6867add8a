"""Which entries of a workload's pull secrets are meant for an image: as the kubelet's keyring does it. Pure.

Rules and their order are those of `pkg/credentialprovider/keyring.go`:

- An entry names a host, with a port where the image has one; `*` stands for any text within one part of the name.
- It may name a path, which must begin the image's repository, letter by letter. `/v1/` and `/v2/` before it don't count.
- Entries are tried from the last to the first in the alphabet, so a longer path comes before a shorter one.
- An entry for `index.docker.io` (Docker writes `https://index.docker.io/v1/`) is for Docker Hub's images, if no other is.
"""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from pydantic import SecretStr

from wherry_runner import protocol

MAX_TRIED = 16
"""Credentials for one image: each costs requests."""

_DOCKER_HUB = ("docker.io/", "index.docker.io/")
_DOCKER_HUB_KEY = "index.docker.io"

_NOTHING = SecretStr("")


@dataclass(frozen=True, kw_only=True)
class Credential:
    """What a registry wants to see."""

    username: str = field(default="", repr=False)
    password: SecretStr = _NOTHING
    identity_token: SecretStr = _NOTHING
    """An OAuth2 refresh token; taken before the password where a registry gives tokens."""

    def fingerprint(self, salt: bytes) -> str:
        """By what a store knows it again, and nobody learns it."""
        parts = [self.username, self.password.get_secret_value(), self.identity_token.get_secret_value()]
        return hmac.digest(salt, json.dumps(parts).encode(), "sha256").hex()


def matching(entries: Iterable[protocol.RegistryCredential], image: str) -> tuple[Credential, ...]:
    """The credentials for `host/repository`, in the order in which they are tried; none: ask without."""
    by_key: dict[str, list[Credential]] = {}
    for entry in entries:
        credential = Credential(username=entry.username, password=entry.password, identity_token=entry.identity_token)
        if credential != Credential():
            by_key.setdefault(_key(entry.registry), []).append(credential)
    found = [credential for key in sorted(by_key, reverse=True) if _matches(key, image) for credential in by_key[key]]
    if not found and image.startswith(_DOCKER_HUB):
        found = by_key.get(_DOCKER_HUB_KEY, [])
    return tuple(dict.fromkeys(found))[:MAX_TRIED]


def _key(registry: str) -> str:
    """`host` or `host/path` of an entry's name."""
    for scheme in ("https://", "http://"):
        registry = registry.removeprefix(scheme)
    host, slash, path = re.split(r"[?#]", registry, maxsplit=1)[0].partition("/")
    path = slash + path
    if path.startswith(("/v1/", "/v2/")):
        path = path[3:]
    return host.rpartition("@")[2] + (path if path != "/" else "")


def _matches(key: str, image: str) -> bool:
    host, slash, path = key.partition("/")
    image_host, image_slash, image_path = image.partition("/")
    name, port = _split_port(host)
    image_name, image_port = _split_port(image_host)
    parts, image_parts = name.split("."), image_name.split(".")
    return (
        port == image_port
        and len(parts) == len(image_parts)
        and (image_slash + image_path).startswith(slash + path)
        and all(map(_part_matches, parts, image_parts))
    )


def _split_port(host: str) -> tuple[str, str]:
    match = re.fullmatch(r"(.*):(\d*)", host)
    # An IPv6 address has colons of its own, within brackets.
    return (match[1], match[2]) if match and not (host.startswith("[") and host.endswith("]")) else (host, "")


def _part_matches(pattern: str, part: str) -> bool:
    """`*` is any text. Greedy from the left, so that a stranger's pattern takes no more than one pass."""
    first, *rest = pattern.split("*")
    if not rest:
        return part == pattern
    *middle, last = rest
    if not part.startswith(first) or not part.endswith(last) or len(part) < len(first) + len(last):
        return False
    position, end = len(first), len(part) - len(last)
    for piece in middle:
        position = part.find(piece, position, end)
        if position < 0:
            return False
        position += len(piece)
    return True
