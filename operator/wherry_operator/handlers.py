"""Thin kopf adapters: an event becomes a key, and nothing is decided here.

Only `on.event` handlers: they write no annotation and no finalizer onto anybody's objects (facts: kopf.md §6). kopf's fatal
paths (kopf.md §4) are closed by the settings below; should kopf end nevertheless, the process ends and is started again.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import random
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import kopf
from kopf._core.reactor.inventory import ResourceMemories

from wherry_operator.models import lean
from wherry_operator.objects import ObjectStore
from wherry_operator.settings import Settings

GROUP, VERSION, PLURAL = "wherry.dev", "v1alpha1", "wasmworkloads"

PAGE = 500
"""Objects in a page of a LIST: a page of five hundred never lets its continue token grow old, which would be fatal."""

LOGIN_MINUTES = 30
"""Credentials are taken as new after this: without an expiry one transient 401 ends kopf (kopf.md §11)."""


class _EndlessBackOffs:
    """Pauses for ever, re-iterable: kopf must not end because the API server is away; the leader's Lease decides that."""

    def __iter__(self) -> Iterator[float]:
        delay = 1.0
        while True:
            yield delay * random.uniform(0.8, 1.2)
            delay = min(delay * 2, 30.0)


class _NeverDiffed(kopf.AnnotationsDiffBaseStorage):
    """No essence: objects are observed, never diffed, and building it is most of kopf's work (kopf.md §14)."""

    def build(self, *, body: Any, extra_fields: Any = None) -> Any:
        return {}

    def fetch(self, *, body: Any) -> Any:
        return None


class _NoProgress(kopf.AnnotationsProgressStorage):
    """No progress is kept of handlers that keep none."""

    def clear(self, *, essence: Any) -> Any:
        return super().clear(essence=essence) if essence else essence


class _NoMemories(ResourceMemories):
    """Nothing is remembered of an object: what kopf would is for handlers that we have not, and a thousand bytes for each."""

    async def recall(self, raw_body: Any, **options: Any) -> Any:
        return await super().recall(raw_body, **{**options, "ephemeral": True})


def configure(settings: Settings) -> kopf.OperatorSettings:
    """kopf's settings: server-side selectors, endless retries, nothing written to objects."""
    chosen = kopf.OperatorSettings()
    chosen.peering.standalone = True
    chosen.scanning.disabled = True  # app.py has checked that the CRD is there
    chosen.watching.field_selectors["v1", "pods"] = f"spec.nodeName={settings.node_name}"
    chosen.watching.field_selectors[GROUP, VERSION, PLURAL] = f"spec.className={settings.class_name}"
    chosen.watching.server_timeout = 600
    chosen.watching.client_timeout = 660
    chosen.watching.connect_timeout = 10
    chosen.watching.chunk_size = PAGE
    chosen.networking.request_timeout = 30
    chosen.networking.connect_timeout = 5
    chosen.networking.error_backoffs = _EndlessBackOffs()
    chosen.queueing.error_delays = (1, 2, 5, 10, 20, 30)
    # So long an object's worker stays, with its last event: after a burst that is 20 KiB for each object of a second.
    chosen.queueing.idle_timeout = 0.1
    chosen.posting.enabled = False
    chosen.persistence.diffbase_storage = _NeverDiffed(prefix=GROUP)
    chosen.persistence.progress_storage = _NoProgress(prefix=GROUP)
    chosen.process.ultimate_exiting_timeout = 10
    return chosen


def registry(*, pods: ObjectStore, workloads: ObjectStore) -> kopf.OperatorRegistry:
    """The handlers."""
    handlers = kopf.OperatorRegistry()

    def note(store: ObjectStore, event: Any) -> None:
        store.seen(lean(dict(event["object"])), deleted=event["type"] == "DELETED")

    @kopf.on.event("v1", "pods", registry=handlers)
    async def pod_event(event: Any, **_: Any) -> None:
        note(pods, event)

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=handlers)
    async def workload_event(event: Any, **_: Any) -> None:
        note(workloads, event)

    @kopf.on.login(registry=handlers)
    async def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
        await asyncio.sleep(1.0 if kwargs.get("retry") else 0.0)
        found = kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)
        if found is None:
            return None
        server = in_cluster_server(os.environ) or found.server
        return dataclasses.replace(
            found, server=server, expiration=datetime.now(UTC) + timedelta(minutes=LOGIN_MINUTES)
        )

    return handlers


def in_cluster_server(environment: Mapping[str, str]) -> str:
    """The API server as every other client in a Pod finds it, "" outside. kopf would ask the cluster's DNS for it, which may be
    down, and may be served by what we run."""
    host, port = environment.get("KUBERNETES_SERVICE_HOST", ""), environment.get("KUBERNETES_SERVICE_PORT", "443")
    if not host or environment.get("KUBECONFIG"):
        return ""
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


async def operator(
    settings: Settings, *, pods: ObjectStore, workloads: ObjectStore, stop: asyncio.Event, ready: asyncio.Event
) -> None:
    """Watch until told to stop; `ready` is set when it has begun."""
    await kopf.operator(
        registry=registry(pods=pods, workloads=workloads),
        settings=configure(settings),
        clusterwide=settings.scope.everywhere,
        namespaces=settings.scope.namespaces,
        stop_flag=stop,
        ready_flag=ready,
        standalone=True,
        memories=_NoMemories(),
        # Else it looks up the user's name, and an image's nobody has none.
        identity=settings.identity,  # type: ignore[arg-type]  # its own private NewType of str
    )
