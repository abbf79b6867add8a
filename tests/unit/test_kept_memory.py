"""What is kept for each of thousands of objects, and what is given back after a burst of them."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import os
import weakref
from pathlib import Path
from typing import Any

import pytest

from wherry_operator import handlers
from wherry_operator.packing import packed, unpacked
from wherry_runner import protocol, unused_memory

OBJECT = json.dumps(
    {
        "metadata": {"name": "a", "labels": {"app.kubernetes.io/name": "a"}},
        "spec": {"restartPolicy": "Always", "args": ["Always", "--port=1"], "replicas": 2, "suspend": None},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    }
)


def test_objects_are_kept_as_they_are_and_given_as_copies() -> None:
    body = {**json.loads(OBJECT), "data": {"half a pair": "\ud800", "ä": 1.5, "none": None}}
    kept = packed(body)
    one, other = unpacked(kept), unpacked(kept)
    assert one == other == body
    one["spec"]["args"].append("more")
    assert unpacked(kept) == body


def test_a_peer_that_names_ever_other_fields_fills_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "_FIELD_SETS", {})
    monkeypatch.setattr(protocol, "_MAX_FIELD_SETS", 2)
    fields = {"done": True, "value": 1, "name": "a"}
    for number in range(1, 8):
        given = {name: value for bit, (name, value) in enumerate(fields.items()) if number >> bit & 1}
        made = type("Made", (protocol.Wire,), {"__annotations__": dict.fromkeys(fields, Any), **dict.fromkeys(fields)})(
            **given
        )
        assert made.model_fields_set == set(given)
    assert len(protocol._FIELD_SETS) == 2


def test_values_of_the_wire_share_the_names_of_what_they_were_given() -> None:
    one, other = (protocol.Owner(kind="Pod", namespace="default", name=name, uid="1") for name in "ab")
    assert one.model_fields_set is other.model_fields_set
    changed = one.model_copy(update={"name": "c"})
    assert changed == protocol.Owner(kind="Pod", namespace="default", name="c", uid="1")
    assert changed.model_fields_set is not one.model_fields_set
    assert one.model_fields_set == {"kind", "namespace", "name", "uid"}


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another C library than glibc")
def test_what_a_burst_leaves_between_what_is_kept_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [bytearray(100_000) for _ in range(1_000)]
    kept = many[::50]
    del many
    held = resident_bytes()
    monkeypatch.setattr(unused_memory, "EVERY_SECONDS", 0.01)

    async def until_given_back() -> None:
        keeping = asyncio.create_task(unused_memory.keep_giving_back())
        while held - resident_bytes() < 10 << 20:
            await asyncio.sleep(0.01)
        keeping.cancel()

    asyncio.run(until_given_back())
    assert kept


class _Cycle:
    def __init__(self) -> None:
        self.myself = self


def test_garbage_that_only_the_collector_finds_is_found_where_nothing_more_happens() -> None:
    gc.collect()
    found = [weakref.ref(_Cycle()) for _ in range(unused_memory.NEW_OBJECTS + 1_000)]
    unused_memory._collect()
    assert not any(each() for each in found)


def test_kopf_remembers_nothing_of_an_object() -> None:
    async def run() -> None:
        memories = handlers._NoMemories()
        body: Any = {"metadata": {"uid": "u-1"}}
        one = await memories.recall(body, noticed_by_listing=True)
        assert one.noticed_by_listing
        assert await memories.recall(body) is not one
        assert not list(memories.iter_all_memories())

    asyncio.run(run())
