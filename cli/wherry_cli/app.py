"""The console script `kubectl-wherry`, which kubectl finds on PATH as `kubectl wherry`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from wherry_cli.errors import CliError


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, do, exit: 0, 1 for what failed, 2 for a wrong command line, and from `run` the guest's own exit code."""
    given = parse(sys.argv[1:] if argv is None else argv)
    try:
        code = _do(given)
    except CliError as error:
        print(error, file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """A command line. Exits where it is wrong."""
    words = list(argv)
    at = words.index("--") if "--" in words else len(words)
    given = _parser().parse_args(words[:at])
    if words[at:] and given.command != "run":
        _parser().error(f"{given.command} takes no arguments after --")
    given.arguments = words[at + 1 :]
    for shared in ("kubeconfig", "context", "namespace"):
        setattr(given, shared, getattr(given, shared, None))
    return given


def _do(given: argparse.Namespace) -> int:
    # Imported as needed: the client of Kubernetes takes most of a second.
    if given.command == "push":
        from wherry_cli import push

        return push.run(given)
    from wherry_cli import logs, portforward, rollout, run
    from wherry_cli.cluster import Cluster
    from wherry_cli.why import why

    cluster = Cluster(given.kubeconfig, given.context, given.namespace)
    match given.command:
        case "logs":
            return logs.run(cluster, given)
        case "port-forward":
            return portforward.run(cluster, given)
        case "rollout":
            return rollout.run(cluster, given)
        case "run":
            return run.run(cluster, given)
        case _:
            print(why(cluster.get(given.name)))
            return 0


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    # No defaults here: a subcommand's would overwrite what stood before it.
    for flags, text in (
        (["--kubeconfig"], "path of the kubeconfig"),
        (["--context"], "context of the kubeconfig"),
        (["-n", "--namespace"], "namespace; default: the context's"),
    ):
        shared.add_argument(*flags, default=argparse.SUPPRESS, help=text)
    parser = argparse.ArgumentParser(
        prog="kubectl wherry" if os.path.basename(sys.argv[0]).startswith("kubectl") else None,
        description="WebAssembly workloads: their logs, a module in one command, and why one waits.",
        parents=[shared],
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    logs = commands.add_parser("logs", parents=[shared], help="show the log of a WasmWorkload", allow_abbrev=False)
    logs.add_argument("name")
    logs.add_argument("-f", "--follow", action="store_true", help="go on until its instances end")
    logs.add_argument("-p", "--previous", action="store_true", help="the run before the present one")
    logs.add_argument("--timestamps", action="store_true", help="each line with its time")
    logs.add_argument("--prefix", action="store_true", help="each line with the instance that wrote it")
    logs.add_argument("--tail", type=int, metavar="LINES", help="only the newest lines of each instance; -1: all")
    logs.add_argument("--since", default="", metavar="DURATION", help="only what is newer than, say, 5s, 2m or 3h")
    logs.add_argument("--since-time", default="", metavar="TIME", help="only what is newer than that (RFC 3339)")
    logs.add_argument("--limit-bytes", type=int, default=0, metavar="BYTES", help="at most so much")
    logs.add_argument("--instance", default="", help="only that one: its name, or the end of it after a dash")

    forward = commands.add_parser(
        "port-forward", parents=[shared], help="lead local ports to an instance of a WasmWorkload", allow_abbrev=False
    )
    forward.add_argument("name")
    forward.add_argument("ports", nargs="+", metavar="[LOCAL:]REMOTE", help="REMOTE is the port of its Service")
    forward.add_argument("--address", default="127.0.0.1", help="to listen on (default 127.0.0.1)")
    forward.add_argument("--instance", default="", help="only that one: its name, or the end of it after a dash")

    run = commands.add_parser(
        "run",
        parents=[shared],
        help="run a module, show its log, end with its exit code",
        usage="kubectl wherry run FILE|IMAGE [flags] [-- arguments]",
        allow_abbrev=False,
    )
    run.add_argument(
        "module", metavar="FILE|IMAGE", help="a local module (binary or text format), or one in a registry"
    )
    run.add_argument("--name", default="", help="of the WasmWorkload; default: the module's, and a few letters")
    run.add_argument("--rm", action="store_true", help="delete the WasmWorkload at the end")
    run.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="repeat it for more")
    run.add_argument("--class-name", default="", help="the installation that is to take it")

    push = commands.add_parser(
        "push", parents=[shared], help="push a module to a registry", allow_abbrev=False,
        description="Push a module as the CNCF's Wasm OCI artifact, with the credentials of `docker login`.",
    )  # fmt: skip
    push.add_argument("file")
    push.add_argument("reference", help="REGISTRY/REPOSITORY:TAG")
    push.add_argument("--insecure", action="store_true", help="http rather than https; loopback is always asked so")

    rollout = commands.add_parser(
        "rollout", parents=[shared], help="follow a changed spec, list revisions, go back to one", allow_abbrev=False
    )
    verbs = rollout.add_subparsers(dest="verb", required=True, metavar="status|history|undo")
    status = verbs.add_parser("status", parents=[shared], help="wait until the spec is rolled out", allow_abbrev=False)
    history = verbs.add_parser("history", parents=[shared], help="list the revisions there are", allow_abbrev=False)
    undo = verbs.add_parser("undo", parents=[shared], help="go back to a revision", allow_abbrev=False)
    undo.add_argument("--to-revision", type=int, default=0, metavar="NUMBER", help="default: the last one before")
    for verb in (status, history, undo):
        verb.add_argument("name")

    why = commands.add_parser(
        "why", parents=[shared], help="say in one sentence what a WasmWorkload waits for", allow_abbrev=False
    )
    why.add_argument("name")
    return parser
