"""A cluster that another process holds up: what `python -m tests.cluster up` left running."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.cluster import build, machine, pki
from tests.cluster.errors import ClusterError, KubectlFailed
from tests.cluster.provider import DEFAULT_NAME, Cluster, Status, check_name
from tests.cluster.record import Record


def state_directory() -> Path:
    """Return where clusters from the command line are kept: a folder for each, by name."""
    chosen = os.environ.get("WHERRY_STATE")
    if chosen:
        return Path(chosen) / "clusters"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "wherry" / "clusters"


class RunningCluster(Cluster):
    """A view of a running cluster, by name: all but its life is as if it were ours.

    :param name: as given to `up --name`.
    :raises ClusterError: there is none of that name.
    """

    def __init__(self, name: str = DEFAULT_NAME) -> None:
        self.name = check_name(name)
        self.directory = state_directory() / name
        record = Record.load(self.directory)
        if record is None:
            raise ClusterError(f"no cluster {name!r}: `python -m tests.cluster up --name {name}` makes one")
        self.record = record
        self.provider = record.provider
        self.server = record.server
        self.kubeconfig = Path(record.kubeconfig)
        self.ca_file = Path(record.ca_file)
        if self.provider in ("local", "node"):
            certificates = self.directory / "pki"
            self.pki = pki.CertificateAuthority(certificates / "cluster", "kubernetes-ca")
            self.front_proxy_ca = pki.CertificateAuthority(certificates / "front-proxy", "front-proxy-ca")
            self.logs = self.directory / "logs"
            self.audit_log = self.logs / "audit.jsonl"

    def up(self) -> None:
        """Check that it runs.

        :raises ClusterError: it doesn't.
        """
        state = self.status().state
        if state != "running":
            raise ClusterError(f"cluster {self.name!r} is {state}: take it `down`, then `up` again")

    def down(self) -> None:
        """Do nothing: who brought it up takes it down."""

    def status(self) -> Status:
        """Return how the cluster is."""
        components = {
            component.name: "running" if component.identity.alive else "ended" for component in self.record.components
        }
        alive = [state == "running" for state in components.values()]
        version = ""
        if all(alive):
            try:
                version = json.loads(self.kubectl("get", "--raw=/version").stdout)["gitVersion"]
            except KubectlFailed:
                alive.append(False)
        return Status(
            name=self.name,
            provider=self.provider,
            state="running" if all(alive) else "broken" if any(alive) else "stopped",
            server=self.server,
            version=version,
            components=components,
        )

    def kubectl_program(self) -> Path:
        """Return our kubectl."""
        inside = self.directory / "bin" / "kubectl"
        return inside if inside.exists() else build.kube() / "kubectl"

    def network(self) -> Path:
        """Return the network namespace of a cluster with nodes.

        :raises ClusterError: it has none.
        """
        for component in self.record.components:
            if component.name == "machine-node-1" and component.identity.alive:
                return machine.network_of(component.pid)
        raise ClusterError(f"cluster {self.name!r} ({self.provider}) has no network of its own, or doesn't run")
