"""What a machine must be and have for a cluster with nodes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.cluster.errors import ClusterError

PROGRAMS = {
    "containerd": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "debootstrap": "debootstrap",
    "buildah": "buildah",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
}
"""Each program that is run, and the Debian package that has it."""

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""A user's own may lack the folders of administration."""

INSTALL_TIMEOUT_SECONDS = 900.0
"""150 MB from a mirror that may be slow."""


def missing_packages() -> list[str]:
    """Return the packages that are still to be installed."""
    return sorted(
        package
        for program, package in PROGRAMS.items()
        if not (Path(program).exists() if program.startswith("/") else shutil.which(program, path=SEARCH_PATH))
    )


def why_not() -> str | None:
    """Return why there can be no node on this machine; None: there can."""
    if not sys.platform.startswith("linux"):
        return "a node needs Linux"
    if os.geteuid() != 0:
        return "a node needs root: it makes namespaces, mounts and control groups"
    missing = missing_packages()
    if missing:
        return f"a node needs Debian's packages {', '.join(missing)}: `make node-packages` installs them"
    return None


def require() -> None:
    """Check that there can be a node here.

    :raises ClusterError: there can't; it says why, and what to do.
    """
    problem = why_not()
    if problem is not None:
        raise ClusterError(problem)


def install() -> str:
    """Install what is missing, if root may do so with apt-get; return what was done.

    :raises ClusterError: apt-get failed.
    """
    missing = missing_packages()
    if not missing:
        return ""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return f"not installed, since that takes root and apt-get: {' '.join(missing)}"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", *missing]):
        done = subprocess.run(
            ["apt-get", "--quiet", *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=INSTALL_TIMEOUT_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise ClusterError(f"apt-get {' '.join(arguments)} failed:\n{done.stdout[-2000:]}")
    return f"installed {' '.join(missing)}"
