"""Who leads: one of the operator's replicas, by a Lease of coordination.k8s.io/v1.

The rules are those of client-go's leader election (`tools/leaderelection`): a candidate trusts no other clock
than its own and takes a Lease over only after it has itself seen it unchanged for the Lease's duration; every
write carries the resourceVersion that it was decided on, so that of two candidates one loses by a Conflict.

Added: each acquisition, also of our own Lease after a restart, raises `leaseTransitions`, which is the
**epoch**: runners refuse a lower one than they have seen (design §3.4), so that a leader that has not noticed
its end can do no harm there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from wherry_operator import lease as rules
from wherry_operator.clock import Clock
from wherry_operator.errors import text
from wherry_operator.kube import Conflict, KubeError, NotFound
from wherry_operator.lease import CALL_SECONDS, RETRY_SECONDS, Reachable, Sight
from wherry_operator.models import Object
from wherry_operator.settings import Settings

log = logging.getLogger(__name__)

RENEW_SECONDS = 5.0
"""A third of the duration: one lost renewal costs nothing."""

LOST_SECONDS = 10.0
"""Not renewed for so long, we are no leader any more: well before another may take over
(LEASE_DURATION_SECONDS)."""


class LeadershipLost(Exception):
    """We do not lead any more: everything that a leader does has to stop."""


class LeaseApi(Protocol):
    """What of `Kube` is used here."""

    async def get(self, path: str) -> Object:
        """One object."""
        ...

    async def create(self, path: str, body: Object) -> Object:
        """Create an object in a collection."""
        ...

    async def replace(self, path: str, body: Object) -> Object:
        """Replace an object, if nobody else did."""
        ...


class Leadership:
    """One candidate. `acquire`, then `hold` beside all that a leader does, then `release`."""

    def __init__(
        self,
        kube: LeaseApi,
        *,
        namespace: str,
        name: str,
        identity: str,
        sight: Sight | None = None,
        clock: Clock | None = None,
    ) -> None:
        """`sight`: what this process has seen of the Lease before, by the same clock."""
        self._kube = kube
        self._collection = rules.collection(namespace)
        self._path = f"{self._collection}/{name}"
        self._name = name
        self._identity = identity
        self._clock = clock or Clock()
        self._lease: Object | None = None
        self._renewed = float("-inf")
        self._sight = sight or Sight(name)
        self._writing = asyncio.Lock()
        self.lost = asyncio.Event()
        """Set once leadership has ended in whatever way."""
        self.reachable: Reachable | None = None
        """Where those who wait find us when we lead: written with the Lease."""

    @classmethod
    def from_settings(cls, kube: LeaseApi, settings: Settings, sight: Sight | None = None) -> Leadership:
        """The election of this installation."""
        name = rules.name_of(settings.node_name)
        return cls(kube, namespace=settings.namespace, name=name, identity=settings.identity, sight=sight)

    @property
    def epoch(self) -> int:
        """The number of our term; 0 before the first."""
        return int(self._lease["spec"]["leaseTransitions"]) if self._lease else 0

    @property
    def held(self) -> bool:
        """Whether we lead now, judged by the clock: false too when the process was frozen and nobody noticed
        yet."""
        renewed_for = self._clock.monotonic() - self._renewed
        return self._lease is not None and not self.lost.is_set() and renewed_for < LOST_SECONDS

    def complaint(self) -> str:
        """For a health check: why nobody is known to lead, "" if somebody is."""
        if self.held:
            return ""
        return self._sight.complaint(self._clock.monotonic(), self._identity)

    async def acquire(self, *, when_due: Callable[[], object] = lambda: None) -> int:
        """Wait until we lead. Failures of the API server are logged and tried again.

        :param when_due: called when it looks as if that were soon: DUE_SECONDS before, and perhaps again. Must not block.
        :return: the epoch.
        """
        self.lost.clear()
        self._lease = None
        while True:
            wait = RETRY_SECONDS
            try:
                async with asyncio.timeout(CALL_SECONDS):
                    wait = await self._try()
            except Conflict:
                pass  # another candidate was faster: look again
            except (KubeError, TimeoutError) as error:
                log.warning("can't take the Lease %s: %s", self._name, text(error))
            if self._sight.due(self._clock.monotonic()):
                when_due()
            if self._lease is not None:
                log.info("leading as %s, epoch %d", self._identity, self.epoch)
                return self.epoch
            await self._clock.sleep(wait)

    async def hold(self) -> None:
        """Renew until cancelled. Raises LeadershipLost; `lost` is set in either case."""
        wait = RENEW_SECONDS
        try:
            while True:
                await self._clock.sleep(min(wait, max(0.0, self._left())))
                left = self._left()
                if left <= 0:
                    raise LeadershipLost(f"the Lease {self._name} was not renewed for {LOST_SECONDS:.0f} s")
                try:
                    async with asyncio.timeout(min(left, CALL_SECONDS)):
                        await self._write(0)
                    wait = RENEW_SECONDS
                except (KubeError, TimeoutError) as error:
                    wait = RETRY_SECONDS
                    log.warning("can't renew the Lease %s: %s", self._name, text(error))
        finally:
            self.lost.set()

    async def advance(self, beyond: int) -> int:
        """Raise our epoch above one that a runner has seen (`Refusal.epoch` of a StaleEpoch), while we still
        lead.

        Needed where the Lease has forgotten: it was deleted, or etcd came back from a backup. Safe, because a
        deposed leader's write is refused. Raises LeadershipLost, KubeError, TimeoutError (after
        CALL_SECONDS).

        :return: the epoch, now higher than `beyond`.
        """
        if not self.held:
            raise LeadershipLost(f"the Lease {self._name} is not ours")
        if self.epoch <= beyond:
            async with asyncio.timeout(CALL_SECONDS):
                await self._write(beyond + 1)
            log.warning("epoch raised to %d: a runner had seen %d", self.epoch, beyond)
        return self.epoch

    async def release(self) -> None:
        """Give the Lease up, so that another need not wait; call it when nothing of ours acts as leader any
        more."""
        if self._lease is None or self._left() <= 0:
            return
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await self._write(0, holder="")
            log.info("gave up the Lease %s", self._name)
        except LeadershipLost as error:
            log.info("nothing to give up: %s", error)
        except (KubeError, TimeoutError) as error:
            log.warning(
                "can't give up the Lease %s, another waits it out: %s",
                self._name,
                text(error),
            )
        self._lease = None
        self.lost.set()

    def _left(self) -> float:
        return self._renewed + LOST_SECONDS - self._clock.monotonic()

    async def _try(self) -> float:
        """Take the Lease if it is free (then `_lease` is set), else say in how many seconds to look again."""
        started = self._clock.monotonic()
        try:
            lease = await self._kube.get(self._path)
        except NotFound:
            # Deleted under its holder, who may not know yet: what was seen of it still has to run out.
            if self._sight.seen and (left := self._sight.expires_in(started)) > 0:
                return min(left, RETRY_SECONDS)
            self._lease = await self._kube.create(self._collection, self._taken(rules.free(self._name)))
        else:
            spec = lease.get("spec") or {}
            holder = spec.get("holderIdentity") or ""
            seen = self._clock.monotonic()
            self._sight.observe(spec, seen)
            if holder and holder != self._identity and (left := self._sight.expires_in(seen)) > 0:
                return min(left, RETRY_SECONDS)
            self._lease = await self._kube.replace(self._path, self._taken(lease))
        # From before the write: later is when others may have begun to count.
        self._renewed = started
        return 0.0

    def _taken(self, lease: Object) -> Object:
        return rules.taken(lease, self._identity, self._clock.now(), self.reachable)

    async def _write(self, least_epoch: int, *, holder: str | None = None) -> None:
        """Renew, with at least this epoch. Raises LeadershipLost when the Lease is no longer ours,
        KubeError."""
        async with self._writing:
            assert self._lease is not None, "acquire comes first"
            mine = self._lease
            started = self._clock.monotonic()
            try:
                self._lease = await self._kube.replace(self._path, self._renewal(mine, least_epoch, holder))
            except Conflict:
                # Somebody else's write, or our own one whose answer was lost: the live object tells.
                live = await self._kube.get(self._path)
                spec = live.get("spec") or {}
                ours = spec.get("holderIdentity") == self._identity
                if not ours or spec.get("leaseTransitions") != self.epoch:  # a higher one: our own successor
                    raise LeadershipLost(
                        f"the Lease {self._name} is held by {spec.get('holderIdentity') or 'nobody'}"
                    ) from None
                self._lease = await self._kube.replace(self._path, self._renewal(live, least_epoch, holder))
            except NotFound:
                raise LeadershipLost(f"the Lease {self._name} was deleted") from None
            self._renewed = started

    def _renewal(self, lease: Object, least_epoch: int, holder: str | None) -> Object:
        return rules.renewed(
            lease,
            self._identity if holder is None else holder,
            self._clock.now(),
            least_epoch=least_epoch,
            reachable=self.reachable,
        )
