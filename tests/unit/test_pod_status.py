"""PodStatus against a real kubelet's (podstatus/README.md), and what must hold of every status."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.fake_kube import merge_strategic
from wherry_operator.admission import Rejection
from wherry_operator.status import containers
from wherry_operator.status.pod import Observed, Problem, differs, is_terminal, patch, rejected, runner_of, steps
from wherry_runner import protocol
from wherry_runner.protocol import OpenPort, Phase, Running, Terminated, Waiting

Json = dict[str, Any]

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LIVES = sorted((Path(__file__).parent / "podstatus").glob("*.yaml"))
HOST = "10.245.0.1"


def apply(pod: Json, desired: Json) -> None:
    """As the API server does it, with the JSON that it then gives back."""
    pod["status"] = merge_strategic(pod.get("status") or {}, patch(desired))


def new_pod(spec: Json, *, name: str = "p", uid: str = "u-1") -> Json:
    """As the scheduler leaves it."""
    scheduled = {
        "type": "PodScheduled",
        "status": "True",
        "lastProbeTime": None,
        "lastTransitionTime": "2026-01-02T03:04:04Z",
    }
    return {
        "metadata": {"name": name, "namespace": "rec", "uid": uid, "generation": 1},
        "spec": spec,
        "status": {"phase": "Pending", "qosClass": "BestEffort", "conditions": [scheduled]},
    }


def workload_status(
    *statuses: protocol.ContainerStatus,
    init: tuple[protocol.ContainerStatus, ...] = (),
    ended: bool = False,
    failure: protocol.Failure | None = None,
) -> protocol.WorkloadStatus:
    return protocol.WorkloadStatus(
        id="u-1",
        owner=protocol.Owner(kind="Pod", namespace="rec", name="p", uid="u-1"),
        phase=Phase.ENDED if ended else Phase.ACTIVE,
        epoch=1,
        sequence=1,
        template_hash="t",
        accepted_at=START,
        init_containers=init,
        containers=statuses,
        failure=failure,
    )


def terminated(run: str, code: int = 0, reason: str = "") -> Terminated:
    return Terminated(
        exit_code=code,
        reason=reason or ("Completed" if code == 0 else "Error"),
        container_id=run,
        started_at=START,
        finished_at=START + timedelta(seconds=1),
    )


# --- lives ------------------------------------------------------------------------------------------------------------


def described(status: Json) -> list[str]:
    """A status in the fixtures' words."""
    why = f", {status['reason']}: {status['message']}" if status.get("reason") else ""
    lines = [f"phase {status['phase']}, generation {status['observedGeneration']}{why}"]
    for condition in status.get("conditions", ()):
        reason = f" {condition['reason']}" if condition.get("reason") else ""
        message = f": {condition['message']}" if condition.get("message") else ""
        if condition["type"] == "PodReadyToStartContainers":
            message = ""  # ours alone: where the Pod was placed, see the tests of runner_of
        lines.append(f"{condition['type']} {condition['status']}{reason}{message}")
    init = [("init ", item) for item in status.get("initContainerStatuses", ())]
    for kind, item in init + [("", item) for item in status.get("containerStatuses", ())]:
        run = containers.parse_container_id(item.get("containerID", ""))[1] or "none"
        last = _state(item["lastState"]) if item["lastState"] else "none"
        ready = "ready" if item["ready"] else "not ready"
        started = "; started" if item["started"] else ""
        count = item["restartCount"]
        lines.append(
            f"{kind}{item['name']}: {_state(item['state'])}; run {run}; last {last}; restarts {count}; {ready}{started}"
        )
    return lines


def _state(state: Json) -> str:
    ((kind, body),) = state.items()
    message = f": {body['message']}" if body.get("message") else ""
    match kind:
        case "waiting":
            return f"waiting {body['reason']}{message}"
        case "running":
            return "running"
        case _:
            run = containers.parse_container_id(body["containerID"])[1]
            return f"terminated {run} {body['exitCode']} {body['reason']}{message}"


def said(line: str) -> protocol.ContainerStatus:
    """What a runner says of a container that is to look like this line."""
    name, _, rest = line.partition(": ")
    rest, run, last, restarts, *flags = (part.strip() for part in _split(rest))

    def ended(text: str) -> Terminated:
        _, of, code, reason = text.split(" ", 3)
        return terminated(of, int(code), reason)

    state: protocol.ContainerState
    if rest == "running":
        state = Running(started_at=START)
    elif rest.startswith("terminated"):
        state = ended(rest)
    else:
        reason, _, message = rest.removeprefix("waiting ").partition(": ")
        state = Waiting(reason=reason, message=message)
    return protocol.ContainerStatus(
        name=name,
        state=state,
        last_terminated=None if last == "last none" else ended(last.removeprefix("last ")),
        container_id=run.removeprefix("run ").replace("none", ""),
        restart_count=int(restarts.removeprefix("restarts ")),
        ready=flags[0] == "ready",
    )


