"""WasmWorkloads made, changed and deleted at random, valid and not, while operator and runners are killed: in the end the
runners run exactly what the objects say, and no operator ended by itself.

WHERRY_ROUNDS says how many objects are made; WHERRY_SOAK=1 makes 10,000 (`make soak`); WHERRY_SEED repeats one run's choices.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.local import LocalCluster
from tests.cluster.registry import Registry
from tests.runner.test_runner_api import client
from tests.support import wat
from tests.support.installation import Installation
from tests.support.kube import Json, Workspace, conditions, workload
from wherry_cli.cluster import Cluster
from wherry_cli.errors import ServerError
from wherry_operator.resolve.workload import revision_of

OBJECTS = int(os.environ.get("WHERRY_ROUNDS") or (10_000 if os.environ.get("WHERRY_SOAK") else 60))
SEED = int(os.environ.get("WHERRY_SEED") or random.randrange(2**32))

AT_ONCE = 25
"""Objects that are there side by side."""

STEPS_BETWEEN_KILLS = 20 if OBJECTS <= 60 else 50

SLEEPS = {"inline": wat.sleeps()}

REFUSED: list[Json] = [
    {"module": {}},
    {"module": {"inline": "(module)", "image": "i"}},
    {"module": SLEEPS, "replicas": -1},
    {"module": SLEEPS, "completions": 3},
    {"module": SLEEPS, "restartPolicy": "Sometimes"},
    {"module": SLEEPS, "nonsense": True},
    {"module": SLEEPS, "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]},
    {"module": SLEEPS, "volumeMounts": [{"name": "none", "mountPath": "/x"}]},
    {"module": SLEEPS, "strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}},
    {"module": {"url": "https://modules.example/m.wasm", "sha256": "none"}},
]
"""What the API server itself refuses."""

STUCK: list[Json] = [
    {"inline": "(module"},
    {"inline": "(module)"},
    {"configMapKeyRef": {"name": "never", "key": "m.wat"}},
    {"image": "registry.example/none:v1"},
    {"image": "a name that is none"},
]
"""Modules that never run."""


class Chaos:
    """One run: what was done, and what must come of it."""

    def __init__(self, space: Workspace, seed: int) -> None:
        self.space = space
        self.installation = space.installation
        self.api = Cluster(str(space.cluster.kubeconfig), None, space.namespace)
        self.random = random.Random(seed)
        self.objects: dict[str, str] = {}
        """UIDs by name."""
        self.completions: defaultdict[str, set[int]] = defaultdict(set)
        """All that an object ever asked for, by name: what is complete stays so, whatever is asked for afterwards."""
        self.made = 0
        self.did: Counter[str] = Counter()

    def play(self) -> None:
        steps = 0
        while self.made < OBJECTS:
            steps += 1
            choice = self.random.random()
            if len(self.objects) < AT_ONCE // 2 or (choice < 0.35 and len(self.objects) < AT_ONCE):
                self.make()
            elif choice < 0.45:
                self.refuse()
            elif choice < 0.7:
                self.change(self.random.choice(list(self.objects)))
            else:
                self.delete(self.random.choice(list(self.objects)))
            if steps % STEPS_BETWEEN_KILLS == 0:
                self.kill()

    # --- what is done -------------------------------------------------------------------------------------------------

    def spec(self) -> Json:
        chance = self.random
        policy = chance.choice(("Always", "Always", "Never", "OnFailure"))
        spec: Json = {
            "className": self.installation.class_name,
            "restartPolicy": policy,
            "replicas": chance.randint(0, 3),
        }
        if chance.random() < 0.25:
            spec["module"] = chance.choice(STUCK)
        elif policy == "Always" and chance.random() < 0.25:
            spec["module"] = {"configMapKeyRef": {"name": "later", "key": "m.wat"}}
        elif policy == "Always":
            spec["module"] = SLEEPS
        else:
            spec["module"] = {"inline": wat.exits(chance.choice((0, 0, 0, 3)) if policy == "Never" else 0)}
        if policy == "Always":
            spec["strategy"] = chance.choice(({"type": "RollingUpdate"}, {"type": "Recreate"}))
            spec["minReadySeconds"] = chance.choice((0, 0, 1))
        else:
            spec["completions"] = chance.randint(1, 5)
        spec["args"] = [str(chance.randint(0, 2))]
        spec["suspend"] = chance.random() < 0.1
        return spec

    def make(self) -> None:
        name = f"w{self.made}"
        self.made += 1
        spec = self.spec()
        body = self.api.create(workload(name, **spec))
        self._asked(name, spec)
        self.objects[name] = body["metadata"]["uid"]
        self.did["made"] += 1

    def refuse(self) -> None:
        spec = {"className": self.installation.class_name, **self.random.choice(REFUSED)}
        try:
            self.api.create(workload("refused", **spec))
        except ServerError as error:
            assert error.status in (400, 422), error
        else:
            raise AssertionError(f"it was not refused: {spec}")
        self.did["refused"] += 1

    def change(self, name: str) -> None:
        """Another spec, or only how many."""
        spec = self.spec()
        if self.random.random() < 0.5:
            wanted = {key: spec[key] for key in ("replicas", "suspend")}
            changes = [{"op": "add", "path": f"/spec/{key}", "value": value} for key, value in wanted.items()]
        else:
            changes = [{"op": "replace", "path": "/spec", "value": spec}]
            self._asked(name, spec)
        self.api.patch(name, changes)
        self.did["changed"] += 1

    def _asked(self, name: str, spec: Json) -> None:
        if "completions" in spec:
            self.completions[name].add(spec["completions"])

    def delete(self, name: str) -> None:
        self.api.delete(name, self.objects.pop(name))
        self.did["deleted"] += 1

    def kill(self) -> None:
        assert self.installation.operator is not None
        assert self.installation.operator.running, self.installation.operator.tail(40)
        if self.random.random() < 0.5:
            # The one before it may still be starting: things change while nobody looks, but not for ever.
            self.installation.wait_operator_ready()
            self.installation.kill_operator()
            self.installation.start_operator(wait=False)
            self.did["operator killed"] += 1
        else:
            runner = self.random.choice(list(self.installation.runners.values()))
            runner.kill()
            runner.start()
            self.did["runner killed"] += 1

    # --- what must be so ----------------------------------------------------------------------------------------------

    def complaints(self) -> list[str]:
        """Where runners and objects don't agree."""
        found = []
        there = self.on_runners()
        bodies = json.loads(self.space.cluster.kubectl("get", "ww", "-n", self.space.namespace, "-o", "json").stdout)[
            "items"
        ]
        assert {body["metadata"]["name"]: body["metadata"]["uid"] for body in bodies} == self.objects
        for body in bodies:
            runs = there.pop(body["metadata"]["uid"], Counter())
            name = body["metadata"]["name"]
            found += [f"{name}: {text}" for text in _complaints(body, runs, self.completions[name])]
        return [*found, *(f"{uid} exists no more, and {dict(runs)} is there" for uid, runs in there.items())]

    def on_runners(self) -> dict[str, Counter[str]]:
        """By UID: which instances have not ended, by their revision and index, and how often."""
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for runner in self.installation.runners.values():
            certificates = self.installation.certificates
            with (
                client(runner, certificates, certificates.operator) as http,
                http.stream("GET", "/v1/watch") as answer,
            ):
                for line in answer.iter_lines():
                    event = json.loads(line)
                    if event["event"] == "synced":
                        break
                    status = event["status"]
                    uid = status["owner"]["uid"]
                    found[uid]
                    if status["phase"] != "Ended":
                        state = status["containers"][0]["state"]["state"]
                        found[uid][f"{status['id'].removeprefix(uid + '-')} {state}"] += 1
        return found


