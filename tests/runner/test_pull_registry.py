"""Pulls from a real registry (CNCF distribution), of what a real client pushed (oras)."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

import oras.client
import pytest
import wasmtime

from tests.cluster.registry import Registry
from tests.support import wat as simple
from wherry_runner import protocol
from wherry_runner.execution.engine import CompiledModule
from wherry_runner.modules.errors import ModuleError, PullError
from wherry_runner.modules.library import Modules

WASM = bytes(wasmtime.wat2wasm(simple.exits(0)))


def push(registry: Registry, folder: Path, name: str, layer_type: str, config_type: str = "") -> str:
    """Push a module as `oras push` does; its reference."""
    (folder / "module.wasm").write_bytes(WASM)
    (folder / "config.json").write_text("{}")
    client = oras.client.OrasClient(hostname=registry.address, insecure=True)
    client.push(
        target=f"{registry.address}/{name}",
        files=[f"module.wasm:{layer_type}"],
        manifest_config=f"config.json:{config_type}" if config_type else None,
        disable_path_validation=True,
    )
    return f"{registry.address}/{name}"


def get(folder: Path, reference: str, policy: str = "IfNotPresent") -> CompiledModule:
    async def whole() -> CompiledModule:
        modules = Modules(folder, engine_name="python/test")
        try:
            return await modules.get(protocol.ImageModule(reference=reference, pull_policy=protocol.PullPolicy(policy)))
        finally:
            await modules.close()

    return asyncio.run(whole())


@pytest.mark.parametrize(
    ("name", "layer_type", "config_type", "krustlet"),
    [
        ("tools/cncf:v1", "application/wasm", "application/vnd.wasm.config.v0+json", False),
        ("krustlet:v1", "application/vnd.wasm.content.layer.v1+wasm", "application/vnd.wasm.config.v1+json", True),
        ("plain:v1", "application/wasm", "", False),
    ],
)
def test_what_was_pushed_is_pulled(
    registry: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    layer_type: str,
    config_type: str,
    krustlet: bool,
) -> None:
    monkeypatch.chdir(tmp_path)  # oras names layers by their paths
    reference = push(registry, tmp_path, name, layer_type, config_type)
    module = get(tmp_path / "store", reference)
    assert module.digest == "sha256:" + hashlib.sha256(WASM).hexdigest()
    assert module.packed_by_krustlet is krustlet
    assert module.image_digest.startswith("sha256:")
    again = get(tmp_path / "store", reference, "Always")
    assert again == module
    by_digest = get(tmp_path / "other", f"{reference.rpartition(':')[0]}@{module.image_digest}")
    assert by_digest.digest == module.digest


def test_what_is_not_there(registry: Registry, tmp_path: Path) -> None:
    reference = f"{registry.address}/nothing:v9"
    with pytest.raises(ModuleError) as error:
        get(tmp_path, reference)
    assert isinstance(error.value, PullError)
    assert error.value.message == (
        f'failed to resolve reference "{reference}": not found (404): the registry has no such repository or tag'
    )
