"""A store that dies at every step of its work, and what is then found: run as a program by `tests/unit/test_store_crash.py`.

It is a program because it forks, which a test's process with its threads must not.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

from wherry_runner.modules.store import ANYBODY, CompiledFacts, PulledModule, Store, StoreLimits, sha256_of

KEYS = ("ab" * 32, "cd" * 32)
QUOTA_BYTES = 14 * 4096

_STEPS = ("open", "os.", "shutil.", "tempfile.")
"""Beginnings of the names of audit events that touch the disk."""


def work(folder: Path, rounds: int) -> None:
    """Puts, replaces and removes, with a quota that holds only some of it."""
    store = Store(folder, limits=StoreLimits(quota_bytes=QUOTA_BYTES, free_bytes=0, kept_seconds=0))
    for number in range(rounds):
        data = f"module {number % 5} ".encode() * 300
        digest = store.put_blob(data)
        reference = f"registry.example/x:{number % 7}"
        store.remember(PulledModule(reference=reference, layer_digest=digest, access=(ANYBODY,)))
        code = f"code {number} ".encode() * 500
        with store.holding(digest), store.unfinished() as file:
            file.stream.write(code)
            facts = CompiledFacts(
                kind="core", variant="plain", sha256=hashlib.sha256(code).hexdigest(), module_digest=digest
            )
            store.put_compiled(KEYS[number % 2], file, facts)
        if number % 4 == 3:
            store.remove_blob(digest)
        print(number, flush=True)


def check(folder: Path) -> None:
    """Open what is left: all of it is whole, belongs together, and can be worked with."""
    store = Store(folder, limits=StoreLimits(quota_bytes=QUOTA_BYTES, free_bytes=0, kept_seconds=0))
    check_whole(store, folder)
    assert store.used_bytes <= QUOTA_BYTES
    work(folder, 3)


def check_whole(store: Store, folder: Path) -> None:
    """Whether all that is in a store, opened from its folder, is whole and belongs together."""
    sizes = 0
    for blob in (folder / "blobs" / "sha256").iterdir():
        assert sha256_of(blob) == blob.name, "half a blob has a name"
        sizes += blob.stat().st_size
    for ref in (folder / "refs").iterdir():
        reference = json.loads(ref.read_bytes().splitlines()[0])["reference"]
        assert store.recall(reference) is not None, "a reference to nothing"
    for compiled in (folder / "compiled").iterdir():
        found = store.compiled(compiled.name)
        assert found is not None, "code without facts"
        assert sha256_of(found[0]) == found[1].sha256, "code under the facts of other code"
        assert store.has_blob(found[1].module_digest), "code of no module"
        sizes += found[0].stat().st_size
    assert list((folder / "tmp").iterdir()) == []
    assert sizes <= store.used_bytes
    for path in folder.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def die_at(step: int) -> None:
    """Kill this process when it is about to touch the disk for the n-th time."""
    steps = 0

    def count(event: str, arguments: object) -> None:
        nonlocal steps
        if event.startswith(_STEPS):
            steps += 1
            if steps == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def every_step(rounds: int) -> int:
    """Die at the first step, at the second, … until the work comes to its end; how many steps it has."""
    step = 0
    while True:
        step += 1
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "modules"
            sys.stdout.flush()
            child = os.fork()
            if child == 0:
                os.close(1)
                os.open(os.devnull, os.O_WRONLY)
                die_at(step)
                work(folder, rounds)
                os._exit(0)
            _, status = os.waitpid(child, 0)
            if folder.exists():
                check(folder)
            if os.waitstatus_to_exitcode(status) == 0:
                return step


if __name__ == "__main__":
    if sys.argv[1] == "every-step":
        print("steps:", every_step(int(sys.argv[2])))
    else:
        work(Path(sys.argv[2]), int(sys.argv[3]))
