"""`make demo`: the main job on a Kubernetes of its own, each command before its output.

Needs Python and Go, no root, no Docker. Everything runs on loopback, dies with this process, and is removed at the end.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.cluster.errors import ClusterError
from tests.cluster.local import LocalCluster
from tests.cluster.progress import Progress
from tests.cluster.provider import kubectl_environment
from tests.cluster.registry import Registry
from tests.support.images import KRUSTLET, push
from tests.support.installation import Installation

ROOT = Path(__file__).resolve().parents[1]
POD = "hello-world-wasi-rust"
EXPECTED = [
    "hello from stdout!",
    "hello from stderr!",
    "CONFIG_MAP_VAL=cool stuff",
    "FOO=bar",
    f"POD_NAME={POD}",
    "Args are: []",
]
MIRRORED = ("webassembly.azurecr.io", "registry.example")
"""Registry names in the demos' manifests. Krustlet's own registry is gone: the runner asks the local one instead."""


def main() -> None:
    """`python -m demos.demo [clean] [--keep]`."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("command", nargs="?", choices=["run", "clean"], default="run")
    parser.add_argument("--keep", action="store_true", help="stay up at the end, to look around, until Ctrl-C")
    given = parser.parse_args()
    directory = state_directory()
    try:
        with alone(directory.with_suffix(".lock")):
            shutil.rmtree(directory, ignore_errors=True)
            if given.command == "run":
                try:
                    run(directory, keep=given.keep)
                finally:
                    shutil.rmtree(directory, ignore_errors=True)
        if given.command == "clean":
            directory.with_suffix(".lock").unlink(missing_ok=True)
            say("The demo has left nothing. What was built for it is in a cache: `make clean-cache` empties that too.")
    except ClusterError as error:
        sys.exit(f"\nmake demo: {error}")
    except KeyboardInterrupt:
        sys.exit("\nmake demo: stopped")


def state_directory() -> Path:
    """Where the demo's files are while it runs."""
    base = os.environ.get("WHERRY_STATE") or Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state") / "wherry"
    return Path(base).expanduser() / "demo"


@contextmanager
def alone(lock: Path) -> Iterator[None]:
    """Hold the demo's lock. Exits with a message where another demo has it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit("make demo: another demo is running; end it first (Ctrl-C where it runs)")
        yield


def run(directory: Path, *, keep: bool) -> None:
    """The demo."""
    began = time.monotonic()
    with ExitStack() as stack:
        say("A Kubernetes of our own, a registry, Wherry's operator and one runner, all on loopback:")
        progress = Progress()
        cluster = stack.enter_context(LocalCluster(directory / "cluster", name="demo", progress=progress))
        registry = stack.enter_context(Registry(directory / "registry"))
        progress.step("pushing the demo modules to the registry")
        module = ROOT / "demos" / "hello-world-rust" / "hello.wasm"
        push(registry.address, "hello-world-wasi-rust", [module], types=KRUSTLET, tag="v0.2.0")
        push(registry.address, "demos/hello-world-c", [ROOT / "demos" / "hello-world-c" / "hello.wasm"], tag="v1")
        progress.step("starting operator and runner")
        stack.enter_context(
            Installation(cluster, directory / "wherry", registry_mirrors=dict.fromkeys(MIRRORED, registry.url))
        )
        kubectl = Kubectl(cluster)

        say("The virtual node. To Kubernetes it is a node like any other:")
        kubectl("get nodes")

        say("A Pod, as Krustlet's announcement had it: it tolerates kubernetes.io/arch=wasm32-wasi, and that is all.")
        kubectl("apply -f demos/hello-world-rust/k8s.yaml")
        kubectl(f"wait --for=condition=Ready pod/{POD}")
        kubectl("get pods -o wide")
        logs = kubectl(f"logs {POD}")
        if logs.splitlines()[: len(EXPECTED)] != EXPECTED:
            raise ClusterError(f"the log should begin with {EXPECTED}, and does not")
        kubectl(f"delete pod {POD}")
        kubectl(f"delete configmap {POD}")

        say("A WasmWorkload: one object, no Pod behind it.")
        kubectl("apply -f demos/hello-world-c/workload.yaml")
        kubectl("wait --for=condition=Ready wasmworkload/hello-world-c")
        kubectl("get wasmworkloads")

        say(f"That was Wherry, in {time.monotonic() - began:.0f} s.")
        if keep:
            shown = os.path.relpath(cluster.kubeconfig)
            say(f"It stays up until Ctrl-C. In another shell:  {kubectl.program} --kubeconfig={shown} get all")
            while True:
                time.sleep(3600)


class Kubectl:
    """Runs kubectl as a person would, and shows both what is typed and what is answered."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.program = cluster.kubectl_program()
        self._flags = [f"--kubeconfig={cluster.kubeconfig}", f"--cache-dir={cluster.directory / 'kubectl-cache'}"]

    def __call__(self, arguments: str) -> str:
        print(f"\033[1m$ kubectl {arguments}\033[0m" if sys.stdout.isatty() else f"$ kubectl {arguments}", flush=True)
        done = subprocess.run(
            [str(self.program), *self._flags, *arguments.split()],
            cwd=ROOT,
            env=kubectl_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        print(done.stdout, flush=True)
        if done.returncode != 0:
            raise ClusterError(f"kubectl {arguments} ended with exit code {done.returncode}")
        return done.stdout


def say(text: str) -> None:
    """A sentence for the reader."""
    print(f"\n# {text}", flush=True)


if __name__ == "__main__":
    main()
