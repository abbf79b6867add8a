"""Pods on the virtual node, by the real scheduler, controller-manager and kubectl."""

from __future__ import annotations

import json
import subprocess
import threading

import pytest

from tests.cluster.provider import kubectl_environment
from tests.support import wat
from tests.support.images import KRUSTLET
from tests.support.installation import ROOT
from tests.support.kube import Json, Workspace, conditions, pod


def test_the_scheduler_places_a_pod_and_it_runs_to_its_end(space: Workspace) -> None:
    image = space.push(wat.exits(0, says="done"))
    space.pod("quick", image, spec={"restartPolicy": "Never"})
    body = space.wait_phase("quick", "Succeeded")
    status = body["status"]
    container = status["containerStatuses"][0]
    assert body["spec"]["nodeName"] == "wherry"
    assert container["state"]["terminated"]["exitCode"] == 0
    assert container["state"]["terminated"]["reason"] == "Completed"
    assert container["containerID"].startswith("wherry://runner-a/")
    assert container["imageID"].startswith("sha256:")
    assert status["hostIP"] == "127.0.0.1"
    assert conditions(body)["Ready"]["reason"] == "PodCompleted"
    assert space.logs("quick") == "done\n"
    space.wait(
        lambda: {"Scheduled", "Created", "Started"} <= {reason for reason, _ in space.events("quick")},
        "the kubelet's Events",
    )


def test_a_module_that_ends_within_milliseconds_was_ready_first(space: Workspace) -> None:
    image = space.push(wat.exits(0))
    kubectl = [str(space.cluster.kubectl_program()), f"--kubeconfig={space.cluster.kubeconfig}", "-n", space.namespace]
    with subprocess.Popen(
        [*kubectl, "get", "pods", "--watch", "-o", "json"],
        stdout=subprocess.PIPE,
        text=True,
        env=kubectl_environment(),
    ) as watch:
        space.pod("flash", image, spec={"restartPolicy": "Never"})
        space.wait_phase("flash", "Succeeded")
        space.kubectl("delete", "pod", "flash", "--wait=true")
        watch.terminate()
        assert watch.stdout is not None
        seen = _objects(watch.stdout.read())
    phases = [body["status"]["phase"] for body in seen]
    ready = [conditions(body).get("Ready", {}).get("status") for body in seen]
    assert "Running" in phases
    assert phases.index("Running") < phases.index("Succeeded")
    assert ready[phases.index("Running")] == "True"


def test_kubectl_wait_for_ready_sees_even_a_flash(space: Workspace) -> None:
    image = space.push(wat.exits(0))
    for number in range(5):
        space.pod(f"flash-{number}", image)
        space.kubectl("wait", "--for=condition=Ready", f"pod/flash-{number}", "--timeout=60s")


def test_restart_policy_always_restarts_with_back_off_and_shows_the_last_log(space: Workspace) -> None:
    image = space.push(wat.exits(7, says="one run"))
    space.pod("again", image)
    space.wait(lambda: space.container("again").get("restartCount", 0) >= 2, "it was restarted twice")
    space.wait(lambda: space.waiting("again").get("reason") == "CrashLoopBackOff", "it backs off")
    container = space.container("again")
    assert container["lastState"]["terminated"]["exitCode"] == 7
    assert container["lastState"]["terminated"]["reason"] == "Error"
    assert "restarting failed container=main pod=again_" in container["state"]["waiting"]["message"]
    assert space.phase("again") == "Running"
    assert space.logs("again") == "one run\n"
    assert space.logs("again", "--previous") == "one run\n"
    assert "Back-off restarting failed container" in space.kubectl("describe", "pod", "again")


@pytest.mark.parametrize(
    ("policy", "code", "phase"),
    [("Never", 0, "Succeeded"), ("Never", 3, "Failed"), ("OnFailure", 0, "Succeeded")],
)
def test_restart_policy_and_exit_code_give_the_phase(space: Workspace, policy: str, code: int, phase: str) -> None:
    space.pod("ends", space.push(wat.exits(code)), spec={"restartPolicy": policy})
    body = space.wait_phase("ends", phase)
    terminated = body["status"]["containerStatuses"][0]["state"]["terminated"]
    assert terminated["exitCode"] == code
    assert terminated["reason"] == ("Completed" if code == 0 else "Error")
    assert body["status"]["containerStatuses"][0]["restartCount"] == 0


