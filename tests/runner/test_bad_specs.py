"""Requests at random against a runner's process: each is refused with a reason or carried out, and nothing is left of it.

WHERRY_SOAK=1 sends a hundred thousand (`make soak`).
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import Phase as Step
from hypothesis import strategies as st

from tests.cluster.processes import wait_for
from tests.guests import build
from tests.guests import wat as guests
from tests.runner.fake_registry import FakeRegistry
from tests.runner.test_runner_api import context
from tests.support import remains, specs, wat
from tests.support.runner import Certificates, RunnerProcess
from wherry_runner import protocol
from wherry_runner.protocol import Phase, RefusalReason, Terminated, Waiting

SEED = int(os.environ.get("WHERRY_SEED") or random.randrange(2**32))
REQUESTS = 100_000 if os.environ.get("WHERRY_SOAK") else 400

BEFORE_ITS_TIME = ("ContainerCreating", "PodInitializing", "Compiling")
"""Reasons that end by themselves, soon."""

OTHER_REASONS = (
    "Pulling", "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable",
    "CreateContainerConfigError", "CreateContainerError", "CrashLoopBackOff",
)  # fmt: skip

MEMORY_GROWTH_BYTES = 64 << 20
"""Far less than a kilobyte for each request would come to in a soak; of a thousand, what allocators keep."""

SETTLE_SECONDS = 60.0


_SPINNING_START = '(module (func $spin (loop $again (br $again))) (func (export "_start")) (start $spin))'


@dataclass
class Scene:
    """A runner, all that it may write to, and an operator's connection to it."""

    runner: RunnerProcess
    operator: httpx.Client
    registry: FakeRegistry
    state: Path
    memory: Path
    """Its folder in a tmpfs."""
    host: Path
    """Its folders of the host are below it, and what it must not touch."""
    epoch: int = 1
    numbers: int = 0
    accepted: int = 0

    @property
    def pid(self) -> int:
        assert self.runner.process is not None
        return self.runner.process.pid

    def send(self, workload_id: str, body: bytes) -> httpx.Response:
        answer = self.operator.put(f"/v1/workloads/{quote(workload_id, safe='')}", content=body)
        understood(answer)
        self.accepted += answer.status_code == 200
        return answer

    def put(self, workload_id: str, body: Any) -> httpx.Response:
        """Send a body in the newest term there is, which a random one may have begun."""
        while True:
            if isinstance(body, dict) and body.get("epoch") == 1:
                body = {**body, "epoch": self.epoch}
            answer = self.send(workload_id, specs.as_json(body))
            if not self.learned(answer):
                return answer

    def learned(self, answer: httpx.Response) -> bool:
        """Whether an answer tells of a term that we did not know."""
        if answer.status_code != 409 or (told := answer.json().get("epoch", self.epoch)) == self.epoch:
            return False
        self.epoch = told
        return True

    def status(self, workload_id: str) -> protocol.WorkloadStatus:
        answer = self.operator.get(f"/v1/workloads/{workload_id}")
        assert answer.status_code == 200, answer.text
        return protocol.WorkloadStatus.model_validate_json(answer.content)

    def settled(self, workload_id: str) -> protocol.WorkloadStatus:
        """A workload, once it has come to anything."""
        found = [self.status(workload_id)]

        def settles() -> bool:
            found.append(self.status(workload_id))
            return found[-1].phase is Phase.ENDED or any(
                not isinstance(each.state, Waiting) or each.state.reason not in BEFORE_ITS_TIME
                for each in (*found[-1].init_containers, *found[-1].containers)
            )

        assert wait_for(settles, timeout_seconds=SETTLE_SECONDS), found[-1]
        return found[-1]

    def delete(self, workload_id: str) -> None:
        """Delete a workload, and wait until it is gone."""

        def deleted() -> bool:
            query = {"epoch": self.epoch, "sequence": 2**63 - 1, "grace": 0}
            answer = self.operator.delete(f"/v1/workloads/{workload_id}", params=query)
            assert answer.status_code in (200, 202) or self.learned(answer), answer.text
            return answer.status_code == 200

        assert deleted() or wait_for(deleted, timeout_seconds=SETTLE_SECONDS)

    def new_id(self) -> str:
        self.numbers += 1
        return f"w{self.numbers}"

    def holds(self) -> dict[str, Any]:
        """What a leak would show in."""
        processes = [self.pid, *remains.descendants(self.pid)]
        outside = {name: self.host / name for name in ("allowed", "read-only", "outside")}
        return {
            "processes": len(processes),
            "descriptors": [remains.descriptors(pid) for pid in processes],
            "volumes": remains.entries(self.state / "volumes"),
            "logs": remains.entries(self.state / "logs"),
            "unfinished": remains.entries(self.state / "modules" / "tmp"),
            "in memory": remains.entries(self.memory),
            "outside": {name: remains.entries(path) for name, path in outside.items() if name != "allowed"},
            "requested": [
                value
                for name, value in self.numbers_told().items()
                if name in ("memory_requested_bytes", "cpu_requested_cores", "containers_running")
            ],
        }

    def numbers_told(self) -> dict[str, float]:
        lines = self.operator.get("/metrics").text.splitlines()
        pairs = (line.removeprefix("wherry_runner_").rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}


