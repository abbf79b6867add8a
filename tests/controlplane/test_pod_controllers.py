"""Pods that Kubernetes' own controllers make and end: Jobs, CronJobs, StatefulSets, DaemonSets, garbage collection."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.registry import Registry
from tests.guests import build
from tests.support import wat
from tests.support.installation import Installation
from tests.support.kube import MIRRORED, PATIENCE_SECONDS, Json, Workspace, conditions, names, pod
from tests.support.runner import RunnerProcess

MINUTE_SECONDS = 60.0 + PATIENCE_SECONDS
"""A CronJob's minute begins within one, and then a Job has to run."""


def template(space: Workspace, image: str, *, labels: Json | None = None, **spec: Any) -> Json:
    """A Pod template for the installation's virtual node."""
    body = pod("x", image, node=space.installation.node_name, spec=spec)["spec"]
    return {"metadata": {"labels": labels or {}}, "spec": body}


def job(space: Workspace, name: str, image: str, **spec: Any) -> None:
    more = {"restartPolicy": "Never", **spec.pop("pod", {})}
    body = {"backoffLimit": 0, "template": template(space, image, **more), **spec}
    space.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": body})


def pods(space: Workspace, *selector: str) -> list[Json]:
    found: list[Json] = json.loads(space.kubectl("get", "pods", "-o", "json", *selector))["items"]
    return found


# --- Jobs -------------------------------------------------------------------------------------------------------------


def test_a_jobs_failure_policy_decides_by_the_modules_exit_code(space: Workspace) -> None:
    policy = {
        "rules": [
            {"action": "FailJob", "onExitCodes": {"containerName": "main", "operator": "In", "values": [42]}},
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        ]
    }
    job(space, "fatal", space.push(wat.exits(42)), backoffLimit=6, podFailurePolicy=policy)
    job(space, "tries", space.push(wat.exits(7)), backoffLimit=1, podFailurePolicy=policy)
    space.kubectl("wait", "--for=condition=Failed", "job/fatal", "--timeout=60s")
    fatal = space.get("job", "fatal") or {}
    assert conditions(fatal)["Failed"]["reason"] == "PodFailurePolicy"
    assert "exit code 42" in conditions(fatal)["Failed"]["message"]
    assert fatal["status"]["failed"] == 1, "it was not tried again"
    space.kubectl("wait", "--for=condition=Failed", "job/tries", "--timeout=60s")
    tries = space.get("job", "tries") or {}
    assert (conditions(tries)["Failed"]["reason"], tries["status"]["failed"]) == ("BackoffLimitExceeded", 2)


def test_an_indexed_job_is_done_when_its_success_policy_says_so(space: Workspace, tmp_path: Path) -> None:
    """Each module learns its index by the downward API; only that of index 0 ends, and that is enough."""
    tool = tmp_path / "tool.wasm"
    tool.write_bytes(build.c("tool"))
    body = template(space, space.push_file(tool), restartPolicy="Never")
    index = {
        "path": "index",
        "fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"},
    }
    body["spec"]["volumes"] = [{"name": "me", "downwardAPI": {"items": [index]}}]
    body["spec"]["containers"][0] |= {
        "args": ["await", "/me/index", "0"],
        "volumeMounts": [{"name": "me", "mountPath": "/me"}],
    }
    spec = {
        "completions": 3,
        "parallelism": 3,
        "completionMode": "Indexed",
        "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
        "template": body,
    }
    space.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "quorum"}, "spec": spec})
    space.wait(lambda: conditions(space.get("job", "quorum") or {}).get("Complete"), "it is complete")
    assert "0" in (space.get("job", "quorum") or {})["status"]["completedIndexes"]


