"""From a Pod or a WasmWorkload and what it refers to, to what a runner gets; or to words that tell what is wrong."""

from __future__ import annotations

import base64
import copy
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wherry_operator.models import Object
from wherry_operator.resolve import pod as pods
from wherry_operator.resolve import workload as workloads
from wherry_operator.resolve.downward import Host
from wherry_operator.resolve.environment import LARGEST, arguments, expand
from wherry_operator.resolve.objects import Found, Kind, Missing, Objects, Reference, ResolveError, found
from wherry_operator.resolve.revision import Resolved
from wherry_runner import protocol

Json = dict[str, Any]

CONFIG = Reference(Kind.CONFIG_MAP, "config")
SECRET = Reference(Kind.SECRET, "secret")


def b64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


OBJECTS: Objects = {
    CONFIG: found(
        Kind.CONFIG_MAP,
        {"data": {"colour": "red", "size": "$(colour)"}, "binaryData": {"hello.wasm": b64(b"\0asm"), "text": b64("x")}},
    ),
    SECRET: found(Kind.SECRET, {"data": {"password": b64("hunter2"), "raw": b64(b"\xff\xfe")}}),
    Reference(Kind.CONFIG_MAP, "gone"): Missing('configmap "gone" not found'),
    Reference(Kind.SECRET, "gone"): Missing('secret "gone" not found'),
    Reference(Kind.CONFIG_MAP, "locked"): Missing('configmap "locked" can\'t be read', absent=False),
}


def pod(container: Json | None = None, **spec: Any) -> Json:
    return {
        "metadata": {
            "name": "hello",
            "namespace": "boats",
            "uid": "u-1",
            "labels": {"app": "hello", "b/c": "d"},
            "annotations": {"note": 'say "hé"\nagain'},
        },
        "spec": {
            "containers": [{"name": "main", "image": "r.example/hello:v1", **(container or {})}],
            "nodeName": "wherry",
            "serviceAccountName": "default",
            **spec,
        },
    }


def workload(**spec: Any) -> Json:
    return {
        "metadata": {"name": "hello", "namespace": "boats", "uid": "u-1", "labels": {"app": "hello"}},
        "spec": {"className": "wherry", "module": {"image": "r.example/hello:v1"}, **spec},
    }


NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def resolve_pod(body: Object, objects: Objects, *, host: Host | None = None) -> Resolved:
    return pods.resolve(body, objects, now=NOW, host=host)


def first(resolved: Resolved) -> protocol.Container:
    return resolved.workload.containers[0]


def env(resolved: Resolved) -> dict[str, str]:
    return {item.name: item.value.get_secret_value() for item in first(resolved).env}


def resolved_env(*variables: Json, env_from: list[Json] | None = None) -> dict[str, str]:
    return env(
        resolve_pod(
            pod({"env": list(variables), "envFrom": env_from}),
            OBJECTS,
            host=Host(address="10.0.0.7", cpu_millicores=1500, memory_bytes=1 << 30),
        )
    )


def error(call: Any) -> ResolveError:
    with pytest.raises(ResolveError) as caught:
        call()
    return caught.value


def key_ref(kind: str, name: str, key: str, **more: Any) -> Json:
    return {"name": "X", "valueFrom": {f"{kind}KeyRef": {"name": name, "key": key, **more}}}


def field_ref(path: str) -> Json:
    return {"name": "X", "valueFrom": {"fieldRef": {"fieldPath": path}}}


# --- environment ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ({"name": "X", "value": "1"}, "1"),
        ({"name": "X"}, ""),
        ({"name": "X", "value": ""}, ""),
        (key_ref("configMap", "config", "colour"), "red"),
        (key_ref("configMap", "config", "size"), "$(colour)"),  # what is referred to is not expanded
        (key_ref("secret", "secret", "password"), "hunter2"),
        (field_ref("metadata.name"), "hello"),
        (field_ref("metadata.namespace"), "boats"),
        (field_ref("metadata.uid"), "u-1"),
        (field_ref("metadata.labels['app']"), "hello"),
        (field_ref("metadata.labels['b/c']"), "d"),
        (field_ref("metadata.labels['none']"), ""),
        (field_ref("metadata.annotations['note']"), 'say "hé"\nagain'),
        (field_ref("spec.nodeName"), "wherry"),
        (field_ref("spec.serviceAccountName"), "default"),
        (field_ref("status.hostIP"), "10.0.0.7"),
        (field_ref("status.podIP"), ""),
    ],
)
def test_a_variable_of_every_supported_kind(variable: Json, expected: str) -> None:
    assert resolved_env(variable) == {"X": expected}


