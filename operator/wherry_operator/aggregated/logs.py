"""The log of a WasmWorkload: what it is made of, and its way from the runners to the client."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from wherry_operator.aggregated.merge import Merge, Shown
from wherry_operator.models import Object
from wherry_operator.runners.client import Refused, RunnerClient, RunnerError
from wherry_operator.runners.delivery import Place
from wherry_runner.protocol import LogOptions, RefusalReason

log = logging.getLogger(__name__)

CONTAINER = "module"
"""The only container of an instance."""

MAX_INSTANCES = 256
"""In one log: each holds a connection and up to some 300 KiB."""

OPENED_AT_ONCE = 16
"""Logs of one request that are being opened."""

HOLD_SECONDS = 0.2
"""What a followed line waits for older ones of other instances: more than runners are apart, and hardly seen."""


class LogError(Exception):
    """There is no log to show: an answer with this status and reason."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class Instances(Protocol):
    """What of `Deliveries` is needed here; it knows all of it on every replica."""

    def instances(self, owner_uid: str) -> set[str]:
        """The workloads of an object that are on a runner."""
        ...

    def locate(self, workload_id: str, *, last_runner: str = "") -> Place | None:
        """Where one is."""
        ...

    def client(self, runner: str) -> RunnerClient | None:
        """The client of a runner."""
        ...


@dataclass(frozen=True, kw_only=True)
class Source:
    """One instance's log."""

    instance: str
    workload_id: str
    runner: RunnerClient

    @property
    def prefix(self) -> bytes:
        """What `prefix` puts before its lines, as kubectl's `--prefix` does for Pods."""
        return f"[{self.instance}/{CONTAINER}] ".encode()


def sources(workload: Object, known: Instances, wanted: str) -> list[Source]:
    """The instances of an object whose logs are asked for, by name.

    :param wanted: an instance's name, or the end of it after a dash; "": all of them.
    :raises LogError: there are none, or too many.
    """
    name, found = workload["metadata"]["name"], named(workload, known, wanted)
    if len(found) > MAX_INSTANCES:
        raise LogError(
            400, "BadRequest", f'wasmworkload "{name}" has {len(found)} instances, of {MAX_INSTANCES} at most a log can '
            f"be shown at once: choose one (parameter instance)"
        )  # fmt: skip
    logs = []
    for instance, workload_id in sorted(found.items(), key=lambda item: _natural(item[0])):
        place = known.locate(workload_id)
        runner = known.client(place.runner) if place else None
        if runner is not None:
            logs.append(Source(instance=instance, workload_id=workload_id, runner=runner))
    if not logs:
        raise LogError(400, "BadRequest", _why_none(workload, wanted))
    return logs


def named(workload: Object, known: Instances, wanted: str) -> dict[str, str]:
    """The workloads of an object that runners have, by the names of its instances.

    :param wanted: an instance's name, or the end of it after a dash; "": all of them.
    """
    uid, name = workload["metadata"]["uid"], workload["metadata"]["name"]
    found = {f"{name}{workload_id.removeprefix(uid)}": workload_id for workload_id in known.instances(uid)}
    return {instance: found[instance] for instance in found if not wanted or is_named(instance, wanted, name)}


def is_named(instance: str, wanted: str, name: str) -> bool:
    """Whether an instance of the object `name` goes by this name: its whole name, or the end of it after a dash."""
    return instance == wanted or instance.removeprefix(name).endswith(f"-{wanted}")


async def serve(
    request: web.Request, workload: Object, logs: list[Source], options: LogOptions, *, prefix: bool
) -> web.StreamResponse:
    """Answer with the logs, merged: head at once, then each piece as it comes, no faster than the client takes it.

    Instances that have no log yet are left out, unless none has one. Cancelled when the client goes away, which closes the
    streams from the runners too. Raises LogError.
    """
    readers = _Readers(logs, options)
    merge = readers.merge
    try:
        try:
            refused = await readers.open()
        except RunnerError as error:
            raise LogError(503, "ServiceUnavailable", str(error)) from error
        if len(refused) == len(logs):
            raise LogError(400, "BadRequest", _why_no_log(workload, logs[0], refused[0], options))
        shown = Shown(
            [source.prefix if prefix else b"" for source in logs],
            timestamps=options.timestamps,
            limit_bytes=options.limit_bytes,
        )
        response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8"})
        response.enable_chunked_encoding()
        await response.prepare(request)  # the client waits for the head, and quiet guests may write nothing for long
        try:
            while not merge.done and not shown.full:
                if pieces := merge.take(time.monotonic()):
                    await response.write(shown.text(pieces))
                    readers.taken()
                    await asyncio.sleep(0)  # a write into a buffer with room does not let others go on
                else:
                    await readers.wait(merge.wait_seconds(time.monotonic()))
            readers.check()
        except RunnerError as error:
            # An orderly end would say that the log is complete: break off, so that the client sees an error.
            log.warning("log of wasmworkload %s broke off: %s", workload["metadata"]["name"], error)
            if request.transport:
                request.transport.abort()
            return response
        except ConnectionError:
            return response  # the client has gone
        await response.write_eof()
        return response
    finally:
        await readers.close()


