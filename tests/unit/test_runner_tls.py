"""A runner's TLS: who gets in, as what, and what becomes of renewed files. Real certificates, handshakes in memory."""

from __future__ import annotations

import datetime
import logging
import ssl
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.pki import CertificateAuthority, CertificateFiles
from wherry_runner.serving.tls import Role, ServerTls, TlsError, expiry, role


class Scene:
    """A runner's files in a folder, swapped as a kubelet swaps a Secret's: one link, at once."""

    def __init__(self, folder: Path) -> None:
        self.ca = CertificateAuthority(folder / "ca", "wherry-ca")
        self.mount = folder / "mount"
        self.mount.mkdir()
        self._versions = 0
        self.mount_files(self.runner())
        self.tls = ServerTls(
            cert_file=self.mount / "tls.crt", key_file=self.mount / "tls.key", client_ca_file=self.mount / "ca.crt"
        )

    def runner(self, **kwargs: Any) -> CertificateFiles:
        return self.ca.issue("wherry-runner", dns=["wherry-runner"], server=True, **kwargs)

    def mount_files(self, files: CertificateFiles, ca: Path | None = None, cert: bytes | None = None) -> None:
        self._versions += 1
        version = self.mount / f"..version{self._versions}"
        version.mkdir()
        (version / "tls.crt").write_bytes(files.cert.read_bytes() if cert is None else cert)
        (version / "tls.key").write_bytes(files.key.read_bytes())
        (version / "ca.crt").write_bytes((ca or self.ca.cert_file).read_bytes())
        new = self.mount / "..new"
        new.symlink_to(version.name)
        new.replace(self.mount / "..data")
        for name in ("tls.crt", "tls.key", "ca.crt"):
            if not (self.mount / name).exists():
                (self.mount / name).symlink_to(f"..data/{name}")

    def connect(self, client: CertificateFiles | None, *, trusting: Path | None = None) -> Connection:
        return Connection(self.tls, client, trusting or self.ca.cert_file)


