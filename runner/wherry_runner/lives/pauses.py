"""What a container waits for between its runs, and how long: each wait ends at once when nothing more is to be started."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from wherry_runner import protocol
from wherry_runner.lives import words
from wherry_runner.lives.backoff import BackOff, BackOffSettings
from wherry_runner.lives.shown import Shown

T = TypeVar("T")


class Pauses:
    """Of one container; they are told as the kubelet tells them."""

    __slots__ = ("_module_back_off", "_restart_back_off", "_settings", "_shown", "_waiting", "held", "stopping")

    def __init__(self, settings: BackOffSettings, shown: Shown) -> None:
        self._settings = settings
        self._shown = shown
        self._module_back_off: BackOff | None = None
        self._restart_back_off: BackOff | None = None
        self._waiting: asyncio.Future[Any] | None = None
        """What can be broken off: a pull, a pause."""
        self.stopping = False
        """Nothing more is to be started."""
        self.held = False
        """This process starts nothing more; the next one may."""

    @property
    def over(self) -> bool:
        """Nothing is waited for any more."""
        return self.stopping or self.held

    def stop(self) -> None:
        """Nothing more is to be started."""
        self.stopping = True
        self._break_off()

    def hold(self) -> None:
        """Nothing more is to be started by this process."""
        self.held = True
        self._break_off()

    async def unless_over(self, what: Awaitable[T], seconds: float | None = None) -> T | None:
        """Wait for something, at most so long; None once `stop` or `hold` broke it off, or when the time was over."""
        waiting = asyncio.ensure_future(what)
        self._waiting = waiting
        try:
            if not self.over:
                await asyncio.wait([waiting], timeout=seconds)
        finally:
            self._waiting = None
            if not waiting.done():
                waiting.cancel()
        # Cancelled, now or by `stop`, it is not done or has no result.
        return waiting.result() if waiting.done() and not waiting.cancelled() else None

    async def after_failure(self, reason: str, message: str, *, image: str) -> None:
        """Say why there is no run, and wait until it may be tried again. `image`: where its module comes from."""
        now = asyncio.get_running_loop().time
        back_off = self._module_back_off = self._module_back_off or BackOff(self._settings)
        failed_at = now()
        back_off.advance(failed_at, failed_at)
        self._shown.wait(reason, message)
        await self._pause(min(self._settings.error_shown, back_off.delay))
        remaining = back_off.remaining(failed_at, now())
        if remaining > 0 and reason == "ErrImagePull":
            self._shown.wait("ImagePullBackOff", words.pull_back_off(image, reason, message))
        await self._pause(remaining)

    async def after_end(self, container: str, owner: protocol.Owner, on_back_off: Callable[[], None]) -> None:
        """Wait until a container whose run has ended may have the next. `on_back_off`: that takes longer than a moment."""
        now = asyncio.get_running_loop().time
        back_off = self._restart_back_off = self._restart_back_off or BackOff(self._settings)
        ended_at = now()
        await self._pause(self._settings.settle)
        remaining = back_off.remaining(ended_at, now())
        if remaining > 0 and not self.over:
            on_back_off()
            self._shown.wait("CrashLoopBackOff", words.crash_loop(container, owner, back_off.delay))
            await self._pause(remaining)
        back_off.advance(ended_at, now())

    async def _pause(self, seconds: float) -> None:
        if seconds > 0:
            await self.unless_over(asyncio.get_running_loop().create_future(), seconds)

    def _break_off(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
