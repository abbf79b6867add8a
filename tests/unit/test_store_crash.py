"""SIGKILL while a store is written to, at every step and at any: what is opened afterwards is whole."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import store_crash

PROGRAM = [sys.executable, "-m", "tests.support.store_crash"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where that can be: each step waits for a disk otherwise."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as name:
        yield Path(name)


def test_killed_at_every_step(folder: Path) -> None:
    done = subprocess.run(
        [*PROGRAM, "every-step", "4"], capture_output=True, text=True, check=False, env={"TMPDIR": str(folder)}
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    steps = re.search(r"steps: (\d+)", done.stdout)
    assert steps is not None
    assert int(steps[1]) > 100, "it was killed where it touches the disk"


def test_killed_at_any_time(folder: Path) -> None:
    randomness = random.Random(1)
    for _ in range(4):
        lines = randomness.randrange(60)
        with subprocess.Popen([*PROGRAM, "work", str(folder / "modules"), "1000000"], stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            for _ in range(lines + 1):
                child.stdout.readline()
            child.kill()
        store_crash.check(folder / "modules")
