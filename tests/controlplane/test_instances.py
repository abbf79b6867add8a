"""Many instances of one WasmWorkload on a real API server: scaled, rolled out, run to completion, suspended, deleted."""

from __future__ import annotations

import pytest

from tests.support import wat
from tests.support.installation import ROOT
from tests.support.kstatus import verdict
from tests.support.kube import Json, Workspace, conditions, workload


def _status(space: Workspace, name: str) -> Json:
    found: Json = (space.get("ww", name) or {}).get("status", {})
    return found


def _verdict(space: Workspace, name: str) -> str:
    body = space.get("ww", name)
    assert body is not None
    return verdict(body)


def test_kubectl_scales_it_and_nothing_restarts(space: Workspace) -> None:
    space.workload("many", module={"inline": wat.sleeps()}, replicas=2)
    space.kubectl("wait", "--for=condition=Ready", "ww/many", "--timeout=60s")
    before = {item["name"]: item["containerID"] for item in _status(space, "many")["instances"]}
    assert len(before) == 2
    space.kubectl("scale", "ww/many", "--replicas=6")
    space.wait(lambda: _status(space, "many").get("ready") == "6/6", "six are ready")
    after = {item["name"]: item["containerID"] for item in _status(space, "many")["instances"]}
    assert before.items() <= after.items()
    scale = space.cluster.kubectl(
        "get", "ww", "many", "-n", space.namespace, "--subresource=scale", "-o", "json"
    ).stdout
    assert '"replicas": 6' in scale
    assert _verdict(space, "many") == "Current"
    space.kubectl("scale", "ww/many", "--replicas=0")
    space.wait(lambda: _status(space, "many").get("phase") == "ScaledToZero", "none is left")
    uid = (space.get("ww", "many") or {})["metadata"]["uid"]
    runner = space.installation.runners["runner-a"]
    space.wait(lambda: not runner.contents(f"journal/{uid}*"), "the runner has none")


