"""Which runner gets a workload. Pure: a function of what the runners report, and of the nodes that they are on.

Of the runners that fit, the best is the one with the fewest taints that it would rather not have there, then one where the
ports are free on which it serves (elsewhere it gets others), then the one whose
part of the cluster has the fewest of the workload's kind, then the least loaded. Of those that are as good as equal the one
that has the module already compiled. The rules for nodes are the scheduler's (pkg/scheduler/framework/plugins): unschedulable,
node selector, taints and tolerations; and a runner under pressure is left alone as a node would be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from wherry_operator.models import Container, Object, PodSpec, ResourceRequirements, Toleration, WasmWorkloadSpec
from wherry_operator.resolve import quantity
from wherry_operator.resolve.container import listening_ports
from wherry_runner import protocol

HOSTNAME = "kubernetes.io/hostname"

ALIKE = 50
"""Runners whose loads are in the same fiftieth count as equally loaded, where one of them has the module compiled."""

_UNSCHEDULABLE = "node.kubernetes.io/unschedulable"
_OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
_LEFT_TO_SILENCE = tuple(
    Toleration(key=key, operator="Exists", effect="NoExecute")
    for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
)
"""What these taints suspect, the operator knows: whether the runner answers (design §3.7)."""


@dataclass(frozen=True)
class Taint:
    """A taint of a node."""

    key: str
    value: str
    effect: str

    def tolerated(self, tolerations: Iterable[Toleration]) -> bool:
        """As `ToleratesTaint` (k8s.io/api/core/v1/toleration.go)."""
        return any(self._tolerated_by(toleration) for toleration in tolerations)

    def _tolerated_by(self, toleration: Toleration) -> bool:
        if toleration.effect and toleration.effect != self.effect:
            return False
        if toleration.key and toleration.key != self.key:
            return False
        return toleration.operator == "Exists" or (toleration.value or "") == self.value

    def __str__(self) -> str:
        return f"{self.key}: {self.value}"


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """What counts of the node that a runner is on. The default is that of a runner on no node of this cluster."""

    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[Taint, ...] = ()
    ready: bool = True
    unschedulable: bool = False
    """Cordoned: what runs stays, nothing new comes."""

    @property
    def out_of_service(self) -> bool:
        """An administrator says that it is off: what ran there runs no more
        (https://kubernetes.io/docs/concepts/cluster-administration/node-shutdown/)."""
        return any(taint.key == _OUT_OF_SERVICE and taint.effect == "NoExecute" for taint in self.taints)

    def expels(self, tolerations: Sequence[Toleration]) -> Taint | None:
        """The taint for which what runs there has to leave."""
        tolerated = (*tolerations, *_LEFT_TO_SILENCE)
        return next(
            (each for each in self.taints if each.effect == "NoExecute" and not each.tolerated(tolerated)), None
        )

    @staticmethod
    def of(node: Object) -> NodeFacts:
        """Those of a `v1.Node`."""
        spec, metadata = node.get("spec") or {}, node["metadata"]
        conditions = (node.get("status") or {}).get("conditions") or []
        return NodeFacts(
            labels={HOSTNAME: metadata["name"], **(metadata.get("labels") or {})},
            taints=tuple(
                Taint(taint["key"], taint.get("value") or "", taint["effect"]) for taint in spec.get("taints") or []
            ),
            ready=any(each["type"] == "Ready" and each["status"] == "True" for each in conditions),
            unschedulable=bool(spec.get("unschedulable")),
        )

    @staticmethod
    def unknown(name: str) -> NodeFacts:
        """A runner outside of the cluster is still somewhere."""
        return NodeFacts(labels={HOSTNAME: name} if name else {})


@dataclass(frozen=True, slots=True)
class Demand:
    """What is kept for a workload, or for several."""

    memory_bytes: int = 0
    defaults: int = 0
    """Containers that name neither a request nor a limit of memory: each runner has its own default for them."""
    cpu_millicores: int = 0

    def __add__(self, other: Demand) -> Demand:
        return Demand(
            self.memory_bytes + other.memory_bytes,
            self.defaults + other.defaults,
            self.cpu_millicores + other.cpu_millicores,
        )

    def __sub__(self, other: Demand) -> Demand:
        return self + Demand(-other.memory_bytes, -other.defaults, -other.cpu_millicores)

    @staticmethod
    def of(workload: protocol.Workload) -> Demand:
        """That of a workload as it is sent."""
        return _at_its_largest(
            ((each.resources, each.restart_policy == "Always") for each in workload.init_containers),
            (each.resources for each in workload.containers),
        )

    @staticmethod
    def of_pod(spec: PodSpec) -> Demand:
        """That of a Pod, of which nothing else is known yet. Raises ValueError for what is no quantity."""

        def resources(container: Container) -> protocol.Resources:
            wanted = container.resources or ResourceRequirements()
            return quantity.resources(wanted.requests or {}, wanted.limits or {})

        return _at_its_largest(
            ((resources(each), each.restart_policy == "Always") for each in spec.init_containers or ()),
            (resources(each) for each in spec.containers),
        )


def _at_its_largest(first: Iterable[tuple[protocol.Resources, bool]], main: Iterable[protocol.Resources]) -> Demand:
    """Roughly as the runner's own admission sums it, which has the last word. `first`: init containers, and whether each is
    a sidecar."""
    beside, largest = Demand(), Demand()
    for resources, sidecar in first:
        moment = beside + _of_container(resources)
        largest = _at_least(largest, moment)
        if sidecar:
            beside = moment
    return _at_least(largest, sum((_of_container(each) for each in main), beside))


def _of_container(wanted: protocol.Resources) -> Demand:
    memory = wanted.memory_request_bytes if wanted.memory_request_bytes is not None else wanted.memory_limit_bytes
    cpu = wanted.cpu_request_millicores if wanted.cpu_request_millicores is not None else wanted.cpu_limit_millicores
    return Demand(memory or 0, 1 if memory is None else 0, cpu or 0)


def _at_least(one: Demand, other: Demand) -> Demand:
    return Demand(
        max(one.memory_bytes, other.memory_bytes),
        max(one.defaults, other.defaults),
        max(one.cpu_millicores, other.cpu_millicores),
    )


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a workload asks of its runner."""

    demand: Demand = Demand()
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    topology_key: str = HOSTNAME
    ports: frozenset[int] = frozenset()
    """Of its runner's, those on which it serves or listens, if its modules do; others will do where these are taken."""
    module: str = ""
    """A name for its module, by which a runner that has it compiled is known (`module_of`)."""

    @staticmethod
    def of(spec: WasmWorkloadSpec, workload: protocol.Workload) -> Needs:
        """Those of an instance of a WasmWorkload."""
        return Needs(
            demand=Demand.of(workload),
            node_selector=spec.node_selector or {},
            tolerations=spec.tolerations or (),
            topology_key=spec.spread.topology_key if spec.spread else HOSTNAME,
            ports=ports_of(workload),
            module=module_of(workload),
        )

    @staticmethod
    def of_pod(spec: PodSpec) -> Needs:
        """Those of a Pod. Its node selector was for the virtual node, and is kept already."""
        try:
            demand = Demand.of_pod(spec)
        except ValueError:
            demand = Demand()  # whoever resolves the Pod says so
        containers = (*(spec.init_containers or ()), *spec.containers)
        return Needs(
            demand=demand,
            tolerations=spec.tolerations or (),
            ports=frozenset(port for each in containers for port, _ in listening_ports(each)),
            module=spec.containers[0].image,
        )


def ports_of(workload: protocol.Workload) -> frozenset[int]:
    """The ports that a workload asks for by number."""
    containers = (*workload.init_containers, *workload.containers)
    serving = (each.http.port for each in containers if each.http is not None and each.http.port is not None)
    return frozenset((*serving, *(port.port for each in containers for port in each.listens)))


def module_of(workload: protocol.Workload) -> str:
    """A name for the module of a workload's first container, as statuses have it; empty where it travels with the request."""
    match workload.containers[0].module:
        case protocol.ImageModule(reference=reference):
            return reference
        case protocol.UrlModule(url=url):
            return url
    return ""


@dataclass(frozen=True, kw_only=True)
class RunnerFacts:
    """What placing needs to know of a runner."""

    name: str
    ready: bool
    """Connected, and its snapshot is complete."""
    workloads: int
    """On it now, and on their way to it."""
    max_workloads: int
    leaving: bool = False
    """It is about to end."""
    kept: Demand = Demand()
    """For all of these."""
    memory_bytes: int = 1 << 62
    cpu_millicores: int = 1 << 62
    """Offered to all."""
    default_memory_bytes: int = 0
    """Kept for a container that names none."""
    short_of: frozenset[str] = frozenset()
    """What it says that it has too little of: memory, disk, processes."""
    node: NodeFacts = NodeFacts()
    ports: Set[int] = frozenset()
    """That are taken, or about to be."""
    alike: int = 0
    """Instances of the same workload that are there."""
    has_module: bool = False

    def memory_with(self, more: Demand = Demand()) -> int:
        """Bytes that are kept when this comes as well."""
        wanted = self.kept + more
        return wanted.memory_bytes + wanted.defaults * self.default_memory_bytes

    @property
    def load(self) -> float:
        """The share of what is scarcest here that is in use, between 0 and 1."""
        shares = (
            (self.workloads, self.max_workloads),
            (self.memory_with(), self.memory_bytes),
            (self.kept.cpu_millicores, self.cpu_millicores),
        )
        return max(used / offered if offered else 1.0 for used, offered in shares)


class NoRunner(Exception):
    """None fits; the message counts the reasons as the scheduler words it."""


@dataclass(frozen=True)
class _Reason:
    one: str
    several: str


_NOT_READY = _Reason("is not ready", "are not ready")
_LEAVING = _Reason("is about to end", "are about to end")
_NODE_NOT_READY = _Reason("is on a node that is not ready", "are on nodes that are not ready")
_CORDONED = _Reason("is on an unschedulable node", "are on unschedulable nodes")
_ELSEWHERE = _Reason("doesn't match the node selector", "don't match the node selector")
_FULL = _Reason("is full", "are full")
_MEMORY = _Reason("lacks memory", "lack memory")
_CPU = _Reason("lacks cpu", "lack cpu")
_SHORT = {what: _Reason(f"is short of {what}", f"are short of {what}") for what in ("disk", "processes", "memory")}


def choose(runners: Sequence[RunnerFacts], needs: Needs = Needs()) -> str:
    """The best runner of those that fit; of equals the first by name. Raises NoRunner."""
    if not runners:
        raise NoRunner("0/0 runners fit: the operator knows of no runner")
    refused: Counter[_Reason] = Counter()
    fitting = []
    for runner in runners:
        reason = _refusal(runner, needs)
        if reason is None:
            fitting.append(runner)
        else:
            refused[reason] += 1
    if not fitting:
        counted = sorted(refused.items(), key=lambda item: (-item[1], item[0].one))
        reasons = ", ".join(f"{count} {reason.one if count == 1 else reason.several}" for reason, count in counted)
        raise NoRunner(f"0/{len(runners)} runners fit: {reasons}")
    if len(fitting) == 1:
        return fitting[0].name
    alike: Counter[str | None] = Counter()
    for runner in runners:
        alike[_domain(runner, needs)] += runner.alike

    def rank(runner: RunnerFacts) -> tuple[int, bool, bool, int, int, bool, float, str]:
        domain, load = _domain(runner, needs), runner.load
        disliked = sum(
            taint.effect == "PreferNoSchedule" and not taint.tolerated(needs.tolerations)
            for taint in runner.node.taints
        )
        compiled = bool(needs.module) and runner.has_module
        taken = bool(needs.ports & runner.ports)
        return disliked, taken, domain is None, alike[domain], int(load * ALIKE), not compiled, load, runner.name

    return min(fitting, key=rank).name


def _domain(runner: RunnerFacts, needs: Needs) -> str | None:
    """The part of the cluster it is in, as spreading divides it; without the default label each is one of its own."""
    found = runner.node.labels.get(needs.topology_key)
    return runner.name if found is None and needs.topology_key == HOSTNAME else found


def _refusal(runner: RunnerFacts, needs: Needs) -> _Reason | None:
    """Why it does not fit: the first reason counts."""
    node = runner.node
    if not runner.ready:
        return _NOT_READY
    if runner.leaving:
        return _LEAVING
    if any(node.labels.get(key) != value for key, value in needs.node_selector.items()):
        return _ELSEWHERE
    if node.unschedulable and not Taint(_UNSCHEDULABLE, "", "NoSchedule").tolerated(needs.tolerations):
        return _CORDONED
    if not node.ready:
        return _NODE_NOT_READY
    for taint in node.taints:
        if taint.effect in ("NoSchedule", "NoExecute") and not taint.tolerated(needs.tolerations):
            return _Reason(f"has an untolerated taint {{{taint}}}", f"have an untolerated taint {{{taint}}}")
    if runner.workloads >= runner.max_workloads:
        return _FULL
    for what, reason in _SHORT.items():
        # As a node's pressure keeps Pods away; of memory only those that don't say how much they need
        # (https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/#taint-nodes-by-condition).
        if what in runner.short_of and (what != "memory" or not needs.demand.memory_bytes):
            return reason
    if (
        runner.memory_with(needs.demand) > runner.memory_bytes
        and runner.memory_with(needs.demand) > runner.memory_with()
    ):
        return _MEMORY
    if needs.demand.cpu_millicores and (runner.kept + needs.demand).cpu_millicores > runner.cpu_millicores:
        return _CPU
    return None
