"""Volumes of every kind, as the module sees them, and how they follow what they are made of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.local import LocalCluster
from tests.cluster.registry import Registry
from tests.guests import build
from tests.support import wat
from tests.support.audit import answers, pod_writes
from tests.support.claims import claim
from tests.support.installation import Installation
from tests.support.kube import MIRRORED, Json, Workspace, pod


@pytest.fixture
def tool(space: Workspace, tmp_path: Path) -> str:
    """The image of the guest that its arguments script."""
    path = tmp_path / "tool.wasm"
    path.write_bytes(build.c("tool"))
    return space.push_file(path)


def looks(
    space: Workspace,
    tool: str,
    volumes: list[Json],
    mounts: list[Json],
    commands: dict[str, list[str]],
    **container: object,
) -> dict[str, str]:
    """What modules with these volumes print, each command a container of its own, one after the other."""
    steps = [
        {"name": name, "image": tool, "args": arguments, "volumeMounts": mounts, **container}
        for name, arguments in commands.items()
    ]
    body = pod("looks", tool, node=space.installation.node_name)
    body["metadata"] |= {"labels": {"app": "web", "tier": "front"}, "annotations": {"note": 'with "quotes"'}}
    body["spec"] |= {
        "restartPolicy": "Never",
        "volumes": volumes,
        "initContainers": steps[:-1],
        "containers": steps[-1:],
    }
    space.apply(body)
    space.wait_phase("looks", "Succeeded")
    return {name: space.logs("looks", "-c", name) for name in commands}


def test_config_maps_and_secrets_with_items_and_what_may_be_missing(space: Workspace, tool: str) -> None:
    space.kubectl("create", "configmap", "settings", "--from-literal=a=one", "--from-literal=b=two")
    space.kubectl("create", "secret", "generic", "hidden", "--from-literal=key=s3cret", "--from-literal=other=x")
    seen = looks(
        space,
        tool,
        [
            {"name": "all", "configMap": {"name": "settings"}},
            {
                "name": "some",
                "secret": {"secretName": "hidden", "items": [{"key": "key", "path": "deep/er/key"}]},
            },
            {"name": "none", "configMap": {"name": "nobody", "optional": True}},
            {"name": "late", "secret": {"secretName": "nobody", "optional": True}},
            {
                "name": "lacks",
                "configMap": {"name": "settings", "optional": True, "items": [{"key": "c", "path": "c"}]},
            },
        ],
        [{"name": name, "mountPath": f"/v/{name}"} for name in ("all", "some", "none", "late", "lacks")],
        {
            "all": ["list", "/v/all"],
            "a": ["read", "/v/all/a"],
            "some": ["list", "/v/some"],
            "key": ["read", "/v/some/deep/er/key"],
            "none": ["list", "/v/none"],
            "late": ["list", "/v/late"],
            "lacks": ["list", "/v/lacks"],
        },
    )
    assert sorted(seen.pop("all").split()) == ["a", "b"]
    assert {name: text.strip() for name, text in seen.items()} == {
        "a": "one",
        "some": "deep",
        "key": "s3cret",
        "none": "",
        "late": "",
        "lacks": "",
    }


def test_files_have_the_modes_that_the_spec_names_on_every_kind_of_volume(space: Workspace, tool: str) -> None:
    """On the runner's own files: WASI has no modes to ask for, but whoever opens a file is bound to them."""
    space.kubectl("create", "configmap", "settings", "--from-literal=a=one", "--from-literal=b=two")
    space.kubectl("create", "secret", "generic", "hidden", "--from-literal=key=s3cret", "--from-literal=other=x")

    def label(path: str, **mode: int) -> Json:
        return {"path": path, "fieldRef": {"fieldPath": "metadata.name"}, **mode}

    sources = [
        {"configMap": {"name": "settings", "items": [{"key": "a", "path": "all-map", "mode": 0o604}]}},
        {"secret": {"name": "hidden", "items": [{"key": "key", "path": "all-secret"}]}},
        {"downwardAPI": {"items": [label("all-me", mode=0o444)]}},
    ]
    items = [{"key": "a", "path": "map-default"}, {"key": "b", "path": "map-own", "mode": 0o755}]
    volumes = [
        {"name": "map", "configMap": {"name": "settings", "defaultMode": 0o640, "items": items}},
        {
            "name": "secret",
            "secret": {"secretName": "hidden", "items": [{"key": "key", "path": "deep/er/own", "mode": 0o400}]},
        },
        {"name": "plain", "secret": {"secretName": "hidden", "items": [{"key": "other", "path": "plain"}]}},
        {
            "name": "me",
            "downwardAPI": {"defaultMode": 0o600, "items": [label("me-default"), label("me-own", mode=0o4)]},
        },
        {"name": "all", "projected": {"defaultMode": 0o440, "sources": sources}},
    ]
    space.pod(
        "holds",
        tool,
        args=["wait"],
        spec={"volumes": volumes},
        volumeMounts=[{"name": each["name"], "mountPath": f"/v/{each['name']}"} for each in volumes],
    )
    space.kubectl("wait", "--for=condition=Ready", "pod/holds", "--timeout=60s")
    uid = (space.get("pod", "holds") or {})["metadata"]["uid"]
    assert _modes(space.installation.runners["runner-a"].volumes(uid)) == {
        "map-default": "640",
        "map-own": "755",
        "own": "400",
        "plain": "644",
        "me-default": "600",
        "me-own": "4",
        "all-map": "604",
        "all-secret": "440",
        "all-me": "444",
        # Of the volume that admission adds.
        "ca.crt": "644",
        "namespace": "644",
    }


