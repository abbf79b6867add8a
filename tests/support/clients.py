"""Clients of a Service beside a control plane: as by a proxy, they are led to what its EndpointSlices say.

As browsers and HTTP libraries do, one that keeps its connections asks once more over a new one where the server has closed the
one that it had before any byte of the answer (RFC 9110, 9.2.2); who makes a connection for each request gets no second chance.
"""

from __future__ import annotations

import http.client
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Self

from tests.cluster.processes import wait_for

TIMEOUT_SECONDS = 30.0

READ_SECONDS = 0.1
"""Between two looks at where they are led."""

PAUSE_SECONDS = 0.005
"""Between two requests of one client: the cluster runs on the same machine."""

Address = tuple[str, int]

_CLOSED = (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)
"""What a request over a connection that the server has closed meanwhile ends with."""


class Clients:
    """Ask until they are told to stop: of those that are ready one after the other, and of those that leave where there is no
    other.

    Attributes:
        answered: how many requests were, as they should be.
        failures: what happened to the others.
    """

    def __init__(
        self, where: Callable[[], tuple[Sequence[Address], Sequence[Address]]], expected: bytes, *, each_way: int = 2
    ) -> None:
        """`where`: those that are ready, and those that leave. `each_way`: clients with a connection for each request, and as
        many that keep theirs."""
        self._where = where
        self._expected = expected
        self._known: Sequence[Address] = ()
        self._read_at = 0.0
        self._over = threading.Event()
        self._turns = itertools.count()
        self._lock = threading.Lock()
        self.answered = 0
        self.kept = 0
        """Of these, how many over a connection that had been used before."""
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._follow)]
        for keeps in (False, True):
            self._threads += [threading.Thread(target=self._ask, args=(keeps,)) for _ in range(each_way)]

    def __enter__(self) -> Self:
        self._read()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def wait(self, requests: int, *, timeout_seconds: float) -> None:
        """Wait until there were so many in all."""
        done = wait_for(lambda: self.answered >= requests or bool(self.failures), timeout_seconds=timeout_seconds)
        assert done, f"only {self.answered} requests"

    def _follow(self) -> None:
        while not self._over.wait(READ_SECONDS):
            self._read()

    def _read(self) -> None:
        at = time.monotonic()
        ready, leaving = self._where()
        self._known, self._read_at = ready or leaving, at

    def _next(self) -> Address:
        known = self._known
        return known[next(self._turns) % len(known)]

    def _ask(self, keeps: bool) -> None:
        connection = None
        while not self._over.wait(PAUSE_SECONDS):
            used = connection is not None
            address = self._next()
            try:
                if connection is None:
                    connection = http.client.HTTPConnection(*address, timeout=TIMEOUT_SECONDS)
                connection.request("GET", "/", headers={} if keeps else {"Connection": "close"})
                answer = connection.getresponse()
                body, status, closes = answer.read(), answer.status, answer.will_close
            except (OSError, http.client.HTTPException) as error:
                assert connection is not None
                connection.close()
                connection = None
                if not used or not isinstance(error, _CLOSED):
                    self._note(f"{address}: {error!r}")
                continue
            if (status, body) != (200, self._expected):
                self._note(f"{address}: {status} {body!r}")
            else:
                self._note("", kept=used)
            if closes or not keeps:
                connection.close()
                connection = None
        if connection is not None:
            connection.close()

    def _note(self, failure: str, *, kept: bool = False) -> None:
        with self._lock:
            if failure:
                age = time.monotonic() - self._read_at
                self.failures.append(f"{failure}, {age:.1f} s after the last look, after {self.answered} answers")
            else:
                self.answered += 1
                self.kept += kept
