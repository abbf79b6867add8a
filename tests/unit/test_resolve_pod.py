"""What a Pod's containers, volumes, limits and pull secrets become on the wire."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry_operator.resolve import pod as pods
from wherry_operator.resolve import pull_secrets, quantity
from wherry_operator.resolve import workload as workloads
from wherry_operator.resolve.downward import Host
from wherry_operator.resolve.objects import Found, Kind, Missing, Objects, Reference, ResolveError
from wherry_runner import protocol

Json = dict[str, Any]
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
HOST = Host(address="10.0.0.7", cpu_millicores=1500, memory_bytes=1 << 30)


def pod(container: Json | None = None, *, status: Json | None = None, **spec: Any) -> Json:
    return {
        "metadata": {"name": "hello", "namespace": "boats", "uid": "u-1"},
        "spec": {"containers": [{"name": "main", "image": "r.example/hello:v1", **(container or {})}], **spec},
        "status": status or {},
    }


def resolve(body: Json, objects: Objects | None = None) -> protocol.Workload:
    return pods.resolve(body, objects or {}, now=NOW, host=HOST, claims={"boats/data"}).workload


def refused(body: Json) -> str:
    with pytest.raises(ResolveError) as caught:
        resolve(body)
    return caught.value.message


# --- quantities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", "0"),
        (2, "2"),
        (0.5, "0.5"),
        ("500m", "0.5"),
        ("100n", "1E-7"),
        ("1.5Gi", "1610612736"),
        ("64Mi", "67108864"),
        ("12e6", "12000000"),
        ("1E3", "1000"),
        ("2E", "2E18"),
        (".5", "0.5"),
        ("1.", "1"),
    ],
)
def test_a_quantity_is_read_as_kubernetes_reads_it(text: Any, value: str) -> None:
    assert quantity.parse(text) == Decimal(value)


@pytest.mark.parametrize("text", ["", "Mi", "1 Mi", "1mi", "1KI", "0x1", "1e", "--1", "1Mi2", "1e9999"])
def test_what_is_no_quantity_is_told_as_such(text: str) -> None:
    with pytest.raises(ValueError, match="is no quantity"):
        quantity.parse(text)


@given(st.integers(0, 10**6), st.sampled_from(["", "k", "M", "Gi", "m"]))
def test_a_quantity_grows_with_its_number(number: int, suffix: str) -> None:
    assert quantity.parse(f"{number + 1}{suffix}") > quantity.parse(f"{number}{suffix}")


def test_requests_and_limits_reach_the_wire_rounded_up_and_a_limit_of_nothing_is_none() -> None:
    wanted = {"requests": {"cpu": "0.0001", "memory": "100"}, "limits": {"cpu": "1500m", "memory": "1.5Ki"}}
    (container,) = resolve(pod({"resources": wanted})).containers
    assert container.resources == protocol.Resources(
        cpu_request_millicores=1, cpu_limit_millicores=1500, memory_request_bytes=100, memory_limit_bytes=1536
    )
    assert quantity.resources({}, {"cpu": "0", "memory": 0}) == protocol.Resources() == quantity.resources({}, {})
    alone = quantity.resources({"cpu": None}, {"cpu": 1})
    assert (alone.cpu_request_millicores, alone.cpu_limit_millicores) == (1000, 1000)
    assert refused(pod({"resources": {"limits": {"memory": "much"}}})) == (
        "containers: main: resources: 'much' is no quantity; write for example 500m, 2 or 64Mi"
    )


@pytest.mark.parametrize(
    ("resource", "divisor", "expected"),
    [
        ("limits.cpu", None, "1"),
        ("limits.cpu", "1m", "250"),
        ("requests.memory", "1Mi", "64"),
        ("requests.memory", "0", str(64 << 20)),
        ("limits.memory", "1Gi", "1"),
        ("requests.cpu", "1m", "0"),
    ],
)
def test_a_container_can_be_told_its_resources(resource: str, divisor: str | None, expected: str) -> None:
    selector = {"resource": resource, **({"divisor": divisor} if divisor else {})}
    variable = {"name": "X", "valueFrom": {"resourceFieldRef": selector}}
    volume = {
        "name": "v",
        "downwardAPI": {"items": [{"path": "x", "resourceFieldRef": {**selector, "containerName": "main"}}]},
    }
    resources = {"requests": {"memory": "64Mi"}, "limits": {"cpu": "250m"}}
    made = resolve(pod({"env": [variable], "resources": resources}, volumes=[volume]))
    assert made.containers[0].env[0].value.get_secret_value() == expected
    (files,) = made.volumes
    assert isinstance(files, protocol.FilesVolume)
    assert files.files[0].data.decode() == expected


# --- containers -------------------------------------------------------------------------------------------------------


def test_init_containers_and_sidecars_come_in_their_order() -> None:
    init: list[Json] = [
        {"name": "first", "image": "r.example/a", "args": ["x"]},
        {"name": "side", "image": "r.example/b", "restartPolicy": "Always"},
    ]
    made = resolve(pod(initContainers=init))
    assert [(item.name, item.restart_policy, item.args) for item in made.init_containers] == [
        ("first", None, ("x",)),
        ("side", "Always", ()),
    ]
    init[1]["restartPolicy"] = "OnFailure"
    assert "side: restartPolicy OnFailure is not supported" in refused(pod(initContainers=init))


def test_another_image_of_an_init_container_is_another_template() -> None:
    one, other = (
        pods.resolve(pod(initContainers=[{"name": "i", "image": image}]), {}, now=NOW) for image in ("a", "b")
    )
    assert one.template_hash != other.template_hash


def test_working_directory_and_input_are_passed_on() -> None:
    (container,) = resolve(pod({"workingDir": "/data", "stdin": True, "stdinOnce": True, "tty": True})).containers
    assert (container.working_dir, container.stdin, container.stdin_once) == ("/data", True, True)


def test_a_containers_port_is_where_it_serves() -> None:
    assert resolve(pod()).containers[0].http is None
    ports = [{"name": "metrics", "containerPort": 9090}, {"name": "http", "containerPort": 8080}]
    body = pod({"ports": ports})
    assert resolve(body).containers[0].http == protocol.HttpServer(port=8080, movable=True)
    body["metadata"]["annotations"] = {"wherry.dev/instance-reuse": "100"}
    assert resolve(body).containers[0].http == protocol.HttpServer(port=8080, movable=True, instance_reuse=100)
    for wrong in ("0", "1000001", "-1", "many", ""):
        body["metadata"]["annotations"] = {"wherry.dev/instance-reuse": wrong}
        with pytest.raises(ResolveError, match=r"wherry\.dev/instance-reuse must be a number from 1 to 1000000"):
            resolve(body)


def test_a_command_may_listen_on_each_port_that_it_names() -> None:
    assert resolve(pod()).containers[0].listens == ()
    ports = [
        {"containerPort": 53, "protocol": "UDP"},
        {"containerPort": 53, "protocol": "TCP"},
        {"name": "again", "containerPort": 53},
        {"containerPort": 9090, "protocol": "SCTP"},
    ]
    assert resolve(pod({"ports": ports})).containers[0].listens == (
        protocol.ListenPort(port=53, protocol="UDP"),
        protocol.ListenPort(port=53, protocol="TCP", movable=True),
    )


@pytest.mark.parametrize(
    ("probe", "expected"),
    [
        ({"httpGet": {"port": 8080}}, protocol.Probe(port=8080, path="/")),
        ({"httpGet": {"port": "http", "path": "/ready?full", "scheme": "HTTP"}}, protocol.Probe(port=8080, path="/ready?full")),
        ({"httpGet": {"port": 1, "path": "x", "httpHeaders": [{"name": "A", "value": "b"}]}},
         protocol.Probe(port=1, path="/x", headers=(protocol.ProbeHeader(name="A", value="b"),))),
        ({"grpc": {"port": 8080}}, protocol.Probe(port=8080, grpc_service="")),
        ({"grpc": {"port": 8080, "service": "boats"}}, protocol.Probe(port=8080, grpc_service="boats")),
        ({"tcpSocket": {"port": "http"}, "periodSeconds": 3, "timeoutSeconds": 2, "initialDelaySeconds": 5,
          "successThreshold": 4, "failureThreshold": 6, "terminationGracePeriodSeconds": 7},
         protocol.Probe(port=8080, period_seconds=3, timeout_seconds=2, initial_delay_seconds=5, success_threshold=4,
                        failure_threshold=6, grace_seconds=7)),
    ],
)  # fmt: skip
def test_a_probe_reaches_the_wire_with_the_kubelets_defaults(probe: Json, expected: protocol.Probe) -> None:
    spec = {"ports": [{"name": "http", "containerPort": 8080}]}
    found = resolve(pod({**spec, "livenessProbe": probe})).containers[0]
    assert (found.startup_probe, found.liveness_probe, found.readiness_probe) == (None, expected, None)


def test_hooks_reach_the_wire() -> None:
    ports = [{"name": "web", "containerPort": 8080}]
    asked = {"port": "web", "path": "warm", "httpHeaders": [{"name": "X", "value": "y"}]}
    hooks = {"postStart": {"httpGet": asked}, "preStop": {"sleep": {"seconds": 5}}}
    found = resolve(pod({"ports": ports, "lifecycle": hooks})).containers[0]
    headers = (protocol.ProbeHeader(name="X", value="y"),)
    assert found.post_start == protocol.Hook(port=8080, path="/warm", headers=headers)
    assert found.pre_stop == protocol.Hook(sleep_seconds=5)
    for hook, message in (
        ({"httpGet": {"port": "no"}}, 'a hook names the port "no"'),
        ({}, "a hook must have httpGet"),
    ):
        with pytest.raises(ResolveError, match=message):
            resolve(pod({"lifecycle": {"preStop": hook}}))


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        ({"httpGet": {"port": "web"}}, 'a probe names the port "web", and no port has that name'),
        ({"httpGet": {"port": 0}}, "a probe's port: "),
        ({"httpGet": {"port": 1, "path": "/a b"}}, "a probe's path: "),
        ({"httpGet": {"port": 1, "httpHeaders": [{"name": "a b", "value": ""}]}}, "a probe's name: "),
        ({}, "a probe must have httpGet, tcpSocket or grpc"),
        ({"exec": {"command": ["true"]}}, "spec.containers[0].livenessProbe.exec: "),
        ({"httpGet": {"port": 1, "host": "example.com"}}, "spec.containers[0].livenessProbe.httpGet.host: "),
        ({"httpGet": {"port": 1, "scheme": "HTTPS"}}, "spec.containers[0].livenessProbe.httpGet.scheme: "),
        ({"tcpSocket": {"port": 1, "host": "10.0.0.1"}}, "spec.containers[0].livenessProbe.tcpSocket.host: "),
    ],
)
def test_a_probe_that_asks_for_something_else_is_refused_by_name(probe: Json, message: str) -> None:
    assert message in refused(pod({"livenessProbe": probe}))


def test_a_sub_path_may_name_variables_that_there_are() -> None:
    def mounts(expression: str) -> Json:
        mount = {"name": "v", "mountPath": "/v", "subPathExpr": expression}
        return pod(
            {"env": [{"name": "A", "value": "a"}], "volumeMounts": [mount]}, volumes=[{"name": "v", "emptyDir": {}}]
        )

    (mount,) = resolve(mounts("logs/$(A)/$$(A)")).containers[0].mounts
    assert mount.sub_path == "logs/a/$(A)"
    assert refused(mounts("$(B)")) == "subPathExpr of mount /v: missing value for 'B'"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"emptyDir": {}}, protocol.EmptyDirVolume(name="v")),
        (
            {"emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            protocol.EmptyDirVolume(name="v", medium="Memory", size_limit_bytes=1 << 20),
        ),
        ({"emptyDir": {"sizeLimit": "0"}}, protocol.EmptyDirVolume(name="v")),
        ({"hostPath": {"path": "/data"}}, protocol.HostPathVolume(name="v", path="/data")),
        ({"persistentVolumeClaim": {"claimName": "data"}}, protocol.ClaimVolume(name="v", claim="boats/data")),
        (
            {"persistentVolumeClaim": {"claimName": "data", "readOnly": True}},
            protocol.ClaimVolume(name="v", claim="boats/data", read_only=True),
        ),
        (
            {"hostPath": {"path": "/data", "type": "DirectoryOrCreate"}},
            protocol.HostPathVolume(name="v", path="/data", type="DirectoryOrCreate"),
        ),
    ],
)
def test_folders_that_are_no_files_reach_the_wire(source: Json, expected: protocol.Wire) -> None:
    assert resolve(pod(volumes=[{"name": "v", **source}])).volumes == (expected,)


# --- the whole --------------------------------------------------------------------------------------------------------


def test_a_deadline_counts_from_the_start_of_the_pod() -> None:
    assert resolve(pod()).deadline is None
    assert resolve(pod(activeDeadlineSeconds=3)).deadline == NOW + timedelta(seconds=3)
    started = pod(status={"startTime": "2026-01-02T03:00:00Z"}, activeDeadlineSeconds=3)
    assert resolve(started).deadline == datetime(2026, 1, 2, 3, 0, 3, tzinfo=UTC)


def test_a_deadline_that_moves_reaches_a_running_workload() -> None:
    revisions = {
        pods.resolve(pod(activeDeadlineSeconds=seconds), {}, now=NOW).content_revision for seconds in (3, 3, 4)
    }
    assert len(revisions) == 2


# --- pull secrets -----------------------------------------------------------------------------------------------------


def secret(content: Any, key: str = ".dockerconfigjson") -> Found:
    return Found({key: content if isinstance(content, bytes) else json.dumps(content).encode()})


def auth(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def credential(registry: str, username: str, password: str, token: str = "") -> protocol.RegistryCredential:
    made = {"registry": registry, "username": username, "password": password, "identity_token": token}
    return protocol.RegistryCredential.model_validate(made)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (secret({"auths": {"r.example": {"auth": auth("me:pa:ss")}}}), credential("r.example", "me", "pa:ss")),
        (secret({"auths": {"r.example": {"auth": auth("me:pass\0\0")}}}), credential("r.example", "me", "pass")),
        (
            secret({"auths": {"https://r.example/v1/": {"username": "me", "password": "pass", "email": "x"}}}),
            credential("https://r.example/v1/", "me", "pass"),
        ),
        (
            secret({"r.example:5000": {"auth": auth("me:pass")}}, ".dockercfg"),
            credential("r.example:5000", "me", "pass"),
        ),
        (secret({"auths": {"*.r.example": {"identitytoken": "t"}}}), credential("*.r.example", "", "", "t")),
        (
            secret({"auths": {"r.example": {"auth": auth("a:b"), "username": "x", "password": "y"}}}),
            credential("r.example", "a", "b"),
        ),
    ],
)
def test_a_pull_secret_is_read_in_every_form(found: Found, expected: protocol.RegistryCredential) -> None:
    made = pods.resolve(pod(imagePullSecrets=[{"name": "pull"}, {}]), {Reference(Kind.SECRET, "pull"): found}, now=NOW)
    assert (made.workload.credentials, made.complaints) == ((expected,), ())


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        (Missing('secret "pull" not found'), 'secret "pull" not found'),
        (Found({"password": b"x"}), "it has neither .dockerconfigjson nor .dockercfg"),
        (secret(b"\xff"), ".dockerconfigjson is not JSON"),
        (secret([]), ".dockerconfigjson is not a JSON object"),
        (secret({"r.example": {}}), '.dockerconfigjson has no "auths"'),
        (secret({"auths": {"r.example": {"auth": "hunter2"}}}), '"auth" of an entry is not base64 of user:password'),
        (secret({"auths": {"r.example": {"auth": auth("hunter2")}}}), '"auth" of an entry has no colon'),
    ],
)
def test_a_pull_secret_that_gives_nothing_is_complained_of_and_hinders_nothing(
    found: Found | Missing, complaint: str
) -> None:
    objects: Objects = {Reference(Kind.SECRET, "pull"): found, Reference(Kind.SECRET, "good"): secret({"auths": {}})}
    made = pods.resolve(pod(imagePullSecrets=[{"name": "pull"}, {"name": "good"}]), objects, now=NOW)
    assert made.workload.credentials == ()
    (said,) = made.complaints
    assert complaint in said
    assert "hunter2" not in said


def test_credentials_are_asked_for_and_swapped_in_place_and_never_shown() -> None:
    body = pod(imagePullSecrets=[{"name": "pull"}])
    assert pods.references(body) == pull_secrets.references(["pull"])
    one, other = (
        pods.resolve(body, {Reference(Kind.SECRET, "pull"): secret({"auths": {"r": {"auth": auth(text)}}})}, now=NOW)
        for text in ("me:hunter2", "me:hunter3")
    )
    assert one.template_hash == other.template_hash
    assert one.content_revision != other.content_revision
    assert "hunter2" not in repr(one)
    assert b"hunter2" in one.workload.to_json()


# --- the same of a WasmWorkload ---------------------------------------------------------------------------------------


def workload(**spec: Any) -> Json:
    metadata = {"name": "hello", "namespace": "boats", "uid": "u-1"}
    return {"metadata": metadata, "spec": {"module": {"image": "r.example/hello:v1"}, **spec}}


def test_a_wasmworkload_says_its_limits_and_its_fuel() -> None:
    wanted = {"requests": {"cpu": "10m"}, "limits": {"memory": "64Mi", "cpu": 1}, "fuel": 1_000_000}
    made = workloads.resolve(workload(resources=wanted, terminationGracePeriodSeconds=2), {}).workload
    assert made.containers[0].resources == protocol.Resources(
        cpu_request_millicores=10,
        cpu_limit_millicores=1000,
        memory_request_bytes=64 << 20,
        memory_limit_bytes=64 << 20,
        fuel=1_000_000,
    )
    assert made.termination_grace_period_seconds == 2


def test_a_wasmworkload_that_serves_gets_a_port_of_its_runners() -> None:
    assert workloads.resolve(workload(), {}).workload.containers[0].http is None
    assert workloads.resolve(workload(http={}), {}).workload.containers[0].http == protocol.HttpServer()
    bounds = {"maxRequests": 7, "requestTimeoutSeconds": 3, "instanceReuse": 9}
    expected = protocol.HttpServer(max_requests=7, request_seconds=3, instance_reuse=9)
    assert workloads.resolve(workload(http=bounds), {}).workload.containers[0].http == expected


def test_a_wasmworkload_takes_its_module_from_an_address() -> None:
    module = {"url": "https://modules.example/hello.wasm", "sha256": "a" * 64}
    made = workloads.resolve(workload(module=module), {}).workload.containers[0].module
    assert made == protocol.UrlModule(url=module["url"], sha256=module["sha256"])


def test_a_wasmworkload_has_empty_folders_sub_paths_and_pull_secrets() -> None:
    body = workload(
        volumes=[{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}],
        volumeMounts=[{"name": "v", "mountPath": "/v", "subPath": "a"}],
        imagePullSecrets=[{"name": "pull"}],
    )
    assert workloads.references(body) == {Reference(Kind.SECRET, "pull")}
    objects = {Reference(Kind.SECRET, "pull"): secret({"auths": {"r.example": {"auth": auth("me:pass")}}})}
    made = workloads.resolve(body, objects).workload
    assert made.volumes == (protocol.EmptyDirVolume(name="v", size_limit_bytes=1 << 20),)
    assert made.containers[0].mounts == (protocol.VolumeMount(volume="v", mount_path="/v", sub_path="a"),)
    assert made.credentials == (credential("r.example", "me", "pass"),)
