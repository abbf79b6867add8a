"""X.509 for the operator's HTTPS ports: a certificate of its own making, a request for one of the cluster's, and what is to be
known of either. Nothing here reads or writes a file."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LIFETIME = timedelta(days=365)
"""Of a certificate of our own making, as a kubelet's."""

RENEWED_AFTER = 0.8
"""Of its life a certificate is used so much; a kubelet renews between 70 and 90 % (client-go, certificate manager)."""

CLOCK_SKEW = timedelta(minutes=5)
"""By so much others' clocks may be behind ours."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Whose certificate it is: a node, and where it is called."""

    node_name: str
    address: str
    """An IP address."""

    def alternative_names(self) -> x509.SubjectAlternativeName:
        """What clients verify."""
        return x509.SubjectAlternativeName([x509.IPAddress(ip_address(self.address)), x509.DNSName(self.node_name)])


def new_key() -> ec.EllipticCurvePrivateKey:
    """A key for one certificate."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key as a file has it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def self_signed(subject: Subject, key: ec.EllipticCurvePrivateKey, *, now: datetime) -> bytes:
    """A certificate that nobody vouches for (PEM): an API server that verifies kubelets will not take it."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{subject.node_name[:52]}@{int(now.timestamp())}")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + LIFETIME)
        .add_extension(subject.alternative_names(), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)


def request(subject: Subject, key: ec.EllipticCurvePrivateKey) -> bytes:
    """A request (PEM) as the signer `kubernetes.io/kubelet-serving` wants it: the node's name, and the group of all nodes."""
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:nodes"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"system:node:{subject.node_name}"),
        ]
    )
    made = x509.CertificateSigningRequestBuilder().subject_name(name)
    made = made.add_extension(subject.alternative_names(), critical=False)
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is to be known of a certificate."""

    renew_at: datetime
    own: bool
    """It is of our own making."""


def facts(certificate: bytes, key: bytes, subject: Subject) -> Facts | None:
    """Those of a certificate and its key (PEM); None: they don't belong together, or are not the subject's, or no such thing."""
    try:
        found = x509.load_pem_x509_certificate(certificate)
        private = serialization.load_pem_private_key(key, password=None)
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound):
        return None
    addresses = names.get_values_for_type(x509.IPAddress)
    if found.public_key() != private.public_key() or ip_address(subject.address) not in addresses:
        return None
    life = found.not_valid_after_utc - found.not_valid_before_utc
    return Facts(renew_at=found.not_valid_before_utc + life * RENEWED_AFTER, own=found.issuer == found.subject)
