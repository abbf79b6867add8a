"""The logs of WasmWorkloads through the real API server's aggregator."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request

import pytest

from tests.cluster.pki import CertificateFiles
from tests.support import wat
from tests.support.installation import Installation
from tests.support.kube import Workspace

API = "/apis/subresources.wherry.dev/v1alpha1"


def _raw(space: Workspace, name: str, query: str = "") -> str:
    path = f"{API}/namespaces/{space.namespace}/wasmworkloads/{name}/log"
    return space.cluster.kubectl("get", "--raw", f"{path}?{query}").stdout


def _refusal(space: Workspace, name: str, query: str = "") -> str:
    path = f"{API}/namespaces/{space.namespace}/wasmworkloads/{name}/log"
    done = space.cluster.kubectl("get", "--raw", f"{path}?{query}", check=False)
    assert done.returncode == 1
    return done.stderr.strip()


def test_the_log_is_a_subresource(space: Workspace) -> None:
    space.workload("talks", module={"inline": wat.exits(0, says="one line")}, restartPolicy="Never")
    space.wait_phase("talks", "Succeeded", kind="wasmworkload")
    assert _raw(space, "talks") == "one line\n"
    assert _raw(space, "talks", "follow=true") == "one line\n"
    assert _raw(space, "talks", "tailLines=0") == ""
    assert _raw(space, "talks", "limitBytes=3") == "one"
    time, _, text = _raw(space, "talks", "timestamps=true").partition(" ")
    assert len(time) == 30 and time.endswith("Z") and text == "one line\n"
    instance = space.instance("talks")["name"]
    assert _raw(space, "talks", "prefix=true") == f"[{instance}/module] one line\n"
    assert _raw(space, "talks", f"instance={instance}") == "one line\n"


def test_several_instances_are_one_log(space: Workspace) -> None:
    space.workload("many", module={"inline": wat.sleeps("awake")}, replicas=3)
    space.kubectl("wait", "--for=condition=Ready", "ww/many", "--timeout=60s")
    names = [item["name"] for item in (space.get("ww", "many") or {})["status"]["instances"]]
    assert len(names) == 3
    lines = _raw(space, "many", "prefix=true").splitlines()
    assert sorted(lines) == sorted(f"[{name}/module] awake" for name in names)
    times = [line.split(" ")[0] for line in _raw(space, "many", "timestamps=true").splitlines()]
    assert times == sorted(times)
    assert _raw(space, "many", "instance=2&prefix=true").endswith("-2/module] awake\n")


def test_what_is_not_there_is_told_as_kubernetes_does(space: Workspace) -> None:
    assert _refusal(space, "nobody") == 'Error from server (NotFound): wasmworkloads.wherry.dev "nobody" not found'
    space.workload("waits", module={"image": "registry.example/nobody/has:this"})
    space.wait(lambda: "ErrImagePull" in str(space.get("ww", "waits")), "the pull has failed")
    assert "is waiting to start: " in _refusal(space, "waits")
    assert 'has no instance "17"' in _refusal(space, "waits", "instance=17")
    assert "BadRequest" in _refusal(space, "waits", "tailLines=many")
    assert "The request is invalid: " in _refusal(space, "waits", "tailLines=-1")


def test_discovery_names_it(space: Workspace) -> None:
    found = json.loads(space.cluster.kubectl("get", "--raw", API).stdout)
    assert [(item["name"], item["verbs"]) for item in found["resources"]] == [
        ("wasmworkloads/log", ["get"]),
        ("wasmworkloads/portforward", ["create", "get"]),
    ]
    space.wait(lambda: "True" in space.kubectl("get", "apiservice", "v1alpha1.subresources.wherry.dev"), "available")
    groups = json.loads(space.cluster.kubectl("get", "--raw", "/apis").stdout)["groups"]
    assert "subresources.wherry.dev" in [group["name"] for group in groups]


def test_rbac_of_a_namespace_decides(space: Workspace) -> None:
    space.workload("talks", module={"inline": wat.exits(0, says="secret")}, restartPolicy="Never")
    space.wait_phase("talks", "Succeeded", kind="wasmworkload")
    path = f"{API}/namespaces/{space.namespace}/wasmworkloads/talks/log"
    ada = space.cluster.user_kubeconfig("ada", ["readers"])

    def ask() -> tuple[int, str]:
        done = space.cluster.kubectl("get", "--raw", path, kubeconfig=ada, check=False)
        return done.returncode, done.stdout + done.stderr

    code, text = ask()
    assert code == 1 and "Forbidden" in text and 'cannot get resource "wasmworkloads/log"' in text
    # The role that Kubernetes has for those who may look, in this namespace only.
    space.kubectl("create", "rolebinding", "readers", "--clusterrole=view", "--group=readers")
    space.wait(lambda: ask() == (0, "secret\n"), "the grant counts")


def test_nobody_poses_as_the_front_proxy(installation: Installation, space: Workspace) -> None:
    """Headers mean something only with a certificate of the front proxy's CA and an allowed name."""
    cluster = space.cluster
    assert cluster.pki is not None and cluster.front_proxy_ca is not None
    url = f"https://127.0.0.1:{installation.api_port}{API}"
    stranger = cluster.front_proxy_ca.issue("somebody-else", client=True)
    assert _status(url, None, cluster.ca_file) == 401
    assert _status(url, stranger, cluster.ca_file) == 401
    with pytest.raises((urllib.error.URLError, ConnectionError, ssl.SSLError)):  # the handshake itself fails
        _status(url, cluster.pki.issue("front-proxy-client", ["system:masters"], client=True), cluster.ca_file)
    proxy = cluster.front_proxy_ca.issue("front-proxy-client", client=True)
    assert _status(url, proxy, cluster.ca_file) == 200


def test_an_operator_that_does_not_lead_serves_them_too(installation: Installation, space: Workspace) -> None:
    cluster = space.cluster
    assert cluster.front_proxy_ca is not None
    proxy = cluster.front_proxy_ca.issue("front-proxy-client", client=True)
    space.workload("talks", module={"inline": wat.sleeps("awake")})
    space.kubectl("wait", "--for=condition=Ready", "ww/talks", "--timeout=60s")
    with installation.second_operator() as second:
        url = f"https://127.0.0.1:{second.api_port}{API}/namespaces/{space.namespace}/wasmworkloads/talks/log"
        space.wait(lambda: _ask(url, proxy, cluster.ca_file) == (200, "awake\n"), "the log is there")


def _status(url: str, certificate: CertificateFiles | None, ca_file: object) -> int:
    return _ask(url, certificate, ca_file)[0]


def _ask(url: str, certificate: CertificateFiles | None, ca_file: object) -> tuple[int, str]:
    context = ssl.create_default_context(cafile=str(ca_file))
    if certificate:
        context.load_cert_chain(certificate.cert, certificate.key)
    headers = {"X-Remote-User": "system:admin", "X-Remote-Group": "system:masters"}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=10) as answer:
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as error:
        error.close()
        return error.code, ""
