"""When a failed thing may be tried again, as a kubelet counts it.

The rules are those of client-go's `flowcontrol.Backoff` as the kubelet uses it for restarts and image pulls: the first retry
is immediate, then 10 s doubling to 5 min, and forgotten once the thing held for twice the maximum.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class BackOffSettings:
    """Seconds. A kubelet has 10 and 300 (KEP-4603 lets a node lower the maximum)."""

    initial: float = 10.0
    maximum: float = 300.0
    settle: float = 1.0
    """How long an end is shown before what follows it: a kubelet sees ends with its relist, once a second (pkg/kubelet/pleg)."""
    error_shown: float = 2.0
    """How long ErrImagePull is shown before it becomes ImagePullBackOff, as between two syncs of a kubelet."""


@dataclass(slots=True)
class BackOff:
    """The back-off of one container, or of one container's module. Times are monotonic seconds."""

    settings: BackOffSettings = field(default_factory=BackOffSettings)
    delay: float = 0.0
    """What the next try waits, counted from the last failure; 0 before the first."""
    _updated: float | None = None

    def remaining(self, failed_at: float, now: float) -> float:
        """Seconds from now until a try is allowed after the failure at `failed_at`; 0 if it is allowed at once."""
        if self._updated is None or self._expired(failed_at):
            return 0.0
        return max(0.0, failed_at + self.delay - now)

    def advance(self, failed_at: float, now: float) -> None:
        """Note that another try begins now, after a failure at `failed_at`."""
        if self._updated is None or self._expired(failed_at):
            self.delay = self.settings.initial
        else:
            self.delay = min(self.delay * 2, self.settings.maximum)
        self._updated = now

    def _expired(self, failed_at: float) -> bool:
        return self._updated is not None and failed_at - self._updated > 2 * self.settings.maximum
