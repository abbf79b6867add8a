"""The serving certificate that the operator makes, or has signed."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.fake_kube import FakeKube
from tests.support.operator_fakes import FakeTime, make_settings, settle
from wherry_operator import certificates
from wherry_operator.certificates import Subject
from wherry_operator.kube import Forbidden
from wherry_operator.serving import (
    DENIED_SECONDS,
    LOOK_SECONDS,
    REQUESTS,
    RETRY_SECONDS,
    ServingCertificate,
    SigningApi,
)
from wherry_operator.settings import LONGEST_NODE_NAME
from wherry_operator.tls import TlsError

SUBJECT = Subject(node_name="wherry", address="10.0.0.7")
NOW = datetime(2026, 1, 2, tzinfo=UTC)


class Cluster(FakeKube):
    """Gives requests their names."""

    async def create(self, path: str, body: Any) -> Any:
        name = f"{body['metadata'].pop('generateName')}{len(self.objects)}"
        return await super().create(path, {**body, "metadata": {**body["metadata"], "name": name}})

    def requests(self) -> list[Any]:
        return [body for path, body in self.objects.items() if path.startswith(REQUESTS)]


class Scene:
    def __init__(self, folder: Path, kind: Literal["self-signed", "csr"]) -> None:
        self.kube = Cluster()
        self.time = FakeTime()
        self.ca = certificates.new_key()
        self.cert, self.key = folder / "tls.crt", folder / "tls.key"
        made = make_settings()
        kubelet = dataclasses.replace(made.kubelet, cert_file=self.cert, key_file=self.key, certificate=kind)
        self.keeper = ServingCertificate(
            dataclasses.replace(made, kubelet=kubelet), cast("SigningApi", self.kube), clock=self.time.clock
        )

    def play(self, scenario: Callable[[], Awaitable[None]]) -> None:
        async def run() -> None:
            self.keeper.prepare()
            task = asyncio.create_task(self.keeper.run())
            await settle()
            try:
                await scenario()
                assert not task.done()
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

        asyncio.run(run())

    def facts(self) -> certificates.Facts:
        found = certificates.facts(self.cert.read_bytes(), self.key.read_bytes(), SUBJECT)
        assert found is not None
        return found

    def approve(self, request: Any, *, days: int = 100) -> None:
        """What the controller-manager does once somebody has approved."""
        asked = x509.load_pem_x509_csr(base64.b64decode(request["spec"]["request"]))
        assert asked.is_signature_valid
        now = self.time.clock.now()
        made = (
            x509.CertificateBuilder()
            .subject_name(asked.subject)
            .issuer_name(x509.Name([]))
            .public_key(asked.public_key())
            .serial_number(1)
            .not_valid_before(now)
            .not_valid_after(now + timedelta(days=days))
            .add_extension(asked.extensions.get_extension_for_class(x509.SubjectAlternativeName).value, critical=False)
            .sign(self.ca, hashes.SHA256())
        )
        pem = made.public_bytes(serialization.Encoding.PEM)
        request["status"] = {"certificate": base64.b64encode(pem).decode()}


def test_a_certificate_of_its_own_making_is_the_nodes_and_can_be_served(tmp_path: Path) -> None:
    key = certificates.new_key()
    made = certificates.self_signed(SUBJECT, key, now=NOW)
    found = certificates.facts(made, certificates.key_pem(key), SUBJECT)
    assert found is not None and found.own
    assert NOW + timedelta(days=280) < found.renew_at < NOW + timedelta(days=300)
    (tmp_path / "c").write_bytes(made)
    (tmp_path / "k").write_bytes(certificates.key_pem(key))
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tmp_path / "c", tmp_path / "k")


@pytest.mark.parametrize(
    "subject", [SUBJECT, Subject(node_name="n" * LONGEST_NODE_NAME, address="fd00::1")], ids=["short", "long, IPv6"]
)
def test_a_request_is_as_the_signer_wants_it(subject: Subject) -> None:
    asked = x509.load_pem_x509_csr(certificates.request(subject, certificates.new_key()))
    assert asked.subject.rfc4514_string() == f"CN=system:node:{subject.node_name},O=system:nodes"
    names = asked.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == [subject.address]


@pytest.mark.parametrize("case", ["another address", "another key", "no certificate", "no key"])
def test_what_does_not_fit_is_no_certificate_of_ours(case: str) -> None:
    key = certificates.new_key()
    made, key_pem = certificates.self_signed(SUBJECT, key, now=NOW), certificates.key_pem(key)
    subject = Subject(node_name="wherry", address="10.0.0.8") if case == "another address" else SUBJECT
    if case == "another key":
        key_pem = certificates.key_pem(ec.generate_private_key(ec.SECP256R1()))
    found = certificates.facts(b"" if case == "no certificate" else made, b"" if case == "no key" else key_pem, subject)
    assert found is None


def test_one_of_its_own_making_is_renewed_in_time_and_kept_over_a_restart(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "self-signed")

    async def scenario() -> None:
        first = scene.cert.read_bytes()
        scene.keeper.prepare()
        assert scene.cert.read_bytes() == first
        assert scene.key.stat().st_mode & 0o777 == 0o600
        await scene.time.advance(timedelta(days=200).total_seconds())
        assert scene.cert.read_bytes() == first
        await scene.time.advance(timedelta(days=100).total_seconds())
        assert scene.cert.read_bytes() != first
        assert scene.facts().renew_at > scene.time.clock.now() + timedelta(days=200)

    scene.play(scenario)
    assert scene.kube.calls == []


def test_it_serves_with_its_own_until_the_request_is_approved_and_asks_anew_before_the_end(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "csr")

    async def scenario() -> None:
        (request,) = scene.kube.requests()
        assert (request["spec"]["signerName"], scene.facts().own) == ("kubernetes.io/kubelet-serving", True)
        await scene.time.advance(10 * LOOK_SECONDS)
        assert (len(scene.kube.requests()), scene.facts().own) == (1, True)
        scene.approve(request)
        await scene.time.advance(LOOK_SECONDS)
        assert not scene.facts().own
        await scene.time.advance(timedelta(days=79).total_seconds())
        assert len(scene.kube.requests()) == 1
        signed = scene.cert.read_bytes()
        await scene.time.advance(timedelta(days=2).total_seconds())
        _, second = scene.kube.requests()
        assert scene.cert.read_bytes() == signed, "the old one serves until there is another"
        scene.approve(second)
        await scene.time.advance(LOOK_SECONDS)
        assert scene.cert.read_bytes() != signed

    scene.play(scenario)


def test_what_is_denied_forgotten_or_can_not_be_asked_is_asked_again_later(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "csr")
    scene.kube.errors[REQUESTS] = [Forbidden(403, "Forbidden", "no")]

    async def scenario() -> None:
        assert scene.kube.requests() == []
        await scene.time.advance(RETRY_SECONDS)
        (denied,) = scene.kube.requests()
        denied["status"] = {"conditions": [{"type": "Denied", "reason": "No", "message": "not here"}]}
        await scene.time.advance(DENIED_SECONDS - RETRY_SECONDS)
        assert len(scene.kube.requests()) == 1
        await scene.time.advance(RETRY_SECONDS + LOOK_SECONDS)
        assert len(scene.kube.requests()) == 2
        scene.kube.objects.clear()  # an hour after it was approved or denied, a day after it was made
        await scene.time.advance(LOOK_SECONDS)
        (third,) = scene.kube.requests()
        scene.approve(third)
        await scene.time.advance(LOOK_SECONDS)
        assert not scene.facts().own

    scene.play(scenario)


def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(TlsError, match="--certificate-dir"):
        Scene(folder, "self-signed").keeper.prepare()
