"""Writes what an image of ours has beyond its base, as CycloneDX 1.6 (JSON): run by the Dockerfiles, with the Python that has it.

    python locks/sbom.py NAME [CARGO_LOCK] > sbom.cdx.json

Python packages are those that are installed; crates those of the lock that the native executor is built from.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

Component = dict[str, Any]


def python_packages() -> list[Component]:
    """Those of the interpreter that runs this."""
    found = {re.sub(r"[-_.]+", "-", each.name).lower(): each for each in distributions()}
    return [_component(f"pkg:pypi/{name}@{each.version}", name, each.version) for name, each in sorted(found.items())]


def crates(lock: Path) -> list[Component]:
    """Those of a Cargo.lock."""
    packages = tomllib.loads(lock.read_text())["package"]
    return [
        _component(f"pkg:cargo/{each['name']}@{each['version']}", each["name"], each["version"]) for each in packages
    ]


def bill(name: str, components: list[Component]) -> Component:
    """The whole document."""
    (version,) = (each["version"] for each in components if each["purl"].startswith("pkg:pypi/wherry@"))
    about = {"type": "container", "bom-ref": name, "name": name, "version": version}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": about},
        "components": components,
    }


def _component(purl: str, name: str, version: str) -> Component:
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


if __name__ == "__main__":
    locks = [Path(argument) for argument in sys.argv[2:]]
    listed = [*python_packages(), *(crate for lock in locks for crate in crates(lock))]
    json.dump(bill(sys.argv[1], listed), sys.stdout, indent=1)