def _modes(folders: list[Path]) -> dict[str, str]:
    """The permissions of all files below folders, in octal digits, by their names."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return {path.name: f"{path.stat().st_mode & 0o7777:o}" for path in files}


def test_projected_and_downward_volumes(space: Workspace, tool: str) -> None:
    space.kubectl("create", "configmap", "settings", "--from-literal=a=one")
    space.kubectl("create", "secret", "generic", "hidden", "--from-literal=key=s3cret")

    def field(path: str, of: str) -> Json:
        return {"path": path, "fieldRef": {"fieldPath": of}}

    limit = {
        "path": "limit",
        "resourceFieldRef": {"containerName": "limit", "resource": "limits.memory", "divisor": "1Mi"},
    }
    items = [field("labels", "metadata.labels"), field("notes", "metadata.annotations"), limit]
    sources = [
        {"configMap": {"name": "settings", "items": [{"key": "a", "path": "from/map"}]}},
        {"secret": {"name": "hidden"}},
        {"secret": {"name": "nobody", "optional": True}},
        {"downwardAPI": {"items": [field("from/name", "metadata.name")]}},
    ]
    seen = looks(
        space,
        tool,
        [{"name": "me", "downwardAPI": {"items": items}}, {"name": "all", "projected": {"sources": sources}}],
        [{"name": "me", "mountPath": "/me"}, {"name": "all", "mountPath": "/all"}],
        {
            "labels": ["read", "/me/labels"],
            "notes": ["read", "/me/notes"],
            "limit": ["read", "/me/limit"],
            "from": ["list", "/all/from"],
            "map": ["read", "/all/from/map"],
            "name": ["read", "/all/from/name"],
            "key": ["read", "/all/key"],
        },
        resources={"limits": {"memory": "64Mi"}},
    )
    assert seen["labels"].split() == ['app="web"', 'tier="front"']
    assert 'note="with \\"quotes\\""' in seen["notes"]
    assert (seen["limit"].strip(), sorted(seen["from"].split())) == ("64", ["map", "name"])
    assert [seen[name].strip() for name in ("map", "name", "key")] == ["one", "looks", "s3cret"]


def test_sub_paths_of_an_empty_folder_are_kept_apart(space: Workspace, tool: str) -> None:
    mounts: list[Json] = [
        {"name": "work", "mountPath": "/mine", "subPathExpr": "of-$(WHO)"},
        {"name": "work", "mountPath": "/all"},
        {"name": "fast", "mountPath": "/fast"},
    ]
    seen = looks(
        space,
        tool,
        [{"name": "work", "emptyDir": {}}, {"name": "fast", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}],
        mounts,
        {
            "make": ["create", "/mine/made", "by me"],
            "fast": ["create", "/fast/made", "in memory"],
            "read": ["read", "/all/of-looks/made"],
            "there": ["read", "/fast/made"],
        },
        env=[{"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
    )
    assert (seen["read"].strip(), seen["there"].strip()) == ("by me", "in memory")


def test_a_change_reaches_a_running_modules_files_all_at_once_and_without_a_restart(
    space: Workspace, tool: str
) -> None:
    space.kubectl("create", "configmap", "settings", "--from-literal=word=one")
    space.kubectl("create", "secret", "generic", "hidden", "--from-literal=word=one")
    sources = [{"configMap": {"name": "settings", "items": [{"key": "word", "path": "projected"}]}}]
    volumes = [
        {"name": "map", "configMap": {"name": "settings"}},
        {"name": "secret", "secret": {"secretName": "hidden"}},
        {"name": "both", "projected": {"sources": sources}},
        {"name": "me", "downwardAPI": {"items": [{"path": "l", "fieldRef": {"fieldPath": "metadata.labels['word']"}}]}},
    ]
    body = pod("follows", tool, node=space.installation.node_name, spec={"restartPolicy": "Never", "volumes": volumes})
    body["metadata"]["labels"] = {"word": "one"}
    body["spec"]["containers"] = [
        {
            "name": name,
            "image": tool,
            "args": ["await", f"/v/{file}", "two"],
            "volumeMounts": [{"name": name, "mountPath": "/v"}],
        }
        for name, file in (("map", "word"), ("secret", "word"), ("both", "projected"), ("me", "l"))
    ]
    space.apply(body)
    space.kubectl("wait", "--for=condition=Ready", "pod/follows", "--timeout=60s")
    space.kubectl("patch", "configmap", "settings", "-p", '{"data":{"word":"two"}}')
    space.kubectl("patch", "secret", "hidden", "-p", '{"stringData":{"word":"two"}}')
    space.kubectl("label", "pod", "follows", "word=two", "--overwrite")
    status = space.wait_phase("follows", "Succeeded")["status"]
    assert {each["restartCount"] for each in status["containerStatuses"]} == {0}


def test_a_secret_that_vanishes_stops_nothing_and_is_followed_when_it_is_back(
    cluster: LocalCluster, space: Workspace, tool: str
) -> None:
    space.kubectl("create", "secret", "generic", "hidden", "--from-literal=word=one")
    volumes = [{"name": "v", "secret": {"secretName": "hidden"}}]
    space.pod(
        "keeps",
        tool,
        args=["await", "/v/word", "two"],
        volumeMounts=[{"name": "v", "mountPath": "/v"}],
        spec={"restartPolicy": "Never", "volumes": volumes},
    )
    space.kubectl("wait", "--for=condition=Ready", "pod/keeps", "--timeout=60s")
    before = pod_writes(cluster, space, "keeps")
    space.kubectl("delete", "secret", "hidden")
    space.wait(lambda: ("", 404) in answers(cluster, space, "get", "secrets", "hidden"), "it is known to be gone")
    assert space.phase("keeps") == "Running" and pod_writes(cluster, space, "keeps") == before
    space.kubectl("create", "secret", "generic", "hidden", "--from-literal=word=two")
    status = space.wait_phase("keeps", "Succeeded")["status"]
    assert status["containerStatuses"][0]["restartCount"] == 0


def test_a_config_map_as_large_as_they_can_be(space: Workspace, tool: str, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(b"0123456789abcde\n" * 62_500)
    space.kubectl("create", "configmap", "large", f"--from-file={large}")
    seen = looks(
        space,
        tool,
        [{"name": "v", "configMap": {"name": "large"}}],
        [{"name": "v", "mountPath": "/v"}],
        {"read": ["read", "/v/large"]},
    )
    assert len(seen["read"].strip()) == 1_000_000 - 1


# --- folders of the node ----------------------------------------------------------------------------------------------


@pytest.fixture
def offering(
    request: pytest.FixtureRequest, registry: Registry, namespace: str, tmp_path: Path
) -> Iterator[tuple[Installation, Path]]:
    """An installation that allows one folder, and a claim of the namespace beside it; and the folder."""
    cluster = request.getfixturevalue("cluster")
    folder = tmp_path / "shared"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "file").write_text("of the node")
    (tmp_path / "claim").mkdir()
    (tmp_path / "claim" / "file").write_text("of the claim")
    with Installation(
        cluster,
        tmp_path / "installation",
        node_name="wherry-host",
        class_name="host",
        namespace="wherry-host",
        runners=["runner-h"],
        runner_flags=["--host-path", str(folder), "--claim", f"{namespace}/data={tmp_path / 'claim'}"],
        operator_flags=["--claim", f"{namespace}/data"],
        registry_mirrors={MIRRORED: registry.url},
        serves_logs=False,
    ) as running:
        yield running, folder
    cluster.kubectl("delete", "node", "wherry-host")


def test_a_folder_of_the_node_below_what_is_allowed(
    offering: tuple[Installation, Path], registry: Registry, namespace: str, tmp_path: Path
) -> None:
    installation, folder = offering
    space = Workspace(installation, registry, namespace, tmp_path)
    path = tmp_path / "tool.wasm"
    path.write_bytes(build.c("tool"))
    seen = looks(
        space,
        space.push_file(path),
        [
            {"name": "old", "hostPath": {"path": str(folder / "data"), "type": "Directory"}},
            {"name": "new", "hostPath": {"path": str(folder / "new"), "type": "DirectoryOrCreate"}},
        ],
        [{"name": "old", "mountPath": "/old", "readOnly": True}, {"name": "new", "mountPath": "/new"}],
        {"read": ["read", "/old/file"], "make": ["create", "/new/made", "by a module"]},
    )
    assert seen["read"].strip() == "of the node"
    assert (folder / "new" / "made").read_text() == "by a module"
    space.pod(
        "nosy",
        space.push(wat.exits(0)),
        spec={"volumes": [{"name": "v", "hostPath": {"path": "/etc"}}]},
        volumeMounts=[{"name": "v", "mountPath": "/v"}],
    )
    space.wait(lambda: "--host-path" in json.dumps(space.waiting("nosy")), "anything else is refused by name")


# --- claims -----------------------------------------------------------------------------------------------------------


def test_a_claim_that_the_runners_have_and_one_that_they_have_not(
    offering: tuple[Installation, Path], registry: Registry, namespace: str, tmp_path: Path
) -> None:
    installation, _ = offering
    space = Workspace(installation, registry, namespace, tmp_path)
    volumes = [*claim("data", namespace, tmp_path / "claim"), *claim("other", namespace, tmp_path / "claim")]
    path = tmp_path / "tool.wasm"
    path.write_bytes(build.c("tool"))
    tool = space.push_file(path)
    try:
        for each in volumes:
            space.apply(each)
        mounts = [{"name": "own", "mountPath": "/own"}, {"name": "read", "mountPath": "/read"}]
        seen = looks(
            space,
            tool,
            [
                {"name": "own", "persistentVolumeClaim": {"claimName": "data"}},
                {"name": "read", "persistentVolumeClaim": {"claimName": "data", "readOnly": True}},
            ],
            mounts,
            {"read": ["read", "/read/file"], "make": ["create", "/own/made", "by a module"]},
        )
        assert seen["read"].strip() == "of the claim"
        assert (tmp_path / "claim" / "made").read_text() == "by a module"
        space.pod(
            "nosy",
            tool,
            spec={"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "other"}}]},
            volumeMounts=[{"name": "v", "mountPath": "/v"}],
        )
        space.wait(lambda: "claim" in space.waiting("nosy").get("message", ""), "the claim is refused")
        says = space.waiting("nosy")["message"]
        assert f'spec.volumes[0].persistentVolumeClaim: the claim "{namespace}/other" is not mounted' in says
    finally:
        space.kubectl("delete", "pods", "--all", "--wait=false")
        for each in volumes[::2]:
            space.kubectl("delete", "persistentvolume", each["metadata"]["name"], "--wait=false")
