"""The provider `local`, the registry and the command line, for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.errors import ClusterError, KubectlFailed, ProcessFailed
from tests.cluster.existing import ExistingCluster
from tests.cluster.local import LocalCluster
from tests.cluster.pki import CertificateAuthority
from tests.cluster.ports import Reservation
from tests.cluster.processes import Identity, Process, wait_for
from tests.cluster.record import Record
from tests.cluster.registry import Registry

REPOSITORY = Path(__file__).resolve().parents[2]

PATIENCE_SECONDS = 60.0
"""For what takes a moment, on any machine."""

NODE = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "x"}}

COMPONENTS = {"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"}


@pytest.fixture
def node_kubeconfig(cluster: LocalCluster) -> Iterator[Path]:
    cluster.apply(NODE)
    yield cluster.user_kubeconfig("system:node:x", ["system:nodes"])
    cluster.kubectl("delete", "node", "x", "--ignore-not-found")


def test_comes_up_with_all_components(cluster: LocalCluster) -> None:
    status = cluster.status()
    assert status.state == "running"
    assert status.version == "v1.35.4"
    assert set(status.components) == COMPONENTS


def test_client_and_server_report_their_version(cluster: LocalCluster) -> None:
    versions = json.loads(cluster.kubectl("version", "--output=json").stdout)
    assert versions["clientVersion"]["gitVersion"] == "v1.35.4"
    assert versions["serverVersion"]["gitVersion"] == "v1.35.4"


def test_the_default_service_account_and_root_ca_are_there_at_once(cluster: LocalCluster) -> None:
    assert cluster.get("serviceaccount", "default", "default") is not None
    root_ca = cluster.get("configmap", "kube-root-ca.crt", "default")
    assert root_ca is not None
    assert root_ca["data"]["ca.crt"] == cluster.ca_file.read_text()


def test_a_pod_for_a_node_that_is_not_there_stays_pending(cluster: LocalCluster, namespace: str) -> None:
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "waits", "namespace": namespace},
            "spec": {"containers": [{"name": "main", "image": "none.invalid/none"}]},
        }
    )
    waiting = "--for=jsonpath={.status.conditions[0].reason}=Unschedulable"
    cluster.kubectl("wait", waiting, "pod/waits", f"--namespace={namespace}", "--timeout=30s")


def test_get_of_what_is_not_there_is_none(cluster: LocalCluster) -> None:
    assert cluster.get("configmap", "no-such-thing", "default") is None


def test_apply_takes_text_and_lists(cluster: LocalCluster, namespace: str) -> None:
    def config_map(name: str) -> dict[str, object]:
        metadata = {"name": name, "namespace": namespace}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}

    cluster.apply(json.dumps(config_map("from-text")))
    cluster.apply([config_map("first"), config_map("second")])
    for name in ("from-text", "first", "second"):
        assert cluster.get("configmap", name, namespace) is not None


def test_a_refusal_is_raised_with_the_api_servers_words(cluster: LocalCluster) -> None:
    with pytest.raises(KubectlFailed, match='namespaces "absent" not found'):
        cluster.kubectl("get", "namespace", "absent")


def test_node_restriction_keeps_a_node_from_its_restricted_labels(cluster: LocalCluster, node_kubeconfig: Path) -> None:
    cluster.kubectl("label", "node", "x", "wherry.dev/allowed=yes", kubeconfig=node_kubeconfig)
    with pytest.raises(KubectlFailed, match="is not allowed to modify labels"):
        label = "node-restriction.kubernetes.io/trusted=yes"
        cluster.kubectl("label", "node", "x", label, kubeconfig=node_kubeconfig)


def test_node_restriction_holds_for_an_impersonated_node(cluster: LocalCluster, node_kubeconfig: Path) -> None:
    as_node = ["--as=system:node:x", "--as-group=system:nodes", "--as-group=system:authenticated"]
    label = "node-restriction.kubernetes.io/trusted=yes"
    with pytest.raises(KubectlFailed, match="is not allowed to modify labels"):
        cluster.kubectl("label", "node", "x", label, *as_node)


def test_a_node_cannot_delete_itself(cluster: LocalCluster, node_kubeconfig: Path) -> None:
    with pytest.raises(KubectlFailed, match="orbidden"):
        cluster.kubectl("delete", "node", "x", kubeconfig=node_kubeconfig)


def test_a_service_account_has_a_kubeconfig(cluster: LocalCluster, namespace: str) -> None:
    kubeconfig = cluster.service_account_kubeconfig(namespace, "default")
    who = cluster.kubectl("auth", "whoami", "--output=json", kubeconfig=kubeconfig).stdout
    assert json.loads(who)["status"]["userInfo"]["username"] == f"system:serviceaccount:{namespace}:default"


def test_a_user_has_a_kubeconfig(cluster: LocalCluster) -> None:
    kubeconfig = cluster.user_kubeconfig("ada", ["boatmen"])
    who = cluster.kubectl("auth", "whoami", "--output=json", kubeconfig=kubeconfig).stdout
    user = json.loads(who)["status"]["userInfo"]
    assert (user["username"], set(user["groups"])) == ("ada", {"boatmen", "system:authenticated"})


def test_the_audit_log_has_what_was_just_asked(cluster: LocalCluster, namespace: str) -> None:
    cluster.kubectl("get", "configmap", "kube-root-ca.crt", f"--namespace={namespace}", "--ignore-not-found")
    events = [json.loads(line) for line in cluster.audit_log.read_text().splitlines()]
    asked = f"/api/v1/namespaces/{namespace}/configmaps/kube-root-ca.crt"
    assert any(event["requestURI"] == asked and event["user"]["username"] == "kubernetes-admin" for event in events)


def test_aggregated_api_servers_can_check_who_calls(cluster: LocalCluster) -> None:
    config = cluster.get("configmap", "extension-apiserver-authentication", "kube-system")
    assert config is not None and cluster.front_proxy_ca is not None
    assert config["data"]["requestheader-client-ca-file"] == cluster.front_proxy_ca.cert_file.read_text()


def test_a_component_can_be_stopped_and_started_again(tmp_path: Path) -> None:
    with LocalCluster(tmp_path / "cluster") as cluster:
        cluster.kubectl("create", "namespace", "before")
        cluster.stop_component("kube-apiserver", kill=True)
        assert cluster.status().state == "broken"
        with pytest.raises(KubectlFailed):
            cluster.kubectl("get", "namespace", "before")
        cluster.start_component("kube-apiserver")
        assert cluster.get("namespace", "before") is not None
        assert cluster.status().state == "running"


def test_two_clusters_live_side_by_side(cluster: LocalCluster, tmp_path: Path) -> None:
    with LocalCluster(tmp_path / "other", name="other") as other:
        assert other.server != cluster.server
        other.kubectl("create", "namespace", "only-here")
        assert cluster.get("namespace", "only-here") is None
        pids = {name: other.process(name).pid for name in COMPONENTS}
        assert pids.keys() == COMPONENTS
    assert not (tmp_path / "other").exists()
    assert not any(Identity.of(pid) for pid in pids.values())
    assert cluster.status().state == "running"


def test_a_failed_start_says_which_component_and_keeps_its_log(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.cluster.controlplane.SERVICE_RANGE", "nonsense")
    broken = LocalCluster(tmp_path / "broken")
    words = r"kube-apiserver ended with exit code 1[\s\S]*not a valid cidr"
    with pytest.raises(ProcessFailed, match=words) as caught:
        broken.up()
    assert caught.value.log == tmp_path / "broken" / "logs" / "kube-apiserver.log"
    assert caught.value.log.exists()
    assert [each.name for each in broken.directory.iterdir()] == ["logs"]
    assert broken.status().state == "stopped"


def test_killing_the_parent_leaves_no_process(cluster: LocalCluster, tmp_path: Path) -> None:
    script = """
        import sys, threading, time
        from pathlib import Path
        from tests.cluster.local import LocalCluster
        cluster = LocalCluster(Path(sys.argv[1]))
        starter = threading.Thread(target=cluster.up)  # whose end must not end the cluster
        starter.start()
        starter.join()
        print(cluster.status().state, flush=True)
        time.sleep(3600)
    """
    directory = tmp_path / "cluster"
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(directory)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        try:
            assert parent.stdout is not None
            assert parent.stdout.readline() == "running\n"
        finally:
            parent.kill()
    record = Record.load(directory)
    assert record is not None
    assert {component.name for component in record.components} == COMPONENTS
    assert all(component.identity.wait_gone(PATIENCE_SECONDS) for component in record.components)


def test_a_process_outlives_the_thread_that_started_it(tmp_path: Path) -> None:
    started: list[Process] = []
    thread = threading.Thread(
        target=lambda: started.append(Process.start("sleep", ["sleep", "600"], log=tmp_path / "log"))
    )
    thread.start()
    thread.join()
    (process,) = started
    try:
        assert not wait_for(lambda: not process.running, timeout_seconds=0.3)
    finally:
        assert process.stop() == -signal.SIGTERM


def test_a_program_that_cannot_be_run_is_reported(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        Process.start("nothing", ["no-such-program"], log=tmp_path / "log")
    process = Process.start("nothing", [tmp_path / "absent"], log=tmp_path / "log")
    with pytest.raises(ProcessFailed, match=r"nothing ended with exit code 127[\s\S]*can't run"):
        process.wait_until(lambda: False, what="ready", timeout_seconds=PATIENCE_SECONDS)


def test_an_existing_cluster_is_used_and_left_alone(cluster: LocalCluster, tmp_path: Path) -> None:
    with ExistingCluster(cluster.kubeconfig, tmp_path / "existing") as existing:
        assert existing.status().version == "v1.35.4"
        assert existing.server == cluster.server
        assert existing.ca_file.read_text() == cluster.ca_file.read_text()
        assert existing.get("namespace", "default") is not None
        with pytest.raises(ClusterError, match="service_account_kubeconfig"):
            existing.user_kubeconfig("ada")
        kubeconfig = existing.service_account_kubeconfig("default", "default")
        existing.kubectl("auth", "whoami", kubeconfig=kubeconfig)
    assert not (tmp_path / "existing").exists()
    assert cluster.status().state == "running"


def test_an_existing_cluster_that_does_not_answer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="no kubeconfig at"):
        ExistingCluster(tmp_path / "absent", tmp_path / "existing").up()


class CommandLine:
    """`python -m tests.cluster`, with its state in a folder of the test's."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.environment = {**os.environ, "WHERRY_STATE": str(state)}

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tests.cluster", *arguments],
            cwd=REPOSITORY,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def command_line(kubernetes_binaries: Path, tmp_path: Path) -> Iterator[CommandLine]:
    run = CommandLine(tmp_path / "state")
    yield run
    run("down", "--name", "cli")


