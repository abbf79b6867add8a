"""What the operator's benches work with: an installation, the API server at full speed, and what a watch saw."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import os
import ssl
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from bench.scene import cpu_seconds, descendants
from tests.cluster.local import LocalCluster
from tests.cluster.processes import Process
from tests.cluster.registry import Registry
from tests.support import wat
from tests.support.images import push
from tests.support.installation import Installation

Json = dict[str, Any]

WORKLOADS = ("/apis/wherry.dev/v1alpha1", "wasmworkloads")
PODS = ("/api/v1", "pods")
WRITERS = 32
"""Requests that a burst has open at once."""

TIMEOUT_SECONDS = 300.0
"""For anything that is waited for: far more than it takes."""

PARTS = {"kube-apiserver": "API server", "/etcd ": "etcd", "wherry_operator": "operator", "wherry": "runner and guests"}
"""Words of a command line, and whose CPU time that is; the first that fits."""


class Scene:
    """One run of the benches."""

    def __init__(self, cluster: LocalCluster, folder: Path) -> None:
        self.cluster = cluster
        self._folder = folder
        self._numbers = itertools.count(1)

    @contextmanager
    def installation(
        self,
        *,
        simulated: Callable[[Installation], Process] | None = None,
        runner_flags: Sequence[str] = (),
        **settings: Any,
    ) -> Iterator[Installation]:
        """Operator and a runner; `simulated` starts others in its place."""
        number = next(self._numbers)
        folder = self._folder / f"installation-{number}"
        runners = () if simulated else ("runner-a",)
        flags = ("--log-level", "WARNING", "--max-workloads", "6000", *runner_flags)
        made = Installation(self.cluster, folder, runners=runners, runner_flags=flags, serves_logs=False, **settings)
        others = simulated(made) if simulated else None
        try:
            with made:
                yield made
        finally:
            if others:
                others.kill()

    @contextmanager
    def image(self, text: str) -> Iterator[str]:
        """A module in a registry, by its name in manifests."""
        folder = self._folder / f"registry-{next(self._numbers)}"
        folder.mkdir()
        with Registry(folder) as registry:
            yield push(registry.address, "bench", [wat.write(text, folder / "module.wasm")])

    @asynccontextmanager
    async def api(self, kind: tuple[str, str] = WORKLOADS) -> AsyncIterator[Api]:
        """The API server, as an administrator, for objects of a kind in a namespace of its own that is gone afterwards."""
        namespace = f"bench-{next(self._numbers)}"
        self.cluster.kubectl("create", "namespace", namespace)
        self.cluster.kubectl(
            "wait", "--for=create", "serviceaccount/default", f"--namespace={namespace}", "--timeout=30s"
        )
        who = ("--clusterrole=cluster-admin", f"--serviceaccount={namespace}:default", f"--namespace={namespace}")
        self.cluster.kubectl("create", "rolebinding", "bench", *who)
        # Not a certificate, whose signature an API server verifies anew with each request.
        token = self.cluster.kubectl("create", "token", "default", f"--namespace={namespace}", "--duration=3h").stdout
        headers = {"Authorization": f"Bearer {token.strip()}"}
        context = ssl.create_default_context(cafile=str(self.cluster.ca_file))
        connector = aiohttp.TCPConnector(limit=64, ssl=context)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(
            self.cluster.server, connector=connector, timeout=timeout, headers=headers
        ) as session:
            try:
                yield Api(session, namespace, kind)
            finally:
                await asyncio.to_thread(
                    self.cluster.kubectl, "delete", "namespace", namespace, "--timeout=300s", timeout=310
                )


@dataclass
class Seen:
    """What a watch has shown of one object."""

    versions: int = 0
    bound_ms: float | None = None
    """When it was first seen bound to a node."""
    newest: Json = field(default_factory=dict)
    largest_bytes: int = 0


class Api:
    """The API server in one namespace, and one kind of objects there."""

    def __init__(self, session: aiohttp.ClientSession, namespace: str, kind: tuple[str, str] = WORKLOADS) -> None:
        self._session = session
        self.namespace = namespace
        self._kind = kind
        self.seen: defaultdict[str, Seen] = defaultdict(Seen)
        """By an object's name."""
        self._running: set[str] = set()
        self._waiting: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    def path(self, name: str = "", *, subresource: str = "") -> str:
        """Of an object, or of all."""
        group, plural = self._kind
        parts = [f"{group}/namespaces/{self.namespace}/{plural}", name, subresource]
        return "/".join(part for part in parts if part)

    async def ask(self, method: str, path: str, body: Json | None = None) -> Json:
        """One request, and what is answered. Raises RuntimeError."""
        async with self._asked(method, path, body) as answer:
            found: Json = await answer.json()
            return found

    async def tell(self, method: str, path: str, body: Json) -> None:
        """One request, of which only the success is of interest. Raises RuntimeError."""
        async with self._asked(method, path, body) as answer:
            await answer.read()

    @asynccontextmanager
    async def _asked(self, method: str, path: str, body: Json | None) -> AsyncIterator[aiohttp.ClientResponse]:
        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        data = None if body is None else json.dumps(body)
        async with self._session.request(method, path, data=data, headers={"Content-Type": kind}) as answer:
            if answer.status >= 400:
                raise RuntimeError(f"{method} {path}: {await answer.text()}")
            yield answer

    async def create(self, name: str, **spec: Any) -> None:
        """A WasmWorkload."""
        body = {"apiVersion": "wherry.dev/v1alpha1", "kind": "WasmWorkload", "metadata": {"name": name}, "spec": spec}
        await self.tell("POST", self.path(), body)

    async def create_many(self, names: list[str], **spec: Any) -> None:
        """WasmWorkloads, as fast as they are taken."""
        await _at_once(functools.partial(self.create, name, **spec) for name in names)

    async def set_status_of_many(self, names: list[str], status: Json) -> None:
        """Give all the same status, as fast as it is taken."""
        paths = [self.path(name, subresource="status") for name in names]
        await _at_once(functools.partial(self.tell, "PATCH", path, {"status": status}) for path in paths)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Note what happens to the objects meanwhile."""
        listed = await self.ask("GET", self.path() + "?limit=1")
        follower = asyncio.create_task(self._follow(listed["metadata"]["resourceVersion"]))
        try:
            yield
        finally:
            follower.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await follower

    async def _follow(self, version: str) -> None:
        """Where the API server ends a watch, it goes on from there. Raises RuntimeError where it can not."""
        while True:
            path = f"{self.path()}?watch=1&allowWatchBookmarks=true&resourceVersion={version}"
            async with self._session.get(path, read_bufsize=1 << 24) as answer:
                async for line in answer.content:
                    version = self._note(json.loads(line), len(line))

    def _note(self, event: Json, size: int) -> str:
        found = event["object"]
        if event["type"] == "ERROR":
            raise RuntimeError(f"the watch: {found.get('message')}")
        version: str = found["metadata"]["resourceVersion"]
        if event["type"] in ("ADDED", "MODIFIED"):
            name = found["metadata"]["name"]
            seen = self.seen[name]
            seen.versions += 1
            seen.newest = found
            if seen.bound_ms is None and found["spec"].get("nodeName"):
                seen.bound_ms = now_ms()
            seen.largest_bytes = max(seen.largest_bytes, size)
            (self._running.add if self.phase(name) == "Running" else self._running.discard)(name)
            self._wake()
        return version

    def _wake(self) -> None:
        for waits in list(self._waiting):
            holds, future = waits
            if not future.done() and holds():
                future.set_result(None)
                self._waiting.remove(waits)

    async def when(self, holds: Callable[[], bool]) -> None:
        """Wait until this holds of what the watch has shown. Raises TimeoutError."""
        if holds():
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((holds, future))
        await asyncio.wait_for(future, TIMEOUT_SECONDS)

    def phase(self, name: str) -> str:
        """As the watch has shown it."""
        return str((self.seen[name].newest.get("status") or {}).get("phase", "")) if name in self.seen else ""

    def running(self) -> int:
        """How many are Running."""
        return len(self._running)

    async def delete_all(self) -> None:
        """All WasmWorkloads of the namespace."""
        await self.ask("DELETE", self.path())

    async def events(self) -> int:
        """Events of the namespace, each as often as it is counted."""
        found = await self.ask("GET", f"/api/v1/namespaces/{self.namespace}/events")
        return sum(item.get("count") or 1 for item in found["items"])


async def _at_once(calls: Iterable[Callable[[], Awaitable[Any]]]) -> None:
    slots = asyncio.Semaphore(WRITERS)

    async def one(call: Callable[[], Awaitable[Any]]) -> None:
        async with slots:
            await call()

    await asyncio.gather(*map(one, calls))


def processes() -> dict[int, str]:
    """Whose CPU time each process below this one is."""
    found = {}
    for pid in descendants(os.getpid()):
        with contextlib.suppress(FileNotFoundError):
            words = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
            found[pid] = next((part for word, part in PARTS.items() if word in words), "other")
    return found


def cpu_by_part() -> dict[str, float]:
    """CPU seconds of each part up to now; of guests that live too."""
    sums: defaultdict[str, float] = defaultdict(float)
    for pid, part in processes().items():
        with contextlib.suppress(FileNotFoundError):
            sums[part] += cpu_seconds([pid])
    return sums


def now_ms() -> float:
    """For differences."""
    return time.perf_counter() * 1e3
