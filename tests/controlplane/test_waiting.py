"""Operators as in Pods, on a real API server: one leads, another waits with next to nothing imported, and takes over."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cluster.local import LocalCluster
from tests.cluster.pki import CertificateFiles
from tests.cluster.processes import Process
from tests.cluster.provider import Cluster
from tests.cluster.registry import Registry
from tests.controlplane.conftest import MIRRORED
from tests.support import wat
from tests.support.installation import Installation, apart, folder_of
from tests.support.kube import PATIENCE_SECONDS, Workspace
from tests.support.ports import free_port
from tests.support.runner import healthy

NAME = "waiting"
"""Of this installation's node and class."""

LEASE = f"wherry-operator-{NAME}"
GROWN = "becoming a whole operator: "
PASSED_ON = "connections are passed on to"


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest, cluster: LocalCluster, registry: Registry) -> Iterator[Installation]:
    """An operator that leads, beside a runner."""
    with folder_of(NAME, request.session) as directory:
        running = Installation(
            cluster,
            directory,
            node_name=NAME,
            class_name=NAME,
            namespace="wherry-waiting",
            runners=("waiting-a",),
            registry_mirrors={MIRRORED: registry.url},
            operator_flags=["--resync-seconds", "5"],
            serves_logs=False,
            in_pods=True,
        )
        with apart(running):
            yield running


@pytest.fixture
def space(pair: Installation, registry: Registry, namespace: str, tmp_path: Path) -> Iterator[Workspace]:
    yield Workspace(pair, registry, namespace, tmp_path)
    if pair.operator is None:
        pair.start_operator()


def grown(process: Process) -> bool:
    """Whether it is a whole operator: by the libraries that it has in memory, not by what it says."""
    return "site-packages" in Path(f"/proc/{process.pid}/maps").read_text()


def holder(space: Workspace) -> str:
    found = space.cluster.get("lease", LEASE, space.installation.namespace) or {"spec": {}}
    return str(found["spec"].get("holderIdentity", ""))


def talks(space: Workspace, name: str = "talks") -> None:
    space.workload(name, className=NAME, module={"inline": wat.sleeps("awake")})
    space.kubectl("wait", "--for=condition=Ready", f"ww/{name}", "--timeout=60s")


def log_of(space: Workspace, port: int, name: str = "talks") -> str:
    """A WasmWorkload's log, as the API server asks for it at an operator's port."""
    cluster = space.cluster
    assert cluster.front_proxy_ca is not None
    proxy = cluster.front_proxy_ca.issue("front-proxy-client", client=True)
    path = f"/apis/subresources.wherry.dev/v1alpha1/namespaces/{space.namespace}/wasmworkloads/{name}/log"
    return ask(cluster, port, path, proxy)


def ask(cluster: Cluster, port: int, path: str, certificate: CertificateFiles) -> str:
    headers = {"X-Remote-User": "system:admin", "X-Remote-Group": "system:masters"}
    request = urllib.request.Request(f"https://127.0.0.1:{port}{path}", headers=headers)
    handler = urllib.request.HTTPSHandler(context=context_of(cluster, certificate))
    with urllib.request.build_opener(urllib.request.ProxyHandler({}), handler).open(request, timeout=30) as answer:
        return str(answer.read().decode())


def context_of(cluster: Cluster, certificate: CertificateFiles) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(cluster.ca_file))
    context.load_cert_chain(certificate.cert, certificate.key)
    return context


