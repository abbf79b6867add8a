"""Certificate authorities of our own, kept as files: ECDSA P-256 certificates and the RSA key for tokens."""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

BACKDATE = datetime.timedelta(minutes=5)
"""Certificates are valid from a little before now: clocks differ, and X.509 times have whole seconds."""

LIFETIME = datetime.timedelta(days=365)
"""Longer than any cluster of ours lives."""

_KeyPair = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True)
class CertificateFiles:
    """A certificate and its private key, both PEM, both readable by the owner only."""

    cert: Path
    key: Path


class CertificateAuthority:
    """A CA that lives in a folder: made there at first, read from there afterwards."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self.name = name
        self.files = CertificateFiles(cert=directory / f"{name}.crt", key=directory / f"{name}.key")
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.files.cert.exists():
            key = serialization.load_pem_private_key(self.files.key.read_bytes(), password=None)
            assert isinstance(key, ec.EllipticCurvePrivateKey)
            self._key = key
            self._certificate = x509.load_pem_x509_certificate(self.cert_file.read_bytes())
        else:
            self._key = ec.generate_private_key(ec.SECP256R1())
            self._certificate = self._self_signed()
            _write(self.files.key, _private_pem(self._key))
            _write(self.files.cert, self._certificate.public_bytes(serialization.Encoding.PEM))

    @property
    def cert_file(self) -> Path:
        """The CA certificate: what clients and servers are told to trust."""
        return self.files.cert

    def issue(
        self,
        common_name: str,
        organizations: Iterable[str] = (),
        dns: Iterable[str] = (),
        ips: Iterable[str] = (),
        *,
        uris: Iterable[str] = (),
        client: bool = False,
        server: bool = False,
        lifetime: datetime.timedelta = LIFETIME,
    ) -> CertificateFiles:
        """Issue a certificate with a new key.

        :param common_name: to Kubernetes, the user's name.
        :param organizations: to Kubernetes, the user's groups.
        :param dns: names of a server; `ips`: its addresses; `uris`: names of anything.
        :param client: usable as a client; `server`: usable as a server. At least one is needed.
        :return: the files; each call makes new ones.
        """
        if not (client or server):
            raise ValueError(f"certificate for {common_name!r}: neither client nor server")
        key = ec.generate_private_key(ec.SECP256R1())
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
        subject += [x509.NameAttribute(NameOID.ORGANIZATION_NAME, each) for each in organizations]
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH] * client + [ExtendedKeyUsageOID.SERVER_AUTH] * server
        builder = (
            _dated(subject=x509.Name(subject), issuer=self._certificate.subject, key=key, lifetime=lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        names: list[x509.GeneralName] = [x509.DNSName(each) for each in dns]
        names += [x509.IPAddress(ipaddress.ip_address(each)) for each in ips]
        names += [x509.UniformResourceIdentifier(each) for each in uris]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        stem = f"{re.sub(r'[^A-Za-z0-9.-]+', '-', common_name)}-{certificate.serial_number % 16**8:08x}"
        files = CertificateFiles(cert=self._directory / f"{stem}.crt", key=self._directory / f"{stem}.key")
        _write(files.key, _private_pem(key))
        _write(files.cert, certificate.public_bytes(serialization.Encoding.PEM))
        return files

    def _self_signed(self) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)])
        return (
            _dated(subject=name, issuer=name, key=self._key)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )


def service_account_key(directory: Path) -> tuple[Path, Path]:
    """Make the RSA key that signs service account tokens.

    :return: the private key's file and the public key's.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private, public = directory / "service-account.key", directory / "service-account.pub"
    _write(private, _private_pem(key))
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    _write(public, key.public_key().public_bytes(serialization.Encoding.PEM, form))
    return private, public


def _dated(
    *,
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    lifetime: datetime.timedelta = LIFETIME,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(now + lifetime)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _private_pem(key: _KeyPair) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes) -> None:
    # O_EXCL and the mode at creation: a key is never readable by others, not even for a moment.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
