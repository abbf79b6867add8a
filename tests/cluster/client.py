"""A few requests to an API server or etcd with a client certificate: for readiness, where kubectl would take longer."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from tests.cluster.pki import CertificateFiles

REQUEST_TIMEOUT_SECONDS = 5.0
"""A server that starts may accept a connection and not answer: ask again rather than wait."""


Connect = Callable[[tuple[str, int], float], socket.socket]
"""Makes a connection to an address, within so many seconds: where a server can't be reached from the host's network."""


class ApiClient:
    """Asks one API server, as one user. Keeps no connection open."""

    def __init__(
        self, server: str, *, ca_file: Path, certificate: CertificateFiles, connect: Connect = socket.create_connection
    ) -> None:
        parts = urlsplit(server)
        assert parts.hostname is not None and parts.port is not None
        self._host, self._port = parts.hostname, parts.port
        self._context = ssl.create_default_context(cafile=str(ca_file))
        self._context.load_cert_chain(certificate.cert, certificate.key)
        self._connect = connect

    def get(self, path: str) -> tuple[int, str]:
        """Return the status and body of a GET; (0, why) if there was no answer."""
        return self._request("GET", path)

    def post(self, path: str, body: object) -> tuple[int, str]:
        """The same for a POST of JSON."""
        return self._request("POST", path, json.dumps(body))

    def _request(self, method: str, path: str, body: str | None = None) -> tuple[int, str]:
        connection = http.client.HTTPSConnection(
            self._host, self._port, timeout=REQUEST_TIMEOUT_SECONDS, context=self._context
        )
        try:
            plain = self._connect((self._host, self._port), REQUEST_TIMEOUT_SECONDS)
            with plain:
                connection.sock = self._context.wrap_socket(plain, server_hostname=self._host)
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            return 0, str(error)
        finally:
            connection.close()

    def ok(self, path: str) -> bool:
        """Whether a GET is answered with 200."""
        return self.get(path)[0] == 200


def http_status(connect: Connect, host: str, port: int, path: str) -> int:
    """Return the status of a plain HTTP GET, 0 if there was no answer."""
    connection = http.client.HTTPConnection(host, port)
    try:
        connection.sock = connect((host, port), REQUEST_TIMEOUT_SECONDS)
        connection.request("GET", path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()
