"""What is wanted, what is remembered, and what is to be done: the words that both kinds of workloads share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from wherry_operator.models import IntOrPercent, Object, RollingUpdate, WasmWorkloadSpec
from wherry_operator.rollout import indexes
from wherry_operator.rollout.instances import Instance, Json, Slot, elapsed_seconds, time
from wherry_runner.protocol import RestartPolicy

FIRST_BACK_OFF_SECONDS = 10.0
LAST_BACK_OFF_SECONDS = 300.0
"""Between an instance that ended badly and the one that replaces it: the same as between two runs of one."""

DEFAULT_PROGRESS_DEADLINE_SECONDS = 600


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the spec asks for."""

    revision: str
    """Of the instances that it describes."""
    replicas: int = 1
    """Instances at once; none while suspended."""
    suspended: bool = False
    policy: RestartPolicy = RestartPolicy.ALWAYS
    recreate: bool = False
    max_surge: int = 1
    max_unavailable: int = 0
    min_ready_seconds: int = 0
    progress_deadline_seconds: int = DEFAULT_PROGRESS_DEADLINE_SECONDS
    completions: int = 1
    backoff_limit: int | None = None
    active_deadline_seconds: int | None = None
    ttl_seconds: int | None = None

    @property
    def service(self) -> bool:
        """It is to run for ever, not to its end."""
        return self.policy is RestartPolicy.ALWAYS

    @property
    def at_once(self) -> int:
        """How many are to run side by side, at most."""
        return self.replicas if self.service else min(self.replicas, self.completions)

    @staticmethod
    def of(workload: Object, revision: str) -> Wanted:
        """That of an object, with Kubernetes' defaults."""
        spec = WasmWorkloadSpec.model_validate(workload["spec"])
        strategy = spec.strategy
        surge, unavailable = steps(strategy.rolling_update if strategy else None, spec.replicas)
        return Wanted(
            revision=revision,
            replicas=0 if spec.suspend else spec.replicas,
            suspended=bool(spec.suspend),
            policy=spec.restart_policy,
            recreate=strategy is not None and strategy.type == "Recreate",
            max_surge=surge,
            max_unavailable=unavailable,
            min_ready_seconds=spec.min_ready_seconds or 0,
            progress_deadline_seconds=spec.progress_deadline_seconds or DEFAULT_PROGRESS_DEADLINE_SECONDS,
            # Scaled to none and without a number of its own it waits; it is not complete.
            completions=spec.completions if spec.completions is not None else max(spec.replicas, 1),
            backoff_limit=spec.backoff_limit,
            active_deadline_seconds=spec.active_deadline_seconds,
            ttl_seconds=spec.ttl_seconds_after_finished,
        )


def steps(rolling: RollingUpdate | None, replicas: int) -> tuple[int, int]:
    """maxSurge and maxUnavailable in numbers (pkg/controller/deployment/util/deployment_util.go, ResolveFenceposts)."""
    surge = _number(rolling.max_surge if rolling else None, replicas, up=True)
    unavailable = _number(rolling.max_unavailable if rolling else None, replicas, up=False)
    return (surge, unavailable) if surge or unavailable else (0, 1)


def _number(value: IntOrPercent | None, replicas: int, *, up: bool) -> int:
    if isinstance(value, int):
        return value
    share = int((value or "25%").removesuffix("%")) * replicas
    return -(-share // 100) if up else share // 100


def back_off_seconds(failed: Instance, now: datetime) -> float:
    """How long until the next attempt at what has ended."""
    if failed.ended_at is None:
        return 0.0
    wait: float = min(FIRST_BACK_OFF_SECONDS * 2 ** min(failed.slot.attempt, 16), LAST_BACK_OFF_SECONDS)
    return wait - elapsed_seconds(failed.ended_at, now)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The end of a run to completion; it is final."""

    good: bool
    reason: str
    message: str
    at: datetime


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What only the object's status knows."""

    revision: str = ""
    """Which revision the rest speaks of."""
    completed: frozenset[int] = frozenset()
    """Indexes that never run again."""
    retried: int = 0
    """Failed instances of indexes that completed later."""
    failed: int = 0
    start: datetime | None = None
    finished: Finished | None = None

    @staticmethod
    def of(live: Json) -> Memory:
        """That of a status."""
        finished = None
        for condition in live.get("conditions") or ():
            if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
                at = time(live.get("completionTime")) or time(condition["lastTransitionTime"])
                assert at is not None
                finished = Finished(
                    good=condition["type"] == "Complete",
                    reason=condition["reason"],
                    message=condition["message"],
                    at=at,
                )
        return Memory(
            revision=live.get("updateRevision", ""),
            completed=indexes.parse(live.get("completedIndexes", "")),
            retried=live.get("retried", 0),
            failed=live.get("failed", 0),
            start=time(live.get("startTime")),
            finished=finished,
        )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be done, and what is to be remembered."""

    run: tuple[Slot, ...] = ()
    """To be on a runner: those that are already, and those to be started."""
    stop: tuple[Slot, ...] = ()
    """To be taken from its runner, whatever it does."""
    forget: tuple[Slot, ...] = ()
    """Ended and written down: its runner need not keep it any longer."""
    memory: Memory = field(default_factory=Memory)
    again_seconds: float | None = None
    """When time alone will have changed something."""
    expired: bool = False
    """The object is to be deleted."""


class Soonest:
    """Collects what time will change."""

    def __init__(self) -> None:
        self.seconds: float | None = None

    def after(self, seconds: float) -> None:
        """Something happens then."""
        self.seconds = max(0.0, seconds) if self.seconds is None else max(0.0, min(self.seconds, seconds))


def latest(instances: Iterable[Instance]) -> tuple[dict[int, Instance], list[Instance]]:
    """The newest attempt at each index, and those that are older."""
    newest: dict[int, Instance] = {}
    older = []
    for instance in sorted(instances, key=lambda item: item.slot):
        if before := newest.get(instance.slot.index):
            older.append(before)
        newest[instance.slot.index] = instance
    return newest, older