def understood(answer: httpx.Response) -> None:
    """A refusal with its reason, or what was asked for; never an error of ours."""
    if answer.status_code in (200, 202):
        return
    refusal = protocol.Refusal.model_validate_json(answer.content)
    assert 400 <= answer.status_code < 500 or refusal.reason is RefusalReason.NO_ROOM, answer.text
    assert refusal.reason is not RefusalReason.INTERNAL
    assert refusal.message


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("bad-specs")
    memory = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else folder))
    host = folder / "host"
    for name in ("allowed", "read-only", "outside"):
        (host / name / "folder").mkdir(parents=True)
    (host / "allowed" / "way-out").symlink_to(host / "outside")
    certificates = Certificates(folder)
    with FakeRegistry() as registry:
        flags = [
            "--memory-bytes", str(512 << 20), "--back-off-initial", "3600", "--back-off-max", "3600",
            "--memory-directory", str(memory), "--volumes-memory-directory", str(memory),
            "--host-path", str(host / "allowed"), "--host-path", f"{host / 'read-only'}:ro",
            # Nothing that a spec may name is asked for outside of this machine.
            "--registry-mirror", f"docker.io={registry.url}", "--insecure-registry", registry.address,
        ]  # fmt: skip
        runner = RunnerProcess(folder, certificates, "runner-a", flags)
        try:
            runner.start()
            found = context(certificates, certificates.operator)
            with httpx.Client(base_url=runner.url, verify=found, trust_env=False, timeout=60) as operator:
                yield Scene(runner, operator, registry, runner.state, memory, host)
            runner.stop()
            assert remains.entries(memory) == []
        finally:
            runner.close()
            shutil.rmtree(memory)


@pytest.fixture(scope="module")
def inline() -> dict[str, bytes]:
    """Modules by what they are called in specs: those that only end have the exit code in their name."""
    return {
        **{f"exits {code}": wat.binary(wat.exits(code)) for code in (0, 3, 255)},
        "text": wat.exits(7).encode(),
        "traps": wat.binary(wat.traps()),
        "sleeps": wat.binary(wat.sleeps()),
        "spins": wat.binary(wat.spins()),
        "spins at its start": _SPINNING_START.encode(),
        "memories": guests.memories(20, pages=512).encode(),
        "component": guests.component().encode(),
        "tool": build.c("tool"),
    }


def bodies(scene: Scene, inline: dict[str, bytes]) -> st.SearchStrategy[Any]:
    """Bodies of the right types. What they name is on this machine, or nowhere."""
    reference = scene.registry.push("good:v1", inline["exits 3"])
    nobody = "127.0.0.1:1"
    found = specs.bodies(
        inline=inline,
        references=[
            reference, reference, f"{scene.registry.address}/absent:v1", f"{nobody}/x:v1", "good:v1", "", " ", ":", "@",
            "UPPER", "a" * 500, "good@sha256:" + "0" * 64, f"{reference}@sha256:{'0' * 64}", "good:v1:v2", "\0", "good\n",
        ],
        urls=[f"https://{nobody}/module.wasm", "https://", "http://127.0.0.1:1/", "file:///etc/passwd", "\0", "//", "https://["],
        host_paths=[
            *(str(scene.host / name) for name in ("allowed", "allowed/folder", "allowed/new/deep", "read-only", "outside")),
            str(scene.host / "allowed/way-out"), str(scene.host / "allowed/../outside"), "/", "/etc", "/proc/1/root",
            "relative", "", "\0", "/" + "x" * 4000,
        ],
    )  # fmt: skip
    return found.map(lambda body: {"epoch": 1, **body})


