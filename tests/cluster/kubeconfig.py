"""Writes kubeconfig files that need no other file."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.pki import CertificateFiles


def write(
    path: Path,
    *,
    cluster: str,
    server: str,
    ca_file: Path,
    user: str,
    certificate: CertificateFiles | None = None,
    token: str | None = None,
) -> Path:
    """Write a kubeconfig for one user of one cluster, readable by the owner only, and return its path.

    :param certificate: the user's client certificate; or
    :param token: the user's bearer token.
    """
    if (certificate is None) == (token is None):
        raise ValueError("a user is either a certificate or a token")
    credentials: dict[str, Any] = {"token": token}
    if certificate is not None:
        credentials = {
            "client-certificate-data": _base64(certificate.cert),
            "client-key-data": _base64(certificate.key),
        }
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": cluster, "cluster": {"server": server, "certificate-authority-data": _base64(ca_file)}}],
        "users": [{"name": user, "user": credentials}],
        "contexts": [{"name": cluster, "context": {"cluster": cluster, "user": user}}],
        "current-context": cluster,
    }
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        yaml.safe_dump(document, file, sort_keys=False)
    return path


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
