"""WasmWorkloads on a real API server."""

from __future__ import annotations

import base64
import json
import re

from tests.support import wat
from tests.support.installation import ROOT
from tests.support.kstatus import verdict
from tests.support.kube import Json, Workspace, conditions, workload


def _status(space: Workspace, name: str) -> Json:
    found: Json = (space.get("wasmworkload", name) or {}).get("status", {})
    return found


def _log(space: Workspace, name: str) -> str:
    """What the module wrote, from the runner's file: kubectl has no way to it yet."""
    body = space.get("wasmworkload", name)
    assert body is not None
    state = space.installation.runners["runner-a"].state
    files = sorted((state / "logs").glob(f"{body['metadata']['uid']}*/module/*.log"))
    lines = files[-1].read_text().splitlines() if files else []
    return "".join(line.split(" ", 3)[3] + "\n" for line in lines)


def test_the_columns_tell_how_it_is(space: Workspace) -> None:
    space.workload("steady", module={"image": space.push(wat.sleeps())})
    space.kubectl("wait", "--for=condition=Ready", "ww/steady", "--timeout=60s")
    header, row = space.kubectl("get", "wasmworkloads").splitlines()
    assert header.split() == ["NAME", "READY", "STATUS", "RESTARTS", "NODE", "AGE"]
    assert row.split()[:5] == ["steady", "1/1", "Running", "0", "node-of-runner-a"]
    wide = space.kubectl("get", "ww", "-o", "wide").splitlines()[0].split()
    assert wide[-3:] == ["MODULE", "DIGEST", "EXIT"]
    status = _status(space, "steady")
    assert status["moduleDigest"].startswith("sha256:")
    assert status["observedGeneration"] == 1
    assert status["replicas"] == status["readyReplicas"] == 1
    assert "steady" in space.kubectl("get", "all")


def test_inline_text_inline_binary_and_a_config_map_key_run_alike(space: Workspace) -> None:
    space.installation.grant_references(space.namespace)
    text = wat.exits(0, says="same")
    binary = base64.b64encode(wat.binary(text)).decode()
    space.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "modules"},
            "data": {"text.wat": text},
            "binaryData": {"binary.wasm": binary},
        }
    )
    sources: dict[str, Json] = {
        "inline-text": {"inline": text},
        "inline-binary": {"inline": binary},
        "key-text": {"configMapKeyRef": {"name": "modules", "key": "text.wat"}},
        "key-binary": {"configMapKeyRef": {"name": "modules", "key": "binary.wasm"}},
    }
    for name, module in sources.items():
        space.workload(name, module=module, restartPolicy="Never")
    for name in sources:
        body = space.wait_phase(name, "Succeeded", kind="wasmworkload")
        assert conditions(body)["Complete"]["status"] == "True"
        assert _log(space, name) == "same\n"


def test_even_a_flash_was_ready_first(space: Workspace) -> None:
    for number in range(3):
        space.workload(f"flash-{number}", module={"inline": wat.exits(0)})
        space.kubectl("wait", "--for=condition=Ready", f"ww/flash-{number}", "--timeout=60s")


