"""A registry that can be made to misbehave: what a real one can't be asked for (`test_pull_registry.py` has the real one).

with FakeRegistry() as registry:
    reference = registry.push("hello:v1", wasm)
    registry.answer("blobs/", truncated(100))      # the next matching request
    registry.lock("hello", ada="secret")           # from now on, only for this user
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from tests.cluster.pki import CertificateFiles

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
WASM = "application/wasm"
WASM_CONFIG = "application/vnd.wasm.config.v0+json"
IMAGE_CONFIG = "application/vnd.oci.image.config.v1+json"
TAR = "application/vnd.oci.image.layer.v1.tar"
TAR_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"

_PIECE = b"\0" * 65536


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
    endless: bool = False
    """No length is announced, and after the body comes more, without an end."""
    stalls: bool = False
    """After the body, nothing more comes, though the connection stays open."""


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
    """More bytes than the manifest says, and said so."""
    return Reply(good.status, good.headers, good.body + b"\0" * 100_000)


def endless(good: Reply) -> Reply:
    """The right bytes, and then more and more."""
    return Reply(good.status, good.headers, good.body, endless=True)


def stalling(sent: int) -> Fault:
    """Some bytes, and then silence."""
    return lambda good: Reply(good.status, good.headers, good.body, sent=sent, stalls=True)


def announcing(length: int) -> Fault:
    """A Content-Length that isn't the body's."""
    return lambda good: Reply(good.status, {**good.headers, "Content-Length": str(length)}, good.body)


def bomb(good: Reply) -> Reply:
    """A few kilobytes that unpack to many megabytes, by HTTP's own compression."""
    return Reply(good.status, {**good.headers, "Content-Encoding": "gzip"}, gzip.compress(b" " * (64 << 20)))


def html(good: Reply) -> Reply:
    """A login page, as captive portals and proxies send it."""
    return Reply(200, {"Content-Type": "text/html"}, b"<!doctype html><title>Sign in</title>")


def hanging(good: Reply) -> Reply:
    """No answer."""
    return Reply(hold=True)


def redirect(url: str) -> Fault:
    """Look there."""
    return lambda good: Reply(307, {"Location": url})


def body(data: bytes, content_type: str = MANIFEST) -> Fault:
    """Other bytes."""
    return lambda good: Reply(200, {"Content-Type": content_type}, data)


def descriptor(media_type: str, data: bytes, **more: Any) -> dict[str, Any]:
    """What a manifest says of a blob."""
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    return {"mediaType": media_type, "digest": digest, "size": len(data), **more}


