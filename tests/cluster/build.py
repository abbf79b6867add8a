"""Builds the Go binaries into a cache, once for each state of their sources.

The cache is `${WHERRY_CACHE:-${XDG_CACHE_HOME:-~/.cache}/wherry}`. An entry's name holds a hash of everything
that goes into the binary, so there is nothing to invalidate; a lock makes concurrent users build once; an
entry appears by rename, so it is whole or absent.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.errors import BuildFailed
from tests.cluster.processes import Process
from tests.cluster.progress import SILENT, Progress

KUBERNETES_VERSION = "v1.35.4"
"""As in kube/go.mod. Stamped into the binary: else servers report v0.0.0-master, which clients misjudge."""

HELM_VERSION = "v3.20.2"
"""As in helm/go.mod."""

UNUSED_SECONDS = 30 * 24 * 3600
"""Entries of older sources are dropped after so long without use (which is marked by the entry's mtime)."""

POLL_SECONDS = 0.2
"""How often a build or another's lock is looked at."""

_HERE = Path(__file__).resolve().parent
_VERSION_PACKAGE = "k8s.io/component-base/version"


@dataclass(frozen=True)
class Target:
    """A Go module that builds to one binary, which may go by several names."""

    name: str
    directory: Path
    description: str
    links: tuple[str, ...] = ()
    ldflags: str = "-s -w"
    package: str = "."
    """Elsewhere: a program that its own module can't offer as a library, pinned here as a tool."""


def _kubernetes_ldflags() -> str:
    major, minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
    stamps = {
        "gitVersion": KUBERNETES_VERSION,
        "gitMajor": major,
        "gitMinor": minor,
        "gitTreeState": "clean",
        # Constants: the binary depends on its sources alone.
        "gitCommit": "0" * 40,
        "buildDate": "1970-01-01T00:00:00Z",
    }
    return " ".join(["-s -w", *(f"-X {_VERSION_PACKAGE}.{key}={value}" for key, value in stamps.items())])


KUBE = Target(
    name="kube",
    directory=_HERE / "kube",
    description=f"Kubernetes {KUBERNETES_VERSION}",
    links=(
        "etcd",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-proxy",
        "kube-scheduler",
        "kubectl",
        "kubelet",
    ),
    ldflags=_kubernetes_ldflags(),
)

REGISTRY = Target(name="registry", directory=_HERE / "registry", description="the OCI registry")

ADDONS = Target(
    name="addons",
    directory=_HERE / "addons",
    description="CoreDNS and metrics-server",
    links=("coredns", "metrics-server"),
)


def _helm_ldflags() -> str:
    # Unstamped, it says v3.20, and takes the cluster of `helm template` and `helm lint` to be of Kubernetes 1.20.
    major, minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
    stamps = {"internal/version.version": HELM_VERSION, "internal/version.gitTreeState": "clean"}
    for package in ("pkg/chartutil", "pkg/lint/rules"):
        stamps |= {f"{package}.k8sVersionMajor": major, f"{package}.k8sVersionMinor": minor}
    return " ".join(["-s -w", *(f"-X helm.sh/helm/v3/{key}={value}" for key, value in stamps.items())])


HELM = Target(
    name="helm",
    directory=_HERE / "helm",
    description=f"Helm {HELM_VERSION}",
    ldflags=_helm_ldflags(),
    package="helm.sh/helm/v3/cmd/helm",
)


KIND_VERSION = "v0.33.0"
"""As in kind/go.mod."""

KIND = Target(name="kind", directory=_HERE / "kind", description=f"kind {KIND_VERSION}", package="sigs.k8s.io/kind")


def kube(progress: Progress = SILENT) -> Path:
    """Return the folder with `kubectl`, `kube-apiserver` and so on, building it if needed.

    :raises BuildFailed: there is no suitable Go, or the build failed.
    """
    return build(KUBE, progress)


def registry(progress: Progress = SILENT) -> Path:
    """Return the registry's binary, building it if needed.

    :raises BuildFailed: there is no suitable Go, or the build failed.
    """
    return build(REGISTRY, progress) / REGISTRY.name


def addons(progress: Progress = SILENT) -> Path:
    """Return the folder with `coredns` and `metrics-server`, building them if needed.

    :raises BuildFailed: there is no suitable Go, or the build failed.
    """
    return build(ADDONS, progress)


def helm(progress: Progress = SILENT) -> Path:
    """Return Helm's binary, building it if needed.

    :raises BuildFailed: there is no suitable Go, or the build failed.
    """
    return build(HELM, progress) / HELM.name


def kind(progress: Progress = SILENT) -> Path:
    """Return kind's binary, building it if needed: seconds.

    :raises BuildFailed: there is no suitable Go, or the build failed.
    """
    return build(KIND, progress) / KIND.name


def cache_directory() -> Path:
    """Return where built binaries are kept."""
    chosen = os.environ.get("WHERRY_CACHE")
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wherry"


def build(target: Target, progress: Progress) -> Path:
    """Return the folder of a target's binary in the cache, building it if needed."""
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    go = _find_go()
    entry = cache / f"{target.name}-{_key(target, go)}"
    if not entry.exists():
        with _lock(cache / f"{target.name}.lock", target, progress):
            if not entry.exists():
                _build(target, go, entry, progress)
                drop_unused(cache, target.name, keep=entry)
    os.utime(entry)
    return entry


def _build(target: Target, go: str, entry: Path, progress: Progress) -> None:
    with tempfile.TemporaryDirectory(dir=entry.parent, prefix=f".{target.name}-") as folder:
        result = Path(folder) / "entry"
        result.mkdir()
        _compile(target, go, result / target.name, progress)
        for link in target.links:
            (result / link).symlink_to(target.name)
        result.rename(entry)
    progress.step(f"built {target.description}: {entry / target.name}")


def _compile(target: Target, go: str, binary: Path, progress: Progress) -> None:
    progress.step(f"building {target.description} with {go} (minutes, once; what is built is cached)")
    total = _count_packages(target, go, progress)
    log = binary.parent / "build.log"
    # -v prints a package's import path when its compilation begins; those in Go's own cache are not printed.
    command = [go, "build", "-v", *_build_flags(target), "-o", str(binary), target.package]
    process = Process.start("go build", command, log=log, cwd=target.directory, env=_environment())
    try:
        while process.running:
            progress.update(f"building {target.description}: {_how_far(target, log.read_text(), total)}")
            time.sleep(POLL_SECONDS)
    finally:
        process.stop()
    if process.returncode != 0:
        raise BuildFailed(f"can't build {target.description} in {target.directory}:\n{_messages(log.read_text())}")
    log.unlink()


def _how_far(target: Target, log: str, total: int) -> str:
    packages = [line for line in log.splitlines() if " " not in line]
    if any(line.startswith("wherry.dev/") or line == target.package for line in packages):
        return "linking"
    return f"{len(packages)} packages compiled, {total} in all (less those that Go has cached)"


def _messages(log: str) -> str:
    """Return what the compiler said, without the import paths of `-v`."""
    return "\n".join([line for line in log.splitlines() if " " in line][-40:])


def _count_packages(target: Target, go: str, progress: Progress) -> int:
    progress.step(f"fetching the sources of {target.description} (Go modules)")
    listing = _run_go(go, ["list", "-mod=readonly", "-deps", target.package], target)
    return len(listing.splitlines())


def _build_flags(target: Target) -> list[str]:
    return ["-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", target.ldflags]


def _environment() -> dict[str, str]:
    # GOFLAGS and workspaces of the user's own must not change what is built.
    return {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}


def _key(target: Target, go: str) -> str:
    """Return a hash of all that decides what the binary is."""
    toolchain = _run_go(go, ["env", "GOVERSION", "GOOS", "GOARCH"], target)
    elsewhere = [target.package] if target.package != "." else []
    digest = hashlib.sha256("\0".join([toolchain, *_build_flags(target), *target.links, *elsewhere]).encode())
    sources = [each for each in target.directory.iterdir() if each.suffix in (".go", ".mod", ".sum")]
    for source in sorted(sources):
        digest.update(f"\0{source.name}\0".encode())
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _find_go() -> str:
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        raise BuildFailed(
            "no Go compiler: `go` is neither on PATH nor in /usr/local/go/bin. Kubernetes is built from"
            " source here: install Go (https://go.dev/dl, or your distribution's package), then try again."
        )
    return go


def _run_go(go: str, arguments: list[str], target: Target) -> str:
    done = subprocess.run(
        [go, *arguments],
        cwd=target.directory,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return done.stdout
    message = done.stderr.strip()
    # Go's words when go.mod asks for a later version and GOTOOLCHAIN=local keeps it from fetching that.
    if "GOTOOLCHAIN=local" in message or "unknown directive" in message or "invalid go version" in message:
        message += (
            f"\nThis Go ({go}) is too old for {target.directory / 'go.mod'}: install a newer one"
            " (https://go.dev/dl), or set GOTOOLCHAIN=auto to let it fetch what it needs."
        )
    raise BuildFailed(f"go {' '.join(arguments)} failed in {target.directory}:\n{message}")


@contextlib.contextmanager
def _lock(path: Path, target: Target, progress: Progress) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.step(f"{target.description} is being built by another process: waiting for it")
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    progress.update(f"waiting for the other build of {target.description}")
                    time.sleep(POLL_SECONDS)
        yield


def drop_unused(cache: Path, name: str, *, keep: Path) -> None:
    """Remove old entries, and what killed builds left; the lock is held, so no other build is under way."""
    oldest = time.time() - UNUSED_SECONDS
    unused = [each for each in cache.glob(f"{name}-*") if each != keep and each.stat().st_mtime < oldest]
    for entry in [*unused, *cache.glob(f".{name}-*")]:
        shutil.rmtree(entry, ignore_errors=True)
