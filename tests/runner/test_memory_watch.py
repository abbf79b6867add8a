"""A runner in a memory cgroup of its own: it ends the greedy guest itself, before the kernel ends them all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.cluster import cgroups
from tests.runner.test_runner_api import body, client, ended, gone, metrics, started, status
from tests.support import executors, wat
from tests.support.runner import Certificates, RunnerProcess
from wherry_runner import protocol

MIB = 1 << 20
LIMIT_BYTES = 1 << 30

GREEDY = """(module (memory (export "memory") 1)
  (func (export "_start") (local $at i32)
    (loop $again
      (local.set $at (memory.grow (i32.const 16)))
      (if (i32.eq (local.get $at) (i32.const -1)) (then unreachable))
      (memory.fill (i32.shl (local.get $at) (i32.const 16)) (i32.const 1) (i32.const 1048576))
      (br $again))))"""
"""Takes all that it can get, 1 MiB at a time."""


def _group_file(group: str, v2: str, v1: str) -> Path:
    return cgroups.MOUNTS / group / v2 if cgroups.unified() else cgroups.MOUNTS / "memory" / group / v1


@pytest.fixture
def group() -> Iterator[str]:
    """A cgroup with a memory limit, and this process in it: what it starts begins there."""
    if os.geteuid() != 0:
        pytest.skip("a memory cgroup is made by root only")
    name = f"wherry-memory-watch-{os.getpid()}"
    cgroups.make(name)
    before = cgroups.MOUNTS if cgroups.unified() else cgroups.MOUNTS / "memory"
    try:
        _group_file(name, "memory.max", "memory.limit_in_bytes").write_text(str(LIMIT_BYTES))
        yield name
    finally:
        (before / "cgroup.procs").write_text(str(os.getpid()))
        assert cgroups.remove(name)


@pytest.fixture
def operator(group: str, executor: str, tmp_path: Path) -> Iterator[httpx.Client]:
    certificates = Certificates(tmp_path / "pki")
    runner = RunnerProcess(tmp_path, certificates, "small", executors.flags(executor))
    own = Path("/proc/self/cgroup").read_text()
    procs = _group_file(group, "cgroup.procs", "cgroup.procs")
    procs.write_text(str(os.getpid()))
    try:
        runner.start()
    finally:
        _back(own)
    try:
        with client(runner, certificates, certificates.operator) as found:
            yield found
    finally:
        runner.close()


def _back(own: str) -> None:
    """This process goes back to where it was."""
    for line in own.splitlines():
        number, controllers, path = line.split(":", 2)
        if cgroups.unified() and number == "0":
            (cgroups.MOUNTS / path.lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))
        elif controllers == "memory":
            (cgroups.MOUNTS / "memory" / path.lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))


def test_the_guest_over_its_request_ends_and_the_others_run_on(operator: httpx.Client) -> None:
    info = protocol.RunnerInfo.model_validate_json(operator.get("/v1/info").content)
    assert info.memory_bytes < LIMIT_BYTES
    modest = protocol.Resources(memory_request_bytes=128 * MIB, memory_limit_bytes=128 * MIB)
    started(operator, "modest", body(wat.binary(wat.sleeps()), resources=modest))
    greedy = protocol.Resources(memory_request_bytes=16 * MIB, memory_limit_bytes=4 << 30)
    operator.put("/v1/workloads/greedy", content=body(GREEDY.encode(), resources=greedy))
    end = ended(operator, "greedy")
    assert (end.exit_code, end.reason) == (137, "OOMKilled"), end
    assert end.message.startswith("the runner's memory ran out (")
    assert "not the container's own limit" in end.message
    assert "more than it requests" in end.message
    assert isinstance(status(operator, "modest").containers[0].state, protocol.Running)
    counted = metrics(operator)
    assert counted["wherry_runner_memory_kills_total"] == 1
    assert counted["wherry_runner_container_ends_total OOMKilled"] == 1
    gone(operator, "greedy")
    gone(operator, "modest")