def _split(text: str) -> Iterator[str]:
    state, _, rest = text.partition("; run ")
    yield state
    yield from ("run " + rest).split("; ")


@pytest.mark.parametrize("path", LIVES, ids=lambda path: path.stem)
def test_a_pod_lives_as_on_a_kubelet(path: Path) -> None:
    life = yaml.safe_load(path.read_text())
    pod = new_pod(life["spec"], name=life["life"], uid=life["uid"])
    now = START
    shown: list[list[str]] = []
    for step in life["steps"]:
        pod["metadata"]["generation"] = step.get("generation", 1)
        lines = [line for line in step["shows"] if "; run " in line]
        match step["given"]:
            case "accepted":
                observations = [Observed(host_ip=HOST)]
            case "rejected":
                reason, message = step["shows"][0].split(", ", 2)[2].split(": Pod was rejected: ")
                apply(pod, desired := rejected(pod, Rejection(reason, message), now=now))
                shown.append(described(desired))
                assert is_terminal(pod) and set(desired) == REJECTED_FIELDS
                continue
            case "problem":
                state = said(lines[0]).state
                assert isinstance(state, Waiting)
                problem = Problem(reason=state.reason, message=state.message)
                observations = [Observed(host_ip=HOST, problem=problem)]
            case "runner":
                told = [said(line) for line in lines if not line.startswith("init ")]
                before = tuple(said(line.removeprefix("init ")) for line in lines if line.startswith("init "))
                why = step["shows"][0].split(", ", 2)[2:]
                failure = (
                    protocol.Failure(**dict(zip(("reason", "message"), why[0].split(": "), strict=True)))
                    if why
                    else None
                )
                # When all has ended a runner says it twice: of the container, then of the workload.
                over = all(isinstance(item.state, Terminated) for item in told) or before != ()
                final = step["shows"][0].startswith(("phase Succeeded", "phase Failed"))
                ends = [True] if step.get("ended") or failure else [False, True] if over and final else [False]
                observations = [
                    Observed(
                        runner="one",
                        host_ip=HOST,
                        status=workload_status(*told, init=before, ended=ended, failure=failure if ended else None),
                    )
                    for ended in ends
                ]
            case _:
                continue
        for observed in observations:
            now += timedelta(seconds=1)
            for desired in steps(pod, observed, now=now):
                if differs(pod["status"], desired):
                    shown.append(described(desired))
                    apply(pod, desired)
    assert shown == [step["shows"] for step in life["steps"] if step.get("only") != "kubelet"]


REJECTED_FIELDS = {"observedGeneration", "phase", "reason", "message", "startTime"}

NOT_LIVED = {
    "command-not-found": "a module is its own program: there is none to be missing. What can't be run waits instead, with "
    "CreateContainerError or a pull error and the reason",
    "liveness-fails-restarts": "probes are refused by name",
    "readiness-fails-then-passes": "probes are refused by name",
    "startup-probe-then-ready": "probes are refused by name",
}
"""The recorded lives that no module has, and why."""


def test_of_the_27_recorded_lives_each_is_lived_or_said_to_be_impossible() -> None:
    told = {path.stem for path in LIVES}
    assert len(told) + len(NOT_LIVED) == 27 and not told & NOT_LIVED.keys()


# --- fields -----------------------------------------------------------------------------------------------------------

SPEC = {"restartPolicy": "Always", "containers": [{"name": "main", "image": "r.example/hello:v1"}]}
RUNNING = protocol.ContainerStatus(
    name="main",
    state=Running(started_at=START),
    container_id="a",
    ready=True,
    module_digest="sha256:m",
    image_digest="sha256:i",
)


def one_step(pod: Json, observed: Observed, now: datetime = START) -> Json:
    (only,) = steps(pod, observed, now=now)
    return only