def identities_in(state: Path) -> list[Identity]:
    directory = state / "clusters" / "cli"
    record = Record.load(directory)
    assert record is not None
    keeper = Identity(**json.loads((directory / "keeper.json").read_text()))
    return [keeper, *(component.identity for component in record.components)]


def test_the_command_line_leaves_a_cluster_running_then_nothing_behind(command_line: CommandLine) -> None:
    up = command_line("up", "--name", "cli")
    assert up.returncode == 0, up.stderr
    for component in COMPONENTS:
        assert f"starting {component}" in up.stderr
    identities = identities_in(command_line.state)
    assert len(identities) == 5 and all(each.alive for each in identities)

    status = command_line("status", "--name", "cli")
    assert status.returncode == 0 and "cluster cli (local): running" in status.stdout, status
    kubeconfig = Path(command_line("kubeconfig", "--name", "cli").stdout.strip())
    assert kubeconfig.is_file()
    kubectl = command_line("kubectl", "--name", "cli", "get", "namespace", "default", "--output=name")
    assert kubectl.stdout == "namespace/default\n", kubectl
    again = command_line("up", "--name", "cli")
    assert again.returncode == 0 and "is up already" in again.stderr, again
    assert identities_in(command_line.state) == identities

    down = command_line("down", "--name", "cli")
    assert down.returncode == 0, down.stderr
    assert not any(each.alive for each in identities)
    assert not command_line.state.exists()
    assert command_line("status", "--name", "cli").returncode == 1


