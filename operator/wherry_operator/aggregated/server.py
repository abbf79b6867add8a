"""The port that the API server's aggregator calls: every replica serves it, for nothing here needs the lead.

A port of its own, not the kubelet endpoint's: a certificate of the front proxy's CA vouches for any user, one of the clients' CA
for one. Each port trusts one of the two, so that which of them signed a certificate never has to be found out.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from aiohttp import web

from wherry_operator.aggregated import logs, portforward
from wherry_operator.aggregated.discovery import DOCUMENTS, GROUP, GROUP_VERSION, LOG, PORT_FORWARD, RESOURCE, VERSION
from wherry_operator.aggregated.front_proxy import FrontProxy
from wherry_operator.aggregated.logs import Instances, LogError
from wherry_operator.clock import Clock
from wherry_operator.doors import Door
from wherry_operator.https import HttpsServer, KeptTrust
from wherry_operator.kube import KubeError, NotFound
from wherry_operator.kubelet.auth import (
    AUTHENTICATION_CONFIG_MAP,
    Identity,
    Permissions,
    ResourceAttributes,
    ReviewFailed,
    Unauthenticated,
)
from wherry_operator.kubelet.logs import BadQuery, boolean, parse_query
from wherry_operator.models import Object
from wherry_operator.settings import Settings
from wherry_operator.tls import ServerTls

log = logging.getLogger(__name__)

_IDENTITY = web.RequestKey("identity", Identity)
_OBJECT = f"/apis/{GROUP_VERSION}/namespaces/{{namespace}}/{RESOURCE}/{{name}}"


class Api(Protocol):
    """What of `Kube` is used here."""

    async def get(self, path: str) -> Object:
        """One object."""
        ...

    async def find(self, path: str) -> Object:
        """One object, by a LIST of its name."""
        ...

    async def create(self, path: str, body: Object) -> Object:
        """Create an object in a collection."""
        ...


class AggregatedServer:
    """Listens from `start` to `close`."""

    def __init__(
        self,
        settings: Settings,
        kube: Api,
        instances: Instances,
        *,
        known: Callable[[], Awaitable[None]],
        clock: Clock | None = None,
    ) -> None:
        """`known`: wait until it is known what is on the runners, or which of them don't say."""
        self._settings = settings
        self._kube = kube
        self._instances = instances
        self._known = known
        self._clock = clock or Clock()
        self._permissions = Permissions(kube, self._clock)
        self._front_proxy: FrontProxy | None = None
        self._forwarded = 0
        """Connections that are being forwarded."""
        self._server = HttpsServer(self._app())
        self._trust: KeptTrust | None = None

    async def start(self, door: Door | None = None) -> int:
        """Listen, or take over the port that is listened on. Raises TlsError (our certificate), OSError (the address).

        A front proxy's CA that can't be read is logged and tried again: until then nobody gets in.

        :return: the bound port.
        """
        of = self._settings.api_certificate or self._settings.kubelet
        tls = ServerTls(of.cert_file, of.key_file)

        async def read() -> None:
            front_proxy = FrontProxy.of(await self._kube.get(AUTHENTICATION_CONFIG_MAP))
            tls.trust(front_proxy.ca_pem)
            self._front_proxy = front_proxy

        self._trust = KeptTrust(read, what="the logs of WasmWorkloads", clock=self._clock)
        await self._trust.start()
        return await self._server.start(self._settings.api_listen, self._settings.api_port, tls, door)

    async def close(self) -> None:
        """Stop listening; streams get some seconds."""
        if self._trust:
            await self._trust.close()
        await self._server.close()

    def _app(self) -> web.Application:
        app = web.Application(middlewares=[self._guard])
        for path, document in DOCUMENTS.items():
            app.router.add_get(path, _answer(document), allow_head=False)
        app.router.add_get(f"{_OBJECT}/{LOG}", self._log, allow_head=False)
        app.router.add_get(f"{_OBJECT}/{PORT_FORWARD}", self._port_forward, allow_head=False)
        return app

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Every request, an unknown path's too, is authenticated first; failures are told as Kubernetes does."""
        certificate = request.transport.get_extra_info("peercert") if request.transport else None
        try:
            if self._front_proxy is None:
                raise Unauthenticated
            request[_IDENTITY] = self._front_proxy.identify(certificate, request.headers, self._clock)
            return await handler(request)
        except Unauthenticated:
            return _status(401, "Unauthorized", "Unauthorized")
        except LogError as error:
            return _status(error.status, error.reason, str(error))
        except ReviewFailed as error:
            log.error("%s %s: %s", request.method, request.path, error)
            return _status(500, "InternalError", "the API server could not be asked whether this is allowed")
        except web.HTTPException as error:
            reason = "MethodNotAllowed" if error.status == 405 else "NotFound"
            return _status(error.status, reason, error.reason)

    async def _log(self, request: web.Request) -> web.StreamResponse:
        namespace, name = request.match_info["namespace"], request.match_info["name"]
        await self._permit(request[_IDENTITY], "get", LOG, namespace, name)
        try:
            options = parse_query(request.query)
        except BadQuery as error:
            reason = "Invalid" if error.status == 422 else "BadRequest"
            raise LogError(
                error.status, reason, "the parameters of this log can't be read, or exclude each other"
            ) from None
        workload = await self._workload(namespace, name)
        await self._known()
        found = logs.sources(workload, self._instances, request.query.get("instance", ""))
        return await logs.serve(request, workload, found, options, prefix=boolean(request.query.get("prefix")))

    async def _port_forward(self, request: web.Request) -> web.StreamResponse:
        namespace, name = request.match_info["namespace"], request.match_info["name"]
        # The API server has asked for `get`, as of every WebSocket: who may only read is not to talk to instances.
        await self._permit(request[_IDENTITY], "create", PORT_FORWARD, namespace, name)
        if self._forwarded >= portforward.MAX_CONNECTIONS:
            raise LogError(429, "TooManyRequests", "too many connections are forwarded now")
        workload = await self._workload(namespace, name)
        await self._known()
        port, instance = request.query.get("port", ""), request.query.get("instance", "")
        to = portforward.target(workload, self._instances, port, instance)
        self._forwarded += 1
        try:
            return await portforward.serve(request, to)
        finally:
            self._forwarded -= 1

    async def _permit(self, identity: Identity, verb: str, subresource: str, namespace: str, name: str) -> None:
        """The API server has asked this too, or as much; whoever else has such a certificate is asked here."""
        wanted = ResourceAttributes(
            verb=verb,
            group=GROUP,
            version=VERSION,
            resource=RESOURCE,
            subresource=subresource,
            namespace=namespace,
            name=name,
        )
        if not await self._permissions.allows(identity, wanted):
            raise LogError(
                403,
                "Forbidden",
                f'{RESOURCE}.{GROUP} "{name}" is forbidden: User "{identity.user}" cannot {verb} resource '
                f'"{RESOURCE}/{subresource}" in API group "{GROUP}" in the namespace "{namespace}"',
            )

    async def _workload(self, namespace: str, name: str) -> Object:
        # Read rather than remembered: only a leader watches, and its status is as new as can be.
        try:
            workload = await self._kube.find(f"/apis/wherry.dev/v1alpha1/namespaces/{namespace}/{RESOURCE}/{name}")
        except NotFound:
            raise LogError(404, "NotFound", f'{RESOURCE}.wherry.dev "{name}" not found') from None
        except KubeError as error:
            raise LogError(503, "ServiceUnavailable", f"the WasmWorkload can't be read: {error}") from error
        theirs = workload["spec"].get("className", "wherry")
        if theirs != self._settings.class_name:
            raise LogError(
                400,
                "BadRequest",
                f'wasmworkload "{name}" has className {theirs}: its log is with another installation than the one that '
                f"serves {GROUP} here ({self._settings.class_name})",
            )
        return workload


def _answer(document: Object) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(_request: web.Request) -> web.StreamResponse:
        return web.json_response(document)

    return answer


def _status(code: int, reason: str, message: str) -> web.Response:
    body = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }
    return web.json_response(body, status=code)
