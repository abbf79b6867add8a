"""How a container Pod performs here: what Wherry's Pods are measured against.

    make bench-containers                  print a table
    make bench-containers ARGS=--record    and write it to bench/container_pods.json

A cluster with one real node (`tests.cluster.node`, so root) runs Pods of one container that prints a line and sleeps: the
least that a container can be. Nothing is compared with a limit here, and no image is pulled while the clock runs.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import platform
import queue
import socket
import ssl
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.cluster import build, cgroups
from tests.cluster.errors import ClusterError
from tests.cluster.images import base
from tests.cluster.node import NodeCluster
from tests.cluster.progress import Progress

RECORD = Path(__file__).with_suffix(".json")

NAMESPACE = "bench"

TIMEOUT_SECONDS = 120.0
"""For anything that is waited for: far more than it takes."""

CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "coredns", "metrics-server")

MIB = 1 << 20


class Api:
    """The API server over one connection at a time, as kubectl would be too slow for a stopwatch."""

    def __init__(self, cluster: NodeCluster) -> None:
        assert cluster.pki is not None
        self._cluster = cluster
        admin = cluster.pki.issue("bench", ["system:masters"], client=True)
        self._context = ssl.create_default_context(cafile=str(cluster.ca_file))
        self._context.load_cert_chain(admin.cert, admin.key)

    def connection(self) -> http.client.HTTPSConnection:
        """Return a new connection."""
        parts = urlsplit(self._cluster.server)
        assert parts.hostname is not None and parts.port is not None
        made = http.client.HTTPSConnection(parts.hostname, parts.port)
        plain = self._cluster.connect((parts.hostname, parts.port), TIMEOUT_SECONDS)
        # As http.client does it when it connects by itself: else a body waits for the answer to its head, 40 ms.
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.sock = self._context.wrap_socket(plain, server_hostname=parts.hostname)
        return made

    @staticmethod
    def ask(
        connection: http.client.HTTPConnection, method: str, path: str, body: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Make a request, and return the object that answers it."""
        text = None if body is None else json.dumps(body)
        connection.request(method, path, body=text, headers={"Content-Type": "application/json"})
        response = connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
        if response.status >= 400:
            raise ClusterError(f"{method} {path}: {answer.get('message')}")
        return answer

    @contextlib.contextmanager
    def lines(self, path: str) -> Iterator[http.client.HTTPResponse]:
        """Read an answer that doesn't end: a watch, a followed log."""
        connection = self.connection()
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            if response.status != 200:
                raise ClusterError(f"GET {path}: {response.read().decode()}")
            yield response
        finally:
            connection.close()


PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"


class Running:
    """A watch that notes when each object, a Pod if nothing else is said, is first seen Running, and when it is gone."""

    def __init__(self, api: Api, path: str = PODS) -> None:
        self.seen: dict[str, float] = {}
        self.gone: set[str] = set()
        self._news: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._trouble = ""
        self._api, self._path = api, path
        threading.Thread(target=self._watch, daemon=True).start()
        self._news.get(timeout=TIMEOUT_SECONDS)

    def wait(self, condition: Callable[[], bool], *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        """Wait until what the watch says fulfils a condition."""
        deadline = time.monotonic() + timeout_seconds
        while not condition():
            with contextlib.suppress(queue.Empty):
                self._news.get(timeout=max(0.0, deadline - time.monotonic()))
            if self._trouble:
                raise ClusterError(self._trouble)
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"not in {timeout_seconds:.0f} s; {len(self.seen)} run, such as {sorted(self.seen)[:10]}"
                )

    def _watch(self) -> None:
        version = ""
        try:
            while True:  # the API server ends a watch whose reader is slow, among thousands of objects
                version = self._follow(version)
        except (OSError, http.client.HTTPException, ClusterError) as error:  # at the end: the API server is gone
            self._trouble = f"the watch of {self._path} failed: {error}"
            self._news.put("")

    def _follow(self, version: str) -> str:
        """Read one stream to its end, and return the version up to which all was seen."""
        # A bookmark comes once a minute: however little happens, the connection is never silent for too long.
        query = f"watch=1&allowWatchBookmarks=true&resourceVersion={version}"
        with self._api.lines(f"{self._path}?{query}") as lines:
            self._news.put("")
            for line in lines:
                now = time.monotonic()
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise ClusterError(event["object"].get("message", ""))
                version = event["object"]["metadata"]["resourceVersion"]
                if event["type"] == "BOOKMARK":
                    continue
                name = event["object"]["metadata"]["name"]
                if event["type"] == "DELETED":
                    self.gone.add(name)
                elif event["object"].get("status", {}).get("phase") == "Running":
                    self.seen.setdefault(name, now)
                self._news.put(name)
        return version


