"""One piece of work for all who want the same thing at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

T = TypeVar("T")
P = TypeVar("P")


@dataclass(eq=False)
class _Flight(Generic[T, P]):
    listeners: list[Callable[[P], None] | None] = field(default_factory=list)
    """One for each who waits."""
    newest: P | None = None
    task: asyncio.Task[T] | None = None

    def tell(self, progress: P) -> None:
        self.newest = progress
        for listener in list(self.listeners):
            if listener is not None:
                listener(progress)


class SingleFlight(Generic[T, P]):
    """Runs work once per key while anybody waits for it; all get its result, its errors and its progress.

    A waiter who is cancelled leaves the others undisturbed. When the last one leaves, the work is cancelled.
    """

    def __init__(self) -> None:
        self._flights: dict[str, _Flight[T, P]] = {}

    async def run(
        self,
        key: str,
        work: Callable[[Callable[[P], None]], Coroutine[Any, Any, T]],
        *,
        on_progress: Callable[[P], None] | None = None,
    ) -> T:
        """The result of `work(tell)`, or of the work under this key that is under way. Raises what it raises."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight()
            flight.task = asyncio.create_task(work(flight.tell), name=f"single-flight {key}")
            flight.task.add_done_callback(lambda task: self._done(key, flight, task))
        elif on_progress is not None and flight.newest is not None:
            on_progress(flight.newest)
        assert flight.task is not None
        flight.listeners.append(on_progress)
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.listeners.remove(on_progress)
            if not flight.listeners and not flight.task.done():
                flight.task.cancel()
                # Who comes now begins anew, rather than join what is being cancelled.
                self._forget(key, flight)

    def _done(self, key: str, flight: _Flight[T, P] | None, task: asyncio.Task[T]) -> None:
        self._forget(key, flight)
        if not task.cancelled():
            task.exception()  # seen, even where every waiter has left

    def _forget(self, key: str, flight: _Flight[T, P] | None) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