class _Readers:
    """A task for each log, which reads it into a merge as far as there is room."""

    def __init__(self, logs: list[Source], options: LogOptions) -> None:
        self.merge = Merge(len(logs), hold_seconds=HOLD_SECONDS if options.follow else None)
        self._logs = logs
        # The merge needs times, and bytes are counted for all together.
        self._options = options.model_copy(update={"timestamps": True, "limit_bytes": None})
        self._tasks: list[asyncio.Task[None]] = []
        self._opening = asyncio.Semaphore(OPENED_AT_ONCE)
        self._changed = asyncio.Event()
        self._room = asyncio.Event()
        self._failure: RunnerError | None = None

    async def open(self) -> list[Refused]:
        """Open the logs and begin to read: one that its runner does not have counts as ended. Raises RunnerError.

        :return: why for each of those.
        """
        loop = asyncio.get_running_loop()
        opened: list[asyncio.Future[RunnerError | None]] = [loop.create_future() for _ in self._logs]
        self._tasks = [
            asyncio.create_task(self._read(number, source, opened[number]), name=f"log of {source.instance}")
            for number, source in enumerate(self._logs)
        ]
        refused: list[Refused] = []
        for error in await asyncio.gather(*opened):
            if isinstance(error, Refused) and error.refusal.reason is not RefusalReason.INTERNAL:
                refused.append(error)
            elif error is not None:
                raise error
        return refused

    async def wait(self, seconds: float | None) -> None:
        """Wait until a log has something new, for so long at most. Raises RunnerError if one of them broke off."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return
        self._changed.clear()
        self.check()

    def check(self) -> None:
        """Raise RunnerError if a log broke off: what was read of it is not all."""
        if self._failure is not None:
            raise self._failure

    def taken(self) -> None:
        """Something was taken out of the merge: there is room again."""
        self._room.set()

    async def close(self) -> None:
        """Close the streams from the runners."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _read(self, number: int, source: Source, opened: asyncio.Future[RunnerError | None]) -> None:
        try:
            async with self._opened(source) as pieces:
                opened.set_result(None)
                async for piece in pieces:
                    self.merge.feed(number, piece, time.monotonic())
                    self._changed.set()
                    while self.merge.full(number):
                        self._room.clear()
                        await self._room.wait()
        except Exception as error:
            if not isinstance(error, RunnerError):
                log.exception("log of %s failed", source.instance)
                error = RunnerError(f"the log of {source.instance} can't be read: {error}")
            if opened.done():
                self._failure = error
            else:
                opened.set_result(error)
        self.merge.end(number, time.monotonic())
        self._changed.set()

    @asynccontextmanager
    async def _opened(self, source: Source) -> AsyncIterator[AsyncIterator[bytes]]:
        async with AsyncExitStack() as stack:
            async with self._opening:
                pieces = await stack.enter_async_context(
                    source.runner.log(source.workload_id, CONTAINER, self._options)
                )
            yield pieces


def _why_none(workload: Object, wanted: str) -> str:
    """Why no runner has anything of it, by its status."""
    name, status = workload["metadata"]["name"], workload.get("status") or {}
    listed = status.get("instances") or []
    if wanted and not any(is_named(item.get("name", ""), wanted, name) for item in listed):
        return f'wasmworkload "{name}" has no instance "{wanted}"'
    phase = status.get("phase", "")
    if phase in ("Succeeded", "Failed", "Running"):
        return f'the log of wasmworkload "{name}" is not there any more, or not known yet: no runner has it'
    why = _reason(listed) or phase
    return f'wasmworkload "{name}" is waiting to start' + (f": {why}" if why else " - no logs yet")


def _why_no_log(workload: Object, source: Source, refused: Refused, options: LogOptions) -> str:
    """Why the first of its instances has no log, in the kubelet's words."""
    if options.previous:
        return f'previous terminated container "{CONTAINER}" in instance "{source.instance}" not found'
    listed = (workload.get("status") or {}).get("instances") or []
    why = _reason([item for item in listed if item.get("name") == source.instance])
    if why:
        return f'container "{CONTAINER}" in instance "{source.instance}" is waiting to start: {why}'
    return refused.refusal.message


def _reason(instances: list[Object]) -> str:
    return next((item["reason"] for item in instances if item.get("reason")), "")


def _natural(instance: str) -> list[tuple[int, str]]:
    """Sorts instance 10 after instance 9."""
    return [(int(part) if part.isdecimal() else 0, part) for part in re.split(r"[-.]", instance)]