def make_namespace(cluster: NodeCluster) -> None:
    """Make the namespace of all Pods that are measured."""
    cluster.kubectl("create", "namespace", NAMESPACE)
    cluster.kubectl("wait", "--for=create", "serviceaccount/default", f"--namespace={NAMESPACE}", "--timeout=30s")


def pod(name: str, image: str) -> dict[str, Any]:
    """Return the Pod that is measured."""
    command = ["sh", "-c", "echo ready; exec sleep 1000000"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "containers": [{"name": "main", "image": image, "command": command}],
        },
    }


def start(api: Api, running: Running, body: dict[str, Any], *, log_query: str = "follow=true") -> tuple[float, float]:
    """Start a Pod that prints a line, and delete it; seconds from POST to Running, and to the first log line."""
    name = body["metadata"]["name"]
    with contextlib.closing(api.connection()) as connection:
        begin = time.monotonic()
        api.ask(connection, "POST", PODS, body)
        running.wait(lambda: name in running.seen)
        with api.lines(f"{PODS}/{name}/log?{log_query}") as lines:
            assert lines.readline() == b"ready\n"
            log = time.monotonic() - begin
        api.ask(connection, "DELETE", f"{PODS}/{name}")
        running.wait(lambda: name in running.gone)
    return running.seen[name] - begin, log


def starts(api: Api, running: Running, image: str, count: int) -> dict[str, list[float]]:
    """Start Pods one after the other; seconds as of `start`."""
    taken: dict[str, list[float]] = {"running": [], "log": []}
    for number in range(count):
        seconds, log = start(api, running, pod(f"one-{number}", image))
        taken["running"].append(seconds)
        taken["log"].append(log)
    return taken


def burst(cluster: NodeCluster, api: Api, running: Running, image: str, count: int) -> dict[str, float]:
    """Start Pods as fast as they can be posted; the rate, and what they cost."""
    account = Account(cluster)
    available = mem_available()
    before = account.cpu_seconds()
    connection = api.connection()
    names = [f"burst-{number}" for number in range(count)]
    begin = time.monotonic()
    for name in names:
        api.ask(connection, "POST", PODS, pod(name, image))
    posted = time.monotonic()
    running.wait(lambda: all(name in running.seen for name in names))
    after = account.cpu_seconds()
    connection.close()
    ends = max(running.seen[name] for name in names)
    memory = account.memory()
    fallen = available - mem_available()
    return {
        "post_seconds": posted - begin,
        "seconds": ends - begin,
        "pods_per_second": count / (ends - begin),
        "cpu_seconds_per_pod_node": (after["node"] - before["node"]) / count,
        "cpu_seconds_per_pod_control_plane": (after["control"] - before["control"]) / count,
        **{f"pss_mib_{kind}": value / count / MIB for kind, value in memory.items()},
        "pss_mib_in_all": sum(memory.values()) / count / MIB,
        "mem_available_fall_mib": fallen / count / MIB,
    }


class Account:
    """Charges every process of the cluster to one of two control groups, whatever it starts meanwhile."""

    def __init__(self, cluster: NodeCluster) -> None:
        self._cluster = cluster
        (machine,) = cluster.machines.values()
        self._namespace = os.readlink(f"/proc/{machine.pid}/ns/pid")
        controls = {cluster.pid(name) for name in CONTROL_PLANE}
        for kind in ("control", "rest"):
            self._top(kind).mkdir(exist_ok=True)
        for pid in self._processes() - cgroups.processes(f"{cluster.cgroup}/node-1"):
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                (self._top("control" if pid in controls else "rest") / "cgroup.procs").write_text(str(pid))

    def cpu_seconds(self) -> dict[str, float]:
        """Return the CPU time so far: of the control plane, and of all that is on the node, containers included."""
        return {
            "control": usage_seconds(self._top("control")),
            "node": usage_seconds(self._top("rest")) + usage_seconds(self._top("node-1")),
        }

    def memory(self) -> dict[str, float]:
        """Return the proportional set sizes, in bytes, of the Pods' processes by kind."""
        sizes = {"process": 0.0, "pause": 0.0, "shim": 0.0}
        pods = cgroups.processes(f"{self._cluster.cgroup}/node-1")
        for pid in pods | self._processes():
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if b"containerd-shim" in command[0]:
                    sizes["shim"] += pss(pid)
                elif pid in pods:
                    sizes["pause" if command[0] == b"/pause" else "process"] += pss(pid)
        return sizes

    def _top(self, kind: str) -> Path:
        top = cgroups.MOUNTS if cgroups.unified() else cgroups.MOUNTS / "cpuacct"
        return top / self._cluster.cgroup / kind

    def _processes(self) -> set[int]:
        found = set()
        for each in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(each / "ns" / "pid") == self._namespace:
                    found.add(int(each.name))
        return found


