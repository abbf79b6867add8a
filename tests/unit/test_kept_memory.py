"""What is kept for each of thousands of objects, and what is given back after a burst of them."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
from pathlib import Path
from typing import Any

import pytest

from wherry_operator import models
from wherry_operator.models import compact
from wherry_runner import protocol, unused_memory

OBJECT = json.dumps(
    {
        "metadata": {"name": "a", "labels": {"app.kubernetes.io/name": "a"}},
        "spec": {"restartPolicy": "Always", "args": ["Always", "--port=1"], "replicas": 2, "suspend": None},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    }
)


def strings(value: Any) -> dict[str, int]:
    """Which string of an object is which in memory."""
    if isinstance(value, dict):
        return {each: place for pair in value.items() for part in pair for each, place in strings(part).items()}
    if isinstance(value, list):
        return {each: place for part in value for each, place in strings(part).items()}
    return {value: id(value)} if isinstance(value, str) else {}


def test_objects_are_kept_as_they_are_with_one_string_for_what_is_alike() -> None:
    one, other = compact(json.loads(OBJECT)), compact(json.loads(OBJECT))
    assert one == other == json.loads(OBJECT)
    assert one is not other
    mine, theirs = strings(one), strings(other)
    shared = {word for word in mine if mine[word] == theirs[word]}
    assert {"metadata", "restartPolicy", "Always", "Running", "True", "app.kubernetes.io/name"} <= shared
    assert "--port=1" not in shared


def test_words_are_not_remembered_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "MAX_WORDS", 10)
    many = [compact({f"label-{number}": number}) for number in range(100)]
    assert many == [{f"label-{number}": number} for number in range(100)]
    assert len(models._words) <= 12


def test_a_long_word_of_a_strangers_is_not_remembered() -> None:
    word = "x" * (models.MAX_WORD_CHARACTERS + 1)
    assert compact({word: word}) == {word: word}
    assert word not in models._words


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