def _complaints(body: Json, runs: Counter[str], completions: set[int]) -> Iterator[str]:
    spec, status = body["spec"], body.get("status") or {}
    if status.get("observedGeneration") != body["metadata"]["generation"]:
        yield "its newest spec was not looked at"
        return
    revision = revision_of(body)
    active = sorted(runs.elements())
    stuck = spec["module"] in STUCK
    wanted = 0 if spec["suspend"] else spec["replicas"]
    if spec["restartPolicy"] == "Always":
        if stuck and wanted:
            # Under RollingUpdate what ran of an earlier spec stays.
            recreated = spec["strategy"]["type"] == "Recreate"
            running = [item for item in active if item.endswith(" running")]
            if any(recreated or item.startswith(f"{revision}-") for item in running):
                yield f"it can't run, and does: {active}"
            if status["phase"] == "Running" or not conditions(body)["Ready"]["message"]:
                yield f"it does not say why it waits: {status['phase']}"
        elif len(active) != wanted or any(not item.startswith(f"{revision}-") for item in active):
            yield f"{wanted} of {revision} are wanted, {active} run"
        elif status["ready"] != f"{wanted}/{wanted}":
            yield f"its status says {status['ready']} of {wanted}: {status['phase']}"
        return
    finished = [kind for kind in ("Complete", "Failed") if conditions(body).get(kind, {}).get("status") == "True"]
    if any(item.endswith(" running") for item in active):
        yield f"{active} still run"
    elif not finished and wanted and not stuck:
        yield f"it is {status['phase']}: {conditions(body)['Ready']['message']}"
    elif finished == ["Complete"] and status["succeeded"] not in completions:
        yield f"it is complete with {status['succeeded']} of {sorted(completions)}"
    elif finished == ["Failed"] and spec["restartPolicy"] == "OnFailure":
        yield f"it failed: {conditions(body)['Failed']['message']}"


