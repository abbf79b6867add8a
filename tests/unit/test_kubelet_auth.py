"""Who may call the kubelet endpoint: certificates, tokens, reviews and how long they are remembered."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.operator_fakes import FakeTime
from wherry_operator.kube import Unavailable
from wherry_operator.kubelet.auth import (
    CACHED,
    Attributes,
    Authenticator,
    Authorizer,
    Identity,
    ReviewFailed,
    Unauthenticated,
    client_ca,
)
from wherry_operator.models import Object

CERTIFICATE = {
    "subject": (
        (("organizationName", "kubeadm:cluster-admins"),),
        (("organizationName", "second"),),
        (("commonName", "kube-apiserver-kubelet-client"),),
    ),
    "notAfter": "Jan  2 04:00:00 2026 GMT",
}


class FakeReviews:
    def __init__(self) -> None:
        self.users: dict[str, Object] = {}
        self.allowed: set[tuple[str, str, str]] = set()
        self.asked: list[Object] = []
        self.down = False

    async def create(self, path: str, body: Object) -> Object:
        if self.down:
            raise Unavailable(0, "Unavailable", "down")
        self.asked.append(body)
        if path.endswith("/tokenreviews"):
            user = self.users.get(body["spec"]["token"])
            return {"status": {"authenticated": True, "user": user} if user else {"error": "bad token"}}
        spec = body["spec"]
        wanted = spec["resourceAttributes"]
        return {"status": {"allowed": (spec["user"], wanted["verb"], wanted["subresource"]) in self.allowed}}


def identify(authenticator: Authenticator, certificate: Any = None, authorization: str = "") -> Identity:
    return asyncio.run(authenticator.identify(certificate, authorization))


@pytest.mark.parametrize(
    ("method", "path", "verb", "subresources"),
    [
        ("GET", "/containerLogs/ns/p/c", "get", ("proxy",)),
        ("HEAD", "/containerLogs/ns/p/c", "get", ("proxy",)),
        ("POST", "/exec/ns/p/c", "create", ("proxy",)),
        ("GET", "/exec/ns/p/c", "get", ("proxy",)),
        ("GET", "/stats/summary", "get", ("stats",)),
        ("GET", "/metrics", "get", ("metrics",)),
        ("GET", "/metrics/resource", "get", ("metrics",)),
        ("GET", "/metricsx", "get", ("proxy",)),
        ("GET", "/logs/", "get", ("log",)),
        ("GET", "/pods", "get", ("pods", "proxy")),
        ("GET", "/runningpods/", "get", ("pods", "proxy")),
        ("GET", "/healthz", "get", ("healthz", "proxy")),
        ("GET", "/configz", "get", ("configz", "proxy")),
        ("GET", "/", "get", ("proxy",)),
        ("DELETE", "/nowhere", "delete", ("proxy",)),
    ],
)
def test_attributes_are_the_kubelets(method: str, path: str, verb: str, subresources: tuple[str, ...]) -> None:
    assert Attributes.of(method, path) == Attributes(verb=verb, subresources=subresources)


def test_a_certificate_gives_user_and_groups() -> None:
    identity = identify(Authenticator(FakeReviews(), FakeTime().clock), CERTIFICATE)
    assert identity == Identity(
        user="kube-apiserver-kubelet-client",
        groups=("kubeadm:cluster-admins", "second", "system:authenticated"),
    )


@pytest.mark.parametrize("certificate", [None, {}, CERTIFICATE | {"subject": ()}])
@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer ", "Basic dTpw", "Bearer unknown"])
def test_anybody_else_is_a_stranger(certificate: Any, authorization: str) -> None:
    with pytest.raises(Unauthenticated):
        identify(Authenticator(FakeReviews(), FakeTime().clock), certificate, authorization)


def test_a_certificate_that_ran_out_during_the_connection_is_not_taken() -> None:
    time = FakeTime()
    authenticator = Authenticator(FakeReviews(), time.clock)
    assert identify(authenticator, CERTIFICATE)
    time.seconds = 3600
    with pytest.raises(Unauthenticated):
        identify(authenticator, CERTIFICATE)


def test_a_token_is_reviewed_once_in_two_minutes() -> None:
    time, reviews = FakeTime(), FakeReviews()
    reviews.users["good"] = {"username": "u", "uid": "1", "groups": ["g"], "extra": {"k": ["v"]}}
    authenticator = Authenticator(reviews, time.clock)
    expected = Identity(user="u", uid="1", groups=("g",), extra=(("k", ("v",)),))
    for seconds, asked in ((0, 1), (119, 1), (120, 2)):
        time.seconds = seconds
        assert identify(authenticator, authorization="bearer good") == expected
        assert len(reviews.asked) == asked
    assert "good" not in repr(authenticator._tokens._entries)


def test_a_bad_token_is_remembered_shortly_and_a_failure_never() -> None:
    time, reviews = FakeTime(), FakeReviews()
    authenticator = Authenticator(reviews, time.clock)
    reviews.down = True
    with pytest.raises(ReviewFailed):
        identify(authenticator, authorization="Bearer late")
    reviews.down = False
    for seconds in (0, 9):
        time.seconds = seconds
        with pytest.raises(Unauthenticated):
            identify(authenticator, authorization="Bearer late")
    assert len(reviews.asked) == 1
    reviews.users["late"] = {"username": "u"}
    time.seconds = 10
    assert identify(authenticator, authorization="Bearer late").user == "u"


def test_the_cache_is_bounded() -> None:
    reviews = FakeReviews()
    authenticator = Authenticator(reviews, FakeTime().clock)

    async def flood() -> None:
        for number in range(CACHED + 10):
            with pytest.raises(Unauthenticated):
                await authenticator.identify(None, f"Bearer {number}")

    asyncio.run(flood())
    assert len(authenticator._tokens._entries) == CACHED


def test_permissions_are_remembered_five_minutes_and_refusals_half_a_minute() -> None:
    time, reviews = FakeTime(), FakeReviews()
    authorizer = Authorizer(reviews, "wherry", time.clock)
    reviews.allowed.add(("good", "get", "proxy"))
    wanted = Attributes(verb="get", subresources=("proxy",))
    good, bad = Identity(user="good", groups=("g",), uid="1", extra=(("k", ("v",)),)), Identity(user="bad")
    for seconds, asked in ((0, 2), (29, 2), (30, 3), (60, 4), (299, 5), (300, 6)):
        time.seconds = seconds
        assert asyncio.run(authorizer.allows(good, wanted))
        assert not asyncio.run(authorizer.allows(bad, wanted))
        assert len(reviews.asked) == asked
    assert reviews.asked[0]["spec"] == {
        "user": "good",
        "groups": ["g"],
        "uid": "1",
        "extra": {"k": ["v"]},
        "resourceAttributes": {
            "verb": "get",
            "group": "",
            "version": "v1",
            "resource": "nodes",
            "name": "wherry",
            "subresource": "proxy",
        },
    }


def test_the_finer_permission_or_the_coarser_one_is_enough() -> None:
    reviews = FakeReviews()
    reviews.allowed |= {("fine", "get", "pods"), ("coarse", "get", "proxy")}
    authorizer = Authorizer(reviews, "wherry", FakeTime().clock)
    for user, expected in (("fine", True), ("coarse", True), ("other", False)):
        assert asyncio.run(authorizer.allows(Identity(user=user), Attributes.of("GET", "/pods"))) is expected


def test_no_answer_is_no_permission() -> None:
    reviews = FakeReviews()
    reviews.down = True
    with pytest.raises(ReviewFailed):
        asyncio.run(
            Authorizer(reviews, "wherry", FakeTime().clock).allows(Identity(user="u"), Attributes.of("GET", "/"))
        )


def test_client_ca_is_the_cluster_s_and_not_the_front_proxy_s() -> None:
    class Maps:
        async def get(self, path: str) -> Object:
            assert path.endswith("/kube-system/configmaps/extension-apiserver-authentication")
            return {"data": {"client-ca-file": "PEM", "requestheader-client-ca-file": "OTHER"}}

    assert asyncio.run(client_ca(Maps(), None)) == "PEM"