@dataclass
class Request:
    """What was asked."""

    method: str
    path: str
    authorization: str | None
    cookie: str | None
    body: bytes

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class FakeRegistry:
    """Serves on a free port of 127.0.0.1 while its block lasts."""

    def __init__(self, tls: CertificateFiles | None = None) -> None:
        self.asked: list[Request] = []
        """Each request, in order."""
        self.token = ""
        """When set, only requests with this Bearer token are served, and `/token` gives it to anybody."""
        self.scheme = "basic"
        """How locked repositories are opened: `basic`, or `bearer` with tokens of `/token`."""
        self.realm = ""
        """Where the tokens come from; default: `/token` here."""
        self.challenge = ""
        """Instead of the challenge that would be right."""
        self.token_answer: dict[str, Any] | None = None
        """Instead of the token service's right answer."""
        self.refresh_tokens: dict[str, str] = {}
        """The users of identity tokens."""
        self.cookies: dict[str, str] = {}
        """Set with every answer."""
        self._content: dict[str, Reply] = {}
        self._locks: dict[str, dict[str, str]] = {}
        self._tokens: dict[str, tuple[str, str]] = {}
        self._faults: list[tuple[str, Fault]] = []
        self._released = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = False
        self._scheme = "http"
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls.cert, tls.key)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
            self._scheme = "https"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def address(self) -> str:
        """host:port, as references begin."""
        return f"127.0.0.1:{self._server.server_port}"

    @property
    def url(self) -> str:
        """Without a slash at the end."""
        return f"{self._scheme}://{self.address}"

    @property
    def requests(self) -> list[str]:
        """`METHOD path` of each request."""
        return list(map(str, self.asked))

    @property
    def authorizations(self) -> list[str | None]:
        """The Authorization header of each request."""
        return [request.authorization for request in self.asked]

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

    def lock(self, repository: str, **users: str) -> None:
        """Serve a repository to these users only, by their passwords."""
        self._locks[repository] = users

    def revoke_tokens(self) -> None:
        """All tokens that were given are good no more."""
        self._tokens.clear()

    def put(self, path: str, body: bytes, content_type: str = "application/octet-stream") -> None:
        """Serve something under `/v2/…`."""
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        self._content[path] = Reply(200, {"Content-Type": content_type, "Docker-Content-Digest": digest}, body)

    def content(self, path: str) -> bytes:
        """What is served under `/v2/…`."""
        return self._content[path].body

    def push(
        self,
        name: str,
        *layers: bytes,
        layer_type: str = WASM,
        config_type: str = WASM_CONFIG,
        config: bytes = b"{}",
        **more: Any,
    ) -> str:
        """Push an artifact as `repository:tag`, with more fields of its manifest; its reference."""
        repository, _, tag = name.partition(":")
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(config_type, config),
            "layers": [descriptor(layer_type, layer) for layer in layers],
            **more,
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

    # --- answers ------------------------------------------------------------------------------------------------------

    def _reply(self, request: Request) -> Reply:
        url = urlsplit(request.path)
        reply = self._content.get(
            request.path.removeprefix("/v2/"), Reply(404, {}, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}')
        )
        if url.path == "/token":
            reply = self._give_token(request, parse_qs(url.query))
        elif not self._is_open(request):
            reply = Reply(401, {"WWW-Authenticate": self.challenge or self._right_challenge()})
        for number, (part, fault) in enumerate(self._faults):
            if part in request.path:
                del self._faults[number]
                return fault(reply)
        return reply

    def _right_challenge(self) -> str:
        if self.scheme == "basic" and not self.token:
            return 'Basic realm="fake"'
        return f'Bearer realm="{self.realm or self.url + "/token"}",service="fake",scope="ignored"'

    def _is_open(self, request: Request) -> bool:
        if self.token:
            return request.authorization == f"Bearer {self.token}"
        repository = request.path.removeprefix("/v2/").partition("/manifests/")[0].partition("/blobs/")[0]
        users = self._locks.get(repository)
        if users is None:
            return True
        if self.scheme == "basic":
            return _user(request.authorization, users) is not None
        user, of = self._tokens.get((request.authorization or "").removeprefix("Bearer "), ("", ""))
        return of == repository and user in users

    def _give_token(self, request: Request, query: dict[str, list[str]]) -> Reply:
        if self.token_answer is not None:
            return Reply(200, {}, json.dumps(self.token_answer).encode())
        if self.token:
            return Reply(200, {}, json.dumps({"token": self.token}).encode())
        everybody = {user: password for users in self._locks.values() for user, password in users.items()}
        if request.method == "POST":
            fields = parse_qs(request.body.decode())
            user = self.refresh_tokens.get(fields["refresh_token"][0])
            if user is None:
                return Reply(400, {}, b'{"error":"invalid_grant"}')
        else:
            fields = query
            user = _user(request.authorization, everybody)
            if user is None and request.authorization is not None:
                return Reply(401, {}, b"{}")
        token = f"token-{len(self._tokens)}-{user}"
        self._tokens[token] = user or "", fields["scope"][0].split(":")[1]
        return Reply(200, {}, json.dumps({"access_token": token, "expires_in": 300}).encode())

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def handle(self) -> None:
                try:
                    super().handle()
                except (ssl.SSLError, ConnectionError):
                    return  # a client that doesn't trust us, or had seen enough

            def finish(self) -> None:
                try:
                    super().finish()
                except (ssl.SSLError, ConnectionError):
                    return

            def do_GET(self) -> None:
                request = Request(
                    method=self.command,
                    path=self.path,
                    authorization=self.headers.get("Authorization"),
                    cookie=self.headers.get("Cookie"),
                    body=self.rfile.read(int(self.headers.get("Content-Length", "0"))),
                )
                registry.asked.append(request)
                reply = registry._reply(request)
                if reply.hold:
                    registry._released.wait()
                    return
                self.send_response(reply.status)
                length = {} if reply.endless else {"Content-Length": str(len(reply.body))}
                for name, value in {**length, **reply.headers}.items():
                    self.send_header(name, value)
                for name, value in registry.cookies.items():
                    self.send_header("Set-Cookie", f"{name}={value}; Path=/")
                self.end_headers()
                if self.command == "HEAD":
                    return
                self.wfile.write(reply.body[: reply.sent])
                while reply.endless and not registry._released.is_set():
                    self.wfile.write(_PIECE)
                if reply.stalls:
                    self.wfile.flush()
                    registry._released.wait()

            do_HEAD = do_GET
            do_POST = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler


def _user(authorization: str | None, users: dict[str, str]) -> str | None:
    """Who shows a right password."""
    if authorization is None or not authorization.startswith("Basic "):
        return None
    name, _, password = base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
    return name if users.get(name) == password else None
