"""Services and our EndpointSlices: which there are, by two watches, and bringing them to what they should be.

What is to be is decided in `services/`. A write is made as of what was read; where somebody was faster it is refused, the watch
brings what is newer, and it is tried again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from typing import TypeVar

from wherry_operator.kube import Conflict, Forbidden, Invalid, Kube, KubeError, NotFound
from wherry_operator.models import Object
from wherry_operator.queue import Key
from wherry_operator.scope import Scope
from wherry_operator.services import service as services
from wherry_operator.services import slices
from wherry_operator.services.service import Service
from wherry_operator.services.slices import Endpoint, LiveSlice, Slice
from wherry_operator.status.workload import Exposure
from wherry_operator.watching import Watched, WatchedIn, path_of

log = logging.getLogger(__name__)

CALLS_AT_ONCE = 16
"""Slices of one Service that are written at the same time."""

NOT_OURS = "ServiceNotOurs"
REFUSED = "ServiceRefused"
UNFIT = "AddressUnfit"
PUBLISHED = "Published"


@dataclass(frozen=True, kw_only=True)
class Published:
    """What has come of it."""

    exposure: Exposure | None
    """None: it is not known; what was said of it stays."""
    settled: bool
    """Nothing leads to what is not to be reached: true also where nothing can be written, for then nothing leads there."""


_Item = TypeVar("_Item")

UNKNOWN = Published(exposure=None, settled=False)


class Services:
    """All Services of the cluster, or of some namespaces, and the EndpointSlices that this installation keeps."""

    def __init__(
        self, kube: Kube, *, node_name: str, on_change: Callable[[Key], None], scope: Scope | None = None
    ) -> None:
        """`on_change`: a Service, or the WasmWorkload whose own it is, is to be looked at, since something has changed.
        `scope`: where Services are looked for."""
        self._kube = kube
        self._node_name = node_name
        self._managed_by = slices.managed_by(node_name)
        self._on_change = on_change
        scope = scope or Scope()
        self._services = WatchedIn(
            {
                namespace: Watched(
                    kube,
                    path,
                    keep=Service.of,
                    on_change=self._services_changed,
                    name=path_of,
                    may_be_refused=bool(namespace),
                )
                for namespace, path in scope.paths("/api/v1", "services").items()
            }
        )
        self._slices = WatchedIn(
            {
                namespace: Watched(
                    kube,
                    path,
                    keep=slices.read,
                    on_change=self._slices_changed,
                    label_selector=f"{slices.MANAGED_BY_LABEL}={self._managed_by}",
                    name=path_of,
                    may_be_refused=bool(namespace),
                )
                for namespace, path in scope.paths("/apis/discovery.k8s.io/v1", "endpointslices").items()
            }
        )
        self._owned: defaultdict[str, set[str]] = defaultdict(set)
        """The Services of a WasmWorkload, by its UID; and the other way round:"""
        self._owners: dict[str, str] = {}
        self._led: defaultdict[str, set[str]] = defaultdict(set)
        """The slices of a Service; and the other way round:"""
        self._leads: dict[str, str] = {}
        self._within: defaultdict[str, set[str]] = defaultdict(set)
        """The Services of a namespace; and the other way round:"""
        self._namespaces: dict[str, str] = {}
        self._users: dict[str, Key] = {}
        """The WasmWorkload that has a Service of this name, or would like to."""
        self._used: dict[Key, str] = {}

    async def run(self) -> None:
        """Follow until cancelled."""
        await asyncio.gather(self._services.run(), self._slices.run())

    async def load(self) -> None:
        """Read all that there is, once. Raises KubeError."""
        await self._services.load()
        await self._slices.load()

    def complaint(self) -> str:
        """For a health check."""
        for what, watched in (("Services", self._services), ("EndpointSlices", self._slices)):
            if trouble := watched.complaint():
                return f"{what}: {trouble}"
        return ""

    async def wait_synced(self) -> None:
        """Until all that there is has been read."""
        await self._services.wait_synced()
        await self._slices.wait_synced()

    @property
    def _synced(self) -> bool:
        return self._services.synced and self._slices.synced

    def concerns(self, workload: Object) -> bool:
        """Whether a WasmWorkload has a Service, or is to have one."""
        return bool(services.name_of(workload)) or workload["metadata"]["uid"] in self._owned

    def gone(self, key: Key) -> None:
        """The object has no Service any more, or exists no more: then its Service goes with it, by garbage collection."""
        self._use(key, "")

    def get(self, namespace: str, name: str) -> Service | None:
        """A Service."""
        return self._services.items.get(f"{namespace}/{name}")

    def within(self, namespace: str) -> list[Service]:
        """All Services of a namespace."""
        return [self._services.items[path] for path in sorted(self._within.get(namespace, ()))]

    def led(self, service: Service) -> bool:
        """Whether slices of ours lead it anywhere."""
        return f"{service.namespace}/{service.name}" in self._led

    # --- bringing about -----------------------------------------------------------------------------------------------

    async def publish(self, key: Key, workload: Object, endpoints: Iterable[Endpoint], stays: Set[str]) -> Published:
        """Have a WasmWorkload's Service be as its spec says, and lead to these. `stays`: hosts (addresses, nodes) of which
        nothing is known right now; what is there of them stays. Raises Unavailable."""
        if not self._synced:
            return UNKNOWN
        name, uid = services.name_of(workload), workload["metadata"]["uid"]
        path = f"{key.namespace}/{name}" if name else ""
        self._use(key, path)
        try:
            for other in sorted(self._owned.get(uid, set()) - {path}):
                await self._remove(self._services.items[other])
            if not name:
                return Published(exposure=None, settled=True)
            live = self._services.items.get(path)
            if live is None:
                made = await self._kube.create(_services_path(key.namespace), services.desired(workload))
                live = self._took(made)
            elif live.owner_uid != uid:
                text = (
                    f"there is a Service {name} that is not this object's; it is left as it is: give http.service.name"
                )
                return Published(exposure=Exposure(reason=NOT_OURS, message=text), settled=True)
            elif (patch := services.change(live, workload)) is not None:
                live = self._took(await self._kube.patch(f"{_services_path(key.namespace)}/{name}", patch))
            unfit = await self.lead(live, endpoints, stays)
        except (Invalid, Forbidden) as error:
            return Published(exposure=Exposure(reason=REFUSED, message=error.message), settled=True)
        except (Conflict, NotFound) as error:
            log.info("%s: its Service is not as it was seen: %s", key, error)
            return UNKNOWN
        if unfit:
            return Published(exposure=Exposure(reason=UNFIT, message=unfit), settled=True)
        exposure = Exposure(ready=True, reason=PUBLISHED, url=services.url_of(workload))
        return Published(exposure=exposure, settled=True)

    async def lead(self, service: Service, endpoints: Iterable[Endpoint], stays: Set[str] = frozenset()) -> str:
        """Bring our slices of a Service to these endpoints; why some are left out. Raises KubeError."""
        live = {
            found.slice.name: found
            for path in self._led.get(f"{service.namespace}/{service.name}", ())
            if (found := self._slices.items.get(path)) is not None
        }
        unfit, fit = "", []
        for endpoint in endpoints:
            if why := slices.why_unfit(endpoint.address):
                unfit = f"the runner's address {endpoint.address} {why}"
            else:
                fit.append(endpoint)
        there = {(each.address, each.ports) for each in fit}
        fit += [
            each
            for found in live.values()
            for each in found.slice.endpoints
            if {each.address, each.node} & stays and (each.address, each.ports) not in there
        ]
        todo = slices.changes(service, slices.wanted(service.name, self._node_name, fit), live)
        path = f"/apis/discovery.k8s.io/v1/namespaces/{service.namespace}/endpointslices"

        async def create(each: Slice) -> None:
            made = await self._kube.create(path, slices.body(service, each, self._managed_by))
            self._took_slice(made)

        async def update(pair: tuple[LiveSlice, Slice]) -> None:
            found, each = pair
            self._took_slice(await self._kube.patch(f"{path}/{each.name}", slices.change(found, each)))

        async def delete(found: LiveSlice) -> None:
            await self._kube.delete(f"{path}/{found.slice.name}", uid=found.uid)
            self._slices.removed(f"{found.namespace}/{found.slice.name}")
            self._index_slices({f"{found.namespace}/{found.slice.name}"})

        # One kind after the other: who watches must not see that one has gone before it sees who takes its place.
        await _each(todo.create, create)
        await _each(todo.update, update)
        await _each(todo.delete, delete)
        return unfit

    async def _remove(self, service: Service) -> None:
        if not service.leaving:
            await self._kube.delete(f"{_services_path(service.namespace)}/{service.name}", uid=service.uid)
            self._services.removed(f"{service.namespace}/{service.name}")
            self._index_services({f"{service.namespace}/{service.name}"})

    # --- what there is ------------------------------------------------------------------------------------------------

    def _use(self, key: Key, path: str) -> None:
        before = self._used.pop(key, "")
        if self._users.get(before) == key:
            del self._users[before]
        if path:
            self._used[key] = path
            self._users[path] = key

    def _took(self, body: Object) -> Service:
        self._services.wrote(body)
        self._index_services({path_of(body)})
        return Service.of(body)

    def _took_slice(self, body: Object) -> None:
        self._slices.wrote(body)
        self._index_slices({path_of(body)})

    def _services_changed(self, paths: set[str]) -> None:
        self._index_services(paths)
        self._tell(paths)

    def _slices_changed(self, paths: set[str]) -> None:
        before = {self._leads[path] for path in paths & self._leads.keys()}
        self._index_slices(paths)
        self._tell(before | {self._leads[path] for path in paths & self._leads.keys()})

    def _tell(self, service_paths: set[str]) -> None:
        for path in service_paths:
            if (user := self._users.get(path)) is not None:
                self._on_change(user)
            self._on_change(Key("Service", *path.split("/", 1)))

    def _index_services(self, paths: Iterable[str]) -> None:
        for path in paths:
            found = self._services.items.get(path)
            _move(path, found.owner_uid if found else "", self._owners, self._owned)
            _move(path, found.namespace if found else "", self._namespaces, self._within)

    def _index_slices(self, paths: Iterable[str]) -> None:
        for path in paths:
            found = self._slices.items.get(path)
            _move(path, f"{found.namespace}/{found.service}" if found else "", self._leads, self._led)


def _move(item: str, to: str, places: dict[str, str], groups: dict[str, set[str]]) -> None:
    """Note in both directions to what an item belongs; empty: to nothing."""
    before = places.pop(item, "")
    if before in groups:
        groups[before].discard(item)
        if not groups[before]:
            del groups[before]
    if to:
        places[item] = to
        groups[to].add(item)


async def _each(items: Sequence[_Item], call: Callable[[_Item], Awaitable[None]]) -> None:
    """Some at once. Raises the first KubeError, after all were tried."""
    gate = asyncio.Semaphore(CALLS_AT_ONCE)

    async def one(item: _Item) -> KubeError | None:
        async with gate:
            try:
                await call(item)
            except KubeError as error:
                return error
            return None

    for error in await asyncio.gather(*(one(item) for item in items)):
        if error is not None:
            raise error


def _services_path(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/services"
