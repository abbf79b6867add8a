"""Gets the tokens of Pods' service accounts, as the node, and keeps each until it has to be renewed."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Protocol

from wherry_operator.clock import Clock
from wherry_operator.kube import Forbidden, KubeError
from wherry_operator.models import Object, PodSpec
from wherry_operator.references import AUTHORIZER_LAG_SECONDS
from wherry_operator.resolve import tokens
from wherry_operator.resolve.objects import ResolveError
from wherry_operator.resolve.tokens import Tokens, TokenWish


class TokenApi(Protocol):
    """What of `Kube` is used here."""

    async def create(self, path: str, body: Object) -> Object:
        """Create an object in a collection."""
        ...


@dataclass(frozen=True)
class _Token:
    value: str
    renew_at: float
    """By the monotonic clock, as"""
    expires: float
    """this one: the wall clock may be another than the API server's, and jump."""


class ServiceAccountTokens:
    """A cache; after a restart each Pod gets new ones, as from a kubelet."""

    def __init__(self, kube_as_node: TokenApi, *, clock: Clock | None = None) -> None:
        self._kube = kube_as_node
        self._clock = clock or Clock()
        self._tokens: defaultdict[str, dict[TokenWish, _Token]] = defaultdict(dict)

    async def read(self, pod: Object, spec: PodSpec) -> tuple[Tokens, float | None]:
        """The tokens that the Pod's volumes ask for, and in how many seconds one of them has to be renewed; None: none.

        Raises ResolveError where one can't be had.
        """
        wanted = tokens.wishes(spec)
        if not wanted:
            return {}, None
        found = {wish: await self._one(pod, spec, wish) for wish in sorted(wanted)}
        first = min(token.renew_at for token in found.values())
        return {wish: token.value for wish, token in found.items()}, max(1.0, first - self._clock.monotonic())

    def forget(self, uid: str) -> None:
        """The Pod with this UID is gone."""
        self._tokens.pop(uid, None)

    async def _one(self, pod: Object, spec: PodSpec, wish: TokenWish) -> _Token:
        mine, now = self._tokens[pod["metadata"]["uid"]], self._clock.monotonic()
        known = mine.get(wish)
        if known is not None and now < known.renew_at:
            return known
        try:
            mine[wish] = await self._request(pod, spec.service_account_name or "default", wish)
        except KubeError as error:
            if known is None or now >= known.expires:
                message = f"failed to fetch token of service account {spec.service_account_name or 'default'}: {error}"
                raise ResolveError(message, reason="ContainerCreating", event="FailedMount") from error
            return known  # it is good for a while yet
        return mine[wish]

    async def _request(self, pod: Object, account: str, wish: TokenWish) -> _Token:
        path = f"/api/v1/namespaces/{pod['metadata']['namespace']}/serviceaccounts/{account}/token"
        body = tokens.request(pod, wish)
        for wait in (*AUTHORIZER_LAG_SECONDS, None):
            issued = self._clock.monotonic()
            try:
                answer = await self._kube.create(path, body)
                break
            except Forbidden:
                if wait is None:
                    raise
                await self._clock.sleep(wait)
        # What was granted, which may be less than what was asked for.
        lifetime = float(answer["spec"]["expirationSeconds"])
        return _Token(answer["status"]["token"], issued + tokens.renew_seconds(lifetime), issued + lifetime)