@pytest.mark.parametrize(
    "variable",
    [
        key_ref("configMap", "gone", "colour", optional=True),
        key_ref("configMap", "config", "none", optional=True),
        key_ref("secret", "gone", "password", optional=True),
        key_ref("secret", "secret", "none", optional=True),
    ],
)
def test_an_optional_variable_that_is_not_there_is_left_out(variable: Json) -> None:
    assert resolved_env(variable) == {}
    assert resolved_env({"name": "X", "value": "before"}, variable) == {"X": "before"}


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        (key_ref("configMap", "gone", "colour"), 'configmap "gone" not found'),
        (key_ref("secret", "gone", "password"), 'secret "gone" not found'),
        (key_ref("configMap", "config", "none"), "couldn't find key none in ConfigMap boats/config"),
        (key_ref("secret", "secret", "none"), "couldn't find key none in Secret boats/secret"),
        (key_ref("configMap", "config", "text"), "couldn't find key text in ConfigMap boats/config"),
        (key_ref("configMap", "locked", "a", optional=True), 'configmap "locked" can\'t be read'),
        (
            key_ref("secret", "secret", "raw"),
            "key raw of Secret boats/secret is not UTF-8, which WASI's environment must be; mount it as a file",
        ),
        (field_ref("status.phase"), "fieldRef status.phase is not supported for WebAssembly workloads"),
        (
            {"name": "X", "valueFrom": {"resourceFieldRef": {"resource": "limits.ephemeral-storage"}}},
            (
                "resourceFieldRef limits.ephemeral-storage is not supported for WebAssembly workloads; "
                "limits and requests of cpu and memory are"
            ),
        ),
        (
            {"name": "X", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "p", "key": "k"}}},
            "env X: this kind of valueFrom is not supported",
        ),
    ],
)
def test_what_is_missing_is_told_in_the_kubelets_words(variable: Json, message: str) -> None:
    failed = error(lambda: resolved_env(variable))
    assert (failed.message, failed.reason, failed.event) == (message, "CreateContainerConfigError", "Failed")


def test_env_from_takes_every_key_with_its_prefix_and_env_wins() -> None:
    both: list[Json] = [
        {"configMapRef": {"name": "config"}},
        {"prefix": "P_", "configMapRef": {"name": "config"}},
        {"secretRef": {"name": "gone", "optional": True}},
    ]
    # Not binaryData: a kubelet makes no variables of it.
    assert resolved_env(env_from=both) == {
        "P_colour": "red",
        "P_size": "$(colour)",
        "colour": "red",
        "size": "$(colour)",
    }
    assert resolved_env({"name": "colour", "value": "was $(colour)"}, env_from=both)["colour"] == "was red"
    assert error(lambda: resolved_env(env_from=[{"secretRef": {"name": "gone"}}])).message == 'secret "gone" not found'


def test_a_later_source_wins_over_an_earlier_one() -> None:
    objects = {Reference(Kind.CONFIG_MAP, name): Found({"a": name.encode()}) for name in ("one", "two")}
    body = pod({"envFrom": [{"configMapRef": {"name": name}} for name in ("one", "two")]})
    assert env(resolve_pod(body, objects)) == {"a": "two"}


def test_variables_are_sorted_by_name_after_they_were_expanded_in_declared_order() -> None:
    found_env = resolved_env(
        {"name": "Z", "value": "1"},
        {"name": "A", "value": "$(Z)$(B)"},
        {"name": "B", "value": "2"},
        {"name": "Z", "value": "$(Z)3"},
    )
    assert list(found_env.items()) == [("A", "1$(B)"), ("B", "2"), ("Z", "13")]