def look(scene: Scene, workload_id: str, query: dict[str, Any], *, code: int | None = None) -> None:
    """Whether an accepted workload comes to something that makes sense, with this exit code if it ends; then delete it."""
    status = scene.settled(workload_id)
    for each in (*status.init_containers, *status.containers):
        match each.state:
            case Waiting(reason=reason, message=message):
                assert reason in BEFORE_ITS_TIME or reason in OTHER_REASONS, each
                assert len(message) <= protocol.MAX_MESSAGE_CHARACTERS
            case Terminated(exit_code=found):
                assert code is None or found == code, each
        answer = scene.operator.get(f"/v1/workloads/{workload_id}/containers/{each.name}/log", params=query)
        understood(answer)
    scene.delete(workload_id)
    assert scene.operator.get(f"/v1/workloads/{workload_id}").status_code == 404


def promised(body: Any) -> int | None:
    """The exit code of a workload of one container, if it has any, where nothing in its spec can change it."""
    workload = body["workload"]
    spec: dict[str, Any] = workload["containers"][0]
    others = len(workload["containers"]) > 1 or workload.get("initContainers")
    source = spec["module"].get("source", "")
    otherwise = others or spec.get("resources") or workload.get("deadline") is not None or body.get("history")
    return None if otherwise or not source.startswith("exits ") else int(source.removeprefix("exits "))


OPTIONS = ("follow", "previous", "timestamps", "sinceSeconds", "sinceTime", "tailLines", "limitBytes", "stream")
VALUES = (
    "", "true", "false", "0", "1", "-1", "5", str(2**31), str(2**63), str(2**70), "1e400", "nan", "x", "All", "Stderr",
    "2020-01-01T00:00:00Z", "2020-01-01T00:00:00", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59",
)  # fmt: skip

QUERIES = st.dictionaries(st.sampled_from(OPTIONS), st.sampled_from(VALUES), max_size=2).filter(
    lambda query: query.get("follow") not in ("true", "1")  # what runs on never ends its log
)


