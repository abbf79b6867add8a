"""SIGKILL of compiler, executor, guest and supervisor at random moments: what is found afterwards makes sense.

WHERRY_SOAK=1 plays many rounds (`make soak`); WHERRY_SEED repeats one run's choices, though not its moments.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.cluster.processes import wait_for
from tests.runner.fake_registry import FakeRegistry
from tests.runner.test_runner_api import context
from tests.support import remains, store_crash, wat
from tests.support.runner import Certificates, RunnerProcess
from tests.support.specs import encoded
from wherry_runner import protocol
from wherry_runner.modules.store import Store
from wherry_runner.protocol import Phase, RestartPolicy, Running, Terminated, WorkloadStatus

ROUNDS = 150 if os.environ.get("WHERRY_SOAK") else 2
SEED = int(os.environ.get("WHERRY_SEED") or random.randrange(2**32))

WORKLOADS = 30
KINDS = ("compiler", "executor", "guest")
KILLS_OF_EACH = 2
"""Of a round, for each of these kinds; and ANY_KILLS of whatever is there. Those of the supervisor come on top."""
ANY_KILLS = 4

PATIENCE_SECONDS = 90.0

_PR_SET_CHILD_SUBREAPER = 36

_NOTES_ITS_RUN = """(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $path_open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll_oneoff (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 1)
  (data (i32.const 64) "runs") (data (i32.const 80) "x") (data (i32.const 4096) "UNIQUE")
  (func (export "_start")
    ;; Creates the file, if it is not there, to append to it.
    (if (call $path_open (i32.const 3) (i32.const 0) (i32.const 64) (i32.const 4) (i32.const 1)
          (i64.const 64) (i64.const 0) (i32.const 1) (i32.const 16))
      (then unreachable))
    (i32.store (i32.const 0) (i32.const 80))
    (i32.store (i32.const 4) (i32.const 1))
    (drop (call $fd_write (i32.load (i32.const 16)) (i32.const 0) (i32.const 1) (i32.const 8)))
    (i32.store (i32.const 1040) (i32.const 1))
    (i64.store (i32.const 1048) (i64.const NANOSECONDS))
    (drop (call $poll_oneoff (i32.const 1024) (i32.const 1104) (i32.const 1) (i32.const 1200)))
    (call $proc_exit (i32.const CODE))))"""


@dataclass
class Kept:
    """A workload, and what was promised of it."""

    id: str
    policy: RestartPolicy
    code: int
    """Of its end; what runs for an hour is to run whenever the round is over."""
    for_ever: bool
    body: bytes
    runs_file: Path
    ended: WorkloadStatus | None = None
    """Since it was said to have ended: so it must stay."""
    runs_when_ended: int = 0

    @property
    def runs(self) -> int:
        """How often its guest ran, as far as that came to note it."""
        return self.runs_file.stat().st_size if self.runs_file.exists() else 0


@dataclass
class Scene:
    """A runner that is killed and started, and its operator."""

    runner: RunnerProcess
    certificates: Certificates
    registry: FakeRegistry
    host: Path
    choices: random.Random
    killed: dict[str, int] = field(default_factory=dict)
    operator: httpx.Client = field(init=False)
    number: int = 0

    def start(self) -> None:
        self.runner.start()
        found = context(self.certificates, self.certificates.operator)
        self.operator = httpx.Client(base_url=self.runner.url, verify=found, trust_env=False, timeout=60)

    def workload(self) -> Kept:
        """A workload that was not there before, of a module that nobody has compiled yet."""
        self.number += 1
        name = f"w{self.number}"
        policy = self.choices.choice(list(RestartPolicy))
        for_ever = self.choices.random() < 0.4
        code = self.choices.choice((0, 0, 3))
        milliseconds = 3_600_000 if for_ever else self.choices.choice((0, 20, 200))
        text = _NOTES_ITS_RUN.replace("UNIQUE", name).replace("CODE", str(code))
        module = wat.binary(text.replace("NANOSECONDS", str(milliseconds * 10**6)))
        folder = self.host / name
        folder.mkdir()
        source: protocol.Module = protocol.InlineModule(data=encoded(module).encode())
        if self.choices.random() < 0.5:
            pull = self.choices.choice(list(protocol.PullPolicy)[:2])
            source = protocol.ImageModule(reference=self.registry.push(f"{name}:v1", module), pull_policy=pull)
        put = protocol.WorkloadPut(
            epoch=1,
            sequence=1,
            template_hash="t1",
            workload=protocol.Workload(
                owner=protocol.Owner(kind="Pod", namespace="default", name=name, uid="u"),
                restart_policy=policy,
                containers=(
                    protocol.Container(
                        name="main",
                        module=source,
                        mounts=(protocol.VolumeMount(volume="host", mount_path="/data"),),
                    ),
                ),
                volumes=(
                    protocol.HostPathVolume(name="host", path=str(folder)),
                    protocol.EmptyDirVolume(name="empty"),
                    protocol.FilesVolume(name="secret", secret=True),
                ),
                termination_grace_period_seconds=0,
            ),
        )
        return Kept(name, policy, code, for_ever, put.to_json(), folder / "runs")

    def put(self, kept: Kept) -> None:
        answer = self.operator.put(f"/v1/workloads/{kept.id}", content=kept.body)
        assert answer.status_code == 200, answer.text
        self.check(kept, WorkloadStatus.model_validate_json(answer.content))

    def status(self, kept: Kept) -> WorkloadStatus:
        answer = self.operator.get(f"/v1/workloads/{kept.id}")
        assert answer.status_code == 200, answer.text
        status = WorkloadStatus.model_validate_json(answer.content)
        self.check(kept, status)
        return status

    def check(self, kept: Kept, status: WorkloadStatus) -> None:
        """What must be so at any time."""
        if kept.policy is RestartPolicy.NEVER:
            assert kept.runs <= 1, f"{kept.id} ran again under Never"
            assert status.containers[0].restart_count == 0
        if kept.ended is not None:
            assert status.phase is Phase.ENDED, (kept.ended, status)
            assert status.containers[0].state == kept.ended.containers[0].state
            assert kept.runs == kept.runs_when_ended, f"{kept.id} ran after its end"
        elif status.phase is Phase.ENDED:
            kept.ended, kept.runs_when_ended = status, kept.runs

    # --- kills --------------------------------------------------------------------------------------------------------

    def kill_any(self) -> None:
        """SIGKILL to a compiler, the executor, or a guest: whatever there is at this moment."""
        found = self.processes()
        self._kill(found, self.choices.choice([role for role in found if found[role]] or ["nobody"]))

    def kill_one(self, role: str, begin: Callable[[], None]) -> None:
        """SIGKILL to one of these. While there is none, workloads are begun now and then: each brings all of them along."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        begin_at = 0.0
        while not self._kill(self.processes(), role):
            now = time.monotonic()
            assert now < deadline, f"there is no {role} to kill"
            if now >= begin_at:
                begin()
                begin_at = now + 2

    def _kill(self, found: dict[str, list[int]], role: str) -> bool:
        """Whether there was one, and it was there until it was killed."""
        for pid in self.choices.sample(victims := found.get(role, []), k=min(1, len(victims))):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.killed[role] = self.killed.get(role, 0) + 1
                return True
        return False

    def processes(self) -> dict[str, list[int]]:
        """The runner's processes by what they are."""
        found: dict[str, list[int]] = {"compiler": [], "executor": [], "guest": []}
        assert self.runner.process is not None
        for child in remains.children(self.runner.process.pid):
            command = _command(child)
            if "compiler" in command:
                found["compiler"].append(child)
            elif command:
                found["executor"].append(child)
                found["guest"] += remains.children(child)
        return found

    def kill_supervisor(self, workloads: list[Kept]) -> None:
        """SIGKILL to the supervisor, and look for orphans; then another one, told the same."""
        assert self.runner.process is not None
        mine = set(remains.children(os.getpid()))
        self.runner.kill()
        self.operator.close()
        self.killed["supervisor"] = self.killed.get("supervisor", 0) + 1
        assert wait_for(lambda: _adopted(mine) == [], timeout_seconds=PATIENCE_SECONDS), _adopted(mine)
        self.start()
        for kept in workloads:
            self.put(kept)

    # --- the end of a round -------------------------------------------------------------------------------------------

    def settle(self, kept: Kept) -> None:
        """Wait until a workload is what it must come to, whoever was killed meanwhile."""
        seen: list[WorkloadStatus] = []

        def settled() -> bool:
            seen.append(self.status(kept))
            return self.is_settled(kept, seen[-1])

        assert wait_for(settled, timeout_seconds=PATIENCE_SECONDS), (
            f"{kept.id}: {kept.policy}, for ever: {kept.for_ever}, ends with {kept.code}, ran {kept.runs} times; "
            f"{seen[-1].containers[0]!r}"
        )

    def is_settled(self, kept: Kept, status: WorkloadStatus) -> bool:
        (container,) = status.containers
        if kept.policy is RestartPolicy.NEVER and status.phase is Phase.ENDED:
            assert isinstance(container.state, Terminated)
            # Its own end, or a kill's: lost before it had begun, it may have noted nothing.
            assert container.state.exit_code == 137 or (container.state.exit_code, kept.runs) == (kept.code, 1)
            return True
        if kept.for_ever:
            return isinstance(container.state, Running) and kept.runs > 0
        match kept.policy:
            case RestartPolicy.NEVER:
                return False
            case RestartPolicy.ON_FAILURE if kept.code == 0:
                return status.phase is Phase.ENDED and kept.runs > 0
        assert status.phase is Phase.ACTIVE
        return kept.runs > 1  # it ends, and runs again

    def delete(self, workloads: list[Kept]) -> None:
        for kept in workloads:
            path = f"/v1/workloads/{kept.id}?epoch=1&sequence=2&grace=0"
            assert wait_for(
                lambda path=path: self.operator.delete(path).status_code == 200,  # type: ignore[misc]
                timeout_seconds=PATIENCE_SECONDS,
            )

    def nothing_is_left(self) -> None:
        """No guest, no volume, no log; and what is stored is whole."""
        state = self.runner.state
        for folder in (state / "volumes", state / "logs", state / "modules" / "tmp"):
            assert wait_for(lambda folder=folder: remains.entries(folder) == [], timeout_seconds=60), folder  # type: ignore[misc]
        assert wait_for(lambda: not self.processes()["guest"], timeout_seconds=PATIENCE_SECONDS)


