"""What a runner finds out by itself: memory, CPU and processes of its cgroup, its executor; and what it refuses to be told."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from wherry_runner import settings
from wherry_runner.execution import native
from wherry_runner.settings import OVERHEAD_BYTES, Settings, SettingsError, parse

MIB, GIB = 1 << 20, 1 << 30
NEEDED = ["--cert", "c", "--key", "k", "--client-ca", "ca", "--name", "one", "--node", "n", "--executor", "python"]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("WHERRY_"):
            monkeypatch.delenv(name)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A machine without cgroups."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    return tmp_path


def container(root: Path, *, memory: int | str = "max", cpu: str = "max", pids: int | str = "max") -> Path:
    folder = root / "sys" / "fs" / "cgroup"
    folder.mkdir(parents=True)
    for name, content in {
        "cgroup.controllers": "cpu memory pids",
        "memory.max": memory,
        "cpu.max": f"{cpu} 100000",
        "pids.max": pids,
    }.items():
        (folder / name).write_text(f"{content}\n")
    return root


def found(root: Path, *arguments: str) -> Settings:
    return parse([*NEEDED, *arguments], root=root)


def test_without_a_cgroup_half_of_the_machine_is_offered(bare: Path) -> None:
    subject = found(bare)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert subject.memory_bytes == machine // 2
    assert subject.cpu_millicores == len(os.sched_getaffinity(0)) * 1000
    assert (subject.defaults.memory_request_bytes, subject.defaults.memory_limit_bytes) == (MIB, 256 * MIB)
    assert (subject.defaults.descriptors, subject.defaults.log_bytes_per_second) == (256, None)
    assert (subject.log_file_bytes, subject.log_budget_bytes) == (10 * MIB, 0)
    assert (subject.executor_directory, subject.wasi_03, subject.require_confinement) == (None, False, frozenset())


def test_a_container_offers_its_limits_less_what_the_runner_and_a_compiler_take(bare: Path) -> None:
    container(bare, memory=8 * GIB, cpu="150000", pids=4000)
    subject = found(bare)
    assert subject.compile.memory_bytes == 2 * GIB
    assert subject.memory_bytes == 8 * GIB - OVERHEAD_BYTES - 2 * GIB
    assert subject.compile.at_once == 1
    assert subject.cpu_millicores == 1500
    assert subject.processes == 4000


def test_in_a_small_container_compilers_and_default_limits_are_small(bare: Path) -> None:
    subject = found(container(bare, memory=512 * MIB))
    assert subject.compile.memory_bytes == 128 * MIB
    assert subject.memory_bytes == 512 * MIB - OVERHEAD_BYTES - 128 * MIB
    assert subject.defaults.memory_limit_bytes == subject.memory_bytes


def test_what_is_not_offered_lets_more_compilers_work_at_once(bare: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    subject = found(container(bare, memory=64 * GIB), "--memory-bytes", str(GIB))
    assert subject.memory_bytes == GIB
    assert subject.compile.at_once == min(cores, (64 * GIB - GIB - OVERHEAD_BYTES) // (2 * GIB))


def test_a_compilation_may_use_all_cores_for_its_time(bare: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    subject = found(bare, "--compile-seconds", "30", "--compile-memory-bytes", str(GIB))
    assert (subject.compile.wall_seconds, subject.compile.cpu_seconds) == (30.0, 30 * cores)
    assert subject.compile.memory_bytes == GIB


@pytest.mark.parametrize(
    ("memory", "arguments", "says"),
    [
        (
            224 * MIB,
            [],
            (
                "its cgroup's memory limit, 234881024 bytes, leaves nothing for guests: the runner itself takes 201326592 "
                "bytes and a compiler 58720256; allow it more, or give --memory-bytes or --compile-memory-bytes"
            ),
        ),
        (
            GIB,
            ["--memory-bytes", str(GIB)],
            (
                "--memory-bytes may be 872415232 at most, not 1073741824: of its cgroup's memory limit, 1073741824 bytes, "
                "the runner itself takes 201326592"
            ),
        ),
        (
            GIB,
            ["--memory-bytes", "1000", "--default-memory-limit-bytes", "1001"],
            "--default-memory-limit-bytes may be 1000 at most, which is offered, not 1001",
        ),
        (
            GIB,
            ["--default-memory-request-bytes", str(257 * MIB)],
            f"--default-memory-request-bytes may be {256 * MIB} at most, the default limit, not {257 * MIB}",
        ),
    ],
)
def test_memory_that_is_not_there_is_not_shared_out(bare: Path, memory: int, arguments: list[str], says: str) -> None:
    container(bare, memory=memory)
    with pytest.raises(SettingsError) as caught:
        found(bare, *arguments)
    assert str(caught.value) == says


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--executor", "wasmer"], "--executor must be one of auto, native, python, not 'wasmer'"),
        (["--port", "65536"], "--port must be a port, 0 to 65535, not 65536"),
        (["--health-port", "-1"], "--health-port must be a port, 0 to 65535, not -1"),
        (["--max-workloads", "0"], "--max-workloads must be at least 1, not 0"),
        (["--cpu-millicores", "-5"], "--cpu-millicores must be at least 0, not -5"),
        (["--default-descriptors", "10"], "--default-descriptors must be between 64 and 65536, not 10"),
        (["--log-file-bytes", "1000"], "--log-file-bytes must be at least 65536, not 1000"),
        (
            ["--log-budget-bytes", "1"],
            "--log-budget-bytes must be at least 262144, which serves one container, not 1",
        ),
        (["--log-bytes-per-second", "-1"], "--log-bytes-per-second must be at least 0, not -1"),
        (["--termination-grace-seconds", "-1"], "--termination-grace-seconds must be at least 0, not -1.0"),
        (["--compile-seconds", "0.5"], "--compile-seconds must be at least 1, not 0.5"),
        (["--compile-seconds", "inf"], "--compile-seconds may be 3600 at most, an hour, not inf"),
        (["--termination-grace-seconds", "nan"], "--termination-grace-seconds must be at least 0, not nan"),
    ],
)
def test_nonsense_is_named(bare: Path, arguments: list[str], says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        found(bare, *arguments)
    assert str(caught.value) == says


def programs(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).touch(0o755)
    return folder


def test_the_native_executor_is_used_where_both_its_programs_are(bare: Path) -> None:
    whole = programs(bare / "whole", native.EXECUTOR, native.COMPILER)
    half = programs(bare / "half", native.EXECUTOR)
    for executor in ("auto", "native"):
        assert found(bare, "--executor", executor, "--executor-directory", str(whole)).executor_directory == whole
        with pytest.raises(SettingsError) as caught:
            found(bare, "--executor", executor, "--executor-directory", str(half))
        assert str(caught.value) == (
            f"no native executor in {half}: wherry-executor and wherry-compiler must both be there (`make executor` builds "
            "them); --executor python does without"
        )
    assert found(bare, "--executor", "python", "--executor-directory", str(whole)).executor_directory is None


def test_confinement_is_required_by_name(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(bare, "--require-confinement", "landlock").require_confinement == {"landlock"}
    monkeypatch.setenv("WHERRY_RUNNER_REQUIRE_CONFINEMENT", "seccomp, no-new-privileges")
    assert found(bare).require_confinement == {"seccomp", "no-new-privileges"}
    monkeypatch.setenv("WHERRY_RUNNER_REQUIRE_CONFINEMENT", "true")
    with pytest.raises(
        SettingsError, match="--require-confinement: true is none of no-new-privileges, landlock, seccomp"
    ):
        found(bare)


def test_switches_have_variables_too(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=re.escape("--wasi-0.3 wants the native executor")):
        found(bare, "--wasi-0.3")
    with pytest.raises(SettingsError, match=re.escape("--pooling-allocator wants the native executor")):
        found(bare, "--pooling-allocator")
    monkeypatch.setenv("WHERRY_RUNNER_EXECUTOR_DIRECTORY", str(programs(bare / "x", native.EXECUTOR, native.COMPILER)))
    assert found(bare, "--executor", "native", "--wasi-0.3").wasi_03
    assert found(bare, "--executor", "native", "--pooling-allocator").pooling_allocator
    monkeypatch.setenv("WHERRY_RUNNER_WASI_0_3", "true")
    monkeypatch.setenv("WHERRY_RUNNER_MEMORY_BYTES", str(GIB))
    subject = found(bare, "--executor", "native")
    assert (subject.wasi_03, subject.memory_bytes) == (True, GIB)
    monkeypatch.setenv("WHERRY_RUNNER_WASI_0_3", "maybe")
    with pytest.raises(SettingsError, match=re.escape("the variable of --wasi-0.3 must be true or false, not 'maybe'")):
        found(bare)


def test_every_flag_is_in_the_documentation() -> None:
    parser = settings._parser()
    flags = {flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")} - {"--help"}
    section = (ROOT / "docs" / "runner.md").read_text().split("\n## Settings\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `--")]
    documented = {flag for row in rows for flag in re.findall(r"`(--[a-z0-9.-]+)", row)}
    assert documented == flags
