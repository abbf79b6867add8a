"""Short words for Pods on a real node."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.cluster.node import NodeCluster
from tests.cluster.processes import wait_for

PATIENCE = "90s"
"""For what takes seconds, on any machine."""

PATIENCE_SECONDS = 90.0

RESTRICTED: dict[str, Any] = {
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""A container that the Pod Security level `restricted` admits."""


def pod(name: str, image: str, command: Sequence[str] = (), **container: Any) -> dict[str, Any]:
    """Return a Pod of one container, `main`, that ends at once when deleted."""
    if command:
        container["command"] = list(command)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "containers": [{"name": "main", "image": image, **container}],
        },
    }


@dataclass(frozen=True)
class Space:
    """A namespace of a cluster."""

    cluster: NodeCluster
    namespace: str

    def kubectl(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run kubectl in the namespace."""
        return self.cluster.kubectl(f"--namespace={self.namespace}", *arguments, check=check, timeout=120)

    def create(self, *objects: Mapping[str, Any]) -> None:
        """Create objects in the namespace."""
        items = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)})
        self.cluster.kubectl(f"--namespace={self.namespace}", "create", "-f", "-", input=items)

    def wait(self, what: str, *conditions: str) -> None:
        """Wait until `what` (`pod/NAME`) is all that: `condition=Ready`, `jsonpath=...`."""
        for condition in conditions:
            self.kubectl("wait", f"--for={condition}", what, f"--timeout={PATIENCE}")

    def status(self, pod_name: str) -> dict[str, Any]:
        """Return a Pod's status."""
        found = self.cluster.get("pod", pod_name, self.namespace)
        assert found is not None
        status: dict[str, Any] = found["status"]
        return status

    def inside(self, pod_name: str, *command: str) -> str:
        """Run a command in a Pod, and return what it printed."""
        return self.kubectl("exec", pod_name, "--", *command).stdout

    def eventually(self, pod_name: str, *command: str) -> str:
        """Run a command in a Pod until it succeeds: a Service's rules come a moment after its Pods."""
        results: list[str] = []

        def succeeds() -> bool:
            done = self.kubectl("exec", pod_name, "--", *command, check=False)
            results.append(done.stdout if done.returncode == 0 else done.stderr)
            return done.returncode == 0

        assert wait_for(succeeds, timeout_seconds=PATIENCE_SECONDS), results[-1]
        return results[-1]
