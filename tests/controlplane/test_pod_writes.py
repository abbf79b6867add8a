"""What a Pod's life costs the API server, counted in its audit log."""

from __future__ import annotations

from collections import Counter

from tests.cluster.local import LocalCluster
from tests.support import wat
from tests.support.audit import pod_writes
from tests.support.kube import Workspace


def test_a_life_costs_few_writes(cluster: LocalCluster, space: Workspace) -> None:
    space.pod("short", space.push(wat.exits(0)), spec={"restartPolicy": "Never"})
    space.pod("long", space.push(wat.sleeps()), spec={"terminationGracePeriodSeconds": 1})
    space.wait_phase("short", "Succeeded")
    space.wait_phase("long", "Running")
    space.kubectl("delete", "pod", "short", "long")
    # Taken, Running and its end; one that had ended before is deleted by the API server alone. On a busy machine a start may
    # take so long that it is told of in between.
    assert pod_writes(cluster, space, "short") in (Counter({"patch status": 3}), Counter({"patch status": 4}))
    long = pod_writes(cluster, space, "long")
    assert long["delete"] == 1 and long["patch status"] in (3, 4)


def test_what_does_not_differ_is_not_written(cluster: LocalCluster, space: Workspace) -> None:
    space.pod("still", space.push(wat.sleeps()))
    space.wait_phase("still", "Running")
    before = pod_writes(cluster, space, "still")
    for number in range(3):
        space.kubectl("annotate", "pod", "still", f"example.com/note={number}", "--overwrite")
    # Each of those was looked at when this later one has run: one key at a time, in the order of their coming.
    space.pod("later", space.push(wat.exits(0)), spec={"restartPolicy": "Never"})
    space.wait_phase("later", "Succeeded")
    assert pod_writes(cluster, space, "still") == before
