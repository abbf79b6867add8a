"""Stand-ins for what our libraries import and none of our processes can come to use.

For each the reason why nothing that is sent to us leads there. Who uses one all the same gets an error that names this file. What
was imported before `install` is left as it is. Pinned to the libraries' versions by `unit/test_stand_ins.py`: look here when one
of them is upgraded.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # it imports fifty others, in the compiler's processes too
    from importlib.abc import Loader

ABSENT = {
    "aiohttp.web_fileresponse": "files are served by routes of `add_static` alone, and no server of ours has one (390 KiB)",
    "aiohttp.tracing": "a client is traced where it is given `trace_configs`, and none of ours is (300 KiB)",
}
"""Modules of which every name is the same class, that can't be made."""

UNTYPED = "pydantic_core.core_schema"
"""Its functions make the dictionaries of which validators are made. The types of these dictionaries, 120 TypedDicts, are for type
checkers (400 KiB): nothing looks into them while a program runs."""


class Absent:
    """What is not here."""

    def __init__(self, *_: object, **__: object) -> None:
        raise RuntimeError("this part of a library was left out: see wherry_runner/stand_ins.py")


class _Module(ModuleType):
    def __getattr__(self, name: str) -> type[Absent]:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent


class _AbsentLoader:
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Module(spec.name, ABSENT[spec.name])

    def exec_module(self, module: ModuleType) -> None:
        """Nothing is to be done."""


class _UntypedLoader:
    def __init__(self, real: Loader) -> None:
        self._real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        with _plain_dictionaries():
            self._real.exec_module(module)


class _Finder:
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname in ABSENT:
            return ModuleSpec(fullname, _AbsentLoader())  # type: ignore[arg-type]
        if fullname != UNTYPED:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _UntypedLoader(spec.loader)  # type: ignore[assignment]  # as the import system uses it
        return spec


class _Dictionary(dict[Any, Any]):
    def __init_subclass__(cls, **_: object) -> None:
        """A TypedDict's options are for type checkers too."""


@contextmanager
def _plain_dictionaries() -> Iterator[None]:
    """Within it, a TypedDict is made as a class like any other: without an object for each of its fields."""
    # Both before: one that is imported meanwhile would keep what it finds.
    modules = [import_module(name) for name in ("typing", "typing_extensions")]
    real = [(module, module.__dict__["TypedDict"]) for module in modules]
    for module in modules:
        module.__dict__["TypedDict"] = _Dictionary
    try:
        yield
    finally:
        for module, its in real:
            module.__dict__["TypedDict"] = its


def install() -> None:
    """From now on. Once is enough."""
    if not any(isinstance(each, _Finder) for each in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
