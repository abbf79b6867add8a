"""TLS contexts that follow their files: a renewed certificate is used without a restart.

Certificates are renewed in place by whoever mounts them (a Secret's files are swapped by a symlink). Nothing
watches the files: each use looks at their time stamps, which costs microseconds beside a handshake.

Every context is made from `ssl.SSLContext` itself, not from `ssl.create_default_context`: that one turns on
VERIFY_X509_STRICT from Python 3.13 on, which refuses the CAs of older clusters (RFC 5280 key identifiers are
missing in what Kubernetes' own tools made before Go 1.15). So what is accepted does not depend on the Python
that runs us.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from pathlib import Path

from aiohttp import connector

from wherry_operator import settings

log = logging.getLogger(__name__)

_Stamp = tuple[tuple[int, int, int], ...]


class TlsError(Exception):
    """A certificate, key or CA can't be loaded; the message names the files."""


class _Reloaded:
    """A context made from files, made anew when one of them has changed."""

    def __init__(self, files: tuple[Path, ...], build: Callable[[], ssl.SSLContext]) -> None:
        self._files = files
        self._build = build
        self._stamp = self._look()
        self._rejected: _Stamp | None = None
        self.context = self._load()

    def refresh(self) -> ssl.SSLContext:
        """The context for the files as they are now; while they are unusable, the last good one."""
        try:
            stamp = self._look()
            if stamp != self._stamp and stamp != self._rejected:
                # A failure is remembered by its stamp: certificate and key may change one after the other,
                # and the second change is looked at again.
                self._rejected = stamp
                self.context = self._load()
                self._stamp, self._rejected = stamp, None
                log.info("loaded again: %s", self._names())
        except TlsError as error:
            log.error("%s; the one loaded before stays in use", error)
        return self.context

    def rebuild(self) -> None:
        """Make the context anew though no file has changed. Raises TlsError."""
        self.context = self._load()

    def _load(self) -> ssl.SSLContext:
        try:
            return self._build()
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise TlsError(f"can't load {self._names()}: {error}") from error

    def _look(self) -> _Stamp:
        try:
            found = [path.stat() for path in self._files]
        except OSError as error:
            raise TlsError(f"can't read {self._names()}: {error}") from error
        return tuple((each.st_mtime_ns, each.st_size, each.st_ino) for each in found)

    def _names(self) -> str:
        return ", ".join(str(path) for path in self._files)


def drop_default_contexts() -> None:
    """Give back the two contexts that aiohttp makes when it is imported, each with all CAs of the system: every connection here
    has one of its own. Who would take them after this trusts nobody."""
    connector._SSL_CONTEXT_VERIFIED = connector._SSL_CONTEXT_UNVERIFIED = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class ServerTls:
    """A server's side: its certificate, and the CAs whose client certificates it accepts.

    A client certificate is asked for, not demanded (tokens are the other way in); one that does not verify
    ends the handshake. Raises TlsError when the files can't be loaded at first.
    """

    def __init__(
        self, cert_file: Path, key_file: Path, *, client_ca_file: Path | None = None, client_ca_pem: str = ""
    ) -> None:
        self._cert_file = cert_file
        self._key_file = key_file
        self._client_ca_file = client_ca_file
        self._client_ca_pem = client_ca_pem
        files = (cert_file, key_file, client_ca_file) if client_ca_file else (cert_file, key_file)
        self._reloaded = _Reloaded(files, self._build)
        self.context = self._reloaded.context
        """What to listen with: it hands each handshake over to the newest context."""
        self.context.sni_callback = self._on_hello

    def trust(self, client_ca_pem: str) -> None:
        """Accept client certificates of these CAs, and of no others from now on. Raises TlsError."""
        if client_ca_pem != self._client_ca_pem:
            before, self._client_ca_pem = self._client_ca_pem, client_ca_pem
            try:
                self._reloaded.rebuild()
            except TlsError:
                self._client_ca_pem = before
                raise

    def _on_hello(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        # OpenSSL calls this for every handshake, with or without a server name. A new context, rather than
        # new files in the old one, because a CA can be added to a context but never taken away.
        newest = self._reloaded.refresh()
        if newest is not self.context:
            connection.context = newest

    def _build(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self._cert_file, self._key_file)
        context.verify_mode = ssl.CERT_OPTIONAL
        # A resumed session is not verified again: a client of a CA that was taken away would stay in.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        if self._client_ca_file:
            context.load_verify_locations(cafile=self._client_ca_file)
        if self._client_ca_pem:
            context.load_verify_locations(cadata=self._client_ca_pem)
        return context


class RunnerTls:
    """The operator's side towards runners: our certificate, their CA, and the one name that they all have.

    The files are first looked at when it is first used: they may be made only after this.
    """

    def __init__(self, files: settings.ClientTls) -> None:
        self._files = files
        self.server_name = files.server_name
        """What to verify instead of the URL's host, which is an IP (aiohttp: `server_hostname`)."""
        self._reloaded: _Reloaded | None = None

    def context(self) -> ssl.SSLContext:
        """The context to connect with: the same object until a file changes. Raises TlsError when the files can't be loaded at
        first."""
        if self._reloaded is None:
            of = self._files
            self._reloaded = _Reloaded((of.ca_file, of.cert_file, of.key_file), self._build)
        return self._reloaded.refresh()

    def _build(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies certificate and name
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.hostname_checks_common_name = False
        context.load_verify_locations(cafile=self._files.ca_file)
        context.load_cert_chain(self._files.cert_file, self._files.key_file)
        return context
