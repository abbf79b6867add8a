"""The interface that every way to a Kubernetes offers, and what is the same in all: kubectl."""

from __future__ import annotations

import json
import os
import re
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.cluster import kubeconfig
from tests.cluster.errors import ClusterError, KubectlFailed
from tests.cluster.pki import CertificateAuthority

DEFAULT_NAME = "wherry"
"""Of a cluster for which no name is given."""

KUBECTL_TIMEOUT_SECONDS = 60.0
"""Far more than any single call takes, far less than a person waits."""

TOKEN_DURATION = "24h"
"""Of a service account's kubeconfig: longer than any test or demo."""

Manifest = str | Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""What can be applied: YAML or JSON text, an object, or several."""


@dataclass(frozen=True)
class Status:
    """How a cluster is.

    `state` is "running", "broken" (some of it runs) or "stopped"; `components` maps each process of ours to
    its state.
    """

    name: str
    provider: str
    state: str
    server: str = ""
    version: str = ""
    components: Mapping[str, str] = field(default_factory=dict)


class Cluster(ABC):
    """A Kubernetes cluster. As a context manager it is up inside and down after.

    Attributes:
        name: what a person calls it.
        directory: where its files are; for anybody's use below it, `directory / "scratch"` is free.
        kubeconfig: of an administrator.
        server: the API server's URL.
        ca_file: the CA that the API server's certificate is checked against.
        pki: the CA that the API server accepts client certificates from and checks kubelets' serving
            certificates against; None where that isn't ours.
        front_proxy_ca: the CA of the API server's own identity towards aggregated API servers; None where
            that isn't ours.

    All but `name` and `directory` are there once the cluster is up.
    """

    provider: str
    name: str
    directory: Path
    kubeconfig: Path
    server: str
    ca_file: Path
    pki: CertificateAuthority | None = None
    front_proxy_ca: CertificateAuthority | None = None

    @abstractmethod
    def up(self) -> None:
        """Bring the cluster up, and return when it can be used."""

    @abstractmethod
    def down(self) -> None:
        """Take it down, and leave nothing behind. Does nothing if it isn't up."""

    @abstractmethod
    def status(self) -> Status:
        """Return how the cluster is."""

    @abstractmethod
    def kubectl_program(self) -> Path:
        """Return the kubectl to use."""

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def kubectl(
        self,
        *arguments: str | Path,
        input: str | None = None,
        check: bool = True,
        timeout: float = KUBECTL_TIMEOUT_SECONDS,
        kubeconfig: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl.

        :param input: its standard input.
        :param check: raise if it exits non-zero.
        :param timeout: in seconds.
        :param kubeconfig: whose rights to use; default: the administrator's.
        :raises KubectlFailed: it exited non-zero (if `check`), or took too long.
        """
        words = [str(each) for each in arguments]
        command = [
            str(self.kubectl_program()),
            f"--kubeconfig={kubeconfig or self.kubeconfig}",
            f"--cache-dir={self.directory / 'kubectl-cache'}",  # else ~/.kube/cache
            *words,
        ]
        try:
            done = subprocess.run(
                command,
                # "" and not None: never wait for the terminal.
                input=input if input is not None else "",
                env=kubectl_environment(),
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise KubectlFailed(
                words, returncode=None, stdout=_text(error.stdout), stderr=_text(error.stderr)
            ) from None
        if check and done.returncode != 0:
            raise KubectlFailed(words, returncode=done.returncode, stdout=done.stdout, stderr=done.stderr)
        return done

    def apply(self, manifest: Manifest) -> str:
        """Apply objects, and return what kubectl said.

        :raises KubectlFailed: the API server refused one.
        """
        if isinstance(manifest, str):
            text = manifest
        elif isinstance(manifest, Mapping):
            text = json.dumps(manifest)
        else:
            text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifest)})
        return self.kubectl("apply", "-f", "-", input=text).stdout

    def get(self, kind: str, name: str, namespace: str | None = None) -> dict[str, Any] | None:
        """Return an object as the API server has it, or None if there is none.

        :param kind: as kubectl takes it: `pod`, `deployments.apps`.
        """
        where = [] if namespace is None else [f"--namespace={namespace}"]
        text = self.kubectl("get", kind, name, *where, "--ignore-not-found", "--output=json").stdout
        if not text:
            return None
        found: dict[str, Any] = json.loads(text)
        return found

    def user_kubeconfig(self, common_name: str, organizations: Sequence[str] = ()) -> Path:
        """Make a kubeconfig for a user with a client certificate.

        :param common_name: the user; `organizations`: the groups.
        :raises ClusterError: the cluster's CA isn't ours.
        """
        if self.pki is None:
            raise ClusterError(
                f"cluster {self.name!r} ({self.provider}): its CA isn't ours, so it can't issue a certificate"
                f" for {common_name!r}; use service_account_kubeconfig"
            )
        certificate = self.pki.issue(common_name, organizations, client=True)
        return self._write_kubeconfig(certificate.cert.stem, user=common_name, certificate=certificate)

    def service_account_kubeconfig(self, namespace: str, name: str) -> Path:
        """Make a kubeconfig for an existing ServiceAccount, with a token that is good for a day.

        :raises KubectlFailed: there is no such ServiceAccount.
        """
        duration = f"--duration={TOKEN_DURATION}"
        token = self.kubectl("create", "token", name, f"--namespace={namespace}", duration).stdout.strip()
        user = f"system:serviceaccount:{namespace}:{name}"
        return self._write_kubeconfig(f"serviceaccount-{namespace}-{name}", user=user, token=token)

    def _write_kubeconfig(self, stem: str, **user: Any) -> Path:
        return kubeconfig.write(
            self.directory / "kubeconfigs" / f"{stem}.yaml",
            cluster=self.name,
            server=self.server,
            ca_file=self.ca_file,
            **user,
        )


def check_name(name: str) -> str:
    """Return the name if it is fit for a folder and a kubeconfig.

    :raises ClusterError: it isn't.
    """
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name):
        raise ClusterError(
            f"{name!r} is no name for a cluster: lower-case letters, digits and dashes, at most 63 of them"
        )
    return name


def kubectl_environment() -> dict[str, str]:
    """Return this process's environment without what would make kubectl depend on whose machine it is."""
    mine = {key: value for key, value in os.environ.items() if key != "KUBECONFIG"}
    return {**mine, "KUBERC": "off", "NO_PROXY": "127.0.0.1,localhost," + mine.get("NO_PROXY", "")}


def _text(output: str | bytes | None) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""
