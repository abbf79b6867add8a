"""Discovery by EndpointSlices against a real API server, with the operator's own rights.

The API server takes no loopback address for an endpoint, so what is found is only looked at, and nobody is called.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

from kubernetes.aio import client, config

from tests.support.installation import Installation
from tests.support.relay import Relay
from wherry_operator.kube import Kube
from wherry_operator.models import Object
from wherry_operator.queue import Key
from wherry_operator.reconcile.services import Services
from wherry_operator.runners.discovery import Discovery
from wherry_operator.services.slices import Endpoint

SERVICE = "runners"


def put(installation: Installation, name: str, address: str, node: str, *, service: str = SERVICE) -> None:
    """Have a slice with one runner."""
    installation.cluster.apply(
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": name,
                "namespace": installation.namespace,
                "labels": {"kubernetes.io/service-name": service},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": [address], "nodeName": node, "conditions": {"ready": True}}],
            "ports": [{"name": "api", "port": 8443}],
        }
    )


def remove(installation: Installation, *names: str) -> None:
    """Have these slices no more."""
    installation.cluster.kubectl("delete", "endpointslice", *names, "--ignore-not-found", "-n", installation.namespace)


class Found:
    """The runners of which the operator was told last: their addresses, by name."""

    def __init__(self) -> None:
        self.runners: dict[str, str] | None = None

    async def until(self, **expected: str) -> None:
        """Wait until they are these; names with `_` for `-`."""
        wanted = {name.replace("_", "-"): f"https://{address}:8443" for name, address in expected.items()}
        async with asyncio.timeout(120):
            while self.runners != wanted:
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def discovering(installation: Installation) -> AsyncIterator[tuple[Found, Relay]]:
    """Follow the slices of `SERVICE`, as an operator does; and the way to the API server."""
    configuration = await _as_the_operator(installation)
    way = Relay(configuration.host.removeprefix("https://"))
    configuration.host = f"https://{way.address}"
    kube, found = Kube(configuration), Found()

    def tell(runners: Any) -> None:
        found.runners = {runner.name: runner.url for runner in runners}

    discovery = Discovery(kube, namespace=installation.namespace, service=SERVICE, on_discovered=tell)
    task = asyncio.create_task(discovery.run())
    try:
        yield found, way
        assert discovery.complaint() == ""
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await kube.close()
        way.close()


async def lead(installation: Installation, workload: Object, *answers: Iterable[Endpoint]) -> None:
    """Have a WasmWorkload's Service lead to some endpoints, and then to others, as an operator does: another one, that the
    installation's own does not put right."""
    kube = Kube(await _as_the_operator(installation))
    try:
        found = Services(kube, node_name="another", on_change=lambda _: None)
        await found.load()
        key = Key("WasmWorkload", workload["metadata"]["namespace"], workload["metadata"]["name"])
        for endpoints in answers:
            published = await found.publish(key, workload, endpoints, frozenset())
            assert published.exposure is not None and published.exposure.ready, published
    finally:
        await kube.close()


async def _as_the_operator(installation: Installation) -> client.Configuration:
    configuration = client.Configuration()
    await config.load_kube_config(
        str(installation.operator_kubeconfig), client_configuration=configuration, persist_config=False
    )
    return configuration
