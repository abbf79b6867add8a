"""Pushes modules to a registry with oras, as users do."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import oras.client

KRUSTLET = ("application/vnd.wasm.content.layer.v1+wasm", "application/vnd.wasm.config.v1+json")
"""Layer and config type of wasm-to-oci and Krustlet."""

CNCF = ("application/wasm", "application/vnd.wasm.config.v0+json")
"""Layer and config type of the CNCF's Wasm OCI artifact."""


def push(
    registry: str,
    repository: str,
    files: Sequence[Path],
    *,
    types: tuple[str, str] = CNCF,
    tag: str = "v1",
    login: tuple[str, str] | None = None,
) -> str:
    """Push files as the layers of an artifact; returns the reference `REGISTRY/REPOSITORY:TAG`."""
    target = f"{registry}/{repository}:{tag}"
    layer, config_type = types
    client = oras.client.OrasClient(hostname=registry, insecure=True, auth_backend="basic" if login else "token")
    if login:
        client.auth.set_basic_auth(*login)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.json"
        config.write_text(json.dumps({"architecture": "wasm", "os": "wasip1", "layerDigests": []}))
        # oras-py prints as it goes.
        with contextlib.redirect_stdout(io.StringIO()):
            client.push(
                target=target,
                files=[f"{file}:{layer}" for file in files],
                manifest_config=f"{config}:{config_type}",
                disable_path_validation=True,
            )
    return target