def test_after_a_killed_keeper_down_still_leaves_nothing_behind(command_line: CommandLine) -> None:
    up = command_line("up", "--name", "cli")
    assert up.returncode == 0, up.stderr
    keeper, *components = identities_in(command_line.state)
    keeper.signal(signal.SIGKILL)
    assert all(each.wait_gone(PATIENCE_SECONDS) for each in [keeper, *components])
    status = command_line("status", "--name", "cli")
    assert status.returncode == 1 and "stopped" in status.stdout, status
    assert command_line("down", "--name", "cli").returncode == 0
    assert not command_line.state.exists()


def test_the_command_line_refuses_a_name_that_is_a_path(command_line: CommandLine) -> None:
    refused = command_line("up", "--name", "../elsewhere")
    assert refused.returncode == 1 and "is no name for a cluster" in refused.stderr


def test_a_registry_is_open_to_all(registry: Registry) -> None:
    assert registry.url == f"http://{registry.address}"
    assert registry.ping() == 200


def test_a_registry_with_tls_and_passwords_wants_credentials(tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path / "pki", "registry-ca")
    certificate = authority.issue("registry", ips=["127.0.0.1"], server=True)
    with Registry(tmp_path / "registry", certificate, {"ada": "s3cret:with-colon"}, authority.cert_file) as registry:
        assert registry.url.startswith("https://")
        assert registry.ping() == 401
        assert registry.ping("ada") == 200
        registry.users["ada"] = "wrong"
        assert registry.ping("ada") == 401
        registry.ca_file = None  # the system's CAs know nothing of ours; only the check is skipped
        assert registry.ping() == 401


def test_a_registry_comes_back_at_its_address(tmp_path: Path) -> None:
    with Registry(tmp_path / "registry") as registry:
        address = registry.address
        registry.stop()
        assert registry.ping() == 0
        registry.start()
        assert registry.address == address
        assert registry.ping() == 200


def test_a_reserved_port_is_given_to_nobody_else() -> None:
    reservations = [Reservation() for _ in range(50)]
    try:
        assert len({each.port for each in reservations}) == 50
    finally:
        for each in reservations:
            each.release()


def test_keys_are_for_the_owner_only(tmp_path: Path) -> None:
    authority = CertificateAuthority(tmp_path, "ca")
    files = authority.issue("somebody", client=True)
    for path in (authority.files.key, files.key, files.cert):
        assert path.stat().st_mode & 0o777 == 0o600
