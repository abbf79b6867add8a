"""What a cluster with nodes leaves on the host: nothing, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import cgroups, leftovers, nodeparts
from tests.cluster.errors import ProcessFailed
from tests.cluster.machine import child_of
from tests.cluster.node import NodeCluster
from tests.cluster.processes import wait_for
from tests.cluster.record import Record
from tests.node.pods import PATIENCE_SECONDS

REPOSITORY = Path(__file__).resolve().parents[2]

SYSCTLS = (
    "vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes", "net/ipv4/ip_forward", "net/netfilter/nf_conntrack_max",
)  # fmt: skip

FOLDERS = ("/run/netns", "/run/containerd", "/var/log/containers", "/var/log/pods", "/var/lib/kubelet",
           "/var/lib/containerd", "/var/lib/cni", "/etc/cni")  # fmt: skip

POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "lives"},
    "spec": {
        "hostPID": True,  # shares the node's process ids: the least confined that a Pod can be
        "containers": [{"name": "main", "image": nodeparts.PAUSE_IMAGE, "imagePullPolicy": "Never"}],
        "volumes": [{"name": "memory", "emptyDir": {"medium": "Memory"}}],
    },
}


def output(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def of_the_host() -> dict[str, Any]:
    """All that a node could have changed on the host, as far as nothing else changes it meanwhile."""
    sysctls = {name: Path("/proc/sys") / name for name in SYSCTLS}
    return {
        "interfaces": output("ip", "-brief", "link"),
        "routes": output("ip", "route", "show", "table", "all"),
        # Without the comments, which have the time of day, and the counters.
        "firewall": [line.split(" [")[0] for line in output("iptables-save") if not line.startswith("#")],
        "mounts": sorted(Path("/proc/self/mounts").read_text().splitlines()),
        "sysctls": {name: file.read_text() for name, file in sysctls.items() if file.exists()},
        "folders": {folder: os.path.exists(folder) for folder in FOLDERS},
    }


def processes_in(pid_namespace: str) -> list[str]:
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(each / "ns" / "pid") == pid_namespace:
                found.append((each / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it ended meanwhile
            continue
    return found


@contextmanager
def host_unchanged(directory: Path) -> Iterator[None]:
    """Inside, a cluster comes up in `directory` and goes. Other clusters may do the same meanwhile."""
    before = of_the_host()
    yield
    assert of_the_host() == before
    assert footprints_of(directory) == []


def footprints_of(directory: Path) -> list[str]:
    """The control groups of the cluster in a folder, as written down for whoever comes next."""
    found = []
    for file in leftovers.RECORDS.glob("*.json"):
        footprint = json.loads(file.read_text())
        if footprint["directory"] == str(directory.resolve()):
            found.append(footprint["cgroup"])
    return found


def groups_on_the_host(name: str) -> list[Path]:
    return [*cgroups.MOUNTS.glob(name), *cgroups.MOUNTS.glob(f"*/{name}")]


def pid_namespace_of(directory: Path) -> str:
    """The process ids of a cluster's first machine: also containers', which live in namespaces below."""
    record = Record.load(directory)
    assert record is not None
    (machine,) = (each for each in record.components if each.name == "machine-node-1")
    return os.readlink(f"/proc/{machine.pid}/ns/pid")


@pytest.mark.usefixtures("nodes_possible")
def test_up_and_down_by_the_command_line_leave_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "WHERRY_STATE": str(tmp_path / "state")}

    def run(*arguments: str, input: str = "") -> str:
        command = [sys.executable, "-m", "tests.cluster", *arguments]
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, input=input, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    directory = tmp_path / "state" / "clusters" / "cli"
    with host_unchanged(directory):
        run("up", "--name", "cli", "--provider", "node")
        namespace = pid_namespace_of(directory)
        (cgroup,) = footprints_of(directory)
        assert groups_on_the_host(cgroup)
        run("kubectl", "--name", "cli", "create", "--filename=-", input=json.dumps(POD))
        run("kubectl", "--name", "cli", "wait", "--for=condition=Ready", "pod/lives", "--timeout=60s")
        assert "(node): running" in run("status", "--name", "cli")
        assert any("containerd-shim" in each for each in processes_in(namespace))
        run("down", "--name", "cli")
        assert processes_in(namespace) == []
    assert groups_on_the_host(cgroup) == []
    assert not (tmp_path / "state").exists()


@pytest.mark.usefixtures("nodes_possible")
def test_after_a_killed_owner_no_process_is_left_and_the_next_sweeps_the_rest(tmp_path: Path) -> None:
    script = """
        import json, sys, time
        from pathlib import Path
        from tests.cluster.node import NodeCluster
        cluster = NodeCluster(Path(sys.argv[1]), nodes=2)
        cluster.up()
        cluster.apply(sys.stdin.read())
        cluster.kubectl("wait", "--for=condition=Ready", "pod/lives", "--timeout=60s")
        print(cluster.cgroup, flush=True)
        time.sleep(3600)
    """
    directory = tmp_path / "cluster"
    with host_unchanged(directory):
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), str(directory)],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as owner:
            try:
                assert owner.stdin is not None and owner.stdout is not None
                owner.stdin.write(json.dumps(POD))
                owner.stdin.close()
                cgroup = owner.stdout.readline().strip()
                assert cgroup, "it did not come up"
                namespace = pid_namespace_of(directory)
                assert cgroups.processes(cgroup)
            finally:
                owner.send_signal(signal.SIGKILL)
        assert wait_for(lambda: not processes_in(namespace), timeout_seconds=PATIENCE_SECONDS)
        assert wait_for(lambda: not cgroups.processes(cgroup), timeout_seconds=PATIENCE_SECONDS)
        leftovers.sweep()  # as the next cluster does, and another may have done already
    assert groups_on_the_host(cgroup) == []
    assert not directory.exists()


@pytest.mark.usefixtures("nodes_possible")
def test_a_failed_start_leaves_only_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodeparts, "kubelet", lambda _, binaries: [str(binaries / "kubelet"), "--no-such-flag"])
    cluster = NodeCluster(tmp_path / "cluster")
    with host_unchanged(cluster.directory), pytest.raises(ProcessFailed, match="unknown flag") as caught:
        cluster.up()
    assert caught.value.log.exists()
    assert [each.name for each in cluster.directory.iterdir()] == ["logs"]


@pytest.mark.usefixtures("nodes_possible")
def test_what_runs_in_a_machine_gets_signals_and_ends_with_it(node_cluster: NodeCluster, tmp_path: Path) -> None:
    (machine,) = node_cluster.machines.values()
    gentle = machine.spawn(
        "gentle", ["sh", "-c", "trap 'exit 7' TERM; echo up; while :; do sleep 0.1; done"], log=tmp_path / "log"
    )
    gentle.wait_until(lambda: "up" in gentle.tail(), what="up", timeout_seconds=PATIENCE_SECONDS)
    assert gentle.stop() == 7
    sleeps = machine.spawn("sleeps", ["sleep", "3600"], log=tmp_path / "log2")
    assert wait_for(lambda: _has_child(sleeps.pid), timeout_seconds=PATIENCE_SECONDS)
    child = child_of(sleeps.pid)
    sleeps.kill()
    assert wait_for(lambda: not Path(f"/proc/{child}").exists(), timeout_seconds=PATIENCE_SECONDS)


def _has_child(pid: int) -> bool:
    return bool(Path(f"/proc/{pid}/task/{pid}/children").read_text())