def test_a_running_container_has_all_fields_that_a_kubelet_writes() -> None:
    status = one_step(new_pod(SPEC), Observed(runner="one", host_ip=HOST, status=workload_status(RUNNING)))
    assert status["containerStatuses"] == [
        {
            "name": "main",
            "image": "r.example/hello:v1",
            "imageID": "sha256:i",
            "containerID": "wherry://one/a",
            "ready": True,
            "started": True,
            "restartCount": 0,
            "state": {"running": {"startedAt": "2026-01-02T03:04:05Z"}},
            "lastState": {},
            "resources": {},
        }
    ]
    assert (status["hostIP"], status["hostIPs"], status["startTime"]) == (HOST, [{"ip": HOST}], "2026-01-02T03:04:05Z")


def test_an_inline_module_has_its_own_digest_as_image_id() -> None:
    inline = RUNNING.model_copy(update={"image_digest": ""})
    status = one_step(new_pod(SPEC), Observed(runner="one", status=workload_status(inline)))
    assert status["containerStatuses"][0]["imageID"] == "sha256:m"


def test_the_containers_are_in_the_order_of_their_names_and_those_the_runner_does_not_name_wait() -> None:
    spec = {"containers": [{"name": name, "image": "i"} for name in ("c", "a", "b")]}
    known = RUNNING.model_copy(update={"name": "b"})
    status = one_step(new_pod(spec), Observed(runner="one", status=workload_status(known)))
    assert [(item["name"], next(iter(item["state"]))) for item in status["containerStatuses"]] == [
        ("a", "waiting"),
        ("b", "running"),
        ("c", "waiting"),
    ]
    ready = next(item for item in status["conditions"] if item["type"] == "Ready")
    assert ready["message"] == "containers with unready status: [a c]"


def condition(status: Json, kind: str = "Ready") -> tuple[str, str | None, str | None]:
    found = next(item for item in status["conditions"] if item["type"] == kind)
    return found["status"], found.get("reason"), found.get("message")


@pytest.mark.parametrize(
    ("gate", "expected"),
    [
        (None, 'corresponding condition of pod readiness gate "g" does not exist.'),
        ("False", 'the status of pod readiness gate "g" is not "True", but False'),
        ("True", None),
    ],
)
def test_a_readiness_gate_decides_over_ready_and_over_nothing_else(gate: str | None, expected: str | None) -> None:
    pod = new_pod({**SPEC, "readinessGates": [{"conditionType": "g"}]})
    if gate is not None:
        pod["status"]["conditions"].append({"type": "g", "status": gate})
    status = one_step(pod, Observed(runner="one", status=workload_status(RUNNING)))
    assert condition(status) == (
        ("True", None, None) if expected is None else ("False", "ReadinessGatesNotReady", expected)
    )
    assert condition(status, "ContainersReady") == ("True", None, None)


def test_a_silent_runner_makes_a_pod_unready_and_changes_nothing_else_also_for_an_operator_born_later() -> None:
    pod = new_pod(SPEC)
    apply(pod, one_step(pod, Observed(runner="one", host_ip=HOST, status=workload_status(RUNNING))))
    for known in (workload_status(RUNNING), None):
        status = one_step(pod, Observed(runner="one", host_ip=HOST, status=known, unreachable=True))
        assert condition(status) == ("False", "RunnerUnreachable", "runner one does not answer")
        assert condition(status, "PodReadyToStartContainers") == ("True", None, None)
        (item,) = status["containerStatuses"]
        assert (status["phase"], item["ready"], item["containerID"]) == ("Running", False, "wherry://one/a")


def test_a_runner_that_is_about_to_end_makes_a_pod_that_serves_unready_while_it_serves_on() -> None:
    pod = new_pod(SPEC)
    apply(pod, one_step(pod, Observed(runner="one", host_ip=HOST, status=workload_status(RUNNING))))
    status = one_step(pod, Observed(runner="one", host_ip=HOST, status=workload_status(RUNNING), leaving=True))
    assert condition(status) == ("False", "RunnerLeaving", "runner one is about to end")
    assert condition(status, "ContainersReady") == ("True", None, None)
    assert status["containerStatuses"][0]["ready"]
    unready = workload_status(RUNNING.model_copy(update={"ready": False}))
    assert condition(one_step(pod, Observed(runner="one", status=unready, leaving=True)))[1] == "ContainersNotReady"