def test_a_replacement_is_made_only_when_the_first_has_ended_where_the_job_wants_that(space: Workspace) -> None:
    image = space.push(wat.spins())
    job(
        space, "careful", image, backoffLimit=6, podReplacementPolicy="Failed", pod={"terminationGracePeriodSeconds": 2}
    )
    space.wait(lambda: [each["status"]["phase"] for each in pods(space)] == ["Running"], "it runs")
    (first,) = pods(space)
    space.kubectl("delete", "pod", first["metadata"]["name"], "--wait=false")

    def alive() -> list[Json]:
        return [each for each in pods(space) if each["status"]["phase"] in ("Pending", "Running")]

    def replaced() -> bool:
        now = alive()
        assert len(now) <= 1, "never two at once"
        return bool(now) and now[0]["metadata"]["uid"] != first["metadata"]["uid"]

    space.wait(replaced, "another took its place")
    assert (space.get("job", "careful") or {})["status"].get("terminating", 0) == 0


def test_a_job_is_done_when_its_main_module_is_whatever_its_sidecar_does(space: Workspace) -> None:
    side = {"name": "side", "image": space.push(wat.sleeps("beside")), "restartPolicy": "Always"}
    more = {"initContainers": [side], "terminationGracePeriodSeconds": 1}
    job(space, "accompanied", space.push(wat.exits(0)), pod=more)
    space.kubectl("wait", "--for=condition=Complete", "job/accompanied", "--timeout=60s")
    job(space, "limited", space.push(wat.sleeps()), activeDeadlineSeconds=2, pod={"terminationGracePeriodSeconds": 1})
    space.kubectl("wait", "--for=condition=Failed", "job/limited", "--timeout=60s")
    assert conditions(space.get("job", "limited") or {})["Failed"]["reason"] == "DeadlineExceeded"


def test_a_suspended_job_ends_its_pods_and_goes_on_when_resumed(space: Workspace) -> None:
    image = space.push(wat.sleeps())
    job(space, "pauses", image, parallelism=2, completions=2, pod={"terminationGracePeriodSeconds": 0})
    space.wait(lambda: (space.get("job", "pauses") or {})["status"].get("ready") == 2, "both run")
    space.kubectl("patch", "job", "pauses", "-p", '{"spec":{"suspend":true}}')
    space.wait(lambda: not pods(space), "both are gone")
    space.kubectl("patch", "job", "pauses", "-p", '{"spec":{"suspend":false}}')
    space.wait(lambda: (space.get("job", "pauses") or {})["status"].get("ready") == 2, "both run again")


