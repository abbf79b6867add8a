"""The runner's HTTP interface: requests in, `protocol` types out. All decisions are the supervisor's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated

from pydantic import Field, ValidationError

from wherry_runner import metrics, protocol
from wherry_runner.lives.supervisor import Refused, Supervisor
from wherry_runner.logs import records as logs
from wherry_runner.metrics import Metrics
from wherry_runner.protocol import REFUSAL_STATUS, LogOptions, Refusal, RefusalReason, WorkloadPut
from wherry_runner.resources.usage import Usage
from wherry_runner.serving import tls
from wherry_runner.serving.aio import Middleware, web
from wherry_runner.serving.bodies import Bodies, BodyTooLarge, BodyTooSlow
from wherry_runner.serving.condition import Condition
from wherry_runner.serving.health import Health
from wherry_runner.serving.tls import Role

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
RoleOf = Callable[[web.Request], Role | None]

EVENTS_AT_ONCE = 100
"""Statuses that are turned into JSON before the reader of a watch has taken the ones before."""

UNSENT_BYTES = 64 << 10
"""Of an answer without an end, what is kept for a reader that takes nothing. With TLS, asyncio would keep 512 KiB."""

METRICS_PATH = "/metrics"


def role_by_certificate(request: web.Request) -> Role | None:
    """What the client may do, by the certificate of its connection."""
    return None if request.transport is None else tls.role(request.transport.get_extra_info("peercert"))


def application(
    supervisor: Supervisor,
    info: protocol.RunnerInfo,
    *,
    usage: Usage,
    condition: Condition,
    counts: Metrics,
    role_of: RoleOf = role_by_certificate,
) -> web.Application:
    """The application behind mutual TLS."""
    api = _Api(supervisor, info, usage=usage, condition=condition, counts=counts)
    app = web.Application(middlewares=[_refusals(counts), _roles(role_of)])
    app.router.add_get("/v1/info", api.info)
    app.router.add_get("/v1/watch", api.watch)
    app.router.add_get("/v1/stats", api.stats)
    app.router.add_get("/v1/condition", api.condition)
    app.router.add_get("/v1/workloads/{id}", api.get)
    app.router.add_put("/v1/workloads/{id}", api.put)
    app.router.add_delete("/v1/workloads/{id}", api.delete)
    app.router.add_get("/v1/workloads/{id}/containers/{name}/log", api.log)
    app.router.add_put("/v1/workloads/{id}/containers/{name}/stdin", api.stdin)
    app.router.add_get(METRICS_PATH, api.metrics)
    return app


def health_application(health: Health) -> web.Application:
    """The plain HTTP application for probes: it says whether the runner works, and nothing else."""

    def answer(complaints: list[str]) -> web.Response:
        return web.Response(status=500 if complaints else 200, text="\n".join(complaints or ["ok"]) + "\n")

    async def livez(_: web.Request) -> web.Response:
        return answer([])

    async def readyz(_: web.Request) -> web.Response:
        return answer(health.unready())

    async def healthz(_: web.Request) -> web.Response:
        return answer(health.unwell())

    app = web.Application()
    app.router.add_get("/livez", livez)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/healthz", healthz)
    return app


def _roles(role_of: RoleOf) -> Middleware:
    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        role = role_of(request)
        if role is Role.OPERATOR or (role is Role.METRICS and request.path == METRICS_PATH):
            return await handler(request)
        if role is None:
            wanted = f"{Role.OPERATOR} or {Role.METRICS}"
            raise Refused(RefusalReason.FORBIDDEN, f"the client's certificate must have the common name {wanted}")
        raise Refused(RefusalReason.FORBIDDEN, f"a certificate of {role} may get {METRICS_PATH}, and nothing else")

    return check


def _refusals(counts: Metrics) -> Middleware:
    @web.middleware
    async def translate(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except web.HTTPException as error:
            reason = RefusalReason.NOT_FOUND if error.status == 404 else RefusalReason.INVALID
            refusal, status = Refusal(reason=reason, message=error.reason), error.status
        except (asyncio.CancelledError, ConnectionResetError):
            raise
        except Exception as error:
            refusal = _refusal(error)
            if refusal.reason is RefusalReason.INTERNAL:
                log.exception("%s %s failed by an error of ours", request.method, request.path)
            status = REFUSAL_STATUS[refusal.reason]
        counts.refused(refusal.reason)
        return _json(refusal, status)

    return translate


def _refusal(error: Exception) -> Refusal:
    match error:
        case Refused():
            return error.refusal
        case ValidationError():
            # Only where it is wrong and how: the input itself may be a Secret's.
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            return Refusal(reason=RefusalReason.INVALID, message=f"{where}: {first['msg']}")
        case BodyTooLarge():
            text = f"the body is over {protocol.MAX_BODY_BYTES >> 20} MiB"
            return Refusal(reason=RefusalReason.TOO_LARGE, message=text)
        case BodyTooSlow():
            return Refusal(reason=RefusalReason.INVALID, message="the body did not come in time")
        case _:
            return Refusal(reason=RefusalReason.INTERNAL, message="internal error; the runner's log has it")


def _json(answer: protocol.Wire, status: int = 200) -> web.Response:
    return web.Response(status=status, body=answer.to_json(), content_type="application/json")


class _Api:
    def __init__(
        self,
        supervisor: Supervisor,
        info: protocol.RunnerInfo,
        *,
        usage: Usage,
        condition: Condition,
        counts: Metrics,
    ) -> None:
        self._supervisor = supervisor
        self._info = info
        self._usage = usage
        self._condition = condition
        self._counts = counts
        self._bodies = Bodies()

    async def info(self, _: web.Request) -> web.Response:
        return _json(self._info.model_copy(update={"leaving": self._supervisor.leaving}))

    async def get(self, request: web.Request) -> web.Response:
        return _json(self._supervisor.status(_workload_id(request)))

    async def put(self, request: web.Request) -> web.Response:
        workload_id = _workload_id(request)
        data = await self._bodies.read(
            request.content, announced_bytes=request.content_length, max_bytes=protocol.MAX_BODY_BYTES
        )
        # Not on a thread: the parser holds the interpreter's lock anyway. 1.5 MB take 6 ms.
        return _json(await self._supervisor.begin(workload_id, WorkloadPut.model_validate_json(data)))

    async def delete(self, request: web.Request) -> web.Response:
        query = _DeleteQuery.model_validate(dict(request.query))
        status = self._supervisor.delete(
            _workload_id(request),
            epoch=query.epoch,
            sequence=query.sequence,
            grace_seconds=query.grace,
            keep_ended=query.keep_ended,
        )
        return web.Response(status=200) if status is None else _json(status, 202)

    async def watch(self, request: web.Request) -> web.StreamResponse:
        response = await _streamed(request, "application/x-ndjson")
        with self._counts.watching():
            async for batch in self._supervisor.watch(self._info):
                for start in range(0, len(batch), EVENTS_AT_ONCE):
                    some = batch[start : start + EVENTS_AT_ONCE]
                    await response.write(b"".join(event.to_json() + b"\n" for event in some))
        return response

    async def stats(self, _: web.Request) -> web.Response:
        return _json(await self._usage.stats())

    async def condition(self, _: web.Request) -> web.Response:
        return _json(self._condition.read())

    async def metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self._counts.text(), headers={"Content-Type": metrics.CONTENT_TYPE})

    async def log(self, request: web.Request) -> web.StreamResponse:
        options = LogOptions.model_validate(dict(request.query))
        container = self._supervisor.container(_workload_id(request), request.match_info["name"])
        path = container.previous_log_path if options.previous else container.log_path
        if path is None:
            which = "a previous run" if options.previous else "a run"
            raise Refused(RefusalReason.NO_LOG, f'container "{request.match_info["name"]}" has no log of {which} here')
        response = await _streamed(request, "text/plain; charset=utf-8")
        newest = container.log_path == path
        ended = (lambda: not container.running or container.log_path != path) if newest else (lambda: True)
        try:
            async for chunk in _pieces(logs.read(path, options, ended=ended)):
                await response.write(chunk)
                await asyncio.sleep(0)  # a write into a buffer with room does not let others go on
        except _LogBroken as error:
            log.warning("the log %s can't be read: %s", path, error)
            response.force_close()
            if request.transport is not None:
                request.transport.abort()  # not as if it had come to its end
        return response

    async def stdin(self, request: web.Request) -> web.Response:
        """The body goes to the container as it comes: as fast as that reads, and with no end but the body's own."""
        name = request.match_info["name"]
        container = self._supervisor.container(_workload_id(request), name)
        try:
            await container.write_input(b"")  # says at once whether it takes any
            async for piece in request.content.iter_any():
                await container.write_input(piece)
        except BrokenPipeError as error:
            raise Refused(RefusalReason.NO_INPUT, f'container "{name}" takes no input: {error}') from None
        finally:
            if container.stdin_once:
                container.close_input()
        return web.Response(status=204)


class _LogBroken(Exception):
    """A log can't be read on."""


async def _pieces(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A log's pieces. Raises _LogBroken, which is never the fault of the connection to the reader."""
    try:
        async for piece in pieces:
            yield piece
    except FileNotFoundError:
        return  # it went with its workload
    except OSError as error:
        raise _LogBroken(error) from error


async def _streamed(request: web.Request, content_type: str) -> web.StreamResponse:
    """An answer whose headers are sent at once: a client that follows a silent container waits for them."""
    if request.transport is not None:
        request.transport.set_write_buffer_limits(high=UNSENT_BYTES)
    response = web.StreamResponse(headers={"Content-Type": content_type})
    await response.prepare(request)
    return response


class _DeleteQuery(protocol.Wire):
    epoch: int
    sequence: int
    grace: Annotated[float, Field(allow_inf_nan=False)] | None = None
    keep_ended: bool = False


def _workload_id(request: web.Request) -> str:
    return _WorkloadId.model_validate({"id": request.match_info["id"]}).id


class _WorkloadId(protocol.Wire):
    id: protocol.WorkloadId
