"""Run in a runner's Pod, by the image's own Python: what can be reached from there, freely and behind a guest's gates.

Prints a JSON object: what comes of each attempt, `ok` or the name of an errno, and what the kernel says of each guest.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

from wherry_runner.execution import sandbox

API_SERVER = (os.environ.get("KUBERNETES_SERVICE_HOST", "10.96.0.1"), 443)

OWN_PORT = 19443

EXECUTOR = "wherry-executor"


def _processes() -> dict[int, dict[str, str]]:
    """What /proc/PID/status says of each process."""
    found = {}
    for each in Path("/proc").glob("[0-9]*/status"):
        lines = (line.partition(":") for line in each.read_text().splitlines())
        found[int(each.parent.name)] = {name: value.strip() for name, _, value in lines}
    return found


def _reads(path: str) -> Callable[[], object]:
    return lambda: os.close(os.open(path, os.O_RDONLY))


def _connects(address: tuple[str, int]) -> Callable[[], object]:
    def connect() -> None:
        with socket.socket() as made:
            made.settimeout(10)
            made.connect(address)

    return connect


def _outcome(attempt: Callable[[], object], found: sandbox.Confinement | None) -> str:
    """What comes of an attempt, in a child of its own."""
    child = os.fork()
    if child == 0:
        code = 255
        try:
            if found is not None:
                sandbox.Sandbox(found).enter()
            attempt()
            code = 0
        except OSError as error:
            code = error.errno or 254
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return "ok" if code == 0 else errno.errorcode.get(code, f"exit code {code}")


def main() -> None:
    """Try everything twice."""
    processes = _processes()
    executors = [pid for pid, each in processes.items() if each["Name"] == EXECUTOR and each["PPid"] == "1"]
    guests = {pid: each for pid, each in processes.items() if int(each["PPid"]) in executors}
    neighbour = next(iter(guests))
    (secret, *_) = (str(each) for each in Path("/run/wherry/secrets").rglob("word") if each.is_file())
    attempts: dict[str, Callable[[], object]] = {
        "the runner's key": _reads("/certificates/tls.key"),
        "a neighbour's Secret": _reads(secret),
        "the journal": _reads("/var/lib/wherry/journal"),
        "the API server": _connects(API_SERVER),
        "the runner's own port": _connects(("127.0.0.1", OWN_PORT)),
        "signal to a neighbour": lambda: os.kill(neighbour, 0),
        "signal to the runner": lambda: os.kill(1, 0),
        "a neighbour's memory": lambda: os.close(os.open(f"/proc/{neighbour}/mem", os.O_RDWR)),
        "a service account's token": _reads("/var/run/secrets/kubernetes.io/serviceaccount/token"),
    }
    found = sandbox.probe()
    outcomes = {
        name: {"free": _outcome(attempt, None), "confined": _outcome(attempt, found)}
        for name, attempt in attempts.items()
    }
    print(json.dumps({"attempts": outcomes, "guests": list(guests.values())}))


if __name__ == "__main__":
    main()