EXPANSIONS = [
    # Those of third_party/forked/golang/expansion/expand_test.go.
    ("$(VAR_A)", "A"),
    ("___$(VAR_B)___", "___B___"),
    ("$(VAR_A)_$(VAR_B)_$(VAR_A)", "A_B_A"),
    ("$$(VAR_B)_$(VAR_A)", "$(VAR_B)_A"),
    ("$$(VAR_A)_$$(VAR_B)", "$(VAR_A)_$(VAR_B)"),
    ("f000-$$VAR_A", "f000-$VAR_A"),
    ("foo\\$(VAR_C)bar", "foo\\Cbar"),
    ("$(VAR_A$(VAR_B))", "$(VAR_A$(VAR_B))"),
    ("$(VAR_A$(VAR_B)", "$(VAR_A$(VAR_B)"),
    ("$(VAR_REF)", "$(VAR_A)"),
    ("%%$(VAR_REF)--$(VAR_REF)%%", "%%$(VAR_A)--$(VAR_A)%%"),
    ("foo$(VAR_EMPTY)bar", "foobar"),
    ("foo$(VAR_Awhoops!", "foo$(VAR_Awhoops!"),
    ("f00__(VAR_A)__", "f00__(VAR_A)__"),
    ("$?_boo_$!", "$?_boo_$!"),
    ("$VAR_A", "$VAR_A"),
    ("$(VAR_DNE)", "$(VAR_DNE)"),
    ("$$$$$$(BIG_MONEY)", "$$$(BIG_MONEY)"),
    ("$$$$$$(VAR_A)", "$$$(VAR_A)"),
    ("$$$$$$$(GOOD_ODDS)", "$$$$(GOOD_ODDS)"),
    ("$$$$$$$(VAR_A)", "$$$A"),
    ("$VAR_A)", "$VAR_A)"),
    ("${VAR_A}", "${VAR_A}"),
    ("$(VAR_B)_______$(A", "B_______$(A"),
    ("$(VAR_C)_______$(", "C_______$("),
    ("$(VAR_A)foobarzab$", "Afoobarzab$"),
    ("--$($($($($--", "--$($($($($--"),
    ("$($($($($--foo$(", "$($($($($--foo$("),
    ("$(foo$$var)", "$(foo$$var)"),
    ("\n", "\n"),
]
VALUES = {"VAR_A": "A", "VAR_B": "B", "VAR_C": "C", "VAR_REF": "$(VAR_A)", "VAR_EMPTY": "", "A(": "?"}


@pytest.mark.parametrize(("text", "expected"), EXPANSIONS)
def test_expansion(text: str, expected: str) -> None:
    assert expand(text, VALUES, where="x") == expected


def kubernetes_expand(text: str, values: dict[str, str]) -> str:
    """A transcription of expand.go."""
    result, checkpoint, cursor = "", 0, 0
    while cursor < len(text):
        if text[cursor] == "$" and cursor + 1 < len(text):
            result += text[checkpoint:cursor]
            rest = text[cursor + 1 :]
            if rest[0] == "$":
                read, advance = "$", 1
            elif rest[0] == "(":
                close = rest.find(")", 1)
                if close > 0:
                    name = rest[1:close]
                    read, advance = values.get(name, f"$({name})"), close + 1
                else:
                    read, advance = "$(", 1
            else:
                read, advance = "$" + rest[0], 1
            result += read
            cursor += advance
            checkpoint = cursor + 1
        cursor += 1
    return result + text[checkpoint:]


@given(st.text("$()A x", max_size=14))
def test_expansion_is_that_of_kubernetes(text: str) -> None:
    values = {"A": "1", "AA": "$(A)", "": "empty", "A(": "2"}
    assert expand(text, values, where="x") == kubernetes_expand(text, values)


