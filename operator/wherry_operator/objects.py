"""The objects that this operator serves, as it saw them last: fed by watches, mended by a periodic LIST.

kopf never synthesises a deletion (facts: kopf.md §3), and a watch can lose what it likes: the LIST finds it. Nothing is
concluded from a LIST alone: what it disagrees about is read again.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass

from wherry_operator.kube import Kube, NotFound
from wherry_operator.models import Object, resource_version
from wherry_operator.packing import alike, packed, unpacked
from wherry_operator.queue import Key

log = logging.getLogger(__name__)

FEW = 50
"""Objects that are read one by one."""

REMEMBERED_DEAD = 10_000
"""UIDs of deleted objects that are remembered; a UID never comes back, late word of it does."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """One object: packed, and beside it what is asked of all of them at once."""

    body: bytes
    uid: str
    version: int
    phase: str
    labels: Mapping[str, str] | None
    """None: it has none."""

    @classmethod
    def of(cls, body: Object) -> _Kept:
        metadata = body["metadata"]
        phase = (body.get("status") or {}).get("phase") or "Pending"
        labels = metadata.get("labels") or None
        return cls(
            packed(body),
            metadata["uid"],
            resource_version(body),
            alike(phase),
            None if labels is None else {alike(key): value for key, value in labels.items()},
        )


class ObjectStore:
    """Objects of one kind. `on_change` is called with the key, and the UID of an object that is gone."""

    def __init__(
        self, kind: str, *, accepts: Callable[[Object], bool], on_change: Callable[[Key, str | None], None]
    ) -> None:
        self.kind = kind
        self._accepts = accepts
        self._on_change = on_change
        self._objects: dict[tuple[str, str], _Kept] = {}
        self._dead: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, namespace: str, name: str) -> Object | None:
        """An object, if it is one of ours: a copy."""
        kept = self._objects.get((namespace, name))
        return None if kept is None else unpacked(kept.body)

    def all(self) -> Iterable[Object]:
        """All of ours."""
        return [unpacked(kept.body) for kept in self._objects.values()]

    def phases(self) -> Counter[str]:
        """How many of ours are in each phase."""
        return Counter(kept.phase for kept in self._objects.values())

    def within(
        self, namespace: str, *, having: Callable[[Mapping[str, str]], bool] = lambda _: True
    ) -> Iterable[Object]:
        """All of ours in a namespace; `having`: of those labels alone."""
        return [
            unpacked(kept.body)
            for (place, _), kept in self._objects.items()
            if place == namespace and having(kept.labels or {})
        ]

    def seen(self, body: Object, *, deleted: bool = False) -> None:
        """Take what a watch, a read or a write of ours gave. Older than what is known: ignored."""
        metadata = body["metadata"]
        place = alike(metadata["namespace"]), metadata["name"]
        if metadata["uid"] in self._dead:
            return  # the answer to a write of ours may come after the word that the object is gone
        known = self._objects.get(place)
        key = Key(self.kind, *place)
        other = known is not None and known.uid != metadata["uid"]
        version = resource_version(body)
        if known is not None and known.version > version:
            if other:
                self._on_change(key, metadata["uid"])  # late word of one that had the name before: it is gone
            return
        if known is not None and not other and not deleted and version and known.version == version:
            return  # the watch brings what a write of ours was answered
        if known is not None and other:
            # The name has passed on: whatever had it before is gone, also if nobody said so.
            del self._objects[place]
            self._on_change(key, known.uid)
        if deleted or not self._accepts(body):
            self._objects.pop(place, None)
            if deleted:
                self._bury(metadata["uid"])
            self._on_change(key, metadata["uid"])
            return
        self._objects[place] = _Kept.of(body)
        self._on_change(key, None)

    def wrote(self, body: Object) -> None:
        """Take the answer to a write of its status by whoever reconciles it, and has drawn all conclusions from it: nobody need
        look again, unless somebody else has changed more."""
        metadata = body["metadata"]
        place = alike(metadata["namespace"]), metadata["name"]
        known = self._objects.get(place)
        if (
            known is None
            or known.version > resource_version(body)
            or not _differ_by_status_alone(unpacked(known.body), body)
        ):
            self.seen(body)
        else:
            self._objects[place] = _Kept.of(body)

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
                if (known := self.get(namespace, name)) is not None:
                    log.info("%s %s/%s is gone; the watch missed it", self.kind, namespace, name)
                    self.seen(known, deleted=True)

    def _doubtful(self, there: Mapping[tuple[str, str], Object]) -> list[tuple[str, str]]:
        return [
            place
            for place in {*there, *self._objects}
            if place not in there
            or place not in self._objects
            or resource_version(there[place]) > self._objects[place].version
        ]


def _differ_by_status_alone(one: Object, other: Object) -> bool:
    return _but_status(one) == _but_status(other)


def _but_status(body: Object) -> tuple[Object, Object]:
    return body["spec"], {key: value for key, value in body["metadata"].items() if key != "resourceVersion"}