def plain(address: str, path: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{address}{path}", timeout=10) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return error.read().decode()


def misplace_leader(space: Workspace, port: int) -> None:
    """Have the Lease say that its holder is where nobody listens, until that renews it."""
    said = json.dumps({"holder": holder(space), "address": "127.0.0.1", "kubelet": port, "api": port})
    patch = {"metadata": {"annotations": {"wherry.dev/leader": said}}}
    where = ["-n", space.installation.namespace, "--type=merge", "-p", json.dumps(patch)]
    space.cluster.kubectl("patch", "lease", LEASE, *where)


def test_who_waits_stays_small_and_its_ports_lead_to_the_leader(space: Workspace, pair: Installation) -> None:
    cluster = space.cluster
    assert cluster.pki is not None
    admin = cluster.pki.issue("somebody", ["system:masters"], client=True)
    talks(space)
    space.pod("ticks", space.push(wat.sleeps("tick")), spec={"nodeName": NAME})  # which is cordoned
    space.kubectl("wait", "--for=condition=Ready", "pod/ticks", "--timeout=60s")
    with pair.second_operator() as second:
        assert log_of(space, second.api_port) == "awake\n"
        container = (space.get("pod", "ticks") or {})["spec"]["containers"][0]["name"]
        path = f"/containerLogs/{space.namespace}/ticks/{container}"
        assert ask(cluster, second.kubelet_port, path, admin) == "tick\n"  # a whole follower knows no Pods
        ready = plain(second.health_address, "/readyz")
        assert ready == "[+]api ok\n[+]leader ok\nreadyz check passed\n"
        assert plain(second.health_address, "/livez") == "[+]loop ok\nlivez check passed\n"
        told = plain(second.health_address, "/metrics").splitlines()
        assert "wherry_operator_leader 0.0" in told
        assert not grown(second.process)
        assert pair.operator is not None and grown(pair.operator)
        assert holder(space) == f"operator-{NAME}"


def test_who_waits_takes_over_from_a_leader_that_was_killed(space: Workspace, pair: Installation) -> None:
    talks(space)
    before = (space.get("ww", "talks") or {})["status"]["instances"]
    with pair.second_operator() as second:
        assert not grown(second.process)
        pair.kill_operator()
        killed = time.monotonic()
        space.workload("later", className=NAME, module={"inline": wat.exits(0)}, restartPolicy="Never")
        # Nobody leads now, and it is asked nevertheless: once it answers, it knows what is on the runners.
        space.wait(lambda: log_of(space, second.api_port) == "awake\n", "the log is there")
        print(f"the leader killed, a log was read through who waits after {time.monotonic() - killed:.1f} s")
        space.wait(lambda: holder(space) == "second", "the second leads")
        print(f"… and it led after {time.monotonic() - killed:.1f} s")
        space.wait_phase("later", "Succeeded", kind="wasmworkload")
        print(f"… and a new object had run after {time.monotonic() - killed:.1f} s")
        second.wait_ready()
        assert (space.get("ww", "talks") or {})["status"]["instances"] == before


def test_who_has_just_become_whole_denies_no_log_before_it_has_heard_the_runners(
    space: Workspace, pair: Installation
) -> None:
    talks(space)
    with pair.second_operator() as second, ThreadPoolExecutor() as threads:
        pair.kill_operator()
        (runner,) = pair.runners.values()
        assert runner.process is not None
        runner.process.signal(signal.SIGSTOP)
        try:
            asked = threads.submit(log_of, space, second.api_port)
            listening = "aggregated API on port"
            space.wait(lambda: listening in second.process.log.read_text().rpartition(GROWN)[2], "it serves by itself")
            time.sleep(0.5)  # far more than its answer would take
        finally:
            runner.process.signal(signal.SIGCONT)
        assert asked.result(timeout=PATIENCE_SECONDS) == "awake\n"


def test_who_waits_takes_over_from_one_that_was_killed_though_nobody_calls(
    space: Workspace, pair: Installation
) -> None:
    with pair.second_operator() as second:
        assert not grown(second.process)
        pair.kill_operator()
        killed = time.monotonic()
        space.workload("later", className=NAME, module={"inline": wat.exits(0)}, restartPolicy="Never")
        space.wait(lambda: holder(space) == "second", "the second leads")
        print(f"the leader killed, who waited led after {time.monotonic() - killed:.1f} s")
        space.wait_phase("later", "Succeeded", kind="wasmworkload")
        assert "has not renewed the Lease" in second.process.log.read_text()


def test_who_waits_takes_over_from_a_leader_that_leaves(space: Workspace, pair: Installation) -> None:
    with pair.second_operator() as second:
        assert not grown(second.process)
        pair.stop_operator()
        left = time.monotonic()
        space.wait(lambda: "leading as second" in second.process.log.read_text().rpartition("passed on")[2], "it leads")
        print(f"the leader has left, who waited led after {time.monotonic() - left:.1f} s")
        space.workload("later", className=NAME, module={"inline": wat.exits(0)}, restartPolicy="Never")
        space.wait_phase("later", "Succeeded", kind="wasmworkload")


def test_a_leader_that_is_not_reached_is_stood_in_for_and_nothing_that_was_passed_on_is_cut(
    space: Workspace, pair: Installation
) -> None:
    cluster = space.cluster
    assert cluster.front_proxy_ca is not None
    proxy = cluster.front_proxy_ca.issue("front-proxy-client", client=True)
    talks(space)
    space.workload("speaks", className=NAME, module={"inline": wat.sleeps("first")})
    space.kubectl("wait", "--for=condition=Ready", "ww/speaks", "--timeout=60s")
    api = f"/apis/subresources.wherry.dev/v1alpha1/namespaces/{space.namespace}/wasmworkloads/speaks/log?follow=true"
    with pair.second_operator() as second:
        raw = socket.create_connection(("127.0.0.1", second.api_port), timeout=60)
        with context_of(cluster, proxy).wrap_socket(raw, server_hostname="127.0.0.1") as stream:
            head = f"GET {api} HTTP/1.1\r\nHost: wherry\r\nX-Remote-User: system:admin\r\nX-Remote-Group: system:masters\r\n\r\n"
            stream.sendall(head.encode())
            heard = b""
            while b"first" not in heard:
                heard += stream.recv(4096)
            assert not grown(second.process)
            nowhere = free_port()

            def stood_in() -> bool:
                misplace_leader(space, nowhere)
                time.sleep(1.0)  # until who waits has looked
                return log_of(space, second.api_port) == "awake\n" and grown(second.process)

            space.wait(stood_in, "it serves logs by itself")
            assert "the leader is not reached at 127.0.0.1" in second.process.log.read_text()
            assert holder(space) == f"operator-{NAME}"
            # What ends the stream now is its leader's end of it, so it is still there.
            space.kubectl("delete", "ww", "speaks", "--wait=false")
            while b"0\r\n\r\n" not in heard:
                more = stream.recv(4096)
                assert more, heard
                heard += more
        assert b" 200 OK" in heard


def test_of_two_that_begin_together_only_one_becomes_whole(space: Workspace, pair: Installation) -> None:
    pair.stop_operator()
    space.cluster.kubectl("delete", "lease", LEASE, "-n", pair.namespace)
    first = threading.Thread(target=lambda: pair.start_operator(wait=False))
    first.start()
    with pair.second_operator() as second:
        first.join()
        assert pair.operator is not None
        both = (pair.operator, second.process)
        space.wait(lambda: holder(space) != "" and any(map(grown, both)), "one leads")
        talks(space)
        assert sorted(map(grown, both)) == [False, True]
        assert log_of(space, second.api_port) == log_of(space, pair.api_port) == "awake\n"
        pair.stop_operator()


def test_who_is_told_to_end_before_it_leads_gives_up_what_it_claimed(space: Workspace, pair: Installation) -> None:
    pair.stop_operator()
    assert holder(space) == ""
    pair.start_operator(wait=False)
    assert pair.operator is not None
    log, seen = pair.operator.log, pair.operator.log.read_text().count(GROWN)
    space.wait(lambda: log.read_text().count(GROWN) > seen or holder(space) != "", "it has claimed the Lease")
    pair.stop_operator()
    assert holder(space) == ""


def test_so_it_is_with_the_first_two_of_an_installation_that_makes_its_certificates(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    name = "waiting-first"
    made = Installation(
        cluster, tmp_path / name, node_name=name, class_name=name, namespace=f"{name}-system", runners=("absent",),
        serves_logs=False, brings_certificate=False, brings_runners_certificates=False, in_pods=True,
    )  # fmt: skip
    try:
        made.install()
        assert made.service_account
        made.start_operator(wait=False)
        with made.second_operator() as second:
            assert made.operator is not None
            both = (made.operator, second.process)
            made.operator.wait_until(
                lambda: healthy(f"http://{made.health_address}/readyz") and any(map(grown, both)),
                what="ready",
                timeout_seconds=PATIENCE_SECONDS,
            )
            assert sorted(map(grown, both)) == [False, True]
            assert plain(made.health_address, "/readyz").endswith("readyz check passed\n")
    finally:
        made.close()
        made.remove_cluster_wide()
        cluster.kubectl("delete", "namespace", made.namespace, "--wait=false")


def test_who_could_not_work_ends_at_once_also_where_another_leads(space: Workspace, pair: Installation) -> None:
    usual = list(pair.operator_flags)
    pair.operator_flags += ["--runner-key", "/nowhere/tls.key"]
    try:
        with pytest.raises(Exception, match="nowhere"), pair.second_operator():
            pass
    finally:
        pair.operator_flags = usual


def test_a_token_that_was_renewed_is_used(space: Workspace, pair: Installation) -> None:
    """A token that has ended is refused: who waits leaves that to a whole operator, so it must not come to it."""
    with pair.second_operator() as second:
        file = pair.service_account / "token"
        before = file.read_text()
        made = space.cluster.kubectl("create", "token", "wherry-operator", "-n", pair.namespace).stdout.strip()
        assert made != before
        file.write_text(made)
        talks(space)
        assert log_of(space, second.api_port) == "awake\n"
        assert not grown(second.process)
        file.write_text("not a token")
        space.wait(lambda: GROWN in second.process.log.read_text().rpartition(PASSED_ON)[2], "it was refused")
        file.write_text(made)