def test_what_would_grow_beyond_any_measure_is_refused_before_it_does() -> None:
    doubles = [{"name": "V0", "value": "x" * 1000}]
    doubles += [{"name": f"V{n}", "value": f"$(V{n - 1})$(V{n - 1})"} for n in range(1, 60)]
    with pytest.raises(ResolveError, match=r"^env V11: variables and arguments are larger than 2 MiB"):
        resolve_pod(pod({"env": doubles}), {})
    many = [{"name": f"V{n}", "value": "x" * 1000} for n in range(3000)]
    with pytest.raises(ResolveError, match=r"^env V2097: "):
        resolve_pod(pod({"env": many}), {})
    half = {"V": "x" * (LARGEST // 2)}
    assert [len(text) for text in arguments(["$(V)", "$(V)"], half, where="args")] == [LARGEST // 2] * 2
    for texts in (["$(V)$(V)$(V)"], ["$(V)", "$(V)", "x"], ["$(V)"] * 10**6):
        with pytest.raises(ResolveError, match=r"^args: "):
            arguments(texts, half, where="args")


def test_command_and_args_are_expanded_with_the_final_values() -> None:
    body = pod({"env": [{"name": "A", "value": "1"}], "command": ["run", "$(A)"], "args": ["$(A)$(B)", "$$(A)"]})
    container = first(resolve_pod(body, OBJECTS))
    assert (container.command, container.args) == (("run", "1"), ("1$(B)", "$(A)"))


@pytest.mark.parametrize(("annotation", "expected"), [(None, None), ("auto", "auto"), ("none", "none")])
def test_argv0_can_be_chosen_by_annotation(annotation: str | None, expected: str | None) -> None:
    for body, resolve in ((pod(), resolve_pod), (workload(), workloads.resolve)):
        if annotation is not None:
            body["metadata"]["annotations"] = {"wherry.dev/argv0": annotation}
        assert first(resolve(body, OBJECTS)).argv0 == expected
        body["metadata"]["annotations"] = {"wherry.dev/argv0": "maybe"}
        assert "wherry.dev/argv0 must be auto or none" in error(lambda b=body, r=resolve: r(b, OBJECTS)).message


# --- volumes ----------------------------------------------------------------------------------------------------------


def volume(source: Json) -> protocol.FilesVolume:
    made = resolve_pod(pod(volumes=[{"name": "v", **source}]), OBJECTS).workload.volumes[0]
    assert isinstance(made, protocol.FilesVolume)
    return made


def contents(made: protocol.Volume) -> dict[str, tuple[bytes, int]]:
    assert isinstance(made, protocol.FilesVolume)
    return {file.path: (file.data, file.mode) for file in made.files}


@pytest.mark.parametrize(
    ("source", "expected", "secret"),
    [
        pytest.param(
            {"secret": {"secretName": "secret"}},
            {"password": (b"hunter2", 0o644), "raw": (b"\xff\xfe", 0o644)},
            True,
            id="a Secret's every key",
        ),
        pytest.param(
            {"configMap": {"name": "config", "items": [{"key": "hello.wasm", "path": "d/h.wasm"}]}},
            {"d/h.wasm": (b"\0asm", 0o644)},
            False,
            id="one key at a path",
        ),
        pytest.param(
            {
                "configMap": {
                    "name": "config",
                    "defaultMode": 0o400,
                    "items": [{"key": "colour", "path": "a"}, {"key": "colour", "path": "b", "mode": 0o755}],
                }
            },
            {"a": (b"red", 0o400), "b": (b"red", 0o755)},
            False,
            id="modes",
        ),
        pytest.param({"configMap": {"name": "gone", "optional": True}}, {}, False, id="optional and missing"),
        pytest.param(
            {"secret": {"secretName": "secret", "optional": True, "items": [{"key": "none", "path": "a"}]}},
            {},
            True,
            id="optional and without the key",
        ),
        pytest.param(
            {
                "downwardAPI": {
                    "defaultMode": 0o444,
                    "items": [
                        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                        {"path": "notes", "fieldRef": {"fieldPath": "metadata.annotations"}, "mode": 0o600},
                    ],
                }
            },
            {
                "labels": (b'app="hello"\nb/c="d"', 0o444),
                "notes": ('note="say \\"hé\\"\\nagain"'.encode(), 0o600),
            },
            False,
            id="downward API",
        ),
        pytest.param(
            {
                "projected": {
                    "defaultMode": 0o440,
                    "sources": [
                        {"configMap": {"name": "config", "items": [{"key": "colour", "path": "c"}]}},
                        {"secret": {"name": "secret", "items": [{"key": "password", "path": "p", "mode": 0o400}]}},
                        {"downwardAPI": {"items": [{"path": "n", "fieldRef": {"fieldPath": "metadata.name"}}]}},
                    ],
                }
            },
            {"c": (b"red", 0o440), "p": (b"hunter2", 0o400), "n": (b"hello", 0o440)},
            True,
            id="projected",
        ),
    ],
)
def test_the_files_of_a_volume(source: Json, expected: dict[str, tuple[bytes, int]], secret: bool) -> None:
    made = volume(source)
    assert contents(made) == expected
    assert made.secret is secret


def test_the_token_that_admission_adds_to_every_pod_is_left_out_and_one_that_was_asked_for_is_refused() -> None:
    sources = [
        {"serviceAccountToken": {"path": "token"}},
        {"configMap": {"name": "config", "items": [{"key": "colour", "path": "ca.crt"}]}},
    ]
    added = pod(volumes=[{"name": "kube-api-access-x7x2p", "projected": {"sources": sources}}])
    assert set(contents(resolve_pod(added, OBJECTS).workload.volumes[0])) == {"ca.crt"}
    failed = error(lambda: volume({"projected": {"sources": sources}}))
    assert "serviceAccountToken is not given to modules" in failed.message


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"secret": {"secretName": "gone"}}, 'secret "gone" not found'),
        ({"configMap": {"name": "gone"}}, 'configmap "gone" not found'),
        ({"configMap": {"name": "locked", "optional": True}}, 'configmap "locked" can\'t be read'),
        (
            {"configMap": {"name": "config", "items": [{"key": "none", "path": "a"}]}},
            "configmap references non-existent config key: none",
        ),
        (
            {"secret": {"secretName": "secret", "items": [{"key": "none", "path": "a"}]}},
            "references non-existent secret key: none",
        ),
        (
            {"emptyDir": {"medium": "HugePages"}},
            'medium "HugePages" is not supported; "" (disk) and Memory are',
        ),
        (
            {"hostPath": {"path": "/dev/null", "type": "CharDevice"}},
            'hostPath type "CharDevice" is not supported; a module sees folders: Directory, DirectoryOrCreate',
        ),
        (
            {"projected": {"sources": [{"clusterTrustBundle": {"path": "a"}}]}},
            "this kind of projected source is not supported",
        ),
    ],
)
def test_a_volume_that_can_not_be_filled_fails_its_mount_in_the_kubelets_words(source: Json, message: str) -> None:
    failed = error(lambda: volume(source))
    assert failed.message == f'MountVolume.SetUp failed for volume "v" : {message}'
    assert (failed.reason, failed.event) == ("ContainerCreating", "FailedMount")


