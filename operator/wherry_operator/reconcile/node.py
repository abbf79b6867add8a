"""Keeps the virtual Node: there, labelled, its Lease renewed and its status true. What it should be: `node_object.py` and
`node_status.py`.

It acts as the node itself, with a kubelet's rights (facts: local-kubernetes.md §4), and under the operator's own name where
NodeRestriction forbids a node to change itself: its taints, and its owner. The Node is left as it is at the end: without the
Lease it becomes Unknown by itself, and the next leader finds it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

from wherry_operator.clock import Clock
from wherry_operator.kube import Conflict, Forbidden, KubeError, NotFound, PatchKind
from wherry_operator.models import Object
from wherry_operator.reconcile import node_object, node_status, release
from wherry_operator.reconcile.node_status import Fleet
from wherry_operator.runners.ledger import Reserved
from wherry_operator.runners.survey import Runners, survey
from wherry_operator.settings import NODE_LEASE_DURATION_SECONDS, NODE_LEASE_RENEW_SECONDS, Settings
from wherry_runner.protocol import RunnerCondition

log = logging.getLogger(__name__)

LOOK_SECONDS = 10.0
"""Between two looks at the live Node, as a kubelet (nodeStatusUpdateFrequency): others write its status
too."""

LOOK_CALL_SECONDS = 10.0
"""For one look and its writes."""

LEASE_CALL_SECONDS = 5.0
"""For one renewal: a call that hangs must not cost two of them."""


class NodeApi(Protocol):
    """What of `Kube` is used here."""

    async def get(self, path: str) -> Object:
        """One object."""
        ...

    async def create(self, path: str, body: Object) -> Object:
        """Create an object in a collection."""
        ...

    async def replace(self, path: str, body: Object) -> Object:
        """Replace an object, if nobody else did."""
        ...

    async def patch(self, path: str, body: Object, kind: PatchKind = ...) -> Object:
        """Change some fields of an object."""
        ...


class DescribedRunners(Runners, Protocol):
    """What of `RunnerRegistry` is used here."""

    def describes(self, name: str, condition: RunnerCondition) -> None:
        """Note how a runner says that it is."""
        ...


class NodeKeeper:
    """The two loops: status and Lease. Neither ends by itself, whatever the API server answers."""

    def __init__(
        self,
        kube_as_node: NodeApi,
        kube: NodeApi,
        registry: DescribedRunners,
        settings: Settings,
        port: int,
        *,
        reserved: Callable[[str], Reserved] = lambda _: Reserved(),
        clock: Clock | None = None,
    ) -> None:
        """`kube`: our own identity. `reserved`: what of a runner WasmWorkloads have."""
        self._kube = kube_as_node
        self._own_kube = kube
        self._reserved = reserved
        self._registry = registry
        self._settings = settings
        self._port = port
        self._clock = clock or Clock()
        self._version = wherry_version()
        self._path = f"/api/v1/nodes/{settings.node_name}"
        self._leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
        self._uid = ""
        self._known = asyncio.Event()
        self._poked = asyncio.Event()
        self._lease: Object | None = None
        self._lease_renewed: float | None = None

    async def run(self) -> None:
        """Keep the Node until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._repeat("the Node", self._look, LOOK_CALL_SECONDS, self._until_poked))
            group.create_task(self._keep_lease())

    def poke(self) -> None:
        """Look at once: a runner has come or gone, or somebody has changed the Node."""
        self._poked.set()

    def complaint(self) -> str:
        """For a health check: what is wrong with the Lease, "" if nothing is."""
        if self._lease_renewed is None:
            return "the Node's Lease was never renewed"
        age = self._clock.monotonic() - self._lease_renewed
        return f"the Node's Lease was last renewed {age:.0f} s ago" if age > NODE_LEASE_DURATION_SECONDS else ""

    async def _repeat(
        self,
        what: str,
        act: Callable[[], Awaitable[None]],
        seconds: float,
        pause: Callable[[], Awaitable[None]],
    ) -> None:
        while True:
            try:
                async with asyncio.timeout(seconds):
                    await act()
            except TimeoutError:
                log.warning("can't keep %s %s: no answer within %.0f s", what, self._settings.node_name, seconds)
            except KubeError as error:
                log.warning("can't keep %s %s: %s", what, self._settings.node_name, error)
            except Exception:
                log.exception("can't keep %s %s", what, self._settings.node_name)
            await pause()

    async def _keep_lease(self) -> None:
        await self._known.wait()  # its owner is the Node: without the Node's UID there is no Lease
        await self._repeat("the Node's Lease", self._renew, LEASE_CALL_SECONDS, self._until_renewal)

    async def _until_poked(self) -> None:
        poked = asyncio.ensure_future(self._poked.wait())
        slept = asyncio.ensure_future(self._clock.sleep(LOOK_SECONDS))
        try:
            await asyncio.wait((poked, slept), return_when=asyncio.FIRST_COMPLETED)
        finally:
            poked.cancel()
            slept.cancel()
        self._poked.clear()

    async def _until_renewal(self) -> None:
        await self._clock.sleep(NODE_LEASE_RENEW_SECONDS)

    async def _look(self) -> None:
        live = await self._live()
        fleet = await self._fleet()
        now = self._clock.now()
        wanted = node_status.node_status(self._settings, self._port, fleet, live, now, self._version)
        if node_status.must_write(live, wanted, now):
            # Strategic: conditions merge by type, so those that others keep (a cloud's NetworkUnavailable)
            # stay.
            await self._kube.patch(f"{self._path}/status", {"status": wanted}, PatchKind.STRATEGIC)

    async def _fleet(self) -> Fleet:
        said = await survey(self._registry, "how it is", lambda client: client.condition())
        for name, condition in said.items():
            if condition is not None:  # of one that does not answer, what it said last is the best that is known
                self._registry.describes(name, condition)
        states = self._registry.states()
        conditions = {state.name: state.condition for state in states if state.condition is not None}
        reserved = {state.name: self._reserved(state.name) for state in states}
        return Fleet(states=states, conditions=conditions, reserved=reserved)

    async def _live(self) -> Object:
        try:
            live = await self._kube.get(self._path)
        except NotFound:
            wanted = node_object.node_object(self._settings, await self._owner())
            live = await self._kube.create("/api/v1/nodes", wanted)
            log.info("created the Node %s", self._settings.node_name)
        uid = live["metadata"]["uid"]
        if uid != self._uid:
            live = await self._adopt(live)
            self._uid = uid
            self._known.set()
        return live

    async def _adopt(self, live: Object) -> Object:
        """Once for each life of the Node, as a kubelet at its registration: what an administrator changes
        later stays."""
        wanted = node_object.labels(self._settings)
        have = live["metadata"].get("labels") or {}
        differ = {key: value for key, value in wanted.items() if have.get(key) != value}
        if differ:
            live = await self._kube.patch(self._path, {"metadata": {"labels": differ}})
        correction = node_object.correction(live, self._settings, await self._owner())
        if correction is None:
            return live
        try:
            live = await self._own_kube.patch(self._path, correction)
            log.info("corrected %s of the Node %s", " and ".join(sorted(_parts(correction))), self._settings.node_name)
        except Forbidden as error:
            log.warning(
                "%s of the Node %s are not what the settings say, so that Pods may come here that are no WebAssembly, or the "
                "Node may outlive its release: %s. Delete the Node, and it is made anew",
                " and ".join(sorted(_parts(correction))),
                self._settings.node_name,
                error,
            )
        return live

    async def _owner(self) -> Object | None:
        """The object that the Node is to go with."""
        return await release.owner(self._own_kube, self._settings, f"the Node {self._settings.node_name}")

    async def _renew(self) -> None:
        started = self._clock.monotonic()
        try:
            await self._write_lease()
        except (Conflict, NotFound):
            # Another leader's, deleted, or our own write whose answer was lost: at once again, from the live
            # one.
            self._lease = None
            await self._write_lease()
        self._lease_renewed = started

    async def _write_lease(self) -> None:
        path = f"{self._leases}/{self._settings.node_name}"
        if self._lease is None:
            try:
                self._lease = await self._kube.get(path)
            except NotFound:
                first = node_object.lease_object(self._settings, self._uid, self._clock.now())
                self._lease = await self._kube.create(self._leases, first)
                return
        before = self._lease.get("spec") or {}
        wanted = node_object.lease_object(self._settings, self._uid, self._clock.now(), before.get("renewTime"))
        metadata = {**self._lease["metadata"], **wanted["metadata"]}
        spec = {**before, **wanted["spec"]}
        self._lease = await self._kube.replace(path, {**wanted, "metadata": metadata, "spec": spec})


def _parts(correction: Object) -> set[str]:
    parts = {"taints"} if "spec" in correction else set()
    return parts | ({"owner"} if "ownerReferences" in correction["metadata"] else set())


def wherry_version() -> str:
    """The version of this distribution, as it was installed."""
    try:
        return version("wherry")
    except PackageNotFoundError:
        return "0.0.0"
