"""The chart on a real node, as its users and its administrators have it: the documentation's examples word for word, every
controller, upgrades under load, each part killed, what a guest can reach, and its end without an operator."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest

from tests.cluster.client import http_status
from tests.cluster.node import NodeCluster
from tests.cluster.processes import Process, wait_for
from tests.cluster.provider import kubectl_environment
from tests.guests import build
from tests.guests.servers import SERVER
from tests.node import reach
from tests.node.load import Objects, Requests
from tests.node.pods import PATIENCE, PATIENCE_SECONDS, Space
from tests.node.pods import pod as container_pod
from tests.node.release import SYSTEM, Release, installed, module_layout
from tests.support import executors, pages, wat
from tests.support.claims import claim
from tests.support.images import KRUSTLET
from tests.support.kube import pod, workload

Json = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]

MIRRORED = ("webassembly.azurecr.io", "registry.example")
"""The registries in the demos' manifests."""

EVERY_MINUTE = "* * * * *"

CRON_PATIENCE_SECONDS = 150.0
"""Two turns of it."""

NODE_DELETED_PATIENCE_SECONDS = 180.0
"""Kubernetes waits 40 s before it deletes the Pods of a node that is gone, and looks every 20 s."""


@pytest.fixture(scope="module")
def release(
    node_cluster: NodeCluster, operator_image: str, runner_image: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Release]:
    """With certificates that this API server verifies, and approved as docs/install.md says."""
    images = {"operator": operator_image, "runner": runner_image}
    mirrors = dict.fromkeys(MIRRORED, node_cluster.registry.url)
    values = {
        "certificates": {"kubelet": "csr"},
        # A guest can't be asked to end, and on one node nobody is led elsewhere: each stop of a runner would take all of it.
        "runner": {"registries": {"mirrors": mirrors}, "leaveSeconds": 1, "terminationGraceSeconds": 1},
    }
    with installed(node_cluster, images, tmp_path_factory.mktemp("helm"), values) as running:
        reachable(running)
        yield running


