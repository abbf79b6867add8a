"""What an operator has to have heard before it may say that something is not there.

Its ports are listened on before: on a replica that waited, and that nobody leads any more, calls are there already.
"""

from __future__ import annotations

import asyncio
import contextlib

from wherry_operator.leader import Leadership
from wherry_operator.reconcile.resync import Resync
from wherry_operator.runners.discovery import Discovery
from wherry_operator.runners.registry import RunnerRegistry

FIRST_SYNC_SECONDS = 5.0
"""How long runners may take to say what they have before placing begins; a silent one is waited for no longer."""

PODS_SECONDS = 10.0
"""How long a call for a Pod waits for a leader that has just begun; below the 30 s after which clients give up."""


class Knowledge:
    """What one process knows; every part of it stays known."""

    def __init__(
        self, *, registry: RunnerRegistry, discovery: Discovery | None, resync: Resync, leadership: Leadership
    ) -> None:
        self._registry = registry
        self._discovery = discovery
        self._resync = resync
        self._leadership = leadership

    async def runners(self) -> None:
        """Wait until it is known what is on the runners, or which of them don't say."""
        if self._discovery is not None and not self._discovery.synced.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._discovery.synced.wait(), FIRST_SYNC_SECONDS)
        await self._registry.wait_first_sync(FIRST_SYNC_SECONDS)

    async def pods(self) -> str:
        """Wait until it is known which Pods are bound to our Node; why that is not known, "" if it is."""
        if self._resync.once_complete.is_set():
            return ""
        if not self._leadership.held:
            return (
                "this replica of the operator does not lead, and knows no Pods: ask the one whose address the Node has"
            )
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._resync.once_complete.wait(), PODS_SECONDS)
            return ""
        return (
            "the operator has begun to lead, and has not listed the Pods of this node yet: try again; should it go on, its log "
            "and /readyz say why"
        )
