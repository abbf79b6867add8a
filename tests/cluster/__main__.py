"""The command line: `python -m tests.cluster`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tests.cluster import build, host, keeper, machine, nodeparts
from tests.cluster.errors import ClusterError
from tests.cluster.existing import ExistingCluster
from tests.cluster.images import base, dockerfile, push
from tests.cluster.images.dockerfile import REPOSITORY
from tests.cluster.progress import Progress
from tests.cluster.provider import DEFAULT_NAME, check_name, kubectl_environment
from tests.cluster.record import Record
from tests.cluster.running import RunningCluster, state_directory

_DESCRIPTION = """\
A real Kubernetes on this machine, for trying things by hand. It is built from source at first (minutes;
needs Go), then starts in seconds. No Docker, no image pulls; only real nodes need root.
"""

_EXAMPLES = """\
examples:
  python -m tests.cluster up
  python -m tests.cluster kubectl get pods -A
  export KUBECONFIG=$(python -m tests.cluster kubeconfig)
  python -m tests.cluster down
  python -m tests.cluster up --name node --provider node --nodes 2

Built programs are kept in ${WHERRY_CACHE:-${XDG_CACHE_HOME:-~/.cache}/wherry}, running clusters in
${WHERRY_STATE:-${XDG_STATE_HOME:-~/.local/state}/wherry}/clusters/NAME (logs below logs/).
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(words)
    command: str = options.command
    try:
        check_name(options.name)
        return {
            "up": _up,
            "down": _down,
            "status": _status,
            "kubeconfig": _kubeconfig,
            "kubectl": _kubectl,
            "helm": _helm,
            "shell": _shell,
            "image": _image,
            "packages": _packages,
            "build": _build,
        }[command](options)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cluster",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("--name", default=DEFAULT_NAME, help="which cluster (default: %(default)s)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    up = commands.add_parser("up", parents=[named], help="bring a cluster up, and leave it running")
    up.add_argument(
        "--provider",
        choices=["local", "node", "existing"],
        default="local",
        help="local: a control plane on loopback (default). node: real nodes too; needs root. existing: a cluster"
        " that a kubeconfig leads to",
    )
    up.add_argument("--nodes", type=int, default=1, help="for `node`: how many (default: %(default)s)")
    up.add_argument("--kubeconfig", type=Path, help="for `existing` (default: $KUBECONFIG, or ~/.kube/config)")
    commands.add_parser("down", parents=[named], help="take it down, and leave nothing behind")
    commands.add_parser("status", parents=[named], help="say how it is (exit code 0: it runs, 1: it doesn't)")
    commands.add_parser("kubeconfig", parents=[named], help="print the path of an administrator's kubeconfig")
    kubectl = commands.add_parser(
        "kubectl", parents=[named], help="run kubectl on it; --name goes before kubectl's arguments"
    )
    kubectl.add_argument("arguments", nargs=argparse.REMAINDER, help="kubectl's")
    helm = commands.add_parser("helm", parents=[named], help="run Helm on it (built at first: minutes), as kubectl")
    helm.add_argument("arguments", nargs=argparse.REMAINDER, help="Helm's")
    commands.add_parser("shell", parents=[named], help="for `node`: a shell inside its network")
    image = commands.add_parser(
        "image", parents=[named], help="for `node`: push images to its registry, built if needed"
    )
    image.add_argument("images", nargs="+", choices=["base", "runner", "operator"])
    packages = commands.add_parser("packages", parents=[named], help="say which Debian packages a node still needs")
    packages.add_argument("--install", action="store_true", help="install them, as root, with apt-get")
    commands.add_parser(
        "build", parents=[named], help="only build the programs, and where there can be a node, what it needs"
    )
    return parser


