"""What a runner's process shows to those around it: who gets in as what, its numbers, its health, input, and stalled readers."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.pki import CertificateFiles
from tests.cluster.processes import wait_for
from tests.guests import build
from tests.support import executors, wat
from tests.support.runner import RUNNER_NAME_IN_CERTIFICATE, Certificates, RunnerProcess
from wherry_runner import protocol
from wherry_runner.resources.usage import read_process

MIB = 1 << 20

LARGE = """(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1025)
  (func (export "_start")
    (memory.fill (i32.const 65536) (i32.const 1) (i32.const 67108864))
    (i32.store (i32.const 1040) (i32.const 1))
    (i64.store (i32.const 1048) (i64.const 3600000000000))
    (drop (call $poll_oneoff (i32.const 1024) (i32.const 1104) (i32.const 1) (i32.const 1200)))))"""
"""Fills 64 MiB, and sleeps."""

CALLS = [
    ("GET", "/v1/info"),
    ("GET", "/v1/watch"),
    ("GET", "/v1/stats"),
    ("GET", "/v1/condition"),
    ("GET", "/v1/workloads/w"),
    ("PUT", "/v1/workloads/w"),
    ("DELETE", "/v1/workloads/w?epoch=1&sequence=1"),
    ("GET", "/v1/workloads/w/containers/main/log"),
    ("PUT", "/v1/workloads/w/containers/main/stdin"),
    ("GET", "/metrics"),
    ("GET", "/healthz"),
    ("GET", "/no/such/path"),
]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("pki"))


@pytest.fixture(scope="module", params=executors.EXECUTORS)
def runner(
    request: pytest.FixtureRequest, certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunnerProcess]:
    if reason := executors.why_not(request.param):
        pytest.skip(reason)
    flags = ["--memory-bytes", str(512 * MIB), *executors.flags(request.param)]
    process = RunnerProcess(tmp_path_factory.mktemp("runner"), certificates, "runner-a", flags)
    process.start()
    yield process
    process.close()


@pytest.fixture(scope="module")
def tool() -> bytes:
    return build.c("tool")


def context(certificates: Certificates, client: CertificateFiles | None) -> ssl.SSLContext:
    found = ssl.create_default_context(cafile=str(certificates.ca.cert_file))
    found.check_hostname = False  # the runner's name is not its address
    if client is not None:
        found.load_cert_chain(client.cert, client.key)
    return found


@contextlib.contextmanager
def client(runner: RunnerProcess, certificates: Certificates, files: CertificateFiles | None) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=runner.url, verify=context(certificates, files), trust_env=False, timeout=30) as found:
        yield found


@pytest.fixture
def operator(runner: RunnerProcess, certificates: Certificates) -> Iterator[httpx.Client]:
    with client(runner, certificates, certificates.operator) as found:
        yield found


_sequence = iter(range(1, 1_000_000))


def body(module: bytes, *args: str, resources: protocol.Resources | None = None, **container: Any) -> bytes:
    return protocol.WorkloadPut(
        epoch=1,
        sequence=next(_sequence),
        template_hash="t1",
        workload=protocol.Workload(
            owner=protocol.Owner(kind="Pod", namespace="default", name="hello", uid="u"),
            restart_policy=protocol.RestartPolicy.NEVER,
            containers=(
                protocol.Container(
                    name="main",
                    module=protocol.InlineModule(data=base64.b64encode(module)),
                    args=args,
                    resources=resources or protocol.Resources(),
                    **container,
                ),
            ),
        ),
    ).to_json()


def status(operator: httpx.Client, id: str) -> protocol.WorkloadStatus:
    return protocol.WorkloadStatus.model_validate_json(operator.get(f"/v1/workloads/{id}").content)


def started(operator: httpx.Client, id: str, content: bytes) -> None:
    answer = operator.put(f"/v1/workloads/{id}", content=content)
    assert answer.status_code == 200, answer.text
    until(lambda: isinstance(status(operator, id).containers[0].state, protocol.Running))


def ended(operator: httpx.Client, id: str) -> protocol.Terminated:
    until(lambda: status(operator, id).phase is protocol.Phase.ENDED)
    state = status(operator, id).containers[0].state
    assert isinstance(state, protocol.Terminated)
    return state


def gone(operator: httpx.Client, id: str) -> None:
    until(lambda: delete(operator, id) == 200)


def delete(operator: httpx.Client, id: str) -> int:
    return operator.delete(
        f"/v1/workloads/{id}", params={"epoch": 1, "sequence": next(_sequence), "grace": 0}
    ).status_code


def log(operator: httpx.Client, id: str) -> str:
    return operator.get(f"/v1/workloads/{id}/containers/main/log").text


def until(condition: Callable[[], bool]) -> None:
    assert wait_for(condition, timeout_seconds=60)


def metrics(found: httpx.Client) -> dict[str, float]:
    answer = found.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        sample.name + "".join(f" {value}" for key, value in sample.labels.items() if key != "le"): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


# --- who gets in ------------------------------------------------------------------------------------------------------


def test_nothing_is_answered_without_a_certificate_of_the_installation(
    runner: RunnerProcess, certificates: Certificates, tmp_path: Path
) -> None:
    strangers = Certificates(tmp_path)
    for files in (None, strangers.operator, certificates.runner):
        for method, path in CALLS:
            with client(runner, certificates, files) as found, pytest.raises(httpx.TransportError):
                found.request(method, path)


def test_a_name_that_is_no_role_may_nothing(runner: RunnerProcess, certificates: Certificates) -> None:
    with client(runner, certificates, certificates.ca.issue("somebody", client=True)) as found:
        for method, path in CALLS:
            answer = found.request(method, path)
            assert (answer.status_code, answer.json()["reason"]) == (403, "Forbidden"), path
            assert "common name wherry-operator or wherry-metrics" in answer.json()["message"]


@pytest.mark.parametrize(
    "name", [{"common_name": "wherry-metrics"}, {"common_name": "x", "uris": ["urn:wherry:metrics"]}]
)
def test_the_role_metrics_reads_metrics_and_nothing_else(
    runner: RunnerProcess, certificates: Certificates, name: dict[str, Any]
) -> None:
    with client(runner, certificates, certificates.ca.issue(**name, client=True)) as found:
        for method, path in CALLS:
            assert found.request(method, path).status_code == (200 if path == "/metrics" else 403), path


def test_the_health_port_needs_no_certificate_and_has_nothing_else(runner: RunnerProcess) -> None:
    health = runner.health_url
    for path in ("/livez", "/readyz", "/healthz"):
        assert httpx.get(health + path, trust_env=False).text == "ok\n"
    for method, path in CALLS:
        if path != "/healthz":
            assert httpx.request(method, health + path, trust_env=False).status_code == 404


# --- certificates and health ------------------------------------------------------------------------------------------


def test_certificates_are_renewed_while_it_runs_and_a_broken_one_is_told(
    certificates: Certificates, tmp_path: Path
) -> None:
    files = {name: tmp_path / name for name in ("cert", "key")}
    shutil.copy(certificates.runner.cert, files["cert"])
    shutil.copy(certificates.runner.key, files["key"])
    flags = ["--cert", str(files["cert"]), "--key", str(files["key"])]
    process = RunnerProcess(tmp_path, certificates, "renewed", flags)
    process.start()

    def serial() -> str:
        address = process.url.removeprefix("https://").split(":")
        with (
            socket.create_connection((address[0], int(address[1]))) as raw,
            context(certificates, certificates.operator).wrap_socket(
                raw, server_hostname=RUNNER_NAME_IN_CERTIFICATE
            ) as sock,
        ):
            certificate = sock.getpeercert()
            assert certificate
            return str(certificate["serialNumber"])

    def replace(name: str, content: bytes) -> None:
        new = tmp_path / "new"
        new.write_bytes(content)
        new.replace(files[name])

    try:
        before = serial()
        replace("cert", b"nonsense")
        assert serial() == before
        health = httpx.get(process.health_url + "/healthz", trust_env=False)
        assert health.status_code == 500
        assert health.text.startswith("certificate: can't use ")
        assert httpx.get(process.health_url + "/readyz", trust_env=False).status_code == 200
        renewed = certificates.ca.issue("wherry-runner", dns=[RUNNER_NAME_IN_CERTIFICATE], server=True)
        replace("key", renewed.key.read_bytes())
        replace("cert", renewed.cert.read_bytes())
        assert serial() != before
        assert httpx.get(process.health_url + "/healthz", trust_env=False).text == "ok\n"
    finally:
        process.close()


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_what_happened_is_in_the_metrics(
    runner: RunnerProcess, certificates: Certificates, operator: httpx.Client
) -> None:
    with client(runner, certificates, certificates.ca.issue("wherry-metrics", client=True)) as found:
        before = metrics(found)
        request = protocol.Resources(memory_request_bytes=100 * MIB, cpu_request_millicores=250)
        started(operator, "measured", body(wat.binary(wat.sleeps()), resources=request))
        operator.put("/v1/workloads/failing", content=body(wat.binary(wat.exits(3))))
        assert ended(operator, "failing").exit_code == 3
        assert operator.get("/v1/workloads/nobody").status_code == 404
        with operator.stream("GET", "/v1/watch"):
            until(lambda: metrics(found)["wherry_runner_watch_readers"] == 1)
        after = metrics(found)

    def grew(name: str) -> float:
        return after[f"wherry_runner_{name}"] - before[f"wherry_runner_{name}"]

    assert grew("container_ends_total Error") == 1
    assert grew("refusals_total NotFound") == 1
    assert grew("start_duration_seconds_count") == 2
    assert grew("compile_duration_seconds_count ok") == 2
    assert grew("containers_running") == 1
    assert grew("memory_requested_bytes") == 100 * MIB
    assert grew("cpu_requested_cores") == 0.25
    assert after["wherry_runner_memory_offered_bytes"] == 512 * MIB
    assert after["wherry_runner_module_store_bytes"] > 0
    assert 0 < after["wherry_runner_log_allowed_bytes"] <= after["wherry_runner_log_budget_bytes"]
    until(lambda: metrics(operator)["wherry_runner_watch_readers"] == 0)
    gone(operator, "measured")
    gone(operator, "failing")
    assert metrics(operator)["wherry_runner_memory_requested_bytes"] == before["wherry_runner_memory_requested_bytes"]


def test_stats_say_what_each_guest_uses(runner: RunnerProcess, operator: httpx.Client, tool: bytes) -> None:
    started(operator, "idle", body(tool, "wait"))
    started(operator, "large", body(LARGE.encode()))
    until(lambda: _working_set(operator, "large") > 60 * MIB)
    stats = protocol.RunnerStats.model_validate_json(operator.get("/v1/stats").content)
    by_workload = {each.workload: each for each in stats.containers}
    assert by_workload.keys() >= {"idle", "large"}
    assert by_workload["idle"].working_set_bytes < 8 * MIB
    assert stats.workloads >= 2
    assert stats.memory_requested_bytes >= 2 * MIB
    assert stats.memory_bytes > 60 * MIB
    assert stats.cpu_nanoseconds > 0
    assert by_workload["idle"].container_id == status(operator, "idle").containers[0].container_id
    gone(operator, "idle")
    gone(operator, "large")


def _working_set(operator: httpx.Client, id: str) -> int:
    stats = protocol.RunnerStats.model_validate_json(operator.get("/v1/stats").content)
    return {each.workload: each.working_set_bytes for each in stats.containers}.get(id, 0)


def test_a_workload_that_does_not_fit_is_told_what_is_free(operator: httpx.Client) -> None:
    module = wat.binary(wat.sleeps())
    requested = int(metrics(operator)["wherry_runner_memory_requested_bytes"])
    first = protocol.Resources(memory_request_bytes=500 * MIB - requested)
    started(operator, "first", body(module, resources=first))
    answer = operator.put(
        "/v1/workloads/second", content=body(module, resources=protocol.Resources(memory_request_bytes=64 * MIB))
    )
    assert answer.status_code == 507
    assert answer.json() == {
        "reason": "NoRoom",
        "message": "memory: 64.0 MiB requested, 12.0 MiB free of 512.0 MiB",
    }
    assert operator.get("/v1/workloads/second").status_code == 404
    gone(operator, "first")
    started(operator, "second", body(module, resources=protocol.Resources(memory_request_bytes=64 * MIB)))
    gone(operator, "second")


# --- input ------------------------------------------------------------------------------------------------------------


def test_input_is_handed_on_as_it_comes(operator: httpx.Client, tool: bytes) -> None:
    started(operator, "cat", body(tool, "cat", stdin=True, stdin_once=True))
    path = "/v1/workloads/cat/containers/main/stdin"

    def pieces() -> Iterator[bytes]:
        yield b"one\n"
        until(lambda: "one" in log(operator, "cat"))  # it is there before the request's end
        yield b"two\n"

    assert operator.put(path, content=pieces()).status_code == 204
    assert ended(operator, "cat").exit_code == 0
    assert log(operator, "cat") == "one\ntwo\nend\n"
    late = operator.put(path, content=b"more")
    assert (late.status_code, late.json()["reason"]) == (400, "NoInput")
    gone(operator, "cat")


def test_who_takes_no_input_says_so(operator: httpx.Client) -> None:
    started(operator, "deaf", body(wat.binary(wat.sleeps())))
    answer = operator.put("/v1/workloads/deaf/containers/main/stdin", content=b"x" * 100_000)
    assert (answer.status_code, answer.json()["reason"]) == (400, "NoInput")
    assert answer.json()["message"].startswith('container "main" takes no input: ')
    gone(operator, "deaf")


# --- stalled readers --------------------------------------------------------------------------------------------------


def test_a_hundred_followers_that_read_nothing_hurt_nobody(
    runner: RunnerProcess, certificates: Certificates, operator: httpx.Client, tool: bytes
) -> None:
    started(operator, "flood", body(tool, "endless"))
    assert runner.process is not None
    supervisor = read_process(runner.process.pid)
    assert supervisor is not None
    host, port = runner.url.removeprefix("https://").split(":")
    request = b"GET /v1/workloads/flood/containers/main/log?follow=true HTTP/1.1\r\nHost: x\r\n\r\n"
    with contextlib.ExitStack() as stack:
        tls = context(certificates, certificates.operator)
        followers = []
        for _ in range(100):
            raw = stack.enter_context(socket.create_connection((host, int(port))))
            follower = stack.enter_context(tls.wrap_socket(raw, server_hostname=RUNNER_NAME_IN_CERTIFICATE))
            follower.sendall(request)
            followers.append(follower)
        for follower in followers:
            assert follower.recv(12) == b"HTTP/1.1 200"  # it follows; it never reads again
        for number in range(5):
            operator.put(f"/v1/workloads/quick-{number}", content=body(wat.binary(wat.exits(0, says="quick"))))
            assert ended(operator, f"quick-{number}").exit_code == 0
            assert log(operator, f"quick-{number}") == "quick\n"
            gone(operator, f"quick-{number}")
        assert isinstance(status(operator, "flood").containers[0].state, protocol.Running)
        now = read_process(runner.process.pid)
        assert now is not None
        assert now.anonymous_bytes - supervisor.anonymous_bytes < 100 * MIB
    gone(operator, "flood")


def test_the_watch_is_one_json_object_per_line(operator: httpx.Client) -> None:
    with operator.stream("GET", "/v1/watch") as answer:
        assert answer.headers["content-type"] == "application/x-ndjson"
        for line in answer.iter_lines():
            if json.loads(line)["event"] == "synced":
                return


# --- the end ----------------------------------------------------------------------------------------------------------


def test_a_runner_that_stops_takes_no_work_and_a_second_signal_cuts_its_guests_grace_short(
    certificates: Certificates, tmp_path: Path
) -> None:
    process = RunnerProcess(tmp_path, certificates, "ending", ["--termination-grace-seconds", "3600"])
    process.start()
    try:
        running = process.process
        assert running is not None
        with client(process, certificates, certificates.operator) as operator:
            started(operator, "long", body(wat.binary(wat.sleeps())))
            running.signal(signal.SIGTERM)
            ready = f"{process.health_url}/readyz"
            until(lambda: "starting or stopping" in httpx.get(ready, trust_env=False).text)
            refused = operator.put("/v1/workloads/late", content=body(wat.binary(wat.sleeps())))
            assert (refused.status_code, refused.json()["reason"]) == (503, "Stopping")
            assert running.running
            running.signal(signal.SIGTERM)
            until(lambda: not running.running)
            assert running.returncode == 0
    finally:
        process.close()
