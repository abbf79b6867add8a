"""The runner's side of mutual TLS: a context that follows its files, and who a client is by its certificate.

Certificates are renewed in place by whoever mounts them (a Secret's files are swapped by a link). Each handshake and each
health probe looks at the files' time stamps, which costs microseconds; connections that are open stay as they are.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_Stamp = tuple[tuple[int, int, int], ...]


class TlsError(Exception):
    """Certificate, key or CA can't be used; the message names the files and says why."""


class Role(StrEnum):
    """What a client may do; the value is the common name of its certificate."""

    OPERATOR = "wherry-operator"
    """Everything."""
    METRICS = "wherry-metrics"
    """`GET /metrics`, and nothing else."""


_URI_ROLES = {"urn:wherry:operator": Role.OPERATOR, "urn:wherry:metrics": Role.METRICS}


def role(peer: Mapping[str, Any] | None) -> Role | None:
    """The role that a verified certificate gives (`ssl.SSLObject.getpeercert`); None: none.

    A subject alternative name `urn:wherry:operator` or `urn:wherry:metrics` decides. Without either, the common name does.
    """
    if not peer:
        return None
    for kind, value in peer.get("subjectAltName", ()):
        if kind == "URI" and value in _URI_ROLES:
            return _URI_ROLES[value]
    names = [value for part in peer.get("subject", ()) for key, value in part if key == "commonName"]
    return Role(names[0]) if len(names) == 1 and names[0] in set(Role) else None


class ServerTls:
    """A server's TLS: no handshake completes without a client certificate of the installation's CA. TLS 1.2 or newer."""

    def __init__(
        self, *, cert_file: Path, key_file: Path, client_ca_file: Path, clock: Callable[[], float] = time.time
    ) -> None:
        """Raises TlsError."""
        self._clock = clock
        self._cert_file = cert_file
        self._key_file = key_file
        self._client_ca_file = client_ca_file
        self._stamp = self._look()
        self._rejected: _Stamp | None = None
        self._complaint = ""
        self._newest, self._expires = self._load()
        self.context = self._newest
        """What to listen with: it hands each handshake over to the newest."""
        self.context.sni_callback = self._on_hello

    def complaint(self) -> str:
        """What is wrong with the certificate now; empty: nothing."""
        self._refresh()
        if self._clock() >= self._expires:
            at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._expires))
            return f"the certificate in {self._cert_file} has expired ({at}): no operator can connect"
        return self._complaint

    def _on_hello(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        # OpenSSL calls this for every handshake, with or without a server name. A new context, rather than new files in the
        # old one, because a CA can be added to a context but never taken away.
        self._refresh()
        if self._newest is not self.context:
            connection.context = self._newest

    def _refresh(self) -> None:
        """Take changed files. While they are unusable, what was loaded before stays."""
        try:
            stamp = self._look()
            if stamp == self._stamp:
                self._complaint = ""
            elif stamp != self._rejected:
                # Remembered by its stamp: certificate and key may change one after the other, and the second change is
                # looked at again; but one broken pair is complained of once.
                self._rejected = stamp
                self._newest, self._expires = self._load()
                self._stamp, self._rejected, self._complaint = stamp, None, ""
                log.info("loaded again: %s", self._names())
        except TlsError as error:
            text = f"{error}; the one loaded before stays in use"
            if text != self._complaint:
                self._complaint = text
                log.error("%s", text)

    def _load(self) -> tuple[ssl.SSLContext, float]:
        try:
            return self._build(), expiry(self._cert_file, self._key_file)
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise TlsError(f"can't use {self._names()}: {error}") from error

    def _build(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self._cert_file, self._key_file)
        context.load_verify_locations(self._client_ca_file)
        context.verify_mode = ssl.CERT_REQUIRED
        # A resumed session is not verified again: a client of a CA that was taken away would stay in.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        return context

    def _look(self) -> _Stamp:
        try:
            found = [path.stat() for path in (self._cert_file, self._key_file, self._client_ca_file)]
        except OSError as error:
            raise TlsError(f"can't read {self._names()}: {error}") from error
        return tuple((each.st_mtime_ns, each.st_size, each.st_ino) for each in found)

    def _names(self) -> str:
        return f"{self._cert_file}, {self._key_file}, {self._client_ca_file}"


def expiry(cert_file: Path, key_file: Path) -> float:
    """When a server's certificate ends, in seconds of the epoch. Raises OSError if no client could accept it now.

    The standard library reads a certificate only as that of a peer: so both sides of a handshake are played, in memory, with
    the certificate itself as what the client trusts.
    """
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(cert_file, key_file)
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname = False
    client_context.load_verify_locations(cert_file)
    client_context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client):  # hello, answer, verified
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    peer = client.getpeercert()
    if not peer:
        raise ssl.SSLError(f"{cert_file} holds no certificate that a client could verify")
    return float(ssl.cert_time_to_seconds(str(peer["notAfter"])))
