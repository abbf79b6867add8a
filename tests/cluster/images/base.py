"""A base image: Debian with Python and a shell, by debootstrap. For our Dockerfiles, and for Pods in tests as it is."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.cluster.errors import BuildFailed
from tests.cluster.images import archive
from tests.cluster.images.cache import cached
from tests.cluster.progress import SILENT, Progress

SUITE = "trixie"
"""The one with the Python that our Dockerfiles have by default."""

PACKAGES = ("ca-certificates", "python3", "python3-venv")

NEEDLESS = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "var/cache/apt",
    "var/lib/apt/lists",
)
"""A quarter of it all; each cluster's kubelets would pull and unpack it."""

NAME = "wherry.test/base:1"

_CONFIG = {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["python3"]}

_RECIPE = 2
"""To be raised when what is done below changes: the cache goes by it."""


def layout(progress: Progress = SILENT) -> Path:
    """Return the image's OCI layout; made at first, in a minute or three. Needs root.

    :raises BuildFailed: debootstrap failed.
    """

    def make(folder: Path) -> None:
        progress.step(f"making a base image of Debian {SUITE} (a minute or more, once)")
        _make(folder)

    return cached("base", repr((SUITE, PACKAGES, NEEDLESS, _CONFIG, _RECIPE)), make)


def _make(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder) as work:
        root, layer = Path(work) / "root", Path(work) / "layer.tar"
        _run(["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(root)])
        for each in NEEDLESS:
            shutil.rmtree(root / each, ignore_errors=True)
        shutil.rmtree(root / "dev")  # device files: whoever runs the image makes its own
        (root / "dev").mkdir()
        _run(["tar", "--create", f"--file={layer}", f"--directory={root}", "--numeric-owner", "--sort=name", "."])
        archive.write_layout(Path(work) / "layout", NAME, layer, _CONFIG)
        for part in (Path(work) / "layout").iterdir():
            part.rename(folder / part.name)


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode != 0:
        raise BuildFailed(f"{command[0]} failed with exit code {done.returncode}:\n{done.stdout[-4000:]}")
