"""Provider `existing`: any Kubernetes that a kubeconfig leads to. It is used, never changed."""

from __future__ import annotations

import base64
import binascii
import json
import os
import shutil
import tempfile
from pathlib import Path

from tests.cluster import build
from tests.cluster.errors import ClusterError, KubectlFailed
from tests.cluster.progress import SILENT, Progress
from tests.cluster.provider import DEFAULT_NAME, Cluster, Status, check_name
from tests.cluster.record import Record

ANSWER_TIMEOUT_SECONDS = 20.0
"""For the question whether it answers at all."""


class ExistingCluster(Cluster):
    """A cluster that somebody else runs.

    :param kubeconfig: default: `$KUBECONFIG` (one file), or `~/.kube/config`. Its current context is used.
    :param directory: for files of ours: kubeconfigs, the CA. Removed by `down()`. Default: temporary.
    """

    provider = "existing"

    def __init__(
        self,
        kubeconfig: Path | None = None,
        directory: Path | None = None,
        *,
        name: str = DEFAULT_NAME,
        progress: Progress = SILENT,
    ) -> None:
        self.name = check_name(name)
        self.kubeconfig = (kubeconfig or _default_kubeconfig()).absolute()
        self.directory = directory or Path(tempfile.mkdtemp(prefix="wherry-cluster-"))
        self._progress = progress
        self._kubectl: Path | None = None

    def up(self) -> None:
        """Check that the cluster answers.

        :raises ClusterError: there is no such kubeconfig, or nothing answers.
        """
        if not self.kubeconfig.is_file():
            self.down()
            raise ClusterError(f"no kubeconfig at {self.kubeconfig}: give one, or set KUBECONFIG")
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            view = self.kubectl("config", "view", "--raw", "--flatten", "--minify", "--output=json").stdout
            cluster = json.loads(view)["clusters"][0]["cluster"]
            self.server = cluster["server"]
            self.ca_file = self.directory / "ca.crt"
            self.ca_file.write_bytes(base64.b64decode(cluster.get("certificate-authority-data", "")))
            self._progress.step(f"asking {self.server}")
            version = self._version()
        except (KubectlFailed, binascii.Error, LookupError, TypeError) as error:
            self.down()
            raise ClusterError(f"the cluster of {self.kubeconfig} can't be used: {error}") from error
        Record(
            name=self.name,
            provider=self.provider,
            server=self.server,
            kubeconfig=str(self.kubeconfig),
            ca_file=str(self.ca_file),
        ).save(self.directory)
        self._progress.step(f"cluster {self.name!r} answers at {self.server}: {version}")

    def down(self) -> None:
        """Forget the cluster: it is left as it is, only files of ours are removed."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def status(self) -> Status:
        """Return how the cluster is."""
        try:
            version = self._version()
        except KubectlFailed:
            return Status(name=self.name, provider=self.provider, state="stopped")
        return Status(name=self.name, provider=self.provider, state="running", server=self.server, version=version)

    def kubectl_program(self) -> Path:
        """Return the kubectl on PATH, else ours (built if need be)."""
        if self._kubectl is None:
            found = shutil.which("kubectl")
            self._kubectl = Path(found) if found else build.kube(self._progress) / "kubectl"
        return self._kubectl

    def _version(self) -> str:
        text = self.kubectl("get", "--raw=/version", timeout=ANSWER_TIMEOUT_SECONDS).stdout
        version: str = json.loads(text)["gitVersion"]
        return version


def _default_kubeconfig() -> Path:
    chosen = os.environ.get("KUBECONFIG", "")
    if os.pathsep in chosen:
        raise ClusterError("KUBECONFIG names several files: give the one to use")
    return Path(chosen) if chosen else Path.home() / ".kube" / "config"
