"""The certificates between operator and runners as they are kept: Secrets, files, and whom the API server trusts."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

from tests.support.fake_kube import FakeKube
from tests.support.operator_fakes import FakeTime, make_settings, settle
from wherry_operator import authority
from wherry_operator.authority import CA_LIFETIME, LIFETIME, TRUSTED_FIRST
from wherry_operator.kube import Forbidden, Unavailable
from wherry_operator.models import Object
from wherry_operator.reconcile.issuing import (
    API_SERVICE,
    AUTHORITY_SECRET,
    DELIVERED,
    LOOK_SECONDS,
    RETRY_SECONDS,
    Issuing,
)
from wherry_operator.settings import CertificateFiles, ClientTls, Settings

SECRETS = "/api/v1/namespaces/wherry/secrets"
CLUSTER_ROLE = "/apis/rbac.authorization.k8s.io/v1/clusterroles/wherry-operator-wherry"
ALL_SECRETS = {AUTHORITY_SECRET, *DELIVERED}


def own(folder: Path, identity: str = "operator-0") -> Settings:
    """Settings of an operator that makes its certificates."""
    made = folder / identity
    return dataclasses.replace(
        make_settings(),
        identity=identity,
        node_owner="wherry-operator-wherry",
        certificates="own",
        runner_tls=ClientTls(
            ca_file=made / "runners-ca.crt", cert_file=made / "runners.crt", key_file=made / "runners.key"
        ),
        api_certificate=CertificateFiles(cert_file=made / "api.crt", key_file=made / "api.key"),
    )


class Scene:
    """An API server, a clock, and a replica or more."""

    def __init__(self, folder: Path, *, replicas: int = 1) -> None:
        self.kube = FakeKube()
        self.time = FakeTime()
        self.all = [own(folder, f"operator-{number}") for number in range(replicas)]
        self.settings = self.all[0]
        role = {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole"}
        self.kube.put(CLUSTER_ROLE, {**role, "metadata": {"name": "wherry-operator-wherry", "uid": "role"}})

    def play(self, scenario: Callable[[], Awaitable[None]]) -> None:
        async def live(settings: Settings) -> None:
            issuing = Issuing(settings, self.kube, clock=self.time.clock)
            await issuing.prepare()
            await issuing.run()

        async def run() -> None:
            tasks = [asyncio.create_task(live(settings)) for settings in self.all]
            await settle()
            try:
                await scenario()
                assert not any(task.done() for task in tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run(run())

    def data(self, name: str) -> dict[str, bytes]:
        """Of a Secret."""
        return {key: base64.b64decode(value) for key, value in self.kube.objects[f"{SECRETS}/{name}"]["data"].items()}

    def files(self) -> dict[str, bytes]:
        """Those of the first replica itself."""
        folder = self.settings.runner_tls.cert_file.parent
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    def names(self) -> set[str]:
        """Of the Secrets that are there."""
        return {path.rpartition("/")[2] for path in self.kube.objects if path.startswith(SECRETS)}

    def vouched(self, namespace: str) -> Object:
        """The log API is served from a namespace."""
        service = {"name": "wherry-operator", "namespace": namespace}
        return self.kube.put(API_SERVICE, {"metadata": {"name": "v1"}, "spec": {"service": service}})


def test_it_makes_all_that_is_not_there_and_the_release_owns_it(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.vouched("wherry")

    async def scenario() -> None:
        assert scene.names() == ALL_SECRETS
        for name in ALL_SECRETS:
            (owner,) = scene.kube.objects[f"{SECRETS}/{name}"]["metadata"]["ownerReferences"]
            assert (owner["kind"], owner["uid"]) == ("ClusterRole", "role")
        trusted = scene.data(AUTHORITY_SECRET)["ca.crt"]
        for name in DELIVERED:
            assert set(scene.data(name)) == {"ca.crt", "tls.crt", "tls.key"}
            assert scene.data(name)["ca.crt"] == trusted
        assert scene.files()["runners-ca.crt"] == trusted
        assert scene.settings.runner_tls.key_file.stat().st_mode & 0o777 == 0o600
        assert base64.b64decode(scene.kube.objects[API_SERVICE]["spec"]["caBundle"]) == trusted
        before = dict(scene.kube.objects), scene.files()
        await scene.time.advance(10 * LOOK_SECONDS)
        assert (scene.kube.objects, scene.files()) == before

    scene.play(scenario)


def test_replicas_that_begin_together_agree(tmp_path: Path) -> None:
    scene = Scene(tmp_path, replicas=3)

    async def scenario() -> None:
        await scene.time.advance(5 * RETRY_SECONDS)
        ours = authority.from_data(scene.data(AUTHORITY_SECRET))
        assert ours is not None
        for settings in scene.all:
            assert settings.runner_tls.ca_file.read_bytes() == ours.trusted

    scene.play(scenario)


def test_another_installations_log_api_is_left_alone(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.vouched("another")

    async def scenario() -> None:
        assert "caBundle" not in scene.kube.objects[API_SERVICE]["spec"]
        scene.kube.errors[API_SERVICE] = [Forbidden(403, "Forbidden", "no")]
        await scene.time.advance(LOOK_SECONDS)

    scene.play(scenario)


def test_what_is_deleted_or_broken_is_made_again(tmp_path: Path) -> None:
    scene = Scene(tmp_path)

    async def scenario() -> None:
        before = scene.data("wherry-runner-tls")
        scene.kube.remove(f"{SECRETS}/wherry-runner-tls")
        await scene.time.advance(LOOK_SECONDS)
        after = scene.data("wherry-runner-tls")
        assert (after["ca.crt"], after["tls.crt"] == before["tls.crt"]) == (before["ca.crt"], False)
        scene.kube.objects[f"{SECRETS}/wherry-runner-tls"]["data"]["tls.key"] = "AAAA"
        await scene.time.advance(LOOK_SECONDS)
        assert scene.data("wherry-runner-tls")["tls.key"] not in (b"\0\0\0", after["tls.key"])
        # The CA, too: whose key is known to a stranger, say.
        scene.kube.remove(f"{SECRETS}/{AUTHORITY_SECRET}")
        await scene.time.advance(LOOK_SECONDS)
        assert scene.data("wherry-runner-tls")["ca.crt"] == scene.data(AUTHORITY_SECRET)["ca.crt"] != before["ca.crt"]
        assert scene.files()["runners-ca.crt"] == scene.data(AUTHORITY_SECRET)["ca.crt"]

    scene.play(scenario)


def test_all_is_renewed_in_time_and_the_ca_stays(tmp_path: Path) -> None:
    scene = Scene(tmp_path)

    async def scenario() -> None:
        before, files = {name: scene.data(name) for name in ALL_SECRETS}, scene.files()
        scene.time.seconds += (LIFETIME * 0.7).total_seconds()
        await scene.time.advance(LOOK_SECONDS)
        assert {name: scene.data(name) for name in ALL_SECRETS} == before
        scene.time.seconds += (LIFETIME * 0.11).total_seconds()
        await scene.time.advance(LOOK_SECONDS)
        assert scene.data(AUTHORITY_SECRET) == before[AUTHORITY_SECRET]
        for name in DELIVERED:
            assert scene.data(name)["tls.crt"] != before[name]["tls.crt"]
        assert scene.files()["runners.crt"] != files["runners.crt"]

    scene.play(scenario)


def test_a_ca_is_announced_a_day_before_it_signs(tmp_path: Path) -> None:
    scene = Scene(tmp_path)

    async def scenario() -> None:
        first = scene.data(AUTHORITY_SECRET)
        scene.time.seconds += (CA_LIFETIME * 0.81).total_seconds()
        await scene.time.advance(LOOK_SECONDS)
        announced = scene.data(AUTHORITY_SECRET)
        assert announced["tls.crt"] == first["tls.crt"]
        runner = scene.data("wherry-runner-tls")
        assert (
            runner["ca.crt"]
            == scene.files()["runners-ca.crt"]
            == announced["ca.crt"]
            == first["tls.crt"] + announced["next.crt"]
        )
        scene.time.seconds += TRUSTED_FIRST.total_seconds()
        await scene.time.advance(LOOK_SECONDS)
        changed = scene.data(AUTHORITY_SECRET)
        assert changed["tls.crt"] == announced["next.crt"]
        assert "next.key" not in changed
        assert scene.data("wherry-runner-tls")["ca.crt"] == announced["next.crt"] + first["tls.crt"]
        assert scene.data("wherry-runner-tls")["tls.crt"] != runner["tls.crt"]
        scene.time.seconds += timedelta(days=30).total_seconds()
        await scene.time.advance(LOOK_SECONDS)
        assert scene.data(AUTHORITY_SECRET) == changed

    scene.play(scenario)


def test_an_api_server_that_refuses_or_does_not_answer_is_asked_again(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    authority_path = f"{SECRETS}/{AUTHORITY_SECRET}"
    scene.kube.errors[authority_path] = [Unavailable(0, "", "no"), Forbidden(403, "Forbidden", "no")]

    async def scenario() -> None:
        assert scene.names() == set()
        await scene.time.advance(2 * RETRY_SECONDS)
        assert scene.names() == ALL_SECRETS

    scene.play(scenario)


def test_where_files_are_brought_it_does_nothing(tmp_path: Path) -> None:
    scene = Scene(tmp_path)

    async def run() -> None:
        issuing = Issuing(dataclasses.replace(scene.settings, certificates="files"), scene.kube, clock=scene.time.clock)
        await issuing.prepare()
        await issuing.run()

    asyncio.run(run())
    assert scene.kube.calls == []
