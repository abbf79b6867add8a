"""The one way in: an object's wishes and what there is → what is to be done."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from wherry_operator.rollout import completion, service
from wherry_operator.rollout.instances import Instance
from wherry_operator.rollout.plan import Memory, Plan, Wanted


def decide(wanted: Wanted, instances: Sequence[Instance], memory: Memory, now: datetime) -> Plan:
    """The plan for an object. Asked again with what has come of it, it ends by asking for nothing more."""
    if wanted.service:
        return service.plan(wanted, instances, memory, now)
    return completion.plan(wanted, instances, memory, now)
