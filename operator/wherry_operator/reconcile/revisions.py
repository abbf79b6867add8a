"""Earlier revisions of WasmWorkloads, as ControllerRevisions that they own: what `kubectl wherry rollout undo` goes back to.

They are written after an object is ready, one at a time and at leisure: no start waits for them. Garbage collection deletes
them with their object.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable

from wherry_operator.clock import Clock
from wherry_operator.kube import Conflict, Forbidden, Kube, KubeError, Unavailable
from wherry_operator.models import Object
from wherry_operator.objects import ObjectStore
from wherry_operator.packing import packed, unpacked
from wherry_operator.resolve import workload as resolving
from wherry_operator.rollout.revisions import DEFAULT_LIMIT, Remembered, changes
from wherry_operator.scope import Scope

log = logging.getLogger(__name__)

GROUP = "/apis/apps/v1"
OWNER_LABEL = "wherry.dev/workload"
"""The UID of the object whose revision it is."""

LEISURE_SECONDS = 2.0
"""After an object became ready, and between two tries: a burst of thousands has its starts behind it."""

PAUSE_SECONDS = 0.02
"""Between two of them: ten thousand objects must not keep the API server from its work."""

PAUSE_WHILE_BUSY_SECONDS = 1.0

NAME_CHARACTERS = 220
"""Of the object's name in that of its revision, which has at most 253."""


class Revisions:
    """Writes down what runs."""

    def __init__(
        self,
        kube: Kube,
        store: ObjectStore,
        *,
        scope: Scope | None = None,
        clock: Clock | None = None,
        busy: Callable[[], bool] = lambda: False,
    ) -> None:
        """`scope`: where WasmWorkloads are taken from. `busy`: whether there are more urgent things to be written."""
        self._scope = scope or Scope()
        self._kube = kube
        self._busy = busy
        self._store = store
        self._clock = clock or Clock()
        self._known: defaultdict[str, list[Remembered]] = defaultdict(list)
        """What is written down, by the object's UID."""
        self._loaded = False
        self._due: dict[tuple[str, str], bytes] = {}
        """Objects to be looked at, by UID and revision, the first to be first."""
        self._wake = asyncio.Event()

    def ready(self, workload: Object) -> None:
        """Note that this is what runs. Returns at once."""
        uid, revision = workload["metadata"]["uid"], resolving.revision_of(workload)
        if self._loaded:
            todo = changes(self._known.get(uid, ()), revision, _limit(workload))
            if todo.number is None and not todo.delete:
                return
        # A thousand wait here for a minute after a burst: what is written down is no status.
        self._due[uid, revision] = packed({field: value for field, value in workload.items() if field != "status"})
        self._wake.set()

    def gone(self, uid: str) -> None:
        """Forget an object: what was written down of it goes with it."""
        self._known.pop(uid, None)

    async def run(self) -> None:
        """Work until cancelled."""
        while not self._loaded:
            try:
                await self.load()
            except KubeError as error:
                log.warning("revisions are not known yet: %s", error)
                await self._clock.sleep(LEISURE_SECONDS)
        while True:
            while not self._due:
                self._wake.clear()
                await self._wake.wait()
            await self._clock.sleep(LEISURE_SECONDS)
            for key in list(self._due):
                await self.write(unpacked(self._due.pop(key)))
                await self._clock.sleep(PAUSE_WHILE_BUSY_SECONDS if self._busy() else PAUSE_SECONDS)

    async def load(self) -> None:
        """Learn what is written down already. Raises KubeError."""
        self._known.clear()
        for namespace, path in self._scope.paths(GROUP, "controllerrevisions").items():
            try:
                items = await self._kube.list_metadata(path, label_selector=OWNER_LABEL)
            except Forbidden as error:
                if not namespace:
                    raise
                log.warning("revisions in namespace %s are not known: %s", namespace, error)
                continue
            for item in items:
                metadata = item["metadata"]
                uid = metadata["labels"][OWNER_LABEL]
                if _is_of(metadata, uid) and (found := _remembered(metadata)) is not None:
                    self._known[uid].append(found)
        self._loaded = True

    async def write(self, workload: Object) -> None:
        """Write down what runs, and delete what is too old. What can't be done now is tried again later."""
        metadata = workload["metadata"]
        uid, revision = metadata["uid"], resolving.revision_of(workload)
        now = self._store.get(metadata["namespace"], metadata["name"])
        if now is None or now["metadata"]["uid"] != uid:
            return
        known = self._known[uid]
        todo = changes(known, revision, _limit(workload))
        path = f"{GROUP}/namespaces/{metadata['namespace']}/controllerrevisions"
        try:
            for old in todo.delete:
                await self._kube.delete(f"{path}/{old.name}", uid=old.uid)
                known.remove(old)
            if todo.number is not None:
                made = await self._create(path, _body(workload, todo.number, revision), uid)
                known.append(Remembered(todo.number, revision, made["name"], made["uid"]))
        except KubeError as error:
            if error.status == 404 or (error.status == 403 and "being terminated" in error.message):
                return  # its namespace goes, and it as well
            log.warning("%s/%s: its revision is not written down: %s", metadata["namespace"], metadata["name"], error)
            if isinstance(
                error, Unavailable
            ):  # else, e.g. for a quota, it is tried when something happens to the object
                self._due.setdefault((uid, revision), packed(workload))
                self._wake.set()

    async def _create(self, path: str, body: Object, uid: str) -> Object:
        """The metadata of a revision that is there now. Raises KubeError."""
        try:
            metadata: Object = (await self._kube.create(path, body))["metadata"]
        except Conflict:
            metadata = (await self._kube.find(f"{path}/{body['metadata']['name']}"))["metadata"]
            if not _is_of(metadata, uid):
                raise
            # Our own write, whose answer was lost.
        return metadata


def _is_of(metadata: Object, uid: str) -> bool:
    """Whether a ControllerRevision is the WasmWorkload's with this UID. The label is no proof: a StatefulSet's revisions have
    the labels of its Pods, and those are anybody's to choose."""
    owners = metadata.get("ownerReferences") or ()
    return any(owner["kind"] == "WasmWorkload" and owner["uid"] == uid for owner in owners)


def _remembered(metadata: Object) -> Remembered | None:
    """What its name says (`_body`); None: it is none of ours."""
    parts = metadata["name"].rsplit("-", 2)
    if len(parts) < 3 or not parts[1].isdecimal():
        return None
    return Remembered(int(parts[1]), parts[2], metadata["name"], metadata["uid"])


def _limit(workload: Object) -> int:
    limit = workload["spec"].get("revisionHistoryLimit")
    return DEFAULT_LIMIT if limit is None else int(limit)


def _body(workload: Object, number: int, revision: str) -> Object:
    metadata = workload["metadata"]
    name = metadata["name"][:NAME_CHARACTERS].rstrip("-.")
    return {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {
            "name": f"{name}-{number}-{revision}",
            "namespace": metadata["namespace"],
            "labels": {OWNER_LABEL: metadata["uid"], "wherry.dev/revision": revision},
            "ownerReferences": [
                {
                    "apiVersion": "wherry.dev/v1alpha1",
                    "kind": "WasmWorkload",
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                    "controller": True,
                }
            ],
        },
        "revision": number,
        # What is no part of it is named: whoever goes back leaves those fields as they are.
        "data": {
            "spec": resolving.template(workload),
            "outside": sorted(resolving.OUTSIDE_THE_TEMPLATE),
        },
    }