def test_arguments_environment_and_files_reach_the_module(space: Workspace) -> None:
    space.installation.grant_references(space.namespace)
    space.kubectl("create", "configmap", "settings", "--from-literal=bacon_ipsum.txt=from a file", "--from-literal=A=1")
    space.kubectl("create", "secret", "generic", "hidden", "--from-literal=PASSWORD=s3cret")
    space.workload(
        "told",
        module={"image": space.push_file(ROOT / "demos" / "hello-world-rust" / "hello.wasm")},
        restartPolicy="Never",
        args=["to $(WHO)"],
        envFrom=[{"secretRef": {"name": "hidden"}}],
        env=[
            {"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "A"}}},
        ],
        volumes=[{"name": "all", "configMap": {"name": "settings"}}],
        volumeMounts=[{"name": "all", "mountPath": "/mnt/storage"}],
    )
    space.wait_phase("told", "Succeeded", kind="wasmworkload")
    lines = _log(space, "told").splitlines()
    assert lines[2:5] == ["A=1", "PASSWORD=s3cret", "WHO=told"]
    assert lines[5].startswith('Args are: ["') and lines[5].endswith('", "to told"]')
    assert lines[-1] == "from a file"


def test_a_changed_spec_is_another_life(space: Workspace) -> None:
    space.workload("changes", module={"inline": wat.exits(0, says="first")}, restartPolicy="Never")
    space.wait_phase("changes", "Succeeded", kind="wasmworkload")
    space.workload("changes", module={"inline": wat.exits(4, says="second")}, restartPolicy="Never")
    space.wait(lambda: _status(space, "changes").get("observedGeneration") == 2, "the change was seen")
    space.wait_phase("changes", "Failed", kind="wasmworkload")
    assert _status(space, "changes")["instances"][0]["exitCode"] == 4
    assert _log(space, "changes") == "second\n"


def test_deleting_stops_the_module_at_once(space: Workspace) -> None:
    space.workload("goes", module={"inline": wat.spins()})
    space.kubectl("wait", "--for=condition=Ready", "ww/goes", "--timeout=60s")
    uid = (space.get("ww", "goes") or {})["metadata"]["uid"]
    space.kubectl("delete", "ww", "goes", "--timeout=30s")
    runner = space.installation.runners["runner-a"]
    space.wait(lambda: not runner.traces(uid), "the runner has nothing of it left")


def test_files_follow_their_config_map_while_the_module_runs(space: Workspace) -> None:
    space.installation.grant_references(space.namespace)
    space.kubectl("create", "configmap", "settings", "--from-literal=value=old")
    mounts = [{"name": "settings", "mountPath": "/etc/settings"}]
    volumes = [{"name": "settings", "configMap": {"name": "settings"}}]
    space.workload("reads", module={"inline": wat.sleeps()}, volumes=volumes, volumeMounts=mounts)
    space.pod("reads", space.push(wat.sleeps()), spec={"volumes": volumes}, volumeMounts=mounts)
    for kind in ("ww", "pod"):
        space.kubectl("wait", "--for=condition=Ready", f"{kind}/reads", "--timeout=60s")
    space.kubectl("patch", "configmap", "settings", "-p", '{"data":{"value":"new"}}')
    runner = space.installation.runners["runner-a"]
    for kind in ("ww", "pod"):
        uid = (space.get(kind, "reads") or {})["metadata"]["uid"]

        def value(uid: str = uid) -> str:
            return "".join(runner.contents(f"volumes/{uid}*/files/settings/value"))

        space.wait(lambda: value() == "new", f"the {kind}'s file has changed", timeout=120)
    assert _status(space, "reads")["restarts"] == 0
    assert space.container("reads")["restartCount"] == 0


def test_another_class_is_not_ours(space: Workspace) -> None:
    space.workload("theirs", module={"inline": wat.exits(0)}, className="somebody-else")
    space.workload("ours", module={"inline": wat.exits(0)}, restartPolicy="Never")
    space.wait_phase("ours", "Succeeded", kind="wasmworkload")
    assert (space.get("ww", "theirs") or {})["status"] == {"phase": "Pending", "observedGeneration": -1}, (
        "the CRD's own"
    )
    changed = space.cluster.kubectl(
        "patch",
        "ww",
        "theirs",
        "-n",
        space.namespace,
        "--type=merge",
        "-p",
        '{"spec":{"className":"wherry"}}',
        check=False,
    )
    assert "className can't be changed" in changed.stderr


def test_explain_reads_like_documentation(space: Workspace) -> None:
    text = space.cluster.kubectl("explain", "wasmworkload.spec.module").stdout
    assert "Exactly one of image, url (with sha256), configMapKeyRef and inline" in " ".join(text.split())


def test_server_side_apply_merges_lists_by_key(space: Workspace) -> None:
    body = {
        "apiVersion": "wherry.dev/v1alpha1",
        "kind": "WasmWorkload",
        "metadata": {"name": "merged"},
        "spec": {"module": {"inline": wat.sleeps()}, "env": [{"name": "A", "value": "1"}]},
    }
    other = {**body, "spec": {"env": [{"name": "B", "value": "2"}]}}
    for manager, each in (("first", body), ("second", other)):
        space.cluster.kubectl(
            "apply",
            "--server-side",
            f"--field-manager={manager}",
            "-n",
            space.namespace,
            "-f",
            "-",
            input=json.dumps(each),
        )
    env = (space.get("ww", "merged") or {})["spec"]["env"]
    assert {item["name"] for item in env} == {"A", "B"}


def test_lists_of_several_owners_are_merged_by_their_keys(space: Workspace) -> None:
    empty = {"name": "a", "emptyDir": {}}
    first = {
        "module": {"inline": wat.sleeps()},
        "volumes": [empty],
        "volumeMounts": [{"name": "a", "mountPath": "/a"}],
    }
    second = {"volumes": [{**empty, "name": "b"}], "volumeMounts": [{"name": "b", "mountPath": "/b"}]}
    for manager, spec in (("first", first), ("second", second)):
        space.cluster.kubectl(
            "apply", "--server-side", f"--field-manager={manager}", "-n", space.namespace, "-f", "-",
            input=json.dumps(workload("lists", **spec)),
        )  # fmt: skip
    found = (space.get("ww", "lists") or {})["spec"]
    assert [item["name"] for item in found["volumes"]] == ["a", "b"]
    assert [item["mountPath"] for item in found["volumeMounts"]] == ["/a", "/b"]


def test_an_unknown_field_is_refused(space: Workspace) -> None:
    refused = space.try_apply(workload("strict", module={"inline": wat.sleeps()}, replica=3))
    assert refused.returncode != 0
    assert 'unknown field "spec.replica"' in refused.stderr


def test_one_that_another_holds_is_terminating_and_runs_no_more(space: Workspace) -> None:
    held = workload("held", module={"inline": wat.sleeps()})
    held["metadata"]["finalizers"] = ["example.com/hold"]
    space.apply(held)
    space.kubectl("wait", "--for=condition=Ready", "ww/held", "--timeout=60s")
    uid = (space.get("ww", "held") or {})["metadata"]["uid"]
    space.kubectl("delete", "ww", "held", "--wait=false")
    space.wait_phase("held", "Terminating", kind="ww")
    body = space.get("ww", "held")
    assert body is not None
    assert verdict(body) == "Terminating"
    runner = space.installation.runners["runner-a"]
    space.wait(lambda: not runner.contents(f"logs/{uid}*/module/*.log"), "it does not run any more")
    space.kubectl("patch", "ww", "held", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    space.wait(lambda: space.get("ww", "held") is None, "it is gone")


def test_the_documentations_examples_are_accepted(space: Workspace) -> None:
    text = (ROOT / "docs" / "wasmworkload.md").read_text()
    found = [block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if block.startswith("apiVersion")]
    assert len(found) >= 2
    for block in found:
        space.cluster.kubectl("apply", "--dry-run=server", "-n", space.namespace, "-f", "-", input=block)