def test_the_operators_own_address_is_shown_only_until_a_runners_is_known() -> None:
    pod = new_pod(SPEC)
    for observed, expected in (
        (Observed(host_ip="10.0.0.7"), "10.0.0.7"),
        (Observed(runner="one", host_ip="10.0.0.8", status=workload_status(RUNNING)), "10.0.0.8"),
        (Observed(host_ip="10.0.0.7", problem=Problem(reason="CreateContainerError", message="m")), "10.0.0.8"),
        (Observed(runner="one", host_ip="10.0.0.9", status=workload_status(RUNNING)), "10.0.0.9"),
    ):
        apply(pod, one_step(pod, observed))
        assert (pod["status"]["hostIP"], pod["status"]["hostIPs"]) == (expected, [{"ip": expected}])


SERVER_SPEC = {**SPEC, "containers": [{**SPEC["containers"][0], "ports": [{"containerPort": 8080}]}]}  # type: ignore[dict-item]


def test_a_pod_whose_port_had_to_be_another_has_no_address() -> None:
    pod = new_pod(SERVER_SPEC)
    for port, expected in ((20_001, None), (8080, "10.0.0.8"), (20_002, None)):
        serving = RUNNING.model_copy(update={"port": port})
        body = one_step(pod, Observed(runner="one", host_ip="10.0.0.8", status=workload_status(serving)))
        apply(pod, body)
        assert pod["status"].get("podIP") == expected
        assert (pod["status"].get("podIPs") or None) == (None if expected is None else [{"ip": expected}])
        assert not differs(pod["status"], body)


def test_a_pod_that_serves_has_its_runners_address_and_keeps_it() -> None:
    pod = new_pod(SERVER_SPEC)
    serving = RUNNING.model_copy(update={"port": 8080})
    waiting = RUNNING.model_copy(update={"state": Waiting(reason="CrashLoopBackOff"), "ready": False})
    for observed, expected in (
        (Observed(host_ip="10.0.0.7"), None),
        (Observed(runner="one", host_ip="10.0.0.8", status=workload_status(RUNNING)), None),
        (Observed(runner="one", host_ip="10.0.0.8", status=workload_status(serving)), "10.0.0.8"),
        (Observed(runner="one", host_ip="10.0.0.8", status=workload_status(waiting)), "10.0.0.8"),
        (Observed(host_ip="10.0.0.7"), "10.0.0.8"),
        (Observed(runner="two", host_ip="10.0.0.9", status=workload_status(serving)), "10.0.0.9"),
    ):
        apply(pod, one_step(pod, observed))
        assert pod["status"].get("podIP") == expected
        assert pod["status"].get("podIPs") == (None if expected is None else [{"ip": expected}])


def test_a_pod_whose_module_listens_itself_has_an_address_while_its_ports_are_its_own() -> None:
    pod = new_pod(SERVER_SPEC)
    for ports, expected in (
        ((OpenPort(named=53, port=53, protocol="UDP"),), "10.0.0.8"),
        ((OpenPort(named=8080, port=20_001), OpenPort(named=53, port=53, protocol="UDP")), None),
        ((OpenPort(named=8080, port=8080),), "10.0.0.8"),
    ):
        listening = RUNNING.model_copy(update={"ports": ports})
        apply(pod, one_step(pod, Observed(runner="one", host_ip="10.0.0.8", status=workload_status(listening))))
        assert pod["status"].get("podIP") == expected


def test_a_problem_does_not_hide_what_ran() -> None:
    pod = new_pod(SPEC)
    apply(pod, one_step(pod, Observed(runner="one", status=workload_status(RUNNING))))
    status = one_step(pod, Observed(problem=Problem(reason="CreateContainerConfigError", message="m")))
    assert status["containerStatuses"][0]["containerID"] == "wherry://one/a"


def test_a_message_that_is_no_longer_said_does_not_stay() -> None:
    pod = new_pod(SPEC)
    apply(pod, one_step(pod, Observed(problem=Problem(reason="ContainerCreating", message="0/1 runners fit"))))
    desired = one_step(pod, Observed(runner="one", unreachable=True))
    assert differs(pod["status"], desired)
    apply(pod, desired)
    assert pod["status"]["containerStatuses"][0]["state"] == {"waiting": {"reason": "ContainerCreating"}}


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_terminal_phase_never_changes(phase: str) -> None:
    pod = new_pod(SPEC)
    pod["status"]["phase"] = phase
    assert is_terminal(pod)
    for observed in (
        Observed(),
        Observed(runner="one", status=workload_status(RUNNING)),
        Observed(problem=Problem(reason="x", message="y")),
        Observed(
            runner="one", status=workload_status(RUNNING.model_copy(update={"state": terminated("a", 1)}), ended=True)
        ),
    ):
        assert {status["phase"] for status in steps(pod, observed, now=START)} == {phase}


