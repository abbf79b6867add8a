"""The kubelet API as its callers use it: kubectl through the real API server, and the real metrics-server."""

from __future__ import annotations

import json
import re
import ssl
import urllib.error
import urllib.request
from pathlib import Path

from kubernetes.client import Configuration
from kubernetes.stream.ws_client import STDIN_CHANNEL, WSClient

from tests.cluster.pki import CertificateFiles
from tests.support import wat
from tests.support.kube import TOLERATIONS, Workspace
from tests.support.metrics_server import MetricsServer


def _ask(space: Workspace, path: str, certificate: CertificateFiles | None) -> tuple[int, str]:
    """A request to the node itself: through the API server's proxy nobody gets to loopback."""
    url = f"https://127.0.0.1:{_port(space)}/{path}"
    context = ssl.create_default_context(cafile=str(space.cluster.ca_file))
    if certificate:
        context.load_cert_chain(certificate.cert, certificate.key)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(url, timeout=30) as answer:
            return int(answer.status), answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def _port(space: Workspace) -> int:
    node = space.get("node", space.installation.node_name)
    assert node is not None
    return int(node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"])


def _certificate(space: Workspace, user: str, *groups: str) -> CertificateFiles:
    assert space.cluster.pki is not None
    return space.cluster.pki.issue(user, groups, client=True)


def _run_flags(space: Workspace) -> list[str]:
    """What `kubectl run` needs to bring a Pod here."""
    node = {"kubernetes.io/arch": "wasm32-wasi", "kubernetes.io/hostname": space.installation.node_name}
    overrides = {"spec": {"tolerations": TOLERATIONS, "nodeSelector": node}}
    return ["--restart=Never", "--override-type=strategic", f"--overrides={json.dumps(overrides)}"]


def test_kubectl_attach_talks_with_the_guest(space: Workspace) -> None:
    image = space.push(wat.echoes())
    space.pod("talks", image, stdin=True, stdinOnce=True, spec={"restartPolicy": "Never"})
    space.wait_phase("talks", "Running")
    space.wait(lambda: space.logs("talks") == "ready\n", "it waits for input")
    done = space.cluster.kubectl("attach", "-i", "talks", "-n", space.namespace, input="one\ntwo\n", timeout=120)
    # It is one conversation: also what it said before anybody was there.
    assert done.stdout == "ready\none\ntwo\n"
    assert [line for line in done.stderr.splitlines() if line in ("one", "two")] == ["one", "two"]
    space.wait_phase("talks", "Succeeded")


def test_kubectl_attach_shows_what_comes_from_now_on(space: Workspace) -> None:
    space.pod("talks", space.push(wat.echoes(reads=1)), stdin=True, spec={"restartPolicy": "Never"})
    space.wait_phase("talks", "Running")
    space.wait(lambda: space.logs("talks") == "ready\n", "it waits for input")
    done = space.cluster.kubectl("attach", "-i", "talks", "-n", space.namespace, input="one\n", timeout=120)
    assert done.stdout == "one\n"
    space.wait_phase("talks", "Succeeded")


def test_kubectl_run_is_a_program_of_this_terminal(space: Workspace) -> None:
    image = space.push(wat.echoes("who is there?", exits=3))
    done = space.cluster.kubectl(
        "run", "guest", f"--image={image}", "--rm", "-i", *_run_flags(space), "-n", space.namespace,
        input="it is me\n", check=False, timeout=120,
    )  # fmt: skip
    assert done.stdout.startswith("who is there?\nit is me\n"), done
    assert done.returncode == 3, done
    assert space.get("pod", "guest") is None


def test_the_official_client_attaches_over_a_websocket(space: Workspace) -> None:
    """To the node itself, as API servers from Kubernetes 1.36 on may: those before translate what kubectl says to SPDY."""
    space.pod("talks", space.push(wat.echoes()), stdin=True, stdinOnce=True, spec={"restartPolicy": "Never"})
    space.wait_phase("talks", "Running")
    administrator = _certificate(space, "somebody", "system:masters")
    configuration = Configuration()
    configuration.ssl_ca_cert = str(space.cluster.ca_file)
    configuration.cert_file, configuration.key_file = str(administrator.cert), str(administrator.key)
    address = f"wss://127.0.0.1:{_port(space)}/attach/{space.namespace}/talks/main"
    client = WSClient(configuration, f"{address}?input=1&output=1&error=1", None, capture_all=True)
    try:
        client.write_stdin("one\n")
        client.write_stdin("two\n")
        client.close_channel(STDIN_CHANNEL)
        client.run_forever(timeout=60)
        assert not client.is_open(), "the node closes it at the end"
        assert client.read_stdout() == "ready\none\ntwo\n"
        assert client.read_stderr() == "one\ntwo\n"
        assert client.returncode == 0
    finally:
        client.sock.shutdown()  # close() leaves the socket open where the other side was first
    space.wait_phase("talks", "Succeeded")


def test_kubectl_logs_with_each_of_its_flags(space: Workspace) -> None:
    image = space.push(wat.exits(3, says="one\ntwo\nthree"))
    space.pod("says", image, spec={"restartPolicy": "Never"})
    space.wait_phase("says", "Failed")
    assert space.logs("says", "--tail=1") == "three\n"
    assert space.logs("says", "--tail=0") == ""
    assert space.logs("says", "--limit-bytes=6") == "one\ntw"
    assert space.logs("says", "--since=1h") == space.logs("says", "--since-time=2020-01-01T00:00:00Z")
    assert space.logs("says", "--since-time=2100-01-01T00:00:00Z") == ""
    refused = space.cluster.kubectl("logs", "says", "-c", "other", "-n", space.namespace, check=False)
    assert "container other is not valid for pod says" in refused.stderr
    refused = space.cluster.kubectl("logs", "says", "--previous", "-n", space.namespace, check=False)
    assert 'previous terminated container "main" in pod "says" not found' in refused.stderr
    # API servers have it behind a feature gate.
    administrator = _certificate(space, "somebody", "system:masters")
    path = f"containerLogs/{space.namespace}/says/main"
    assert _ask(space, f"{path}?stream=Stderr", administrator) == (200, "")
    assert _ask(space, f"{path}?stream=Stdout", administrator) == (200, "one\ntwo\nthree\n")
    space.pod("says-again", image, spec={"restartPolicy": "OnFailure"})
    space.wait(lambda: int(space.container("says-again").get("restartCount", 0)) >= 1, "it has run twice")
    stamped = space.logs("says-again", "--timestamps", "--previous").splitlines()
    assert [line.split(" ", 1)[1] for line in stamped] == ["one", "two", "three"]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", line.split()[0]) for line in stamped)


def test_an_administrator_reads_metrics_summary_and_pods(space: Workspace) -> None:
    space.pod("busy", space.push(wat.spins()), resources={"limits": {"cpu": "100m"}})
    space.wait_phase("busy", "Running")
    administrator = _certificate(space, "somebody", "system:masters")

    def ask(path: str) -> str:
        status, text = _ask(space, path, administrator)
        assert status == 200, text
        return text

    metrics = ask("metrics/resource")
    labels = f'{{container="main",namespace="{space.namespace}",pod="busy"}}'
    for name in ("cpu_usage_seconds_total", "memory_working_set_bytes", "start_time_seconds"):
        assert f"container_{name}{labels} " in metrics
    assert "\nnode_cpu_usage_seconds_total " in metrics and "\nresource_scrape_error 0\n" in metrics
    summary = json.loads(ask("stats/summary"))
    assert summary["node"]["nodeName"] == space.installation.node_name
    found = [pod for pod in summary["pods"] if pod["podRef"]["namespace"] == space.namespace]
    assert [(pod["podRef"]["name"], [each["name"] for each in pod["containers"]]) for pod in found] == [
        ("busy", ["main"])
    ]
    pods = json.loads(ask("pods"))
    assert "busy" in [each["metadata"]["name"] for each in pods["items"]]
    assert ask("healthz") == "ok"


def test_rbac_decides_for_each_subresource(space: Workspace) -> None:
    reader = _certificate(space, f"reader-{space.namespace}")
    assert _ask(space, "metrics/resource", None) == (401, "Unauthorized")
    status, text = _ask(space, "stats/summary", reader)
    assert status == 403 and text.endswith("verb=get, resource=nodes, subresource(s)=[stats])\n")
    rights = ["--verb=get", "--resource=nodes/metrics"]
    space.cluster.kubectl("create", "clusterrole", f"reader-{space.namespace}", *rights)
    space.cluster.kubectl(
        "create", "clusterrolebinding", f"reader-{space.namespace}",
        f"--clusterrole=reader-{space.namespace}", f"--user=reader-{space.namespace}",
    )  # fmt: skip
    space.wait(lambda: _ask(space, "metrics/resource", reader)[0] == 200, "the grant counts")
    assert _ask(space, "stats/summary", reader)[0] == 403
    assert _ask(space, "pods", reader)[0] == 403


def test_kubectl_top_through_metrics_server(space: Workspace, tmp_path: Path) -> None:
    space.pod("busy", space.push(wat.spins()), resources={"limits": {"cpu": "100m"}})
    space.pod("idle", space.push(wat.sleeps()))
    space.wait_phase("busy", "Running")
    space.wait_phase("idle", "Running")

    def top(*what: str) -> dict[str, list[str]]:
        text = space.cluster.kubectl("top", *what, "--no-headers", check=False).stdout
        return {words[0]: words[1:] for words in (line.split() for line in text.splitlines())}

    with MetricsServer(space.cluster, tmp_path):
        # Its first figures come after two of its rounds, of 10 s each.
        space.wait(
            lambda: top("pod", "-n", space.namespace).keys() == {"busy", "idle"}, "both Pods have figures", timeout=120
        )
        figures = top("pod", "-n", space.namespace)
        assert int(figures["busy"][0].removesuffix("m")) > 0
        assert all(each[1].endswith("Mi") for each in figures.values())
        node = top("node")[space.installation.node_name]
        assert int(node[0].removesuffix("m")) > 0 and node[2].endswith("Mi")
