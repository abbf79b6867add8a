"""Wires an operator, and orders its start and its end. Every other file gets what it needs from here."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import logging
import signal
import time
from collections import Counter
from collections.abc import Awaitable
from types import ModuleType
from typing import TYPE_CHECKING

from wherry_operator.aggregated.server import AggregatedServer
from wherry_operator.errors import StartError
from wherry_operator.events import EventRecorder
from wherry_operator.health import HealthServer
from wherry_operator.known import FIRST_SYNC_SECONDS, Knowledge
from wherry_operator.kube import Kube, KubeError, NotFound, load_configuration
from wherry_operator.kubelet.server import KubeletServer
from wherry_operator.leader import Leadership, LeadershipLost
from wherry_operator.lease import Reachable
from wherry_operator.metrics import Metrics, State
from wherry_operator.models import Object
from wherry_operator.objects import ObjectStore
from wherry_operator.queue import Fatal, Key, WorkQueue
from wherry_operator.reconcile import node_object, pod, workload
from wherry_operator.reconcile.moved import MovedPods
from wherry_operator.reconcile.node import NodeKeeper
from wherry_operator.reconcile.resync import Collection, Resync
from wherry_operator.reconcile.revisions import Revisions
from wherry_operator.reconcile.services import Services
from wherry_operator.reconcile.tokens import ServiceAccountTokens
from wherry_operator.references import References
from wherry_operator.runners.delivery import Deliveries
from wherry_operator.runners.discovery import Discovery
from wherry_operator.runners.nodes import ClusterNodes
from wherry_operator.runners.registry import RunnerRegistry
from wherry_operator.settings import Settings
from wherry_operator.tls import RunnerTls, TlsError, drop_default_contexts
from wherry_runner import protocol, unused_memory
from wherry_runner.lean_imports import without

if TYPE_CHECKING:
    from kubernetes.aio.client.configuration import Configuration

    from wherry_operator.reconcile.issuing import Issuing
    from wherry_operator.serving import ServingCertificate
    from wherry_operator.waiting.stage import Handed

log = logging.getLogger("wherry_operator")


async def run(settings: Settings, stop: asyncio.Event, handed: Handed | None = None) -> None:
    """Run until told to stop, or until this process may not lead any more. Raises StartError, OSError.

    :param handed: what this process has had open while it waited.
    """
    drop_default_contexts()
    try:
        async with contextlib.AsyncExitStack() as stack:
            operator = Operator(settings, await load_configuration(), handed)
            stack.push_async_callback(operator.close)
            await operator.serve(stop)
    except TlsError as error:
        raise StartError(str(error)) from error


class Operator:
    """Everything that one process holds."""

    def __init__(self, settings: Settings, configuration: Configuration, handed: Handed | None = None) -> None:
        self._settings = settings
        self._handed = handed
        self._kube = Kube(configuration)
        self._kube_as_node = Kube(
            configuration,
            user=f"system:node:{settings.node_name}",
            groups=("system:nodes", "system:authenticated"),
        )
        self._certificate, self._issuing = _makers_of_certificates(settings, self._kube, self._kube_as_node)
        self._runner_tls = RunnerTls(settings.runner_tls)
        self._pods = ObjectStore("Pod", accepts=self._is_our_pod, on_change=self._object_changed)
        self._workloads = ObjectStore("WasmWorkload", accepts=self._is_our_workload, on_change=self._object_changed)
        self._registry = RunnerRegistry(
            settings.runners,
            self._runner_tls,
            on_change=self._workload_changed,
            on_runner_change=self._runner_changed,
            loss_seconds=settings.runner_loss_seconds,
        )
        self._discovery: Discovery | None = None
        if settings.runner_service:
            self._discovery = Discovery(
                self._kube,
                namespace=settings.namespace,
                service=settings.runner_service,
                on_discovered=self._registry.discovered,
            )
        self._nodes = ClusterNodes(self._kube, on_change=self._nodes_changed)
        self._following: list[asyncio.Task[None]] = []
        self._leadership = Leadership.from_settings(self._kube, settings, handed.sight if handed else None)
        self._deliveries = Deliveries(
            self._registry, self._leadership, nodes=self._nodes, loss_seconds=settings.runner_loss_seconds
        )
        self._pod_events = EventRecorder(
            self._kube_as_node, component="wherry", host=settings.node_name, busy=self._was_busy
        )
        self._workload_events = EventRecorder(
            self._kube, component="wherry", host=settings.node_name, busy=self._was_busy
        )
        self._pod_references = References(
            self._kube_as_node,
            who=f"the virtual node {settings.node_name}",
            retry_forbidden=True,
            ttl_seconds=settings.reference_ttl_seconds,
            on_change=self._reference_changed,
        )
        self._workload_references = References(
            self._kube,
            who="Wherry's operator",
            retry_forbidden=False,
            ttl_seconds=settings.reference_ttl_seconds,
            on_change=self._reference_changed,
        )
        self._services = Services(
            self._kube, node_name=settings.node_name, on_change=self._service_changed, scope=settings.scope
        )
        self._moved = MovedPods(
            services=self._services,
            pods=self._pods,
            deliveries=self._deliveries,
            complete=lambda: self._resync.completed > 0,
            on_change=lambda key: self._queue.add(key),
        )
        self._pod_reconciler = pod.PodReconciler(
            kube_as_node=self._kube_as_node,
            store=self._pods,
            references=self._pod_references,
            deliveries=self._deliveries,
            events=self._pod_events,
            node_address=settings.kubelet.address,
            node_labels=node_object.labels(settings),
            moved=self._moved,
            tokens=ServiceAccountTokens(self._kube_as_node) if settings.service_account_tokens else None,
            claims=settings.claims,
        )
        self._revisions = Revisions(self._kube, self._workloads, scope=settings.scope, busy=self._is_busy)
        self._workload_reconciler = workload.WorkloadReconciler(
            kube=self._kube,
            store=self._workloads,
            references=self._workload_references,
            deliveries=self._deliveries,
            events=self._workload_events,
            revisions=self._revisions,
            services=self._services,
            unpublish_seconds=settings.unpublish_seconds,
        )
        self._metrics = Metrics()
        self._metrics.follow(self._state)
        self._queue = WorkQueue(self._reconcile, metrics=self._metrics)
        self._resync = Resync(
            self._kube,
            self._collections(),
            registry=self._registry,
            deliveries=self._deliveries,
            interval=settings.resync_seconds,
        )
        self._known = Knowledge(
            registry=self._registry, discovery=self._discovery, resync=self._resync, leadership=self._leadership
        )
        self._kubelet = KubeletServer(
            settings, self._kube, self._pod_reconciler, self._registry, known=self._known.pods
        )
        self._aggregated = AggregatedServer(settings, self._kube, self._deliveries, known=self._known.runners)
        self._node: NodeKeeper | None = None
        self._health = HealthServer(
            settings.health_listen,
            settings.health_port,
            live={"loop": lambda: ""},
            ready={
                "api": lambda: "" if self._checked else "the API server has not answered yet",
                "leader": self._leadership.complaint,
                "discovery": lambda: self._discovery.complaint() if self._discovery else "",
                "nodes": self._nodes.complaint,
                "services": lambda: self._services.complaint() if self._started else "",
                "resync": self._resync_complaint,
                "kubelet": self._kubelet.complaint,
                "node": self._node_complaint,
            },
            metrics=self._metrics,
        )
        self._handlers: asyncio.Task[ModuleType] | None = None
        self._checked = False
        self._started = False

    async def serve(self, stop: asyncio.Event) -> None:
        """Start everything in its order, and run until told to stop or until something essential ended."""
        # First: a process that waits for its API server is alive, and must not be restarted for it.
        handed = self._handed
        health = await self._health.start(handed.health if handed else None)
        if handed and handed.leads:
            self._load_handlers()
        if not await _unless(stop, self._check_cluster()):
            return
        self._checked = True
        if self._certificate is not None:
            self._certificate.prepare()
        if self._issuing is not None and not await _unless(stop, self._issuing.prepare()):
            return
        self._runner_tls.context()  # files that can't be used end us here, and not in a task
        port = await self._kubelet.start(handed.kubelet if handed else None)
        api = await self._aggregated.start(handed.api if handed else None)
        self._leadership.reachable = Reachable(address=self._settings.kubelet.address, kubelet=port, api=api)
        self._registry.start()
        self._following = [
            asyncio.create_task(self._nodes.run(), name="nodes"),
            asyncio.create_task(unused_memory.keep_giving_back(), name="unused memory"),
        ]
        if self._certificate is not None:
            self._following.append(asyncio.create_task(self._certificate.run(), name="serving certificate"))
        if self._issuing is not None:
            self._following.append(asyncio.create_task(self._issuing.run(), name="certificates of runners"))
        if self._discovery is not None:
            self._following.append(asyncio.create_task(self._discovery.run(), name="discovery of runners"))
        log.info("kubelet API on port %d, aggregated API on port %d, health on port %d", port, api, health)
        if not await _unless(stop, self._leadership.acquire(when_due=self._load_handlers)):
            return
        self._load_handlers()
        # From now on: what follows may take longer than a Lease lasts.
        self._following.append(asyncio.create_task(self._leadership.hold(), name="leader Lease"))
        self._node = NodeKeeper(
            self._kube_as_node,
            self._kube,
            self._registry,
            self._settings,
            port,
            reserved=self._deliveries.reserved,
        )
        self._following.append(asyncio.create_task(self._services.run(), name="services"))
        await self._know_runners()
        handlers = await self._load_handlers()
        tasks = [
            *self._following,
            asyncio.create_task(self._node.run(), name="node"),
            asyncio.create_task(self._pod_events.run(), name="events of Pods"),
            asyncio.create_task(self._workload_events.run(), name="events of WasmWorkloads"),
            asyncio.create_task(self._revisions.run(), name="revisions"),
            asyncio.create_task(self._queue.run(), name="queue"),
            asyncio.create_task(self._resync.run(), name="resync"),
            asyncio.create_task(self._pod_references.run(), name="references of Pods"),
            asyncio.create_task(self._workload_references.run(), name="references of WasmWorkloads"),
        ]
        kopf_stop, kopf_ready = asyncio.Event(), asyncio.Event()
        # Last: on its end kopf cancels every task that was born after it (kopf.md §12).
        watching = asyncio.create_task(
            handlers.operator(
                self._settings, pods=self._pods, workloads=self._workloads, stop=kopf_stop, ready=kopf_ready
            ),
            name="kopf",
        )
        loop = asyncio.get_running_loop()
        await asyncio.wait(
            [watching, ready := asyncio.create_task(kopf_ready.wait())], return_when=asyncio.FIRST_COMPLETED
        )
        ready.cancel()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)  # kopf has put its own in their place
        gc.freeze()
        # Each event leaves kopf's cycles: of ten times as many they held nine MiB after a burst.
        gc.set_threshold(5_000, 20, 50)
        self._started = True
        log.info("serving node %s and class %s", self._settings.node_name, self._settings.class_name)
        stopping = asyncio.create_task(stop.wait())
        try:
            done, _ = await asyncio.wait([stopping, watching, *tasks], return_when=asyncio.FIRST_COMPLETED)
        finally:
            # Who writes is stopped first: kopf's end also ends the connections to runners that were found after its start,
            # and nobody should be told that these runners are silent.
            for task in (*tasks, stopping):
                task.cancel()
            await asyncio.gather(*tasks, stopping, return_exceptions=True)
            kopf_stop.set()
            with contextlib.suppress(Exception):
                await asyncio.wait_for(watching, 5.0)
        for task in done - {stopping}:
            error = task.exception()
            if error is not None and not isinstance(error, (Fatal, LeadershipLost)):
                log.error("%s failed", task.get_name(), exc_info=error)
            raise StartError(f"{task.get_name()} has ended: {error or 'unexpectedly'}") from error

    async def close(self) -> None:
        """Leave in order: nothing that runs is touched, and the next leader need not wait."""
        await self._leadership.release()
        for task in self._following:
            task.cancel()
        await asyncio.gather(*self._following, return_exceptions=True)
        await self._registry.close()
        await self._kubelet.close()
        await self._aggregated.close()
        await self._health.close()
        await self._kube.close()
        await self._kube_as_node.close()

    def _load_handlers(self) -> asyncio.Task[ModuleType]:
        """Import kopf, in a thread: who waits for the lead does not need it, and who is about to lead has no time for it."""
        if self._handlers is None:
            self._handlers = asyncio.create_task(asyncio.to_thread(_import_handlers), name="handlers")
        return self._handlers

    async def _know_runners(self) -> None:
        """Wait until it is known which runners there are, where they are and what they have; for nobody for ever."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FIRST_SYNC_SECONDS):
                await self._nodes.synced.wait()
                await self._services.wait_synced()
        await self._known.runners()

    # --- wiring -------------------------------------------------------------------------------------------------------

    async def _reconcile(self, key: Key) -> float | None:
        if not self._leadership.held:
            raise Fatal("this process does not lead any more")
        match key.kind:
            case "Pod":
                return await self._pod_reconciler.reconcile(key)
            case "Service":
                return await self._moved.reconcile(key)
            case _:
                return await self._workload_reconciler.reconcile(key)

    def _is_busy(self) -> bool:
        return self._queue.busy

    def _was_busy(self) -> bool:
        return self._queue.busy_lately

    def _object_changed(self, key: Key, gone_uid: str | None) -> None:
        if gone_uid is not None:
            reconciler = self._pod_reconciler if key.kind == "Pod" else self._workload_reconciler
            reconciler.gone(key, gone_uid)
        self._queue.add(key)

    def _workload_changed(self, owner: protocol.Owner | None, workload_id: str, runner: str) -> None:
        if owner is not None:
            self._deliveries.observe(owner, workload_id)
            if self._deliveries.heard(workload_id, runner):
                return
            self._queue.add(Key(owner.kind, owner.namespace, owner.name))

    def _service_changed(self, key: Key) -> None:
        if key.kind != "Service" or self._moved.concerns(key):
            self._queue.add(key)

    def _reference_changed(self, key: Key) -> None:
        self._queue.add(key)

    def _runner_changed(self, name: str) -> None:
        if self._node is not None:
            self._node.poke()
        for key in self._deliveries.concerned(name):
            self._queue.add(key)

    def _nodes_changed(self, names: set[str]) -> None:
        if self._node is not None and self._settings.node_name in names:
            self._node.poke()
        for state in self._registry.states():
            if (state.info.node if state.info else state.node) in names:
                self._runner_changed(state.name)

    def _is_our_pod(self, body: Object) -> bool:
        return bool(body["spec"].get("nodeName") == self._settings.node_name)

    def _is_our_workload(self, body: Object) -> bool:
        return bool(body["spec"].get("className", "wherry") == self._settings.class_name)

    def _collections(self) -> list[Collection]:
        return [
            Collection(
                store=self._pods,
                paths=self._settings.scope.paths("/api/v1", "pods"),
                field_selector=f"spec.nodeName={self._settings.node_name}",
                object_path=lambda namespace, name: f"/api/v1/namespaces/{namespace}/pods/{name}",
            ),
            Collection(
                store=self._workloads,
                paths=self._settings.scope.paths(f"/apis/{workload.GROUP_VERSION}", "wasmworkloads"),
                field_selector=f"spec.className={self._settings.class_name}",
                object_path=workload.path_of,
            ),
        ]

    async def _check_cluster(self) -> None:
        """What must be there before anything else makes sense. Waits for an API server that does not answer yet."""
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/wasmworkloads.wherry.dev"
        told = ""
        while True:
            try:
                await self._kube.get(path)
                return
            except NotFound:
                raise StartError(
                    "the CRD wasmworkloads.wherry.dev is not installed; apply crds/wasmworkloads.wherry.dev.yaml"
                ) from None
            except KubeError as error:
                if error.status in (401, 403):
                    raise StartError(f"the API server refuses this operator's credentials: {error.message}") from error
                if error.message != told:
                    log.warning("waiting for the API server: %s", error.message)
                    told = error.message
                await asyncio.sleep(1.0)

    def _state(self) -> State:
        """What metrics are made of."""
        states = self._registry.states()
        at = self._resync.completed_at
        return State(
            queue_depth=len(self._queue),
            queue_delayed=self._queue.delayed,
            workloads=self._workloads.phases(),
            pods=self._pods.phases(),
            runners=Counter(self._deliveries.state_of(state) for state in states),
            instances=sum(len(state.statuses) for state in states if state.synced),
            leader=self._leadership.held,
            epoch=self._leadership.epoch,
            resync_age_seconds=None if at is None else time.monotonic() - at,
        )

    def _resync_complaint(self) -> str:
        if not self._started:
            return ""  # a follower is ready: it serves what needs no lead
        at = self._resync.completed_at
        if at is None:
            return "no complete LIST yet"
        age = time.monotonic() - at
        return "" if age < 5 * self._settings.resync_seconds else f"the last complete LIST is {age:.0f} s old"

    def _node_complaint(self) -> str:
        return self._node.complaint() if self._node is not None and self._started else ""


def _import_handlers() -> ModuleType:
    """The module `handlers`. kopf takes the client's classes in where it finds them: they are 10 MiB, and not used here."""
    with without("kubernetes.client"):
        return importlib.import_module("wherry_operator.handlers")


def _makers_of_certificates(
    settings: Settings, kube: Kube, kube_as_node: Kube
) -> tuple[ServingCertificate | None, Issuing | None]:
    """Those that are needed. They bring a library with an OpenSSL of its own, 8 MiB: none where others bring the files."""
    serving = issuing = None
    if settings.kubelet.certificate != "files":
        from wherry_operator.serving import ServingCertificate

        serving = ServingCertificate(settings, kube_as_node)
    if settings.certificates == "own":
        from wherry_operator.reconcile.issuing import Issuing

        issuing = Issuing(settings, kube)
    return serving, issuing


async def _unless(stop: asyncio.Event, work: Awaitable[object]) -> bool:
    """Do the work, unless told to stop first; False then."""
    task = asyncio.ensure_future(work)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return True
        return False
    finally:
        task.cancel()
        stopping.cancel()
