"""A registry that can be made to misbehave: what a real one can't be asked for (`test_pull_registry.py` has the real one).

with FakeRegistry() as registry:
    reference = registry.push("hello:v1", wasm)
    registry.answer("blobs/", truncated(100))      # the next matching request
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
WASM = "application/wasm"
WASM_CONFIG = "application/vnd.wasm.config.v0+json"
IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"
TAR_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"


@dataclass
class Reply:
    """One answer."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    sent: int | None = None
    """Only so many bytes of the body, then the connection is closed."""
    hold: bool = False
    """Say nothing until the registry is stopped."""


Fault = Callable[[Reply], Reply]
"""Makes a bad answer of the good one."""


def status(code: int, **headers: str) -> Fault:
    """An error."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda good: Reply(code, named, b"{}")


def truncated(sent: int) -> Fault:
    """The connection ends early."""
    return lambda good: Reply(good.status, good.headers, good.body, sent=sent)


def flipped(good: Reply) -> Reply:
    """One bit is another, in the middle."""
    body = bytearray(good.body)
    body[len(body) // 2] ^= 1
    return Reply(good.status, good.headers, bytes(body))


def longer(good: Reply) -> Reply:
    """More bytes than the manifest says."""
    return Reply(good.status, good.headers, good.body + b"\0" * 100_000)


def html(good: Reply) -> Reply:
    """A login page, as captive portals and proxies send it."""
    return Reply(200, {"Content-Type": "text/html"}, b"<!doctype html><title>Sign in</title>")


def hanging(good: Reply) -> Reply:
    """No answer."""
    return Reply(hold=True)


def redirect(url: str) -> Fault:
    """Look there."""
    return lambda good: Reply(307, {"Location": url})


def descriptor(media_type: str, data: bytes, **more: Any) -> dict[str, Any]:
    """What a manifest says of a blob."""
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    return {"mediaType": media_type, "digest": digest, "size": len(data), **more}


class FakeRegistry:
    """Serves on a free port of 127.0.0.1 while its block lasts."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        """`METHOD path` of each, in order."""
        self.authorizations: list[str | None] = []
        """The Authorization header of each."""
        self.token = ""
        """When set, only requests with this Bearer token are served, and `/token` gives it to anybody."""
        self._content: dict[str, Reply] = {}
        self._faults: list[tuple[str, Fault]] = []
        self._released = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def address(self) -> str:
        """host:port, as references begin."""
        return f"127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def answer(self, part: str, *faults: Fault) -> None:
        """Give the next requests whose path contains `part` these answers, one each."""
        self._faults += [(part, fault) for fault in faults]

    def put(self, path: str, body: bytes, content_type: str = "application/octet-stream") -> None:
        """Serve something under `/v2/…`."""
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        self._content[path] = Reply(200, {"Content-Type": content_type, "Docker-Content-Digest": digest}, body)

    def push(
        self,
        name: str,
        *layers: bytes,
        layer_type: str = WASM,
        config_type: str = WASM_CONFIG,
        config: bytes = b"{}",
    ) -> str:
        """Push an artifact as `repository:tag`; its reference."""
        repository, _, tag = name.partition(":")
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(config_type, config),
            "layers": [descriptor(layer_type, layer) for layer in layers],
        }
        for blob in (config, *layers):
            self.put(f"{repository}/blobs/sha256:{hashlib.sha256(blob).hexdigest()}", blob)
        self.push_manifest(repository, tag, manifest, MANIFEST)
        return f"{self.address}/{name}"

    def push_manifest(self, repository: str, tag: str, manifest: dict[str, Any], content_type: str) -> str:
        """Push a manifest or an index; its digest."""
        body = json.dumps(manifest).encode()
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        for version in (tag, digest):
            self.put(f"{repository}/manifests/{version}", body, content_type)
        return digest

    def count(self, part: str) -> int:
        """How many requests had this in their method and path."""
        return sum(part in request for request in self.requests)

    def _reply(self, path: str, authorization: str | None) -> Reply:
        if self.token and path.startswith("/token"):
            return Reply(200, {}, json.dumps({"token": self.token}).encode())
        if self.token and authorization != f"Bearer {self.token}":
            realm = f'Bearer realm="http://{self.address}/token",service="fake",scope="ignored"'
            return Reply(401, {"WWW-Authenticate": realm})
        reply = self._content.get(
            path.removeprefix("/v2/"), Reply(404, {}, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}')
        )
        for number, (part, fault) in enumerate(self._faults):
            if part in path:
                del self._faults[number]
                return fault(reply)
        return reply

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                registry.requests.append(f"{self.command} {self.path}")
                registry.authorizations.append(self.headers.get("Authorization"))
                reply = registry._reply(self.path, self.headers.get("Authorization"))
                if reply.hold:
                    registry._released.wait()
                    return
                self.send_response(reply.status)
                for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    try:
                        self.wfile.write(reply.body[: reply.sent])
                    except (BrokenPipeError, ConnectionResetError):
                        return  # the client had seen enough

            do_HEAD = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler
