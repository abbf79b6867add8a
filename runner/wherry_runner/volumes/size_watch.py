"""Looks, again and again, whether an emptyDir has outgrown its limit, as a kubelet's eviction manager does.

It is a look, not a lock: what is written between two looks is there. In memory the looks are closer together, a single file
is bounded (`Volumes.largest_file`), and the tmpfs itself has an end.

A guest can make millions of files. So the measuring goes by steps, each in a thread, with pauses that keep it to a small
part of a core; a tree that is measured for long is found to be over its limit as soon as what was counted is.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from wherry_runner.volumes.empty_dir import exceeded
from wherry_runner.volumes.usage import ENTRY_BYTES, MAX_DEPTH, TooDeep, usage
from wherry_runner.volumes.volumes import Limited, Volumes

DISK_SECONDS = 10.0
"""Between two looks at what is on disk: the eviction manager of a kubelet looks as often."""

MEMORY_SECONDS = 1.0
"""Between two looks at what is in memory, where there is less room for what comes between them."""

STEP_ENTRIES = 1000
"""Files, folders and volumes that are looked at without a pause: some milliseconds."""

PAUSE = 20.0
"""So many times as long as a step is the pause behind it: measuring takes a twentieth of a core at most."""

_END: Final = object()


class Over(NamedTuple):
    """A volume that is over its limit, and what is said of it."""

    volume: Limited
    message: str


class SizeWatch:
    """`run` is its task."""

    def __init__(
        self,
        volumes: Volumes,
        evict: Callable[[str, str], object],
        *,
        disk_seconds: float = DISK_SECONDS,
        memory_seconds: float = MEMORY_SECONDS,
    ) -> None:
        """`evict` is called with a workload's id and a message, at each look that finds it over a limit."""
        self._volumes = volumes
        self._evict = evict
        self._disk_seconds = disk_seconds
        self._memory_seconds = memory_seconds

    async def run(self) -> None:
        """Look until cancelled."""
        async with asyncio.TaskGroup() as group:  # side by side: a full disk must not delay the looks at memory
            group.create_task(self._watch(self._disk_seconds, in_memory=False))
            group.create_task(self._watch(self._memory_seconds, in_memory=True))

    async def _watch(self, seconds: float, *, in_memory: bool) -> None:
        while True:
            await asyncio.sleep(seconds)
            await self.look(in_memory=in_memory)

    async def look(self, *, in_memory: bool) -> None:
        """Measure all volumes of a medium that have a limit, once."""
        limited = self._volumes.limited(in_memory=in_memory)
        if in_memory:
            limited = possibly_over(limited)
        if not limited:
            return
        steps = over_limit(limited)
        while True:
            began = time.monotonic()
            found = await asyncio.to_thread(next, steps, _END)
            if found is _END:
                return
            if isinstance(found, Over) and self._volumes.is_current(found.volume):
                self._evict(found.volume.workload_id, found.message)
            await asyncio.sleep((time.monotonic() - began) * PAUSE)


def over_limit(volumes: Sequence[Limited]) -> Iterator[Over | None]:
    """Which volumes are over their limits; None at the end of each step."""
    count = 0
    for volume in volumes:
        try:
            for size in usage(volume.folders()):
                count += 1
                if count % STEP_ENTRIES == 0:
                    yield None
                if size > volume.limit_bytes:
                    yield Over(volume, exceeded(volume.volume, volume.limit_bytes))
                    break
        except TooDeep:
            message = (
                f'EmptyDir volume "{volume.volume}" can\'t be measured: folders within folders, more than {MAX_DEPTH}.'
            )
            yield Over(volume, message)


def possibly_over(volumes: list[Limited]) -> list[Limited]:
    """Those that could be over their limits: none has more in it than is in the whole file system. Most often none is left."""
    if not volumes:
        return volumes
    try:
        system = os.statvfs(volumes[0].path)
    except FileNotFoundError:
        return volumes
    if not system.f_files:
        return volumes  # it does not count its files
    used = (system.f_blocks - system.f_bfree) * system.f_frsize + (system.f_files - system.f_ffree) * ENTRY_BYTES
    return [volume for volume in volumes if used > volume.limit_bytes]
