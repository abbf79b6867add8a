"""What the runner and its guests use, read from /proc when somebody asks; nothing is sampled in between.

Guests are undumpable, so of their processes only what everybody may read is there: `stat` and `statm`, not `smaps_rollup`.
Memory that a guest has for itself is then its anonymous memory less that of its executor: a fork begins with all of its
parent's, shared. Pages of those that it wrote to since are its own too and are not counted: 0.1 MiB with the native executor,
3 MiB with the python one. So a guest is never charged for what it shares.
"""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from wherry_runner import protocol

CACHE_SECONDS = 1.0
"""A sample of 5,000 guests takes 0.2 s of a core: who asks more often gets the last one."""

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICK_NANOSECONDS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class RunningContainer:
    """A guest that runs, and whose it is."""

    workload: str
    container: str
    container_id: str
    started_at: datetime
    pid: int
    log_folder: Path


@dataclass(frozen=True, kw_only=True)
class ProcessUse:
    """One process."""

    parent: int
    cpu_nanoseconds: int
    """User and system, all its threads."""
    reaped_cpu_nanoseconds: int
    """Of its children that it has waited for, and theirs."""
    anonymous_bytes: int
    """Resident memory that no file is behind, shared with its parent or not."""
    resident_bytes: int


def read_process(pid: int) -> ProcessUse | None:
    """What a process uses; None if there is none. proc_pid_stat(5), proc_pid_statm(5)."""
    try:
        stat = _read(f"/proc/{pid}/stat")
        statm = _read(f"/proc/{pid}/statm").split()
        # The name is in parentheses and may hold anything, also more of them.
        fields = stat[stat.rindex(b")") + 2 :].split()
        user, system, reaped_user, reaped_system = (int(field) for field in fields[11:15])
        resident, shared = int(statm[1]), int(statm[2])
    except (OSError, ValueError, IndexError):
        return None
    return ProcessUse(
        parent=int(fields[1]),
        cpu_nanoseconds=(user + system) * _TICK_NANOSECONDS,
        reaped_cpu_nanoseconds=(reaped_user + reaped_system) * _TICK_NANOSECONDS,
        anonymous_bytes=(resident - shared) * _PAGE_BYTES,
        resident_bytes=resident * _PAGE_BYTES,
    )


def private_bytes(pids: Iterable[int], *, executor_pid: int | None) -> dict[int, int]:
    """Memory that each of the executor's guests has for itself; those that have ended are left out."""
    executor = read_process(executor_pid) if executor_pid is not None else None
    shared = executor.anonymous_bytes if executor is not None else 0
    return {
        pid: max(0, use.anonymous_bytes - shared)
        for pid in pids
        # A number may have been given to another process by now.
        if (use := read_process(pid)) is not None and use.parent == executor_pid
    }


class Usage:
    """Answers `GET /v1/stats`. What it reads, it reads on a thread of its own, one sample at a time."""

    def __init__(
        self,
        *,
        running: Callable[[], Sequence[RunningContainer]],
        executor_pid: Callable[[], int | None],
        workloads: Callable[[], int],
        requested: Callable[[], tuple[int, int]],
    ) -> None:
        """`requested`: millicores and bytes that all workloads request."""
        self._running = running
        self._executor_pid = executor_pid
        self._workloads = workloads
        self._requested = requested
        self._sampling = asyncio.Lock()
        self._last: protocol.RunnerStats | None = None
        self._sampled_at = 0.0

    async def stats(self) -> protocol.RunnerStats:
        """A sample no older than `CACHE_SECONDS` before the call."""
        async with self._sampling:
            if self._last is None or time.monotonic() - self._sampled_at >= CACHE_SECONDS:
                self._last = await self._sample()
                self._sampled_at = time.monotonic()
            return self._last

    async def _sample(self) -> protocol.RunnerStats:
        at, running = datetime.now(UTC), self._running()
        millicores, memory = self._requested()
        containers, cpu, resident = await asyncio.to_thread(_sample, running, self._executor_pid())
        # A guest that ends while others are read is counted by none: a counter must not fall for that.
        cpu = max(cpu, self._last.cpu_nanoseconds if self._last is not None else 0)
        return protocol.RunnerStats(
            time=at,
            cpu_nanoseconds=cpu,
            memory_bytes=resident,
            cpu_requested_millicores=millicores,
            memory_requested_bytes=memory,
            workloads=self._workloads(),
            containers=tuple(containers),
        )


def _sample(
    running: Sequence[RunningContainer], executor_pid: int | None
) -> tuple[list[protocol.ContainerStats], int, int]:
    own = resource.getrusage(resource.RUSAGE_SELF)
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = int(sum((own.ru_utime, own.ru_stime, ended.ru_utime, ended.ru_stime)) * 1_000_000_000)
    supervisor = read_process(os.getpid())
    memory = supervisor.resident_bytes if supervisor is not None else 0
    shared = 0
    if executor_pid is not None and (executor := read_process(executor_pid)) is not None:
        cpu += executor.cpu_nanoseconds + executor.reaped_cpu_nanoseconds
        memory += executor.resident_bytes
        shared = executor.anonymous_bytes
    containers = []
    for guest in running:
        use = read_process(guest.pid)
        if use is None or use.parent != executor_pid:
            continue
        private = max(0, use.anonymous_bytes - shared)
        cpu += use.cpu_nanoseconds
        memory += private
        containers.append(
            protocol.ContainerStats(
                workload=guest.workload,
                container=guest.container,
                container_id=guest.container_id,
                started_at=guest.started_at,
                cpu_nanoseconds=use.cpu_nanoseconds,
                working_set_bytes=private,
                log_bytes=folder_bytes(guest.log_folder),
            )
        )
    return containers, cpu, memory


def folder_bytes(folder: Path) -> int:
    """Size of the files in a folder, not of those below; links are not followed."""
    try:
        with os.scandir(folder) as entries:
            return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
    except OSError:
        return 0  # not made yet, or a file was just rotated away


def _read(path: str) -> bytes:
    # Not open(): a buffer and its decoder would cost more than the read.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 4096)
    finally:
        os.close(descriptor)
