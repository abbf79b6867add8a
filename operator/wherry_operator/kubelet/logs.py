"""`/containerLogs`: its query, its errors in the kubelet's words, and the way of a log from the runner to the
client."""

from __future__ import annotations

import json
import logging
import re
from datetime import datetime
from typing import Literal

from aiohttp import web
from multidict import MultiMapping

from wherry_operator.models import Object
from wherry_operator.runners.client import Refused, RunnerClient, RunnerError
from wherry_operator.status.containers import NO_DEBUG
from wherry_runner.protocol import LogOptions, RefusalReason

log = logging.getLogger(__name__)

_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d([.,]\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII)
_STREAMS: dict[str, Literal["All", "Stdout", "Stderr"]] = {
    "All": "All",
    "Stdout": "Stdout",
    "Stderr": "Stderr",
}


class BadQuery(Exception):
    """The query is refused with this status and text."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = json.dumps({"message": message})


def parse_query(query: MultiMapping[str]) -> LogOptions:
    """A log request's options, as strictly as the kubelet (`getContainerLogs`, `ValidatePodLogOptions`).

    Raises BadQuery: 400 for what can't be read, 422 for what is out of range. Unknown parameters are ignored.
    """
    tail = query.get("tailLines")
    if legacy := query.get("tail"):
        tail = None if legacy == "all" else legacy
    since_seconds = _integer(query.get("sinceSeconds"))
    since_time = _time(query.get("sinceTime"))
    tail_lines = _integer(tail)
    limit_bytes = _integer(query.get("limitBytes"))
    stream = _STREAMS.get(query.get("stream", "All"))
    if (
        (tail_lines is not None and tail_lines < 0)
        or (limit_bytes is not None and limit_bytes < 1)
        or (since_seconds is not None and (since_seconds < 1 or since_time is not None))
        or stream is None
        or (stream != "All" and tail_lines is not None)
    ):
        raise BadQuery(422, "Invalid request.")
    return LogOptions(
        follow=boolean(query.get("follow")),
        previous=boolean(query.get("previous")),
        timestamps=boolean(query.get("timestamps")),
        since_seconds=since_seconds,
        since_time=since_time,
        tail_lines=tail_lines,
        limit_bytes=limit_bytes,
        stream=stream,
    )


def has_container(pod: Object, container: str) -> bool:
    """Whether the Pod's spec names such a container, of any kind."""
    spec = pod.get("spec") or {}
    kinds = ("containers", "initContainers", "ephemeralContainers")
    return any(each.get("name") == container for kind in kinds for each in spec.get(kind) or [])


def why_no_log(pod: Object, container: str, *, previous: bool) -> str:
    """Why a container has no log now, from the Pod's status; "" if by that it has one.

    The kubelet's texts (`kubelet_pods.go`, validateContainerLogStatus): kubectl shows them as they are.
    """
    name = pod["metadata"]["name"]
    if any(each["name"] == container for each in pod["spec"].get("ephemeralContainers") or []):
        return NO_DEBUG
    found = _status(pod, container)
    if found is None:
        return f'container "{container}" in pod "{name}" is not available'
    state = found.get("state") or {}
    last = (found.get("lastState") or {}).get("terminated")
    last_ran = bool(last and last.get("containerID"))
    if previous:
        return "" if last_ran else f'previous terminated container "{container}" in pod "{name}" not found'
    if state.get("running") is not None:
        return ""
    ended = f'container "{container}" in pod "{name}" is terminated'
    if (terminated := state.get("terminated")) is not None:
        return "" if terminated.get("containerID") or last_ran else ended
    if last is not None:
        return "" if last_ran else ended
    waits = f'container "{container}" in pod "{name}" is waiting to start'
    if (waiting := state.get("waiting")) is None:
        return f"{waits} - no logs yet"
    reason = waiting.get("reason") or "ContainerCreating"
    known = {
        "ErrImagePull": "image can't be pulled",
        "ImagePullBackOff": "trying and failing to pull image",
    }
    return f"{waits}: {known.get(reason, reason)}"


async def serve(
    request: web.Request, pod: Object, container: str, options: LogOptions, runner: RunnerClient | None
) -> web.StreamResponse:
    """Answer with the log: head at once, then each piece as it comes, no faster than the client takes it.

    Cancelled when the client goes away, which closes the stream from the runner too.
    """
    if runner is None:
        return _bad_request(
            why_no_log(pod, container, previous=options.previous)
            or f'container "{container}" in pod "{pod["metadata"]["name"]}" is not available'
        )
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    try:
        async with runner.log(pod["metadata"]["uid"], container, options) as pieces:
            response.enable_chunked_encoding()
            await response.prepare(
                request
            )  # the client waits for the head, and a quiet guest may write nothing for long
            async for piece in pieces:
                await response.write(piece)
    except Refused as error:
        if error.refusal.reason is RefusalReason.INTERNAL:
            return web.Response(status=500, text=str(error))
        return _bad_request(why_no_log(pod, container, previous=options.previous) or error.refusal.message)
    except RunnerError as error:
        if not response.prepared:
            return web.Response(status=500, text=str(error))
        # An orderly end would say that the log is complete: break off, so that the client sees an error.
        log.warning("log of %s/%s broke off: %s", pod["metadata"]["name"], container, error)
        if request.transport:
            request.transport.abort()
        return response
    except ConnectionError:
        return response  # the client has gone
    await response.write_eof()
    return response


def _bad_request(text: str) -> web.Response:
    # Whatever the reason: of 400 alone kubectl shows the text as it is.
    return web.Response(status=400, text=text)


def _status(pod: Object, container: str) -> Object | None:
    status = pod.get("status") or {}
    kinds = ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses")
    everything: list[Object] = [each for kind in kinds for each in status.get(kind) or []]
    return next((each for each in everything if each.get("name") == container), None)


# Conversions of apimachinery (`pkg/runtime/conversion.go`, metav1.Time.UnmarshalQueryParameter).


def boolean(text: str | None) -> bool:
    """A flag of a query."""
    return text is not None and text != "0" and text.lower() != "false"


def _integer(text: str | None) -> int | None:
    if text is None:
        return None
    if not _INTEGER.fullmatch(text) or not -(1 << 63) <= (value := int(text)) < 1 << 63:
        raise BadQuery(400, "Unable to decode query.")
    return value


def _time(text: str | None) -> datetime | None:
    if not text or text == "null":
        return None
    try:
        if _RFC3339.fullmatch(text):
            return datetime.fromisoformat(text)
    except ValueError:
        pass
    raise BadQuery(400, "Unable to decode query.")
