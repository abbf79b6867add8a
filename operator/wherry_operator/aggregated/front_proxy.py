"""Who calls, by the word of the API server: a front proxy that shows its certificate and tells the user in headers.

The rules are those of k8s.io/apiserver, `pkg/authentication/request/headerrequest` and `x509`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from multidict import MultiMapping

from wherry_operator.clock import Clock
from wherry_operator.kube import KubeError
from wherry_operator.kubelet.auth import AUTHENTICATION_CONFIG_MAP, Identity, Unauthenticated, certificate_names
from wherry_operator.models import Object


@dataclass(frozen=True, kw_only=True)
class FrontProxy:
    """What the cluster says of its front proxy, in ConfigMap kube-system/extension-apiserver-authentication."""

    ca_pem: str
    """Certificates of this CA vouch for the headers below: for any user."""
    allowed_names: tuple[str, ...]
    """Common names of those certificates; none: all."""
    user_headers: tuple[str, ...]
    uid_headers: tuple[str, ...]
    group_headers: tuple[str, ...]
    extra_prefixes: tuple[str, ...]

    @classmethod
    def of(cls, config_map: Object) -> FrontProxy:
        """From the ConfigMap. Raises KubeError where the cluster has no front proxy, or tells nonsense."""
        data = config_map.get("data") or {}
        pem = data.get("requestheader-client-ca-file") or ""
        users = _names(data, "requestheader-username-headers")
        if not pem or not users:
            raise KubeError(
                0,
                "NoFrontProxy",
                f"{AUTHENTICATION_CONFIG_MAP} has no requestheader-client-ca-file: no aggregation here",
            )
        return cls(
            ca_pem=pem,
            allowed_names=_names(data, "requestheader-allowed-names"),
            user_headers=users,
            uid_headers=_names(data, "requestheader-uid-headers"),
            group_headers=_names(data, "requestheader-group-headers"),
            extra_prefixes=_names(data, "requestheader-extra-headers-prefix"),
        )

    def identify(self, certificate: Mapping[str, Any] | None, headers: MultiMapping[str], clock: Clock) -> Identity:
        """The user that the headers name. Raises Unauthenticated where nobody vouches for them, or they name none.

        :param certificate: what `ssl.SSLObject.getpeercert()` returned: empty unless it was verified, by `ca_pem` alone.
        """
        if not certificate:
            raise Unauthenticated
        name, _ = certificate_names(certificate, clock)
        if not name or (self.allowed_names and name not in self.allowed_names):
            raise Unauthenticated
        user = _first(headers, self.user_headers)
        if not user:
            raise Unauthenticated
        return Identity(
            user=user,
            uid=_first(headers, self.uid_headers),
            groups=tuple(group for header in self.group_headers for group in headers.getall(header, ()) if group),
            extra=self._extra(headers),
        )

    def _extra(self, headers: MultiMapping[str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
        found: dict[str, list[str]] = {}
        for prefix in self.extra_prefixes:
            for header, value in headers.items():
                if header.lower().startswith(prefix.lower()):
                    found.setdefault(unquote(header[len(prefix) :].lower()), []).append(value)
        return tuple((key, tuple(values)) for key, values in sorted(found.items()))


def _names(data: Mapping[str, str], key: str) -> tuple[str, ...]:
    try:
        names = json.loads(data.get(key) or "[]")
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise KubeError(0, "BadConfig", f"{AUTHENTICATION_CONFIG_MAP}: {key} is no list of names")
    return tuple(names)


def _first(headers: MultiMapping[str], names: tuple[str, ...]) -> str:
    values = (value for name in names for value in headers.getall(name, ())[:1])
    return next((value for value in values if value), "")
