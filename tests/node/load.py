"""What users do while something is upgraded: requests to a server, one after the other, and new objects."""

from __future__ import annotations

import http.client
import json
import threading
from types import TracebackType
from typing import Any, Self

from tests.cluster.node import NodeCluster
from tests.cluster.processes import wait_for
from tests.node.pods import PATIENCE_SECONDS, Space
from tests.support import wat
from tests.support.kube import workload

REQUEST_TIMEOUT_SECONDS = 10.0

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
