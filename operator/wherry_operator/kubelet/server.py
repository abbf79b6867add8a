"""The virtual node's HTTPS endpoint, called by the API server (`kubectl logs`), by metrics and by the
curious.

Routes and answers are the kubelet's (`pkg/kubelet/server/server.go`), as far as a WebAssembly module has what
they are about; the rest is refused with a sentence that says why.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol

from aiohttp import web

from wherry_operator.clock import Clock
from wherry_operator.doors import Door
from wherry_operator.https import HttpsServer, KeptTrust
from wherry_operator.kubelet import attach, logs, portforward, usage
from wherry_operator.kubelet.auth import (
    Attributes,
    Authenticator,
    Authorizer,
    ReviewFailed,
    Unauthenticated,
    client_ca,
)
from wherry_operator.models import Object
from wherry_operator.runners.client import RunnerClient
from wherry_operator.runners.survey import Runners
from wherry_operator.settings import Settings
from wherry_operator.tls import ServerTls

log = logging.getLogger(__name__)

_NO_EXEC = (
    "exec is not supported for WebAssembly workloads: a module has no shell and no second process to start "
    "one in; see its output with kubectl logs"
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_REFUSED = {"exec": _NO_EXEC, "run": _NO_EXEC}


class PodLookup(Protocol):
    """What the endpoint has to know of Pods; `reconcile/pod.py` knows it."""

    def pod(self, namespace: str, name: str) -> Object | None:
        """The live object of a Pod bound to our Node; None if there is none."""
        ...

    def pods(self) -> Iterable[Object]:
        """All of them."""
        ...

    def placement(self, uid: str) -> RunnerClient | None:
        """The runner that a Pod is on; None if it is on none."""
        ...

    def address(self, pod: Object) -> tuple[str, Mapping[int, int]]:
        """Where a Pod is reached, empty if nowhere, and where the ports are there that it names."""
        ...


class KubeletApi(Protocol):
    """What of `Kube` is used here: our own identity's, for a node may not ask for reviews."""

    async def get(self, path: str) -> Object:
        """One object."""
        ...

    async def create(self, path: str, body: Object) -> Object:
        """Create an object in a collection."""
        ...


