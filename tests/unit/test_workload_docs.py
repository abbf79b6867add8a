"""docs/wasmworkload.md: every field has a meaning and an example, every word of a status its meaning."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from wherry_operator.models import WasmWorkloadSpec

Json = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "wasmworkload.md").read_text()
EXAMPLES = [body for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL) for body in yaml.safe_load_all(block)]
SCHEMA = yaml.safe_load((ROOT / "crds" / "wasmworkloads.wherry.dev.yaml").read_text())["spec"]["versions"][0]["schema"]
PROPERTIES = SCHEMA["openAPIV3Schema"]["properties"]


def leaves(schema: Json, path: str = "") -> Iterator[str]:
    """All fields that hold no others."""
    inner = schema.get("properties") or (schema.get("items") or {}).get("properties")
    if not inner:
        yield path
        return
    for name, field in inner.items():
        yield from leaves(field, f"{path}.{name}" if path else name)


def used(value: Any, path: str = "") -> Iterator[str]:
    """All fields of an object, at every depth."""
    if path:
        yield path
    for item in value if isinstance(value, list) else []:
        yield from used(item, path)
    for name, field in value.items() if isinstance(value, dict) else []:
        yield from used(field, f"{path}.{name}" if path else name)


def test_every_field_has_an_example() -> None:
    shown = {path for body in EXAMPLES for path in used(body.get("spec", body))}
    assert sorted(set(leaves(PROPERTIES["spec"])) - shown) == []


@pytest.mark.parametrize("body", [body for body in EXAMPLES if "metadata" in body], ids=lambda b: b["metadata"]["name"])
def test_every_example_is_one_that_the_operator_understands(body: Json) -> None:
    WasmWorkloadSpec.model_validate(body["spec"])


def test_every_field_has_a_meaning() -> None:
    for part in ("spec", "status"):
        for name in PROPERTIES[part]["properties"]:
            assert f"`{name}" in TEXT, f"{part}.{name}"
