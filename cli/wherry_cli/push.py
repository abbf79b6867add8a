"""`kubectl wherry push`: a module to a registry, as the CNCF's Wasm OCI artifact."""

from __future__ import annotations

import hashlib
import io
import ipaddress
import json
import os
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from wherry_cli.errors import CliError

LAYER = "application/wasm"
CONFIG = "application/vnd.wasm.config.v0+json"

CONNECT_SECONDS = 10.0


def run(given: Namespace) -> int:
    """Push the file, and say under which name and digest it is to be had. Raises CliError."""
    path, reference = Path(given.file), given.reference
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CliError(f"error: can't read {given.file}: {error.strerror}") from error
    config = config_of(content)
    print(reference_and_digest(reference, push(path, reference, config, plain_http=given.insecure)))
    return 0


def config_of(module: bytes) -> dict[str, Any]:
    """The artifact's config (CNCF TAG Runtime, Wasm OCI artifact layout). Raises CliError for what is no module."""
    if not module.startswith(b"\0asm"):
        raise CliError("error: the file is no binary WebAssembly: registries take no text format")
    digest = f"sha256:{hashlib.sha256(module).hexdigest()}"
    # Bytes 6 and 7 are the layer: 0 a core module, 1 a component.
    if module[6:8] == b"\1\0":
        return {"architecture": "wasm", "os": "wasip2", "layerDigests": [digest], "component": {}}
    return {"architecture": "wasm", "os": "wasip1", "layerDigests": [digest]}


def push(path: Path, reference: str, config: dict[str, Any], *, plain_http: bool) -> str:
    """Push it with the credentials that `docker login` left, and return the manifest's digest. Raises CliError."""
    # Here, not above: they take a while, and other commands need none of it.
    import oras.auth.basic
    import oras.client
    import requests

    host = reference.split("/", 1)[0]
    if "/" not in reference or not ("." in host or ":" in host or host == "localhost"):
        raise CliError(f"error: {reference} names no registry: want REGISTRY/REPOSITORY:TAG")
    if "@" in reference:
        raise CliError(f"error: {reference} has a digest, which the registry tells: want REGISTRY/REPOSITORY:TAG")

    class Client(oras.client.OrasClient):  # type: ignore[misc]
        """Says how far a blob is, and fails at once: oras would try each request for two minutes, and say nothing."""

        def do_request(self, url: str, method: str = "GET", data: Any = None, **rest: Any) -> Any:
            if method == "PUT" and isinstance(data, bytes) and "/blobs/" in url:
                data = _Progress(data)
            if isinstance(self.auth, oras.auth.basic.BasicAuth):
                if not getattr(self.auth, "_basic_auth", None):
                    raise ValueError("the registry wants a password, and docker login has left none for it")
                rest["headers"] = {**(rest.get("headers") or {}), **self.auth.get_auth_header()}
            answer = once(self, url, method, data=data, **rest)
            if answer.status_code in (401, 403):
                raise ValueError("the registry refuses these credentials (docker login)")
            return answer

    once = oras.client.OrasClient.do_request.__wrapped__
    plain_http = plain_http or _is_loopback(host)
    with tempfile.TemporaryDirectory() as folder:
        config_file = Path(folder) / "config.json"
        config_file.write_text(json.dumps(config))
        try:
            client = Client(hostname=host, insecure=plain_http, auth_backend=_challenge(host, plain_http=plain_http))
            answer = client.push(
                target=reference,
                files=[f"{path.resolve()}:{LAYER}"],
                manifest_config=f"{config_file}:{CONFIG}",
                disable_path_validation=True,
                config_path=_docker_config(),
                quiet=True,
            )
        except (requests.RequestException, oras.auth.AuthenticationException, ValueError, OSError) as error:
            raise CliError(f"error: can't push to {reference}: {error}") from error
    return str(answer.headers.get("Docker-Content-Digest", ""))


def reference_and_digest(reference: str, digest: str) -> str:
    """The name that will always stand for what was pushed."""
    last = reference.rsplit("/", 1)[-1]
    untagged = reference[: -len(last)] + last.split(":", 1)[0]
    return f"{untagged}@{digest}" if digest else reference


def _challenge(host: str, *, plain_http: bool) -> str:
    """How a registry wants to know who calls, as oras names it: a password, or a token for it."""
    import requests

    answer = requests.get(f"{'http' if plain_http else 'https'}://{host}/v2/", timeout=CONNECT_SECONDS)
    return "basic" if answer.headers.get("Www-Authenticate", "").lower().startswith("basic") else "token"


def _docker_config() -> str | None:
    """Where docker's login is when it is not in its usual place, which oras knows."""
    folder = os.environ.get("DOCKER_CONFIG")
    path = Path(folder) / "config.json" if folder else None
    return str(path) if path and path.is_file() else None


def _is_loopback(host: str) -> bool:
    """As the runner has it: such a registry is asked without TLS."""
    name = host.rsplit(":", 1)[0].strip("[]")
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


class _Progress(io.BytesIO):
    """A body that says on a terminal how much of it was read."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self._size = len(content)

    def __len__(self) -> int:
        return self._size

    def read(self, size: int | None = -1, /) -> bytes:
        piece = super().read(size)
        if sys.stderr.isatty():
            done = 100 * self.tell() // max(1, self._size)
            print(f"\rpushing {self._size} bytes: {done} %", end="" if piece else "\n", file=sys.stderr, flush=True)
        if not piece:
            self.seek(0)  # a registry that asks for a new token is sent it all again
        return piece
