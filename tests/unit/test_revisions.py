"""Earlier revisions: which are remembered, and that they are written down once things are calm."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.workload_scene import PATH, Scene
from wherry_operator.kube import Forbidden, Unavailable
from wherry_operator.packing import unpacked
from wherry_operator.reconcile.revisions import OWNER_LABEL
from wherry_operator.rollout.revisions import Remembered, changes

COLLECTION = "/apis/apps/v1/namespaces/boats/controllerrevisions"


# --- which ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=20), st.integers(0, 4))
def test_the_last_ones_are_remembered_the_present_one_as_the_newest(used: list[str], limit: int) -> None:
    known: list[Remembered] = []
    for revision in used:
        todo = changes(known, revision, limit)
        known = [item for item in known if item not in todo.delete]
        if todo.number is not None:
            known.append(Remembered(todo.number, revision, f"x-{todo.number}-{revision}", "u"))
        again = changes(known, revision, limit)
        assert (again.number, again.delete) == (None, ()), "it is done"
    order = [item.revision for item in sorted(known)]
    last = list(dict.fromkeys(reversed(used)))[: limit + 1]
    assert order == last[::-1]
    assert len({item.number for item in known}) == len(known)


# --- written down -----------------------------------------------------------------------------------------------------


def written(scene: Scene) -> dict[int, dict[str, Any]]:
    bodies = (body for path, body in scene.kube.objects.items() if path.startswith(COLLECTION))
    return {body["revision"]: body for body in bodies}


def work(scene: Scene) -> None:
    """What is due, without its waiting times."""

    async def run() -> None:
        if not scene.revisions._loaded:
            await scene.revisions.load()
        for key in list(scene.revisions._due):
            await scene.revisions.write(unpacked(scene.revisions._due.pop(key)))

    asyncio.run(run())


def edits(scene: Scene, *arguments: str) -> Iterator[int]:
    """The revisions that are there after each of these was rolled out."""
    for argument in arguments:
        scene.edit(args=[argument])
        scene.settle()
        work(scene)
        yield len(written(scene))


def test_what_ran_is_written_down_once_it_is_ready() -> None:
    scene = Scene(restartPolicy="Always", replicas=2, revisionHistoryLimit=2)
    scene.reconcile()
    work(scene)
    assert written(scene) == {}, "it is not ready yet"
    scene.settle()
    work(scene)
    (first,) = written(scene).values()
    assert first["data"]["spec"] == {"module": {"image": "i"}, "restartPolicy": "Always"}
    assert "replicas" in first["data"]["outside"]
    assert first["metadata"]["labels"][OWNER_LABEL] == "u-1"
    assert first["metadata"]["ownerReferences"][0]["uid"] == "u-1"
    assert first["metadata"]["name"] == f"hello-1-{scene.status['updateRevision']}"
    scene.edit(replicas=3)
    scene.settle()
    work(scene)
    assert list(written(scene)) == [1], "a change of how many is no revision"


def test_the_oldest_are_deleted_and_one_that_comes_back_is_the_newest() -> None:
    scene = Scene(restartPolicy="Always", revisionHistoryLimit=2).settle()
    assert list(edits(scene, "a", "b", "c", "d")) == [2, 3, 3, 3]
    assert [body["data"]["spec"]["args"] for _, body in sorted(written(scene).items())] == [["b"], ["c"], ["d"]]
    assert list(edits(scene, "b")) == [3]
    assert [body["data"]["spec"]["args"] for _, body in sorted(written(scene).items())] == [["c"], ["d"], ["b"]]


def test_another_operator_knows_what_is_written_down_and_asks_for_nothing_more() -> None:
    scene = Scene(restartPolicy="Always", args=["a"]).settle()
    work(scene)
    scene.succeed()
    work(scene)
    scene.kube.calls.clear()
    scene.reconcile()
    work(scene)
    assert scene.kube.calls == []
    assert list(edits(scene, "b")) == [2]


def test_what_can_not_be_written_down_is_tried_again_and_of_what_is_gone_nothing_is() -> None:
    scene = Scene(restartPolicy="Always").settle()
    scene.kube.errors[COLLECTION] = [Unavailable(503, "", "later")]
    work(scene)
    assert written(scene) == {}
    work(scene)
    assert list(written(scene)) == [1]
    scene.edit(args=["b"])
    scene.settle()
    scene.store.seen(scene.kube.remove(PATH), deleted=True)
    work(scene)
    assert list(written(scene)) == [1]


def test_a_write_whose_answer_was_lost_has_been_made() -> None:
    scene = Scene(restartPolicy="Always").settle()
    work(scene)
    scene.revisions.gone("u-1")  # it knows nothing of what is there
    for writes in (1, 0):
        scene.kube.calls.clear()
        scene.edit(replicas=2 - writes)
        scene.settle()
        work(scene)
        assert sum(call == ("POST", COLLECTION) for call in scene.kube.calls) == writes
        assert (list(written(scene)), scene.revisions._due) == ([1], {})


def test_what_is_refused_is_tried_when_something_happens_and_not_before() -> None:
    scene = Scene(restartPolicy="Always").settle()
    scene.kube.errors[COLLECTION] = [Forbidden(403, "Forbidden", "exceeded quota: revisions")]
    work(scene)
    assert (written(scene), scene.revisions._due) == ({}, {})
    scene.edit(replicas=2)
    scene.settle()
    work(scene)
    assert list(written(scene)) == [1]


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("db-7-6d8f9c", {"kind": "StatefulSet", "uid": "u-of-db"}),
        ("hello-7-6d8f9c", {"kind": "WasmWorkload", "uid": "u-2"}),
        ("hello-7-6d8f9c", None),
        ("x", {"kind": "WasmWorkload", "uid": "u-1"}),
        ("hello-x-6d8f9c", {"kind": "WasmWorkload", "uid": "u-1"}),
    ],
)
def test_what_only_has_the_label_is_none_of_ours(name: str, owner: dict[str, str] | None) -> None:
    scene = Scene(restartPolicy="Always", revisionHistoryLimit=0).settle()
    metadata = {
        "name": name,
        "namespace": "boats",
        "uid": "u-of-it",
        "labels": {OWNER_LABEL: "u-1"},
        "ownerReferences": [owner] if owner else [],
    }
    scene.kube.put(f"{COLLECTION}/{name}", {"metadata": metadata, "revision": 7})
    work(scene)
    assert sorted(written(scene)) == [1, 7], "it is not counted, and not deleted"
