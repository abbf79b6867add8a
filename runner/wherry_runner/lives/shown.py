"""What is told of a container: its state, and how the newest two of its runs ended."""

from __future__ import annotations

from collections.abc import Callable

from wherry_runner import protocol
from wherry_runner.lives import words
from wherry_runner.modules.library import Compiling, Progress, Pulling

PROGRESS_SECONDS = 0.5
"""Progress is told no more often: each time is a line to every reader of the watch."""

PULLING, COMPILING = "Pulling", "Compiling"
"""No words of a kubelet's: what takes long is visible while it lasts."""


class Shown:
    """Of one container. `waiting`: what is said before its first run."""

    __slots__ = ("_on_change", "_progress_at", "_waiting", "end", "end_before", "state")

    def __init__(self, waiting: protocol.Waiting, on_change: Callable[[], None]) -> None:
        self._waiting = waiting
        self._on_change = on_change
        self._progress_at = 0.0
        self.state: protocol.ContainerState = waiting
        self.end: protocol.Terminated | None = None
        """How the newest run that has ended did; `end_before`: the one before that."""
        self.end_before: protocol.Terminated | None = None

    @property
    def last_terminated(self) -> protocol.Terminated | None:
        """How the run before the one that the state is about ended."""
        return self.end_before if isinstance(self.state, protocol.Terminated) else self.end

    @property
    def untold(self) -> bool:
        """Nothing was ever said but what is said before a first run."""
        return self.state is self._waiting

    def tell(self, state: protocol.ContainerState) -> None:
        """It is in this state now."""
        self.state = state
        self._on_change()

    def wait(self, reason: str, message: str = "") -> None:
        """It waits, and this is why."""
        self.tell(protocol.Waiting(reason=reason, message=words.cut(message)))

    def progress(self, progress: Progress, now: float) -> None:
        """Its module is on its way. `now`: monotonic seconds."""
        match progress:
            case Pulling():
                state = protocol.Waiting(reason=PULLING, message=words.pulled(progress))
            case Compiling():
                state = protocol.Waiting(reason=COMPILING)
        told = isinstance(self.state, protocol.Waiting) and self.state.reason == state.reason
        if not told or now - self._progress_at >= PROGRESS_SECONDS:
            self._progress_at = now
            self.tell(state)

    def arrived(self) -> None:
        """Its module is there."""
        if self._is_in_progress():
            self.tell(self._waiting)

    def note_end(self, end: protocol.Terminated) -> None:
        """The newest run ended so; what state that makes is not said."""
        self.end, self.end_before = end, self.end

    def finish(self) -> None:
        """No run will follow. Who ran shows how the newest run ended, as a kubelet does, and not that it waited for more."""
        if self.end is not None:
            self.state = self.end
        elif self._is_in_progress():
            self.state = self._waiting

    def _is_in_progress(self) -> bool:
        return isinstance(self.state, protocol.Waiting) and self.state.reason in (PULLING, COMPILING)