def test_a_job_completes_and_one_with_a_failing_module_fails(space: Workspace) -> None:
    for name, code in (("good", 0), ("bad", 1)):
        template = pod(name, space.push(wat.exits(code)), spec={"restartPolicy": "Never"})
        space.apply(
            {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": {"name": name},
                "spec": {"backoffLimit": 0, "template": {"spec": template["spec"]}},
            }
        )
    space.kubectl("wait", "--for=condition=Complete", "job/good", "--timeout=60s")
    space.kubectl("wait", "--for=condition=Failed", "job/bad", "--timeout=60s")


def test_environment_arguments_and_files_reach_the_module(space: Workspace) -> None:
    image = space.push_file(ROOT / "demos" / "hello-world-rust" / "hello.wasm", types=KRUSTLET)
    space.kubectl("create", "configmap", "settings", "--from-literal=bacon_ipsum.txt=from a file", "--from-literal=A=1")
    space.kubectl("create", "secret", "generic", "hidden", "--from-literal=PASSWORD=s3cret")
    space.pod(
        "told",
        image,
        spec={
            "restartPolicy": "Never",
            "volumes": [
                {
                    "name": "all",
                    "projected": {
                        "sources": [
                            {
                                "configMap": {
                                    "name": "settings",
                                    "items": [{"key": "bacon_ipsum.txt", "path": "bacon_ipsum.txt"}],
                                }
                            },
                            {"secret": {"name": "hidden"}},
                            {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
                        ]
                    },
                }
            ],
        },
        args=["--name=$(WHO)", "$$(WHO)", "$(NOBODY)"],
        envFrom=[{"prefix": "CM_", "configMapRef": {"name": "settings"}}],
        env=[
            {"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "GREETING", "value": "hello $(WHO)"},
            {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "hidden", "key": "PASSWORD"}}},
            {"name": "GONE", "valueFrom": {"configMapKeyRef": {"name": "nope", "key": "x", "optional": True}}},
        ],
        volumeMounts=[{"name": "all", "mountPath": "/mnt/storage"}],
    )
    space.wait_phase("told", "Succeeded")
    assert space.logs("told").splitlines() == [
        "hello from stdout!",
        "hello from stderr!",
        "CM_A=1",
        "CM_bacon_ipsum.txt=from a file",
        "GREETING=hello told",
        "PASSWORD=s3cret",
        "WHO=told",
        'Args are: ["--name=told", "$(WHO)", "$(NOBODY)"]',
        "",
        "from a file",
    ]


def test_two_containers_run_side_by_side_with_logs_of_their_own(space: Workspace) -> None:
    first, second = space.push(wat.exits(0, says="first")), space.push(wat.exits(5, says="second"))
    body = pod("pair", first, spec={"restartPolicy": "Never"})
    body["spec"]["containers"].append({"name": "other", "image": second})
    space.apply(body)
    found = space.wait_phase("pair", "Failed")
    codes = {c["name"]: c["state"]["terminated"]["exitCode"] for c in found["status"]["containerStatuses"]}
    assert codes == {"main": 0, "other": 5}
    assert space.logs("pair", "-c", "main") == "first\n"
    assert space.logs("pair", "-c", "other") == "second\n"


def test_a_running_pod_is_ready_and_its_log_can_be_followed(space: Workspace) -> None:
    image = space.push_file(ROOT / "demos" / "hello-world-c" / "hello.wasm")
    space.pod("ticking", image, args=["--ticks=6", "--every=1"], spec={"restartPolicy": "Never"})
    space.kubectl("wait", "--for=condition=Ready", "pod/ticking", "--timeout=60s")
    followed = space.logs("ticking", "-f")
    assert followed.splitlines()[-6:] == [f"tick {n}" for n in range(1, 7)]
    assert space.logs("ticking", "--tail", "2").splitlines() == ["tick 5", "tick 6"]
    stamped = space.logs("ticking", "--timestamps", "--tail=1")
    assert stamped.split(" ", 1)[1] == "tick 6\n"
    assert space.logs("ticking", "--limit-bytes=5") == followed[:5]


