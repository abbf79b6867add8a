"""Builds our own Dockerfiles without a daemon: buildah, on the base image of `base`. Cached by content."""

from __future__ import annotations

import configparser
import hashlib
import io
import json
import os
import subprocess
import tempfile
from pathlib import Path

from tests.cluster.errors import BuildFailed
from tests.cluster.images import base
from tests.cluster.images.cache import cached
from tests.cluster.progress import SILENT, Progress

REPOSITORY = Path(__file__).resolve().parents[3]

IMAGES = ("operator", "runner")

CONTEXT = ("operator", "runner", "crds", "locks", "pyproject.toml", "README.md", "LICENSE", ".dockerignore")
"""What a Dockerfile may copy: the cache goes by it. `.dockerignore` says the same."""

PIP_SETTINGS = ("index-url", "extra-index-url", "trusted-host", "proxy")
"""Where this machine gets packages from is its own affair: the build is told, the image isn't."""

CERTIFICATES = Path("/etc/ssl/certs")

EXECUTOR = REPOSITORY / "runner" / "executor" / "bin"
"""What `make executor` built; the runner's image gets it as it is. Where there is none, the image has none."""

_EXECUTOR_DOCKERFILE = """\
FROM scratch
COPY . /usr/local/libexec/wherry/
"""


def layout(image: str, progress: Progress = SILENT) -> Path:
    """Return the OCI layout of `operator` or `runner`; built at first, in a minute or two. Needs root.

    :raises BuildFailed: a step of the Dockerfile failed.
    """
    base_layout = base.layout(progress)

    def make(folder: Path) -> None:
        progress.step(f"building {image}/Dockerfile (a minute or two, once for each state of the sources)")
        _make(image, base_layout, folder)

    return cached(image, f"{image} {base_layout.name} {_context_hash()}", make)


def _make(image: str, base_layout: Path, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{image}-storage-") as work:
        buildah = _Buildah(Path(work))
        # By a short relative path: buildah makes a name of it, and many paths are no name.
        (Path(work) / "base").symlink_to(base_layout)
        buildah.run("pull", "--quiet", f"oci:base:{base.NAME.rpartition(':')[2]}")
        buildah.run("tag", buildah.run("images", "--quiet").split()[0], "localhost/base")
        buildah.run(
            "bud",
            "--isolation=chroot",
            "--pull-never",
            "--layers=false",
            "--format=oci",
            "--build-arg=BASE_IMAGE=localhost/base",
            *(_executor_settings(buildah, Path(work)) if image == "runner" else ()),
            *buildah.machine_settings(),
            f"--file={REPOSITORY / image / 'Dockerfile'}",
            f"--tag=localhost/{image}",
            str(REPOSITORY),
        )
        buildah.run("push", "--disable-compression", f"localhost/{image}", f"oci:{folder}:1")
    _share_blobs(folder, base_layout)


def _executor_settings(buildah: _Buildah, work: Path) -> list[str]:
    """Give the build an image of the native executor as it was built outside: its own stage wants an image with Rust."""
    if not EXECUTOR.exists():
        return ["--build-arg=EXECUTOR_IMAGE=scratch"]
    recipe = work / "executor.Dockerfile"
    recipe.write_text(_EXECUTOR_DOCKERFILE)
    buildah.run(
        "bud", "--isolation=chroot", "--format=oci", f"--file={recipe}", "--tag=localhost/executor", str(EXECUTOR)
    )
    return ["--build-arg=EXECUTOR_IMAGE=localhost/executor"]


class _Buildah:
    """buildah with its storage in a folder of ours."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._policy = folder / "policy.json"
        self._policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))

    def run(self, command: str, *arguments: str) -> str:
        options = [f"--root={self._folder / 'root'}", f"--runroot={self._folder / 'run'}", "--storage-driver=vfs"]
        policy = [f"--signature-policy={self._policy}"] if command in ("pull", "bud", "push") else []
        done = subprocess.run(
            ["buildah", *options, command, *policy, *arguments],
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise BuildFailed(f"buildah {command} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
        return done.stdout

    def machine_settings(self) -> list[str]:
        """Let pip inside find packages the way it does outside."""
        settings = self._folder / "pip.conf"
        settings.write_text(_pip_settings())
        volumes = [f"--volume={settings}:/etc/pip.conf:ro"]
        if CERTIFICATES.exists():
            volumes.append(f"--volume={CERTIFICATES}:{CERTIFICATES}:ro")
        return volumes


def _pip_settings() -> str:
    settings = configparser.ConfigParser(interpolation=None)
    settings.read(["/etc/pip.conf", Path.home() / ".config" / "pip" / "pip.conf"])
    if not settings.has_section("global"):
        settings.add_section("global")
    for name in PIP_SETTINGS:
        value = os.environ.get(f"PIP_{name.upper().replace('-', '_')}")
        if value:
            settings.set("global", name, value)
    text = io.StringIO()
    settings.write(text)
    return text.getvalue()


def _share_blobs(folder: Path, base_layout: Path) -> None:
    """Keep the base's layer on disk once."""
    for blob in (base_layout / "blobs" / "sha256").iterdir():
        ours = folder / "blobs" / "sha256" / blob.name
        if ours.exists():
            ours.unlink()
            ours.hardlink_to(blob)


def _context_hash() -> str:
    digest = hashlib.sha256()
    for name in CONTEXT:
        path = REPOSITORY / name
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"\0{file.relative_to(REPOSITORY)}\0{file.stat().st_mode & 0o111}\0".encode())
                digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
