"""The table of fields: what the document promises is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from wherry_operator.models import Object
from wherry_operator.resolve import fields
from wherry_operator.resolve.fields import Treatment
from wherry_operator.resolve.objects import Unsupported
from wherry_operator.resolve.pod import check, refusals

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "pods.md"


def _documented(heading: str) -> dict[str, Treatment]:
    section = DOCUMENT.read_text().split(f"### {heading}\n")[1].split("\n### ")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([a-zA-Z ]+) \|", section, re.MULTILINE)
    assert len(dict(rows)) == len(rows)
    return {name: Treatment(treatment) for name, treatment in rows}


def pod(spec: Object | None = None, *, init: Object | None = None, **container: object) -> Object:
    first: Object = {"name": "main", "image": "i", **container}
    more = {"initContainers": [{"name": "first", "image": "i", **init}]} if init else {}
    return {
        "metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {"containers": [first], **more, **(spec or {})},
    }


def test_the_document_has_every_field() -> None:
    assert _documented("Of a Pod") == fields.POD
    assert _documented("Of a container") == fields.CONTAINER


@pytest.mark.parametrize("field", [name for name, each in fields.POD.items() if each is Treatment.REFUSED])
def test_refused_of_a_pod(field: str) -> None:
    with pytest.raises(Unsupported, match=rf"^spec\.{field}: "):
        check(pod({field: True}))


@pytest.mark.parametrize("field", [name for name, each in fields.CONTAINER.items() if each is Treatment.REFUSED])
def test_refused_of_a_container(field: str) -> None:
    assert [text.split(":")[0] for text in refusals(pod(**{field: {"a": 1}}))] == [f"spec.containers[0].{field}"]
    assert [text.split(":")[0] for text in refusals(pod(init={field: {"a": 1}}))] == [f"spec.initContainers[0].{field}"]


def test_a_port_of_the_node_is_refused_by_name() -> None:
    ports = [{"containerPort": 80}, {"containerPort": 81, "hostPort": 81, "hostIP": "10.0.0.1"}]
    assert [text.split(":")[0] for text in refusals(pod(ports=ports))] == [
        "spec.containers[0].ports[1].hostPort", "spec.containers[0].ports[1].hostIP",
    ]  # fmt: skip
    assert refusals(pod(ports=ports[:1])) == []


def test_every_refusal_is_named_at_once() -> None:
    asks = pod(
        {"hostPID": True, "hostIPC": False, "volumes": [{"name": "v", "csi": {}}]}, volumeDevices=[{"name": "v"}]
    )
    assert [text.split(":")[0] for text in refusals(asks)] == [
        "spec.hostPID", "spec.containers[0].volumeDevices", "spec.volumes[0].csi",
    ]  # fmt: skip


def test_what_no_hook_can_do_is_refused_by_name() -> None:
    asked = {"httpGet": {"port": 80, "scheme": "HTTP"}}
    assert refusals(pod(lifecycle={"postStart": asked, "preStop": {"sleep": {"seconds": 5}}})) == []
    hooks = {
        "stopSignal": "SIGUSR1",
        "postStart": {"exec": {"command": ["true"]}},
        "preStop": {"httpGet": {"port": 80, "host": "example.com", "scheme": "HTTPS"}},
    }
    where = "spec.initContainers[0].lifecycle"
    assert [text.split(":")[0] for text in refusals(pod(init={"lifecycle": hooks}))] == [
        f"{where}.stopSignal", f"{where}.postStart.exec",
        f"{where}.preStop.httpGet.host", f"{where}.preStop.httpGet.scheme",
    ]  # fmt: skip
    (text,) = refusals(pod(lifecycle={"preStop": {"tcpSocket": {"port": 80}}}))
    assert text.startswith("spec.containers[0].lifecycle.preStop.tcpSocket: ")


def test_a_claim_is_refused_unless_the_runners_have_it() -> None:
    asks = pod({"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]})
    for claims in ([], ["other/data"], ["n/other"]):
        (text,) = refusals(asks, claims=claims)
        assert text.startswith('spec.volumes[0].persistentVolumeClaim: the claim "n/data" ')
        assert "runner.claims" in text
    assert refusals(asks, claims=["n/data"]) == []


def test_only_init_containers_have_a_restart_policy_of_their_own() -> None:
    assert refusals(pod(init={"restartPolicy": "Always"})) == []
    (text,) = refusals(pod(restartPolicy="Always"))
    assert text.startswith("spec.containers[0].restartPolicy: ")
