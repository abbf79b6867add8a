"""Many instances of one WasmWorkload: scaled, rolled out, run to completion; and what its status says of them."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from tests.support.fake_runners import FakeRunner
from tests.support.kstatus import verdict
from tests.support.told import START, end
from tests.support.workload_scene import PATH, RUNNING, Scene, container
from wherry_operator.reconcile.instances import RETRY_SECONDS
from wherry_operator.reconcile.workload import WRITE_GAP_SECONDS
from wherry_operator.runners.client import RunnerUnavailable
from wherry_operator.status.containers import rfc3339
from wherry_operator.status.workload import LISTED
from wherry_runner.protocol import Phase, Running, Waiting


def service(replicas: int, **spec: Any) -> Scene:
    return Scene(restartPolicy="Always", replicas=replicas, **spec)


def sweep(completions: int, **spec: Any) -> Scene:
    return Scene(restartPolicy="Never", completions=completions, **spec)


def judged(scene: Scene) -> str:
    return verdict(scene.kube.objects[PATH])


def counts(scene: Scene) -> tuple[int, ...]:
    status = scene.status
    return tuple(status[f"{kind}eplicas"] for kind in ("r", "readyR", "updatedR", "availableR"))


def revisions(scene: Scene) -> Counter[str]:
    return Counter(workload_id.split("-")[2] for workload_id in scene.ids)


def test_as_many_as_are_wanted_run_apart_and_are_counted() -> None:
    scene = service(5)
    scene.reconcile()
    assert len(scene.ids) == 5
    assert [len(runner.state.statuses) for runner in scene.runners] == [3, 2]
    assert (scene.status["phase"], scene.status["ready"], counts(scene)) == ("Pending", "0/5", (5, 0, 5, 0))
    assert judged(scene) == "InProgress"
    scene.settle()
    assert (scene.status["phase"], scene.status["ready"], counts(scene)) == ("Running", "5/5", (5, 5, 5, 5))
    assert (scene.status["currentRevision"], judged(scene)) == (scene.status["updateRevision"], "Current")
    names = [item["name"] for item in scene.status["instances"]]
    assert [name.rpartition("-")[2] for name in names] == list("01234")
    assert scene.events == [("SuccessfulCreate", f"Created 5 instances: {names[0]} … {names[-1]}")]


def test_what_is_as_it_should_be_costs_no_call() -> None:
    scene = service(5).settle()
    scene.kube.calls.clear()
    puts = scene.puts
    scene.succeed()
    scene.reconcile()
    assert (scene.kube.calls, scene.puts) == ([], puts)


def test_scaling_restarts_nothing() -> None:
    scene = service(3).settle()
    before = set(scene.ids)
    scene.edit(replicas=5)
    assert judged(scene) == "InProgress"
    scene.settle()
    assert before < set(scene.ids)
    assert counts(scene) == (5, 5, 5, 5)
    scene.edit(replicas=2)
    scene.settle()
    assert set(scene.ids) == {workload_id for workload_id in before if workload_id[-1] in "01"}
    assert scene.events[-1][0] == "SuccessfulDelete"
    scene.edit(replicas=0)
    scene.settle()
    assert (scene.ids, scene.status["phase"], scene.status["ready"]) == ([], "ScaledToZero", "0/0")
    assert judged(scene) == "Current"


def test_a_rolling_update_keeps_serving() -> None:
    scene = service(4, strategy={"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}}).settle()
    (old,) = revisions(scene)
    scene.edit(args=["new"])
    for _ in range(20):
        scene.reconcile()
        assert len(scene.ids) <= 5
        assert scene.status["availableReplicas"] >= 3 or judged(scene) == "InProgress"
        running = sum(
            isinstance(status.containers[0].state, Running)
            for runner in scene.runners
            for status in runner.state.statuses.values()
        )
        assert running >= 3
        scene.all_say(Running(started_at=START))
    (new,) = revisions(scene)
    assert new != old
    assert (scene.status["phase"], counts(scene)) == ("Running", (4, 4, 4, 4))


def test_a_rollout_that_can_not_start_leaves_the_old_ones_running_and_says_that_it_is_stuck() -> None:
    scene = service(2, progressDeadlineSeconds=30).settle()
    old = scene.status["updateRevision"]
    scene.edit(args=["bad"])
    scene.reconcile()
    new = scene.status["updateRevision"]
    for _ in range(3):
        scene.all_say(Waiting(reason="ErrImagePull", message="no such image"), of=new)
    assert revisions(scene) == {old: 2, new: 1}
    assert scene.status["phase"] == "ErrImagePull"
    assert scene.status["currentRevision"] == old
    assert judged(scene) == "InProgress"
    again = scene.reconcile()
    assert again is not None
    assert again <= 30
    scene.events.clear()
    scene.reconcile(after=40)
    assert judged(scene) == "Failed"
    assert scene.events == [("ProgressDeadlineExceeded", "no such image")]
    assert scene.conditions["Progressing"] == "False"
    scene.edit(args=["good"])
    scene.settle()
    assert judged(scene) == "Current"


def test_recreate_never_has_two_versions() -> None:
    scene = service(2, strategy={"type": "Recreate"}).settle()
    for runner in scene.runners:
        runner.on_delete = lambda _: None
    scene.edit(args=["new"])
    scene.reconcile()
    assert len(revisions(scene)) == 1
    for runner in scene.runners:
        for workload_id in runner.state.statuses:
            runner.says(workload_id, container(end(137)), phase=Phase.ENDED)
        runner.on_delete = None
    scene.settle()
    assert len(revisions(scene)) == 1
    assert counts(scene) == (2, 2, 2, 2)


def test_of_a_thousand_the_status_shows_some_and_counts_all() -> None:
    scene = service(1000)
    scene.runners[0].max_workloads = 0
    scene.registry.runners["three"] = big = FakeRunner("three", max_workloads=2000)
    scene.runners.append(big)
    del scene.registry.runners["one"], scene.registry.runners["two"]
    scene.reconcile()
    for workload_id in list(big.state.statuses)[:990]:
        big.says(workload_id, RUNNING)
    scene.reconcile()
    assert (scene.status["ready"], len(scene.status["instances"])) == ("990/1000", LISTED)
    assert sum(not item["ready"] for item in scene.status["instances"]) == 10, "those that wait come first"
    assert len(str(scene.status)) < 40_000


def test_a_thousand_instances_are_a_handful_of_events_however_they_start() -> None:
    scene = service(1000)
    scene.registry.runners["three"] = big = FakeRunner("three", max_workloads=3000)
    scene.runners.append(big)
    del scene.registry.runners["one"], scene.registry.runners["two"]
    scene.reconcile()
    ids = list(big.state.statuses)
    for first in range(0, 1000, 100):
        for number, workload_id in enumerate(ids[first : first + 100]):
            trouble = Waiting(reason="CrashLoopBackOff", message=f"exit code {number} of {workload_id}")
            big.says(workload_id, container(trouble) if number % 2 else RUNNING)
        scene.reconcile()
    scene.edit(replicas=0)
    scene.settle()
    told = Counter(reason for reason, _ in scene.events)
    assert (told["SuccessfulCreate"], told["SuccessfulDelete"]) == (1, 1)
    assert told["CrashLoopBackOff"] <= 50, "each with words of its own; the recorder lets 25 pass"


def test_an_object_of_many_instances_is_not_written_all_the_time() -> None:
    scene = service(5)
    scene.reconcile()
    assert scene.reconcile(after=0.05) == pytest.approx(WRITE_GAP_SECONDS - 0.05)
    assert scene.kube.patches == []


def test_many_with_the_same_trouble_are_one_event() -> None:
    scene = service(8)
    scene.reconcile()
    scene.events.clear()
    scene.all_say(Waiting(reason="ErrImagePull", message="refused"))
    assert scene.events == [("ErrImagePull", "refused")]
    assert scene.status["conditions"][0]["message"] == "refused (8 of 8 instances)"


def test_a_runner_that_fails_stands_in_nobody_elses_way() -> None:
    scene = service(4)
    scene.one.errors = [RunnerUnavailable("no answer"), RunnerUnavailable("no answer")]
    with pytest.raises(RunnerUnavailable):
        scene.reconcile()
    assert len(scene.two.state.statuses) == 2
    assert counts(scene)[0] == 2
    scene.settle()
    assert counts(scene) == (4, 4, 4, 4)


def test_where_there_is_room_for_some_only_the_others_wait() -> None:
    scene = service(25)
    assert scene.reconcile() == RETRY_SECONDS
    scene.all_say(Running(started_at=START))
    assert scene.status["ready"] == "20/25"
    assert scene.conditions["Scheduled"] == "False"
    assert ("FailedPlacement", "0/2 runners fit: 2 are full") in scene.events
    assert len(scene.events) <= 3


# --- runs to completion -----------------------------------------------------------------------------------------------


def finish(scene: Scene, code: int = 0, *, of: str = "") -> None:
    """Every instance that runs, or one, ends."""
    for runner in scene.runners:
        for workload_id, status in list(runner.state.statuses.items()):
            if status.phase is Phase.ACTIVE and workload_id.endswith(of):
                runner.says(workload_id, container(end(code), run=workload_id[-8:]), phase=Phase.ENDED)


def test_a_sweep_runs_every_index_once_some_at_a_time() -> None:
    index = {"name": "INDEX", "valueFrom": {"fieldRef": {"fieldPath": "instance.index"}}}
    scene = sweep(20, replicas=4, env=[index])
    for runner in scene.runners:
        runner.state.info = runner.state.info and runner.state.info.model_copy(update={"max_workloads": 30})
    for _ in range(12):
        scene.succeed()  # an operator lives no longer than one look
        scene.reconcile()
        active = [
            status
            for runner in scene.runners
            for status in runner.state.statuses.values()
            if status.phase is Phase.ACTIVE
        ]
        assert len(active) <= 4
        finish(scene)
    told = [
        put.workload.containers[0].env[0].value.get_secret_value() for runner in scene.runners for _, put in runner.puts
    ]
    assert sorted(told, key=int) == [str(number) for number in range(20)]
    assert (scene.status["phase"], scene.status["completedIndexes"]) == ("Succeeded", "0-19")
    assert (scene.status["succeeded"], scene.status["failed"]) == (20, 0)
    assert scene.conditions["Complete"] == "True"
    assert judged(scene) == "Current"
    assert scene.events[-1] == ("Completed", "Run to completion: all 20 indexes have completed")


def test_a_failure_is_tried_again_within_its_limit() -> None:
    scene = sweep(2, replicas=2, backoffLimit=1)
    scene.reconcile()
    finish(scene, 3, of="-1")
    finish(scene, 0, of="-0")
    scene.reconcile()
    assert (scene.status["failed"], scene.status["completedIndexes"], scene.status["phase"]) == (1, "0", "Error")
    assert len(scene.ids) == 2
    scene.reconcile(after=20)
    assert sorted(name.rpartition("-")[2] for name in scene.ids) == ["0", "1", "1.1"]
    finish(scene, 0, of=".1")
    scene.reconcile()
    assert (scene.status["phase"], scene.status["failed"], scene.status["retried"]) == ("Succeeded", 1, 1)


def test_one_failure_too_many_ends_all() -> None:
    scene = sweep(9, replicas=3).settle()
    finish(scene, 3, of="-1")
    scene.reconcile()
    assert [workload_id[-1] for workload_id in scene.ids] == ["1"], "the one that failed is kept, for its log"
    assert (scene.status["phase"], judged(scene)) == ("Failed", "Failed")
    assert ("BackoffLimitExceeded", "index 1: Error: exit code 3; 1 failed, and backoffLimit is 0") in scene.events
    scene.edit(replicas=5)
    scene.reconcile()
    assert len(scene.ids) == 1


def test_suspended_it_stops_and_goes_on_where_it_was() -> None:
    scene = sweep(4, replicas=2).settle()
    finish(scene, 0, of="-0")
    for runner in scene.runners:
        runner.on_delete = lambda _: None
    scene.edit(suspend=True)
    scene.reconcile()
    assert scene.status["phase"] == "Suspended"
    for runner in scene.runners:  # what was killed has ended badly, and that is no failure
        for workload_id, status in runner.state.statuses.items():
            if status.phase is Phase.ACTIVE:
                runner.says(workload_id, container(end(137)), phase=Phase.ENDED)
        runner.on_delete = None
    scene.reconcile()
    assert [workload_id[-1] for workload_id in scene.ids] == ["0"]
    assert (scene.status["failed"], scene.status["completedIndexes"], scene.status["ready"]) == (0, "0", "0/0")
    assert "startTime" not in scene.status
    assert judged(scene) == "Current"
    scene.edit(suspend=False)
    scene.settle()
    assert sorted(workload_id[-1] for workload_id in scene.ids) == ["0", "1", "2"]


def test_too_late_it_is_ended_and_later_still_deleted() -> None:
    scene = sweep(2, replicas=2, activeDeadlineSeconds=30, ttlSecondsAfterFinished=60).settle()
    (_, put), *_ = scene.one.puts
    assert put.workload.deadline is not None
    assert scene.status["startTime"] == rfc3339(put.workload.deadline - timedelta(seconds=30))
    scene.reconcile(after=40)
    assert (scene.status["phase"], scene.status["conditions"][0]["reason"]) == ("Failed", "DeadlineExceeded")
    assert len(scene.ids) == 2, "its runners end it themselves, and keep its logs"
    scene.reconcile(after=6)
    assert scene.ids == []
    again = scene.reconcile()
    assert again is not None
    assert again <= 60
    scene.reconcile(after=60)
    assert PATH not in scene.kube.objects


def test_one_that_was_changed_at_the_last_moment_is_not_deleted() -> None:
    scene = sweep(1, ttlSecondsAfterFinished=60).settle()
    finish(scene)
    scene.reconcile()
    seen = scene.kube.objects[PATH]["metadata"]["resourceVersion"]
    # The user wants it to stay, and the operator has not heard of it.
    scene.kube.put(PATH, {**scene.kube.objects[PATH], "spec": {**scene.kube.objects[PATH]["spec"], "suspend": True}})
    assert scene.kube.objects[PATH]["metadata"]["resourceVersion"] != seen
    assert scene.reconcile(after=61) == RETRY_SECONDS
    assert PATH in scene.kube.objects


def test_an_unwritten_success_is_not_forgotten_by_its_runner() -> None:
    scene = sweep(3, replicas=1)
    scene.reconcile()
    finish(scene)
    deletes = [*scene.one.deletes, *scene.two.deletes]
    scene.reconcile()
    assert [*scene.one.deletes, *scene.two.deletes] == deletes == []


def test_an_end_that_the_answer_to_a_put_tells_is_counted_though_no_watch_tells_of_it() -> None:
    scene = sweep(4, replicas=3)
    for runner in scene.runners:
        runner.at_once = (container(end(0)),)
    rounds = 0
    while scene.reconcile() == 0.0:
        rounds += 1
        assert rounds < 10
    assert (scene.status["phase"], scene.status["succeeded"], judged(scene)) == ("Succeeded", 4, "Current")
