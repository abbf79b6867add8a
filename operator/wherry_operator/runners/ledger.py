"""What is on each runner and on its way there, summed up as it comes and goes: placing thousands must not count thousands."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Set
from dataclasses import dataclass, field

from wherry_operator.packing import alike
from wherry_operator.placement import Demand
from wherry_runner import protocol

MODULES = 1000
"""Of each runner's modules the ones used last are remembered; its disk holds no more of them compiled."""


WORKLOAD = "WasmWorkload"
"""The kind of owner that is no Pod."""


NO_PORTS: frozenset[int] = frozenset()
"""One for all that have none: Python makes each empty set anew."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One workload on one runner."""

    owner: protocol.Owner
    demand: Demand | None = None
    """None: nobody has told yet; it counts as nothing."""
    ports: frozenset[int] = NO_PORTS
    """Of the runner's, those that it has, or asks for."""


@dataclass(frozen=True, kw_only=True)
class Reserved:
    """What of a runner WasmWorkloads have: the virtual node can't offer that to Pods."""

    demand: Demand = field(default_factory=Demand)
    instances: int = 0


class _Account:
    """One runner's."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.kept = Demand()
        self.reserved = Reserved()
        self.ports: Counter[int] = Counter()
        self.modules: OrderedDict[str, None] = OrderedDict()


class Ledger:
    """Accounts of all runners."""

    def __init__(self) -> None:
        self._accounts: defaultdict[str, _Account] = defaultdict(_Account)
        self._runners: dict[str, tuple[str, ...]] = {}
        self._kinds: Counter[tuple[str, str]] = Counter()
        """How many of a kind are on a runner."""

    def note(
        self,
        workload_id: str,
        runner: str,
        owner: protocol.Owner,
        demand: Demand | None = None,
        ports: frozenset[int] | None = None,
    ) -> None:
        """It is there, or on its way. Without `demand`, or `ports`, what was noted before stays."""
        account = self._accounts[runner]
        before = account.entries.get(workload_id)
        if before is None:
            self._runners[workload_id] = alike((*self._runners.get(workload_id, ()), runner))
            if kind := kind_of(owner, workload_id):
                self._kinds[kind, runner] += 1
        known = before.demand if before else None
        had = before.ports if before else NO_PORTS
        if before is not None and before.owner == owner:
            owner = before.owner  # the same, made anew of each word about it
        if demand is None or demand == known:
            demand = known
        entry = Entry(owner=owner, demand=demand, ports=had if ports is None else ports or NO_PORTS)
        account.entries[workload_id] = entry
        account.ports.update(entry.ports - had)
        _take_off(account.ports, had - entry.ports)
        more = (entry.demand or Demand()) - (known or Demand())
        account.kept += more
        if owner.kind == WORKLOAD:
            account.reserved = _and(account.reserved, more, 1 if before is None else 0)

    def release(self, workload_id: str, runner: str) -> None:
        """It is not there."""
        account = self._accounts.get(runner)
        entry = account.entries.pop(workload_id, None) if account else None
        if account is None or entry is None:
            return
        account.kept -= entry.demand or Demand()
        _take_off(account.ports, entry.ports)
        if entry.owner.kind == WORKLOAD:
            account.reserved = _and(account.reserved, Demand() - (entry.demand or Demand()), -1)
        left = tuple(each for each in self._runners[workload_id] if each != runner)
        if left:
            self._runners[workload_id] = alike(left)
        else:
            del self._runners[workload_id]
        if kind := kind_of(entry.owner, workload_id):
            self._kinds[kind, runner] -= 1
            if not self._kinds[kind, runner]:
                del self._kinds[kind, runner]

    def close(self, runner: str) -> None:
        """The runner is gone, with all that it had."""
        if runner in self._accounts:
            for workload_id in list(self._accounts[runner].entries):
                self.release(workload_id, runner)
            del self._accounts[runner]

    def runners(self, workload_id: str) -> frozenset[str]:
        """Where it is, or is going."""
        return frozenset(self._runners.get(workload_id, ()))

    def count(self, runner: str) -> int:
        """How many are there."""
        account = self._accounts.get(runner)
        return len(account.entries) if account else 0

    def kept(self, runner: str) -> Demand:
        """For all that is there."""
        account = self._accounts.get(runner)
        return account.kept if account else Demand()

    def ports(self, runner: str) -> Set[int]:
        """Those that are taken there, or about to be."""
        account = self._accounts.get(runner)
        return account.ports.keys() if account else frozenset()

    def reserved(self, runner: str) -> Reserved:
        """For WasmWorkloads alone."""
        account = self._accounts.get(runner)
        return account.reserved if account else Reserved()

    def alike(self, kind: str, runner: str) -> int:
        """How many of a kind (`kind_of`) are there."""
        return self._kinds[kind, runner]

    def owners(self, runner: str) -> set[protocol.Owner]:
        """The objects of which something is there."""
        account = self._accounts.get(runner)
        return {entry.owner for entry in account.entries.values()} if account else set()

    def compiled(self, runner: str, module: str) -> None:
        """The runner has this module ready to run."""
        modules = self._accounts[runner].modules
        modules[module] = None
        modules.move_to_end(module)
        while len(modules) > MODULES:
            modules.popitem(last=False)

    def has_module(self, runner: str, module: str) -> bool:
        """Whether it has, as far as was seen."""
        account = self._accounts.get(runner)
        return account is not None and module in account.modules


def kind_of(owner: protocol.Owner, workload_id: str) -> str:
    """What is spread: instances of one revision of a WasmWorkload (ids are `{uid}-{revision}-{index}`). Pods are not."""
    return workload_id.rpartition("-")[0] if owner.kind == WORKLOAD else ""


def _take_off(counts: Counter[int], ports: frozenset[int]) -> None:
    for port in ports:
        counts[port] -= 1
        if not counts[port]:
            del counts[port]


def _and(reserved: Reserved, demand: Demand, instances: int) -> Reserved:
    return Reserved(demand=reserved.demand + demand, instances=reserved.instances + instances)
