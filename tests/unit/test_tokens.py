"""Tokens of service accounts: which are asked for, as what, and how long they are kept."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.operator_fakes import FakeTime
from wherry_operator.kube import Forbidden, KubeError
from wherry_operator.models import Object, PodSpec
from wherry_operator.reconcile.tokens import ServiceAccountTokens
from wherry_operator.resolve.objects import ResolveError
from wherry_operator.resolve.pod import resolve
from wherry_operator.resolve.tokens import TokenWish, wishes
from wherry_runner.protocol import FilesVolume


def pod(*sources: dict[str, Any], name: str = "kube-api-access-x7x2p") -> Object:
    projected = {"sources": [{"serviceAccountToken": source} for source in sources], "defaultMode": 0o600}
    return {
        "metadata": {"name": "hello", "namespace": "boats", "uid": "u-1"},
        "spec": {
            "serviceAccountName": "sailor",
            "restartPolicy": "Always",
            "containers": [{"name": "main", "image": "i"}],
            "volumes": [{"name": name, "projected": projected}] if sources else [],
        },
    }


class FakeApi:
    def __init__(self, time: FakeTime) -> None:
        self.time = time
        self.requests: list[tuple[str, Object]] = []
        self.errors: list[KubeError] = []
        self.longest_seconds = 365 * 86400
        """For which a token is given (--service-account-max-token-expiration)."""

    async def create(self, path: str, body: Object) -> Object:
        self.requests.append((path, body))
        if self.errors:
            raise self.errors.pop(0)
        granted = min(body["spec"]["expirationSeconds"], self.longest_seconds)
        return {
            "spec": {**body["spec"], "expirationSeconds": granted},
            "status": {"token": f"token {len(self.requests)}"},
        }


class Stage:
    def __init__(self) -> None:
        self.time = FakeTime()
        self.api = FakeApi(self.time)
        self.tokens = ServiceAccountTokens(self.api, clock=self.time.clock)

    async def read(self, body: Object) -> tuple[dict[TokenWish, str], float | None]:
        found, renewal = await self.tokens.read(body, PodSpec.model_validate(body["spec"]))
        return dict(found), renewal


def test_what_is_asked_for_is_bound_to_the_pod() -> None:
    async def scenario() -> None:
        stage = Stage()
        found, renewal = await stage.read(pod({"path": "token", "audience": "vault", "expirationSeconds": 7200}))
        assert found == {TokenWish("vault", 7200): "token 1"}
        assert renewal is not None and 5700 < renewal <= 5760  # 80 % of it
        ((path, body),) = stage.api.requests
        assert path == "/api/v1/namespaces/boats/serviceaccounts/sailor/token"
        assert body["spec"] == {
            "expirationSeconds": 7200,
            "audiences": ["vault"],
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "hello", "uid": "u-1"},
        }
        assert await stage.read(pod()) == ({}, None)

    asyncio.run(scenario())


def test_a_token_is_kept_until_it_has_to_be_renewed_and_used_while_it_is_good() -> None:
    async def scenario() -> None:
        stage, body = Stage(), pod({"path": "token"})
        wish = TokenWish()
        assert (await stage.read(body))[0] == {wish: "token 1"}
        stage.time.seconds = 2800
        assert (await stage.read(body))[0] == {wish: "token 1"}
        stage.time.seconds = 2900
        stage.api.errors = [KubeError(500, "InternalError", "no")]
        assert await stage.read(body) == ({wish: "token 1"}, 1.0)
        assert (await stage.read(body))[0] == {wish: "token 3"}
        stage.time.seconds = 2900 + 3601
        stage.api.errors = [KubeError(500, "InternalError", "no")]
        with pytest.raises(ResolveError, match="failed to fetch token of service account sailor"):
            await stage.read(body)
        stage.tokens.forget("u-1")
        assert (await stage.read(body))[0] == {wish: "token 5"}

    asyncio.run(scenario())


@pytest.mark.parametrize("ahead", [3600, 90_000, -3600])
def test_the_wall_clock_changes_nothing_of_when_a_token_is_renewed(ahead: float) -> None:
    async def scenario() -> None:
        stage, body = Stage(), pod({"path": "token"})
        await stage.read(body)
        stage.time.ahead_seconds, stage.time.seconds = ahead, 2800
        assert await stage.read(body) == ({TokenWish(): "token 1"}, 80)
        stage.time.seconds = 2880
        assert await stage.read(body) == ({TokenWish(): "token 2"}, 2880)

    asyncio.run(scenario())


def test_a_token_that_is_good_for_less_than_was_asked_for_is_renewed_in_time() -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.api.longest_seconds = 600
        assert (await stage.read(pod({"path": "token"})))[1] == 480

    asyncio.run(scenario())


def test_a_long_lived_token_is_renewed_every_day() -> None:
    async def scenario() -> None:
        _, renewal = await Stage().read(pod({"path": "token", "expirationSeconds": 30 * 86400}))
        assert renewal == 86400

    asyncio.run(scenario())


def test_the_authorizer_may_learn_of_a_pod_later_than_we() -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.api.errors = [Forbidden(403, "Forbidden", "not yet")]
        reading = asyncio.create_task(stage.read(pod({"path": "token"})))
        await stage.time.advance(1)
        assert (await reading)[0] == {TokenWish(): "token 2"}

    asyncio.run(scenario())


@pytest.mark.parametrize("name", ["kube-api-access-x7x2p", "mine"])
def test_a_token_is_a_file_kept_in_memory(name: str) -> None:
    body = pod({"path": "token"}, {"path": "vault", "audience": "vault"}, name=name)
    assert wishes(PodSpec.model_validate(body["spec"])) == {TokenWish(), TokenWish("vault")}
    tokens = {TokenWish(): "one", TokenWish("vault"): "two"}
    first = resolve(body, {}, now=FakeTime().clock.now(), tokens=tokens)
    (volume,) = first.workload.volumes
    assert isinstance(volume, FilesVolume) and volume.secret
    assert [(file.path, file.data, file.mode) for file in volume.files] == [
        ("token", b"one", 0o600), ("vault", b"two", 0o600),
    ]  # fmt: skip
    renewed = resolve(body, {}, now=FakeTime().clock.now(), tokens={**tokens, TokenWish(): "three"})
    assert (first.template_hash, first.content_revision != renewed.content_revision) == (renewed.template_hash, True)
