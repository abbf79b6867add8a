"""Each row of "bad input": the kubelet's reason, a message that says what to do, and everything else goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import wat
from tests.support.kube import Workspace, workload


class _Door:
    """A Pod or a WasmWorkload: the same trouble, told at the same place for each."""

    def __init__(self, space: Workspace, kind: str) -> None:
        self.space = space
        self.kind = kind

    def run(self, image: str, *, env: list[dict[str, Any]] | None = None) -> None:
        if self.kind == "pod":
            self.space.pod("bad", image, spec={"restartPolicy": "Never"}, **({"env": env} if env else {}))
        else:
            spec: dict[str, Any] = {"module": {"image": image}, "restartPolicy": "Never"}
            self.space.workload("bad", **spec, **({"env": env} if env else {}))

    def state(self) -> tuple[str, str]:
        """Reason and message."""
        if self.kind == "pod":
            state = self.space.container("bad").get("state", {})
            found = state.get("waiting") or state.get("terminated") or {}
        else:
            found = self.space.instance("bad")
        return found.get("reason", ""), found.get("message", "")

    def exit_code(self) -> int | None:
        if self.kind == "pod":
            code = self.space.container("bad").get("state", {}).get("terminated", {}).get("exitCode")
        else:
            code = self.space.instance("bad").get("exitCode")
        return None if code is None else int(code)

    def expect(self, reasons: set[str], *words: str) -> None:
        seen = ("", "")

        def waits() -> bool:
            nonlocal seen
            seen = self.state()  # looked at once: the next state may follow at once
            return seen[0] in reasons

        self.space.wait(waits, f"{self.kind} waits for one of {reasons}")
        message = seen[1]
        for word in words:
            assert word in message, message
        # kubectl describe breaks no lines: what the on-call engineer reads there is the same.
        self.space.wait(lambda: words[0] in self.space.kubectl("describe", self.kind, "bad"), "describe shows it")

    def expect_pull_error(self, *words: str) -> None:
        self.expect({"ErrImagePull"}, *words)
        self.expect({"ImagePullBackOff"}, *words)


@pytest.fixture(params=["pod", "wasmworkload"])
def door(request: pytest.FixtureRequest, space: Workspace) -> _Door:
    return _Door(space, request.param)


def test_a_file_that_is_no_webassembly(door: _Door, tmp_path: Path) -> None:
    file = tmp_path / "script.sh"
    file.write_text("#!/bin/sh\necho hello\n")
    door.run(door.space.push_file(file))
    door.expect_pull_error("not WebAssembly")


def test_a_layer_whose_digest_does_not_match(door: _Door) -> None:
    image = _with_blob(door.space, lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]))
    door.run(image)
    door.expect_pull_error("digest mismatch")


def test_a_truncated_layer(door: _Door) -> None:
    image = _with_blob(door.space, lambda raw: raw[: len(raw) // 2])
    door.run(image)
    door.expect_pull_error("of")


def test_an_unknown_image(door: _Door) -> None:
    door.run("registry.example/no/such/module:v1")
    door.expect_pull_error("not found")


def test_a_missing_config_map_key_which_appears_later(door: _Door) -> None:
    space = door.space
    space.installation.grant_references(space.namespace)
    space.kubectl("create", "configmap", "settings", "--from-literal=other=1")
    image = space.push(wat.exits(0))
    door.run(image, env=[{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "wanted"}}}])
    door.expect({"CreateContainerConfigError"}, "couldn't find key wanted in ConfigMap", "settings")
    space.kubectl("patch", "configmap", "settings", "-p", '{"data":{"wanted":"2"}}')
    # Within its minute: the object was read, and is read again once it may have changed.
    space.wait(lambda: door.exit_code() == 0, "it runs once the key is there", timeout=120)


def test_a_missing_config_map(door: _Door) -> None:
    door.space.installation.grant_references(door.space.namespace)
    image = door.space.push(wat.exits(0))
    door.run(image, env=[{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "nope", "key": "x"}}}])
    door.expect({"CreateContainerConfigError"}, 'configmap "nope" not found')


def test_a_module_that_traps(door: _Door) -> None:
    door.run(door.space.push(wat.traps()))
    door.expect({"Error"}, "unreachable")
    assert door.exit_code() == 134


def test_a_module_that_exits_3(door: _Door) -> None:
    door.run(door.space.push(wat.exits(3)))
    door.space.wait(lambda: door.state()[0] == "Error", "it ended with an error")
    assert door.exit_code() == 3
    assert door.space.phase("bad", kind=door.kind) == "Failed"


def test_two_module_sources_are_refused_by_the_api_server(space: Workspace) -> None:
    refused = space.try_apply(workload("two", module={"image": "registry.example/a:v1", "inline": "(module)"}))
    assert refused.returncode != 0
    assert "exactly one module source" in refused.stderr


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"module": {}}, "exactly one module source"),
        (
            {"module": {"inline": "(module)"}, "volumeMounts": [{"name": "x", "mountPath": "/x"}]},
            "each of volumeMounts must name one of volumes",
        ),
        ({"module": {"inline": "(module)"}, "env": [{"name": "A", "value": "1", "valueFrom": {}}]}, "exactly one of"),
        ({"module": {"inline": "(module)"}, "imagePullPolicy": "Always"}, "is for module.image and module.url only"),
        ({"module": {"inline": "(module)"}, "restartPolicy": "Sometimes"}, "Unsupported value"),
        ({"module": {"inline": "(module)"}, "replica": 3}, "unknown field"),
    ],
)
def test_nonsense_is_refused_with_a_sentence(space: Workspace, spec: dict[str, Any], sentence: str) -> None:
    refused = space.try_apply(workload("nonsense", **spec))
    assert refused.returncode != 0
    assert sentence in refused.stderr


def test_an_image_name_that_is_none(space: Workspace) -> None:
    space.pod("shouting", "UPPER/Case::x")
    space.wait(lambda: space.waiting("shouting").get("reason") == "InvalidImageName", "it is no image name")
    assert "couldn't parse image name" in space.waiting("shouting")["message"]


def test_inline_text_that_does_not_compile(space: Workspace) -> None:
    space.workload("typo", module={"inline": "(module (func $f (nonsense)))"}, restartPolicy="Never")

    def message() -> str:
        return str(space.instance("typo").get("message", ""))

    # The two compilers have words of their own; both name the place.
    space.wait(lambda: "column 19" in message() or "nonsense" in message(), "the parser's own words are shown")


def _with_blob(space: Workspace, change: Callable[[bytes], bytes]) -> str:
    """An image whose layer the registry's disk has changed behind its back."""
    image = space.push(wat.exits(0, says=f"unique {space.namespace}"))
    raw = wat.binary(wat.exits(0, says=f"unique {space.namespace}"))
    blobs = [path for path in (space.registry.directory / "storage").rglob("data") if path.read_bytes() == raw]
    assert len(blobs) == 1
    blobs[0].write_bytes(change(raw))
    return image


