"""The CRD and the operator's model of the spec say the same, and the CRD explains itself."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from enum import EnumType
from pathlib import Path
from typing import Any, Literal, Union

import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from wherry_operator.models import IntOrPercent, Quantity, WasmWorkloadSpec
from wherry_operator.resolve.workload import OUTSIDE_THE_TEMPLATE
from wherry_operator.rollout.plan import Memory, Wanted
from wherry_operator.status import workload as workload_status
from wherry_runner.protocol import RestartPolicy

Json = dict[str, Any]

CRD: Json = yaml.safe_load((Path(__file__).parents[2] / "crds" / "wasmworkloads.wherry.dev.yaml").read_text())
(VERSION,) = CRD["spec"]["versions"]
SCHEMA: Json = VERSION["schema"]["openAPIV3Schema"]
SPEC: Json = SCHEMA["properties"]["spec"]


def nested(schema: Json, path: str = "spec") -> Iterator[tuple[str, Json]]:
    """Every schema below this one, by its path."""
    for name, below in schema.get("properties", {}).items():
        yield f"{path}.{name}", below
        yield from nested(below, f"{path}.{name}")
    if "additionalProperties" in schema:
        yield f"{path}[]", schema["additionalProperties"]
    if "items" in schema:
        yield f"{path}[]", schema["items"]
        yield from nested(schema["items"], f"{path}[]")


def inner(annotation: Any) -> Any:
    """What a field holds, without `None` and what only annotates."""
    while True:
        origin = typing.get_origin(annotation)
        if origin is typing.Annotated:
            annotation = typing.get_args(annotation)[0]
        elif origin in (Union, types.UnionType):
            for either in (Quantity, IntOrPercent):
                if set(typing.get_args(annotation)) - {type(None)} == set(typing.get_args(either)):
                    return either
            (annotation,) = (item for item in typing.get_args(annotation) if item is not type(None))
        else:
            return annotation


def alias(name: str, field: FieldInfo) -> str:
    return field.alias or name


def disagreements(model: type[BaseModel], schema: Json, path: str = "spec") -> Iterator[str]:
    fields = {alias(name, field): field for name, field in model.model_fields.items()}
    properties = schema["properties"]
    for name in sorted(set(fields) ^ set(properties)):
        yield f"{path}.{name} is only in the {'model' if name in fields else 'CRD'}"
    for name in sorted(set(fields) & set(properties)):
        field, below = fields[name], properties[name]
        given = name in schema.get("required", ()) or "default" in below
        if field.is_required() and not given:
            yield f"{path}.{name}: the CRD lets it be absent, the model does not"
        if "default" in below and field.default != below["default"]:
            yield f"{path}.{name}: the defaults differ"
        yield from _kinds(inner(field.annotation), below, f"{path}.{name}")


_KINDS = {str: "string", int: "integer", bool: "boolean", float: "number"}


def _kinds(kind: Any, schema: Json, path: str) -> Iterator[str]:
    if typing.get_origin(kind) is tuple:
        if schema["type"] != "array":
            yield f"{path}: the model has a list, the CRD {schema['type']}"
            return
        yield from _kinds(inner(typing.get_args(kind)[0]), schema["items"], f"{path}[]")
    elif kind in (Quantity, IntOrPercent):
        if not schema.get("x-kubernetes-int-or-string") or "pattern" not in schema:
            yield f"{path}: the model has a quantity or a percentage"
    elif typing.get_origin(kind) is dict:
        values = schema.get("additionalProperties")
        if values is None:
            yield f"{path}: the model has a map"
            return
        yield from _kinds(inner(typing.get_args(kind)[1]), values, f"{path}{{}}")
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        if schema["type"] != "object":
            yield f"{path}: the model has an object, the CRD {schema['type']}"
            return
        yield from disagreements(kind, schema, path)
    elif typing.get_origin(kind) is Literal or isinstance(kind, EnumType):
        values = set(typing.get_args(kind)) if typing.get_origin(kind) is Literal else {item.value for item in kind}
        if schema["type"] != "string" or set(schema.get("enum", ())) != values:
            yield f"{path}: the values differ"
    elif schema["type"] != _KINDS[kind]:
        yield f"{path}: the model has {kind.__name__}, the CRD {schema['type']}"


def test_the_crd_and_the_model_have_the_same_fields_kinds_and_defaults() -> None:
    assert list(disagreements(WasmWorkloadSpec, SPEC)) == []


@pytest.mark.parametrize("part", ["spec", "status"])
def test_every_field_is_explained(part: str) -> None:
    schema = SCHEMA["properties"][part]
    assert schema["description"]
    mute = [path for path, below in nested(schema, part) if not path.endswith("[]") and not below.get("description")]
    assert mute == []


def test_every_sentence_ends() -> None:
    bad = [
        path for path, below in nested(SCHEMA, "") if "description" in below and not below["description"].endswith(".")
    ]
    assert bad == []


def test_the_schema_is_structural_and_bounded() -> None:
    """What the API server demands of a schema, and what keeps the cost of its rules below the budget."""
    for path, below in nested(SPEC):
        if below.get("x-kubernetes-int-or-string"):
            assert "pattern" in below, path
            continue
        assert "type" in below, path
        if below["type"] == "array":
            assert "maxItems" in below, path
        if "additionalProperties" in below:
            assert "maxProperties" in below, path
        if below["type"] == "integer" and below.get("format") != "int64":
            assert "maximum" in below, path
        if below["type"] == "string" and "enum" not in below:
            assert "maxLength" in below, path
        for rule in below.get("x-kubernetes-validations", ()):
            message = rule.get("message") or rule["messageExpression"]
            assert message, path
            assert not message.rstrip("'").endswith("."), path
        for key in below.get("x-kubernetes-list-map-keys", ()):
            assert key in below["items"].get("required", ()), path


def test_every_reference_of_a_rule_and_every_required_field_exists() -> None:
    for path, below in nested(SCHEMA, ""):
        assert set(below.get("required", ())) <= set(below.get("properties", {})), path


def test_the_columns_point_to_fields_that_exist() -> None:
    for column in VERSION["additionalPrinterColumns"]:
        schema = SCHEMA
        for step in column["jsonPath"].removeprefix(".").split("."):
            name, _, index = step.partition("[")
            if name == "metadata":
                break
            schema = schema["properties"][name]
            if index:
                schema = schema["items"]
        else:
            assert schema["type"] == column["type"], column["name"]
    assert [column["name"] for column in VERSION["additionalPrinterColumns"] if not column.get("priority")] == [
        "Ready",
        "Status",
        "Restarts",
        "Node",
        "Age",
    ]


def test_the_class_can_be_selected_by_the_server() -> None:
    assert VERSION["selectableFields"] == [{"jsonPath": ".spec.className"}]


def test_no_field_of_the_template_gets_a_default_but_the_two_that_it_has_always_had() -> None:
    """The API server writes defaults into objects that are there: a new one would replace every instance of all of them."""
    defaulted = {path for path, below in nested(SPEC, "") if "default" in below}
    fields = {path.lstrip(".").partition(".")[0].removesuffix("[]") for path in defaulted}
    assert fields - OUTSIDE_THE_TEMPLATE == {"restartPolicy", "terminationGracePeriodSeconds"}


def test_what_is_outside_of_the_template_is_in_the_spec() -> None:
    assert {f"spec.{each}" for each in OUTSIDE_THE_TEMPLATE} <= {path for path, _ in nested(SPEC)}


def test_it_can_be_scaled() -> None:
    assert VERSION["subresources"] == {
        "status": {},
        "scale": {
            "specReplicasPath": ".spec.replicas",
            "statusReplicasPath": ".status.replicas",
            "labelSelectorPath": ".status.selector",
        },
    }


def test_the_status_has_the_fields_that_are_written() -> None:
    from datetime import UTC, datetime

    body = {"metadata": {"name": "a", "namespace": "b", "uid": "c"}, "spec": {}}
    observed = workload_status.Observed(wanted=Wanted(revision="0f"), memory=Memory())
    (written,) = workload_status.steps(body, observed, now=datetime(2026, 1, 2, tzinfo=UTC))
    assert set(written) == set(SCHEMA["properties"]["status"]["properties"])


@pytest.mark.parametrize(
    "spec",
    [
        {"module": {"image": "i"}},
        {"className": "wherry", "module": {"inline": "(module)"}, "restartPolicy": "Never"},
        {"module": {"configMapKeyRef": {"name": "c", "key": "k"}}, "anythingNewer": {"a": 1}},
        {"module": {"image": "i"}, "args": [], "env": [], "envFrom": [], "volumes": [], "volumeMounts": []},
    ],
)
def test_what_the_api_server_lets_pass_the_model_takes(spec: Json) -> None:
    parsed = WasmWorkloadSpec.model_validate(spec)
    assert parsed.restart_policy is RestartPolicy(spec.get("restartPolicy", "Always"))
    assert parsed.class_name == "wherry"
