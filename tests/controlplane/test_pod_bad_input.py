"""Pods at bad moments: nothing is left behind, and nobody else waits."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.support import wat
from tests.support.kube import Workspace


@pytest.fixture
def silent() -> Iterator[str]:
    """A registry that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_a_pod_that_is_deleted_while_it_pulls_is_gone_at_once(space: Workspace, silent: str) -> None:
    space.pod("pulls", f"{silent}/never/ends:v1")
    space.wait(lambda: space.waiting("pulls").get("reason") == "ContainerCreating", "it was taken")
    uid = (space.get("pod", "pulls") or {})["metadata"]["uid"]
    space.pod("other", space.push(wat.exits(0)), spec={"restartPolicy": "Never"})
    space.wait_phase("other", "Succeeded")
    assert space.waiting("pulls") == {"reason": "ContainerCreating"}, "it still pulls, and nobody waits for that"
    space.kubectl("delete", "pod", "pulls", "--timeout=60s")
    runner = space.installation.runners["runner-a"]
    space.wait(lambda: not runner.traces(uid), "the runner has nothing of it")


def test_a_pod_that_is_deleted_before_anybody_saw_it(space: Workspace) -> None:
    """Made and deleted again many times, by force too: in the end there is nothing, and the name can be used."""
    image = space.push(wat.sleeps())
    for number in range(10):
        space.pod("brief", image, spec={"terminationGracePeriodSeconds": 0 if number % 2 else 1})
        space.kubectl("delete", "pod", "brief", "--wait=true")
    space.pod("brief", image)
    space.kubectl("wait", "--for=condition=Ready", "pod/brief", "--timeout=60s")
    assert space.container("brief")["restartCount"] == 0


def test_a_deletion_that_no_watch_ever_tells_is_found_by_the_lists(space: Workspace) -> None:
    """The operator is away while a Pod is taken away by force, and another of the same name made."""
    image = space.push(wat.sleeps())
    space.pod("lost", image)
    space.kubectl("wait", "--for=condition=Ready", "pod/lost", "--timeout=60s")
    uid = (space.get("pod", "lost") or {})["metadata"]["uid"]
    installation, runner = space.installation, space.installation.runners["runner-a"]
    installation.kill_operator()
    space.kubectl("delete", "pod", "lost", "--force", "--grace-period=0")
    space.pod("lost", image)
    installation.start_operator()
    space.kubectl("wait", "--for=condition=Ready", "pod/lost", "--timeout=60s")
    space.wait(lambda: not runner.traces(uid), "the first one was stopped", timeout=180)
    assert (space.get("pod", "lost") or {})["metadata"]["uid"] != uid
