"""What a module of a container image gets as arguments: as Kubernetes combines `command` and `args` with an image's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from wherry_runner import protocol
from wherry_runner.execution.engine import CompiledModule, ModuleKind
from wherry_runner.lives.starting import argv


@pytest.mark.parametrize(
    ("command", "args", "expected"),
    [
        ((), (), ("app.wasm", "serve", "--fast")),
        ((), ("--slow",), ("app.wasm", "serve", "--slow")),
        (("tool",), (), ("tool",)),
        (("tool", "run"), ("--slow",), ("tool", "run", "--slow")),
    ],
)
def test_arguments_of_an_image(command: tuple[str, ...], args: tuple[str, ...], expected: tuple[str, ...]) -> None:
    module = CompiledModule(
        path=Path("/nowhere"),
        digest="sha256:" + "0" * 64,
        kind=ModuleKind.CORE,
        name="app.wasm",
        entrypoint_args=("serve",),
        image_args=("--fast",),
    )
    source = protocol.ImageModule(reference="registry.example/x")
    assert argv(protocol.Container(name="c", module=source, command=command, args=args), module) == expected