def reachable(release: Release) -> None:
    """Wait until the API server reaches the virtual node, of whichever operator it is now."""

    def answers() -> bool:
        release.approve()
        path = "/api/v1/nodes/wherry/proxy/metrics/resource"
        # One that is on its way out answers too, and its successor may still want its certificate approved.
        return release.settled() and release.cluster.kubectl("get", "--raw", path, check=False).returncode == 0

    assert wait_for(answers, timeout_seconds=PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def image(release: Release, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A module that prints a line and sleeps."""
    return release.cluster.push(module_layout(wat.sleeps(), tmp_path_factory.mktemp("module")), "sleeps:1")


@pytest.fixture(scope="module")
def cron(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    """A namespace with a CronJob of a module, which has all of this file's time to come round."""
    once = release.cluster.push(module_layout(wat.exits(0), tmp_path_factory.mktemp("module")), "ends:1")
    space = Space(release.cluster, "cron")
    release.cluster.kubectl("create", "namespace", space.namespace)
    job = {"template": {"spec": {**pod("-", once)["spec"], "restartPolicy": "Never"}}}
    spec = {"schedule": EVERY_MINUTE, "jobTemplate": {"spec": job}}
    space.create({"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "minutes"}, "spec": spec})
    yield space
    release.cluster.kubectl("delete", "namespace", space.namespace, "--wait=false")


# --- what the documentation says --------------------------------------------------------------------------------------


LOOKS = ("kubectl get", "kubectl logs", "kubectl wherry logs", "curl")
"""How commands begin that change nothing."""


class Reader:
    """Somebody who types what a page says, with the cluster's kubectl and our plugin on PATH. What they leave in the background
    ends with them."""

    def __init__(self, cluster: NodeCluster, folder: Path) -> None:
        self._folder, self._printed = folder, ""
        self._background: list[subprocess.Popen[bytes]] = []
        programs = [cluster.directory / "bin", ROOT / ".venv" / "bin"]
        self._environment = {
            **kubectl_environment(),
            "KUBECONFIG": str(cluster.kubeconfig),
            "PATH": os.pathsep.join([*map(str, programs), os.environ["PATH"]]),
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._background:
            os.killpg(each.pid, signal.SIGKILL)
            each.wait()

    def follow(self, commands: list[pages.Command]) -> None:
        """Type each command; one that only looks is typed again until it shows what the page says."""
        for command in commands:
            if command.text.endswith(" &"):
                self._leave(command.text.removesuffix(" &"))
                continue
            right = partial(self._right, command)
            looks = command.text.startswith(LOOKS)
            assert wait_for(right, timeout_seconds=PATIENCE_SECONDS if looks else 0), self._printed

    def _right(self, command: pages.Command) -> bool:
        done = self._type(command.text)
        self._printed = f"$ {command.text}\n{done.stdout}"
        return done.returncode == 0 and command.shows(done.stdout)

    def _leave(self, text: str) -> None:
        null = subprocess.DEVNULL
        self._background.append(
            subprocess.Popen(
                ["bash", "-euc", f"exec {text}"],
                cwd=self._folder,
                env=self._environment,
                stdin=null,
                stdout=null,
                stderr=null,
                start_new_session=True,
            )
        )

    def _type(self, text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=150,
            check=False,
        )


@pytest.mark.parametrize(
    ("demo", "deletes"),
    [
        ("hello-world-rust", ["pod/hello-world-wasi-rust", "configmap/hello-world-wasi-rust"]),
        ("hello-world-c", ["ww/hello-world-c", "ww/hello-inline"]),
    ],
)
def test_a_demo_does_what_its_page_says(release: Release, demo: str, deletes: list[str], tmp_path: Path) -> None:
    folder = ROOT / "demos" / demo
    module = (folder / "hello.wasm").read_bytes()
    name, types = ("hello-world-wasi-rust:v0.2.0", KRUSTLET) if "rust" in demo else ("demos/hello-world-c:v1", None)
    release.cluster.push(module_layout(module, tmp_path, *([types] if types else [])), name)
    page = (folder / "README.md").read_text().partition("\n## The module\n")[0]
    try:
        with Reader(release.cluster, folder) as reader:
            reader.follow(pages.commands(page))
    finally:
        release.cluster.kubectl("delete", *deletes, "--ignore-not-found")


def test_a_module_of_ones_own_as_the_readme_has_it(release: Release, tmp_path: Path) -> None:
    text = pages.section(ROOT / "README.md", "Run your own module")
    (program, *_) = pages.examples(text, "c")
    (tmp_path / "hello.c").write_text(program)
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    typed = [each for each in pages.commands(text) if not each.text.startswith(("oras", "rustup", "cargo"))]
    try:
        with Reader(release.cluster, tmp_path) as reader:
            reader.follow(typed)
    finally:
        release.cluster.kubectl(
            "delete", "ww/mine", "configmap/hello", "rolebinding/wherry-references", "--ignore-not-found"
        )


SERVING_DEMOS = {
    "http-python": ["pod/greeter", "service/greeter", "deployment/visitor"],
    "allowed-hosts": ["ww/caller"],
    "http-javascript": ["ww/relay"],
}
"""With what each makes. The first is asked by the others."""

COMPILING_SECONDS = 300
"""For three components that each take a quarter of a minute of two cores."""

BUILDS = ("pip ", "componentize-py ", "npm ", "npx ", "kubectl wherry push ")
"""How commands begin that a test has done before."""

NO_WGET = (
    "image: busybox:1.37",
    "wget -qO- 'http://greeter/greet?name=visitor'",
    """python3 -uc 'import urllib.request as u; print(u.urlopen(\"http://greeter/greet?name=visitor\").read().decode())'""",
)
"""Of the container beside the server: its image, which no registry here has, its command, and one that does the same in ours."""


def test_servers_beside_a_container_and_among_themselves_do_what_their_pages_say(
    release: Release, node_space: Space, base_image: str, tmp_path: Path
) -> None:
    npm, curl = shutil.which("npm"), shutil.which("curl")
    if npm is None or curl is None:
        pytest.skip("npm or curl is missing, by which a demo is made and which the pages type")
    release.cluster.program("curl", Path(curl))
    components = {
        "http-python": build.python_in(ROOT / "demos" / "http-python", "app", world="app"),
        "allowed-hosts": build.python_in(ROOT / "demos" / "allowed-hosts", "app", world="program"),
        "http-javascript": build.javascript_in(ROOT / "demos" / "http-javascript", "app", world="app"),
    }
    for name, component in components.items():
        release.cluster.push(module_layout(component, tmp_path / f"module-{name}"), f"demos/{name}:v1")
        # Compiled ahead: `kubectl wait` has half a minute.
        image = f"registry.example/demos/{name}:v1"
        node_space.create(workload(name, module={"image": image}, **({"http": {}} if "http" in name else {})))
    image, command, instead = NO_WGET
    for name in components:
        compiled = ["wait", "--for=condition=Ready", f"ww/{name}", f"--timeout={COMPILING_SECONDS}s"]
        release.cluster.kubectl(f"--namespace={node_space.namespace}", *compiled, timeout=COMPILING_SECONDS + 10)
        shutil.copytree(ROOT / "demos" / name, tmp_path / name)
    beside = tmp_path / "http-python" / "beside.yaml"
    beside.write_text(beside.read_text().replace(image, f"image: {base_image}").replace(command, instead))
    try:
        for name in SERVING_DEMOS:
            commands = pages.commands((tmp_path / name / "README.md").read_text())
            with Reader(release.cluster, tmp_path / name) as reader:
                reader.follow([each for each in commands if not each.text.startswith(BUILDS)])
    finally:
        made = [each for names in SERVING_DEMOS.values() for each in names]
        release.cluster.kubectl("delete", *made, "--ignore-not-found", "--timeout=60s", timeout=120)


# --- beside containers, under every controller ------------------------------------------------------------------------


AT_ONCE: Json = {"terminationGracePeriodSeconds": 0}
"""A guest can't be asked to end: without this, deleting takes half a minute."""


def of_pods(api: str, kind: str, template: Json, **spec: Any) -> Json:
    """A controller of Pods."""
    name = template["metadata"]["name"]
    labels = {"app": name}
    if kind != "Job":
        spec["selector"] = {"matchLabels": labels}
    return {
        "apiVersion": api,
        "kind": kind,
        "metadata": {"name": name},
        "spec": {**spec, "template": {"metadata": {"labels": labels}, "spec": template["spec"]}},
    }


def test_modules_and_containers_side_by_side_under_every_controller(
    release: Release, node_space: Space, cron: Space, image: str, base_image: str, tmp_path: Path
) -> None:
    space = node_space
    ends = release.cluster.push(module_layout(wat.exits(0), tmp_path), "ends:1")
    space.create(
        of_pods("apps/v1", "Deployment", pod("modules", image, spec=AT_ONCE), replicas=3),
        of_pods("apps/v1", "Deployment", container_pod("containers", base_image, ["sleep", "3600"]), replicas=2),
        of_pods("apps/v1", "StatefulSet", pod("ordered", image, spec=AT_ONCE), replicas=2, serviceName="ordered"),
        of_pods("batch/v1", "Job", pod("job", ends, spec={"restartPolicy": "Never"}), completions=3, parallelism=2),
    )
    for each in ("deployment/modules", "deployment/containers", "statefulset/ordered"):
        space.kubectl("rollout", "status", each, f"--timeout={PATIENCE}")
    space.wait("job/job", "condition=Complete")

    def where(app: str) -> list[tuple[str, str]]:
        found = json.loads(space.kubectl("get", "pods", "-l", f"app={app}", "-o", "json").stdout)["items"]
        return sorted((each["metadata"]["name"], each["spec"]["nodeName"]) for each in found)

    assert [node for _, node in where("modules")] == ["wherry"] * 3
    assert [node for _, node in where("containers")] == [release.node] * 2
    assert where("ordered") == [("ordered-0", "wherry"), ("ordered-1", "wherry")]
    assert [node for _, node in where("job")] == ["wherry"] * 3

    before = {name for name, _ in where("modules")}
    first = space.kubectl("get", "pod", "ordered-0", "-o", "jsonpath={.metadata.uid}").stdout
    space.kubectl("rollout", "restart", "deployment/modules")
    space.kubectl("delete", "pod", "ordered-0", "--timeout=60s")
    space.kubectl("rollout", "status", "deployment/modules", f"--timeout={PATIENCE}")
    space.wait("statefulset/ordered", "jsonpath={.status.readyReplicas}=2")
    assert wait_for(lambda: not before & {name for name, _ in where("modules")}, timeout_seconds=PATIENCE_SECONDS)
    assert space.kubectl("get", "pod", "ordered-0", "-o", "jsonpath={.metadata.uid}").stdout != first


def test_what_kubectl_asks_of_a_node_works(release: Release, node_space: Space, tmp_path: Path) -> None:
    space, cluster = node_space, release.cluster
    modules = {"busy": wat.spins(), "talks": wat.echoes(), "web": SERVER}
    images = {name: cluster.push(module_layout(text, tmp_path / name), f"{name}:1") for name, text in modules.items()}
    busy = pod("busy", images["busy"], spec=AT_ONCE, resources={"limits": {"cpu": "200m"}})
    talks = pod("talks", images["talks"], stdin=True, stdinOnce=True, spec={"restartPolicy": "Never"})
    space.create(busy, talks, pod("web", images["web"], spec=AT_ONCE, ports=[{"containerPort": 8080}]))
    for name in modules:
        space.wait(f"pod/{name}", "jsonpath={.status.phase}=Running")

    assert wait_for(lambda: logged(space, "busy") == "spinning\n", timeout_seconds=PATIENCE_SECONDS)
    assert wait_for(lambda: logged(space, "talks") == "ready\n", timeout_seconds=PATIENCE_SECONDS)
    in_space = f"--namespace={space.namespace}"
    attached = cluster.kubectl("attach", "-i", "talks", in_space, input="one\ntwo\n", timeout=120)
    assert attached.stdout == "ready\none\ntwo\n"
    space.wait("pod/talks", "jsonpath={.status.phase}=Succeeded")

    where: list[str | Path] = [cluster.kubectl_program(), f"--kubeconfig={cluster.kubeconfig}", in_space]
    command = [*where, "port-forward", "pod/web", ":8080", "--address=127.0.0.1"]
    forward = Process.start("port-forward", command, log=tmp_path / "log")
    try:
        forward.wait_until(lambda: " -> 8080" in forward.tail(), what="forwarding", timeout_seconds=PATIENCE_SECONDS)
        port = int(forward.tail().split(" -> 8080")[0].rpartition(":")[2])
        assert http_status(cluster.connect, "127.0.0.1", port, "/") == 200
    finally:
        forward.stop()

    if cluster.provider == "kind":
        return  # it brings no metrics-server; make e2e CLUSTER=kind says so

    def top(*what: str) -> list[str]:
        return space.kubectl("top", *what, "--no-headers", check=False).stdout.split()

    # metrics-server has figures after its second look.
    assert wait_for(lambda: top("pod", "busy")[1:2] not in ([], ["0m"]), timeout_seconds=PATIENCE_SECONDS)
    assert 50 <= int(top("pod", "busy")[1].removesuffix("m")) <= 400
    assert wait_for(lambda: top("node", "wherry")[:1] == ["wherry"], timeout_seconds=PATIENCE_SECONDS)


def logged(space: Space, name: str) -> str:
    """A Pod's log."""
    return space.kubectl("logs", name, check=False).stdout


# --- upgrades under load ----------------------------------------------------------------------------------------------


def counts(space: Space) -> dict[str, int]:
    """How often each container of a Pod, and each instance of a WasmWorkload, was started again."""
    items = json.loads(space.kubectl("get", "pods,ww", "-o", "json").stdout)["items"]
    found: dict[str, int] = {}
    for item in items:
        name, status = f"{item['kind']}/{item['metadata']['name']}", item["status"]
        if item["kind"] == "Pod":
            found[name] = status["containerStatuses"][0]["restartCount"]
        else:
            found[name] = sum(each.get("restarts", 0) for each in status.get("instances") or [])
    return found


STAYS = ("Pod/beside", "Pod/stays", "WasmWorkload/stays")


@pytest.fixture
def stays(node_space: Space, image: str, base_image: str) -> Space:
    """A namespace with a module's Pod, a WasmWorkload and a container's Pod that run."""
    node_space.create(
        workload("stays", module={"inline": wat.sleeps()}),
        pod("stays", image, spec=AT_ONCE),
        container_pod("beside", base_image, ["sleep", "3600"]),
    )
    all_run(node_space)
    assert counts(node_space) == dict.fromkeys(STAYS, 0)
    return node_space


def all_run(space: Space) -> None:
    """Wait until what `stays` made runs."""
    space.wait("ww/stays", "condition=Ready")
    space.wait("pod/stays", "condition=Ready")
    space.wait("pod/beside", "condition=Ready")


def test_an_upgrade_of_the_operator_under_load_costs_no_request_and_no_object(
    release: Release, stays: Space, tmp_path: Path
) -> None:
    web = pod(
        "web",
        release.cluster.push(module_layout(SERVER, tmp_path), "web:1"),
        spec=AT_ONCE,
        ports=[{"containerPort": 8081}],
    )
    web["metadata"]["labels"] = {"app": "web"}
    spec = {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8081}]}
    stays.create(web, {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": spec})
    stays.wait("pod/web", "condition=Ready")
    service = release.cluster.get("service", "web", stays.namespace)
    assert service is not None
    address = service["spec"]["clusterIP"]
    first = Requests(release.cluster, (address, 80))
    # A Service's rules come a moment after its Pods.
    assert wait_for(first.succeeds, timeout_seconds=PATIENCE_SECONDS), first.failed
    with Requests(release.cluster, (address, 80)) as requests, Objects(stays) as objects:
        release.upgrade("operator", logLevel="DEBUG")
    reachable(release)
    assert requests.answered > 0
    assert requests.failed == []
    assert objects.all_run(), objects.states()
    assert {name: counts(stays)[name] for name in (*STAYS, "Pod/web")} == dict.fromkeys((*STAYS, "Pod/web"), 0)


def test_an_upgrade_of_the_runners_under_load_loses_no_object(release: Release, stays: Space) -> None:
    """The only runner: what it has begins again, and what is made meanwhile waits for it."""
    with Objects(stays) as objects:
        release.upgrade("runner", logLevel="DEBUG")
    wanted = {"Pod/beside": 0, "Pod/stays": 1, "WasmWorkload/stays": 1}
    assert wait_for(
        lambda: {name: counts(stays)[name] for name in STAYS} == wanted, timeout_seconds=PATIENCE_SECONDS
    ), counts(stays)
    all_run(stays)
    assert objects.all_run(), objects.states()


def test_a_claim_that_the_chart_mounts_is_a_volume_of_a_pod(
    release: Release, node_space: Space, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("claim")
    folder.chmod(0o777)
    (folder / "file").write_text("of the claim")
    # The runners mount the one, and the scheduler wants to see the other.
    objects = [*claim("guests", SYSTEM, folder), *claim("data", node_space.namespace, folder)]
    tool = release.cluster.push(module_layout(build.c("tool"), tmp_path_factory.mktemp("module")), "tool:1")
    mounted: Json = {
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}],
        "restartPolicy": "Never",
    }
    at: Json = {"volumeMounts": [{"name": "v", "mountPath": "/data"}]}
    try:
        for each in objects:
            release.cluster.kubectl("apply", "-f", "-", input=json.dumps(each))
        release.upgrade("runner", claims=[{"namespace": node_space.namespace, "name": "data", "claim": "guests"}])
        reachable(release)
        node_space.create(
            pod("reads", tool, args=["read", "/data/file"], spec=mounted, **at),
            pod("writes", tool, args=["create", "/data/made", "by a module"], spec=mounted, **at),
        )
        for name in ("reads", "writes"):
            node_space.wait(f"pod/{name}", "jsonpath={.status.phase}=Succeeded")
        assert logged(node_space, "reads").strip() == "of the claim"
        assert (folder / "made").read_text() == "by a module"
    finally:
        release.upgrade("runner", claims=[])
        reachable(release)
        for each in objects[::2]:
            release.cluster.kubectl("delete", "persistentvolume", each["metadata"]["name"], "--wait=false", check=False)
        release.cluster.kubectl("delete", "persistentvolumeclaim", "guests", "-n", SYSTEM, check=False)


# --- each part killed -------------------------------------------------------------------------------------------------


def kill_leader(release: Release) -> None:
    """SIGKILL for the operator that leads. Whoever is first leads then: it, again, or the other."""
    lease = release.cluster.get("lease", "wherry-operator-wherry", SYSTEM)
    assert lease is not None
    leader = lease["spec"]["holderIdentity"]
    (killed,) = (each for each in release.pods("operator") if each["metadata"]["name"] == leader)
    kill(release, killed)
    reachable(release)


def kill_component(part: str) -> Callable[[Release], None]:
    """SIGKILL for a part of the node, which is then started again, as systemd would."""

    def kills(release: Release) -> None:
        component = f"{part}-{release.node}"
        release.cluster.stop_component(component, kill=True)
        release.cluster.start_component(component)

    return kills


def kill(release: Release, of: Json) -> None:
    """SIGKILL for the first process of a Pod's container; the kubelet starts it again."""
    (status,) = of["status"]["containerStatuses"]
    container = status["containerID"].rpartition("/")[2]

    def first(process: Path) -> bool:
        try:
            numbers = next(line for line in (process / "status").read_text().splitlines() if line.startswith("NSpid:"))
            return container in (process / "cgroup").read_text() and numbers.split()[-1] == "1"
        except (FileNotFoundError, ProcessLookupError):
            return False

    (found,) = filter(first, Path("/proc").glob("[0-9]*"))
    os.kill(int(found.name), signal.SIGKILL)
    name = of["metadata"]["name"]

    def restarted() -> bool:
        body = release.cluster.get("pod", name, SYSTEM) or {}
        (now,) = body["status"]["containerStatuses"]
        return bool(now["restartCount"] > status["restartCount"] and now["ready"])

    assert wait_for(restarted, timeout_seconds=PATIENCE_SECONDS)


KILLS: dict[str, Callable[[Release], None]] = {
    "operator": kill_leader,
    "kubelet": kill_component("kubelet"),
    "containerd": kill_component("containerd"),
}


@pytest.mark.parametrize("part", KILLS)
def test_guests_and_containers_outlive(release: Release, stays: Space, image: str, base_image: str, part: str) -> None:
    KILLS[part](release)
    stays.create(
        workload("after", module={"inline": wat.sleeps()}),
        pod("after", image, spec=AT_ONCE),
        container_pod("after-beside", base_image, ["sleep", "3600"]),
    )
    stays.wait("ww/after", "condition=Ready")
    stays.wait("pod/after", "condition=Ready")
    stays.wait("pod/after-beside", "condition=Ready")
    all_run(stays)
    now = counts(stays)
    assert {name: now[name] for name in STAYS} == dict.fromkeys(STAYS, 0)
    assert stays.inside("beside", "echo", "here") == "here\n"


def test_a_killed_runner_brings_its_guests_back(release: Release, stays: Space) -> None:
    (runner,) = release.pods("runner")
    kill(release, runner)
    wanted = {"Pod/beside": 0, "Pod/stays": 1, "WasmWorkload/stays": 1}
    assert wait_for(lambda: counts(stays) == wanted, timeout_seconds=PATIENCE_SECONDS), counts(stays)
    all_run(stays)


# --- what a guest can reach -------------------------------------------------------------------------------------------


def test_a_guest_reaches_no_file_of_its_runner(release: Release, node_space: Space, tmp_path: Path) -> None:
    """By WASI: nothing is mounted, so no path leads anywhere."""
    tool = release.cluster.push(module_layout(build.c("tool"), tmp_path), "tool:1")
    paths = ("/certificates/tls.key", "../certificates/tls.key", "/proc/1/environ", "/run/wherry/secrets")
    looks = [
        pod(f"looks-{number}", tool, args=["read", path], spec={"restartPolicy": "Never"})
        for number, path in enumerate(paths)
    ]
    node_space.create(*looks)
    for each in looks:
        name = each["metadata"]["name"]
        node_space.wait(f"pod/{name}", "jsonpath={.status.phase}=Failed")
        assert "PRIVATE KEY" not in logged(node_space, name)


def test_who_came_through_the_wall_reaches_nothing_either(release: Release, node_space: Space) -> None:
    """Code in a guest's process, with the runner's real mounts and network; `tests/runner/test_confinement.py` shows that both
    executors close the same gates, and every other attempt."""
    if reason := executors.why_not("native"):
        pytest.skip(reason)
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "word"}, "stringData": {"word": "sesame"}}
    has_secret = workload(
        "neighbour",
        module={"inline": wat.sleeps()},
        volumes=[{"name": "secret", "secret": {"secretName": "word"}}],
        volumeMounts=[{"name": "secret", "mountPath": "/secret"}],
    )
    node_space.create(secret, has_secret)
    node_space.wait("ww/neighbour", "condition=Ready")
    (runner,) = release.pods("runner")
    name = runner["metadata"]["name"]
    script = Path(reach.__file__).read_text()
    where = ["exec", "-i", "-n", SYSTEM, name, "--", "python", "-"]
    told = json.loads(release.cluster.kubectl(*where, input=script).stdout)
    assert {each: outcomes["free"] for each, outcomes in told["attempts"].items()} == {
        "the runner's key": "ok",
        "a neighbour's Secret": "ok",
        "the journal": "ok",
        "the API server": "ok",
        "the runner's own port": "ok",
        "signal to a neighbour": "ok",
        "signal to the runner": "ok",
        "a neighbour's memory": "EACCES",
        "a service account's token": "ENOENT",
    }, "what nothing but the gates forbids"
    assert {each: outcomes["confined"] for each, outcomes in told["attempts"].items()} == {
        "the runner's key": "EACCES",
        "a neighbour's Secret": "EACCES",
        "the journal": "EACCES",
        "the API server": "EPERM",
        "the runner's own port": "EPERM",
        "signal to a neighbour": "EPERM",
        "signal to the runner": "EPERM",
        "a neighbour's memory": "EACCES",
        "a service account's token": "ENOENT",
    }
    for guest in told["guests"]:
        assert (guest["NoNewPrivs"], guest["Seccomp"], guest["CapEff"]) == ("1", "2", "0" * 16)
    assert told["guests"]


# --- the end ----------------------------------------------------------------------------------------------------------


def test_a_cronjob_of_a_module_has_come_round(cron: Space) -> None:
    def done() -> bool:
        jobs = json.loads(cron.kubectl("get", "jobs", "-o", "json").stdout)["items"]
        return any(each["status"].get("succeeded") == 1 for each in jobs)

    assert wait_for(done, timeout_seconds=CRON_PATIENCE_SECONDS), cron.kubectl("get", "jobs,pods,events").stdout


def test_without_an_operator_nothing_is_left_and_no_pod_hangs(release: Release, node_space: Space, image: str) -> None:
    """The last of this file: it removes what the others use."""
    space = node_space
    space.create(pod("stays", image, spec=AT_ONCE), workload("stays", module={"inline": wat.sleeps()}))
    space.wait("pod/stays", "condition=Ready")
    space.wait("ww/stays", "condition=Ready")
    release.cluster.kubectl("scale", "deployment/wherry-operator", "--replicas=0", "-n", SYSTEM)
    assert wait_for(lambda: not release.pods("operator"), timeout_seconds=PATIENCE_SECONDS)
    release.uninstall()

    def gone() -> bool:
        return not space.kubectl("get", "pods", "-o", "name").stdout

    assert wait_for(gone, timeout_seconds=NODE_DELETED_PATIENCE_SECONDS), space.kubectl("get", "pods").stdout
    assert "stays" in space.kubectl("get", "ww", "-o", "name").stdout, "what users made stays"
    release.cluster.kubectl("delete", "namespace", space.namespace, timeout=120)
    release.cluster.kubectl("create", "namespace", space.namespace)
