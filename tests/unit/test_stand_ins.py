"""What is left out of libraries: that nothing else of theirs leads there, in the versions that were looked at."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

from wherry_runner.stand_ins import ABSENT, UNTYPED

LOOKED_AT = {"aiohttp": "3.14.5", "pydantic": "2.14.3"}
"""After an upgrade: read `stand_ins.py` against the new version, then write it here."""

USERS = {
    "aiohttp.web_fileresponse": {"web.py", "web_urldispatcher.py"},
    "aiohttp.tracing": {"__init__.py", "client.py", "client_reqrep.py", "connector.py"},
}


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("package", LOOKED_AT)
def test_the_libraries_are_those_that_were_looked_at(package: str) -> None:
    assert importlib.metadata.version(package) == LOOKED_AT[package]


@pytest.mark.parametrize("module", ABSENT)
def test_nobody_else_uses_what_is_left_out(module: str) -> None:
    import aiohttp

    package, _, name = module.partition(".")
    sources = Path(aiohttp.__file__).parent.glob("*.py")
    uses = re.compile(rf"(from \.{name} import|from \. import .*\b{name}\b|import {package}\.{name})")
    assert {each.name for each in sources if uses.search(each.read_text())} == USERS[module]


@pytest.mark.parametrize("process", ["wherry_operator", "wherry_runner"])
def test_a_process_has_the_stand_ins_whatever_it_imports_first(process: str) -> None:
    run(
        f"import {process}\nimport aiohttp.web, aiohttp.tracing, pydantic\n"
        "from wherry_runner.stand_ins import Absent\nfrom pydantic_core import core_schema\n"
        "assert aiohttp.web.FileResponse is aiohttp.tracing.TraceConfig is Absent\n"
        "assert not hasattr(core_schema.IntSchema, '__required_keys__')\n"
        "from typing_extensions import TypedDict\nclass After(TypedDict):\n    a: int\n"
        "assert After.__required_keys__ == {'a'}\n"
        "assert pydantic.TypeAdapter(After).validate_python({'a': '1'}) == {'a': 1}\n"
    )


def test_who_uses_one_is_told() -> None:
    told = run(
        "import wherry_runner, aiohttp.web\ntry:\n    aiohttp.web.FileResponse('x')\n"
        "except RuntimeError as error:\n    print(error)"
    )
    assert "stand_ins.py" in told


def test_what_was_imported_before_is_left_as_it_is() -> None:
    run(
        "import aiohttp.web\nreal = aiohttp.web.FileResponse\nimport wherry_runner\n"
        "import aiohttp.web\nassert aiohttp.web.FileResponse is real"
    )
    assert UNTYPED not in ABSENT
