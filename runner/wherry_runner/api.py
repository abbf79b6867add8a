"""The runner's HTTP interface: requests in, `protocol` types out. All decisions are the supervisor's."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web
from pydantic import ValidationError

from wherry_runner import logs, protocol
from wherry_runner.protocol import REFUSAL_STATUS, LogOptions, Refusal, RefusalReason, WorkloadPut
from wherry_runner.supervisor import Refused, Supervisor

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def application(supervisor: Supervisor, info: protocol.RunnerInfo) -> web.Application:
    """The application behind mutual TLS."""
    api = _Api(supervisor, info)
    app = web.Application(client_max_size=protocol.MAX_BODY_BYTES, middlewares=[_refusals])
    app.router.add_get("/v1/info", api.info)
    app.router.add_get("/v1/watch", api.watch)
    app.router.add_get("/v1/workloads/{id}", api.get)
    app.router.add_put("/v1/workloads/{id}", api.put)
    app.router.add_delete("/v1/workloads/{id}", api.delete)
    app.router.add_get("/v1/workloads/{id}/containers/{name}/log", api.log)
    return app


def health_application(complaint: Callable[[], str]) -> web.Application:
    """The plain HTTP application for probes: it says whether the runner works, and nothing else."""

    async def healthz(_: web.Request) -> web.Response:
        wrong = complaint()
        return web.Response(status=500 if wrong else 200, text=(wrong or "ok") + "\n")

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    return app


@web.middleware
async def _refusals(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refused as error:
        refusal = error.refusal
    except ValidationError as error:
        # Only where it is wrong and how: the input itself may be a Secret's.
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        refusal = Refusal(reason=RefusalReason.INVALID, message=f"{where}: {first['msg']}")
    except web.HTTPRequestEntityTooLarge:
        refusal = Refusal(
            reason=RefusalReason.TOO_LARGE, message=f"the body is over {protocol.MAX_BODY_BYTES >> 20} MiB"
        )
    except web.HTTPException as error:
        refusal = Refusal(
            reason=RefusalReason.NOT_FOUND if error.status == 404 else RefusalReason.INVALID, message=error.reason
        )
        return _json(refusal, error.status)
    except (asyncio.CancelledError, ConnectionResetError):
        raise
    except Exception:
        log.exception("%s %s failed by an error of ours", request.method, request.path)
        refusal = Refusal(reason=RefusalReason.INTERNAL, message="internal error; the runner's log has it")
    return _json(refusal, REFUSAL_STATUS[refusal.reason])


def _json(answer: protocol.Wire, status: int = 200) -> web.Response:
    return web.Response(status=status, body=answer.to_json(), content_type="application/json")


class _Api:
    def __init__(self, supervisor: Supervisor, info: protocol.RunnerInfo) -> None:
        self._supervisor = supervisor
        self._info = info

    async def info(self, _: web.Request) -> web.Response:
        return _json(self._info)

    async def get(self, request: web.Request) -> web.Response:
        return _json(self._supervisor.status(_workload_id(request)))

    async def put(self, request: web.Request) -> web.Response:
        workload_id = _workload_id(request)
        body = WorkloadPut.model_validate_json(await request.read())
        return _json(self._supervisor.put(workload_id, body))

    async def delete(self, request: web.Request) -> web.Response:
        query = _DeleteQuery.model_validate(dict(request.query))
        status = self._supervisor.delete(
            _workload_id(request), epoch=query.epoch, sequence=query.sequence, grace_seconds=query.grace
        )
        return web.Response(status=200) if status is None else _json(status, 202)

    async def watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        async for batch in self._supervisor.watch(self._info):
            await response.write(b"".join(event.to_json() + b"\n" for event in batch))
        return response

    async def log(self, request: web.Request) -> web.StreamResponse:
        options = LogOptions.model_validate(dict(request.query))
        container = self._supervisor.container(_workload_id(request), request.match_info["name"])
        path = container.previous_log_path if options.previous else container.log_path
        if path is None:
            which = "a previous run" if options.previous else "a run"
            raise Refused(RefusalReason.NO_LOG, f'container "{request.match_info["name"]}" has no log of {which} here')
        response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8"})
        # At once: a client that follows a silent container waits for the headers.
        await response.prepare(request)
        newest = container.log_path == path
        ended = (lambda: not container.running or container.log_path != path) if newest else (lambda: True)
        async for chunk in logs.read(path, options, ended=ended):
            await response.write(chunk)
        return response


class _DeleteQuery(protocol.Wire):
    epoch: int
    sequence: int
    grace: float = 30.0


def _workload_id(request: web.Request) -> str:
    return _WorkloadId.model_validate({"id": request.match_info["id"]}).id


class _WorkloadId(protocol.Wire):
    id: protocol.WorkloadId
