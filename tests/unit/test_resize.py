"""Resizing a Pod that runs: which resources count, and what its status says meanwhile."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.unit.test_pod_status import RUNNING, apply, new_pod, workload_status
from tests.unit.test_reconcile_pod import Scene
from wherry_operator.reconcile.pod import RETRY_SECONDS
from wherry_operator.resolve import resize
from wherry_operator.runners.client import Refused
from wherry_operator.status import happenings
from wherry_operator.status.happenings import Happening
from wherry_operator.status.pod import Observed, differs, steps
from wherry_runner import protocol

Json = dict[str, Any]

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SMALL = {"limits": {"memory": "32Mi"}, "requests": {"memory": "16Mi"}}
LARGE = {"limits": {"memory": "64Mi"}, "requests": {"memory": "16Mi"}}


def running(*restarting: str, resources: Json = SMALL) -> Json:
    """A Pod that runs with these."""
    policies = [{"resourceName": name, "restartPolicy": "RestartContainer"} for name in restarting]
    main = {"name": "main", "image": "i", "resources": resources, "resizePolicy": policies}
    pod = new_pod({"containers": [main, {"name": "other", "image": "i"}]})
    show(pod, seen())
    return pod


def seen(run: str = "a", **more: Any) -> Observed:
    main = RUNNING.model_copy(update={"container_id": run, **more})
    other = RUNNING.model_copy(update={"name": "other", "container_id": "o"})
    return Observed(runner="one", status=workload_status(main, other))


def show(pod: Json, observed: Observed, *, after: int = 0) -> int:
    """Write what is to be written; how often."""
    written = 0
    for desired in steps(pod, observed, now=NOW + timedelta(seconds=after)):
        if differs(pod["status"], desired):
            apply(pod, desired)
            written += 1
    return written


def ask(pod: Json, resources: Json) -> None:
    pod["spec"]["containers"][0]["resources"] = resources
    pod["metadata"]["generation"] += 1


def conditions(pod: Json) -> dict[str, Json]:
    return {item["type"]: item for item in pod["status"]["conditions"] if item["type"].startswith("PodResize")}


def has(pod: Json) -> Json:
    found: Json = pod["status"]["containerStatuses"][0]["resources"]
    return found


def runs_with(pod: Json) -> Json:
    found: Json = resize.decide(pod).pod["spec"]["containers"][0]["resources"]
    return found


def test_before_it_runs_and_without_a_difference_the_spec_counts() -> None:
    fresh = new_pod({"containers": [{"name": "main", "image": "i", "resources": LARGE}]})
    for pod in (fresh, running()):
        assert resize.decide(pod) == resize.Resize(pod=pod)


def test_requests_follow() -> None:
    pod = running()
    wanted = {**SMALL, "requests": {"memory": "20Mi"}}
    ask(pod, wanted)
    assert runs_with(pod) == wanted
    show(pod, seen())
    assert has(pod) == wanted and not conditions(pod)


def test_a_limit_that_must_not_restart_is_refused_and_what_it_had_stays() -> None:
    pod = running()
    ask(pod, LARGE)
    assert runs_with(pod) == SMALL
    assert show(pod, seen()) == 1
    pending = conditions(pod)["PodResizePending"]
    assert (pending["reason"], has(pod)) == ("Infeasible", SMALL)
    assert pending["message"].startswith("container main: the memory limit of a running module can't be changed")
    assert show(pod, seen(), after=60) == 0, "said once"
    assert happenings.of_resize({}, pod["status"]) == [Happening("Warning", "ResizeInfeasible", pending["message"])]
    assert happenings.of_resize(pod["status"], pod["status"]) == []
    ask(pod, SMALL)
    assert show(pod, seen()) == 1 and not conditions(pod)


def test_of_several_changes_all_are_made_or_none() -> None:
    pod = running("memory")
    ask(pod, {"limits": {"memory": "64Mi", "cpu": "1"}, "requests": {"memory": "20Mi"}})
    decided = resize.decide(pod)
    assert "the cpu limit" in decided.refusal and "memory" not in decided.refusal
    assert runs_with(pod) == SMALL


def test_a_limit_that_may_restart_is_in_progress_until_another_run_has_it() -> None:
    pod = running("memory")
    ask(pod, LARGE)
    assert runs_with(pod) == LARGE
    show(pod, seen())
    assert conditions(pod).keys() == {"PodResizeInProgress"} and has(pod) == SMALL
    assert runs_with(pod) == LARGE, "still"
    show(pod, seen("b", restart_count=1))
    assert not conditions(pod) and has(pod) == LARGE


def test_what_a_runner_has_not_is_deferred() -> None:
    pod = running("memory")
    ask(pod, LARGE)
    show(pod, replace(seen(), deferred="runner one: memory: …"))
    assert conditions(pod)["PodResizePending"]["reason"] == "Deferred"
    assert conditions(pod).keys() == {"PodResizePending"} and has(pod) == SMALL
    show(pod, seen("b", restart_count=1))
    assert not conditions(pod) and has(pod) == LARGE


def test_what_is_deferred_keeps_nothing_else_from_a_pod() -> None:
    volume = {"name": "v", "configMap": {"name": "c"}}
    main: Json = {"name": "main", "image": "i", "resources": SMALL}
    main["resizePolicy"] = [{"resourceName": "memory", "restartPolicy": "RestartContainer"}]
    scene = Scene(containers=[main], volumes=[volume])
    config = {"metadata": {"name": "c", "namespace": "boats", "uid": "c"}}
    path = "/api/v1/namespaces/boats/configmaps/c"
    scene.kube.put(path, {**config, "data": {"a": "1"}})
    scene.run()
    scene.change(lambda body: body["spec"]["containers"][0].update(resources=LARGE))
    scene.kube.put(path, {**config, "data": {"a": "2"}})
    scene.succeed()
    full = Refused(protocol.Refusal(reason=protocol.RefusalReason.NO_ROOM, message="memory: …"))
    scene.one.errors = [full]
    assert scene.reconcile() == RETRY_SECONDS
    pending = {item["type"]: item for item in scene.status["conditions"]}["PodResizePending"]
    assert (pending["reason"], pending["message"]) == ("Deferred", "runner one: memory: …")
    sent = scene.one.puts[-1][1].workload
    (files,) = sent.volumes
    assert isinstance(files, protocol.FilesVolume) and files.files[0].data == b"2"
    assert sent.containers[0].resources.memory_limit_bytes == 32 << 20
    scene.one.says("u-1", RUNNING)
    scene.reconcile()
    assert scene.one.puts[-1][1].workload.containers[0].resources.memory_limit_bytes == 64 << 20, "it is tried again"


def test_a_pod_that_has_ended_asks_for_nothing_any_more() -> None:
    pod = running()
    ask(pod, LARGE)
    show(pod, seen())
    end = protocol.Terminated(exit_code=0, reason="Completed", container_id="a", started_at=NOW, finished_at=NOW)
    done = [RUNNING.model_copy(update={"state": end, "ready": False, "container_id": "a"})]
    done += [done[0].model_copy(update={"name": "other"})]
    show(pod, Observed(runner="one", status=workload_status(*done, ended=True)))
    assert pod["status"]["phase"] == "Succeeded" and not conditions(pod)
