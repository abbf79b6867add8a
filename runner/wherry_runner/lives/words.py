"""What is said of containers: the kubelet's words, wherever it has some."""

from __future__ import annotations

from datetime import UTC, datetime

from wherry_runner import protocol
from wherry_runner.execution.engine import KILLED_EXIT_CODE, GuestExit
from wherry_runner.journal.journals import Past
from wherry_runner.modules.library import Pulling

RUNNER_LOST = "RunnerLost"
"""Why a run ended that nobody saw the end of. No word of a kubelet's: its containers outlive it."""


def image(module: protocol.Module) -> str:
    """Where a module comes from, as a status names it."""
    match module:
        case protocol.ImageModule(reference=reference):
            return reference
        case protocol.UrlModule(url=url):
            return url
        case protocol.InlineModule(source=source):
            return source


def pulled(progress: Pulling) -> str:
    """How far a pull is: `1.2 of 20.0 MiB`."""
    done = f"{progress.done_bytes / (1 << 20):.1f}"
    return f"{done} of {progress.total_bytes / (1 << 20):.1f} MiB" if progress.total_bytes else f"{done} MiB"


def pull_back_off(image: str, reason: str, message: str) -> str:
    """As pkg/kubelet/images/image_manager.go says it."""
    return f'Back-off pulling image "{image}": {reason}: {message}'


def crash_loop(container: str, owner: protocol.Owner, delay_seconds: float) -> str:
    """As pkg/kubelet/kuberuntime/kuberuntime_manager.go, doBackOff, says it."""
    return (
        f"back-off {go_duration(delay_seconds)} restarting failed container={container} "
        f"pod={owner.name}_{owner.namespace}({owner.uid})"
    )


def lost_with_runner(past: Past, *, never: bool) -> protocol.Terminated:
    """The end of a run that went with the runner's own process. `never`: its restart policy."""
    again = "; with restartPolicy Never it is not run again" if never else ""
    return protocol.Terminated(
        exit_code=KILLED_EXIT_CODE,
        reason=RUNNER_LOST,
        message=f"the runner ended while the container ran, and the container with it{again}",
        container_id=past.container_id,
        started_at=past.started_at,
        finished_at=datetime.now(UTC),
    )


def lost_with_executor() -> GuestExit:
    """The end of a run that went with the executor."""
    return GuestExit(
        exit_code=KILLED_EXIT_CODE,
        reason=RUNNER_LOST,
        message="the executor that ran the container died, and every container with it",
        finished_at=datetime.now(UTC),
    )


def cut(message: str) -> str:
    """A message as a status has room for it."""
    limit = protocol.MAX_MESSAGE_CHARACTERS
    return message if len(message) <= limit else message[: limit - 1] + "…"


def go_duration(seconds: float) -> str:
    """Seconds as Go prints a duration: 10s, 1m20s, 5m0s."""
    whole = round(seconds)
    return f"{whole}s" if whole < 60 else f"{whole // 60}m{whole % 60}s"