def cron_job(space: Workspace, name: str, image: str, schedule: str, **spec: Any) -> None:
    jobs = {"backoffLimit": 0, "template": template(space, image, restartPolicy="Never")}
    body = {"schedule": schedule, "jobTemplate": {"spec": jobs}, **spec}
    space.apply({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": name}, "spec": body})


def jobs(space: Workspace, of: str) -> list[Json]:
    """The Jobs whose names begin so."""
    items: list[Json] = json.loads(space.kubectl("get", "jobs", "-o", "json"))["items"]
    return [each for each in items if each["metadata"]["name"].startswith(of)]


def test_a_cron_job_runs_at_its_minute_unless_the_one_before_is_still_at_it(space: Workspace) -> None:
    cron_job(space, "minutely", space.push(wat.exits(0, says="on time")), "* * * * *")
    cron_job(space, "busy", space.push(wat.sleeps()), "* * * * *", concurrencyPolicy="Forbid", suspend=True)
    # The Job of the minute before, as its status has it: that minute need not be waited for too.
    space.kubectl("create", "job", "busy-before", "--from=cronjob/busy")
    space.wait(lambda: [each["status"].get("ready") for each in jobs(space, "busy")] == [1], "it is at it")
    (before,) = jobs(space, "busy")
    reference = {"apiVersion": "batch/v1", "kind": "Job", "name": "busy-before", "uid": before["metadata"]["uid"]}
    active = json.dumps({"status": {"active": [{**reference, "namespace": space.namespace}]}})
    space.kubectl("patch", "cronjob", "busy", "--subresource=status", "--type=merge", "-p", active)
    space.kubectl("patch", "cronjob", "busy", "-p", '{"spec":{"suspend":false}}')

    def done() -> list[Json]:
        return [each for each in jobs(space, "minutely") if conditions(each).get("Complete")]

    space.wait(done, "its minute has come, and its Job is complete", timeout=MINUTE_SECONDS)
    ran = done()[0]["metadata"]
    assert ran["ownerReferences"][0]["name"] == "minutely"
    assert "batch.kubernetes.io/cronjob-scheduled-timestamp" in ran["annotations"], "the controller has made it"
    (its,) = pods(space, "-l", f"batch.kubernetes.io/job-name={ran['name']}")
    assert (its["status"]["phase"], its["spec"]["nodeName"]) == ("Succeeded", space.installation.node_name)
    assert space.logs(its["metadata"]["name"]) == "on time\n"
    space.wait(
        lambda: "JobAlreadyActive" in {reason for reason, _ in space.events("busy")}, "the other was not started again"
    )
    assert [each["metadata"]["uid"] for each in jobs(space, "busy")] == [before["metadata"]["uid"]]


def test_a_cron_job_runs_and_keeps_what_its_limits_say(space: Workspace) -> None:
    """Its hour comes by hand: kubectl makes a Job of it as the controller does."""
    for name, code in (("well", 0), ("badly", 1)):
        limits = {"successfulJobsHistoryLimit": 1, "failedJobsHistoryLimit": 1}
        cron_job(space, name, space.push(wat.exits(code)), "0 0 1 1 *", **limits)
        for run in ("one", "two"):
            space.kubectl("create", "job", f"{name}-{run}", f"--from=cronjob/{name}")
    for name, condition in (("well", "Complete"), ("badly", "Failed")):

        def only_the_last_is_left(name: str = name, condition: str = condition) -> bool:
            mine = jobs(space, name)
            return len(mine) == 1 and conditions(mine[0]).get(condition, {}).get("status") == "True"

        space.wait(only_the_last_is_left, f"one Job of {name} is kept")
    left = {each["metadata"]["labels"]["batch.kubernetes.io/job-name"].split("-")[0] for each in pods(space)}
    assert left == {"well", "badly"}


# --- StatefulSets -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(
    request: pytest.FixtureRequest, registry: Registry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Installation]:
    """An installation with two runners, of which one may be lost."""
    cluster = request.getfixturevalue("cluster")
    with Installation(
        cluster,
        tmp_path_factory.mktemp("pair"),
        node_name="wherry-pair",
        class_name="pair",
        namespace="wherry-pair",
        runners=["runner-1", "runner-2"],
        registry_mirrors={MIRRORED: registry.url},
        serves_logs=False,
    ) as running:
        yield running
    cluster.kubectl("delete", "node", "wherry-pair")


def stateful_set(space: Workspace, image: str, replicas: int) -> None:
    labels = {"app": "db"}
    body = {
        "replicas": replicas,
        "serviceName": "db",
        "selector": {"matchLabels": labels},
        # Not 0: that would take a Pod away without asking whether it still runs, on any node.
        "template": template(space, image, labels=labels, terminationGracePeriodSeconds=1),
    }
    space.apply({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"}, "spec": body})


def ready(space: Workspace) -> int:
    return int((space.get("statefulset", "db") or {}).get("status", {}).get("readyReplicas", 0))


def test_a_stateful_set_keeps_its_names_and_their_order(space: Workspace) -> None:
    stateful_set(space, space.push(wat.sleeps("one")), 3)
    space.wait(lambda: ready(space) == 3, "three are ready")
    before = {each["metadata"]["name"]: each for each in pods(space)}
    assert sorted(before) == ["db-0", "db-1", "db-2"]
    starts = [before[f"db-{number}"]["metadata"]["creationTimestamp"] for number in range(3)]
    assert starts == sorted(starts)
    space.kubectl("delete", "pod", "db-1")
    space.wait(lambda: ready(space) == 3, "the same name is back")
    after = {each["metadata"]["name"]: each["metadata"]["uid"] for each in pods(space)}
    assert sorted(after) == sorted(before) and after["db-1"] != before["db-1"]["metadata"]["uid"]
    space.kubectl("set", "image", "statefulset/db", f"main={space.push(wat.sleeps('two'))}")
    space.kubectl("rollout", "status", "statefulset/db", "--timeout=60s")
    space.wait(lambda: space.logs("db-0") == "two\n", "the new module runs under the old name")


def test_of_a_stateful_set_never_two_run_also_when_a_runner_is_lost(
    pair: Installation, registry: Registry, namespace: str, tmp_path: Any
) -> None:
    space = Workspace(pair, registry, namespace, tmp_path)
    stateful_set(space, space.push(wat.sleeps()), 2)
    space.wait(lambda: ready(space) == 2, "both are ready")
    uids = {each["metadata"]["name"]: each["metadata"]["uid"] for each in pods(space)}
    lost = _runner_of(space, "db-0")
    other = next(each for each in pair.runners.values() if each is not lost)
    lost.kill()
    try:
        # Somebody loses patience. Nobody knows whether db-0 still runs: so its end is not confirmed, and no other is made.
        space.kubectl("delete", "pod", "db-0", "--wait=false")
        space.wait(lambda: "RunnerUnreachable" in _ready_reason(space, "db-0"), "it is known to be silent")
        space.pod("witness", space.push(wat.exits(0)), spec={"restartPolicy": "Never"})
        space.wait_phase("witness", "Succeeded")
        assert _uid(space, "db-0") == uids["db-0"]
        assert not other.traces(uids["db-0"])
    finally:
        lost.start()
    space.wait(lambda: _uid(space, "db-0") not in ("", uids["db-0"]) and ready(space) == 2, "then another db-0 is made")


def _runner_of(space: Workspace, name: str) -> RunnerProcess:
    runner, _, _ = str(space.container(name)["containerID"]).removeprefix("wherry://").partition("/")
    return space.installation.runners[runner]


def _uid(space: Workspace, name: str) -> str:
    return str((space.get("pod", name) or {"metadata": {"uid": ""}})["metadata"]["uid"])


def _ready_reason(space: Workspace, name: str) -> str:
    return str(conditions(space.get("pod", name) or {}).get("Ready", {}).get("reason"))


# --- others -----------------------------------------------------------------------------------------------------------


def test_a_daemon_set_of_a_module_has_one_pod_on_the_node_and_rolls(space: Workspace) -> None:
    labels = {"app": "each"}
    spec = {
        "selector": {"matchLabels": labels},
        "template": template(space, space.push(wat.sleeps("one")), labels=labels, terminationGracePeriodSeconds=0),
    }
    space.apply({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "each"}, "spec": spec})
    space.kubectl("rollout", "status", "daemonset/each", "--timeout=60s")
    (first,) = pods(space)
    assert first["spec"]["nodeName"] == space.installation.node_name
    space.kubectl("set", "image", "daemonset/each", f"main={space.push(wat.sleeps('two'))}")
    space.kubectl("rollout", "status", "daemonset/each", "--timeout=60s")
    (second,) = [each for each in pods(space) if not each["metadata"].get("deletionTimestamp")]
    assert second["metadata"]["uid"] != first["metadata"]["uid"]


def test_what_is_deleted_takes_its_pods_and_their_modules_with_it(space: Workspace) -> None:
    labels = {"app": "web"}
    spec = {
        "replicas": 3,
        "selector": {"matchLabels": labels},
        "template": template(space, space.push(wat.sleeps()), labels=labels, terminationGracePeriodSeconds=0),
    }
    space.apply({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec})
    space.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    uids = [each["metadata"]["uid"] for each in pods(space)]
    space.kubectl("delete", "deployment", "web", "--cascade=foreground", "--timeout=60s")
    assert not names(pods(space))
    runner = space.installation.runners["runner-a"]
    space.wait(lambda: not any(runner.traces(uid) for uid in uids), "the runner has nothing of them")
