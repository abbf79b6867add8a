"""Certificates between operator and runners that the operator makes: there at the start, renewed without a restart, no right for
more, and gone with the release. A real API server; what a kubelet does with a Secret's volume is done here by hand."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import ssl
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509

from tests.cluster.provider import Cluster
from tests.controlplane.conftest import MIRRORED
from tests.support import wat
from tests.support.installation import API_SERVICE, Installation
from tests.support.kube import Json, Workspace

NAME = "issues"
NAMESPACE = "issues-system"
RUNNER_SECRET = "wherry-runner-tls"
ALL_SECRETS = {"wherry-ca", RUNNER_SECRET, "wherry-metrics-tls"}


class Mounted:
    """The runner's folder of its Secret, swapped as a whole by a link, as a kubelet does it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._count = 0

    @property
    def flags(self) -> list[str]:
        """What the runner is told."""
        files = {"--cert": "tls.crt", "--key": "tls.key", "--client-ca": "ca.crt"}
        return [part for flag, name in files.items() for part in (flag, str(self._folder / "data" / name))]

    def bring(self, data: dict[str, str]) -> None:
        """Have these contents."""
        self._count += 1
        new = self._folder / str(self._count)
        new.mkdir()
        for name, value in data.items():
            (new / name).write_bytes(base64.b64decode(value))
        link = self._folder / "link"
        os.symlink(new, link)
        link.replace(self._folder / "data")


@contextlib.contextmanager
def installed(space: Workspace, folder: Path) -> Iterator[tuple[Workspace, Mounted]]:
    """An installation of its own whose operator makes the certificates, with a runner that waits for them."""
    mounted = Mounted(folder / "mounted")
    made = Installation(
        space.cluster, folder / NAME, node_name=NAME, class_name=NAME, namespace=NAMESPACE, runners=["issues-a"],
        runner_flags=mounted.flags, registry_mirrors={MIRRORED: space.registry.url},
        serves_logs=False, brings_runners_certificates=False,
    )  # fmt: skip
    here = Workspace(made, space.registry, space.namespace, folder)
    try:
        made.install()
        made.start_operator(wait=False)
        here.wait(lambda: _secret(space.cluster, RUNNER_SECRET) is not None, "the runners' Secret is there")
        mounted.bring(_data(space.cluster, RUNNER_SECRET))
        made.runners["issues-a"].start()
        made.wait_operator_ready()
        yield here, mounted
    finally:
        made.close()
        made.remove_cluster_wide()
        space.cluster.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=60s")


def test_they_are_made_renewed_without_a_restart_and_go_with_the_release(space: Workspace, tmp_path: Path) -> None:
    bundle = _bundle(space.cluster)
    with installed(space, tmp_path) as (here, mounted):
        runner = here.installation.runners["issues-a"]
        assert runner.process is not None and here.installation.operator is not None
        operator = here.installation.operator
        here.workload("stays", className=NAME, module={"inline": wat.sleeps()})
        here.wait_phase("stays", "Running", kind="wasmworkload")
        before = here.instance("stays")

        first = _shown(runner.url)
        _renew(here, mounted, RUNNER_SECRET)
        here.wait(lambda: _shown(runner.url) != first, "the runner shows the renewed certificate")
        assert _shown(runner.url).issuer == first.issuer
        here.workload("after-one", className=NAME, module={"inline": wat.sleeps()})
        here.wait_phase("after-one", "Running", kind="wasmworkload")

        # All of it, as after somebody has seen the CA's key.
        _renew(here, mounted, "wherry-ca")
        here.wait(lambda: _shown(runner.url).issuer != first.issuer, "the runner shows one of another CA")
        here.workload("after-all", className=NAME, module={"inline": wat.sleeps()})
        here.wait_phase("after-all", "Running", kind="wasmworkload")

        assert here.instance("stays") == before
        assert runner.process.running and here.installation.operator is operator and operator.running
        assert _bundle(space.cluster) == bundle, "the log API is another installation's"

        # With the release they go, also with a dead operator.
        here.installation.kill_operator()
        here.cluster.kubectl("delete", "clusterrole", f"wherry-operator-{NAME}")
        here.wait(
            lambda: not any(_secret(here.cluster, name) for name in ALL_SECRETS), "no Secret is left", timeout=120.0
        )


def test_it_may_write_those_secrets_and_no_others(space: Workspace, tmp_path: Path) -> None:
    with installed(space, tmp_path) as (here, _):
        own = here.installation.operator_kubeconfig
        listed = json.loads(here.cluster.kubectl("get", "secrets", "-n", NAMESPACE, "-o", "json").stdout)["items"]
        assert {each["metadata"]["name"] for each in listed if "tls" in each["type"]} == ALL_SECRETS
        here.cluster.kubectl("create", "secret", "generic", "theirs", "-n", NAMESPACE)
        stranger = json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "another"}})
        for arguments in (
            ["apply", "--server-side", "-f", "-"],
            ["create", "-f", "-"],
            ["get", "secret", "theirs"],
            ["label", "secret", "theirs", "a=b"],
            ["delete", "secret", RUNNER_SECRET],
            ["get", "secrets"],
        ):
            done = here.cluster.kubectl(
                *arguments, "-n", NAMESPACE, kubeconfig=own, input=stranger if "-" in arguments else None, check=False
            )
            assert "forbidden" in done.stderr.lower(), arguments
        elsewhere = here.cluster.kubectl(
            "get", "secret", RUNNER_SECRET, "-n", here.namespace, kubeconfig=own, check=False
        )
        assert "forbidden" in elsewhere.stderr.lower()


def _renew(space: Workspace, mounted: Mounted, name: str) -> None:
    """Delete a Secret, and bring to the runner what the operator makes thereupon."""
    before = _data(space.cluster, RUNNER_SECRET)
    space.cluster.kubectl("delete", "secret", name, "-n", NAMESPACE)

    def renewed() -> bool:
        found = _secret(space.cluster, RUNNER_SECRET)
        return found is not None and found["data"]["tls.crt"] != before["tls.crt"]

    space.wait(renewed, f"the runners' Secret is another one after {name} was deleted")
    mounted.bring(_data(space.cluster, RUNNER_SECRET))


def _secret(cluster: Cluster, name: str) -> Json | None:
    return cluster.get("secret", name, NAMESPACE)


def _data(cluster: Cluster, name: str) -> dict[str, str]:
    found = _secret(cluster, name)
    assert found is not None
    return dict(found["data"])


def _bundle(cluster: Cluster) -> str:
    found = cluster.get("apiservice", API_SERVICE)
    assert found is not None
    return str(found["spec"]["caBundle"])


def _shown(url: str) -> x509.Certificate:
    """What a runner shows to whoever asks."""
    host, _, port = url.removeprefix("https://").partition(":")
    return x509.load_pem_x509_certificate(ssl.get_server_certificate((host, int(port))).encode())