def _up(options: argparse.Namespace) -> int:
    progress = Progress()
    if options.provider == "existing":
        _up_existing(options.name, options.kubeconfig, progress)
        new = True
    else:
        new = keeper.up(options.name, progress, nodes=options.nodes if options.provider == "node" else 0)
    cluster = RunningCluster(options.name)
    if not new:
        cluster.up()
        progress.step(f"cluster {options.name!r} is up already")
    print(f"export KUBECONFIG={cluster.kubeconfig}")
    if cluster.provider == "node":
        print(f"# only from inside its network: {cluster.directory / 'bin' / 'shell'}, or {cluster.kubectl_program()}")
    return 0


def _up_existing(name: str, kubeconfig: Path | None, progress: Progress) -> None:
    directory = state_directory() / name
    record = Record.load(directory)
    if record is not None and record.provider != ExistingCluster.provider:
        raise ClusterError(f"there is a cluster {name!r} already: take it `down` first, or choose another --name")
    ExistingCluster(kubeconfig, directory, name=name, progress=progress).up()


def _down(options: argparse.Namespace) -> int:
    progress = Progress()
    if keeper.down(options.name, progress):
        progress.step(f"cluster {options.name!r} is down")
    else:
        progress.step(f"no cluster {options.name!r}: nothing to do")
    return 0


def _status(options: argparse.Namespace) -> int:
    status = RunningCluster(options.name).status()
    print(f"cluster {status.name} ({status.provider}): {status.state}")
    if status.server:
        print(f"  {status.server}  {status.version}".rstrip())
    for component, state in status.components.items():
        print(f"  {component:25} {state}")
    return 0 if status.state == "running" else 1


def _kubeconfig(options: argparse.Namespace) -> int:
    print(RunningCluster(options.name).kubeconfig)
    return 0


def _kubectl(options: argparse.Namespace) -> int:
    cluster = RunningCluster(options.name)
    program = cluster.kubectl_program()
    os.execve(
        program,
        [
            "kubectl",
            f"--kubeconfig={cluster.kubeconfig}",
            f"--cache-dir={cluster.directory / 'kubectl-cache'}",
            *_passed_on(options.arguments),
        ],
        kubectl_environment(),
    )


def _helm(options: argparse.Namespace) -> int:
    cluster = RunningCluster(options.name)
    command = [str(build.helm(Progress())), *_passed_on(options.arguments)]
    if cluster.provider == "node":
        command = machine.in_network(cluster.network(), *command)
    os.execvpe(command[0], command, {**kubectl_environment(), "KUBECONFIG": str(cluster.kubeconfig)})


def _shell(options: argparse.Namespace) -> int:
    cluster = RunningCluster(options.name)
    cluster.network()  # or say that there is none
    shell = cluster.directory / "bin" / "shell"
    helm = cluster.directory / "bin" / "helm"  # built only when somebody calls it
    words = [sys.executable, "-m", "tests.cluster", "helm", "--name", options.name, "--"]
    helm.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(REPOSITORY))} exec {shlex.join(words)} "$@"\n')
    helm.chmod(0o755)
    os.execv(shell, [str(shell)])


def _image(options: argparse.Namespace) -> int:
    progress = Progress()
    network = RunningCluster(options.name).network()
    for name in options.images:
        layout = base.layout(progress) if name == "base" else dockerfile.layout(name, progress)
        reference = f"{nodeparts.FIRST_ADDRESS}:{nodeparts.REGISTRY_PORT}/{name}:1"
        push.push(layout, reference, partial(machine.connect_from, network), mount_from="base")
        print(reference)
    return 0


def _packages(options: argparse.Namespace) -> int:
    missing = host.missing_packages()
    if missing and options.install:
        print(f"a node needs Debian's packages {', '.join(missing)}: installing them", file=sys.stderr)
        print(host.install(), file=sys.stderr)
    elif missing:
        print(" ".join(missing))
    return 0


def _passed_on(arguments: list[str]) -> list[str]:
    return arguments[1:] if arguments[:1] == ["--"] else arguments


def _build(options: argparse.Namespace) -> int:
    progress = Progress()
    print(build.kube(progress))
    print(build.registry(progress))
    if host.why_not() is None:
        print(build.addons(progress))
        print(base.layout(progress))
    return 0


if __name__ == "__main__":
    sys.exit(main())
