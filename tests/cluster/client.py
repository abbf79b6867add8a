"""A few GETs on an API server with a client certificate: for readiness, where kubectl would take longer."""

from __future__ import annotations

import http.client
import ssl
from pathlib import Path
from urllib.parse import urlsplit

from tests.cluster.pki import CertificateFiles

REQUEST_TIMEOUT_SECONDS = 5.0
"""A server that starts may accept a connection and not answer: ask again rather than wait."""


class ApiClient:
    """Asks one API server, as one user. Keeps no connection open."""

    def __init__(self, server: str, *, ca_file: Path, certificate: CertificateFiles) -> None:
        parts = urlsplit(server)
        assert parts.hostname is not None and parts.port is not None
        self._host, self._port = parts.hostname, parts.port
        self._context = ssl.create_default_context(cafile=str(ca_file))
        self._context.load_cert_chain(certificate.cert, certificate.key)

    def get(self, path: str) -> tuple[int, str]:
        """Return the status and body of a GET; (0, why) if there was no answer."""
        connection = http.client.HTTPSConnection(
            self._host, self._port, timeout=REQUEST_TIMEOUT_SECONDS, context=self._context
        )
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            return 0, str(error)
        finally:
            connection.close()

    def ok(self, path: str) -> bool:
        """Whether a GET is answered with 200."""
        return self.get(path)[0] == 200
