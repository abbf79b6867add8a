"""The objects that this operator serves, as it saw them last: fed by watches, mended by a periodic LIST.

kopf never synthesises a deletion (facts: kopf.md §3), and a watch can lose what it likes: the LIST finds it. Nothing is
concluded from a LIST alone: what it disagrees about is read again.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping

from wherry_operator.kube import Kube, NotFound
from wherry_operator.models import Object, compact, resource_version
from wherry_operator.queue import Key

log = logging.getLogger(__name__)

FEW = 50
"""Objects that are read one by one."""

REMEMBERED_DEAD = 10_000
"""UIDs of deleted objects that are remembered; a UID never comes back, late word of it does."""


class ObjectStore:
    """Objects of one kind. `on_change` is called with the key, and the UID of an object that is gone."""

    def __init__(
        self, kind: str, *, accepts: Callable[[Object], bool], on_change: Callable[[Key, str | None], None]
    ) -> None:
        self.kind = kind
        self._accepts = accepts
        self._on_change = on_change
        self._objects: dict[tuple[str, str], Object] = {}
        self._dead: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, namespace: str, name: str) -> Object | None:
        """An object, if it is one of ours."""
        return self._objects.get((namespace, name))

    def all(self) -> Iterable[Object]:
        """All of ours."""
        return list(self._objects.values())

    def within(self, namespace: str) -> Iterable[Object]:
        """All of ours in a namespace."""
        return [body for (place, _), body in self._objects.items() if place == namespace]

    def seen(self, body: Object, *, deleted: bool = False) -> None:
        """Take what a watch, a read or a write of ours gave. Older than what is known: ignored."""
        metadata = body["metadata"]
        place = metadata["namespace"], metadata["name"]
        if metadata["uid"] in self._dead:
            return  # the answer to a write of ours may come after the word that the object is gone
        known = self._objects.get(place)
        key = Key(self.kind, *place)
        other = known is not None and known["metadata"]["uid"] != metadata["uid"]
        if known is not None and resource_version(known) > resource_version(body):
            if other:
                self._on_change(key, metadata["uid"])  # late word of one that had the name before: it is gone
            return
        if known is not None and not other and not deleted and _same_version(known, body):
            return  # the watch brings what a write of ours was answered
        if known is not None and other:
            # The name has passed on: whatever had it before is gone, also if nobody said so.
            del self._objects[place]
            self._on_change(key, known["metadata"]["uid"])
        if deleted or not self._accepts(body):
            self._objects.pop(place, None)
            if deleted:
                self._bury(metadata["uid"])
            self._on_change(key, metadata["uid"])
            return
        self._objects[place] = compact(body)
        self._on_change(key, None)

    def wrote(self, body: Object) -> None:
        """Take the answer to a write of its status by whoever reconciles it, and has drawn all conclusions from it: nobody need
        look again, unless somebody else has changed more."""
        metadata = body["metadata"]
        place = metadata["namespace"], metadata["name"]
        known = self._objects.get(place)
        if (
            known is None
            or not _differ_by_status_alone(known, body)
            or resource_version(known) > resource_version(body)
        ):
            self.seen(body)
        else:
            self._objects[place] = compact(body)

    def _bury(self, uid: str) -> None:
        self._dead[uid] = None
        while len(self._dead) > REMEMBERED_DEAD:
            self._dead.popitem(last=False)

    async def compare(
        self,
        kube: Kube,
        listed: Iterable[Object],
        path: Callable[[str, str], str],
        every: Callable[[], AsyncIterator[Object]],
    ) -> None:
        """Mend what a LIST (metadata only) disagrees about, by reading each such object, or all of them (`every`) where it is
        about many: at a start nothing is known yet."""
        there = {(item["metadata"]["namespace"], item["metadata"]["name"]): item for item in listed}
        if len(self._doubtful(there)) > FEW:
            async for body in every():
                self.seen(body)
        for namespace, name in self._doubtful(there):
            try:
                self.seen(await kube.find(path(namespace, name)))
            except NotFound:
                if (known := self._objects.get((namespace, name))) is not None:
                    log.info("%s %s/%s is gone; the watch missed it", self.kind, namespace, name)
                    self.seen(known, deleted=True)

    def _doubtful(self, there: Mapping[tuple[str, str], Object]) -> list[tuple[str, str]]:
        return [
            place
            for place in {*there, *self._objects}
            if place not in there
            or place not in self._objects
            or resource_version(there[place]) > resource_version(self._objects[place])
        ]


def _same_version(one: Object, other: Object) -> bool:
    version = one["metadata"].get("resourceVersion")
    return bool(version) and version == other["metadata"].get("resourceVersion")


def _differ_by_status_alone(one: Object, other: Object) -> bool:
    return _but_status(one) == _but_status(other)


def _but_status(body: Object) -> tuple[Object, Object]:
    return body["spec"], {key: value for key, value in body["metadata"].items() if key != "resourceVersion"}
