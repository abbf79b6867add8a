"""Who calls the kubelet endpoint, and whether they may: as a kubelet asks it (`pkg/kubelet/server/auth.go`).

Authentication: a client certificate (verified by TLS) or a bearer token (TokenReview). Authorization: a
SubjectAccessReview for a subresource of our Node, always: the CA that signs the API server's certificate
signs users' too.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from wherry_operator.clock import Clock
from wherry_operator.kube import KubeError
from wherry_operator.models import Object

TOKEN_SECONDS = 120.0
"""A token that was good is good for so long (kubelet: webhook cacheTTL)."""

BAD_TOKEN_SECONDS = 10.0
"""One that was not: short, for it may be valid a moment later."""

ALLOW_SECONDS = 300.0
"""A permission that was given (kubelet: cacheAuthorizedTTL)."""

DENY_SECONDS = 30.0
"""One that was not (kubelet: cacheUnauthorizedTTL)."""

CACHED = 1024
"""Entries of each cache: callers are the API server, metrics and a few people."""

REVIEWS_AT_ONCE = 8
"""Anybody who reaches the port can send tokens: no flood of them may become one of the API server."""

AUTHENTICATION_CONFIG_MAP = "/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication"

_Value = TypeVar("_Value")


class Reviews(Protocol):
    """What of `Kube` the reviews need."""

    async def create(self, path: str, body: Object) -> Object:
        """Create an object in a collection."""
        ...


class ConfigMaps(Protocol):
    """What of `Kube` the client CA needs."""

    async def get(self, path: str) -> Object:
        """One object."""
        ...


class Unauthenticated(Exception):
    """Nobody we know: answer 401."""


class ReviewFailed(Exception):
    """The API server could not be asked: answer 500."""


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who calls, as Kubernetes' user info has it."""

    user: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """What is wanted of the Node: one of the subresources is enough."""

    verb: str
    subresources: tuple[str, ...]

    @classmethod
    def of(cls, method: str, path: str) -> Attributes:
        """A request's attributes (kubelet: GetRequestAttributes, with KubeletFineGrainedAuthz, KEP-2862)."""
        verb = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}.get(method, "get")
        first = path.split("/", 2)[1] if path.startswith("/") else ""
        if first == "attach":
            # Not the kubelet's rule: there a WebSocket, being a GET, lets whoever may read a node write to its containers.
            verb = "create"
        return cls(verb=verb, subresources=_SUBRESOURCES.get(first, ("proxy",)))


_SUBRESOURCES = {
    "stats": ("stats",),
    "metrics": ("metrics",),
    "logs": ("log",),
    "pods": ("pods", "proxy"),
    "runningpods": ("pods", "proxy"),
    "healthz": ("healthz", "proxy"),
    "configz": ("configz", "proxy"),
}


class Authenticator:
    """From a request's certificate or token to an identity."""

    def __init__(self, kube: Reviews, clock: Clock | None = None) -> None:
        self._kube = kube
        self._clock = clock or Clock()
        self._tokens: _Cache[Identity | None] = _Cache(self._clock.monotonic)
        self._reviewing = asyncio.Semaphore(REVIEWS_AT_ONCE)

    async def identify(self, certificate: Mapping[str, Any] | None, authorization: str) -> Identity:
        """Who calls. Raises Unauthenticated, ReviewFailed.

        :param certificate: what `ssl.SSLObject.getpeercert()` returned: empty unless it was verified.
        :param authorization: the header, "" where there was none.
        """
        if certificate and (identity := self._by_certificate(certificate)):
            return identity
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated
        identity = await self._by_token(token)
        if identity is None:
            raise Unauthenticated
        return identity

    def _by_certificate(self, certificate: Mapping[str, Any]) -> Identity | None:
        user, groups = certificate_names(certificate, self._clock)
        return Identity(user=user, groups=(*groups, "system:authenticated")) if user else None

    async def _by_token(self, token: str) -> Identity | None:
        key = hashlib.sha256(token.encode(errors="surrogateescape")).digest()
        found, identity = self._tokens.get(key)
        if found:
            return identity
        review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}}
        async with self._reviewing:
            status = await _review(self._kube, "/apis/authentication.k8s.io/v1/tokenreviews", review)
        identity = _reviewed(status.get("user") or {}) if status.get("authenticated") else None
        self._tokens.put(key, identity, TOKEN_SECONDS if identity else BAD_TOKEN_SECONDS)
        return identity


@dataclass(frozen=True, kw_only=True)
class ResourceAttributes:
    """What somebody wants to do with a resource, as a SubjectAccessReview has it."""

    verb: str
    group: str
    version: str
    resource: str
    subresource: str
    name: str
    namespace: str = ""


