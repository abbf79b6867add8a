"""Which Service a WasmWorkload has, and which EndpointSlices lead to what."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.fake_kube import merge_json
from wherry_operator.services import service as services
from wherry_operator.services import slices
from wherry_operator.services.service import Service
from wherry_operator.services.slices import Changes, Endpoint, LiveSlice, Slice

Json = dict[str, Any]

SERVICE = Service(namespace="boats", name="web", uid="s-1", version="7", type="ClusterIP")


def workload(**http: Any) -> Json:
    metadata = {"name": "web", "namespace": "boats", "uid": "u-1"}
    return {"metadata": metadata, "spec": {"module": {"image": "i"}, "http": http}}


def live(body: Json, **more: Any) -> Service:
    """What the watch shows of it once it is there."""
    metadata = {**body["metadata"], "uid": "s-1", "resourceVersion": "7"}
    return Service.of({**body, "metadata": {**metadata, **more}})


@pytest.mark.parametrize(
    "http",
    [
        {},
        {"port": 8080},
        {"service": {"type": "NodePort"}},
        {"service": {"name": "other", "annotations": {"a": "1"}}},
    ],
)
def test_what_was_made_as_it_should_be_is_left_alone(http: Json) -> None:
    made = services.desired(workload(**http))
    assert live(made).owner_uid == "u-1"
    assert services.change(live(made), workload(**http)) is None


@pytest.mark.parametrize(
    ("http", "name", "url"),
    [
        ({}, "web", "http://web.boats.svc"),
        ({"port": 80}, "web", "http://web.boats.svc"),
        ({"port": 8080, "service": {"name": "other"}}, "other", "http://other.boats.svc:8080"),
    ],
)
def test_its_name_and_address(http: Json, name: str, url: str) -> None:
    assert (services.name_of(workload(**http)), services.url_of(workload(**http))) == (name, url)


def test_without_http_there_is_none() -> None:
    body = workload()
    del body["spec"]["http"]
    assert services.name_of(body) == ""


def test_annotations_that_are_asked_for_no_more_go_and_others_stay() -> None:
    made = services.desired(workload(service={"annotations": {"a": "1", "b": "2"}}))
    made["metadata"]["annotations"]["theirs"] = "stays"
    for wanted, left in (({"b": "3"}, {"b": "3"}), ({}, {})):
        body = workload(service={"annotations": wanted})
        patch = services.change(live(made), body)
        assert patch is not None
        assert patch["metadata"]["uid"] == "s-1", "of this very Service"
        after = merge_json(made, patch)["metadata"]["annotations"]
        assert {key: value for key, value in after.items() if key != services.ANNOTATIONS} == {
            **left,
            "theirs": "stays",
        }
        after = {**made, "metadata": {**made["metadata"], "annotations": after}}
        assert services.change(live(after), body) is None


def test_a_selector_that_somebody_gave_it_is_taken_away() -> None:
    made = services.desired(workload())
    made["spec"]["selector"] = {"app": "x"}
    patch = services.change(live(made), workload())
    assert patch is not None
    assert patch["spec"]["selector"] is None


@pytest.mark.parametrize(
    "owner", [{"kind": "Deployment", "apiVersion": "apps/v1"}, {"kind": "WasmWorkload", "apiVersion": "x/v1"}]
)
def test_who_owns_it_decides_whose_it_is(owner: Json) -> None:
    made = services.desired(workload())
    assert live(made, ownerReferences=[{**owner, "uid": "u-1"}]).owner_uid == ""


# --- slices -----------------------------------------------------------------------------------------------------------


def endpoint(address: str, port: int = 20_000, **more: Any) -> Endpoint:
    return Endpoint(address=address, ports=(("http", port),), **more)


def as_live(of: Slice, **more: Any) -> LiveSlice:
    made = slices.body(SERVICE, of, "ours")
    made["metadata"] |= {"uid": f"uid-of-{of.name}", "resourceVersion": "9"}
    return slices.read(merge_json(made, more))


def test_each_port_has_a_slice_of_its_own() -> None:
    one_runner = [endpoint("10.0.0.1", port) for port in range(20_000, 20_020)]
    found = slices.wanted("web", "wherry", one_runner)
    assert len(found) == len({each.name for each in found}) == 20
    assert all(len(each.endpoints) == 1 for each in found)
    many_runners = [endpoint(f"10.0.0.{number}") for number in range(1, 51)]
    (only,) = slices.wanted("web", "wherry", many_runners)
    assert len(only.endpoints) == 50


def test_a_slice_has_at_most_a_hundred_endpoints_of_one_family() -> None:
    many = [endpoint(f"10.0.{number // 100}.{number % 100}") for number in range(250)]
    found = slices.wanted("web", "wherry", [*many, endpoint("fd00::1")])
    assert [(each.address_type, len(each.endpoints)) for each in found] == [
        ("IPv4", 100),
        ("IPv4", 100),
        ("IPv4", 50),
        ("IPv6", 1),
    ]
    assert len({each.name for each in found}) == 4


def test_what_is_there_and_right_is_not_written() -> None:
    wanted = slices.wanted("web", "wherry", [endpoint("10.0.0.1", node="n"), endpoint("10.0.0.2", leaving=True)])
    live = {each.name: as_live(each) for each in wanted}
    assert slices.changes(SERVICE, wanted, live) == Changes()
    assert not slices.changes(SERVICE, wanted, live)


def test_who_comes_is_written_before_who_goes() -> None:
    before = slices.wanted("web", "wherry", [endpoint("10.0.0.1", 1), endpoint("10.0.0.1", 2), endpoint("10.0.0.1", 3)])
    after = slices.wanted(
        "web",
        "wherry",
        [
            endpoint("10.0.0.1", 1, leaving=True),
            endpoint("10.0.0.1", 2),
            endpoint("10.0.0.2", 2),
            endpoint("10.0.0.1", 4),
        ],
    )
    todo = slices.changes(SERVICE, after, {each.name: as_live(each) for each in before})
    assert [each.ports for each in todo.create] == [(("http", 4),)]
    assert [each.ports for _, each in todo.update] == [(("http", 2),), (("http", 1),)]
    assert [each.slice.ports for each in todo.delete] == [(("http", 3),)]


def test_one_that_leaves_is_serving_and_not_ready() -> None:
    (wanted,) = slices.wanted("web", "wherry", [endpoint("10.0.0.1", node="n", leaving=True)])
    (found,) = slices.body(SERVICE, wanted, "ours")["endpoints"]
    assert found == {
        "addresses": ["10.0.0.1"],
        "conditions": {"ready": False, "serving": True, "terminating": True},
        "nodeName": "n",
    }


def test_slices_of_a_service_that_had_the_name_before_are_made_anew() -> None:
    wanted = slices.wanted("web", "wherry", [endpoint("10.0.0.1")])
    of_another = {
        each.name: as_live(each, metadata={"ownerReferences": [{"kind": "Service", "uid": "s-0"}]}) for each in wanted
    }
    assert slices.changes(SERVICE, wanted, of_another).create == tuple(wanted)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "169.254.0.1", "0.0.0.0", "fe80::1", "224.0.0.1", "a.example"])
def test_what_kubernetes_takes_for_no_endpoint(address: str) -> None:
    assert slices.why_unfit(address)


@pytest.mark.parametrize("address", ["10.0.0.1", "192.0.2.7", "fd00::1"])
def test_what_it_takes(address: str) -> None:
    assert slices.why_unfit(address) == ""


def test_a_long_node_name_makes_a_label_all_the_same() -> None:
    assert slices.managed_by("wherry") == "wherry-operator-wherry"
    one, other = (slices.managed_by("n" * 60 + end) for end in "ab")
    assert one != other
    assert max(len(one), len(other)) <= 63
