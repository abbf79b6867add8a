"""The installation's own certificate authority, by which operator and runners know each other: what is kept of it, when it is
replaced, and what it issues. Nothing here reads or writes a file or an object.

A CA is trusted before it signs: those who are to trust it read that from files of a Secret, which a kubelet brings within
minutes. So its successor is made long before its end, is trusted from then on, and signs a day later; it is itself trusted
until its end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from wherry_operator.certificates import CLOCK_SKEW, RENEWED_AFTER, key_pem, new_key

CA_LIFETIME = timedelta(days=3650)

LIFETIME = timedelta(days=90)
"""Of what is issued: with RENEWED_AFTER an operator may be away for 18 days before a runner's certificate ends."""

TRUSTED_FIRST = timedelta(days=1)
"""How long a CA is trusted before it signs."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A certificate and its private key (PEM)."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Whom a certificate is for: a server by its DNS name, or a client by its common name."""

    common_name: str
    dns_name: str = ""
    """A server's; empty: a client."""


@dataclass(frozen=True, kw_only=True)
class Authority:
    """The CA that signs now, the one that will, and those that did."""

    signing: Pair
    successor: Pair | None = None
    retired: tuple[bytes, ...] = ()
    """Certificates (PEM) of those that sign no more, and are trusted until they end."""

    @property
    def trusted(self) -> bytes:
        """The certificates of all (PEM)."""
        successor = (self.successor.certificate,) if self.successor else ()
        return b"".join((self.signing.certificate, *successor, *self.retired))


def found(now: datetime) -> Authority:
    """A new one, that nobody trusts yet."""
    return Authority(signing=_new_ca(now))


def aged(authority: Authority, now: datetime) -> Authority:
    """What it has to be now; equal if there is nothing to do."""
    signing, successor, retired = authority.signing, authority.successor, authority.retired
    if successor is None and _renewed_at(_load(signing)) <= now:
        successor = _new_ca(now)
    elif successor is not None and _load(successor).not_valid_before_utc + CLOCK_SKEW + TRUSTED_FIRST <= now:
        signing, successor, retired = successor, None, (signing.certificate, *retired)
    trusted = tuple(each for each in retired if x509.load_pem_x509_certificate(each).not_valid_after_utc > now)
    return Authority(signing=signing, successor=successor, retired=trusted)


def to_data(authority: Authority) -> dict[str, bytes]:
    """The data of its Secret, whose type is kubernetes.io/tls."""
    data = {"tls.crt": authority.signing.certificate, "tls.key": authority.signing.key, "ca.crt": authority.trusted}
    if authority.successor:
        data |= {"next.crt": authority.successor.certificate, "next.key": authority.successor.key}
    return data


def from_data(data: Mapping[str, bytes]) -> Authority | None:
    """The other way; None: there is none in it that could be used."""
    try:
        signing = _pair(data["tls.crt"], data["tls.key"])
        successor = _pair(data["next.crt"], data["next.key"]) if "next.crt" in data else None
        trusted = [_pem(each) for each in x509.load_pem_x509_certificates(data["ca.crt"])]
    except (KeyError, ValueError, TypeError, UnsupportedAlgorithm):
        return None
    at_work = {signing.certificate, successor.certificate if successor else b""}
    return Authority(
        signing=signing, successor=successor, retired=tuple(each for each in trusted if each not in at_work)
    )


def issue(authority: Authority, subject: Subject, now: datetime) -> Pair:
    """A certificate for a server or for a client, never for both: a runner's key must be no key to other runners."""
    ca = _load(authority.signing)
    key = new_key()
    usage = ExtendedKeyUsageOID.SERVER_AUTH if subject.dns_name else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = _builder(subject.common_name, ca.subject, key, now, LIFETIME)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(signs=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    if subject.dns_name:
        names = x509.SubjectAlternativeName([x509.DNSName(subject.dns_name)])
        builder = builder.add_extension(names, critical=False)
    signer = serialization.load_pem_private_key(authority.signing.key, password=None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
    )
    return Pair(certificate=_pem(builder.sign(signer, hashes.SHA256())), key=key_pem(key))


def serves(pair: Pair, authority: Authority, subject: Subject, now: datetime) -> bool:
    """Whether a certificate need not be issued anew: it is the subject's, of the CA that signs now, and has time left."""
    try:
        certificate = _load(_pair(pair.certificate, pair.key))
        certificate.verify_directly_issued_by(_load(authority.signing))
        names = [str(each.value) for each in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        dns_names = _dns_names(certificate)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    wanted = [subject.dns_name] if subject.dns_name else []
    return names == [subject.common_name] and dns_names == wanted and now < _renewed_at(certificate)


def _new_ca(now: datetime) -> Pair:
    key = new_key()
    # A name of its own for each: two of one name can't be told apart by who verifies.
    name = f"wherry-ca@{int(now.timestamp())}"
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = _builder(name, subject, key, now, CA_LIFETIME)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(signs=True), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    return Pair(certificate=_pem(builder.sign(key, hashes.SHA256())), key=key_pem(key))


def _builder(
    name: str, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime, lifetime: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + lifetime)
    )


def _key_usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pair(certificate: bytes, key: bytes) -> Pair:
    """Raises ValueError, TypeError or UnsupportedAlgorithm where the two don't belong together."""
    private = serialization.load_pem_private_key(key, password=None)
    if x509.load_pem_x509_certificate(certificate).public_key() != private.public_key():
        raise ValueError("the key is another certificate's")
    return Pair(certificate=certificate, key=key)


def _load(pair: Pair) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pair.certificate)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _dns_names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.DNSName)


def _renewed_at(certificate: x509.Certificate) -> datetime:
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return certificate.not_valid_before_utc + life * RENEWED_AFTER
