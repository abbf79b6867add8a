"""In which order a workload's containers begin and end, and what is left of them after the runner's own death. Pure.

The rules are the kubelet's: init containers one after the other, each to its success; a sidecar (KEP-753) only has to run for
the next one to begin, and ends after the containers, the last sidecar first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol, TypeVar

from wherry_runner import protocol
from wherry_runner.journal.journals import Past
from wherry_runner.protocol import Failure, RestartPolicy


class Role(Enum):
    """What a container is in its workload."""

    INIT = auto()
    """Runs to its success before what follows it begins."""
    SIDECAR = auto()
    """Runs beside all that follows it."""
    MAIN = auto()
    """What the workload is for."""


class Member(Protocol):
    """What the order asks of a container."""

    @property
    def role(self) -> Role:
        """Its role."""

    @property
    def begun(self) -> bool:
        """It has run since the workload began."""

    @property
    def finished(self) -> bool:
        """It does not run, and won't."""

    @property
    def succeeded(self) -> bool:
        """It has finished, and its last run ended with 0."""


M = TypeVar("M", bound=Member)


def role(container: protocol.Container) -> Role:
    """The role of a container by its spec."""
    if not isinstance(container, protocol.InitContainer):
        return Role.MAIN
    return Role.SIDECAR if container.restart_policy == "Always" else Role.INIT


def restart_policy(role: Role, workload: RestartPolicy) -> RestartPolicy:
    """What happens when a container of this role has ended."""
    match role:
        case Role.SIDECAR:
            return RestartPolicy.ALWAYS
        case Role.INIT:
            return RestartPolicy.NEVER if workload is RestartPolicy.NEVER else RestartPolicy.ON_FAILURE
        case Role.MAIN:
            return workload


def runs_again(policy: RestartPolicy, exit_code: int) -> bool:
    """Whether a run that ended so is followed by another."""
    match policy:
        case RestartPolicy.ALWAYS:
            return True
        case RestartPolicy.ON_FAILURE:
            return exit_code != 0
        case RestartPolicy.NEVER:
            return False


def to_begin(members: Sequence[M]) -> list[M] | None:
    """Who should run now, or be on the way to it; None once the workload is over.

    `members` are all containers in the order of the spec, init containers first.
    """
    found: list[M] = []
    for member in members:
        match member.role:
            case Role.INIT if not member.finished:
                return [*found, member]
            case Role.INIT if not member.succeeded:
                return None
            case Role.SIDECAR:
                found.append(member)
                if not member.begun:
                    return found
    mains = [member for member in members if member.role is Role.MAIN and not member.finished]
    return [*found, *mains] if mains else None


def to_end(members: Sequence[M]) -> list[M]:
    """Who is to end next of a workload that ends: the containers together, then its sidecars, the last one first."""
    remaining = [member for member in members if not member.finished]
    others = [member for member in remaining if member.role is not Role.SIDECAR]
    return others or remaining[-1:]


@dataclass(frozen=True, kw_only=True)
class Resumption:
    """How a workload goes on after its runner's death."""

    stay: frozenset[str] = frozenset()
    """Containers that ran and are not run again."""
    over: bool = False
    """Nothing runs any more."""
    failure: Failure | None = None
    """Why it is over, where no container tells."""


def resume(workload: protocol.Workload, past: Mapping[str, Past]) -> Resumption:
    """How a workload goes on of which this is journaled: as a Pod whose sandbox is gone (kuberuntime_manager.go,
    computePodActions).

    Its volumes went with the runner, so what its init containers prepared is gone: they run again, as long as a container
    is left that they run for. Under Never nothing is started in a workload of which anything ran.
    """
    policy = workload.restart_policy
    ran = {name: found.terminated for name, found in past.items() if found.ran}
    everything = [*workload.init_containers, *workload.containers]
    if not any(container.name in ran for container in everything):
        return Resumption()
    done = {
        container.name
        for container in workload.containers
        if (end := ran.get(container.name)) is not None and not runs_again(policy, end.exit_code)
    }
    if len(done) == len(workload.containers):
        return Resumption(stay=frozenset(ran), over=True)
    if policy is RestartPolicy.NEVER:
        return Resumption(stay=frozenset(ran), over=True, failure=_failure(workload, ran))
    return Resumption(stay=frozenset(done))


def ended_well(workload: protocol.Workload, past: Mapping[str, Past]) -> bool:
    """Whether all that it is for has run to its end, with 0."""
    if workload.restart_policy is RestartPolicy.ALWAYS:
        return False
    ends = [found.terminated for item in workload.containers if (found := past.get(item.name)) is not None]
    return len(ends) == len(workload.containers) and all(end is not None and end.exit_code == 0 for end in ends)


def _failure(workload: protocol.Workload, ran: Mapping[str, protocol.Terminated | None]) -> Failure | None:
    """Under Never: why it can't go on, unless a container that failed or was lost tells that already."""
    told: Iterable[protocol.Terminated | None] = (
        ran[container.name]
        for container in (*workload.init_containers, *workload.containers)
        if container.name in ran and role(container) is not Role.SIDECAR
    )
    if any(end is None or end.exit_code != 0 for end in told):
        return None
    return Failure(
        reason="RunnerLost",
        message="the runner ended before all containers had run; with restartPolicy Never they are not begun anew",
    )