class Permissions:
    """Whether an identity may do something: asked of the API server, and remembered for a while."""

    def __init__(self, kube: Reviews, clock: Clock | None = None) -> None:
        self._kube = kube
        self._decisions: _Cache[bool] = _Cache((clock or Clock()).monotonic)
        self._reviewing = asyncio.Semaphore(REVIEWS_AT_ONCE)

    async def allows(self, identity: Identity, wanted: ResourceAttributes) -> bool:
        """Ask, or remember. Raises ReviewFailed."""
        key = (identity, wanted)
        found, allowed = self._decisions.get(key)
        if found:
            return bool(allowed)
        spec: Object = {
            "user": identity.user,
            "groups": list(identity.groups),
            "resourceAttributes": {name: value for name, value in asdict(wanted).items() if value or name == "group"},
        }
        if identity.uid:
            spec["uid"] = identity.uid
        if identity.extra:
            spec["extra"] = {name: list(values) for name, values in identity.extra}
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
        async with self._reviewing:
            status = await _review(self._kube, "/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
        allowed = status.get("allowed") is True
        self._decisions.put(key, allowed, ALLOW_SECONDS if allowed else DENY_SECONDS)
        return allowed


class Authorizer:
    """Whether an identity may do something with our Node."""

    def __init__(self, kube: Reviews, node_name: str, clock: Clock | None = None) -> None:
        self._node_name = node_name
        self._permissions = Permissions(kube, clock)

    async def allows(self, identity: Identity, wanted: Attributes) -> bool:
        """Ask for each subresource in turn until one is allowed. Raises ReviewFailed."""
        for subresource in wanted.subresources:
            resource = ResourceAttributes(
                verb=wanted.verb,
                group="",
                version="v1",
                resource="nodes",
                subresource=subresource,
                name=self._node_name,
            )
            if await self._permissions.allows(identity, resource):
                return True
        return False


async def client_ca(kube: ConfigMaps, file: Path | None) -> str:
    """The CAs of client certificates, as PEM: of the file, else those that the API server publishes for its
    extensions.

    Raises KubeError (the ConfigMap can't be read, or has no client CA), OSError (the file can't).
    """
    if file:
        return file.read_text()
    found = await kube.get(AUTHENTICATION_CONFIG_MAP)
    # Not requestheader-client-ca-file: those certificates vouch for a front proxy's headers, which mean
    # nothing here.
    pem: str = (found.get("data") or {}).get("client-ca-file") or ""
    if not pem:
        raise KubeError(0, "NoClientCA", f"{AUTHENTICATION_CONFIG_MAP} has no client-ca-file: give --kubelet-client-ca")
    return pem


def certificate_names(certificate: Mapping[str, Any], clock: Clock) -> tuple[str, tuple[str, ...]]:
    """The common name of a client certificate and its organizations; "" where it has none, or is over.

    :param certificate: what `ssl.SSLObject.getpeercert()` returned.
    """
    # Verified at the handshake; a connection may outlive its certificate.
    if ssl.cert_time_to_seconds(certificate["notAfter"]) <= clock.now().timestamp():
        return "", ()
    names = [pair for part in certificate.get("subject", ()) for pair in part]
    common = next((value for key, value in names if key == "commonName"), "")
    return common, tuple(value for key, value in names if key == "organizationName")


def _reviewed(user: Object) -> Identity:
    extra = tuple((name, tuple(values)) for name, values in sorted((user.get("extra") or {}).items()))
    return Identity(
        user=user.get("username") or "",
        groups=tuple(user.get("groups") or ()),
        uid=user.get("uid") or "",
        extra=extra,
    )


async def _review(kube: Reviews, path: str, review: Object) -> Object:
    try:
        answer = await kube.create(path, review)
    except KubeError as error:
        raise ReviewFailed(f"{review['kind']} failed: {error}") from error
    status: Object = answer.get("status") or {}
    return status


class _Cache(Generic[_Value]):
    """The newest entries, each until its time."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._entries: OrderedDict[Hashable, tuple[float, _Value]] = OrderedDict()

    def get(self, key: Hashable) -> tuple[bool, _Value | None]:
        """Whether it is there, and the value."""
        entry = self._entries.get(key)
        if entry is None or entry[0] <= self._monotonic():
            return False, None
        return True, entry[1]

    def put(self, key: Hashable, value: _Value, seconds: float) -> None:
        """Keep a value for so many seconds; the oldest entry makes room."""
        self._entries.pop(key, None)
        while len(self._entries) >= CACHED:
            self._entries.popitem(last=False)
        self._entries[key] = (self._monotonic() + seconds, value)
