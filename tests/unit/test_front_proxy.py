"""Who calls the aggregated API, by the word of the API server."""

from __future__ import annotations

import json
from typing import Any

import pytest
from multidict import CIMultiDict

from tests.support.operator_fakes import FakeTime
from wherry_operator.aggregated.front_proxy import FrontProxy
from wherry_operator.kube import KubeError
from wherry_operator.kubelet.auth import Identity, Unauthenticated

CERTIFICATE = {"subject": ((("commonName", "front-proxy-client"),),), "notAfter": "Jan  2 04:00:00 2026 GMT"}

DATA = {
    "requestheader-client-ca-file": "PEM",
    "requestheader-allowed-names": '["front-proxy-client"]',
    "requestheader-username-headers": '["X-Remote-User"]',
    "requestheader-uid-headers": '["X-Remote-Uid"]',
    "requestheader-group-headers": '["X-Remote-Group"]',
    "requestheader-extra-headers-prefix": '["X-Remote-Extra-"]',
}


def identify(headers: list[tuple[str, str]], certificate: Any = CERTIFICATE, **data: str) -> Identity:
    proxy = FrontProxy.of({"data": DATA | {key.replace("_", "-"): value for key, value in data.items()}})
    return proxy.identify(certificate, CIMultiDict(headers), FakeTime().clock)


def test_the_headers_name_the_user() -> None:
    headers = [
        ("x-remote-user", "ada"),
        ("X-Remote-Group", "boatmen"),
        ("X-Remote-Group", "system:authenticated"),
        ("X-Remote-Uid", "7"),
        ("X-Remote-Extra-Acme.com%2fProject", "one"),
        ("X-Remote-Extra-Acme.com%2fProject", "two"),
        ("X-Other", "no matter"),
    ]
    assert identify(headers) == Identity(
        user="ada",
        groups=("boatmen", "system:authenticated"),
        uid="7",
        extra=(("acme.com/project", ("one", "two")),),
    )


@pytest.mark.parametrize(
    "certificate",
    [
        None,
        {},
        CERTIFICATE | {"subject": ((("commonName", "somebody-else"),),)},
        CERTIFICATE | {"subject": ()},
        CERTIFICATE | {"notAfter": "Jan  2 03:00:00 2026 GMT"},
    ],
)
def test_headers_mean_nothing_unless_somebody_vouches_for_them(certificate: Any) -> None:
    with pytest.raises(Unauthenticated):
        identify([("X-Remote-User", "ada")], certificate)


@pytest.mark.parametrize("headers", [[], [("X-Remote-User", "")], [("X-Remote-Group", "system:masters")]])
def test_without_a_user_there_is_nobody(headers: list[tuple[str, str]]) -> None:
    with pytest.raises(Unauthenticated):
        identify(headers)


def test_without_allowed_names_every_certificate_of_that_ca_vouches() -> None:
    anybody = CERTIFICATE | {"subject": ((("commonName", "anybody"),),)}
    assert identify([("X-Remote-User", "ada")], anybody, requestheader_allowed_names="[]").user == "ada"


@pytest.mark.parametrize("missing", ["requestheader-client-ca-file", "requestheader-username-headers"])
def test_a_cluster_without_a_front_proxy_is_told(missing: str) -> None:
    with pytest.raises(KubeError, match="no aggregation here"):
        FrontProxy.of({"data": {key: value for key, value in DATA.items() if key != missing}})


@pytest.mark.parametrize("nonsense", ["[", json.dumps({"a": 1}), "[1]"])
def test_nonsense_trusts_nobody(nonsense: str) -> None:
    with pytest.raises(KubeError, match="no list of names"):
        FrontProxy.of({"data": DATA | {"requestheader-allowed-names": nonsense}})