@pytest.fixture
def apart(cluster: LocalCluster, registry: Registry, namespace: str, tmp_path: Path) -> Iterator[Workspace]:
    """A namespace on an installation of its own, with two runners."""
    running = Installation(
        cluster,
        tmp_path / "chaos",
        node_name="wherry-chaos",
        class_name="chaos",
        namespace="wherry-chaos",
        runners=["runner-one", "runner-two"],
        runner_flags=["--back-off-initial", "0.2", "--back-off-max", "2"],
        operator_flags=["--resync-seconds", "5", "--reference-ttl-seconds", "2"],
        serves_logs=False,
    )
    try:
        with running:
            running.grant_references(namespace)
            yield Workspace(running, registry, namespace, tmp_path)
    finally:
        cluster.kubectl("delete", "node", "wherry-chaos", "--ignore-not-found", check=False)


@pytest.mark.timeout(12 * 3600 if OBJECTS > 60 else 300)
def test_in_the_end_the_runners_run_exactly_what_the_objects_say(apart: Workspace) -> None:
    print(f"WHERRY_SEED={SEED}")
    chaos = Chaos(apart, SEED)
    chaos.play()
    later: dict[str, Any] = {"metadata": {"name": "later"}, "data": {"m.wat": wat.sleeps()}}
    apart.apply({"apiVersion": "v1", "kind": "ConfigMap", **later})
    complaints: list[str] = []

    def settled() -> bool:
        complaints[:] = chaos.complaints()
        return not complaints

    try:
        apart.wait(settled, "runners and objects agree", timeout=120)
    except AssertionError as error:
        raise AssertionError("\n".join([f"WHERRY_SEED={SEED}", *complaints])) from error
    operator = apart.installation.operator
    assert operator is not None
    assert operator.running
    log = "".join(path.read_text() for path in apart.installation.logs.glob("operator*.log"))
    assert log
    assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:4000]
    print(dict(chaos.did))