def test_what_a_quota_refuses_is_no_matter_of_the_operator(space: Workspace) -> None:
    space.kubectl("create", "quota", "few", "--hard=count/wasmworkloads.wherry.dev=1")
    space.wait(lambda: "hard" in ((space.get("quota", "few") or {}).get("status") or {}), "the quota is counted")
    space.workload("first", module={"inline": wat.sleeps()}, replicas=3)
    refused = space.try_apply(workload("second", module={"inline": wat.sleeps()}))
    assert refused.returncode != 0
    assert "exceeded quota" in refused.stderr
    space.wait(lambda: _of(space, "first").get("ready") == "3/3", "instances are no objects")
    space.kubectl("delete", "ww", "first")
    space.wait(lambda: space.try_apply(workload("second", module={"inline": wat.sleeps()})).returncode == 0, "room")
    space.kubectl("wait", "--for=condition=Ready", "ww/second", "--timeout=60s")


def test_a_namespace_that_is_deleted_takes_everything_with_it(space: Workspace) -> None:
    for name in ("runs", "waits"):
        module = {"inline": wat.sleeps()} if name == "runs" else {"configMapKeyRef": {"name": "c", "key": "k"}}
        space.workload(name, module=module, replicas=3)
    space.wait(lambda: _of(space, "runs").get("ready") == "3/3", "it runs")
    uid = (space.get("ww", "runs") or {})["metadata"]["uid"]
    operator = space.installation.operator
    assert operator is not None
    space.kubectl("delete", "namespace", space.namespace, "--timeout=60s", timeout=90)
    runner = space.installation.runners["runner-a"]
    space.wait(lambda: not runner.contents(f"logs/{uid}*/module/*.log"), "its runner has nothing of it")
    assert operator.running
    assert "Traceback" not in operator.tail(50)


def _of(space: Workspace, name: str) -> dict[str, Any]:
    found: dict[str, Any] = (space.get("ww", name) or {}).get("status") or {}
    return found
