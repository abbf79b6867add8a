"""A module library to be asked by tests: over a folder, opened for one piece of work at a time."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.metadata
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest
import wasmtime
from pydantic import SecretStr

from tests.support import wat as simple
from wherry_runner import protocol
from wherry_runner.execution import process
from wherry_runner.execution.engine import CompiledModule, Variant
from wherry_runner.modules.errors import ModuleError
from wherry_runner.modules.hosts import RegistrySettings
from wherry_runner.modules.library import Modules
from wherry_runner.modules.pull import PullSettings

WASM = bytes(wasmtime.wat2wasm(simple.exits(0)))
OTHER = bytes(wasmtime.wat2wasm(simple.exits(1)))

T = TypeVar("T")

_CODE = "native code"
_ANSWER = json.dumps(
    {
        "kind": "core",
        "sha256": hashlib.sha256(_CODE.encode()).hexdigest(),
        "imports": [],
        "exports": ["_start"],
        "exportCount": 1,
    }
)


def sha256(data: bytes) -> str:
    """A digest, as OCI writes it."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


class QuickEngine:
    """Its compiler takes everything for a command, and a few milliseconds: for tests of what comes before."""

    name = "quick"
    features: frozenset[str] = frozenset()

    def compiler(self, variant: Variant) -> tuple[str, ...]:
        return ("/bin/sh", "-c", f"printf %s '{_CODE}' > /proc/self/fd/$5; printf %s '{_ANSWER}'", "compiler")


class RealEngine:
    """With the python executor's compiler."""

    name = f"python/wasmtime-{importlib.metadata.version('wasmtime')}"
    features: frozenset[str] = frozenset()

    def compiler(self, variant: Variant) -> tuple[str, ...]:
        return (*process.PYTHON, "wherry_runner.modules.compiler")


class Counted:
    """What metrics were told."""

    def __init__(self) -> None:
        self.pulls: list[tuple[str, int]] = []

    def pulled(self, result: str, seconds: float, bytes: int = 0) -> None:
        self.pulls.append((result, bytes))

    def compiled(self, result: str, seconds: float) -> None:
        return


class Room:
    """A library over a folder. Waits are noted, not waited."""

    def __init__(self, folder: Path, *, engine: QuickEngine | RealEngine | None = None, **settings: Any) -> None:
        """`settings`: of a pull; `hosts`: of registries; `limits`, `in_use`: as `Modules` takes them."""
        self.folder = folder
        self.waits: list[float] = []
        self.counted = Counted()
        self.engine = engine or QuickEngine()
        self.more = {name: settings.pop(name) for name in ("limits", "in_use", "compile") if name in settings}
        hosts = {"read_seconds": 10.0} | settings.pop("hosts", {})
        self.pull = PullSettings(registries=RegistrySettings(**hosts), **settings)

    def do(self, work: Callable[[Modules], Awaitable[T]]) -> T:
        """Open the library, work, and close it."""

        async def sleep(seconds: float) -> None:
            self.waits.append(seconds)

        async def whole() -> T:
            modules = Modules(
                self.folder, engine=self.engine, pull=self.pull, metrics=self.counted, sleep=sleep, **self.more
            )
            try:
                return await work(modules)
            finally:
                await modules.close()
                assert asyncio.all_tasks() == {asyncio.current_task()}, "tasks were left behind"
                assert list((self.folder / "tmp").iterdir()) == [], "something unfinished was left behind"
                assert modules._store._reserved_bytes == 0

        return asyncio.run(whole())

    def get(self, reference: str, policy: str = "IfNotPresent", **more: Any) -> CompiledModule:
        """One module of a registry."""
        return self.do(lambda modules: modules.get(image(reference, policy), **more))

    def fail(self, reference: str, policy: str = "IfNotPresent", **more: Any) -> ModuleError:
        """Why it is not given."""
        with pytest.raises(ModuleError) as error:
            self.get(reference, policy, **more)
        return error.value


def image(reference: str, policy: str = "IfNotPresent") -> protocol.ImageModule:
    """A module in a registry."""
    return protocol.ImageModule(reference=reference, pull_policy=protocol.PullPolicy(policy))


def secret(registry: str, username: str = "", password: str = "", token: str = "") -> protocol.RegistryCredential:
    """An entry of a pull secret."""
    return protocol.RegistryCredential(
        registry=registry, username=username, password=SecretStr(password), identity_token=SecretStr(token)
    )


def fails(
    room: Room, module: protocol.Module, *, credentials: Sequence[protocol.RegistryCredential] = ()
) -> ModuleError:
    """Why a module is not given."""
    with pytest.raises(ModuleError) as error:
        room.do(lambda modules: modules.get(module, credentials=credentials))
    return error.value
