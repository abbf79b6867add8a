"""What users do while something is upgraded: requests to a server, one after the other, and new objects."""

from __future__ import annotations

import http.client
import json
import subprocess
import threading
from types import TracebackType
from typing import Any, Self

from tests.cluster.node import NodeCluster
from tests.cluster.processes import wait_for
from tests.node.pods import PATIENCE_SECONDS, Space
from tests.support import wat
from tests.support.kube import workload

REQUEST_TIMEOUT_SECONDS = 10.0

ASKING_SECONDS = 300.0
"""For the requests that are left when all else is done."""

BETWEEN_SECONDS = 0.1
"""A little load, on a machine that also has a cluster to run."""


class _Load:
    """Does something over and over, in a thread, from its beginning to its end."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(BETWEEN_SECONDS):
            self._once()

    def _once(self) -> None:
        raise NotImplementedError


class Requests(_Load):
    """GETs, each over a connection of its own.

    Attributes:
        answered: how many were, with 200.
        failed: what happened to the others.
    """

    def __init__(self, cluster: NodeCluster, address: tuple[str, int]) -> None:
        super().__init__()
        self._cluster, self._address = cluster, address
        self.answered = 0
        self.failed: list[str] = []

    def succeeds(self) -> bool:
        """Make one request; whether it was answered as it should be."""
        before = self.answered
        self._once()
        return self.answered > before

    def _once(self) -> None:
        connection = http.client.HTTPConnection(*self._address)
        try:
            connection.sock = self._cluster.connect(self._address, REQUEST_TIMEOUT_SECONDS)
            connection.request("GET", "/")
            answer = connection.getresponse()
            answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.failed.append(repr(error))
            return
        finally:
            connection.close()
        if answer.status == 200:
            self.answered += 1
        else:
            self.failed.append(str(answer.status))


_ASK = """
import http.client, select, sys, threading
host, port, least = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
CLOSED = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)
over, lock = threading.Event(), threading.Lock()
answers, kept, failures = 0, 0, []

def ask(keeps):
    global answers, kept
    connection = None
    while not over.is_set():
        used = connection is not None
        try:
            connection = connection or http.client.HTTPConnection(host, port, timeout=30)
            connection.request("GET", "/", headers={} if keeps else {"Connection": "close"})
            answer = connection.getresponse()
            body, closes = answer.read(), answer.will_close
            failure = "" if (answer.status, body) == (200, b"hello over HTTP\\n") else f"{answer.status} {body!r}"
        except (OSError, http.client.HTTPException) as error:
            # Closed by the server before any byte of the answer: any HTTP library asks again (RFC 9110, 9.2.2).
            failure, closes = "" if used and isinstance(error, CLOSED) else repr(error), True
            used = None if not failure else used
        with lock:
            if failure:
                failures.append(failure)
            elif used is not None:
                answers, kept = answers + 1, kept + used
        if closes or not keeps:
            connection.close()
            connection = None

threads = [threading.Thread(target=ask, args=(keeps,)) for keeps in (False, True)]
for thread in threads:
    thread.start()
print("began", flush=True)
sys.stdin.read()
while answers + len(failures) < least and not over.wait(0.1):
    pass
over.set()
for thread in threads:
    thread.join()
print(answers, kept, *failures, sep="\\n")
"""
"""Asks until its input ends, and then for so many requests in all: with a connection for each, and with one that is kept."""


class Asking:
    """Requests that a Pod with Python makes, to a Service by its name.

    Attributes:
        answered: how many were, as they should be.
        kept: of these, how many over a connection that had been used before.
        failed: what happened to the others.
    """

    def __init__(self, space: Space, pod: str, address: tuple[str, int], *, at_least: int) -> None:
        self.answered = self.kept = 0
        self.failed: list[str] = []
        cluster = space.cluster
        kubectl = [
            str(cluster.kubectl_program()),
            f"--kubeconfig={cluster.kubeconfig}",
            f"--namespace={space.namespace}",
        ]
        ask = ["python3", "-c", _ASK, address[0], str(address[1]), str(at_least)]
        self._process = subprocess.Popen(
            [*kubectl, "exec", "-i", pod, "--", *ask], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "began\n"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                answered, kept, *self.failed = self._process.communicate(timeout=ASKING_SECONDS)[0].splitlines()
                self.answered, self.kept = int(answered), int(kept)
        finally:
            self._process.kill()
            self._process.communicate()


class Objects(_Load):
    """New WasmWorkloads."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self._space = space
        self.made: list[str] = []

    def _once(self) -> None:
        name = f"new-{len(self.made)}"
        self._space.create(workload(name, module={"inline": wat.sleeps()}))
        self.made.append(name)

    def all_run(self) -> bool:
        """Wait until all that were made run, and there were some."""
        return bool(self.made) and wait_for(
            lambda: set(self.states().values()) == {"Running"}, timeout_seconds=PATIENCE_SECONDS
        )

    def states(self) -> dict[str, str]:
        """The phase of each that was made."""
        items = json.loads(self._space.kubectl("get", "ww", "-o", "json").stdout)["items"]
        found: dict[str, Any] = {each["metadata"]["name"]: each["status"].get("phase") for each in items}
        return {name: found.get(name, "gone") for name in self.made}
