"""One WasmWorkload, an API server and runners of dictionaries: for tests of its reconciler."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from tests.support.fake_kube import FakeKube
from tests.support.fake_runners import FakeNodes, FakeRegistry, FakeRunner, deliveries
from tests.support.operator_fakes import FakeTime
from tests.support.told import START, Recorder, end
from wherry_operator.kube import Kube
from wherry_operator.objects import ObjectStore
from wherry_operator.queue import Key
from wherry_operator.reconcile.revisions import Revisions
from wherry_operator.reconcile.services import Services
from wherry_operator.reconcile.workload import WorkloadReconciler, path_of
from wherry_operator.references import References
from wherry_runner import protocol
from wherry_runner.protocol import Owner, Phase, Running

Json = dict[str, Any]

KEY = Key("WasmWorkload", "boats", "hello")
PATH = path_of("boats", "hello")
CONFIG = "/api/v1/namespaces/boats/configmaps/c"
OWNER = Owner(kind="WasmWorkload", namespace="boats", name="hello", uid="u-1")
ENV = [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "a"}}}]


def container(state: Any, *, run: str = "a", **more: Any) -> protocol.ContainerStatus:
    return protocol.ContainerStatus(
        name="module", state=state, container_id=run, ready=isinstance(state, Running), **more
    )


RUNNING = container(Running(started_at=START))


class Scene:
    """One WasmWorkload, and runners one and two."""

    def __init__(self, **spec: Any) -> None:
        self.kube = FakeKube()
        self.runners = [FakeRunner("one"), FakeRunner("two")]
        self.one, self.two = self.runners
        self.registry = FakeRegistry(*self.runners)
        self.store = ObjectStore("WasmWorkload", accepts=lambda _: True, on_change=lambda *_: None)
        self.events: list[tuple[str, str]] = []
        self.time = FakeTime()
        self.nodes = FakeNodes()
        self.succeed()
        self.kube.put(CONFIG, {"metadata": {"name": "c", "namespace": "boats", "uid": "c"}, "data": {"a": "1"}})
        self.see(
            {
                "metadata": {"name": "hello", "namespace": "boats", "uid": "u-1", "generation": 1},
                "spec": {"className": "wherry", "module": {"image": "i"}, "restartPolicy": "Never", **spec},
            }
        )

    def succeed(self) -> None:
        """A new operator takes over, with empty caches."""
        kube = cast("Kube", self.kube)
        self.deliveries = deliveries(self.registry, nodes=self.nodes, clock=self.time.clock)
        self.revisions = Revisions(kube, self.store, clock=self.time.clock)
        self.services = Services(kube, node_name="wherry", on_change=lambda _: None)
        asyncio.run(self.services.load())
        self.kube.calls.clear()
        self.reconciler = WorkloadReconciler(
            kube=kube,
            store=self.store,
            references=References(kube, who="the operator", retry_forbidden=False, ttl_seconds=60),
            deliveries=self.deliveries,
            events=Recorder(kube, self.events),
            revisions=self.revisions,
            services=self.services,
            clock=self.time.clock,
        )
        for workload_id in self.ids:
            self.deliveries.observe(OWNER, workload_id)

    def see(self, body: Json) -> None:
        self.store.seen(self.kube.put(PATH, body))

    def change(self, change: Callable[[Json], object]) -> None:
        body = self.kube.objects[PATH]
        change(body)
        self.see(body)

    def edit(self, **spec: Any) -> None:
        """The user changes the spec."""
        self.change(
            lambda body: (
                body["spec"].update(spec),
                body["metadata"].update(generation=body["metadata"]["generation"] + 1),
            )
        )

    def reconcile(self, *, after: float = 1.0) -> float | None:
        """One look at it, some seconds after the last."""
        self.time.seconds += after
        self.kube.patches.clear()
        return asyncio.run(self._reconcile())

    async def _reconcile(self) -> float | None:
        return await self.reconciler.reconcile(KEY)

    @property
    def ids(self) -> list[str]:
        return [workload_id for runner in self.runners for workload_id in runner.state.statuses]

    def says(self, *statuses: protocol.ContainerStatus, phase: Phase = Phase.ACTIVE) -> Scene:
        """Its runner says so, and the operator hears it."""
        (workload_id,) = self.ids
        runner = next(runner for runner in self.runners if workload_id in runner.state.statuses)
        runner.says(workload_id, *statuses, phase=phase)
        self.reconcile()
        return self

    def run(self) -> Scene:
        self.reconcile()
        self.says(RUNNING)
        self.events.clear()
        return self

    def finish(self, code: int = 0) -> Scene:
        self.reconcile()
        self.says(container(end(code)), phase=Phase.ENDED)
        self.events.clear()
        return self

    def all_say(self, state: Any, *, phase: Phase = Phase.ACTIVE, of: str = "") -> Scene:
        """Every instance (or those of a revision) is so, and the operator hears it."""
        for runner in self.runners:
            for workload_id, status in list(runner.state.statuses.items()):
                if status.phase is Phase.ACTIVE and of in workload_id:
                    runner.says(workload_id, container(state, run=f"run-{workload_id[-8:]}"), phase=phase)
        self.reconcile()
        return self

    def settle(self, state: Any = None, *, rounds: int = 12) -> Scene:
        """Reconcile until nothing changes any more, each instance starting at once; by default it runs."""
        for _ in range(rounds):
            before = (self.ids, self.kube.objects[PATH].get("status"))
            self.reconcile()
            self.all_say(state or Running(started_at=START))
            if before == (self.ids, self.kube.objects[PATH].get("status")):
                return self
        raise AssertionError("it does not come to rest")

    @property
    def conditions(self) -> dict[str, str]:
        return {item["type"]: item["status"] for item in self.status["conditions"]}

    @property
    def status(self) -> Json:
        status: Json = self.kube.objects[PATH]["status"]
        return status

    @property
    def puts(self) -> int:
        return sum(len(runner.puts) for runner in self.runners)