def usage_seconds(group: Path) -> float:
    """Return the CPU time of a control group and all below it."""
    if cgroups.unified():
        fields = dict(line.split() for line in (group / "cpu.stat").read_text().splitlines())
        return int(fields["usage_usec"]) / 1e6
    return int((group / "cpuacct.usage").read_text()) / 1e9


def pss(pid: int) -> int:
    """Return a process's proportional set size in bytes."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def mem_available() -> float:
    """Return what the kernel calls available, in bytes: the median of some seconds, for others run beside us."""
    readings = []
    for _ in range(20):
        fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        readings.append(int(fields["MemAvailable"].split()[0]) * 1024)
        time.sleep(0.2)
    return statistics.median(readings)


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Return the median and the 95th percentile."""
    return {"p50": statistics.median(seconds), "p95": statistics.quantiles(seconds, n=20, method="inclusive")[18]}


def measure(count: int, burst_count: int, progress: Progress) -> dict[str, Any]:
    """Bring up a cluster, and measure Pods on it."""
    image_layout = base.layout(progress)
    with NodeCluster(Path(tempfile.mkdtemp(prefix="wherry-bench-")), progress=progress) as cluster:
        image = cluster.push(image_layout, "base:1")
        make_namespace(cluster)
        api = Api(cluster)
        running = Running(api)
        progress.step("pulling the image, warming up")
        starts(api, running, image, 2)
        load = os.getloadavg()[0]
        progress.step(f"{count} Pods, one after the other")
        running.seen.clear()
        running.gone.clear()
        taken = starts(api, running, image, count)
        progress.step(f"{burst_count} Pods at once")
        cost = burst(cluster, api, running, image, burst_count)
    return {
        "machine": {
            "cores": os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30), 1),
            "kernel": platform.release(),
            "kubernetes": build.KUBERNETES_VERSION,
            "load_before": round(load, 1),
        },
        "starts": {"pods": count, **{what: percentiles(values) for what, values in taken.items()}},
        "burst": {"pods": burst_count, **cost},
    }


def table(result: dict[str, Any]) -> str:
    """Return the result for people."""
    single, many = result["starts"], result["burst"]
    rows = [
        (
            "start, POST to Running seen by a watch",
            f"{single['running']['p50']:.2f} s",
            f"{single['running']['p95']:.2f} s",
        ),
        ("start, POST to first log line", f"{single['log']['p50']:.2f} s", f"{single['log']['p95']:.2f} s"),
        (f"burst of {many['pods']}, all Running after", f"{many['seconds']:.1f} s", ""),
        ("burst, Pods per second", f"{many['pods_per_second']:.2f}", ""),
        ("burst, CPU per Pod, on the node", f"{many['cpu_seconds_per_pod_node']:.3f} s", ""),
        ("burst, CPU per Pod, control plane", f"{many['cpu_seconds_per_pod_control_plane']:.3f} s", ""),
        ("memory per Pod, PSS: process", f"{many['pss_mib_process']:.2f} MiB", ""),
        ("memory per Pod, PSS: pause", f"{many['pss_mib_pause']:.2f} MiB", ""),
        ("memory per Pod, PSS: shim", f"{many['pss_mib_shim']:.2f} MiB", ""),
        ("memory per Pod, PSS in all", f"{many['pss_mib_in_all']:.2f} MiB", ""),
        ("memory per Pod, fall of MemAvailable", f"{many['mem_available_fall_mib']:.2f} MiB", ""),
    ]
    head = f"{'a container Pod':42} {'p50':>10} {'p95':>10}"
    return "\n".join([head, *(f"{what:42} {middle:>10} {high:>10}".rstrip() for what, middle, high in rows)])


def main() -> int:
    """Run the bench."""
    parser = argparse.ArgumentParser(prog="python -m bench.container_pods", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--starts", type=int, default=20, help="Pods started one after the other (default: %(default)s)"
    )
    parser.add_argument("--burst", type=int, default=50, help="Pods started at once (default: %(default)s)")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name}")
    options = parser.parse_args()
    try:
        result = measure(options.starts, options.burst, Progress())
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(result))
    if options.record:
        RECORD.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
