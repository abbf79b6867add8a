"""What a cgroup grants, read from trees like those of real kernels."""

from __future__ import annotations

from pathlib import Path

import pytest

from wherry_runner.resources.cgroup import Grants, MemoryMeter, MemoryUse, grants, machine_processes

MIB = 1 << 20
V1_NONE = str((1 << 63) - 4096)


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return root


def v2(at: Path, /, own: str = "/", **groups: dict[str, str]) -> Path:
    """A v2 tree; keyword: a group's path with _ for /."""
    files = {"proc/self/cgroup": f"0::{own}", "sys/fs/cgroup/cgroup.controllers": "cpu memory pids"}
    for name, content in groups.items():
        folder = "sys/fs/cgroup/" + name.replace("_", "/").removeprefix("root").lstrip("/")
        files |= {f"{folder}/{file}": text for file, text in content.items()}
    return tree(at, files)


def test_a_container_on_v2_sees_its_own_group_as_the_whole_tree(tmp_path: Path) -> None:
    v2(
        tmp_path,
        root={"memory.max": str(512 * MIB), "cpu.max": "150000 100000", "pids.max": "1000"},
    )
    assert grants(tmp_path) == Grants(memory_bytes=512 * MIB, cpu_millicores=1500, processes=1000)


def test_no_limits_on_v2(tmp_path: Path) -> None:
    v2(tmp_path, root={"memory.max": "max", "cpu.max": "max 100000", "pids.max": "max"})
    assert grants(tmp_path) == Grants()


def test_the_tightest_of_the_groups_above_counts(tmp_path: Path) -> None:
    v2(
        tmp_path,
        own="/pods/one",
        pods={"memory.max": str(100 * MIB), "cpu.max": "max 100000", "pids.max": "50"},
        pods_one={"memory.max": str(200 * MIB), "cpu.max": "50000 100000", "pids.max": "max"},
    )
    assert grants(tmp_path) == Grants(memory_bytes=100 * MIB, cpu_millicores=500, processes=50)


def v1(root: Path, own: str, folder: str, **files: str) -> Path:
    base = "sys/fs/cgroup/{}" + folder
    return tree(
        root,
        {
            "proc/self/cgroup": f"4:memory:{own}\n3:cpu,cpuacct:{own}\n2:pids:{own}\n1:name=systemd:{own}\n0::/",
            base.format("memory") + "/memory.limit_in_bytes": files.get("memory", V1_NONE),
            base.format("cpu") + "/cpu.cfs_quota_us": files.get("quota", "-1"),
            base.format("cpu") + "/cpu.cfs_period_us": "100000",
            base.format("pids") + "/pids.max": files.get("pids", "max"),
        },
    )


@pytest.mark.parametrize("folder", ["/docker/abc", ""], ids=["on its host", "in the container"])
def test_v1_with_the_hosts_path_in_proc_wherever_its_files_are(tmp_path: Path, folder: str) -> None:
    v1(tmp_path, "/docker/abc", folder, memory=str(64 * MIB), quota="25000", pids="7")
    assert grants(tmp_path) == Grants(memory_bytes=64 * MIB, cpu_millicores=250, processes=7)


def test_no_limits_on_v1(tmp_path: Path) -> None:
    assert grants(v1(tmp_path, "/", "")) == Grants()


def test_a_machine_without_cgroups_grants_what_it_has(tmp_path: Path) -> None:
    tree(
        tmp_path,
        {"proc/meminfo": "MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    400 kB\nHugePages_Total: 0"},
    )
    assert grants(tmp_path) == Grants()
    assert MemoryMeter(tmp_path).read() == MemoryUse(600 << 10, 1000 << 10, shared=True)
    tree(tmp_path, {"proc/sys/kernel/pid_max": "32768", "proc/sys/kernel/threads-max": "100000"})
    assert machine_processes(tmp_path) == 32768


def test_caches_are_not_in_use(tmp_path: Path) -> None:
    stat = "anon 50\ninactive_file 100\nactive_file 30\nslab_reclaimable 20\nslab_unreclaimable 7"
    v2(tmp_path, root={"memory.max": "1000", "memory.current": "700", "memory.stat": stat})
    assert MemoryMeter(tmp_path).read() == MemoryUse(550, 1000)


def test_caches_are_not_in_use_on_v1_either(tmp_path: Path) -> None:
    v1(tmp_path, "/", "", memory="1000")
    folder = "sys/fs/cgroup/memory"
    stat = "inactive_file 1\ntotal_inactive_file 100\ntotal_active_file 30\ntotal_cache 500"
    tree(tmp_path, {f"{folder}/memory.usage_in_bytes": "700", f"{folder}/memory.stat": stat})
    assert MemoryMeter(tmp_path).read() == MemoryUse(570, 1000)


def test_a_limit_that_is_taken_away_is_an_error_not_a_crash(tmp_path: Path) -> None:
    v2(tmp_path, root={"memory.max": "1000", "memory.current": "700", "memory.stat": ""})
    meter = MemoryMeter(tmp_path)
    v2(tmp_path, root={"memory.max": "max"})
    with pytest.raises(OSError, match="no memory limit any more"):
        meter.read()


def test_this_machine_can_be_read() -> None:
    use = MemoryMeter().read()
    assert 0 < use.used_bytes <= use.limit_bytes
    assert machine_processes() > 100
    grants()
