"""The status of a WasmWorkload: what columns and conditions say, and that what has run is never forgotten."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fake_kube import merge_json
from wherry_operator.rollout.decide import decide
from wherry_operator.rollout.instances import Slot, by_runner, by_status
from wherry_operator.rollout.plan import Memory, Wanted
from wherry_operator.status import containers, workload
from wherry_operator.status.pod import Problem, differs
from wherry_operator.status.workload import Observed, Seen, steps
from wherry_runner import protocol
from wherry_runner.protocol import ContainerState, Phase, Running, Terminated, Waiting

Json = dict[str, Any]

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
NEVER, ALWAYS = protocol.RestartPolicy.NEVER, protocol.RestartPolicy.ALWAYS
SLOT = Slot("0f", 0)
CRD = yaml.safe_load((Path(__file__).parents[2] / "crds" / "wasmworkloads.wherry.dev.yaml").read_text())


def end(code: int = 0, run: str = "a", message: str = "") -> Terminated:
    return Terminated(
        exit_code=code,
        reason="Completed" if code == 0 else "Error",
        message=message,
        container_id=run,
        started_at=START,
        finished_at=START + timedelta(seconds=1),
    )


def told(
    state: ContainerState, *, run: str = "a", restarts: int = 0, last: Terminated | None = None, ended: bool = False
) -> protocol.WorkloadStatus:
    return protocol.WorkloadStatus(
        id="u-1-t",
        owner=protocol.Owner(kind="WasmWorkload", namespace="boats", name="hello", uid="u-1"),
        phase=Phase.ENDED if ended else Phase.ACTIVE,
        epoch=1,
        sequence=1,
        template_hash="t",
        accepted_at=START,
        containers=(
            protocol.ContainerStatus(
                name="module",
                state=state,
                last_terminated=last,
                container_id=run,
                restart_count=restarts,
                ready=isinstance(state, Running),
                module_digest="sha256:m" if run else "",
            ),
        ),
    )


RUNNING = Running(started_at=START)


@dataclass(frozen=True)
class Told:
    """What is known of one instance, before anything is concluded from it."""

    status: protocol.WorkloadStatus | None = None
    runner: str = "one"
    problem: Problem | None = None
    unreachable: bool = False
    policy: protocol.RestartPolicy = NEVER
    slot: Slot = SLOT

    def observed(self, live: Json) -> Observed:
        """As a reconcile concludes it."""
        wanted = Wanted(revision=self.slot.revision, policy=self.policy)
        name = self.slot.within("hello")
        entry: Json = next((item for item in live.get("instances") or [] if item["name"] == name), {})
        if self.status is not None:
            instance = by_runner(self.slot, self.status, silent=self.unreachable)
        else:
            instance = by_status(self.slot, entry, silent=self.unreachable)
        plan = decide(wanted, [instance], Memory.of(live), START)
        seen = Seen(instance=instance, runner=self.runner, node="n", status=self.status, problem=self.problem)
        return Observed(wanted=wanted, memory=plan.memory, instances=(seen,))


def observed(status: protocol.WorkloadStatus | None = None, **more: Any) -> Told:
    return Told(status, **more)


def new(status: Json | None = None, **metadata: Any) -> Json:
    return {
        "metadata": {"name": "hello", "namespace": "boats", "uid": "u-1", "generation": 1, **metadata},
        "spec": {},
        **({"status": status} if status else {}),
    }


def written(body: Json, *observations: Told, at: datetime = START) -> Json:
    for observation in observations:
        for desired in steps(body, observation.observed(body.get("status") or {}), now=at):
            body["status"] = merge_json(body.get("status"), desired)
    status: Json = body["status"]
    return status


UNREACHABLE = "runner one does not answer"


@pytest.mark.parametrize(
    ("observation", "phase", "ready", "true_conditions", "reason", "message"),
    [
        pytest.param(
            observed(runner="", problem=Problem(reason="Pending", message="0/1 runners fit: 1 is full")),
            *("Pending", "0/1", {"Progressing"}, "Pending", "0/1 runners fit: 1 is full"),
            id="no runner",
        ),
        pytest.param(
            observed(runner="", problem=Problem(reason="CreateContainerConfigError", message="m")),
            *("CreateContainerConfigError", "0/1", {"Progressing"}, "CreateContainerConfigError", "m"),
            id="unresolved",
        ),
        pytest.param(
            observed(), "Pending", "0/1", {"Scheduled", "Progressing"}, "ContainerCreating", "", id="sent to its runner"
        ),
        pytest.param(
            observed(told(Waiting(reason="ContainerCreating"), run="")),
            *("Pending", "0/1", {"Scheduled", "Progressing"}, "ContainerCreating", ""),
            id="being prepared",
        ),
        pytest.param(
            observed(told(Waiting(reason="ErrImagePull", message="refused"), run="")),
            *("ErrImagePull", "0/1", {"Scheduled", "Progressing"}, "ErrImagePull", "refused"),
            id="a failing pull",
        ),
        pytest.param(
            observed(told(RUNNING)),
            *("Running", "1/1", {"Ready", "Scheduled", "ModuleReady"}, "Running", ""),
            id="running",
        ),
        pytest.param(
            observed(told(RUNNING), unreachable=True),
            *("Unknown", "0/1", {"Scheduled", "ModuleReady", "Progressing"}, "RunnerUnreachable", UNREACHABLE),
            id="running on a silent runner",
        ),
        pytest.param(
            observed(unreachable=True),
            *("Unknown", "0/1", {"Scheduled", "Progressing"}, "RunnerUnreachable", UNREACHABLE),
            id="on a silent runner that this operator never heard",
        ),
        pytest.param(
            observed(told(Waiting(reason="CrashLoopBackOff", message="back-off 10s"), restarts=1, last=end(1))),
            *(
                "CrashLoopBackOff",
                "0/1",
                {"Scheduled", "ModuleReady", "Progressing"},
                "CrashLoopBackOff",
                "back-off 10s",
            ),
            id="a crash loop",
        ),
        pytest.param(
            observed(told(end(0), ended=True)),
            *("Succeeded", "0/1", {"Ready", "Scheduled", "ModuleReady", "Complete"}, "Completed", "exit code 0"),
            id="complete",
        ),
        pytest.param(
            observed(told(end(3), ended=True)),
            *("Failed", "0/1", {"Scheduled", "ModuleReady", "Failed", "Stalled"}, "Error", "exit code 3"),
            id="failed",
        ),
        pytest.param(
            observed(told(end(134, message="unreachable executed"), ended=True)),
            *("Failed", "0/1", {"Scheduled", "ModuleReady", "Failed", "Stalled"}, "Error", "unreachable executed"),
            id="trapped",
        ),
        pytest.param(
            observed(told(end(0))),
            *("Completed", "0/1", {"Scheduled", "ModuleReady", "Progressing"}, "Completed", "exit code 0"),
            id="between two runs",
        ),
    ],
)
def test_what_is_shown(
    observation: Told, phase: str, ready: str, true_conditions: set[str], reason: str, message: str
) -> None:
    status = written(new(), observation)
    assert (status["phase"], status["ready"], status["readyReplicas"]) == (phase, ready, int(ready[0]))
    by_type = {item["type"]: item for item in status["conditions"]}
    assert {kind for kind, item in by_type.items() if item["status"] == "True"} == true_conditions
    assert (by_type["Ready"]["reason"], by_type["Ready"]["message"]) == (reason, message)
    (instance,) = status["instances"]
    assert (instance["reason"], instance["message"]) == (reason, message)


def test_an_instance_tells_where_it_runs_and_how_it_ended() -> None:
    last = end(1, "a")
    (instance,) = written(new(), observed(told(RUNNING, run="b", restarts=1, last=last)))["instances"]
    assert instance == {
        "name": "hello-0f-0",
        "index": 0,
        "revision": "0f",
        "ready": True,
        "runner": "one",
        "node": "n",
        "state": "Running",
        "reason": "Running",
        "message": "",
        "containerID": "wherry://one/b",
        "restarts": 1,
        "exitCode": 1,
        "startedAt": "2026-01-02T03:04:05Z",
        "finishedAt": "2026-01-02T03:04:06Z",
    }


def test_a_start_that_is_over_already_is_shown_once() -> None:
    body = new()
    shown = []
    for _ in range(3):
        told_now = observed(told(end(0), ended=True)).observed(body.get("status") or {})
        for desired in steps(body, told_now, now=START):
            if differs(body.get("status") or {}, desired):
                body["status"] = merge_json(body.get("status"), desired)
                shown.append((desired["phase"], desired["ready"]))
    assert shown == [("Running", "1/1"), ("Succeeded", "0/1")]


def test_an_object_that_is_being_deleted_says_so() -> None:
    status = written(new(deletionTimestamp="2026-01-02T03:04:05Z"), observed(told(RUNNING)))
    assert status["phase"] == "Terminating"
    assert {item["type"]: item["status"] for item in status["conditions"]}["Ready"] == "False"


@pytest.mark.parametrize(
    "trouble",
    [
        observed(problem=Problem(reason="CreateContainerConfigError", message="m")),
        observed(runner="", problem=Problem(reason="Pending", message="m")),
        observed(unreachable=True),
        observed(),
    ],
)
@pytest.mark.parametrize(
    ("status", "code"),
    [(told(RUNNING, restarts=2), None), (told(end(3), restarts=2, ended=True), 3)],
    ids=["running", "ended"],
)
def test_trouble_does_not_make_it_forget_what_ran_and_where(
    trouble: Told, status: protocol.WorkloadStatus, code: int | None
) -> None:
    """Else a new operator would place it once more, and Never would run twice (design §3.8)."""
    live = written(new(), observed(status), trouble, trouble)
    (entry,) = live["instances"]
    assert workload.last_runner(entry) == "one"
    (past,) = workload.history(entry)
    assert (past.container, past.container_id, past.restart_count) == ("module", "a", 2)
    assert (past.terminated.exit_code if past.terminated else None) == code
    assert live["restarts"] == 2


def test_another_template_begins_without_a_past() -> None:
    live = written(new(), observed(told(end(0), ended=True)), observed(slot=Slot("1f", 0)))
    (entry,) = live["instances"]
    assert workload.history(entry) == ()
    assert workload.last_runner(entry) == "one", "where it was placed, also before it runs"
    assert (live["succeeded"], live["completedIndexes"]) == (0, "")
    assert live["restarts"] == 0


@pytest.mark.parametrize("entry", [{}, {"name": "x", "containerID": "containerd://a"}])
def test_no_past(entry: Json) -> None:
    assert (workload.history(entry), workload.last_runner(entry)) == ((), "")


STATES = st.one_of(
    st.builds(
        Waiting, reason=st.sampled_from(["ContainerCreating", "CrashLoopBackOff"]), message=st.sampled_from(["", "m"])
    ),
    st.just(RUNNING),
)


@st.composite
def observations(draw: st.DrawFn) -> Told:
    policy = draw(st.sampled_from([NEVER, ALWAYS]))
    runner = draw(st.sampled_from(["one", "two"]))
    match draw(st.sampled_from(["nothing", "problem", "status", "status"])):
        case "nothing":
            return observed(runner=runner, unreachable=draw(st.booleans()), policy=policy)
        case "problem":
            problem = Problem(reason=draw(st.sampled_from(["Pending", "Odd"])), message="m")
            return observed(runner="", problem=problem, policy=policy)
    run = draw(st.sampled_from("abc"))
    state = draw(STATES | st.builds(end, st.sampled_from([0, 3]), st.just(run)))
    last = draw(st.none() | st.builds(end, st.sampled_from([0, 1]), st.sampled_from("abc")))
    status = told(state, run=run, restarts=draw(st.integers(0, 3)), last=last, ended=draw(st.booleans()))
    return observed(status, runner=runner, unreachable=draw(st.booleans()), policy=policy)


def fits(value: Any, schema: Json, path: str = "status") -> None:
    """A value against the CRD's schema: the API server prunes or refuses what does not fit."""
    if value is None:
        return  # in a merge patch: removes it
    match schema["type"]:
        case "object":
            assert isinstance(value, dict), path
            assert set(value) <= set(schema["properties"]), path
            assert set(schema.get("required", ())) <= set(value), path
            for key, item in value.items():
                fits(item, schema["properties"][key], f"{path}.{key}")
        case "array":
            assert isinstance(value, list), path
            keys = [tuple(item[key] for key in schema.get("x-kubernetes-list-map-keys", ())) for item in value]
            assert len(set(keys)) == len(keys), path
            for item in value:
                fits(item, schema["items"], f"{path}[]")
        case "integer":
            assert type(value) is int, path
        case "boolean":
            assert type(value) is bool, path
        case "string":
            assert isinstance(value, str), path
            assert value in schema.get("enum", [value]), path


@settings(max_examples=150, deadline=None)
@given(st.lists(observations(), min_size=1, max_size=6))
def test_whatever_is_observed_fits_the_crd_and_is_written_once(seen: list[Told]) -> None:
    schema = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    body, now = new(), START
    for observation in seen:
        now += timedelta(seconds=10)
        before = copy.deepcopy(body.get("status") or {})
        wanted = steps(body, observation.observed(before), now=now)
        assert len(wanted) <= 2
        for desired in wanted:
            fits(desired, schema)
            body["status"] = merge_json(body.get("status"), desired)
            assert not differs(body["status"], desired)
        (again,) = steps(body, observation.observed(body["status"]), now=now + timedelta(seconds=10))
        assert not differs(body["status"], again)
        old = {item["type"]: item for item in before.get("conditions", [])}
        for item in body["status"]["conditions"]:
            if item["type"] in old and len(wanted) == 1:
                flipped = item["status"] != old[item["type"]]["status"]
                moved = item["lastTransitionTime"] != old[item["type"]]["lastTransitionTime"]
                assert flipped == moved
                assert not moved or item["lastTransitionTime"] == containers.rfc3339(now)
