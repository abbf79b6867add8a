"""What each process imports: most of its memory. Asked in processes of their own, where nobody else has imported anything."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from wherry_runner.lean_imports import bare, without


def modules_after(code: str) -> set[str]:
    told = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


def of(package: str, modules: set[str]) -> set[str]:
    return {name for name in modules if name.split(".")[0] == package}


def test_a_replica_that_waits_has_imported_next_to_nothing() -> None:
    """16 MiB would be 49 again if one of these came in: each brings others."""
    before = modules_after("")
    modules = modules_after("import wherry_operator.start") - before
    assert "wherry_operator.waiting.stage" in modules
    strangers = {name.split(".")[0] for name in modules} - sys.stdlib_module_names
    assert strangers == {"wherry_operator", "wherry_runner"}
    for package in ("ctypes", "decimal", "email", "http", "multiprocessing", "tempfile", "xml", "zipfile"):
        assert not of(package, modules), package
    assert not {"wherry_operator.app", "wherry_operator.kube", "wherry_operator.models"} & modules


def test_an_operator_that_follows_has_imported_nothing_that_only_a_leader_needs() -> None:
    modules = modules_after("import wherry_operator.app")
    assert "wherry_operator.handlers" not in modules
    for package in ("kopf", "cryptography", "requests", "oauthlib", "websocket", "yaml", "urllib3"):
        assert not of(package, modules), package


def test_an_operator_that_leads_has_imported_neither_the_clients_classes_nor_its_other_half() -> None:
    modules = modules_after("from wherry_operator import app\napp._import_handlers()")
    assert {"kopf", "wherry_operator.handlers"} <= modules
    assert "kubernetes.client" not in modules
    for package in ("requests", "oauthlib", "websocket", "urllib3"):
        assert not of(package, modules), package


def test_an_operator_that_makes_certificates_can() -> None:
    assert "cryptography" in modules_after("import wherry_operator.serving, wherry_operator.reconcile.issuing")


def test_a_runner_has_imported_no_client_and_what_only_few_probes_need() -> None:
    modules = modules_after("import wherry_runner.app")
    assert "aiohttp.web" in modules
    assert not {"aiohttp", "aiohttp.client", "aiohttp.connector"} & modules
    assert not of("h2", modules)
    assert "wasmtime" not in modules


def test_who_imports_a_package_afterwards_has_it_whole() -> None:
    whole = modules_after(
        "import wherry_operator.kube, wherry_runner.serving.aio\n"
        "from kubernetes.aio import client, config\nimport aiohttp\n"
        "assert client.Configuration is wherry_operator.kube.Configuration\n"
        "assert aiohttp.web is wherry_runner.serving.aio.web\nassert aiohttp.ClientSession"
    )
    assert {"aiohttp", "kubernetes", "kubernetes.aio.config.kube_config"} <= whole


def test_one_that_was_imported_before_is_left_as_it_is() -> None:
    with bare("json") as made:
        assert not made
        assert sys.modules["json"] is json
    with without("json"):
        assert sys.modules["json"] is json


def test_what_is_not_there_can_not_be_bare() -> None:
    with pytest.raises(ModuleNotFoundError), bare("no_such_package"):
        pass
    assert "no_such_package" not in sys.modules


def test_what_is_hidden_can_be_imported_afterwards() -> None:
    hidden = "from wherry_runner.lean_imports import without\nwith without('colorsys'):\n    import colorsys"
    with pytest.raises(AssertionError, match="ModuleNotFoundError"):
        modules_after(hidden)
    assert "colorsys" in modules_after(hidden.replace("import colorsys", "pass") + "\nimport colorsys")