def _command(pid: int) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def _adopted(mine: set[int]) -> list[str]:
    """The processes that came to us when their parents died, and have not ended."""
    found = []
    for pid in set(remains.children(os.getpid())) - mine:
        with suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                found.append(f"{pid} {_command(pid)}")
    return found


@contextmanager
def _subreaper() -> Iterator[None]:
    """Meanwhile, whoever loses its parent becomes a child of this process, and is seen."""
    libc = ctypes.CDLL(None)
    assert libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    host, memory = tmp_path / "host", tmp_path / "memory"
    host.mkdir()
    memory.mkdir()
    certificates = Certificates(tmp_path)
    with FakeRegistry() as registry, _subreaper():
        flags = [
            "--back-off-initial", "0.1", "--back-off-max", "0.5", "--host-path", str(host), "--insecure-registry",
            registry.address, "--memory-directory", str(memory), "--volumes-memory-directory", str(memory),
        ]  # fmt: skip
        runner = RunnerProcess(tmp_path, certificates, "runner-a", flags)
        found = Scene(runner, certificates, registry, host, random.Random(SEED))
        try:
            found.start()
            yield found
            found.operator.close()
            runner.stop()
            assert remains.entries(memory) == []
        finally:
            runner.close()


@pytest.mark.timeout(12 * 3600 if ROUNDS > 2 else 900)
def test_after_kills_at_random_moments_everything_makes_sense(scene: Scene) -> None:
    print(f"WHERRY_SEED={SEED}")
    for _ in range(ROUNDS):
        _play(scene)
    modules = scene.runner.state / "modules"
    scene.kill_supervisor([])
    scene.runner.stop()
    store_crash.check_whole(Store(modules), modules)
    assert scene.killed.keys() == {*KINDS, "supervisor"}, scene.killed
    log = scene.runner.log.read_text(errors="replace")
    assert "Traceback" not in log, log[log.index("Traceback") - 1000 :][:5000]


def _play(scene: Scene) -> None:
    """One round."""
    workloads: list[Kept] = []

    def begin() -> None:
        workloads.append(scene.workload())
        scene.put(workloads[-1])

    def kill(role: str | None = None) -> None:
        if role is None:
            scene.kill_any()
        else:
            scene.kill_one(role, begin)
        time.sleep(scene.choices.random() * 0.05)  # any moment will do

    def kill_supervisor() -> None:
        scene.kill_supervisor(workloads)

    # Every kind is killed in every round, by whatever chance: only the order and the moments are random.
    kills = [partial(kill, role) for role in KINDS for _ in range(KILLS_OF_EACH)]
    steps: list[Callable[[], None]] = [*[begin] * WORKLOADS, *kills, *[kill] * ANY_KILLS, kill_supervisor]
    scene.choices.shuffle(steps)
    for step in steps:
        step()
    scene.kill_any()
    for kept in workloads:
        scene.settle(kept)
    scene.delete(workloads)
    scene.nothing_is_left()
