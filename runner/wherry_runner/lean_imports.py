"""Imports a part of a package without what the package's `__init__` would import beside it.

The Kubernetes client is one distribution with two clients, and its `__init__` files load both with all that they need (requests,
OAuth, YAML, WebSockets, …): 9 MiB of memory in each process, for nothing that is used here (bench/README.md).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from types import ModuleType


@contextmanager
def bare(*names: str) -> Iterator[dict[str, ModuleType]]:
    """Within it, what is imported of these packages comes without their `__init__`; they are given by their names, parents
    first. Who imports the packages afterwards has them whole. One that was imported before is left as it is."""
    made: dict[str, ModuleType] = {}
    try:
        for name in names:
            if name not in sys.modules:
                made[name] = sys.modules[name] = _bare(name)
        yield made
    finally:
        for name in made:
            del sys.modules[name]


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Within it, these modules can't be imported, unless they were before: for who would use them, and needs not."""
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # as the import system has it
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def _bare(name: str) -> ModuleType:
    parent, _, last = name.rpartition(".")
    found = PathFinder.find_spec(name, sys.modules[parent].__path__ if parent else None)
    if found is None or found.submodule_search_locations is None:
        raise ModuleNotFoundError(f"there is no package {name}", name=name)
    package = ModuleType(name)
    package.__path__ = list(found.submodule_search_locations)
    package.__package__ = name
    if parent:
        setattr(sys.modules[parent], last, package)
    return package
