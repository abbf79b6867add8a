"""An API server of a few dictionaries: enough of it for reconcilers, and strict where a real one has surprised us."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from typing import Any

from wherry_operator.kube import Conflict, Invalid, KubeError, NotFound, PatchKind
from wherry_operator.models import Object

_MERGE_KEYS = {"conditions": "type", "hostIPs": "ip", "podIPs": "ip"}
"""Lists that a strategic merge patch merges (patchStrategy in k8s.io/api/core/v1/types.go); all others are replaced."""


class FakeKube:
    """Objects by their path. Every change that changes something counts up the resourceVersion."""

    def __init__(self) -> None:
        self.objects: dict[str, Object] = {}
        self.calls: list[tuple[str, str]] = []
        self.patches: list[tuple[str, Object]] = []
        self.errors: dict[str, list[KubeError]] = {}
        """By path: raised one by one instead of an answer."""
        self._version = 0
        self._managers: dict[str, str] = {}

    def put(self, path: str, body: Object) -> Object:
        """Have this object, as a watch would show it."""
        self._version += 1
        kept = copy.deepcopy(body)
        kept["metadata"]["resourceVersion"] = str(self._version)
        self.objects[path] = kept
        return copy.deepcopy(kept)

    def remove(self, path: str) -> Object:
        """Delete it, and give it as the watch's DELETED event does."""
        self._version += 1
        gone = self.objects.pop(path)
        gone["metadata"]["resourceVersion"] = str(self._version)
        return gone

    async def get(self, path: str) -> Object:
        self._call("GET", path)
        return copy.deepcopy(self._there(path))

    async def find(self, path: str) -> Object:
        self._call("FIND", path)
        return copy.deepcopy(self._there(path))

    async def list_metadata(self, path: str, *, field_selector: str = "", label_selector: str = "") -> list[Object]:
        self._call("LIST", path)
        *_, plural = path.split("/")
        return [
            {"metadata": copy.deepcopy(body["metadata"])}
            for name, body in self.objects.items()
            if name.split("/")[-2] == plural
        ]

    async def list_objects(self, path: str, *, label_selector: str = "") -> tuple[list[Object], str]:
        self._call("LIST", path)
        *_, plural = path.split("/")
        label, _, value = label_selector.partition("=")
        found = [
            copy.deepcopy(body)
            for name, body in self.objects.items()
            if name.split("/")[-2] == plural
            and (not label or (body["metadata"].get("labels") or {}).get(label) == value)
        ]
        return found, str(self._version)

    async def each(self, path: str, *, field_selector: str = "") -> AsyncIterator[Object]:
        self._call("LIST", path)
        for name, body in list(self.objects.items()):
            if name.rpartition("/")[0] == path:
                yield copy.deepcopy(body)

    async def create(self, path: str, body: Object) -> Object:
        self._call("POST", path)
        name = body["metadata"]["name"]
        if f"{path}/{name}" in self.objects:
            raise Conflict(409, "AlreadyExists", f"{name} already exists")
        return self.put(f"{path}/{name}", {**body, "metadata": {"uid": f"uid-of-{name}", **body["metadata"]}})

    async def apply(self, path: str, body: Object, *, manager: str) -> Object:
        """As for one that sets all fields, which others then may not."""
        self._call("APPLY", path)
        if path in self.objects and self._managers.get(path) != manager and body != self.objects[path]:
            raise Conflict(409, "Conflict", "Apply failed with 1 conflict")
        self._managers[path] = manager
        return self.put(path, {**body, "metadata": {"uid": f"uid-of-{path}", **body["metadata"]}})

    async def patch(self, path: str, body: Object, kind: PatchKind = PatchKind.MERGE) -> Object:
        self._call("PATCH", path)
        self.patches.append((path, copy.deepcopy(body)))
        of = path.removesuffix("/status")
        before = self._there(of)
        uid = body.get("metadata", {}).get("uid")
        if uid not in (None, before["metadata"].get("uid")):
            raise Conflict(409, "Conflict", "the UID in the precondition does not match the UID in record")
        version = body.get("metadata", {}).get("resourceVersion")
        if version not in (None, before["metadata"]["resourceVersion"]):
            raise Conflict(
                409, "Conflict", "the object has been modified; please apply your changes to the latest version"
            )
        merge = merge_strategic if kind is PatchKind.STRATEGIC else merge_json
        after = merge(before, body)
        addresses = [item["ip"] for item in after.get("status", {}).get("hostIPs", ())]
        if len(addresses) > 1:
            raise Invalid(422, "Invalid", "status.hostIPs: may specify no more than one IP for each IP family")
        return copy.deepcopy(before) if after == before else self.put(of, after)

    async def delete(
        self, path: str, *, uid: str, resource_version: str = "", grace_seconds: int | None = None
    ) -> None:
        self._call("DELETE", path)
        version = self.objects.get(path, {}).get("metadata", {}).get("resourceVersion")
        if resource_version and version not in (None, resource_version):
            raise Conflict(409, "Conflict", "the ResourceVersion in the precondition does not match that in record")
        if path in self.objects and self.objects[path]["metadata"]["uid"] == uid:
            self.remove(path)

    def _there(self, path: str) -> Object:
        if path not in self.objects:
            raise NotFound(404, "NotFound", f"{path} not found")
        return self.objects[path]

    def _call(self, verb: str, path: str) -> None:
        self.calls.append((verb, path))
        if self.errors.get(path):
            raise self.errors[path].pop(0)


def merge_json(live: Any, change: Any) -> Any:
    """RFC 7386."""
    if not isinstance(change, dict):
        return copy.deepcopy(change)
    result = copy.deepcopy(live) if isinstance(live, dict) else {}
    for key, value in change.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_json(result.get(key), value)
    return result


def merge_strategic(live: Any, change: Any) -> Any:
    """As k8s.io/apimachinery/pkg/util/strategicpatch does it with a PodStatus."""
    if not isinstance(change, dict):
        return copy.deepcopy(change)
    result = copy.deepcopy(live) if isinstance(live, dict) else {}
    for key, value in change.items():
        if value is None:
            result.pop(key, None)
        elif key in _MERGE_KEYS:
            result[key] = _merge_list(result.get(key) or [], value, _MERGE_KEYS[key])
        elif isinstance(value, dict):
            result[key] = merge_strategic(result.get(key), value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def _merge_list(live: list[Object], change: list[Object], key: str) -> list[Object]:
    items = [item for item in change if "$patch" not in item]
    if any(item.get("$patch") == "replace" for item in change):
        return copy.deepcopy(items)
    gone = {item[key] for item in change if item.get("$patch") == "delete"}
    live = [item for item in live if item[key] not in gone]
    there = {item[key]: item for item in live}
    merged = {item[key]: merge_strategic(there.get(item[key]), item) for item in items}
    return [*(merged[name] for name in merged if name not in there), *(merged.get(item[key], item) for item in live)]
