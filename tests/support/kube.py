"""Short words for what control-plane tests do in a namespace of their own."""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.cluster.local import LocalCluster
from tests.cluster.registry import Registry
from tests.support import wat
from tests.support.images import CNCF, push
from tests.support.installation import Installation

MIRRORED = "registry.example"

PATIENCE_SECONDS = 60.0
"""How long anything may take on a busy machine. Never a measure of anything."""

TOLERATIONS = [
    {"key": "kubernetes.io/arch", "operator": "Equal", "value": "wasm32-wasi", "effect": effect}
    for effect in ("NoSchedule", "NoExecute")
]

Json = dict[str, Any]


class Workspace:
    """One namespace on an installation."""

    def __init__(self, installation: Installation, registry: Registry, namespace: str, scratch: Path) -> None:
        self.installation = installation
        self.registry = registry
        self.namespace = namespace
        self.cluster = installation.cluster
        self._scratch = scratch

    # --- doing --------------------------------------------------------------------------------------------------------

    def push(self, text: str, *, types: tuple[str, str] = CNCF) -> str:
        """Push a module given as text, and return the image's name for manifests."""
        return self.push_file(wat.write(text, self._scratch / f"{secrets.token_hex(4)}.wasm"), types=types)

    def push_bytes(self, module: bytes) -> str:
        """Push a module as it is, and return the image's name for manifests."""
        file = self._scratch / f"{secrets.token_hex(4)}.wasm"
        file.write_bytes(module)
        return self.push_file(file)

    def push_file(self, *files: Path, types: tuple[str, str] = CNCF) -> str:
        """Push files as layers, and return the image's name for manifests."""
        repository = f"tests/{secrets.token_hex(6)}"
        push(self.registry.address, repository, files, types=types)
        return f"{MIRRORED}/{repository}:v1"

    def kubectl(self, *arguments: str, check: bool = True, timeout: float = 60.0) -> str:
        """Run kubectl in the namespace; its output, and what it complained of."""
        done = self.cluster.kubectl(*arguments, "-n", self.namespace, check=check, timeout=timeout)
        return done.stdout + done.stderr

    def try_apply(self, body: Json) -> subprocess.CompletedProcess[str]:
        """Apply an object that may be refused."""
        return self.cluster.kubectl("apply", "-n", self.namespace, "-f", "-", input=json.dumps(body), check=False)

    def apply(self, body: Json) -> None:
        """Apply an object."""
        done = self.try_apply(body)
        assert done.returncode == 0, done.stderr

    def pod(self, name: str, image: str, *, spec: Mapping[str, Any] | None = None, **container: Any) -> None:
        """Create a Pod of one container for the installation's virtual node."""
        self.apply(pod(name, image, node=self.installation.node_name, spec=spec, **container))

    def workload(self, name: str, **spec: Any) -> None:
        """Create a WasmWorkload."""
        self.apply(workload(name, **spec))

    # --- seeing -------------------------------------------------------------------------------------------------------

    def get(self, kind: str, name: str) -> Json | None:
        """An object as it is."""
        return self.cluster.get(kind, name, self.namespace)

    def container(self, name: str) -> Json:
        """The status of a Pod's first container; empty before there is one."""
        found = self.get("pod", name)
        statuses = (found or {}).get("status", {}).get("containerStatuses") or [{}]
        first: Json = statuses[0]
        return first

    def instance(self, name: str) -> Json:
        """The first instance in a WasmWorkload's status; empty before there is one."""
        found: list[Json] = (self.get("wasmworkload", name) or {}).get("status", {}).get("instances") or [{}]
        return found[0]

    def waiting(self, name: str) -> Json:
        """Reason and message of a Pod's first container, if it waits."""
        found: Json = self.container(name).get("state", {}).get("waiting", {})
        return found

    def logs(self, name: str, *flags: str) -> str:
        """`kubectl logs`."""
        return self.cluster.kubectl("logs", name, "-n", self.namespace, *flags).stdout

    def events(self, name: str) -> list[tuple[str, str]]:
        """Reason and message of each Event about an object."""
        found = json.loads(
            self.cluster.kubectl(
                "get", "events", "-n", self.namespace, f"--field-selector=involvedObject.name={name}", "-o", "json"
            ).stdout
        )
        return [(item["reason"], item["message"]) for item in found["items"]]

    def wait(self, condition: Callable[[], object], what: str, *, timeout: float = PATIENCE_SECONDS) -> None:
        """Wait for a condition. Fails with what there is instead."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                state = self.kubectl("get", "pods,wasmworkloads,events", "-o", "wide", check=False)
                operator = self.installation.operator
                tail = operator.tail(15) if operator else "the operator is down"
                raise AssertionError(f"not within {timeout:.0f} s: {what}\n{state}\n{tail}")
            time.sleep(0.1)

    def wait_phase(
        self, name: str, phase: str, *, kind: str = "pod", meanwhile: Callable[[], None] = lambda: None
    ) -> Json:
        """Wait until an object has a phase, and return it."""

        def reached() -> bool:
            meanwhile()
            return self.phase(name, kind=kind) == phase

        self.wait(reached, f"{kind} {name} has phase {phase}")
        found = self.get(kind, name)
        assert found is not None
        return found

    def phase(self, name: str, *, kind: str = "pod") -> str:
        """An object's phase."""
        return str((self.get(kind, name) or {}).get("status", {}).get("phase", ""))


def pod(
    name: str, image: str, *, node: str = "wherry", spec: Mapping[str, Any] | None = None, **container: Any
) -> Json:
    """A Pod of one container for a virtual node. It names the node: another test's installation may have one as well."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "tolerations": TOLERATIONS,
            "nodeSelector": {"kubernetes.io/arch": "wasm32-wasi", "kubernetes.io/hostname": node},
            "containers": [{"name": "main", "image": image, **container}],
            **(spec or {}),
        },
    }


def workload(name: str, **spec: Any) -> Json:
    """A WasmWorkload."""
    return {
        "apiVersion": "wherry.dev/v1alpha1",
        "kind": "WasmWorkload",
        "metadata": {"name": name},
        "spec": spec,
    }


def conditions(body: Json) -> dict[str, Json]:
    """Conditions by type."""
    return {item["type"]: item for item in body.get("status", {}).get("conditions") or []}


def names(items: Sequence[Json]) -> list[str]:
    """Names of objects."""
    return [item["metadata"]["name"] for item in items]


@contextlib.contextmanager
def node_of(cluster: LocalCluster, runner: str, **labels: str) -> Iterator[str]:
    """The name of the Node that a runner says it is on, which is there and Ready for as long."""
    name = f"node-of-{runner}"
    cluster.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}})
    ready = {"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "Test", "message": ""}]}}
    cluster.kubectl("patch", "node", name, "--subresource=status", "--type=merge", "-p", json.dumps(ready))
    # The node lifecycle controller greets a node with the taint not-ready, and takes it away again.
    try:
        yield name
    finally:
        cluster.kubectl("delete", "node", name, "--ignore-not-found")