def play(examples: int) -> settings:
    """Settings for so many requests. Nothing is made smaller: on a runner that is not fresh, that finds what is not so."""
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Step.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
    )


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@pytest.mark.timeout(12 * 3600 if REQUESTS > 1000 else 900)
def test_requests_at_random_are_refused_or_carried_out_and_nothing_is_left(
    scene: Scene, inline: dict[str, bytes]
) -> None:
    sensible = bodies(scene, inline)
    mutated = specs.mutated(sensible)

    def nothing_is_left() -> bool:
        now.clear()
        now.update(scene.holds())
        return now == before

    now: dict[str, Any] = {}
    _warm_up(scene, inline)
    assert wait_for(lambda: len(remains.descendants(scene.pid)) == 1, timeout_seconds=SETTLE_SECONDS), "its executor"
    # What is deleted is moved aside, and removed by another thread.
    assert wait_for(lambda: "retired" not in repr(scene.holds()), timeout_seconds=SETTLE_SECONDS)
    before = scene.holds()
    sockets = remains.sockets(scene.pid)

    @play(REQUESTS * 5 // 10)
    @given(body=sensible, query=QUERIES)
    def any_sense(body: Any, query: dict[str, Any]) -> None:
        workload_id = scene.new_id()
        if scene.put(workload_id, body).status_code == 200:
            look(scene, workload_id, query, code=promised(body))

    def any_type_and_any_bytes() -> None:
        @seed(SEED)
        @play(REQUESTS * 2 // 10)
        @given(body=mutated, query=QUERIES)
        def any_type(body: Any, query: dict[str, Any]) -> None:
            workload_id = scene.new_id()
            if scene.put(workload_id, body).status_code == 200:
                look(scene, workload_id, query)

        @seed(SEED)
        @play(REQUESTS // 20)
        @given(body=specs.spoilt(mutated.map(specs.as_json)), query=QUERIES)
        def any_bytes(body: bytes, query: dict[str, Any]) -> None:
            workload_id = scene.new_id()
            if scene.send(workload_id, body).status_code == 200:
                look(scene, workload_id, query)

        any_type()
        any_bytes()

    any_sense()
    any_type_and_any_bytes()
    # The same once more: what the allocator keeps of the largest body, it kept the first time; what leaks, leaks again.
    resident = remains.resident_bytes(scene.pid)
    any_type_and_any_bytes()
    assert scene.accepted > REQUESTS // 20, "hardly any was carried out"
    assert wait_for(nothing_is_left, timeout_seconds=SETTLE_SECONDS), {
        name: (before[name], now[name]) for name in before if before[name] != now[name]
    }
    assert wait_for(lambda: remains.sockets(scene.pid) <= sockets, timeout_seconds=SETTLE_SECONDS)
    assert remains.resident_bytes(scene.pid) - resident < MEMORY_GROWTH_BYTES
    log = scene.runner.log.read_text(errors="replace")
    assert "Traceback" not in log, log[log.index("Traceback") - 1000 :][:5000]


def test_a_body_of_nothing_but_wrong_values_is_refused_for_the_first(scene: Scene) -> None:
    _send_four_million_wrong_values(scene)
    assert remains.peak_bytes(scene.pid) < 512 << 20, "noting each takes 2 GB"


def _send_four_million_wrong_values(scene: Scene) -> None:
    wrong = {"name": "main", "module": {"kind": "image", "reference": "good:v1"}, "args": [0] * 10_000}
    owner = {"kind": "Pod", "namespace": "default", "name": "wrong", "uid": "u"}
    workload = {"owner": owner, "containers": [wrong] * 400}
    body = specs.as_json({"epoch": scene.epoch, "sequence": 1, "templateHash": "t", "workload": workload})
    answer = scene.send(scene.new_id(), body)
    assert answer.status_code == 400
    assert "workload.containers.0.args.0" in answer.json()["message"]


def _warm_up(scene: Scene, inline: dict[str, bytes]) -> None:
    """Use all that is opened at its first use."""
    for module in (
        {"kind": "inline", "data": specs.encoded(inline["exits 0"])},
        {"kind": "image", "reference": scene.registry.push("good:v1", inline["exits 3"])},
    ):
        workload = {
            "owner": {"kind": "Pod", "namespace": "default", "name": "first", "uid": "u"},
            "containers": [{"name": "main", "module": module, "mounts": [{"volume": "s", "mountPath": "/s"}]}],
            "volumes": [
                {"kind": "files", "name": "s", "secret": True},
                {"kind": "files", "name": "f"},
                {"kind": "emptyDir", "name": "m", "medium": "Memory"},
            ],
        }
        workload_id = scene.new_id()
        assert (
            scene.put(workload_id, {"epoch": 1, "sequence": 1, "templateHash": "t", "workload": workload}).status_code
            == 200
        )
        scene.settled(workload_id)
        scene.delete(workload_id)


@pytest.mark.parametrize(
    "id", ["", ".", "..", "A", "a" * 129, "a/b", "\0", "é", "a\n", "-a", "a-", "../../etc", "%", "a" * 5000]
)
def test_names_that_are_none_name_nothing(scene: Scene, id: str) -> None:
    path = f"/v1/workloads/{quote(id, safe='')}"
    for method in ("GET", "PUT", "DELETE"):
        answer = scene.operator.request(method, path, params={"epoch": scene.epoch, "sequence": 1})
        assert answer.status_code in (400, 404, 405), (method, answer.text)
        understood(answer)


@pytest.mark.parametrize(
    "query",
    [
        "", "epoch=1", "epoch=x&sequence=1", "epoch=-1&sequence=1", "epoch=1&sequence=-1", f"epoch=1&sequence={2**63}",
        f"epoch={2**64}&sequence=1", "epoch=1&sequence=1&grace=nan", "epoch=1&sequence=1&grace=inf",
        "epoch=1&sequence=1&grace=x", "epoch=1e3&sequence=1", f"epoch=1&sequence={'9' * 5000}",
    ],
)  # fmt: skip
def test_a_delete_that_makes_no_sense_deletes_nothing(scene: Scene, inline: dict[str, bytes], query: str) -> None:
    workload_id = scene.new_id()
    module = {"kind": "inline", "data": specs.encoded(inline["sleeps"])}
    workload = {
        "owner": {"kind": "Pod", "namespace": "default", "name": "stays", "uid": "u"},
        "containers": [{"name": "main", "module": module}],
    }
    put = scene.put(workload_id, {"epoch": 1, "sequence": 1, "templateHash": "t", "workload": workload})
    assert put.status_code == 200
    answer = scene.operator.delete(f"/v1/workloads/{workload_id}?{query}")
    assert answer.status_code in (400, 409), answer.text
    understood(answer)
    assert scene.settled(workload_id).phase is Phase.ACTIVE
    scene.delete(workload_id)