def test_every_object_that_is_needed_is_named_as_a_reference() -> None:
    body = pod(
        {
            "env": [key_ref("configMap", "a", "k"), key_ref("secret", "b", "k"), field_ref("metadata.name")],
            "envFrom": [{"configMapRef": {"name": "c"}}, {"secretRef": {"name": "d"}}],
        },
        volumes=[
            {"name": "1", "configMap": {"name": "e"}},
            {"name": "2", "secret": {"secretName": "f"}},
            {"name": "3", "projected": {"sources": [{"configMap": {"name": "g"}}, {"secret": {"name": "h"}}]}},
            {"name": "4", "downwardAPI": {"items": []}},
        ],
    )
    configs, secrets = (
        {item.name for item in pods.references(body) if item.kind is kind} for kind in (Kind.CONFIG_MAP, Kind.SECRET)
    )
    assert (configs, secrets) == ({"a", "c", "e", "g"}, {"b", "d", "f", "h"})
    needed = workload(
        module={"configMapKeyRef": {"name": "m", "key": "k"}},
        env=[key_ref("secret", "s", "k")],
        volumes=[{"name": "v", "configMap": {"name": "c"}}],
    )
    assert {item.name for item in workloads.references(needed)} == {"m", "s", "c"}


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("container", "spec", "field"),
    [
        (
            {},
            {"initContainers": [{"name": "i", "image": "x", "lifecycle": {"preStop": {"exec": {}}}}]},
            "spec.initContainers[0].lifecycle.preStop.exec",
        ),
        ({}, {"hostNetwork": True}, "spec.hostNetwork"),
        ({}, {"hostPID": True}, "spec.hostPID"),
        ({}, {"resourceClaims": [{"name": "gpu"}]}, "spec.resourceClaims"),
        ({"livenessProbe": {"exec": {}}}, {}, "spec.containers[0].livenessProbe.exec"),
        ({"readinessProbe": {"exec": {}}}, {}, "spec.containers[0].readinessProbe.exec"),
        ({"startupProbe": {"exec": {}}}, {}, "spec.containers[0].startupProbe.exec"),
        ({"lifecycle": {"postStart": {"exec": {}}}}, {}, "spec.containers[0].lifecycle.postStart.exec"),
        ({}, {"volumes": [{"name": "w", "emptyDir": {}}, {"name": "v", "nfs": {}}]}, "spec.volumes[1].nfs"),
    ],
)
def test_what_a_module_can_not_have_is_refused_by_the_name_of_its_field(
    container: Json, spec: Json, field: str
) -> None:
    body = pod(container, **spec)
    (refused,) = pods.refusals(body)
    assert refused.startswith(f"{field}: ")
    assert error(lambda: resolve_pod(body, OBJECTS)).message == refused


