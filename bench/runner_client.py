"""Talks to a runner's API as fast as one process can: for benches."""

from __future__ import annotations

import base64
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from pydantic import TypeAdapter

from tests.support.runner import Certificates
from wherry_runner import protocol

_EVENT: TypeAdapter[protocol.WatchEvent] = TypeAdapter(protocol.WatchEvent)


@dataclass
class RunnerApi:
    """A runner's API."""

    session: aiohttp.ClientSession
    url: str
    _sequence: int = 0

    async def put(
        self,
        workload_id: str,
        module: bytes,
        *,
        policy: str = "Always",
        http: protocol.HttpServer | None = None,
        network: protocol.Network | None = None,
    ) -> None:
        """Start a workload of one container that runs an inline module."""
        await self.send(workload_id, self.body(workload_id, module, policy=policy, http=http, network=network))

    def body(
        self,
        workload_id: str,
        module: bytes,
        *,
        policy: str = "Always",
        http: protocol.HttpServer | None = None,
        network: protocol.Network | None = None,
    ) -> bytes:
        """What `put` sends."""
        return self._body(workload_id, protocol.InlineModule(data=base64.b64encode(module)), policy, http, network)

    async def put_image(self, workload_id: str, reference: str) -> None:
        """The same of a module in a registry."""
        await self.send(workload_id, self._body(workload_id, protocol.ImageModule(reference=reference), "Always"))

    def _body(
        self,
        workload_id: str,
        module: protocol.Module,
        policy: str,
        http: protocol.HttpServer | None = None,
        network: protocol.Network | None = None,
    ) -> bytes:
        self._sequence += 1
        body = protocol.WorkloadPut(
            epoch=1,
            sequence=self._sequence,
            template_hash="t",
            workload=protocol.Workload(
                owner=protocol.Owner(kind="Bench", namespace="bench", name=workload_id, uid=workload_id),
                containers=(protocol.Container(name="main", module=module, http=http, network=network),),
                restart_policy=protocol.RestartPolicy(policy),
            ),
        )
        return body.to_json()

    async def send(self, workload_id: str, body: bytes) -> None:
        """PUT a workload."""
        async with self.session.put(f"{self.url}/v1/workloads/{workload_id}", data=body) as answer:
            if answer.status != 200:
                raise RuntimeError(f"{answer.status}: {await answer.text()}")

    async def delete(self, workload_id: str) -> None:
        """Kill and forget a workload."""
        self._sequence += 1
        query = {"epoch": "1", "sequence": str(self._sequence), "grace": "0"}
        async with self.session.delete(f"{self.url}/v1/workloads/{workload_id}", params=query) as answer:
            await answer.read()

    async def status(self, workload_id: str) -> protocol.WorkloadStatus:
        """A workload as it is."""
        async with self.session.get(f"{self.url}/v1/workloads/{workload_id}") as answer:
            return protocol.WorkloadStatus.model_validate_json(await answer.read())

    async def ended(self, workload_id: str) -> protocol.WorkloadStatus:
        """A workload once it has ended."""
        async for event in self.watch():
            if (
                isinstance(event, protocol.StatusEvent)
                and event.status.id == workload_id
                and event.status.phase is protocol.Phase.ENDED
            ):
                return event.status
        raise RuntimeError("the watch ended")

    async def watch(self) -> AsyncIterator[protocol.WatchEvent]:
        """The events, one by one."""
        timeout = aiohttp.ClientTimeout(total=None)
        async with self.session.get(f"{self.url}/v1/watch", timeout=timeout, read_bufsize=1 << 20) as answer:
            async for line in answer.content:
                yield _EVENT.validate_json(line)


@asynccontextmanager
async def connect(certificates: Certificates, url: str) -> AsyncIterator[RunnerApi]:
    """A client with the operator's certificate."""
    context = ssl.create_default_context(cafile=str(certificates.ca.cert_file))
    context.load_cert_chain(certificates.operator.cert, certificates.operator.key)
    context.check_hostname = False  # pinned by the private CA; the operator's own client pins the name too
    # The certificate has a fixed name, whatever the address (design §2).
    connector = aiohttp.TCPConnector(limit=32, ssl=context)
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, skip_auto_headers=["User-Agent"]) as session:
        yield RunnerApi(session, url)
