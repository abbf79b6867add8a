"""The leader's Lease (coordination.k8s.io/v1): where it is, what is written there, and what a candidate may conclude from it.

The rules are those of client-go's leader election (`tools/leaderelection`): a candidate trusts no other clock than its own.
Nothing here does I/O, or imports what only a leader needs: `leader.py` and `waiting` both go by it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_address
from typing import Any

from wherry_operator.clock import micro_time
from wherry_operator.settings import LEASE_DURATION_SECONDS

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
"""Between two looks at a Lease that another holds, and after a failure."""

DUE_SECONDS = 5.0
"""A Lease that was not renewed until so short before its end may soon be ours: its holder has missed a renewal."""

CALL_SECONDS = 4.0
"""For one look or one write, so that a renewal can be tried twice before the leader has to give up (`leader.LOST_SECONDS`)."""

UNREAD_SECONDS = 10.0
"""A Lease that could not be read for so long says nothing any more of who leads."""

ANNOTATION = "wherry.dev/leader"
"""Where the holder is reached, as JSON. Its `holder` says whose it is: an operator of an earlier release leaves another's as it
was."""


def name_of(node_name: str) -> str:
    """The Lease of an installation: its node's name tells it from others in the same namespace."""
    return f"wherry-operator-{node_name}"


def collection(namespace: str) -> str:
    """The path of all Leases of a namespace."""
    return f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"


@dataclass(frozen=True, kw_only=True)
class Reachable:
    """Where an operator's two HTTPS ports are."""

    address: str
    """An IP address."""
    kubelet: int
    api: int


class Sight:
    """What one candidate has seen of the Lease, and when by its own clock (monotonic, in seconds)."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._seen: tuple[object, ...] = ()
        self._at = 0.0
        self._duration = float(LEASE_DURATION_SECONDS)
        self._looked_at = float("-inf")

    @property
    def seen(self) -> bool:
        """Whether it was ever seen."""
        return bool(self._seen)

    @property
    def holder(self) -> str:
        """Who held it when it was seen last; "" for nobody."""
        return str(self._seen[0] or "") if self._seen else ""

    def observe(self, spec: Mapping[str, Any], moment: float) -> None:
        """Take note of what the Lease says now."""
        self._looked_at = moment
        seen = (spec.get("holderIdentity"), spec.get("renewTime"), spec.get("leaseTransitions"))
        if seen != self._seen:
            if not self._seen or seen[0] != self._seen[0]:
                log.info("the Lease %s is held by %s", self.name, seen[0] or "nobody")
            self._seen, self._at = seen, moment
            self._duration = float(spec.get("leaseDurationSeconds") or LEASE_DURATION_SECONDS)

    def expires_in(self, moment: float) -> float:
        """After so many seconds it may be taken, unless its holder renews it: its duration begins when a change was seen."""
        return self._at + self._duration - moment

    def due(self, moment: float) -> bool:
        """Whether somebody holds it who seems to renew it no more."""
        return bool(self.holder) and self.expires_in(moment) <= DUE_SECONDS

    def complaint(self, moment: float, identity: str) -> str:
        """For a health check of `identity`, which does not lead: why nobody is known to do so, "" if somebody is."""
        if moment - self._looked_at > UNREAD_SECONDS:
            return f"the Lease {self.name} can't be read"
        if not self.holder or self.expires_in(moment) <= 0:
            return f"nobody holds the Lease {self.name}"
        return f"the Lease {self.name} is ours, and we do not lead yet" if self.holder == identity else ""


def free(name: str) -> dict[str, Any]:
    """The object where there is none yet."""
    return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}, "spec": {}}


def taken(lease: Mapping[str, Any], identity: str, now: datetime, reachable: Reachable | None = None) -> dict[str, Any]:
    """The object as its new holder writes it: each acquisition raises the epoch, also of what was ours before."""
    spec = lease.get("spec") or {}
    moment = micro_time(now)
    changed = {
        "holderIdentity": identity,
        "leaseDurationSeconds": LEASE_DURATION_SECONDS,
        "acquireTime": moment,
        "renewTime": moment,
        "leaseTransitions": int(spec.get("leaseTransitions") or 0) + 1,
    }
    return {**lease, "metadata": _told(lease["metadata"], identity, reachable), "spec": {**spec, **changed}}


def renewed(
    lease: Mapping[str, Any], holder: str, now: datetime, *, least_epoch: int = 0, reachable: Reachable | None = None
) -> dict[str, Any]:
    """The object as its holder writes it again; by the holder "" it is given up."""
    spec = lease["spec"]
    changed = {
        "holderIdentity": holder,
        "renewTime": micro_time(now),
        "leaseTransitions": max(int(spec["leaseTransitions"]), least_epoch),
    }
    return {**lease, "metadata": _told(lease["metadata"], holder, reachable), "spec": {**spec, **changed}}


def reachable_of(lease: Mapping[str, Any]) -> Reachable | None:
    """Where its holder says that it is reached; None where it says nothing that can be used: one of an earlier release."""
    holder = (lease.get("spec") or {}).get("holderIdentity")
    try:
        said = json.loads(lease["metadata"]["annotations"][ANNOTATION])
        if not holder or said["holder"] != holder:
            return None
        ports = said["kubelet"], said["api"]
        if not all(type(port) is int and 0 < port < 1 << 16 for port in ports):
            return None
        return Reachable(address=str(ip_address(said["address"])), kubelet=ports[0], api=ports[1])
    except (KeyError, TypeError, ValueError):
        return None


def _told(metadata: Mapping[str, Any], holder: str, reachable: Reachable | None) -> Mapping[str, Any]:
    if reachable is None or not holder:
        return metadata
    said = {"holder": holder, "address": reachable.address, "kubelet": reachable.kubelet, "api": reachable.api}
    return {**metadata, "annotations": {**(metadata.get("annotations") or {}), ANNOTATION: json.dumps(said)}}
