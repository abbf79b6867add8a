"""Pods bound to the virtual node: each on a runner, its status true, its end confirmed.

Acts as the node (design §2): the Node authorizer gives it a kubelet's rights and no more. Nothing of a Pod is written but its
status, Events about it, and the delete that confirms the end of one that is being deleted.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from wherry_operator import admission
from wherry_operator.admission import Rejection
from wherry_operator.events import EventRecorder
from wherry_operator.kube import Kube, NotFound, PatchKind
from wherry_operator.models import Object, PodSpec
from wherry_operator.objects import ObjectStore
from wherry_operator.placement import Needs, NoRunner
from wherry_operator.queue import Key
from wherry_operator.reconcile.moved import MovedPods
from wherry_operator.reconcile.tokens import ServiceAccountTokens
from wherry_operator.references import References
from wherry_operator.resolve import pod as resolving
from wherry_operator.resolve import resize
from wherry_operator.resolve.downward import Host
from wherry_operator.resolve.objects import ResolveError, Unsupported
from wherry_operator.resolve.revision import Resolved
from wherry_operator.rollout.instances import serves
from wherry_operator.runners.client import Refused, RunnerClient, RunnerError
from wherry_operator.runners.delivery import Deliveries, Place
from wherry_operator.services.pods import Serving
from wherry_operator.status import containers, happenings
from wherry_operator.status import pod as pod_status
from wherry_operator.status.happenings import Happening
from wherry_operator.status.pod import Observed, Problem
from wherry_operator.status.unhealthy import Unhealthy
from wherry_runner.protocol import ContainerStatus, Owner, Phase, RefusalReason, Running, WorkloadStatus

log = logging.getLogger(__name__)

KIND = "Pod"

RETRY_SECONDS = 5.0
"""Until a Pod that waits for something outside (an object, a runner) is looked at again."""


class PodReconciler:
    """Reconciles Pods; also tells the kubelet API which there are."""

    def __init__(
        self,
        *,
        kube_as_node: Kube,
        store: ObjectStore,
        references: References,
        deliveries: Deliveries,
        events: EventRecorder,
        node_address: str,
        node_labels: Mapping[str, str],
        moved: MovedPods,
        tokens: ServiceAccountTokens | None = None,
        claims: Collection[str] = (),
    ) -> None:
        """`node_labels`: those that the node has at least; an administrator may have given it more.
        `tokens`: None where Pods get none of their service accounts'. `claims`: those that runners offer, `NAMESPACE/NAME`."""
        self._kube = kube_as_node
        self._store = store
        self._references = references
        self._deliveries = deliveries
        self._events = events
        self._node_address = node_address
        self._node_labels = node_labels
        self._tokens = tokens
        self._claims = claims
        self._moved = moved
        self._unhealthy = Unhealthy()
        self._gone: defaultdict[Key, set[str]] = defaultdict(set)
        self._stopping: dict[str, int] = {}
        """The grace period with which a runner was told to stop a Pod."""
        self._confirmed: set[str] = set()
        """Those whose end was confirmed, until they are seen to be gone."""

    # --- for the kubelet API ------------------------------------------------------------------------------------------

    def pod(self, namespace: str, name: str) -> Object | None:
        """A Pod bound to the node, as it was seen last."""
        return self._store.get(namespace, name)

    def pods(self) -> list[Object]:
        """All Pods bound to the node."""
        return list(self._store.all())

    def placement(self, uid: str) -> RunnerClient | None:
        """The runner that has the Pod with this UID."""
        place = self._deliveries.locate(uid)
        return self._deliveries.client(place.runner) if place is not None else None

    def address(self, pod: Object) -> tuple[str, Mapping[int, int]]:
        """Where a Pod is reached: its runner's address, empty if there is none, and its port there by the one that it names."""
        place = self._deliveries.locate(pod["metadata"]["uid"])
        if place is None or place.status is None or not place.reachable:
            return "", {}
        return self._host_ip(place), Serving.of(pod, place.status).ports

    # --- reconciling --------------------------------------------------------------------------------------------------

    def gone(self, key: Key, uid: str) -> None:
        """Note that the Pod with this UID exists no more."""
        self._gone[key].add(uid)
        self._stopping.pop(uid, None)
        self._confirmed.discard(uid)
        self._moved.gone(key.namespace, uid)
        self._unhealthy.gone(uid)
        self._references.use(key, key.namespace, ())

    async def reconcile(self, key: Key) -> float | None:
        """Bring the Pod of this key, and those of the same name that are gone, to what should be."""
        again = await self._drop_gone(key)
        pod = self._store.get(key.namespace, key.name)
        if pod is None:
            return again
        if pod["metadata"].get("deletionTimestamp"):
            return await self._end(pod)
        if pod_status.is_terminal(pod):
            return again
        return await self._run(pod)

    async def _drop_gone(self, key: Key) -> float | None:
        """Force-deleted Pods and those whose end we missed: nothing asks for them any more."""
        for uid in list(self._gone.get(key, ())):
            if await self._deliveries.drop(uid):
                self._gone[key].discard(uid)
                if self._tokens is not None:
                    self._tokens.forget(uid)
        if self._gone.get(key):
            return RETRY_SECONDS
        self._gone.pop(key, None)
        return None

    async def _run(self, pod: Object) -> float | None:
        uid = pod["metadata"]["uid"]
        live = pod.get("status") or {}
        place = self._deliveries.locate(uid, last_runner=pod_status.runner_of(live))
        if place is None:
            needs = Needs.of_pod(PodSpec.model_validate(pod["spec"]))
            # Only before it was taken: what came true since rejects nobody.
            if not live.get("startTime") and (rejection := await self._rejection(pod, needs)):
                self._record(pod, happenings.WARNING, rejection.reason, rejection.message)
                await self._write_steps(pod, [pod_status.rejected(pod, rejection, now=datetime.now(UTC))])
                return None
            try:
                place = self._deliveries.choose(uid, _owner(pod), needs)
            except NoRunner as error:
                self._deliveries.wait(_key(pod))
                self._record(pod, happenings.WARNING, "FailedPlacement", str(error))
                problem = Problem(reason="ContainerCreating", message=str(error))
                await self._write(pod, Observed(host_ip=self._node_address, problem=problem))
                return RETRY_SECONDS
        if pod_status.runner_of(live) != place.runner:
            # A kubelet's first word: the Pod is taken. Before anything that may take its time, e.g. a pull.
            pod = await self._write(pod, self._observed(place))
        if not place.reachable:
            self._deliveries.wait(_key(pod))
            await self._write(pod, self._observed(place))
            return RETRY_SECONDS
        await self._deliveries.drop_copies(uid, keep=place.runner)
        try:
            resolved, renewal = await self._resolve(pod, place)
        except ResolveError as error:
            if place.status is not None:
                # It runs, with what it had: a Secret that vanished stops no container, as on a kubelet.
                await self._write(pod, self._observed(place))
                return RETRY_SECONDS
            if error.event == "FailedMount":
                self._record(pod, happenings.WARNING, error.event, error.message)
            pod_reason = pod_status.UNSUPPORTED if isinstance(error, Unsupported) else ""
            problem = Problem(reason=error.reason, message=error.message, pod_reason=pod_reason)
            await self._write(pod, self._observed(place, problem=problem))
            return RETRY_SECONDS
        status = place.status
        if status is not None:
            self._deliveries.weigh(uid, place, resolved.workload)
        changed = status is not None and (
            status.template_hash != resolved.template_hash or status.content_revision != resolved.content_revision
        )
        # What has changed comes with its next run, where its runner is about to end.
        if status is None or (changed and not place.leaving):
            if resolved.complaints:
                complaint = happenings.pull_secrets_missing(resolved.complaints)
                self._record(pod, complaint.kind, complaint.reason, complaint.message)
            history = containers.history(pod_status.container_statuses(pod.get("status") or {}))
            try:
                status = await self._deliveries.put(uid, place.runner, resolved, history)
            except Refused as error:
                message = f"runner {place.runner}: {error.refusal.message}"
                if error.full and status is not None and resize.decide(pod).wanted:
                    return await self._defer(pod, place, status, message)
                if error.full and (status is None or error.refusal.reason is not RefusalReason.STOPPING):
                    self._record(pod, happenings.WARNING, "FailedPlacement", message)
                    # It is left for another: the status must not name it any more.
                    waits = Problem(reason="ContainerCreating", message=message)
                    await self._write(pod, Observed(host_ip=self._node_address, problem=waits))
                else:
                    problem = Problem(reason="CreateContainerError", message=message)
                    await self._write(pod, self._observed(place, problem=problem))
                return RETRY_SECONDS
        self._tell_unhealthy(pod, status)
        observed = self._observed(place, status)
        if pod_status.may_wait(pod, observed, now=datetime.now(UTC)):
            return pod_status.BEGUN_WITHIN.total_seconds()
        await self._write(pod, observed)
        return renewal

    async def _defer(self, pod: Object, place: Place, status: WorkloadStatus, why: str) -> float:
        """Its runner has no room for the resources that it asks for: it runs on with those that it has, and whatever else has
        changed reaches it."""
        uid = pod["metadata"]["uid"]
        resolved, _ = await self._resolve(resize.unchanged(pod), place)
        self._deliveries.weigh(uid, place, resolved.workload)
        if status.content_revision != resolved.content_revision:
            history = containers.history(pod_status.container_statuses(pod.get("status") or {}))
            status = await self._deliveries.put(uid, place.runner, resolved, history)
        await self._write(pod, replace(self._observed(place, status), deferred=why))
        return RETRY_SECONDS

    async def _rejection(self, pod: Object, needs: Needs) -> Rejection | None:
        """Why the Pod is not for this node, whatever may come; None: it is."""
        spec, node = pod["spec"], pod["spec"]["nodeName"]
        if not admission.matches(spec, node, self._node_labels):
            try:
                found = await self._kube.get(f"/api/v1/nodes/{node}")
            except NotFound:
                return None  # it is about to be made anew, with labels that nobody knows yet
            if not admission.matches(spec, node, found["metadata"].get("labels") or {}):
                return admission.NOT_MATCHED
        if (offer := self._deliveries.offer()) is None:
            return None
        offered, kept = offer
        return admission.resources(needs.demand, kept=kept, offered=offered)

    async def _end(self, pod: Object) -> float | None:
        """A Pod that is being deleted: stop it, show its end, then confirm the deletion."""
        metadata = pod["metadata"]
        uid = metadata["uid"]
        self._moved.noted(pod)
        last_runner = pod_status.runner_of(pod.get("status") or {})
        # The API server waits for nobody where the grace is 0, as of a Pod that has ended: it is gone, or some finalizer's.
        at_once = metadata.get("deletionGracePeriodSeconds") == 0 and pod_status.is_terminal(pod)
        place = self._deliveries.locate(uid, last_runner=last_runner)
        if place is not None:
            if place.status is not None:
                self._tell_unhealthy(pod, place.status)
            if not place.reachable:
                # Only proof that it has ended may confirm the deletion (design §3.7).
                self._deliveries.wait(_key(pod))
                await self._write(pod, self._observed(place))
                return RETRY_SECONDS
            if place.status is not None and place.status.phase is not Phase.ENDED:
                if place.status.phase is Phase.ACTIVE:
                    for container in _containers(place.status):
                        if not isinstance(container.state, Running):
                            continue
                        self._record(
                            pod, happenings.NORMAL, "Killing", f"Stopping container {container.name}", container.name
                        )
                wanted = metadata.get("deletionGracePeriodSeconds")
                grace = 30 if wanted is None else wanted
                if place.status.phase is Phase.STOPPING and self._stopping.get(uid) == grace:
                    # Once is enough: asked again when it has just ended, its runner would forget how before we heard.
                    if any(isinstance(each.state, Running) for each in _containers(place.status)):
                        await self._write(pod, self._observed(place))
                    return None  # of the last container's end the runner tells with that of the whole
                try:
                    await self._deliveries.delete(uid, place.runner, grace_seconds=grace, keep_ended=True)
                    self._stopping[uid] = grace
                except RunnerError as error:
                    log.warning("pod %s/%s: %s", metadata["namespace"], metadata["name"], error)
                    return RETRY_SECONDS
                # It may have ended meanwhile: then its end is shown first, as below.
                place = self._deliveries.locate(uid, last_runner=last_runner)
                if place is not None and place.status is not None and place.status.phase is not Phase.ENDED:
                    await self._write(pod, self._observed(place))
                    return None  # the runner tells when it has ended
            if place is not None and place.status is not None:
                if not at_once:
                    pod = await self._write(pod, self._observed(place))
                await self._deliveries.delete(uid, place.runner, grace_seconds=0)
        if not at_once and uid not in self._confirmed:
            await self._kube.delete(_path(pod), uid=uid, grace_seconds=0)
            self._confirmed.add(uid)
        self._deliveries.forget(uid, uid)
        return None

    async def _resolve(self, pod: Object, place: Place) -> tuple[Resolved, float | None]:
        """What is to run, and after how many seconds a token of it is to be renewed. Raises ResolveError."""
        resolving.check(pod, claims=self._claims)
        pod = resize.decide(pod).pod
        wanted = resolving.references(pod)
        namespace = pod["metadata"]["namespace"]
        self._references.use(_key(pod), namespace, wanted)
        objects = await self._references.read(namespace, wanted)
        try:
            tokens, renewal = None, None
            if self._tokens is not None:
                tokens, renewal = await self._tokens.read(pod, PodSpec.model_validate(pod["spec"]))
            resolved = resolving.resolve(
                pod, objects, now=datetime.now(UTC), host=self._host(place), tokens=tokens, claims=self._claims
            )
        except ResolveError:
            self._references.doubt(namespace, wanted)
            raise
        return resolved, renewal

    def _observed(
        self, place: Place, status: WorkloadStatus | None = None, *, problem: Problem | None = None
    ) -> Observed:
        newest = status or place.status
        return Observed(
            runner=place.runner,
            host_ip=self._host_ip(place),
            status=newest,
            problem=problem,
            unreachable=not place.reachable,
            leaving=place.leaving and newest is not None and serves(newest),
        )

    def _host_ip(self, place: Place) -> str:
        return place.info.address if place.info and place.info.address else self._node_address

    def _host(self, place: Place) -> Host:
        info = place.info
        return Host(
            address=self._host_ip(place),
            cpu_millicores=info.cpu_millicores if info else 0,
            memory_bytes=info.memory_bytes if info else 0,
        )

    async def _write(self, pod: Object, observed: Observed) -> Object:
        """Bring the Pod's live status to what is observed; the object as the last write left it."""
        written = await self._write_steps(pod, pod_status.steps(pod, observed, now=datetime.now(UTC)))
        if self._moved.noted(written):
            _, ports = self.address(written)
            others = ", ".join(
                f"{named} is taken: it serves on {port}" for named, port in ports.items() if named != port
            )
            message = f"on runner {observed.runner} port {others}, and has no podIP; Services lead there all the same"
            self._record(written, happenings.NORMAL, "PortTaken", message)
        return written

    async def _write_steps(self, pod: Object, steps: list[Object]) -> Object:
        for desired in steps:
            live = pod.get("status") or {}
            if not pod_status.differs(live, desired):
                continue
            body = {"metadata": {"uid": pod["metadata"]["uid"]}, "status": pod_status.patch(desired)}
            try:
                written = await self._kube.patch(_path(pod) + "/status", body, PatchKind.STRATEGIC)
            except NotFound:
                self._store.seen(pod, deleted=True)
                return pod
            self._tell(pod, live, written)
            pod = written
            if pod_status.of_others(live) == pod_status.of_others(written["status"]):
                self._store.wrote(written)
            else:
                self._store.seen(written)  # a readiness gate was written meanwhile: it is to be looked at again
        return pod

    def _tell(self, pod: Object, before: Object, after: Object) -> None:
        metadata = pod["metadata"]
        owner = f"{metadata['name']}_{metadata['namespace']}({metadata['uid']})"
        old = {status["name"]: status for status in pod_status.container_statuses(before)}
        for status in pod_status.container_statuses(after["status"]):
            for happening in happenings.between(old.get(status["name"], {}), status, owner=owner):
                self._events.record({**after, "apiVersion": "v1", "kind": KIND}, happening)
        for happening in happenings.of_resize(before, after["status"]):
            self._events.record({**after, "apiVersion": "v1", "kind": KIND}, happening)

    def _tell_unhealthy(self, pod: Object, status: WorkloadStatus) -> None:
        for happening in self._unhealthy.news(pod["metadata"]["uid"], (status,)):
            self._events.record({**pod, "apiVersion": "v1", "kind": KIND}, happening)

    def _record(self, pod: Object, kind: str, reason: str, message: str, container: str = "") -> None:
        self._events.record({**pod, "apiVersion": "v1", "kind": KIND}, Happening(kind, reason, message, container))


def _containers(status: WorkloadStatus) -> tuple[ContainerStatus, ...]:
    return (*status.init_containers, *status.containers)


def _owner(pod: Object) -> Owner:
    metadata = pod["metadata"]
    return Owner(kind=KIND, namespace=metadata["namespace"], name=metadata["name"], uid=metadata["uid"])


def _key(pod: Object) -> Key:
    return Key(KIND, pod["metadata"]["namespace"], pod["metadata"]["name"])


def _path(pod: Object) -> str:
    metadata = pod["metadata"]
    return f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
