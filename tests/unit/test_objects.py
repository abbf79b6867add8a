"""The store of objects: what watches, reads and LISTs said, in whatever order it came."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from tests.support.fake_kube import FakeKube
from wherry_operator.kube import Kube, Unavailable
from wherry_operator.models import lean
from wherry_operator.objects import FEW, ObjectStore
from wherry_operator.queue import Key

KEY = Key("Pod", "boats", "a")


def path(namespace: str, name: str) -> str:
    return f"/api/v1/namespaces/{namespace}/pods/{name}"


def pod(uid: str = "u1", version: int | str = 1, *, node: str = "wherry", name: str = "a") -> dict[str, Any]:
    return {
        "metadata": {"namespace": "boats", "name": name, "uid": uid, "resourceVersion": str(version)},
        "spec": {"nodeName": node},
    }


class Watched:
    """A store, and what it told: the key, and who is gone."""

    def __init__(self) -> None:
        self.told: list[str | None] = []
        self.store = ObjectStore("Pod", accepts=lambda body: body["spec"]["nodeName"] == "wherry", on_change=self._tell)

    def _tell(self, key: Key, gone: str | None) -> None:
        assert key.kind == "Pod"
        self.told.append(gone)

    def uid(self, name: str = "a") -> str | None:
        body = self.store.get("boats", name)
        return body["metadata"]["uid"] if body else None


SEQUENCES: list[Any] = [
    pytest.param([(pod(), False)], "u1", [None], id="a new one"),
    pytest.param([(pod(version=2), False), (pod(version=3), False)], "u1", [None, None], id="a change"),
    pytest.param([(pod(version=3), False), (pod(version=2), False)], "u1", [None], id="an older word is ignored"),
    pytest.param([(pod(version=3), False), (pod(version=3), False)], "u1", [None], id="the same again"),
    pytest.param([(pod(), False), (pod(version=2), True)], None, [None, "u1"], id="gone"),
    pytest.param([(pod(), True)], None, ["u1"], id="gone before it was seen"),
    pytest.param([(pod(), False), (pod("u2", 5), False)], "u2", [None, "u1", None], id="replaced, its deletion unseen"),
    pytest.param(
        [(pod("u2", 5), False), (pod("u1", 4), True)], "u2", [None, "u1"], id="the deletion comes after the new one"
    ),
    pytest.param(
        [(pod("u2", 5), False), (pod("u1", 3), False)], "u2", [None, "u1"], id="late word of the one before it"
    ),
    pytest.param([(pod(node="other"), False)], None, ["u1"], id="somebody else's"),
    pytest.param([(pod(), False), (pod(version=2, node="other"), False)], None, [None, "u1"], id="no longer ours"),
    pytest.param(
        [(pod(), False), (pod("u2", 5, node="other"), False)],
        None,
        [None, "u1", "u2"],
        id="the name went to another node, the deletion unseen",
    ),
    pytest.param(
        [(pod(), False), (pod(version=3), True), (pod(version=2), False)],
        None,
        [None, "u1"],
        id="the answer to a write of ours comes after the deletion",
    ),
    pytest.param([(pod(version="x"), False), (pod(version=""), True)], None, [None, "u1"], id="no number"),
]


@pytest.mark.parametrize(("words", "kept", "told"), SEQUENCES)
def test_what_is_kept_and_what_is_told(
    words: list[tuple[dict[str, Any], bool]], kept: str | None, told: list[str | None]
) -> None:
    watched = Watched()
    for body, deleted in words:
        watched.store.seen(body, deleted=deleted)
    assert watched.uid() == kept
    assert watched.told == told
    assert len(watched.store) == len(list(watched.store.all())) == (kept is not None)


def test_who_set_which_field_is_left_at_the_door() -> None:
    body = pod()
    body["metadata"]["managedFields"] = [{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}]
    assert lean(body) == pod()
    assert "managedFields" in body["metadata"], "what others hold is not changed"
    for other in (pod(), {}, {"metadata": None}, {"kind": "PodList", "metadata": {}, "items": []}):
        assert lean(other) is other


def compare(watched: Watched, kube: FakeKube, listed: list[dict[str, Any]] | None = None) -> None:
    async def scenario() -> None:
        items = await kube.list_metadata("/api/v1/pods") if listed is None else listed
        kube.calls.clear()
        real = cast("Kube", kube)
        await watched.store.compare(real, items, path, lambda: real.each("/api/v1/namespaces/boats/pods"))

    asyncio.run(scenario())


def test_a_list_finds_what_a_watch_missed() -> None:
    kube, watched = FakeKube(), Watched()
    for name, uid in (("same", "s"), ("new", "n"), ("old", "o")):
        body = kube.put(path("boats", name), pod(uid, name=name))
        if name != "new":
            watched.store.seen(body)
    watched.store.seen(pod("g", name="gone"))
    kube.put(path("boats", "old"), pod("o", name="old"))
    watched.told.clear()
    compare(watched, kube)
    assert {item["metadata"]["name"] for item in watched.store.all()} == {"same", "new", "old"}
    assert sorted(str(gone) for gone in watched.told) == ["None", "None", "g"]
    assert sorted(kube.calls) == [("FIND", path("boats", name)) for name in ("gone", "new", "old")], (
        "only what is in doubt"
    )
    watched.told.clear()
    compare(watched, kube)
    assert (watched.told, kube.calls) == ([], [])


def test_what_is_missed_by_the_thousand_is_read_in_one_go() -> None:
    kube, watched = FakeKube(), Watched()
    names = [f"pod-{number}" for number in range(FEW + 1)]
    for name in names:
        kube.put(path("boats", name), pod(name, name=name))
    watched.store.seen(pod("g", name="gone"))
    compare(watched, kube)
    assert {item["metadata"]["name"] for item in watched.store.all()} == set(names)
    assert sorted(kube.calls) == [("FIND", path("boats", "gone")), ("LIST", "/api/v1/namespaces/boats/pods")]


def test_a_list_that_lies_deletes_nothing() -> None:
    kube, watched = FakeKube(), Watched()
    watched.store.seen(kube.put(path("boats", "a"), pod()))
    compare(watched, kube, [])
    assert watched.uid() == "u1"


def test_an_object_whose_name_another_node_has_now_is_gone() -> None:
    kube, watched = FakeKube(), Watched()
    watched.store.seen(kube.put(path("boats", "a"), pod()))
    kube.put(path("boats", "a"), pod("u2", node="other"))
    compare(watched, kube, [])
    assert watched.uid() is None
    assert "u1" in watched.told


def test_what_can_not_be_read_stays_and_the_comparison_fails() -> None:
    kube, watched = FakeKube(), Watched()
    watched.store.seen(pod())
    kube.errors[path("boats", "a")] = [Unavailable(503, "", "no")]
    with pytest.raises(Unavailable):
        compare(watched, kube, [])
    assert watched.uid() == "u1"


def test_who_wrote_a_status_need_not_look_again_unless_more_has_changed() -> None:
    watched = Watched()
    watched.store.seen(pod(version=1))
    watched.store.wrote({**pod(version=2), "status": {"phase": "Running"}})
    assert watched.told == [None]
    watched.store.seen({**pod(version=2), "status": {"phase": "Running"}})
    assert watched.told == [None], "the watch brings it as well"
    changed = pod(version=4)
    changed["metadata"]["labels"] = {"a": "b"}  # by somebody else, whose word comes too late
    watched.store.wrote({**changed, "status": {"phase": "Failed"}})
    assert watched.told == [None, None]
    found = watched.store.get("boats", "a")
    assert found is not None and found["metadata"]["labels"] == {"a": "b"}