@pytest.mark.parametrize(
    ("policy", "codes", "ended", "phase"),
    [
        ("Never", (0, 0), False, "Succeeded"),
        ("Never", (0, 1), False, "Failed"),
        ("Never", (None, 1), False, "Running"),
        ("OnFailure", (0, 0), False, "Succeeded"),
        ("OnFailure", (0, 1), False, "Running"),
        ("Always", (0, 0), False, "Running"),
        ("Always", (0, 0), True, "Succeeded"),
        ("Always", (0, 137), True, "Failed"),
        ("OnFailure", (1, 1), True, "Failed"),
    ],
)
def test_the_phase_is_the_kubelets(policy: str, codes: tuple[int | None, ...], ended: bool, phase: str) -> None:
    spec = {"restartPolicy": policy, "containers": [{"name": f"c{n}", "image": "i"} for n in range(len(codes))]}
    told = [
        protocol.ContainerStatus(
            name=f"c{n}",
            state=Running(started_at=START) if code is None else terminated(f"r{n}", code),
            container_id=f"r{n}",
            ready=code is None,
        )
        for n, code in enumerate(codes)
    ]
    *_, last = steps(new_pod(spec), Observed(runner="one", status=workload_status(*told, ended=ended)), now=START)
    assert last["phase"] == phase


def test_a_pod_that_is_deleted_before_anything_ran_has_failed() -> None:
    waiting = protocol.ContainerStatus(name="main", state=Waiting(reason="ImagePullBackOff"))
    status = one_step(new_pod(SPEC), Observed(runner="one", status=workload_status(waiting, ended=True)))
    assert status["phase"] == "Failed"


def test_what_others_wrote_beside_it_makes_no_difference() -> None:
    pod = new_pod(SPEC)
    desired = one_step(pod, Observed(runner="one", host_ip=HOST, status=workload_status(RUNNING)))
    apply(pod, desired)
    live = copy.deepcopy(pod["status"])
    live["conditions"] = [{"type": "cloud.example/ready", "status": "False"}, *reversed(live["conditions"])]
    live["podIPs"] = [{"ip": "10.0.0.1"}]
    live["containerStatuses"][0]["volumeMounts"] = []
    assert not differs(live, desired)
    # The node controller sets this on its own when it believes the node gone.
    next(item for item in live["conditions"] if item["type"] == "Ready").update(status="False", reason="NodeNotReady")
    assert differs(live, desired)


# --- properties -------------------------------------------------------------------------------------------------------

RUNS = st.sampled_from(["a", "b", "c"])
ENDS = st.builds(terminated, RUNS, st.sampled_from([0, 1, 137]))


@st.composite
def container_statuses(draw: st.DrawFn, name: str) -> protocol.ContainerStatus:
    run = draw(RUNS)
    state = draw(
        st.one_of(
            st.builds(
                Waiting,
                reason=st.sampled_from(["ContainerCreating", "ErrImagePull", "CrashLoopBackOff"]),
                message=st.sampled_from(["", "m", "n"]),
            ),
            st.just(Running(started_at=START)),
            st.builds(lambda code: terminated(run, code), st.sampled_from([0, 3])),
        )
    )
    last = draw(st.none() | ENDS)
    if isinstance(state, Waiting) and last is None:
        run = draw(st.sampled_from(["", run]))
    return protocol.ContainerStatus(
        name=name,
        state=state,
        last_terminated=last,
        container_id=run,
        restart_count=draw(st.integers(0, 3)),
        ready=isinstance(state, Running),
    )


@st.composite
def observations(draw: st.DrawFn) -> Observed:
    host = draw(st.sampled_from(["", HOST, "10.0.0.8", "10.0.0.9"]))
    kind = draw(st.sampled_from(["nothing", "problem", "status"]))
    if kind == "problem":
        reasons = st.sampled_from(["ContainerCreating", "CreateContainerConfigError"])
        problem = draw(st.builds(Problem, reason=reasons, message=st.sampled_from(["", "m"])))
        return Observed(host_ip=host, problem=problem)
    unreachable = draw(st.booleans())
    if kind == "nothing":
        return Observed(runner="one" if unreachable else "", host_ip=host, unreachable=unreachable)
    told = [draw(container_statuses(name)) for name in ("a", "b")]
    status = workload_status(*told, ended=draw(st.booleans()))
    return Observed(runner=draw(st.sampled_from(["one", "two"])), host_ip=host, status=status, unreachable=unreachable)