def test_all_refusals_are_told_at_once_and_an_absent_or_empty_field_is_none() -> None:
    init = [{"name": "i", "startupProbe": {}, "volumeDevices": [{}]}]
    assert len(pods.refusals(pod({"livenessProbe": {"exec": {}}}, hostNetwork=True, initContainers=init))) == 3
    assert pods.refusals(pod({"livenessProbe": None}, initContainers=[], hostNetwork=False)) == []


# --- the whole --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given_grace", "expected"), [(None, 30), (0, 0), (5, 5)])
def test_a_pod_becomes_a_workload(given_grace: int | None, expected: int) -> None:
    body = pod(
        {
            "imagePullPolicy": "Always",
            "volumeMounts": [{"name": "v", "mountPath": "/v", "readOnly": True}],
        },
        restartPolicy="OnFailure",
        terminationGracePeriodSeconds=given_grace,
        volumes=[{"name": "v", "configMap": {"name": "config"}}],
    )
    made = resolve_pod(body, OBJECTS).workload
    assert made.owner == protocol.Owner(kind="Pod", namespace="boats", name="hello", uid="u-1")
    assert (made.restart_policy, made.termination_grace_period_seconds) == (protocol.RestartPolicy.ON_FAILURE, expected)
    (container,) = made.containers
    assert container.module == protocol.ImageModule(
        reference="r.example/hello:v1", pull_policy=protocol.PullPolicy.ALWAYS
    )
    assert container.mounts == (protocol.VolumeMount(volume="v", mount_path="/v", read_only=True),)


def changed(objects: Objects, reference: Reference, data: dict[str, bytes]) -> Objects:
    return {**objects, reference: Found(data)}


@pytest.mark.parametrize(
    ("body", "reference", "data"),
    [
        (pod({"env": [key_ref("configMap", "config", "colour")]}), CONFIG, {"colour": b"blue"}),
        (pod({"envFrom": [{"secretRef": {"name": "s"}}]}), Reference(Kind.SECRET, "s"), {"a": b"2"}),
        (pod(volumes=[{"name": "v", "configMap": {"name": "config"}}]), CONFIG, {"colour": b"blue"}),
        (workload(env=[key_ref("configMap", "config", "colour")]), CONFIG, {"colour": b"blue"}),
        (workload(volumes=[{"name": "v", "configMap": {"name": "config"}}]), CONFIG, {"colour": b"blue"}),
        (
            workload(module={"configMapKeyRef": {"name": "config", "key": "hello.wasm"}}),
            CONFIG,
            {"hello.wasm": b"\0asm2"},
        ),
    ],
)
def test_another_content_of_an_object_changes_the_content_revision_and_never_the_template(
    body: Json, reference: Reference, data: dict[str, bytes]
) -> None:
    resolve: Any = workloads.resolve if "module" in body["spec"] else resolve_pod
    objects = {**OBJECTS, Reference(Kind.SECRET, "s"): Found({"a": b"1"})}
    before, again = (resolve(copy.deepcopy(body), objects) for _ in range(2))
    after = resolve(body, changed(objects, reference, data))
    assert before == again
    assert after.template_hash == before.template_hash
    assert after.content_revision != before.content_revision


def test_of_a_pod_only_another_image_is_another_template() -> None:
    before = resolve_pod(pod(), OBJECTS)
    other = pod()
    other["metadata"]["labels"] = {"app": "other"}
    other["metadata"]["annotations"] = {"a": "b"}
    assert resolve_pod(other, OBJECTS).template_hash == before.template_hash
    assert resolve_pod(pod({"image": "r.example/hello:v2"}), OBJECTS).template_hash != before.template_hash


def test_of_a_wasmworkload_any_other_spec_is_another_template() -> None:
    before = workloads.resolve(workload(), OBJECTS)
    assert workloads.resolve(workload(args=["a"]), OBJECTS).template_hash != before.template_hash
    reordered = workload()
    reordered["spec"] = dict(reversed(reordered["spec"].items()))
    assert workloads.resolve(reordered, OBJECTS) == before


