"""A Pod's phase, and whether it is initialized (pkg/kubelet/kubelet_pods.go, getPhase; pkg/kubelet/status/generate.go)."""

from __future__ import annotations

from wherry_operator.status.containers import Json, completed
from wherry_runner import protocol

PENDING, RUNNING, SUCCEEDED, FAILED = "Pending", "Running", "Succeeded", "Failed"


def is_sidecar(container: Json) -> bool:
    """Of an init container's spec: it runs beside the containers (KEP-753)."""
    return bool(container.get("restartPolicy") == "Always")


def pod_phase(spec: Json, init: list[Json], main: list[Json], observed: protocol.WorkloadStatus | None) -> str:
    """The phase that these container statuses make."""
    policy = protocol.RestartPolicy(spec.get("restartPolicy", "Always"))
    running = any("running" in status["state"] for status in (*init, *main))
    if observed is not None and observed.phase is protocol.Phase.ENDED and not running:
        good = observed.failure is None and all(_exit_code(status) == 0 for status in main)
        return SUCCEEDED if good else FAILED
    never = policy is protocol.RestartPolicy.NEVER
    regular = [
        status
        for status, container in zip(init, spec.get("initContainers") or (), strict=True)
        if not is_sidecar(container)
    ]
    if never and any(_exit_code(status) not in (None, 0) for status in regular):
        return FAILED
    if initialized(spec, init) and not any(status.get("containerID") for status in main):
        return PENDING
    codes = [_exit_code(status) for status in main if "running" not in status["state"]]
    if None in codes:
        return PENDING
    if len(codes) < len(main) or policy is protocol.RestartPolicy.ALWAYS or _sidecar_runs(spec, init):
        return RUNNING
    if all(code == 0 for code in codes):
        return SUCCEEDED
    return FAILED if never else RUNNING


def initialized(spec: Json, init: list[Json]) -> list[str]:
    """The init containers that are still to end well or, sidecars, to start; empty: the Pod is initialized."""
    return [
        status["name"]
        for status, container in zip(init, spec.get("initContainers") or (), strict=True)
        if not (status.get("containerID") if is_sidecar(container) else completed(status))
    ]


def _sidecar_runs(spec: Json, init: list[Json]) -> bool:
    return any(
        is_sidecar(container) and "running" in status["state"]
        for status, container in zip(init, spec.get("initContainers") or (), strict=True)
    )


def _exit_code(status: Json) -> int | None:
    """Of the newest run that has ended; None: none has."""
    ended = status["state"].get("terminated")
    if ended is None and "waiting" in status["state"]:
        ended = (status.get("lastState") or {}).get("terminated")
    return int(ended["exitCode"]) if ended else None