TWO = {"containers": [{"name": "b", "image": "i"}, {"name": "a", "image": "j"}]}


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["Always", "OnFailure", "Never"]), st.lists(observations(), min_size=1, max_size=6))
def test_whatever_is_observed_is_written_once_and_never_again(policy: str, observed: list[Observed]) -> None:
    pod = new_pod({**TWO, "restartPolicy": policy})
    now = START
    seen: set[str] = set()
    for observation in observed:
        now += timedelta(seconds=10)
        before = copy.deepcopy(pod["status"])
        wanted = steps(pod, observation, now=now)
        assert len(wanted) <= 2
        for desired in wanted:
            if differs(pod["status"], desired):
                apply(pod, desired)
            assert not differs(pod["status"], desired)
        now += timedelta(seconds=10)
        (again,) = steps(pod, observation, now=now)
        assert not differs(pod["status"], again), "the same again would be written again"

        if before["phase"] in ("Succeeded", "Failed"):
            assert pod["status"]["phase"] == before["phase"]
        # Every run that is told of was shown running, or is: none is skipped.
        if len(wanted) == 2:
            starts = {item["containerID"] for item in wanted[0]["containerStatuses"] if "running" in item["state"]} - {
                item.get("containerID") for item in before.get("containerStatuses", [])
            }
            assert starts, "a step more only for a start that nobody has seen"
        seen |= {item["containerID"] for item in pod["status"]["containerStatuses"] if item.get("containerID")}

        flips = {item["type"]: item for item in before["conditions"]}
        for item in pod["status"]["conditions"]:
            old = flips.get(item["type"])
            if old is not None and old["status"] == item["status"] and len(wanted) == 1:
                assert item["lastTransitionTime"] == old["lastTransitionTime"], "it only moves when the status does"
            elif old is not None and old["status"] != item["status"]:
                assert item["lastTransitionTime"] == containers.rfc3339(now - timedelta(seconds=10))


@given(st.lists(container_statuses("main"), min_size=1, max_size=4))
def test_what_a_status_shows_is_what_a_runner_without_journal_is_told(told: list[protocol.ContainerStatus]) -> None:
    pod = new_pod(SPEC)
    for item in told:
        for desired in steps(pod, Observed(runner="one", status=workload_status(item)), now=START):
            apply(pod, desired)
    last = told[-1]
    history = containers.history(pod["status"]["containerStatuses"])
    if not last.container_id:
        assert history == ()
        return
    (past,) = history
    assert (past.container_id, past.restart_count) == (last.container_id, last.restart_count)
    match last.state:
        case Running():
            assert past.terminated is None
        case Terminated():
            assert past.terminated == last.state
        case Waiting():
            assert past.terminated == last.last_terminated
    assert containers.last_runner(pod["status"]["containerStatuses"]) == "one"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wherry://one/abc", ("one", "abc")),
        ("wherry://r.example-1/abc", ("r.example-1", "abc")),
        ("containerd://abc", ("", "")),
        ("wherry://one", ("", "")),
        ("wherry://one/", ("", "")),
        ("", ("", "")),
    ],
)
def test_container_ids(text: str, expected: tuple[str, str]) -> None:
    assert containers.parse_container_id(text) == expected


def test_where_a_pod_was_placed_can_be_read_from_its_status_before_anything_ran() -> None:
    pod = new_pod({"containers": [{"name": "main", "image": "i"}]})
    for desired in steps(pod, Observed(runner="one", host_ip=HOST), now=START):
        apply(pod, desired)
    assert runner_of(pod["status"]) == "one"
    assert runner_of({}) == ""


def test_a_run_that_was_lost_and_can_not_begin_again_says_why() -> None:
    pod = new_pod({"containers": [{"name": "main", "image": "i"}]})
    running = protocol.ContainerStatus(name="main", state=Running(started_at=START), container_id="r1", ready=True)
    for desired in steps(pod, Observed(runner="one", host_ip=HOST, status=workload_status(running)), now=START):
        apply(pod, desired)
    problem = Problem(reason="CreateContainerConfigError", message='secret "gone" not found')
    for desired in steps(pod, Observed(runner="one", host_ip=HOST, problem=problem), now=START):
        apply(pod, desired)
    (status,) = pod["status"]["containerStatuses"]
    assert status["state"] == {"waiting": {"reason": problem.reason, "message": problem.message}}
    assert status["lastState"]["terminated"]["reason"] == "RunnerLost"
    assert not status["started"]
    assert runner_of(pod["status"]) == "one"
