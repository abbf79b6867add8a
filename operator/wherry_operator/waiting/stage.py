"""The time before a replica is a whole operator: it looks at the Lease, answers probes, and passes connections on to the leader.

What it can't judge it leaves to the whole operator, which ends or complains as if there had been no such time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wherry_operator import lease as rules
from wherry_operator.clock import Clock
from wherry_operator.doors import Door
from wherry_operator.lease import RETRY_SECONDS, Reachable, Sight
from wherry_operator.settings import Settings
from wherry_operator.waiting.api import METADATA, Answer, Api, Odd, Unanswered
from wherry_operator.waiting.decide import (
    Claim,
    Decision,
    Grow,
    Stay,
    after_claim,
    after_look,
    after_question,
    is_claim,
)
from wherry_operator.waiting.probes import Probes
from wherry_operator.waiting.relay import Address, Relay

log = logging.getLogger(__name__)

_CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/wasmworkloads.wherry.dev"
_THERE = frozenset({200})
_MAY_BE_READ = frozenset({200, 404})


@dataclass(frozen=True, kw_only=True)
class Handed:
    """What a whole operator takes over."""

    sight: Sight
    health: Door
    kubelet: Door
    api: Door
    leads: bool
    """Whether it is to lead soon."""


def possible(settings: Settings, environment: Mapping[str, str]) -> bool:
    """Whether there is such a time: in a Pod, with nothing between it and the API server, and no certificate that somebody has to
    approve before it is needed."""
    proxies = any(environment.get(name) for name in ("HTTPS_PROXY", "https_proxy"))
    inside = environment.get("KUBERNETES_SERVICE_HOST") and not environment.get("KUBECONFIG")
    return bool(inside) and not proxies and settings.kubelet.certificate != "csr"


class Stage:
    """One replica's. `wait` once, then `close` at the very end: connections to the leader go on until then."""

    def __init__(self, settings: Settings, environment: Mapping[str, str], *, clock: Clock | None = None) -> None:
        self._settings = settings
        self._api = Api(environment)
        self._clock = clock or Clock()
        self._sight = Sight(rules.name_of(settings.node_name))
        self._collection = rules.collection(settings.namespace)
        self._path = f"{self._collection}/{self._sight.name}"
        self._since = self._clock.monotonic()
        self._leader: Reachable | None = None
        self._claimed = 0
        """The epoch of our claim; 0: there was none."""
        self._asked = False
        """Whether the questions were answered as they should be."""
        self._complaint = ""
        self._why: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Set when a connection can't be passed on."""
        self._closing = contextlib.AsyncExitStack()

    async def wait(self, stop: asyncio.Event) -> Handed | None:
        """Until this has to become a whole operator, with what that takes over; None: until told to stop. Raises OSError (a port
        that can't be listened on)."""
        of = self._settings
        health = await self._open(of.health_listen, of.health_port)
        kubelet = await self._open(of.kubelet.listen, of.kubelet.port)
        api = await self._open(of.api_listen, of.api_port)
        self._here = Reachable(address=of.kubelet.address, kubelet=kubelet.port, api=api.port)
        probes = Probes(
            health,
            ready={
                "api": lambda: "" if self._asked else "the API server has not answered yet",
                "leader": lambda: self._sight.complaint(self._clock.monotonic(), of.identity),
            },
        )
        relays = [
            Relay(kubelet, leader=lambda: self._address("kubelet"), grow=self._grow),
            Relay(api, leader=lambda: self._address("api"), grow=self._grow),
        ]
        self._closing.push_async_callback(probes.close)
        for relay in relays:
            self._closing.push_async_callback(relay.close)
        probes.start()
        stopping = asyncio.create_task(stop.wait())
        ends: list[asyncio.Future[Any]] = [stopping, self._why]
        waiting = False
        decision: Decision = Stay()
        try:
            while not stop.is_set():
                looking = asyncio.create_task(self._look())
                await asyncio.wait([looking, *ends], return_when=asyncio.FIRST_COMPLETED)
                if not looking.done():  # a slow API server is no reason to let others wait
                    looking.cancel()
                    await asyncio.gather(looking, return_exceptions=True)
                    decision = Grow(self._why.result()) if self._why.done() else decision
                    break
                decision = looking.result()
                if isinstance(decision, Grow):
                    break
                if isinstance(decision, Stay) and self._asked and self._sight.holder:
                    if decision.looked:
                        # One of another name at our own address was here before us, and is no more.
                        self._leader = None if decision.leader == self._here else decision.leader
                    if not waiting:
                        waiting = True
                        log.info("waiting for the lead; connections are passed on to %s", self._sight.holder)
                        for relay in relays:
                            relay.start()
                await asyncio.wait(ends, timeout=RETRY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if self._why.done():
                    decision = Grow(self._why.result())
                    break
        finally:
            stopping.cancel()
            for relay in relays:
                relay.stop()
            self._api.close()
        if stop.is_set() or not isinstance(decision, Grow):
            return None
        log.info("becoming a whole operator: %s", decision.why)
        return Handed(sight=self._sight, health=health, kubelet=kubelet, api=api, leads=decision.leads)

    async def close(self) -> None:
        """End the connections to the leader, close what nobody took over, and give up a claim of which nothing came."""
        if not self._why.done():
            self._why.cancel()
        await self._closing.aclose()
        try:
            await self._disclaim()
        except (Odd, OSError, ValueError) as error:
            log.warning("can't give up the Lease %s, another waits it out: %s", self._sight.name, error)
        self._api.close()

    async def _open(self, host: str, port: int) -> Door:
        door = await Door.open(host, port)
        self._closing.callback(door.close)
        return door

    def _grow(self, why: str) -> None:
        if not self._why.done():
            self._why.set_result(why)

    def _address(self, port: str) -> Address | None:
        return (self._leader.address, getattr(self._leader, port)) if self._leader else None

    async def _look(self) -> Decision:
        try:
            if not self._asked:
                answered = await self._question()
                if answered is not None:
                    return answered
                self._asked = True
            found = await self._ask("GET", self._path)
            decision = after_look(
                found.status,
                found.body,
                self._sight,
                self._settings.identity,
                moment=self._clock.monotonic(),
                since=self._since,
            )
            return await self._claim(decision.lease) if isinstance(decision, Claim) else decision
        except (Odd, OSError, ValueError) as error:
            return Grow(f"the API server can't be asked: {error}")

    async def _question(self) -> Decision | None:
        """What makes an operator end, or wait, before it takes part in the election; None: nothing."""
        complaint = _unusable(self._settings)
        if complaint:
            return Grow(complaint)
        questions = {_CRD: _THERE}
        if self._settings.certificates == "own":
            questions[f"/api/v1/namespaces/{self._settings.namespace}/secrets/wherry-ca"] = _MAY_BE_READ
        for path, fine in questions.items():
            found = await self._ask("GET", path, accept=METADATA)
            decision = after_question(found.status, path, fine)
            if isinstance(decision, Stay):  # as long as that says nothing, the Lease's rules count
                return after_look(
                    0, None, self._sight, self._settings.identity, moment=self._clock.monotonic(), since=self._since
                )
            if decision is not None:
                return decision
        return None

    async def _claim(self, lease: Mapping[str, Any] | None) -> Decision:
        body = rules.taken(
            lease or rules.free(self._sight.name), self._settings.identity, self._clock.now(), self._here
        )
        path = self._collection if lease is None else self._path
        self._claimed = int(body["spec"]["leaseTransitions"])
        written = await self._ask("POST" if lease is None else "PUT", path, body)
        return after_claim(written.status, written.body, self._sight, moment=self._clock.monotonic())

    async def _disclaim(self) -> None:
        if self._claimed:
            found = await self._ask("GET", self._path)
            if found.status == 200 and is_claim(found.body, self._settings.identity, self._claimed):
                await self._ask("PUT", self._path, rules.renewed(found.body, "", self._clock.now()))
                log.info("gave up the Lease %s", self._sight.name)

    async def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, accept: str = "application/json"
    ) -> Answer:
        try:
            answer = await self._api.ask(method, path, body, accept=accept)
            self._complaint = ""
        except Unanswered as error:
            if str(error) != self._complaint:
                log.warning("waiting for the API server: %s", error)
                self._complaint = str(error)
            return Answer(0, None)
        return answer


def _unusable(settings: Settings) -> str:
    """Why the certificates that others bring can't be used, "" if they can."""
    pairs = []
    if settings.kubelet.certificate == "files":
        pairs.append((settings.kubelet.cert_file, settings.kubelet.key_file))
    if settings.certificates == "files":
        pairs.append((settings.runner_tls.cert_file, settings.runner_tls.key_file))
        if settings.api_certificate:
            pairs.append((settings.api_certificate.cert_file, settings.api_certificate.key_file))
    try:
        for pair in pairs:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(*pair)
        if settings.certificates == "files":
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=settings.runner_tls.ca_file)
    except (OSError, ValueError) as error:
        return f"certificates can't be loaded: {error}"
    return ""