def test_deleting_kills_after_the_grace_period_and_confirms(space: Workspace) -> None:
    space.pod("stubborn", space.push(wat.spins()), spec={"terminationGracePeriodSeconds": 1})
    space.kubectl("wait", "--for=condition=Ready", "pod/stubborn", "--timeout=60s")
    space.kubectl("delete", "pod", "stubborn", "--timeout=60s")
    assert space.get("pod", "stubborn") is None
    space.wait(lambda: ("Killing", "Stopping container main") in space.events("stubborn"), "the Killing Event")


def test_force_deletion_stops_the_module_too(space: Workspace) -> None:
    space.pod("forced", space.push(wat.sleeps("unique-forced")))
    space.kubectl("wait", "--for=condition=Ready", "pod/forced", "--timeout=60s")
    uid = (space.get("pod", "forced") or {})["metadata"]["uid"]
    space.kubectl("delete", "pod", "forced", "--force", "--grace-period=0")
    runner = space.installation.runners["runner-a"]
    space.wait(lambda: not runner.traces(uid), "the runner has nothing of it left")


def test_a_pod_that_is_deleted_while_it_pulls_goes_away(space: Workspace) -> None:
    space.pod("hopeless", "registry.example/no/such:v1")
    space.wait(lambda: space.waiting("hopeless").get("reason") in ("ErrImagePull", "ImagePullBackOff"), "it can't pull")
    space.kubectl("delete", "pod", "hopeless", "--timeout=60s")
    assert space.get("pod", "hopeless") is None


def test_what_a_module_cannot_have_is_refused_by_name(space: Workspace) -> None:
    image = space.push(wat.exits(0))
    space.pod(
        "greedy",
        image,
        spec={"volumes": [{"name": "far", "nfs": {"server": "nfs.example", "path": "/"}}]},
        readinessProbe={"exec": {"command": ["true"]}},
    )
    space.wait(lambda: space.waiting("greedy").get("reason") == "CreateContainerConfigError", "it is refused")
    message = space.waiting("greedy")["message"]
    assert "spec.containers[0].readinessProbe.exec" in message
    assert "spec.volumes[0].nfs" in message


def test_a_deployment_scales_and_rolls(space: Workspace) -> None:
    template = pod("x", space.push(wat.sleeps("v1")))["spec"]
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 3,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {**template, "terminationGracePeriodSeconds": 0},
            },
        },
    }
    space.apply(deployment)
    space.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    space.kubectl("set", "image", "deployment/web", f"main={space.push(wat.sleeps('v2'))}")
    space.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
    space.kubectl("scale", "deployment/web", "--replicas=0")
    space.wait(lambda: not json.loads(space.kubectl("get", "pods", "-o", "json"))["items"], "all are gone")


def test_the_log_of_a_container_that_never_ran_says_why(space: Workspace) -> None:
    space.pod("early", "registry.example/no/such:v1")
    space.wait(lambda: bool(space.waiting("early").get("message")), "it waits")
    refused = space.cluster.kubectl("logs", "early", "-n", space.namespace, check=False)
    assert refused.returncode == 1
    assert 'container "main" in pod "early" is waiting to start' in refused.stderr


def test_many_followers_see_the_same_lines(space: Workspace) -> None:
    image = space.push_file(ROOT / "demos" / "hello-world-c" / "hello.wasm")
    space.pod("busy", image, args=["--ticks=3", "--every=1"], spec={"restartPolicy": "Never"})
    space.kubectl("wait", "--for=condition=Ready", "pod/busy", "--timeout=60s")
    texts: list[str] = []
    followers = [threading.Thread(target=lambda: texts.append(space.logs("busy", "-f"))) for _ in range(4)]
    for follower in followers:
        follower.start()
    for follower in followers:
        follower.join(60)
    assert len(texts) == 4
    assert len(set(texts)) == 1


def _objects(text: str) -> list[Json]:
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(text):
        try:
            body, end = decoder.raw_decode(text, at)
        except ValueError:
            break
        found.append(body)
        at = end
        while at < len(text) and text[at].isspace():
            at += 1
    return found