class Connection:
    """Both ends of a connection, with nothing between them."""

    def __init__(self, tls: ServerTls, client: CertificateFiles | None, trusting: Path) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(trusting)
        if client is not None:
            context.load_cert_chain(client.cert, client.key)
        to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = context.wrap_bio(to_client, to_server, server_hostname="wherry-runner")
        self.server = tls.context.wrap_bio(to_server, to_client, server_side=True)
        for side in (self.client, self.server, self.client, self.server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
        self.server.write(b"hello")
        assert self.client.read() == b"hello"

    @property
    def role(self) -> Role | None:
        return role(self.server.getpeercert())

    @property
    def serial(self) -> str:
        certificate = self.client.getpeercert()
        assert certificate
        return str(certificate["serialNumber"])


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_nobody_gets_in_without_a_certificate_of_the_ca(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        scene.connect(None)
    stranger = CertificateAuthority(tmp_path / "other", "other-ca").issue("wherry-operator", client=True)
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        scene.connect(stranger)
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        scene.connect(scene.runner())  # a server's certificate is no client's
    expired = scene.ca.issue("wherry-operator", client=True, lifetime=datetime.timedelta(seconds=-1))
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        scene.connect(expired)


@pytest.mark.parametrize(
    ("common_name", "uris", "expected"),
    [
        ("wherry-operator", [], Role.OPERATOR),
        ("wherry-metrics", [], Role.METRICS),
        ("wherry-runner", [], None),
        ("system:admin", [], None),
        ("wherry-operator ", [], None),
        ("prometheus", ["urn:wherry:metrics"], Role.METRICS),
        ("x", ["https://example.com", "urn:wherry:operator"], Role.OPERATOR),
        # The alternative name decides where there is one of ours: it can only say less than what the CA gave it.
        ("wherry-operator", ["urn:wherry:metrics"], Role.METRICS),
        ("wherry-operator", ["https://example.com"], Role.OPERATOR),
        ("x", ["urn:wherry:other"], None),
    ],
)
def test_the_certificates_name_is_the_role(
    scene: Scene, common_name: str, uris: list[str], expected: Role | None
) -> None:
    assert scene.connect(scene.ca.issue(common_name, uris=uris, client=True)).role is expected


def test_without_a_certificate_there_is_no_role() -> None:
    assert role(None) is None
    assert role({}) is None
    two = {"subject": ((("commonName", "wherry-operator"),), (("commonName", "x"),))}
    assert role(two) is None


def test_a_renewed_certificate_is_used_from_the_next_connection_on(scene: Scene) -> None:
    operator = scene.ca.issue("wherry-operator", client=True)
    before = scene.connect(operator)
    scene.mount_files(scene.runner())
    after = scene.connect(operator)
    assert before.serial != after.serial
    assert scene.connect(operator).serial == after.serial
    before.server.write(b"still here")
    assert before.client.read() == b"still here"


def test_a_ca_that_is_replaced_lets_its_clients_in_no_more(scene: Scene, tmp_path: Path) -> None:
    old, new_ca = scene.ca.issue("wherry-operator", client=True), CertificateAuthority(tmp_path / "new", "new-ca")
    scene.mount_files(scene.runner(), ca=new_ca.cert_file)
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        scene.connect(old)
    assert scene.connect(new_ca.issue("wherry-operator", client=True)).role is Role.OPERATOR


def test_a_broken_file_is_told_once_and_the_certificate_before_stays(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    operator = scene.ca.issue("wherry-operator", client=True)
    before = scene.connect(operator).serial
    scene.mount_files(scene.runner(), cert=b"-----BEGIN CERTIFICATE-----\nnonsense")
    with caplog.at_level(logging.INFO, "wherry_runner.serving.tls"):
        for _ in range(5):
            assert scene.connect(operator).serial == before
            assert "the one loaded before stays in use" in scene.tls.complaint()
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        scene.mount_files(scene.runner())
        assert scene.tls.complaint() == ""
        assert scene.connect(operator).serial != before


def test_a_new_certificate_beside_the_old_key_is_not_taken(scene: Scene) -> None:
    scene.mount_files(scene.runner(), cert=scene.runner().cert.read_bytes())
    assert "key values mismatch" in scene.tls.complaint().lower()
    scene.connect(scene.ca.issue("wherry-operator", client=True))


def test_files_that_are_gone_are_told(scene: Scene) -> None:
    (scene.mount / "..data").unlink()
    assert scene.tls.complaint().startswith("can't read ")
    scene.connect(scene.ca.issue("wherry-operator", client=True))


def test_what_has_expired_or_is_no_servers_is_not_taken_in_place_of_what_is_good(scene: Scene) -> None:
    operator = scene.ca.issue("wherry-operator", client=True)
    for files in (scene.runner(lifetime=datetime.timedelta(seconds=-1)), operator):
        scene.mount_files(files)
        assert "stays in use" in scene.tls.complaint()
        scene.connect(operator)


def test_a_certificate_that_expires_is_told(scene: Scene) -> None:
    files = scene.runner(lifetime=datetime.timedelta(hours=1))
    now = ends = expiry(files.cert, files.key)
    tls = ServerTls(cert_file=files.cert, key_file=files.key, client_ca_file=scene.ca.cert_file, clock=lambda: now)
    assert "has expired (20" in tls.complaint()
    now = ends - 1
    assert tls.complaint() == ""


def test_a_runner_does_not_start_with_files_that_it_can_not_use(scene: Scene, tmp_path: Path) -> None:
    good = scene.runner()
    for cert, key, says in (
        (tmp_path / "none", good.key, "can't read"),
        (good.cert, scene.runner().key, "can't use"),
        (scene.runner(lifetime=datetime.timedelta(seconds=-1)).cert, good.key, "can't use"),
    ):
        with pytest.raises(TlsError, match=says):
            ServerTls(cert_file=cert, key_file=key, client_ca_file=scene.ca.cert_file)
