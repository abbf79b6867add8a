"""Where the executors differ, as documented in docs/runner.md: what a test may expect of each. All else is the same."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Executor:
    """What one executor does in its own way."""

    sees_refused_growth: bool
    """It knows that a running module was refused memory, and reports OOMKilled."""
    sums_memories: bool
    """A module's memories together stay within its limit; else within some megabytes of it, by RLIMIT_DATA."""
    keeps_unflushed_output: bool
    """What a component wrote without flushing before it ended is in its log."""
    keeps_unfinished_lines_of_the_killed: bool
    """The beginning of a line is in the log also when the guest was killed before it waited for anything."""
    takes_any_write_of_components: bool
    """However much a component writes at once; else no more than a socket takes (416 KiB by default)."""
    sets_working_dir: bool
    """Of a component."""
    threads: int
    """Of a guest that reads files, at most. wasmtime-py's pool begins another whenever none is idle."""
    descriptors: int
    """That the supervisor holds for each guest without an input."""


EXECUTORS = {
    "python": Executor(
        sees_refused_growth=False,
        sums_memories=False,
        keeps_unflushed_output=False,
        keeps_unfinished_lines_of_the_killed=True,
        takes_any_write_of_components=False,
        sets_working_dir=False,
        threads=6,
        descriptors=4,
    ),
    "native": Executor(
        sees_refused_growth=True,
        sums_memories=True,
        keeps_unflushed_output=True,
        keeps_unfinished_lines_of_the_killed=False,
        takes_any_write_of_components=True,
        sets_working_dir=True,
        threads=2,
        descriptors=2,
    ),
}
