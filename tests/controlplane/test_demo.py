"""`make demo`, as the README promises it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.installation import ROOT

LOG = """\
hello from stdout!
hello from stderr!
CONFIG_MAP_VAL=cool stuff
FOO=bar
POD_NAME=hello-world-wasi-rust
Args are: []
"""


def _demo(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "demos.demo", *arguments],
        cwd=ROOT,
        env={**os.environ, "WHERRY_STATE": str(state)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.mark.usefixtures("kubernetes_binaries", "registry")  # built: the demo's own time is short
def test_the_demo_shows_what_the_readme_says_and_leaves_nothing(tmp_path: Path) -> None:
    shown = _demo(tmp_path)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    text = shown.stdout
    commands = [
        "kubectl get nodes",
        "kubectl apply -f demos/hello-world-rust/k8s.yaml",
        "kubectl wait --for=condition=Ready pod/hello-world-wasi-rust",
        "kubectl logs hello-world-wasi-rust",
        "kubectl delete pod hello-world-wasi-rust",
        "kubectl apply -f demos/hello-world-c/workload.yaml",
        "kubectl get wasmworkloads",
    ]
    at = [text.index(f"$ {command}\n") for command in commands]
    assert at == sorted(at)
    assert re.search(r"^wherry +Ready ", text, re.MULTILINE)
    assert f"$ kubectl logs hello-world-wasi-rust\n{LOG}" in text
    table = text[at[-1] :].splitlines()
    assert table[1].split() == ["NAME", "READY", "STATUS", "RESTARTS", "NODE", "AGE"]
    assert table[2].split()[:5] == ["hello-world-c", "1/1", "Running", "0", "node-of-runner-a"]

    cleaned = _demo(tmp_path, "clean")
    assert cleaned.returncode == 0, cleaned.stderr
    assert list(tmp_path.iterdir()) == []
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, text=True, check=False)
    assert left.stdout == "", "processes of the demo are left"
