"""Pushes an image from its OCI layout to a registry: the dozen requests that this takes, over any connection."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import IO
from urllib.parse import urlencode, urlsplit

from tests.cluster.client import Connect
from tests.cluster.errors import ClusterError
from tests.cluster.images.archive import MANIFEST_TYPE

TIMEOUT_SECONDS = 120.0
"""For one request: a layer of hundreds of megabytes, on a slow disk."""

BLOCK_BYTES = 1 << 20


def push(layout: Path, reference: str, connect: Connect, *, mount_from: str = "") -> None:
    """Push the image of a layout as `HOST:PORT/REPOSITORY:TAG`, over plain HTTP.

    :param mount_from: a repository there which may have some of the blobs already: they aren't sent then.
    :raises ClusterError: the registry refused something.
    """
    address, _, rest = reference.partition("/")
    repository, _, tag = rest.rpartition(":")
    registry = _Registry(address, connect)
    (entry,) = json.loads((layout / "index.json").read_text())["manifests"]
    manifest = _blob(layout, entry["digest"]).read_bytes()
    described = json.loads(manifest)
    for each in [described["config"], *described["layers"]]:
        registry.put_blob(repository, each["digest"], _blob(layout, each["digest"]), mount_from)
    media_type = described.get("mediaType", MANIFEST_TYPE)
    registry.ask("PUT", f"/v2/{repository}/manifests/{tag}", {201}, manifest, {"Content-Type": media_type})


class _Registry:
    def __init__(self, address: str, connect: Connect) -> None:
        self._host, _, port = address.partition(":")
        self._port = int(port)
        self._connect = connect

    def put_blob(self, repository: str, digest: str, file: Path, mount_from: str) -> None:
        if self.ask("HEAD", f"/v2/{repository}/blobs/{digest}", {200, 404})[0] == 200:
            return
        wanted = {"mount": digest, "from": mount_from} if mount_from else {}
        status, location = self.ask("POST", f"/v2/{repository}/blobs/uploads/?{urlencode(wanted)}", {201, 202})
        if status == 201:
            return
        parts = urlsplit(location)
        query = f"{parts.query}&" if parts.query else ""
        with file.open("rb") as content:
            self.ask(
                "PUT",
                f"{parts.path}?{query}{urlencode({'digest': digest})}",
                {201},
                content,
                {"Content-Length": str(file.stat().st_size), "Content-Type": "application/octet-stream"},
            )

    def ask(
        self,
        method: str,
        path: str,
        expected: set[int],
        body: bytes | IO[bytes] | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, str]:
        """Return the status and the `Location`."""
        connection = http.client.HTTPConnection(self._host, self._port, blocksize=BLOCK_BYTES)
        try:
            connection.sock = self._connect((self._host, self._port), TIMEOUT_SECONDS)
            connection.request(method, path, body=body, headers=headers or {})
            response = connection.getresponse()
            said = response.read().decode(errors="replace")
        finally:
            connection.close()
        if response.status not in expected:
            raise ClusterError(f"the registry answered {method} {path} with {response.status}: {said}")
        return response.status, response.headers.get("Location", "")


def _blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / Path(*digest.split(":"))