def test_a_rolling_update_is_seen_by_the_counts(space: Workspace) -> None:
    steps = {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    spec: Json = {"module": {"inline": wat.sleeps()}, "replicas": 3, "strategy": steps, "minReadySeconds": 1}
    space.workload("rolls", **spec)
    space.kubectl("wait", "--for=jsonpath={.status.availableReplicas}=3", "ww/rolls", "--timeout=60s")
    old = _status(space, "rolls")["currentRevision"]
    space.workload("rolls", **spec, args=["new"])
    seen: list[Json] = []

    def done() -> bool:
        seen.append(_status(space, "rolls"))
        return bool(seen[-1]["observedGeneration"] == 2 and seen[-1]["currentRevision"] != old)

    space.wait(done, "the new ones have taken over")
    rolling = [item for item in seen if item["observedGeneration"] == 2]
    assert all(item["replicas"] <= 4 for item in rolling)
    assert all(item["availableReplicas"] >= 3 for item in rolling)
    last = rolling[-1]
    assert (last["replicas"], last["updatedReplicas"], last["phase"]) == (3, 3, "Running")
    assert {item["revision"] for item in last["instances"]} == {last["updateRevision"]}
    assert _verdict(space, "rolls") == "Current"


def test_a_bad_update_leaves_the_old_ones_running_and_is_told(space: Workspace) -> None:
    space.workload("stuck", module={"inline": wat.sleeps()}, replicas=2, progressDeadlineSeconds=3)
    space.kubectl("wait", "--for=condition=Ready", "ww/stuck", "--timeout=60s")
    space.workload("stuck", module={"inline": "(module)"}, replicas=2, progressDeadlineSeconds=3)
    space.kubectl("wait", "--for=condition=Stalled", "ww/stuck", "--timeout=60s")
    status = _status(space, "stuck")
    assert status["readyReplicas"] == 2
    assert conditions({"status": status})["Progressing"]["reason"] == "ProgressDeadlineExceeded"
    assert _verdict(space, "stuck") == "Failed"
    space.wait(lambda: "ProgressDeadlineExceeded" in dict(space.events("stuck")), "an Event tells of it")


def test_a_sweep_runs_each_index_once(space: Workspace) -> None:
    space.installation.grant_references(space.namespace)
    space.kubectl("create", "configmap", "settings", "--from-literal=bacon_ipsum.txt=from a file")
    space.workload(
        "sweep",
        module={"image": space.push_file(ROOT / "demos" / "hello-world-rust" / "hello.wasm")},
        restartPolicy="Never",
        completions=20,
        replicas=5,
        volumes=[{"name": "all", "configMap": {"name": "settings"}}],
        volumeMounts=[{"name": "all", "mountPath": "/mnt/storage"}],
        env=[
            {"name": "INDEX", "valueFrom": {"fieldRef": {"fieldPath": "instance.index"}}},
            {"name": "SELF", "valueFrom": {"fieldRef": {"fieldPath": "instance.name"}}},
        ],
    )
    space.kubectl("wait", "--for=condition=Complete", "ww/sweep", "--timeout=110s", timeout=120)
    body = space.get("ww", "sweep") or {}
    status = body["status"]
    assert (status["phase"], status["succeeded"], status["failed"]) == ("Succeeded", 20, 0)
    assert status["completedIndexes"] == "0-19"
    assert _verdict(space, "sweep") == "Current"
    logs = space.installation.runners["runner-a"].contents(f"logs/{body['metadata']['uid']}-*/module/*.log")
    told = [line.split(" ", 3)[3] for text in logs for line in text.splitlines() if "INDEX=" in line]
    assert sorted(told) == sorted(f"INDEX={index}" for index in range(20))
    assert any(f"SELF=sweep-{status['updateRevision']}-7" in text for text in logs)
    space.wait(lambda: "Completed" in dict(space.events("sweep")), "an Event tells of it")
    # Of twenty instances that come and go five at a time: not one Event for each of their steps.
    assert len(space.events("sweep")) <= 20, space.events("sweep")


def test_what_waits_for_its_module_is_in_progress_says_why_and_goes_on_once_it_is_there(space: Workspace) -> None:
    space.installation.grant_references(space.namespace)
    space.workload("waits", module={"configMapKeyRef": {"name": "modules", "key": "m.wat"}}, replicas=5)
    space.wait_phase("waits", "CreateContainerConfigError", kind="ww")
    assert _verdict(space, "waits") == "InProgress"
    message = conditions(space.get("ww", "waits") or {})["Ready"]["message"]
    assert 'configmap "modules" not found' in message
    events = [message for reason, message in space.events("waits") if reason == "Failed"]
    assert len(events) == 1, "five wait for the same"
    module = {"metadata": {"name": "modules"}, "data": {"m.wat": wat.sleeps()}}
    space.apply({"apiVersion": "v1", "kind": "ConfigMap", **module})
    space.kubectl("wait", "--for=condition=Ready", "ww/waits", "--timeout=60s")
    assert _verdict(space, "waits") == "Current"


def test_a_failure_of_many_ends_them_all(space: Workspace) -> None:
    space.workload("fails", module={"inline": wat.exits(3)}, restartPolicy="Never", completions=5, replicas=1)
    space.kubectl("wait", "--for=condition=Failed", "ww/fails", "--timeout=60s")
    status = _status(space, "fails")
    assert status["failed"] == 1
    assert conditions({"status": status})["Failed"]["reason"] == "BackoffLimitExceeded"
    assert _verdict(space, "fails") == "Failed"


def test_suspended_nothing_runs_and_resumed_it_goes_on(space: Workspace) -> None:
    space.workload("paused", module={"inline": wat.sleeps()}, replicas=2)
    space.kubectl("wait", "--for=condition=Ready", "ww/paused", "--timeout=60s")
    space.kubectl("patch", "ww", "paused", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    space.wait(lambda: _status(space, "paused").get("phase") == "Suspended", "it is suspended")
    space.wait(lambda: _status(space, "paused").get("replicas") == 0, "nothing runs")
    space.kubectl("patch", "ww", "paused", "--type=merge", "-p", '{"spec":{"suspend":false}}')
    space.wait(lambda: _status(space, "paused").get("ready") == "2/2", "both run again")


def test_it_is_deleted_after_its_time(space: Workspace) -> None:
    space.workload("brief", module={"inline": wat.exits(0)}, restartPolicy="Never", ttlSecondsAfterFinished=1)
    space.wait(lambda: space.get("ww", "brief") is None, "it is deleted")


def test_at_its_deadline_it_has_failed(space: Workspace) -> None:
    space.workload("late", module={"inline": wat.sleeps()}, restartPolicy="Never", activeDeadlineSeconds=2)
    space.kubectl("wait", "--for=condition=Failed", "ww/late", "--timeout=60s")
    assert conditions(space.get("ww", "late") or {})["Failed"]["reason"] == "DeadlineExceeded"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"completions": 3}, "completions is for restartPolicy OnFailure or Never"),
        ({"backoffLimit": 3}, "backoffLimit is for restartPolicy OnFailure or Never"),
        ({"activeDeadlineSeconds": 3}, "activeDeadlineSeconds is for restartPolicy OnFailure or Never"),
        ({"ttlSecondsAfterFinished": 3}, "ttlSecondsAfterFinished is for restartPolicy OnFailure or Never"),
        ({"restartPolicy": "Never", "strategy": {"type": "Recreate"}}, "strategy is for restartPolicy Always"),
        ({"restartPolicy": "Never", "minReadySeconds": 3}, "minReadySeconds is for restartPolicy Always"),
        ({"strategy": {"type": "Recreate", "rollingUpdate": {}}}, "rollingUpdate is for type RollingUpdate only"),
        (
            {"strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "0%"}}},
            "maxSurge and maxUnavailable can't both be 0",
        ),
        ({"strategy": {"rollingUpdate": {"maxSurge": "many"}}}, "spec.strategy.rollingUpdate.maxSurge"),
        ({"replicas": -1}, "should be greater than or equal to 0"),
        ({"tolerations": [{"value": "x"}]}, "a toleration without a key needs operator Exists"),
        ({"tolerations": [{"key": "a", "operator": "Exists", "value": "x"}]}, "with operator Exists has no value"),
    ],
)
def test_nonsense_is_refused_with_a_sentence_that_helps(space: Workspace, spec: Json, words: str) -> None:
    refused = space.try_apply(workload("nonsense", **{"module": {"inline": "(module)"}, **spec}))
    assert refused.returncode != 0
    assert words in refused.stderr