@pytest.mark.parametrize(
    "change",
    [
        {"replicas": 7},
        {"suspend": True},
        {"strategy": {"type": "Recreate"}},
        {"minReadySeconds": 5},
        {"progressDeadlineSeconds": 60},
        {"revisionHistoryLimit": 3},
        {"completions": 20},
        {"backoffLimit": 3},
        {"activeDeadlineSeconds": 30},
        {"ttlSecondsAfterFinished": 30},
        {"className": "other"},
    ],
)
def test_how_many_and_how_long_is_no_part_of_the_template(change: Json) -> None:
    before = workloads.resolve(workload(), OBJECTS)
    assert workloads.resolve(workload(**change), OBJECTS).template_hash == before.template_hash


def test_the_probes_of_a_server_ask_its_own_port_with_the_kubelets_defaults() -> None:
    probes = {
        "startupProbe": {"tcpSocket": {}, "failureThreshold": 30, "terminationGracePeriodSeconds": 5},
        "livenessProbe": {"httpGet": {}, "periodSeconds": 5},
        "readinessProbe": {
            "httpGet": {"path": "ready", "httpHeaders": [{"name": "A", "value": "b"}]},
            "successThreshold": 2,
        },
    }
    (container,) = workloads.resolve(workload(http={}, **probes), OBJECTS).workload.containers
    assert container.startup_probe == protocol.Probe(failure_threshold=30, grace_seconds=5)
    assert container.liveness_probe == protocol.Probe(path="/", period_seconds=5)
    headers = (protocol.ProbeHeader(name="A", value="b"),)
    assert container.readiness_probe == protocol.Probe(path="/ready", headers=headers, success_threshold=2)
    with pytest.raises(ResolveError, match=r"spec\.livenessProbe: a probe's path"):
        workloads.resolve(workload(http={}, livenessProbe={"httpGet": {"path": "/a b"}}), OBJECTS)


def test_which_service_leads_there_is_no_part_of_what_is_run_either() -> None:
    before = workloads.resolve(workload(http={"maxRequests": 5}), OBJECTS)
    after = workloads.resolve(workload(http={"maxRequests": 5, "port": 81, "service": {"name": "a"}}), OBJECTS)
    assert after == before
    assert workloads.resolve(workload(http={"maxRequests": 6}), OBJECTS).template_hash != before.template_hash


def test_a_revision_has_the_same_name_in_every_version() -> None:
    """Another one, and an upgrade of the operator would replace every instance of every WasmWorkload."""
    spec = {"className": "wherry", "module": {"image": "r.example/hello:v1"}, "replicas": 3, "args": ["ä", "b"]}
    defaults = {"restartPolicy": "Always", "terminationGracePeriodSeconds": 30}
    assert workloads.revision_of({"spec": {**spec, **defaults}}) == "dbf9803af3"


def test_every_instance_learns_its_own_name_and_index() -> None:
    body = workload(env=[field_ref("instance.index"), {**field_ref("instance.name"), "name": "ME"}], args=["$(X)"])
    made = [
        workloads.resolve(body, OBJECTS, instance=workloads.Identity(name=f"hello-r-{index}", index=index))
        for index in (0, 11)
    ]
    assert [env(each) for each in made] == [{"ME": "hello-r-0", "X": "0"}, {"ME": "hello-r-11", "X": "11"}]
    assert [first(each).args for each in made] == [("0",), ("11",)]


def test_a_deadline_is_swapped_in_place() -> None:
    before, after = (workloads.resolve(workload(), OBJECTS, deadline=deadline) for deadline in (None, NOW))
    assert after.workload.deadline == NOW
    assert before.template_hash == after.template_hash
    assert before.content_revision != after.content_revision


def test_nothing_of_a_secret_is_in_a_representation() -> None:
    resolved = resolve_pod(pod({"env": [key_ref("secret", "secret", "password")]}), OBJECTS)
    assert env(resolved) == {"X": "hunter2"}
    assert "hunter2" not in repr(resolved)
    assert "hunter2" not in repr(OBJECTS)


# --- WasmWorkloads ----------------------------------------------------------------------------------------------------

WAT = "(module)"


