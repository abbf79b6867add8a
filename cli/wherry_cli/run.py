"""`kubectl wherry run`: a module on the cluster in one command."""

from __future__ import annotations

import base64
import re
import secrets
import signal
import sys
from argparse import Namespace
from pathlib import Path

from wherry_cli import logs
from wherry_cli.cluster import Cluster, Object
from wherry_cli.errors import CliError, ServerError
from wherry_cli.why import why

MAX_INLINE_CHARACTERS = 1 << 20
"""What the CRD takes in `spec.module.inline`."""

INTERRUPTED = 130
"""What shells show for a command that was ended by Ctrl-C."""

_ENDED = ("Succeeded", "Failed")


def run(cluster: Cluster, given: Namespace) -> int:
    """Run a module, show its log, and return the guest's exit code. Raises CliError."""
    body = workload(given.module, given.name, given.env, given.arguments, class_name=given.class_name)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was made is cleared away then, too
    created = cluster.create(body)
    name, uid = created["metadata"]["name"], created["metadata"]["uid"]
    try:
        return _exit_code(_follow(cluster, created))
    except KeyboardInterrupt:
        if not given.rm:
            print(f"\nwasmworkload {name} goes on; to stop it: kubectl delete wasmworkload {name}", file=sys.stderr)
        return INTERRUPTED
    finally:
        if given.rm:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave it behind
            cluster.delete(name, uid)


def workload(module: str, name: str, env: list[str], arguments: list[str], *, class_name: str = "") -> Object:
    """The object for a module: a local file's content, or an image's name. Raises CliError."""
    spec: Object = {"module": _module(module), "restartPolicy": "Never"}
    if class_name:
        spec["className"] = class_name
    if env:
        spec["env"] = [_variable(text) for text in env]
    if arguments:
        spec["args"] = arguments
    return {
        "apiVersion": "wherry.dev/v1alpha1",
        "kind": "WasmWorkload",
        "metadata": {"name": name or f"{_stem(module)}-{secrets.token_hex(3)}"},
        "spec": spec,
    }


def _module(module: str) -> Object:
    path = Path(module)
    if not path.is_file():
        if module.endswith((".wasm", ".wat")) or module.startswith((".", "/")):
            raise CliError(f'error: the path "{module}" does not exist')
        return {"image": module}
    content = path.read_bytes()
    inline = _text(content) if not content.startswith(b"\0asm") else base64.b64encode(content).decode()
    if len(inline) > MAX_INLINE_CHARACTERS:
        raise CliError(
            f"error: {module} is too large to be sent within the object ({len(inline)} characters, at most "
            f"{MAX_INLINE_CHARACTERS}): push it to a registry with `kubectl wherry push {module} REFERENCE`, and run "
            f"REFERENCE"
        )
    return {"inline": inline}


def _text(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise CliError("error: the file is no WebAssembly, neither binary nor text") from None


def _variable(text: str) -> Object:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise CliError(f'error: invalid argument "{text}" for "--env": want NAME=VALUE')
    # As it is: `$(` would be taken for a reference to another variable.
    return {"name": name, "value": value.replace("$(", "$$(")}


def _stem(module: str) -> str:
    last = module.rsplit("/", 1)[-1].split("@", 1)[0].split(":", 1)[0].removesuffix(".wasm").removesuffix(".wat")
    return re.sub(r"[^a-z0-9]+", "-", last.lower()).strip("-")[:40].strip("-") or "module"


def _follow(cluster: Cluster, workload: Object) -> Object:
    """Show its log once it has one, and return the object as it ended."""
    shown, told = False, ""
    for current in cluster.changes(workload):
        status = current.get("status") or {}
        ended = status.get("phase") in _ENDED
        if not shown and (ended or any(item.get("state") == "Running" for item in status.get("instances") or [])):
            shown = _show(cluster, current)
        if ended:
            return current
        waits = why(current)
        if not shown and waits != told and any(item.get("reason") for item in status.get("instances") or []):
            print(waits, file=sys.stderr)
            told = waits
    raise AssertionError("changes have no end")


def _show(cluster: Cluster, workload: Object) -> bool:
    """Whether there was a log to show."""
    try:
        logs.show(cluster, workload["metadata"]["name"], {"follow": "true"})
        return True
    except ServerError as error:
        if error.status != 400:
            raise
        return False  # it may just not have begun, or its module never ran: the status tells


def _exit_code(workload: Object) -> int:
    status = workload["status"]
    if status["phase"] == "Succeeded":
        return 0
    print(why(workload), file=sys.stderr)
    codes = [item["exitCode"] for item in status.get("instances") or [] if item.get("exitCode")]
    return int(codes[0]) if codes else 1