class KubeletServer:
    """Listens from `start` to `close`, on every replica: only the leader's address is in the Node."""

    def __init__(
        self,
        settings: Settings,
        kube: KubeletApi,
        lookup: PodLookup,
        runners: Runners,
        *,
        known: Callable[[], Awaitable[str]],
        clock: Clock | None = None,
    ) -> None:
        """`known`: wait until it is known which Pods are bound to our Node; why that is not known, "" if it is."""
        self._settings = settings
        self._kube = kube
        self._lookup = lookup
        self._known = known
        self._clock = clock or Clock()
        self._usage = usage.UsageReader(runners, clock=self._clock)
        self._summary = usage.Summary(settings.node_name, self._clock.now())
        self._authenticator = Authenticator(kube, self._clock)
        self._authorizer = Authorizer(kube, settings.node_name, self._clock)
        self._server = HttpsServer(self._app())
        self._trust: KeptTrust | None = None

    async def start(self, door: Door | None = None) -> int:
        """Listen, or take over the port that is listened on. Raises TlsError (our certificate), OSError (the address).

        A client CA that can't be read is logged and tried again: until then only tokens are accepted.

        :return: the bound port.
        """
        of = self._settings.kubelet
        tls = ServerTls(of.cert_file, of.key_file, client_ca_file=of.client_ca_file)
        if of.client_ca_file is None:

            async def read() -> None:
                tls.trust(await client_ca(self._kube, None))

            self._trust = KeptTrust(read, what="kubectl logs", clock=self._clock)
            await self._trust.start()
        return await self._server.start(of.listen, of.port, tls, door)

    async def close(self) -> None:
        """Stop listening; streams get some seconds."""
        if self._trust:
            await self._trust.close()
        await self._server.close()

    def complaint(self) -> str:
        """For a health check: why the API server's certificate can't be verified, "" if it can."""
        return self._trust.complaint if self._trust else ""

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._of_pods(self._logs), allow_head=False)
        app.router.add_get("/healthz", _healthz, allow_head=False)
        for path in ("/pods", "/pods/"):
            app.router.add_get(path, self._of_pods(self._pods), allow_head=False)
        for path in ("/metrics/resource", "/metrics/resource/"):
            app.router.add_get(path, self._of_pods(self._metrics), allow_head=False)
        for path in ("/stats/summary", "/stats/summary/"):
            app.router.add_get(path, self._of_pods(self._stats), allow_head=False)
        for path in ("/attach/{namespace}/{pod}/{container}", "/attach/{namespace}/{pod}/{uid}/{container}"):
            for method in ("GET", "POST"):
                app.router.add_route(method, path, self._of_pods(self._attach))
        for path in ("/portForward/{namespace}/{pod}", "/portForward/{namespace}/{pod}/{uid}"):
            for method in ("GET", "POST"):
                app.router.add_route(method, path, self._of_pods(self._port_forward))
        for name, text in _REFUSED.items():
            app.router.add_route("*", f"/{name}/{{rest:.*}}", _refusal(text))
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every request, an unknown path's too, is authenticated and authorized first."""
        certificate = request.transport.get_extra_info("peercert") if request.transport else None
        try:
            identity = await self._authenticator.identify(certificate, request.headers.get("Authorization", ""))
            wanted = Attributes.of(request.method, request.path)
            allowed = await self._authorizer.allows(identity, wanted)
        except Unauthenticated:
            return web.Response(status=401, text="Unauthorized")
        except ReviewFailed as error:
            log.error("%s %s: %s", request.method, request.path, error)
            return web.Response(status=500, text="the API server could not be asked whether this is allowed")
        if not allowed:
            named = " ".join(wanted.subresources)
            who = f"user={identity.user}, verb={wanted.verb}, resource=nodes, subresource(s)=[{named}]"
            return web.Response(status=403, text=f"Forbidden ({who})\n")
        return await handler(request)

    def _of_pods(self, handler: Handler) -> Handler:
        """What is about Pods waits until it is known which there are."""

        async def handle(request: web.Request) -> web.StreamResponse:
            unknown = await self._known()
            return _status(503, unknown) if unknown else await handler(request)

        return handle

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        name, container = request.match_info["pod"], request.match_info["container"]
        try:
            options = logs.parse_query(request.query)
        except logs.BadQuery as error:
            return web.Response(status=error.status, text=error.body)
        pod = self._lookup.pod(request.match_info["namespace"], name)
        if pod is None:
            return web.Response(status=404, text=f'pod "{name}" does not exist')
        if not logs.has_container(pod, container):
            return web.Response(status=404, text=f'container "{container}" not found in pod "{name}"')
        return await logs.serve(request, pod, container, options, self._lookup.placement(pod["metadata"]["uid"]))

    def _pod_of(self, request: web.Request) -> Object | None:
        pod = self._lookup.pod(request.match_info["namespace"], request.match_info["pod"])
        uid = request.match_info.get("uid")
        return pod if pod is not None and uid in (None, pod["metadata"]["uid"]) else None

    async def _port_forward(self, request: web.Request) -> web.StreamResponse:
        pod = self._pod_of(request)
        if pod is None:
            return _status(404, f'pod "{request.match_info["pod"]}" does not exist')
        try:
            return await portforward.serve(request, pod, functools.partial(self._connect, pod))
        except portforward.BadRequest as error:
            return _status(400, str(error))

    async def _connect(self, pod: Object, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        address, ports = self._lookup.address(pod)
        return await portforward.connect(pod, port, address=address, ports=ports)

    async def _attach(self, request: web.Request) -> web.StreamResponse:
        name, container = request.match_info["pod"], request.match_info["container"]
        pod = self._pod_of(request)
        if pod is None:
            return _status(404, f'pod "{name}" does not exist')
        if not logs.has_container(pod, container):
            return _status(404, f'container "{container}" not found in pod "{name}"')
        runner = self._lookup.placement(pod["metadata"]["uid"])
        why = logs.why_no_log(pod, container, previous=False)
        if runner is None or why:
            return _status(400, why or f'container "{container}" in pod "{name}" is not available')
        try:
            return await attach.serve(request, pod, container, runner)
        except attach.BadRequest as error:
            return _status(400, str(error))

    async def _pods(self, _request: web.Request) -> web.Response:
        found = list(self._lookup.pods())
        return web.json_response({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": found})

    async def _metrics(self, _request: web.Request) -> web.Response:
        text = usage.metrics(await self._usage.read(self._lookup.pods()))
        return web.Response(body=text.encode(), headers={"Content-Type": usage.METRICS_TYPE})

    async def _stats(self, request: web.Request) -> web.Response:
        only = logs.boolean(request.query.get("only_cpu_and_memory"))
        use = await self._usage.read(self._lookup.pods())
        return web.json_response(self._summary.make(use, only_cpu_and_memory=only))


def _refusal(text: str) -> Handler:
    async def refuse(_request: web.Request) -> web.StreamResponse:
        return _status(501, text)

    return refuse


def _status(code: int, text: str) -> web.Response:
    # A metav1.Status, not text: the API server decodes whatever is not 101 as one (client-go transport/spdy), YAML too,
    # and makes an empty Status of a sentence with a colon in it; kubectl then shows "unknown error".
    status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": text, "code": code}
    return web.json_response(status, status=code)


async def _healthz(_request: web.Request) -> web.Response:
    return web.Response(text="ok")