@pytest.mark.parametrize(
    ("module", "data", "source"),
    [
        ({"inline": WAT}, WAT.encode(), "spec.module.inline"),
        ({"inline": f"\n  {WAT}"}, f"\n  {WAT}".encode(), "spec.module.inline"),
        ({"inline": f";; hello\n{WAT}"}, f";; hello\n{WAT}".encode(), "spec.module.inline"),
        ({"inline": b64(b"\0asm\1\0\0\0")}, b"\0asm\1\0\0\0", "spec.module.inline"),
        ({"inline": "AGFz\nbQEA\n  AAA=\n"}, b"\0asm\1\0\0\0", "spec.module.inline"),
        (
            {"configMapKeyRef": {"name": "config", "key": "hello.wasm"}},
            b"\0asm",
            'ConfigMap "config", key "hello.wasm"',
        ),
        ({"configMapKeyRef": {"name": "config", "key": "colour"}}, b"red", 'ConfigMap "config", key "colour"'),
    ],
)
def test_a_module_that_is_carried_along(module: Json, data: bytes, source: str) -> None:
    found_module = first(workloads.resolve(workload(module=module), OBJECTS)).module
    assert isinstance(found_module, protocol.InlineModule)
    assert (found_module.data, found_module.source) == (data, source)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ({"inline": "hello!"}, "spec.module.inline is neither WebAssembly's text format"),
        ({"inline": "AGFzb"}, "spec.module.inline is neither"),
        (
            {"configMapKeyRef": {"name": "gone", "key": "a"}},
            'configmap "gone" not found; spec.module.configMapKeyRef needs it',
        ),
        ({"configMapKeyRef": {"name": "config", "key": "none"}}, "couldn't find key none in ConfigMap boats/config; "),
        ({}, "spec.module: give exactly one of"),
    ],
)
def test_a_module_that_can_not_be_had_says_what_to_do(module: Json, message: str) -> None:
    assert error(lambda: workloads.resolve(workload(module=module), OBJECTS)).message.startswith(message)


@pytest.mark.parametrize(
    ("image", "policy", "expected"),
    [
        ("hello", None, "Always"),
        ("hello:latest", None, "Always"),
        ("localhost:5000/hello", None, "Always"),
        ("hello:v1", None, "IfNotPresent"),
        ("localhost:5000/a/hello:v1", None, "IfNotPresent"),
        ("hello@sha256:" + "0" * 64, None, "IfNotPresent"),
        ("hello:latest@sha256:" + "0" * 64, None, "IfNotPresent"),
        ("hello:v1", "Never", "Never"),
        ("hello", "IfNotPresent", "IfNotPresent"),
    ],
)
def test_the_pull_policy_of_an_image_is_kubernetes_default(image: str, policy: str | None, expected: str) -> None:
    made = first(workloads.resolve(workload(module={"image": image}, imagePullPolicy=policy), OBJECTS)).module
    assert isinstance(made, protocol.ImageModule)
    assert (made.reference, made.pull_policy) == (image, expected)


def test_a_wasmworkload_becomes_a_workload_of_one_container() -> None:
    made = workloads.resolve(
        workload(
            restartPolicy="Never",
            args=["$(N)"],
            env=[{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            volumes=[{"name": "v", "secret": {"secretName": "secret", "defaultMode": 0o400}}],
            volumeMounts=[{"name": "v", "mountPath": "/v"}],
        ),
        OBJECTS,
    ).workload
    (container,) = made.containers
    assert (made.owner.kind, made.restart_policy, container.name, container.args) == (
        "WasmWorkload",
        "Never",
        "module",
        ("hello",),
    )
    assert container.mounts == (protocol.VolumeMount(volume="v", mount_path="/v", read_only=False),)
    (folder,) = made.volumes
    assert isinstance(folder, protocol.FilesVolume)
    assert (folder.secret, {file.mode for file in folder.files}) == (True, {0o400})


@pytest.mark.parametrize(
    "path", ["spec.nodeName", "status.hostIP", "metadata.labels", "metadata.namez", "spec.className"]
)
def test_a_wasmworkload_has_no_other_fields_than_its_metadata(path: str) -> None:
    failed = error(lambda: workloads.resolve(workload(env=[field_ref(path)]), OBJECTS))
    assert failed.message == f"fieldRef {path} is not supported for WebAssembly workloads"


def test_objects_are_read_as_the_api_server_gives_them() -> None:
    body = {"data": {"a": "1"}, "binaryData": {"b": b64(b"\xff")}, "immutable": True}
    assert found(Kind.CONFIG_MAP, body) == Found({"a": b"1", "b": b"\xff"}, immutable=True, binary=frozenset({"b"}))
    assert found(Kind.SECRET, {"data": {"a": b64("1")}, "type": "Opaque"}) == Found({"a": b"1"})
    assert found(Kind.CONFIG_MAP, {"data": None}) == Found({})
