"""Tokens of service accounts that a Pod's volumes ask for: which, and when they have to be renewed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wherry_operator.models import Object, PodSpec

DEFAULT_SECONDS = 3600
"""Of `expirationSeconds`, as the API server has it."""

OLDEST_SECONDS = 24 * 3600.0
"""One of this age is renewed, however long it may still be good (kubelet: pkg/kubelet/token, maxTTL)."""


@dataclass(frozen=True, order=True)
class TokenWish:
    """A token as a projected volume asks for it."""

    audience: str = ""
    """Empty: the API server's own."""
    seconds: int = DEFAULT_SECONDS

    @classmethod
    def of(cls, source: Mapping[str, object]) -> TokenWish:
        """What a `serviceAccountToken` of a projected volume asks for."""
        seconds = source.get("expirationSeconds")
        return cls(str(source.get("audience") or ""), int(str(seconds)) if seconds else DEFAULT_SECONDS)


Tokens = Mapping[TokenWish, str]


def wishes(spec: PodSpec) -> set[TokenWish]:
    """All tokens that the Pod's volumes ask for, the one that admission adds too."""
    return {
        TokenWish.of(source.service_account_token)
        for volume in spec.volumes or ()
        if volume.projected is not None
        for source in volume.projected.sources or ()
        if source.service_account_token is not None
    }


def request(pod: Object, wish: TokenWish) -> Object:
    """A TokenRequest, bound to the Pod: with it the token ends. NodeRestriction lets a node ask for no other."""
    metadata = pod["metadata"]
    spec: Object = {
        "expirationSeconds": wish.seconds,
        "audiences": [wish.audience] if wish.audience else [],
        "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]},
    }
    return {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}


def renew_seconds(lifetime_seconds: float) -> float:
    """After how long a token is to be replaced: after 80 % of its time, as a kubelet does it."""
    return min(lifetime_seconds * 0.8, OLDEST_SECONDS)
