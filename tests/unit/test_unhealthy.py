"""Failing probes as Events: in the kubelet's words, and each once."""

from __future__ import annotations

from datetime import UTC, datetime

from wherry_operator.status.unhealthy import AT_ONCE, Unhealthy
from wherry_runner import protocol
from wherry_runner.protocol import Owner, Phase, ProbeFailure, Running, WorkloadStatus

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def status(*failures: ProbeFailure, id: str = "u-1", run: str = "a") -> WorkloadStatus:
    running = protocol.ContainerStatus(
        name="main", state=Running(started_at=AT), container_id=run, probe_failures=failures
    )
    return WorkloadStatus(
        id=id,
        owner=Owner(kind="Pod", namespace="boats", name="hello", uid="u-1"),
        phase=Phase.ACTIVE,
        epoch=1,
        sequence=1,
        template_hash="t",
        accepted_at=AT,
        containers=(running,),
    )


def failed(count: int = 1, message: str = "HTTP probe failed with statuscode: 500") -> ProbeFailure:
    return ProbeFailure(probe="Liveness", message=message, count=count)


def test_a_hook_that_fails_is_told_once_for_each_run_and_without_what_a_server_answered() -> None:
    unhealthy = Unhealthy()
    for run in ("a", "b"):
        found = status(run=run)
        (container,) = found.containers
        failed_hook = (protocol.HookFailure(hook="PostStart"),)
        told = found.model_copy(update={"containers": (container.model_copy(update={"hook_failures": failed_hook}),)})
        assert said(unhealthy, told) == [("Warning", "FailedPostStartHook", "PostStartHook failed")]
        assert said(unhealthy, told) == []


def said(unhealthy: Unhealthy, *statuses: WorkloadStatus) -> list[tuple[str, str, str]]:
    return [(each.kind, each.reason, each.message) for each in unhealthy.news("u-1", statuses)]


def test_each_failure_that_a_runner_tells_is_one_event() -> None:
    unhealthy = Unhealthy()
    words = ("Warning", "Unhealthy", "Liveness probe failed: HTTP probe failed with statuscode: 500")
    assert said(unhealthy, status()) == []
    assert said(unhealthy, status(failed())) == [words]
    assert said(unhealthy, status(failed())) == []
    assert said(unhealthy, status(failed(7))) == [words]
    assert said(unhealthy, status(failed(7), run="b")) == [words], "another run, another failure"
    assert said(unhealthy, status(run="b")) == []


def test_of_many_instances_a_few_are_told() -> None:
    statuses = [status(failed(), id=f"u-1-{number}") for number in range(100)]
    unhealthy = Unhealthy()
    assert len(said(unhealthy, *statuses)) == AT_ONCE
    assert said(unhealthy, *statuses) == []
